/* The pool of pool.h.

   ticket   epoch of the job (upper 32 bits) | chunks not yet claimed (lower 32 bits)

   Claiming is one compare-and-swap of the ticket. As the epoch is part of it, a helper that was asleep
   since an earlier job can never claim from it, and as a claimed chunk keeps its job alive, whoever holds
   one may read the job's fields.

   A helper without work spins for a while, which bridges the gap between two kernels of a step, and then
   sleeps on its own condition variable: waking it costs the caller a few microseconds. */

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define LINES_AT_ONCE 8 /* that are called ahead between two looks for work: 0.1 µs */
#define MOST_THREADS 256
#define SPIN_NS 50000
#define STACK_BYTES (4 << 20) /* kernels keep up to a megabyte there; some systems give a thread an eighth */

/* What is to be called ahead; one who reads while it changes calls for other memory, which does no harm. */
typedef struct {
    _Alignas(128) _Atomic(const char *) at[2];
    atomic_long bytes[2];
    atomic_uint changes;
} Wish;

typedef struct {
    _Alignas(128) atomic_int asleep;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    int index;
} Helper;

static _Alignas(128) atomic_uint_fast64_t ticket;
static _Alignas(128) atomic_long unfinished;
static _Alignas(128) atomic_int wanted = 1; /* threads, the caller included */
static tern_chunk job_run;
static const void *job_data;
static long job_count;
static int started; /* helpers that exist */
static Helper helpers[MOST_THREADS];
static Wish wishes[MOST_THREADS];
static pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void tern_read_ahead(int thread, const Stretch stretches[2]) {
    Wish *wish = wishes + thread;
    for (int i = 0; i < 2; i++) {
        atomic_store_explicit(&wish->at[i], stretches[i].at, memory_order_relaxed);
        atomic_store_explicit(&wish->bytes[i], stretches[i].bytes, memory_order_relaxed);
    }
    atomic_fetch_add_explicit(&wish->changes, 1, memory_order_release);
}

/* How far a thread has come with its wish. */
typedef struct {
    Stretch left[2];
    unsigned changes;
} Reader;

/* Whether there was something to call for. */
static int read_ahead(Wish *wish, Reader *reader) {
    unsigned changes = atomic_load_explicit(&wish->changes, memory_order_acquire);
    for (int i = 0; i < 2 && changes != reader->changes; i++) {
        reader->left[i].at = atomic_load_explicit(&wish->at[i], memory_order_relaxed);
        reader->left[i].bytes = atomic_load_explicit(&wish->bytes[i], memory_order_relaxed);
    }
    reader->changes = changes;
    int any = 0;
    for (int i = 0; i < 2; i++)
        for (int line = 0; line < LINES_AT_ONCE && reader->left[i].bytes > 0; line++, any = 1) {
            __builtin_prefetch(reader->left[i].at, 0, 2);
            reader->left[i].at += 64, reader->left[i].bytes -= 64;
        }
    return any;
}

/* Claim and run chunks until none is left; whether there was one. */
static int work(void) {
    int any = 0;
    uint_fast64_t seen = atomic_load_explicit(&ticket, memory_order_acquire);
    for (;;) {
        if ((uint32_t)seen == 0) return any;
        if (!atomic_compare_exchange_weak_explicit(&ticket, &seen, seen - 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        job_run(job_data, job_count - (long)(uint32_t)seen);
        any = 1;
        atomic_fetch_sub_explicit(&unfinished, 1, memory_order_release);
        seen = atomic_load_explicit(&ticket, memory_order_acquire);
    }
}

static void *help(void *argument) {
    Helper *self = argument;
    int64_t idle_since = now_ns();
    Reader reader = {0};
    for (;;) {
        if (self->index < atomic_load_explicit(&wanted, memory_order_relaxed) && work()) {
            idle_since = now_ns();
            continue;
        }
        if (read_ahead(wishes + self->index, &reader)) continue;
        for (int i = 0; i < 64; i++) relax();
        if (now_ns() - idle_since < SPIN_NS) continue;
        pthread_mutex_lock(&self->mutex);
        atomic_store(&self->asleep, 1);
        /* A job published before `asleep` was seen would not wake this thread: look once more. */
        int idle = (uint32_t)atomic_load(&ticket) == 0 || self->index >= atomic_load(&wanted);
        while (idle && atomic_load(&self->asleep)) pthread_cond_wait(&self->wake, &self->mutex);
        atomic_store(&self->asleep, 0);
        pthread_mutex_unlock(&self->mutex);
        idle_since = now_ns();
    }
    return NULL;
}

static void wake_helpers(int threads) {
    for (int i = 1; i < threads; i++) {
        Helper *helper = &helpers[i];
        if (!atomic_load(&helper->asleep)) continue;
        pthread_mutex_lock(&helper->mutex);
        atomic_store(&helper->asleep, 0);
        pthread_cond_signal(&helper->wake);
        pthread_mutex_unlock(&helper->mutex);
    }
}

void tern_parallel_for(tern_chunk run, const void *job, long count) {
    int threads = atomic_load_explicit(&wanted, memory_order_relaxed);
    if (threads == 1 || count <= 1 || pthread_mutex_trylock(&caller) != 0) {
        for (long i = 0; i < count; i++) run(job, i);
        return;
    }
    job_run = run;
    job_data = job;
    job_count = count;
    atomic_store_explicit(&unfinished, count, memory_order_relaxed);
    uint_fast64_t epoch = (atomic_load_explicit(&ticket, memory_order_relaxed) >> 32) + 1;
    atomic_store(&ticket, epoch << 32 | (uint32_t)count);
    wake_helpers(threads < started + 1 ? threads : started + 1);
    work();
    static Reader reader; /* the one caller's */
    for (int spins = 0; atomic_load_explicit(&unfinished, memory_order_acquire) > 0; spins++) {
        if (read_ahead(wishes, &reader)) continue;
        if (spins < 10000)
            relax();
        else
            sched_yield(); /* whoever holds the last chunk may need this core */
    }
    pthread_mutex_unlock(&caller);
}

void tern_set_threads(int threads) {
    if (threads < 1) threads = 1;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    pthread_mutex_lock(&caller);
    sigset_t all, before; /* signals are for the threads of Python */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started + 1 < threads) {
        Helper *helper = &helpers[started + 1];
        helper->index = started + 1;
        pthread_mutex_init(&helper->mutex, NULL);
        pthread_cond_init(&helper->wake, NULL);
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, STACK_BYTES);
        int failed = pthread_create(&thread, &attributes, help, helper);
        pthread_attr_destroy(&attributes);
        if (failed) break; /* fewer threads: the same results, later */
        started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    atomic_store(&wanted, threads);
    pthread_mutex_unlock(&caller);
}

int tern_get_threads(void) { return atomic_load(&wanted); }
