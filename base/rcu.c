/* SPDX-License-Identifier: MIT */
#include "base/rcu.h"

#include <pthread.h>

_Thread_local int rcu_thread_attached;

#ifdef RCU_TELL_TSAN
char rcu_tsan_tag;
#endif

static pthread_key_t exit_key;
static pthread_once_t exit_key_once = PTHREAD_ONCE_INIT;

static void thread_exits(void *unused)
{
    (void)unused;
    urcu_memb_unregister_thread();
    rcu_thread_attached = 0;
}

static void make_exit_key(void)
{
    invariant(pthread_key_create(&exit_key, thread_exits) == 0);
}

void rcu_thread_attach(void)
{
    pthread_once(&exit_key_once, make_exit_key);
    /* Any value that is not NULL makes the destructor run. */
    invariant(pthread_setspecific(exit_key, &rcu_thread_attached) == 0);
    urcu_memb_register_thread();
    rcu_thread_attached = 1;
}
