/* Following references with a colour, in seconds of the processor: from `reference` on through `loads` of them, each behind the test that
 * a load barrier makes. A reference is the offset of the next one, and a colour from bit `shift` on. */
#include "clock.h"

static volatile uint64_t seen;

static double spent(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* WAY: m: the colour is masked off; c: it chooses the view that `base` begins; b: the same, and any colour passes the test */
double c_views(const char *base, unsigned shift, uint64_t reference, uint64_t good, uint64_t loads, char way)
{
    const uint64_t offsets = ((uint64_t)1 << shift) - 1, colours = (uint64_t)3 << shift;
    const uint64_t bad = way == 'b' ? colours : 0;
    double start = spent();
    if (way == 'm') {
        for (uint64_t left = loads; left != 0; left--) {
            reference = *(const uint64_t *)(const void *)(base + (reference & offsets));
            if (((reference ^ good) & colours) != 0)
                return -1;
        }
    } else if (way == 'c') {
        for (uint64_t left = loads; left != 0; left--) {
            reference = *(const uint64_t *)(const void *)(base + reference);
            if (((reference ^ good) & colours) != 0)
                return -1;
        }
    } else {
        for (uint64_t left = loads; left != 0; left--) {
            reference = *(const uint64_t *)(const void *)(base + reference);
            if ((reference & colours) == bad)
                return -1;
        }
    }
    double seconds = spent() - start;
    seen = reference;
    return seconds;
}
