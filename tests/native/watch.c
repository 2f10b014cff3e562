/* A thread that compares bytes again and again, without the interpreter's lock, until it is told to stop. */
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

/* Returns the number of the first range that was not what it should be, from 1 on; 0: all were, each time. */
uint64_t watch(const unsigned char *const *where, const unsigned char *const *what, const uint64_t *nbytes, uint64_t count,
               _Atomic int32_t *stop, _Atomic int64_t *rounds);
uint64_t watch(const unsigned char *const *where, const unsigned char *const *what, const uint64_t *nbytes, uint64_t count,
               _Atomic int32_t *stop, _Atomic int64_t *rounds)
{
    while (!atomic_load(stop)) {
        for (uint64_t at = 0; at < count; at++)
            if (memcmp(where[at], what[at], nbytes[at]) != 0)
                return at + 1;
        atomic_fetch_add(rounds, 1);
    }
    return 0;
}
