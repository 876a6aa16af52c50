/* A pool of threads for kernels of a few to a few hundred microseconds.

   A job is `count` chunks. The caller and the helpers claim chunks one by one from one counter, so a thread
   that the system has put aside only does fewer of them: the others do its share. The caller never waits
   for a helper that has not claimed anything.

   Chunks must not depend on who computes them or in which order. */

#ifndef TERN_POOL_H
#define TERN_POOL_H

typedef void (*tern_chunk)(const void *job, long index);

/* Run chunks 0 … count-1 and return when all are done. A second caller meanwhile runs its job alone. */
void tern_parallel_for(tern_chunk run, const void *job, long count);

/* Memory that a thread (0: the caller) will probably read next. While it waits, for a job or for others to end theirs,
   it calls that into its second cache. In two stretches, which may be empty. */
typedef struct {
    const char *at;
    long bytes;
} Stretch;
void tern_read_ahead(int thread, const Stretch stretches[2]);

/* From now on this many threads work on a job, the caller included (1 … 256). */
void tern_set_threads(int threads);
int tern_get_threads(void);

#endif
