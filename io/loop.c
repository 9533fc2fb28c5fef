/* SPDX-License-Identifier: MIT */
#include "io/loop.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "base/rcu.h"

/* Empty turns before a loop sleeps. A wake-up costs two system calls and a switch; where the sender may need
 * this very core, spinning costs more. */
#define SPIN_TURNS 64u
#define SPIN_TURNS_CROWDED 4u
#define CROWDED_CPUS 4

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void loop_run(struct loop *loop)
{
    const uint32_t spin_turns =
        sysconf(_SC_NPROCESSORS_ONLN) <= CROWDED_CPUS ? SPIN_TURNS_CROWDED : SPIN_TURNS;
    uint32_t idle_turns = 0;

    while (!atomic_load_explicit(&loop->stop, memory_order_acquire)) {
        if (loop->ops->turn(loop)) {
            idle_turns = 0;
            continue;
        }
        if (++idle_turns < spin_turns) {
            pause_briefly();
            continue;
        }
        atomic_store_explicit(&loop->sleeping, true, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst); /* pairs with loop_notify() */
        if (!loop->ops->has_mail(loop) && !atomic_load_explicit(&loop->stop, memory_order_relaxed))
            loop->ops->sleep(loop);
        atomic_store_explicit(&loop->sleeping, false, memory_order_relaxed);
        idle_turns = 0;
    }
}

static void *thread_main(void *arg)
{
    struct loop *loop = arg;

    pthread_setname_np(pthread_self(), loop->thread_name);
    rcu_thread_ensure();
    loop_run(loop);
    backend_leave(loop->backend);
    return NULL;
}

int loop_start_thread(struct loop *loop)
{
    sigset_t all, old;
    int err;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&loop->thread, NULL, thread_main, loop);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err)
        return error_set(-err, "cannot start thread %s: %s", loop->thread_name, strerror(err));
    loop->has_thread = true;
    return 0;
}

void loop_stop_thread(struct loop *loop)
{
    if (!loop->has_thread)
        return;
    atomic_store_explicit(&loop->stop, true, memory_order_release);
    loop->backend->ops->wake(loop->backend);
    pthread_join(loop->thread, NULL);
    loop->has_thread = false;
}
