/* A writer: stores to memory while others cut it, and notes its longest pause. */
#include "clock.h"

#include <stdatomic.h>
#include <stdint.h>

/* Store to one line of one page again and again until *stop: seconds of the longest time between two stores. */
double c_pause(volatile uint64_t *place, atomic_int *stop)
{
    double longest = 0, before = now();
    while (!atomic_load_explicit(stop, memory_order_relaxed)) {
        ++*place;
        double after = now();
        if (after - before > longest)
            longest = after - before;
        before = after;
    }
    return longest;
}

static double spent(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One store to each page: seconds of this thread's processor time for all. */
double c_touch(volatile char *memory, size_t nbytes, size_t page)
{
    double start = spent();
    for (size_t at = 0; at < nbytes; at += page)
        ++memory[at];
    return spent() - start;
}
