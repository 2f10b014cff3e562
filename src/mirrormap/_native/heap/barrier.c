/* References inside the heap: loading one mends it, storing one gives it the good colour. */
#define _GNU_SOURCE
#include "heap.h"

#include <stdlib.h>
#include <string.h>

size_t mm_forward_rank(const struct mm_forward *forward, size_t granule)
{
    uint64_t below = ((uint64_t)1 << (granule % 64)) - 1;
    return forward->before[granule / 64] + (size_t)__builtin_popcountll(forward->starts[granule / 64] & below);
}

struct mm_forward *mm_forward_new(const struct mm_block *block)
{
    size_t count = 0;
    for (size_t word = 0; word < MM_BITMAP; word++)
        count += (size_t)__builtin_popcountll(block->starts[word]);
    struct mm_forward *forward = calloc(1, sizeof *forward + count * sizeof forward->to[0]);
    if (forward == NULL)
        return NULL;
    count = 0;
    for (size_t word = 0; word < MM_BITMAP; word++) {
        forward->before[word] = (uint16_t)count;
        count += (size_t)__builtin_popcountll(block->starts[word]);
    }
    memcpy(forward->starts, block->starts, sizeof forward->starts);
    return forward;
}

uint64_t mm_forwarded(const struct mm_heap *heap, uint64_t offset)
{
    const struct mm_forward *forward = heap->blocks[mm_block_at(offset)].forward;
    uint64_t to = forward != NULL ? forward->to[mm_forward_rank(forward, mm_granule(offset))] : 0;
    return to != 0 ? to : offset;
}

uint64_t mm_coloured(const struct mm_heap *heap, uint64_t offset)
{
    if (!mm_is_leaving(&heap->blocks[mm_block_at(offset)]))
        return offset | heap->good;
    uint64_t colour = heap->good >> heap->shift;
    return offset | (colour + 2) % 3 << heap->shift;
}

uint64_t mm_mend(struct mm_heap *heap, _Atomic uint64_t *slot, uint64_t reference)
{
    uint64_t offset = mm_offset(heap, reference);
    if (offset == 0)
        return 0;
    offset = mm_forwarded(heap, offset);
    /* whoever stored another reference meanwhile is right */
    atomic_compare_exchange_strong_explicit(slot, &reference, mm_coloured(heap, offset), memory_order_relaxed,
                                            memory_order_relaxed);
    return offset | heap->good;
}

void mm_store(struct mm_heap *heap, _Atomic uint64_t *slot, uint64_t offset)
{
    uint64_t before = mm_load(heap, slot);
    if (before != 0) {
        if (mm_is_marking(heap))
            mm_shade(heap, before);    /* the marking may know no other way to it */
        mm_unlinked(heap);
    }
    atomic_store_explicit(slot, offset != 0 ? mm_coloured(heap, offset) : 0, memory_order_relaxed);
}
