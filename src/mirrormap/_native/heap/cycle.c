/* A collection as a row of phases, each cut into steps. */
#define _GNU_SOURCE
#include "heap.h"

bool mm_spend_slowly(struct mm_budget *budget)
{
    budget->unasked = 4000;
    if (budget->deadline != INT64_MAX && mm_sys_now() >= budget->deadline)
        budget->over = true;
    return budget->over;
}

static bool move_values(struct mm_heap *heap, struct mm_budget *budget)
{
    uint64_t moved;
    while ((moved = mm_pace(heap, 1 << 15)) != 0)
        if (mm_spend(budget, moved / 2))
            return false;
    return true;
}

static bool drain(struct mm_heap *heap, struct mm_budget *budget)
{
    while (mm_drain_one(heap))
        if (mm_spend(budget, 30000))
            return false;
    return true;
}

static bool (*const phases[])(struct mm_heap *, struct mm_budget *) = {
    [MM_ROOTS] = mm_mark_roots, [MM_TRACE] = mm_trace, [MM_WEAK] = mm_clear_weak, [MM_SWEEP] = mm_sweep,
    [MM_CHOOSE] = mm_choose, [MM_MOVE] = mm_move_out, [MM_VALUES] = move_values, [MM_PUNCH] = mm_punch_holes,
    [MM_MESH] = mm_mesh, [MM_DRAIN] = drain,
};

void mm_begin(struct mm_heap *heap)
{
    struct mm_pacing *pacing = &heap->pacing;
    heap->phase = MM_ROOTS;
    heap->cursor = 1;
    heap->marking.limit = heap->root_count;
    for (int what = 0; what < MM_LOSSES; what++) {
        pacing->counted[what] = pacing->lost[what];
        pacing->lost[what] = 0;
    }
    pacing->found = 0;
    pacing->cycle_ns = 0;
    heap->meshing.holes = 0;
}

void mm_begin_tidying(struct mm_heap *heap)
{
    heap->phase = MM_PUNCH;
    heap->cursor = 1;
    heap->meshing.tidying = true;
    heap->meshing.holes = 0;
    heap->meshing.tidied_ns = 0;
}

static void next_phase(struct mm_heap *heap)
{
    if (heap->phase == MM_SWEEP)
        mm_learn(heap);
    heap->cursor = 1;
    if (++heap->phase != MM_PHASES)
        return;
    heap->phase = MM_IDLE;
    heap->meshing.tidied = mm_sys_now();
    if (heap->meshing.tidying) {
        heap->meshing.tidying = false;
        return;
    }
    heap->counters.collections++;
    heap->pacing.last_ns = heap->pacing.cycle_ns;
    heap->pacing.trigger = 0;
    heap->pacing.ended = mm_sys_now();
}

static bool is_at_work(const struct mm_heap *heap)
{
    return heap->phase != MM_IDLE || heap->dying != 0;
}

bool mm_step(struct mm_heap *heap, enum mm_cause cause, int64_t ns)
{
    int64_t start = mm_sys_cpu();
    struct mm_budget budget = {.deadline = ns == INT64_MAX ? ns : mm_sys_now() + ns, .unasked = ns != 0 ? 1000 : 0};
    while (!budget.over && is_at_work(heap)) {
        if (heap->dying != 0) {
            mm_reap(heap, &budget);
        } else if (phases[heap->phase](heap, &budget)) {
            next_phase(heap);
            budget.over |= ns == 0;
        }
    }
    int64_t took = mm_sys_cpu() - start;
    heap->pacing.cycle_ns += took;
    heap->meshing.tidied_ns += took;
    mm_note_pause(&heap->pauses[cause], took);
    return is_at_work(heap);
}

void mm_collect(struct mm_heap *heap, enum mm_cause cause)
{
    if (heap->phase != MM_IDLE)
        mm_step(heap, cause, INT64_MAX);
    mm_begin(heap);
    mm_step(heap, cause, INT64_MAX);
}
