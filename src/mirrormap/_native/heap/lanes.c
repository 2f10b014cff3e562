/* Blocks that are filled from the front, sorted by how much of what they hold is alive. */
#define _GNU_SOURCE
#include "heap.h"

#include <errno.h>
#include <string.h>

static struct mm_lane *lane_of(struct mm_heap *heap, const struct mm_block *block)
{
    return &heap->lanes[block->kind - MM_OWNED];
}

/* What the last page has behind everything that was put is nobody's waste: a block without garbage is full whatever
 * the page size. */
static unsigned bucket_of(const struct mm_heap *heap, const struct mm_block *block)
{
    if (block->meshed)
        return MM_LOOSE;
    uint64_t page = (uint64_t)1 << heap->page_shift, held = mm_block_held(heap, block);
    if (block->used > 0 && (block->held >> ((block->used - 1) >> heap->page_shift) & 1) != 0)
        held -= -(uint64_t)block->used & (page - 1);
    return block->live < held ? (unsigned)((uint64_t)block->live * MM_FULLEST / held) : MM_FULLEST;
}

static void link_into(struct mm_heap *heap, uint32_t index, unsigned bucket)
{
    struct mm_block *block = &heap->blocks[index];
    uint32_t *head = &lane_of(heap, block)->buckets[bucket];
    block->linked = (uint8_t)(bucket + 1);
    block->previous = 0;
    block->next = *head;
    if (block->next != 0)
        heap->blocks[block->next].previous = index;
    *head = index;
}

void mm_link(struct mm_heap *heap, uint32_t index)
{
    const struct mm_block *block = &heap->blocks[index];
    if (mm_is_lane(block) && !block->open && block->pins == 0 && block->linked == 0)
        link_into(heap, index, bucket_of(heap, block));
}

void mm_set_aside(struct mm_heap *heap, uint32_t index)
{
    mm_unlink(heap, index);
    link_into(heap, index, MM_FULLEST);
}

void mm_unlink(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    if (block->linked == 0)
        return;
    if (block->previous != 0)
        heap->blocks[block->previous].next = block->next;
    else if (mm_is_leaving(block))
        heap->leaving = block->next;
    else
        lane_of(heap, block)->buckets[block->linked - 1] = block->next;
    if (block->next != 0)
        heap->blocks[block->next].previous = block->previous;
    else if (mm_is_leaving(block))
        heap->leaving_last = block->previous;
    block->linked = 0;
    block->previous = block->next = 0;
}

void mm_relink(struct mm_heap *heap, uint32_t index)
{
    mm_unlink(heap, index);
    mm_link(heap, index);
}

void mm_close_block(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    struct mm_lane *lane = lane_of(heap, block);
    for (int which = 0; which < MM_OPEN; which++)
        if (lane->open[which] == index)
            lane->open[which] = 0;
    block->open = false;
    mm_punch(heap, index, ~mm_pages(heap, 0, block->used));
    if (block->live == 0 && block->pins == 0)
        mm_free_block(heap, index);
    else
        mm_link(heap, index);
    mm_holes_offer(heap, index);
}

static uint32_t room_in(const struct mm_heap *heap, uint32_t index)
{
    return index != 0 ? MM_BLOCK - heap->blocks[index].used : 0;
}

/* A block with so much room, or 0. What a full one has left at its end waits for smaller objects: closing it
 * would give back pages that are then needed elsewhere. */
static uint32_t open_block(struct mm_heap *heap, enum mm_kind kind, bool evacuating, uint64_t nbytes)
{
    struct mm_lane *lane = &heap->lanes[kind - MM_OWNED];
    uint32_t index = lane->open[evacuating], rest = lane->open[2 + evacuating];
    if (room_in(heap, rest) >= nbytes)
        return rest;
    if (room_in(heap, index) >= nbytes)
        return index;
    uint32_t fresh = mm_take_block(heap, kind);
    if (fresh == 0)
        return 0;
    bool less = room_in(heap, index) <= room_in(heap, rest);
    uint32_t full = less ? index : rest;
    lane->open[2 + evacuating] = less ? rest : index;
    lane->open[evacuating] = fresh;
    heap->blocks[fresh].open = true;
    if (full != 0)
        mm_close_block(heap, full);
    return fresh;
}

uint64_t mm_bump(struct mm_heap *heap, enum mm_kind kind, bool evacuating, uint64_t nbytes, int *error)
{
    struct mm_lane *lane = &heap->lanes[kind - MM_OWNED];
    uint64_t gap = kind == MM_OWNED && !evacuating ? mm_holes_take(heap, nbytes) : 0;
    if (gap != 0)
        return gap;
    uint32_t index = open_block(heap, kind, evacuating, nbytes);
    uint64_t reserve = evacuating ? 0 : MM_BLOCK;
    *error = ENOMEM;
    if (index == 0)
        return 0;
    struct mm_block *block = &heap->blocks[index];
    *error = mm_commit_pages(heap, index, block->used + (uint32_t)nbytes, reserve);
    if (*error != 0)
        return 0;
    size_t granule = block->used / MM_GRANULE;
    uint64_t offset = ((uint64_t)index << MM_BLOCK_SHIFT) + block->used;
    block->starts[granule / 64] |= (uint64_t)1 << (granule % 64);
    block->used += (uint32_t)nbytes;
    block->live += (uint32_t)nbytes;
    lane->live += nbytes;
    if (block->marks != NULL && mm_is_born_marked(heap, index)) {
        block->marks[granule / 64] |= (uint64_t)1 << (granule % 64);
        block->marked += (uint32_t)nbytes;
    }
    return offset;
}

uint64_t mm_allocate(struct mm_heap *heap, bool owned, const struct mm_shape *shape, int *error)
{
    struct mm_object made = {
        .word = shape->word, .low = (uint32_t)shape->nbytes, .high = (uint8_t)(shape->nbytes >> 32),
        .dtype = shape->dtype, .ndim = shape->ndim,
    };
    uint64_t nbytes = mm_object_nbytes(&made), offset;
    if (nbytes > MM_LARGE) {
        uint32_t index = mm_take_run(heap, nbytes, MM_BLOCK, error);
        offset = (uint64_t)index << MM_BLOCK_SHIFT;
        if (index == 0)
            return 0;
        heap->blocks[index].owned = owned;
        heap->blocks[index].marked = mm_is_born_marked(heap, index);
        heap->runs_live += nbytes;
    } else {
        enum mm_kind kind = owned ? MM_OWNED : shape->word != 0 ? MM_OBJECTS : MM_BYTES;
        offset = mm_bump(heap, kind, false, nbytes, error);
        if (offset == 0)
            return 0;
    }
    struct mm_object *header = mm_header_at(heap, offset);
    *header = made;
    if (mm_is_record(&made))
        memset(mm_data(header), 0, (size_t)nbytes - MM_RECORD_HEADER);
    else
        memset((void *)mm_slots(header), 0, 8 * (size_t)shape->word);
    return offset;
}

void mm_release(struct mm_heap *heap, uint64_t offset)
{
    uint32_t index = mm_block_at(offset);
    struct mm_block *block = &heap->blocks[index];
    uint64_t nbytes = mm_object_nbytes(mm_header_at(heap, offset));
    if (block->kind == MM_RUN) {
        heap->runs_live -= nbytes;
        /* one block takes less than waking somebody who would hold up the next operation */
        bool now = heap->pacing.mode == MM_MANUAL || (heap->dying == 0 && block->span == 1);
        mm_free_run(heap, index);
        if (now)
            mm_reap(heap, &(struct mm_budget){.deadline = INT64_MAX});
        else
            mm_ring(heap);
        return;
    }
    mm_holes_freed(heap, offset, nbytes);
    block->live -= (uint32_t)nbytes;
    lane_of(heap, block)->live -= nbytes;
    if (block->pins != 0)
        mm_left_holes(heap, nbytes);
    if (block->open) {
        if (block->live == 0)
            block->used = 0;
    } else if (block->live == 0) {
        mm_free_block(heap, index);
    } else {
        mm_relink(heap, index);
    }
}
