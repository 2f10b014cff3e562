/* Moving what is alive out of the emptiest blocks. An object's root follows it; references to it find
 * it through the forwarding table. Pinned blocks stay, and lose the pages that hold nothing alive. */
#define _GNU_SOURCE
#include "heap.h"

#include <stdlib.h>
#include <string.h>

enum {
    LEAST_TARGET = 1030,               /* of values' pages alone, in thousandths of what lives */
    /* what comes to a value's bytes: its entry, two heads of chains, its header, and what rounding adds */
    BESIDE_EACH = sizeof(struct mm_entry) + 8 + sizeof(struct mm_object) + MM_GRANULE / 2,
};

static void account(struct mm_heap *heap, struct mm_block *from, uint64_t nbytes)
{
    from->live -= (uint32_t)nbytes;
    heap->lanes[from->kind - MM_OWNED].live -= nbytes;
    heap->counters.copied += nbytes;
    heap->counters.moved++;
}

/* Copy one object to where there is room; its root is told. Returns where, 0: it stays. */
static uint64_t move(struct mm_heap *heap, uint64_t offset, uint64_t nbytes)
{
    struct mm_block *block = &heap->blocks[mm_block_at(offset)];
    const struct mm_object *header = mm_header_at(heap, offset);
    size_t granule = mm_granule(offset);
    int error;
    uint64_t to = mm_bump(heap, (enum mm_kind)block->kind, true, nbytes, &error);
    if (to == 0)
        return 0;
    memcpy(heap->base + to, header, nbytes);
    mm_tell(heap, header, to);
    block->starts[granule / 64] &= ~((uint64_t)1 << (granule % 64));
    account(heap, block, nbytes);
    return to;
}

/* Is the lane further above its target than the blocks being filled explain? */
static bool holds_too_much(const struct mm_heap *heap, const struct mm_lane *lane)
{
    return (lane->held - lane->promised) * 1000 > lane->live * heap->target + MM_AHEAD * 1000ull;
}

bool mm_holds_too_much(const struct mm_heap *heap, unsigned kind)
{
    return holds_too_much(heap, &heap->lanes[kind - MM_OWNED]);
}

/* Is there a block that should be emptied? Meshed ones are, as soon as they may be. */
static bool wants_room(const struct mm_heap *heap, const struct mm_lane *lane)
{
    return lane->buckets[MM_LOOSE] != 0 || holds_too_much(heap, lane);
}

static uint32_t emptiest(const struct mm_lane *lane)
{
    if (lane->buckets[MM_LOOSE] != 0)
        return lane->buckets[MM_LOOSE];
    for (int bucket = 0; bucket < MM_FULL; bucket++)
        if (lane->buckets[bucket] != 0)
            return lane->buckets[bucket];
    return 0;
}

/* --- traced blocks, right after marking ---------------------------------------------------- */

/* From now on no reference of the good colour leads into this block. */
static bool leave(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    block->forward = mm_forward_new(block);
    if (block->forward == NULL)
        return false;
    mm_unlink(heap, index);
    uint32_t held = (uint32_t)mm_block_held(heap, block);
    block->span = held > block->live ? held - block->live : 0;
    heap->lanes[block->kind - MM_OWNED].promised += block->span;
    block->linked = MM_LEAVING;
    block->previous = heap->leaving_last;
    if (heap->leaving_last != 0)
        heap->blocks[heap->leaving_last].next = index;
    else
        heap->leaving = index;
    heap->leaving_last = index;
    return true;
}

static void leave_no_more(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    heap->lanes[block->kind - MM_OWNED].promised -= block->span;
    block->span = 0;
    mm_unlink(heap, index);
}

/* What has not moved stays; the table goes on to say where the rest is. */
static void stay(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    leave_no_more(heap, index);
    heap->counters.stayed++;
    if (block->forward->moved == 0) {
        free(block->forward);
        block->forward = NULL;
    }
    mm_link(heap, index);
}

static void close_open(struct mm_heap *heap, struct mm_lane *lane)
{
    for (int which = 0; which < MM_OPEN; which++) {
        uint32_t index = lane->open[which];
        const struct mm_block *block = &heap->blocks[index];
        /* one without garbage goes on being filled */
        if (index != 0 && (block->live == 0 || block->live < block->used))
            mm_close_block(heap, index);
    }
}

bool mm_choose(struct mm_heap *heap, struct mm_budget *budget)
{
    if (heap->cursor == 1)
        for (int at = 0; at < MM_LANES; at++)
            close_open(heap, &heap->lanes[at]);
    heap->cursor = 2;
    for (int at = MM_BYTES - MM_OWNED; at < MM_LANES; at++) {
        struct mm_lane *lane = &heap->lanes[at];
        uint32_t index;
        while (wants_room(heap, lane) && (index = emptiest(lane)) != 0 && leave(heap, index))
            if (mm_spend(budget, 4000))
                return false;
    }
    /* references of the old colours are looked at from now on */
    if (heap->leaving != 0 && !mm_turn(heap))
        while (heap->leaving != 0)
            stay(heap, heap->leaving);
    return true;
}

/* One object out of a leaving block. */
static bool move_one(struct mm_heap *heap, uint64_t offset, uint64_t nbytes)
{
    struct mm_forward *forward = heap->blocks[mm_block_at(offset)].forward;
    uint64_t to = move(heap, offset, nbytes);
    if (to == 0)
        return false;
    forward->to[mm_forward_rank(forward, mm_granule(offset))] = to;
    forward->moved++;
    return true;
}

/* What has not moved slides down within its block. */
static void slide(struct mm_heap *heap, uint32_t index)
{
    mm_slide(heap, index);
    stay(heap, index);
}

/* Everything has moved: only the table remains. */
static void gone(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    leave_no_more(heap, index);
    mm_punch(heap, index, ~(uint64_t)0);
    heap->lanes[block->kind - MM_OWNED].held -= mm_block_held(heap, block);
    free(block->starts);
    free(block->marks);
    block->starts = block->marks = NULL;
    block->kind = MM_GONE;
}

bool mm_move_out(struct mm_heap *heap, struct mm_budget *budget)
{
    while (heap->leaving != 0) {
        uint32_t index = heap->leaving;
        const struct mm_block *block = &heap->blocks[index];
        uint64_t nbytes = 0;
        for (size_t granule = mm_next_start(block->starts, 0); granule < MM_BLOCK / MM_GRANULE;
             granule = mm_next_start(block->starts, granule + 1)) {
            uint64_t offset = ((uint64_t)index << MM_BLOCK_SHIFT) + granule * MM_GRANULE;
            nbytes = mm_object_nbytes(mm_header_at(heap, offset));
            if (heap->pacing.in_place || !move_one(heap, offset, nbytes)) {
                slide(heap, index);
                break;
            }
            if (mm_spend(budget, 30 + nbytes / 2))
                return false;
        }
        if (block->linked == MM_LEAVING)
            gone(heap, index);
        if (mm_spend(budget, 30000))
            return false;
    }
    return true;
}

void mm_settle(struct mm_heap *heap, uint64_t offset)
{
    uint32_t index = mm_block_at(offset);
    if (!mm_is_leaving(&heap->blocks[index]))
        return;
    if (heap->phase != MM_MOVE)
        stay(heap, index);
    else if (heap->pacing.in_place || !move_one(heap, offset, mm_object_nbytes(mm_header_at(heap, offset))))
        slide(heap, index);            /* it has found its place, and may be pinned there */
}

/* --- pages between what lives ---------------------------------------------------------------- */

/* Does what lives in a block need fewer pages than it holds? */
static bool would_shrink(const struct mm_heap *heap, const struct mm_block *block)
{
    return block->meshed || block->live + (1ull << heap->page_shift) <= mm_block_held(heap, block);
}

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
    mm_holes_withdraw(heap, index);
    mm_punch(heap, index, ~alive);
    mm_relink(heap, index);
    mm_holes_offer(heap, index);
}

bool mm_punch_holes(struct mm_heap *heap, struct mm_budget *budget)
{
    while (heap->cursor < heap->count) {
        uint32_t index = heap->cursor;
        const struct mm_block *block = &heap->blocks[index];
        uint64_t about = 20;
        if (block->kind == MM_HOST) {
            mm_free_block(heap, index);        /* what could not be given back before */
            about = 1000;
        } else if (mm_is_lane(block) && would_shrink(heap, block)) {
            punch_holes(heap, index);
            about = 50000;
        }
        heap->cursor = mm_next_block(heap, index);
        if (mm_spend(budget, about))
            return false;
    }
    return true;
}

/* --- values that containers own ------------------------------------------------------------- */

/* The target is for all memory that values take, with what stands beside their bytes; where that is much, as for
 * small values, moving could not make up for all of it. */
static bool values_hold_too_much(const struct mm_heap *heap)
{
    const struct mm_lane *lane = &heap->lanes[0];
    uint64_t beside = heap->index.used * (uint64_t)BESIDE_EACH + lane->held / MM_BLOCK * MM_BITMAP * 8;
    uint64_t most = heap->target > LEAST_TARGET ? lane->live * (heap->target - LEAST_TARGET) / 1000 : 0;
    uint64_t held = lane->held + (beside < most ? beside : most);
    return held * 1000 > lane->live * heap->target + MM_AHEAD * 1000ull;
}

/* Blocks that are still being filled, and hold mostly what was removed since, are worth moving too. */
static void close_wasteful(struct mm_heap *heap)
{
    for (int which = 0; which < MM_OPEN; which++) {
        uint32_t index = heap->lanes[0].open[which];
        const struct mm_block *block = &heap->blocks[index];
        if (index != 0 && block->used > MM_BLOCK / 8 && block->live * 2ull < block->used)
            mm_close_block(heap, index);
    }
}

uint64_t mm_pace(struct mm_heap *heap, uint64_t most)
{
    struct mm_lane *lane = &heap->lanes[0];
    uint64_t moved = 0;
    bool slid = true;
    if (values_hold_too_much(heap))
        close_wasteful(heap);
    while (moved < most && slid && (lane->buckets[MM_LOOSE] != 0 || values_hold_too_much(heap))) {
        uint32_t index = emptiest(lane);
        if (index == 0)
            break;
        const struct mm_block *block = &heap->blocks[index];
        if (heap->pacing.in_place && !would_shrink(heap, block)) {
            mm_set_aside(heap, index);
            continue;
        }
        mm_holes_withdraw(heap, index);
        for (size_t granule = mm_next_start(block->starts, 0); granule < MM_BLOCK / MM_GRANULE && moved < most;
             granule = mm_next_start(block->starts, granule + 1)) {
            uint64_t offset = ((uint64_t)index << MM_BLOCK_SHIFT) + granule * MM_GRANULE;
            uint64_t nbytes = mm_object_nbytes(mm_header_at(heap, offset));
            if (heap->pacing.in_place || move(heap, offset, nbytes) == 0) {
                uint64_t held = mm_block_held(heap, block);
                mm_slide(heap, index);
                slid = mm_block_held(heap, block) < held;
                break;
            }
            moved += nbytes;
        }
        if (block->live == 0)
            mm_free_block(heap, index);
        else
            mm_relink(heap, index);    /* it is emptier than before: the next call goes on with it */
    }
    return moved;
}
