/* Compaction within a block, for when there is no room elsewhere: what lives slides down over the gaps before it.
 *
 * Then a position may be where one object was and where another is. An old reference asks the forwarding table, and means the
 * first; a reference of the good colour was stored after the slide, and means the second. No reference is stored while a block is
 * half-way, because it slides in one go: a block is small enough for that. */
#define _GNU_SOURCE
#include "heap.h"

#include <stdlib.h>
#include <string.h>

static void set_start(struct mm_block *block, size_t granule, bool begins)
{
    uint64_t bit = (uint64_t)1 << (granule % 64);
    if (begins)
        block->starts[granule / 64] |= bit;
    else
        block->starts[granule / 64] &= ~bit;
}

/* Down to byte `to` of its block. */
static void slide_one(struct mm_heap *heap, uint64_t offset, uint32_t to, uint64_t nbytes)
{
    uint64_t first = offset & ~(uint64_t)(MM_BLOCK - 1);
    struct mm_block *block = &heap->blocks[mm_block_at(offset)];
    mm_tell(heap, mm_header_at(heap, offset), first + to);
    memmove(heap->base + first + to, heap->base + offset, nbytes);
    set_start(block, mm_granule(offset), false);
    set_start(block, to / MM_GRANULE, true);
    if (block->forward != NULL) {
        block->forward->to[mm_forward_rank(block->forward, mm_granule(offset))] = first + to;
        block->forward->moved++;
        block->slid = true;
    }
    heap->counters.copied += nbytes;
    heap->counters.moved++;
    heap->counters.slid++;
}

/* The first place from byte `from` on that the kernel holds the pages of: no page has to be asked for. */
static uint32_t next_place(const struct mm_heap *heap, const struct mm_block *block, uint32_t from, uint64_t nbytes)
{
    uint64_t missing;
    while ((missing = mm_pages(heap, from, from + (uint32_t)nbytes) & ~block->held) != 0)
        from = (64 - (uint32_t)__builtin_clzll(missing)) << heap->page_shift;
    return from;
}

void mm_slide(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    uint64_t first = (uint64_t)index << MM_BLOCK_SHIFT, alive = 0;
    uint32_t to = 0;
    if (block->meshed)                 /* what looks free may be another block's, which shows the same frames */
        return;
    for (size_t granule = mm_next_start(block->starts, 0); granule < MM_BLOCK / MM_GRANULE;
         granule = mm_next_start(block->starts, granule + 1)) {
        uint64_t nbytes = mm_object_nbytes(mm_header_at(heap, first + granule * MM_GRANULE));
        to = next_place(heap, block, to, nbytes);
        alive |= mm_pages(heap, to, to + (uint32_t)nbytes);
        if (to != granule * MM_GRANULE)
            slide_one(heap, first + granule * MM_GRANULE, to, nbytes);
        to += (uint32_t)nbytes;
    }
    block->used = to;
    mm_punch(heap, index, ~alive);
}
