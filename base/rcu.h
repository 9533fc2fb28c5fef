/* SPDX-License-Identifier: MIT */
/*
 * Read-copy-update, liburcu's memb flavour. This is the only file that includes liburcu.
 *
 * A read-side section is short: it never spans I/O, a lock or a return to the caller of the library.
 */
#ifndef BASE_RCU_H
#define BASE_RCU_H

#define URCU_INLINE_SMALL_FUNCTIONS
#include <urcu/urcu-memb.h>

#include "base/attributes.h"

extern _Thread_local int rcu_thread_attached;

/* Registers the calling thread; it is unregistered when it ends. */
void rcu_thread_attach(void);

/* Every thread calls this before its first read-side section: the library's own when they start, an
 * embedder's on each entry, where it costs one test. */
static inline void rcu_thread_ensure(void)
{
    if (unlikely(!rcu_thread_attached))
        rcu_thread_attach();
}

static inline void rcu_enter(void)
{
    urcu_memb_read_lock();
}

static inline void rcu_leave(void)
{
    urcu_memb_read_unlock();
}

/* Waits until every read-side section that was running has ended. Control path only, never inside a section.
 */
static inline void rcu_wait(void)
{
    urcu_memb_synchronize_rcu();
}

#endif
