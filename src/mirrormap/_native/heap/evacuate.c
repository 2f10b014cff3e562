/* Moving what is alive out of the emptiest blocks. An object's root follows it; references to it find
 * it through the forwarding table. Pinned blocks stay, and lose the pages that hold nothing alive. */
#define _GNU_SOURCE
#include "heap.h"

#include <string.h>

static void account(struct mm_heap *heap, struct mm_block *from, uint64_t nbytes)
{
    from->live -= (uint32_t)nbytes;
    heap->lanes[from->kind - MM_OWNED].live -= nbytes;
    heap->counters.copied += nbytes;
    heap->counters.moved++;
}

/* Copy one object to `to`; its root is told. */
static void move(struct mm_heap *heap, uint64_t offset, uint64_t to, uint64_t nbytes)
{
    const struct mm_object *header = mm_header_at(heap, offset);
    memcpy(heap->base + to, header, nbytes);
    if (header->root != 0)
        heap->roots[header->root].offset = to;
}

/* Is the lane further above its target than the blocks being filled explain? */
static bool holds_too_much(const struct mm_heap *heap, const struct mm_lane *lane)
{
    return lane->held * 1000 > lane->live * heap->target + MM_AHEAD * 1000ull;
}

static uint32_t emptiest(const struct mm_lane *lane)
{
    for (int bucket = 0; bucket < MM_FULL; bucket++)
        if (lane->buckets[bucket] != 0)
            return lane->buckets[bucket];
    return 0;
}

/* --- traced blocks, right after marking ---------------------------------------------------- */

/* Room for all that lives in a block, so that moving it cannot stop half-way. */
static bool prepare(struct mm_heap *heap, enum mm_kind kind, uint32_t nbytes)
{
    struct mm_lane *lane = &heap->lanes[kind - MM_OWNED];
    uint32_t index = lane->open[1];
    if (index != 0 && heap->blocks[index].used + nbytes > MM_BLOCK) {
        mm_close_block(heap, index);
        index = 0;
    }
    if (index == 0) {
        index = mm_take_block(heap, kind);
        if (index == 0)
            return false;
        lane->open[1] = index;
        heap->blocks[index].open = true;
    }
    return mm_commit_pages(heap, index, heap->blocks[index].used + nbytes, 0) == 0;
}

static bool empty_block(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    enum mm_kind kind = (enum mm_kind)block->kind;
    struct mm_forward *forward;
    if (!prepare(heap, kind, block->live) || mm_forward_new(block, &forward) != 0)
        return false;
    mm_unlink(heap, index);
    size_t rank = 0;
    for (size_t granule = mm_next_start(block->starts, 0); granule < MM_BLOCK / MM_GRANULE;
         granule = mm_next_start(block->starts, granule + 1)) {
        uint64_t offset = ((uint64_t)index << MM_BLOCK_SHIFT) + granule * MM_GRANULE;
        uint64_t nbytes = mm_object_nbytes(mm_header_at(heap, offset));
        int error;
        uint64_t to = mm_bump(heap, kind, true, nbytes, &error);
        move(heap, offset, to, nbytes);
        account(heap, block, nbytes);
        forward->to[rank++] = to;
    }
    mm_punch(heap, index, block->held);
    heap->lanes[kind - MM_OWNED].held -= mm_block_held(heap, block);
    block->kind = MM_GONE;
    block->forward = forward;
    block->next = heap->gone;
    heap->gone = index;
    return true;
}

/* References of the old colours are looked at from now on. */
static void turn_colour(struct mm_heap *heap)
{
    uint64_t colour = heap->good >> heap->shift;
    heap->good = (colour + 1) % 3 << heap->shift;
    for (uint32_t index = 1; index < heap->weak_count; index++)
        if (heap->weak[index] != 0 && heap->weak[index] % 2 == 0)
            heap->weak[index] = mm_forwarded(heap, heap->weak[index]);
}

/* --- pages between what lives ---------------------------------------------------------------- */

static void punch_holes(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    uint64_t alive = 0;
    for (size_t granule = mm_next_start(block->starts, 0); granule < MM_BLOCK / MM_GRANULE;
         granule = mm_next_start(block->starts, granule + 1)) {
        uint32_t start = (uint32_t)(granule * MM_GRANULE);
        uint64_t offset = ((uint64_t)index << MM_BLOCK_SHIFT) + start;
        alive |= mm_pages(heap, start, start + (uint32_t)mm_object_nbytes(mm_header_at(heap, offset)));
    }
    if (block->open)                   /* what comes next goes here */
        alive |= ~mm_pages(heap, 0, block->used & ~((1u << heap->page_shift) - 1));
    mm_punch(heap, index, ~alive);
    mm_relink(heap, index);
}

static void punch_all_holes(struct mm_heap *heap)
{
    for (uint32_t index = 1; index < heap->count; index++) {
        if (index % 64 == 0 && heap->taken[index / 64] == 0) {
            index += 63;
            continue;
        }
        const struct mm_block *block = &heap->blocks[index];
        if (mm_is_lane(block) && block->live + (1ull << heap->page_shift) <= mm_block_held(heap, block))
            punch_holes(heap, index);
    }
}

/* --- values that containers own ------------------------------------------------------------- */

/* One value out of the victim; false: it stays, and the victim with it. */
static bool move_value(struct mm_heap *heap, uint32_t index, size_t granule, uint64_t *nbytes)
{
    struct mm_block *block = &heap->blocks[index];
    uint64_t offset = ((uint64_t)index << MM_BLOCK_SHIFT) + granule * MM_GRANULE;
    *nbytes = mm_object_nbytes(mm_header_at(heap, offset));
    int error;
    uint64_t to = mm_bump(heap, MM_OWNED, true, *nbytes, &error);
    if (to == 0)
        return false;
    move(heap, offset, to, *nbytes);
    block->starts[granule / 64] &= ~((uint64_t)1 << (granule % 64));
    account(heap, block, *nbytes);
    return true;
}

void mm_pace(struct mm_heap *heap, uint64_t budget)
{
    struct mm_lane *lane = &heap->lanes[0];
    uint64_t moved = 0;
    while (moved < budget && holds_too_much(heap, lane)) {
        uint32_t index = emptiest(lane);
        if (index == 0)
            return;
        struct mm_block *block = &heap->blocks[index];
        uint64_t nbytes = 0;
        for (size_t granule = mm_next_start(block->starts, 0); granule < MM_BLOCK / MM_GRANULE && moved < budget;
             granule = mm_next_start(block->starts, granule + 1)) {
            if (!move_value(heap, index, granule, &nbytes))
                return;
            moved += nbytes;
        }
        if (block->live == 0)
            mm_free_block(heap, index);
        else
            mm_relink(heap, index);    /* it is emptier than before: the next call goes on with it */
    }
}

/* --- all of it -------------------------------------------------------------------------------- */

static void close_open(struct mm_heap *heap, struct mm_lane *lane)
{
    for (int which = 0; which < 2; which++) {
        uint32_t index = lane->open[which];
        const struct mm_block *block = &heap->blocks[index];
        /* one without garbage goes on being filled */
        if (index != 0 && (block->live == 0 || block->live < block->used))
            mm_close_block(heap, index);
    }
}

void mm_evacuate(struct mm_heap *heap)
{
    bool any = false;
    for (int at = 0; at < MM_LANES; at++)
        close_open(heap, &heap->lanes[at]);
    for (int at = MM_BYTES - MM_OWNED; at < MM_LANES; at++) {
        struct mm_lane *lane = &heap->lanes[at];
        uint32_t index;
        while (holds_too_much(heap, lane) && (index = emptiest(lane)) != 0 && empty_block(heap, index))
            any = true;
    }
    if (any)
        turn_colour(heap);
    mm_pace(heap, UINT64_MAX);
    punch_all_holes(heap);
}

int mm_collect(struct mm_heap *heap)
{
    int64_t start = mm_sys_now();
    int error = mm_mark(heap);
    if (error != 0)
        return error;
    mm_evacuate(heap);
    mm_drain(heap);
    heap->counters.collections++;
    int64_t took = mm_sys_now() - start;
    if (took > heap->counters.longest_ns)
        heap->counters.longest_ns = took;
    return 0;
}
