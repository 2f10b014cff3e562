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

/* One store to each page: seconds for all. */
double c_touch(volatile char *memory, size_t nbytes, size_t page)
{
    double start = now();
    for (size_t at = 0; at < nbytes; at += page)
        ++memory[at];
    return now() - start;
}
