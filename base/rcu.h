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

#if defined(__SANITIZE_THREAD__)
#define RCU_TELL_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RCU_TELL_TSAN 1
#endif
#endif

/* liburcu is not instrumented: tell ThreadSanitizer that a grace period comes after the sections that it
 * waited for. */
#ifdef RCU_TELL_TSAN
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
extern char rcu_tsan_tag;
#define rcu_tell_left() __tsan_release(&rcu_tsan_tag)
#define rcu_tell_waited() __tsan_acquire(&rcu_tsan_tag)
#else
#define rcu_tell_left() ((void)0)
#define rcu_tell_waited() ((void)0)
#endif

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
    rcu_tell_left();
    urcu_memb_read_unlock();
}

/* Waits until every read-side section that was running has ended. Control path only, never inside a section.
 */
static inline void rcu_wait(void)
{
    urcu_memb_synchronize_rcu();
    rcu_tell_waited();
}

#endif
