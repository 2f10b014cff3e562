/* References inside the heap: loading one mends it, storing one gives it the good colour. */
#define _GNU_SOURCE
#include "heap.h"

#include <errno.h>
#include <stdlib.h>

size_t mm_forward_rank(const struct mm_forward *forward, size_t granule)
{
    uint64_t below = ((uint64_t)1 << (granule % 64)) - 1;
    return forward->before[granule / 64] + (size_t)__builtin_popcountll(forward->starts[granule / 64] & below);
}

int mm_forward_new(struct mm_block *block, struct mm_forward **made)
{
    size_t count = 0;
    for (size_t word = 0; word < MM_BITMAP; word++)
        count += (size_t)__builtin_popcountll(block->starts[word]);
    struct mm_forward *forward = calloc(1, sizeof *forward + count * sizeof forward->to[0]);
    if (forward == NULL)
        return ENOMEM;
    count = 0;
    for (size_t word = 0; word < MM_BITMAP; word++) {
        forward->before[word] = (uint16_t)count;
        count += (size_t)__builtin_popcountll(block->starts[word]);
    }
    forward->starts = block->starts;
    *made = forward;
    return 0;
}

uint64_t mm_forwarded(const struct mm_heap *heap, uint64_t offset)
{
    const struct mm_forward *forward = heap->blocks[mm_block_at(offset)].forward;
    return forward != NULL ? forward->to[mm_forward_rank(forward, mm_granule(offset))] : offset;
}

uint64_t mm_mend(struct mm_heap *heap, _Atomic uint64_t *slot, uint64_t reference)
{
    uint64_t offset = reference & (((uint64_t)1 << heap->shift) - 1);
    if (offset == 0)
        return 0;
    offset = mm_forwarded(heap, offset);
    /* whoever stored another reference meanwhile is right */
    atomic_compare_exchange_strong_explicit(slot, &reference, offset | heap->good, memory_order_relaxed,
                                            memory_order_relaxed);
    return offset;
}

void mm_store(struct mm_heap *heap, _Atomic uint64_t *slot, uint64_t offset)
{
    atomic_store_explicit(slot, offset != 0 ? offset | heap->good : 0, memory_order_relaxed);
}
