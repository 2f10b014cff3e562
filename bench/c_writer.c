/* A writer: stores to memory while others cut it, and notes its longest pause. */
#include "clock.h"

#include <stdatomic.h>

/* Store to one page after another, far apart, until *stop: seconds of the longest time between two stores.
 * More pages than a processor remembers translations of, else it may go on storing while they are changed. */
double c_pause(volatile char *memory, size_t pages, size_t page, atomic_int *stop)
{
    double longest = 0, before = now();
    for (size_t at = 0; !atomic_load_explicit(stop, memory_order_relaxed); at = (at + 10007) % pages) {
        ++memory[at * page];
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
