/* When to collect, who pays for it, and how long each step took. */
#define _GNU_SOURCE
#include "heap.h"

enum {
    LEAST_GARBAGE = 1 << 20,           /* less is not worth a collection */
    LEAST_STEP_NS = 40000,             /* what allocation owes is paid in no smaller steps */
    LONGEST_STEP_NS = 150000,
    PATIENCE_NS = 100000000,           /* until a thread collects what little has died */
    HOLES_PATIENCE_NS = 20000000,      /* between two looks for holes beside pinned values */
    HOLES_WORTH = 10,                  /* and so many times what the last one took, if they are few */
    FEW_HOLES = 32, MANY_HOLES = 4,    /* a share of what lives: pages empty with the last of many */
    TOO_FAR = 20,                      /* thousandths above the target */
    WORTH = 20, HARDLY_WORTH = 100,    /* and so many times what the last collection took */
};

#define BEGIN_AT 0.7                   /* of the headroom */
#define PAY 2.0                        /* collections that a headroom of allocated bytes pays for */
#define MOST_BETTER 8.0                /* an estimate changes by this factor at once */

/* A byte that nobody in Python holds any more may hang in the graph, so that it becomes less than one; but never nothing, or what
 * was built once and lived would not be collected when it dies. What hangs on a reference nobody knows: a large part of a graph. */
static const double at_first[MM_LOSSES] = {1, 16384}, at_least[MM_LOSSES] = {0.14, 16}, at_most[MM_LOSSES] = {64, 1 << 20};

uint64_t mm_live(const struct mm_heap *heap)
{
    uint64_t live = heap->runs_live;
    for (int lane = 0; lane < MM_LANES; lane++)
        live += heap->lanes[lane].live;
    return live;
}

/* Bytes of objects that live until a marking shows that they do not. */
static uint64_t traced(const struct mm_heap *heap)
{
    return mm_live(heap) - heap->lanes[0].live;
}

/* Garbage that may lie about, before `target` is broken. */
static double headroom(const struct mm_heap *heap)
{
    double share = (double)traced(heap) * (1 - 1000.0 / heap->target);
    return share > LEAST_GARBAGE ? share : LEAST_GARBAGE;
}

bool mm_is_due(struct mm_heap *heap)
{
    struct mm_pacing *pacing = &heap->pacing;
    if (mm_lost(heap) < pacing->trigger)
        return false;
    pacing->trigger = headroom(heap) * BEGIN_AT;
    return mm_lost(heap) >= pacing->trigger;
}

void mm_expect(struct mm_heap *heap)
{
    for (int what = 0; what < MM_LOSSES; what++)
        heap->pacing.yield[what] = at_first[what];
}

void mm_learn(struct mm_heap *heap)
{
    struct mm_pacing *pacing = &heap->pacing;
    double found = (double)pacing->found, counted = pacing->counted[MM_HELD] + pacing->counted[MM_LINKS];
    if (counted < MM_BLOCK && found < MM_BLOCK)
        return;
    double ratio = counted > 0 ? found / counted : MOST_BETTER;
    /* too little is collected late: that is believed at half. Too much is work for nothing. */
    ratio = ratio > 1 ? (ratio + 1) / 2 : ratio;
    ratio = ratio < 1.0 / MOST_BETTER ? 1.0 / MOST_BETTER : ratio > MOST_BETTER ? MOST_BETTER : ratio;
    for (int what = 0; what < MM_LOSSES; what++) {
        double share = counted > 0 ? pacing->counted[what] / counted : 0.5;
        double yield = pacing->yield[what] * (1 + share * (ratio - 1));
        yield = yield < at_least[what] ? at_least[what] : yield > at_most[what] ? at_most[what] : yield;
        pacing->yield[what] = yield;
    }
}

void mm_ring(struct mm_heap *heap)
{
    if (heap->pacing.bell < 0 || heap->pacing.rung)
        return;
    heap->pacing.rung = true;
    mm_sys_ring(heap->pacing.bell);
}

static void lose(struct mm_heap *heap, enum mm_loss what, uint64_t count)
{
    struct mm_pacing *pacing = &heap->pacing;
    bool first = mm_lost(heap) <= 0;
    pacing->lost[what] += (double)count * pacing->yield[what];
    if (pacing->mode == MM_BACKGROUND && !pacing->rung && heap->phase == MM_IDLE && (first || mm_is_due(heap)))
        mm_ring(heap);
}

void mm_dropped(struct mm_heap *heap, uint64_t nbytes)
{
    lose(heap, MM_HELD, nbytes);
}

void mm_unlinked(struct mm_heap *heap)
{
    lose(heap, MM_LINKS, 1);
}

/* Bytes in the pool beyond what it may keep. */
static int64_t spare(const struct mm_heap *heap)
{
    return ((int64_t)heap->pooled << MM_BLOCK_SHIFT) - (int64_t)(heap->committed / MM_POOL);
}

void mm_give_way(struct mm_heap *heap, uint64_t nbytes)
{
    const struct mm_lane *lane = &heap->lanes[0];
    uint64_t most = 4 * nbytes + MM_BLOCK / 64;
    bool more = mm_pace(heap, most) >= most;
    /* removing one value after the other outruns that: a thread helps */
    more = more && lane->held * 1000 > lane->live * (heap->target + TOO_FAR) + MM_AHEAD * 1000ull;
    if (more || spare(heap) > MM_BLOCK)
        mm_ring(heap);
}

/* Has so much died beside pinned values that their blocks should be looked at? */
static bool has_holes(const struct mm_heap *heap)
{
    return heap->meshing.holes >= MM_BLOCK && heap->meshing.holes >= heap->lanes[0].live / FEW_HOLES;
}

bool mm_has_many_holes(const struct mm_heap *heap)
{
    return heap->meshing.holes >= MM_BLOCK && heap->meshing.holes >= heap->lanes[0].live / MANY_HOLES;
}

void mm_left_holes(struct mm_heap *heap, uint64_t nbytes)
{
    heap->meshing.holes += nbytes;
    if (has_holes(heap))
        mm_ring(heap);
}

void mm_loosened(struct mm_heap *heap, uint32_t index)
{
    const struct mm_block *block = &heap->blocks[index];
    if (block->kind == MM_OWNED)
        mm_ring(heap);
    else
        mm_dropped(heap, block->live); /* a collection moves what is left */
}

/* Milliseconds until holes are looked for, if they are; 0: now. */
static int64_t holes_due(const struct mm_heap *heap)
{
    int64_t patience = HOLES_WORTH * heap->meshing.tidied_ns, waited = mm_sys_now() - heap->meshing.tidied;
    if (mm_has_many_holes(heap) || patience < HOLES_PATIENCE_NS)
        patience = HOLES_PATIENCE_NS;
    return waited < patience ? (patience - waited) / 1000000 + 1 : 0;
}

/* --- allocation pays ---------------------------------------------------------------------------- */

static void stress(struct mm_heap *heap, uint64_t nbytes)
{
    struct mm_pacing *pacing = &heap->pacing;
    pacing->since += nbytes;
    if (pacing->since < pacing->stress)
        return;
    pacing->since = 0;
    if (pacing->mode == MM_MANUAL) {
        mm_collect(heap, MM_BY_ALLOCATION);
        return;
    }
    if (heap->phase == MM_IDLE)
        mm_begin(heap);
    mm_step(heap, MM_BY_ALLOCATION, 0);
}

void mm_pay(struct mm_heap *heap, uint64_t nbytes)
{
    struct mm_pacing *pacing = &heap->pacing;
    if (pacing->stress != 0)
        stress(heap, nbytes);
    if (pacing->mode == MM_MANUAL)
        return;
    if (heap->phase == MM_IDLE && heap->dying == 0) {
        if (!mm_is_due(heap))
            return;
        mm_begin(heap);
        mm_ring(heap);
        pacing->debt_ns = 0;
    }
    /* so much that the collection is over before half of the headroom is used up */
    double whole = (double)traced(heap) * 0.7;
    if (whole < (double)pacing->last_ns)
        whole = (double)pacing->last_ns;
    pacing->debt_ns += (int64_t)((double)nbytes * PAY * whole / headroom(heap)) + 1;
    if (pacing->debt_ns < LEAST_STEP_NS)
        return;
    int64_t pay = pacing->debt_ns < LONGEST_STEP_NS ? pacing->debt_ns : LONGEST_STEP_NS;
    pacing->debt_ns -= pay;
    if (!mm_step(heap, MM_BY_ALLOCATION, pay))
        pacing->debt_ns = 0;
}

/* --- a thread looks after it ---------------------------------------------------------------------- */

int64_t mm_tend(struct mm_heap *heap, int64_t ns)
{
    struct mm_pacing *pacing = &heap->pacing;
    pacing->rung = false;
    if (heap->phase == MM_IDLE && heap->dying == 0) {
        if (mm_pace(heap, 1 << 16) != 0 || (spare(heap) > 0 && mm_drain_one(heap)))
            return 0;
        int64_t holes = has_holes(heap) ? holes_due(heap) : -1;
        if (holes == 0) {
            mm_begin_tidying(heap);
            return mm_step(heap, MM_BY_BACKGROUND, ns) ? 0 : 1;
        }
        if (mm_lost(heap) <= 0)
            return holes;
        bool worth = mm_lost(heap) * 100 >= (double)traced(heap);
        int64_t patience = pacing->last_ns * (worth ? WORTH : HARDLY_WORTH);
        if (patience < PATIENCE_NS)
            patience = PATIENCE_NS;
        int64_t waited = mm_sys_now() - pacing->ended;
        if (waited < patience && !mm_is_due(heap))
            return holes > 0 && holes < (patience - waited) / 1000000 ? holes : (patience - waited) / 1000000 + 1;
        mm_begin(heap);
    }
    return mm_step(heap, MM_BY_BACKGROUND, ns) ? 0 : 1;
}

/* --- how long it took ------------------------------------------------------------------------------- */

static unsigned bucket_of(int64_t ns)
{
    if (ns < 8)
        return ns > 0 ? (unsigned)ns : 0;
    unsigned exponent = 63 - (unsigned)__builtin_clzll((uint64_t)ns);
    unsigned bucket = (exponent - 2) * 8 + (unsigned)(ns >> (exponent - 3) & 7);
    return bucket < MM_PAUSE_BUCKETS ? bucket : MM_PAUSE_BUCKETS - 1;
}

/* The longest time that falls into a bucket. */
static int64_t longest_of(unsigned bucket)
{
    if (bucket < 16)
        return bucket;
    unsigned shift = bucket / 8 - 1;
    return ((int64_t)(8 + bucket % 8 + 1) << shift) - 1;
}

void mm_note_pause(struct mm_pauses *pauses, int64_t ns)
{
    pauses->count++;
    pauses->buckets[bucket_of(ns)]++;
    if (ns > pauses->longest_ns)
        pauses->longest_ns = ns;
}

int64_t mm_pause_at(const struct mm_pauses *pauses, unsigned thousandths)
{
    uint64_t wanted = (pauses->count * thousandths + 999) / 1000, seen = 0;
    for (unsigned bucket = 0; bucket < MM_PAUSE_BUCKETS; bucket++) {
        seen += pauses->buckets[bucket];
        if (seen >= wanted && seen != 0)
            return longest_of(bucket) < pauses->longest_ns ? longest_of(bucket) : pauses->longest_ns;
    }
    return 0;
}
