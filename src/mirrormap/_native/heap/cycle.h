/* What a heap keeps of the collection under way, and of how long its steps took. */
#ifndef MIRRORMAP_CYCLE_H
#define MIRRORMAP_CYCLE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    MM_UNLINKED = 64,                  /* what an overwritten reference counts for as garbage, until it is known better */
    MM_CHUNK = 1022,                   /* objects in a piece of the stack */
    MM_AHEAD_OF = 16,                  /* objects on their way into the cache */
};

struct mm_counters {
    uint64_t collections, copied, returned, marked, moved, stayed;
};

/* The phases of a collection, in their order. */
enum mm_phase {
    MM_IDLE, MM_ROOTS, MM_TRACE, MM_WEAK, MM_SWEEP, MM_CHOOSE, MM_MOVE, MM_VALUES, MM_PUNCH, MM_MESH, MM_DRAIN, MM_PHASES,
};

/* How long a step may take. */
struct mm_budget {
    int64_t deadline;                  /* of mm_sys_now() */
    int32_t unasked;                   /* about so many nanoseconds until the clock is looked at again */
    bool over;
};

/* Who waited for a step. */
enum mm_cause { MM_BY_ALLOCATION, MM_BY_STEP, MM_BY_COLLECT, MM_BY_BACKGROUND, MM_BY_FULL, MM_CAUSES };

/* Eight buckets for each doubling of the nanoseconds. */
enum { MM_PAUSE_BUCKETS = 320 };
struct mm_pauses {
    uint64_t count;
    int64_t longest_ns;
    uint32_t buckets[MM_PAUSE_BUCKETS];
};

/* Who starts collections by themselves. */
enum mm_mode { MM_MANUAL, MM_INCREMENTAL, MM_BACKGROUND };

struct mm_pacing {
    enum mm_mode mode;
    int bell;                          /* an eventfd that wakes the collector's thread, or -1 */
    bool rung;
    uint64_t dropped;                  /* bytes that lost their last holder since the last marking began */
    uint64_t trigger;                  /* at so many of them it is time to look again */
    uint64_t counted;                  /* `dropped` when the marking that runs began */
    uint64_t found;                    /* bytes that it found dead */
    double yield;                      /* how many a dropped one stood for */
    int64_t debt_ns;                   /* of allocation */
    int64_t cycle_ns, last_ns;         /* spent on this collection, and on the last */
    int64_t ended;                     /* when that was */
    uint64_t stress, since;            /* something happens at every `stress` bytes allocated */
};

/* A piece of the stack of marked objects that nobody has looked into. */
struct mm_chunk {
    struct mm_chunk *below;
    uint64_t count;
    uint64_t offsets[MM_CHUNK];
};

struct mm_marking {
    struct mm_chunk *top, *spare;      /* there is always one */
    uint64_t ahead[MM_AHEAD_OF];       /* a queue between the stack and looking */
    uint32_t first, count;
    uint64_t wide;                     /* an object of many references, looked at up to `at` */
    uint32_t at;
    uint32_t limit;                    /* roots from here on are younger than the marking */
    bool late;                         /* some block is */
};

/* Some work of about so many nanoseconds was done. Is the step over? */
bool mm_spend_slowly(struct mm_budget *budget);
static inline bool mm_spend(struct mm_budget *budget, uint64_t about_ns)
{
    budget->unasked -= (int32_t)about_ns;
    return budget->unasked > 0 ? budget->over : mm_spend_slowly(budget);
}

#endif
