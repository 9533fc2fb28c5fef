/* SPDX-License-Identifier: MIT */
/*
 * Everything that runs on a thread is a loop: a turn that never blocks, and a way to sleep. The real
 * environment gives each loop a thread; the simulator runs all of them in one.
 */
#ifndef IO_LOOP_H
#define IO_LOOP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/backend.h"

struct loop;

struct loop_ops {
    /* Do what there is to do: messages, completions, work, submission. True when anything was done. */
    bool (*turn)(struct loop *loop);
    /* Whether a message waits that the next turn would take. Called when about to sleep. */
    bool (*has_mail)(struct loop *loop);
    /* Sleep in the backend until woken or until something completes. */
    void (*sleep)(struct loop *loop);
};

struct loop {
    const struct loop_ops *ops;
    const char *thread_name;
    struct backend *backend;
    /* Writer: the loop sets it before it sleeps and clears it afterwards; a sender that takes it from true to
     * false owes a wake-up. */
    _Atomic bool sleeping;
    _Atomic bool stop;
    /* When the loop wants to be turned at the latest though nothing calls it: env's clock, 0: never. The
     * loop's own; set by its turns. */
    uint64_t wake_at_ns;
    pthread_t thread;
    bool has_thread;
    bool started; /* env's loop_start() was called for it, and loop_stop() was not; the control path's */
};

/*
 * Sender's side, after pushing messages for this loop and once per turn: wake it if it sleeps. The fence
 * pairs with the one in loop_run(): either the loop sees the message or the sender sees that it sleeps.
 */
static inline void loop_notify(struct loop *loop)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&loop->sleeping, memory_order_relaxed) &&
        atomic_exchange_explicit(&loop->sleeping, false, memory_order_acq_rel))
        loop->backend->ops->wake(loop->backend);
}

/* Turns until loop->stop. */
void loop_run(struct loop *loop);

/* On a thread of its own, all signals blocked. 0 or a negative errno with a message. */
int loop_start_thread(struct loop *loop);

/* Stop and join; nothing when it never started. */
void loop_stop_thread(struct loop *loop);

#endif
