/* SPDX-License-Identifier: MIT */
/*
 * Intrusive singly linked FIFO. A node is in at most one list. Not thread-safe: every list belongs to one
 * loop.
 */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list_node {
    struct list_node *next;
};

struct list {
    struct list_node *head;
    struct list_node *tail; /* valid only while head is not NULL */
};

static inline bool list_empty(const struct list *l)
{
    return !l->head;
}

static inline void list_push(struct list *l, struct list_node *n)
{
    n->next = NULL;
    if (l->head)
        l->tail->next = n;
    else
        l->head = n;
    l->tail = n;
}

/* Takes the oldest node, or NULL. */
static inline struct list_node *list_pop(struct list *l)
{
    struct list_node *n = l->head;

    if (n)
        l->head = n->next;
    return n;
}

/* Leaves l empty and returns what it held. */
static inline struct list list_take(struct list *l)
{
    struct list all = *l;

    l->head = NULL;
    return all;
}

#endif
