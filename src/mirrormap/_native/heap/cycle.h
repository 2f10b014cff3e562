/* What a heap keeps of the collection under way, and of how long its steps took. */
#ifndef MIRRORMAP_CYCLE_H
#define MIRRORMAP_CYCLE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    MM_CHUNK = 1022,                   /* objects in a piece of the stack */
    MM_AHEAD_OF = 16,                  /* objects on their way into the cache */
};

struct mm_counters {
    uint64_t collections, copied, returned, marked, moved, stayed, slid;
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

/* What may have made garbage: the last holder of so many bytes went; so many references were overwritten. */
enum mm_loss { MM_HELD, MM_LINKS, MM_LOSSES };

/* Who starts collections by themselves. */
enum mm_mode { MM_MANUAL, MM_INCREMENTAL, MM_BACKGROUND };

struct mm_pacing {
    enum mm_mode mode;
    int bell;                          /* an eventfd that wakes the collector's thread, or -1 */
    bool rung;
    double yield[MM_LOSSES];           /* bytes of garbage that each of them stands for */
    double lost[MM_LOSSES];            /* since the last marking began, in bytes of garbage by that estimate */
    double counted[MM_LOSSES];         /* `lost` when the marking that runs began */
    double trigger;                    /* at so much garbage it is time to look again */
    uint64_t found;                    /* bytes that the marking found dead */
    int64_t debt_ns;                   /* of allocation */
    int64_t cycle_ns, last_ns;         /* spent on this collection, and on the last */
    int64_t ended;                     /* when that was */
    uint64_t stress, since;            /* something happens at every `stress` bytes allocated */
    bool in_place;                     /* blocks are never emptied: what lives in them slides down */
};

/* A piece of the stack of marked objects that nobody has looked into. */
struct mm_chunk {
    struct mm_chunk *below;
    uint64_t count;
    uint64_t references[MM_CHUNK];     /* all of the good colour */
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
