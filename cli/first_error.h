/* SPDX-License-Identifier: MIT */
/* The first of the errors that several threads meet. */
#ifndef CLI_FIRST_ERROR_H
#define CLI_FIRST_ERROR_H

#include <pthread.h>

struct first_error {
    pthread_mutex_t lock; /* of all below */
    int err;              /* 0: none */
    char text[600];
};

void first_error_init(struct first_error *first);
void first_error_destroy(struct first_error *first);

/* Keeps the error and its message unless there is one already. Any thread. */
void first_error_set(struct first_error *first, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Prints the message, if there is one, and returns its error or 0. After the threads have ended. */
int first_error_report(struct first_error *first);

#endif
