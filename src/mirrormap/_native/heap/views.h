/* References inside a heap, and the views of its pages that they are followed in. The end of heap.h. */
#ifndef MIRRORMAP_HEAP_VIEWS_H
#define MIRRORMAP_HEAP_VIEWS_H

#include "heap.h"

static inline uint64_t mm_offset(const struct mm_heap *heap, uint64_t reference)
{
    return reference & heap->offsets;
}

/* What a reference of the good colour leads to: where there are views, its colour chooses one. */
static inline struct mm_object *mm_at(const struct mm_heap *heap, uint64_t reference)
{
    return (struct mm_object *)(void *)(heap->followed + (reference & heap->kept));
}

/* The load barrier: what a reference slot names now, as a reference of the good colour, or 0. It may
 * be followed until the next step. */
static inline uint64_t mm_load_reference(struct mm_heap *heap, _Atomic uint64_t *slot)
{
    uint64_t reference = atomic_load_explicit(slot, memory_order_relaxed);
    if (((reference ^ heap->good) & (uint64_t)3 << heap->shift) == 0)
        return reference;
    return mm_mend(heap, slot, reference);
}

/* The same as an offset. */
static inline uint64_t mm_load(struct mm_heap *heap, _Atomic uint64_t *slot)
{
    return mm_offset(heap, mm_load_reference(heap, slot));
}

/* PROT_* of a view: what anybody must give it who maps parts of it again. */
int mm_view_protection(const struct mm_heap *heap, unsigned view);
/* Guard the views as the good colour wants it: 0 or an errno. */
int mm_guard(struct mm_heap *heap);
/* Make the next colour the good one. False: the kernel will not, and all is as it was. */
bool mm_turn(struct mm_heap *heap);

#endif
