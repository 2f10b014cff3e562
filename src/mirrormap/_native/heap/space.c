/* Blocks of the offset space, and which of their pages the kernel holds. */
#define _GNU_SOURCE
#include "heap.h"

#include <errno.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

/* Pages [first, last) of a block as a mask. */
static uint64_t page_mask(unsigned first, unsigned last)
{
    uint64_t below = last >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << last) - 1;
    return below & ~(((uint64_t)1 << first) - 1);
}

uint64_t mm_pages(const struct mm_heap *heap, uint32_t start, uint32_t end)
{
    if (start >= end)
        return 0;
    return page_mask(start >> heap->page_shift, (end - 1) / (1u << heap->page_shift) + 1);
}

static uint64_t pages_nbytes(const struct mm_heap *heap, uint64_t pages)
{
    return (uint64_t)__builtin_popcountll(pages) << heap->page_shift;
}

uint64_t mm_block_held(const struct mm_heap *heap, const struct mm_block *block)
{
    return pages_nbytes(heap, block->held);
}

/* fallocate, again after a signal: its handler runs when the heap is whole. */
static int allocate(const struct mm_heap *heap, int mode, uint64_t offset, uint64_t nbytes)
{
    int error;
    AGAIN(error, mm_sys_allocate(heap->fd, FALLOC_FL_KEEP_SIZE | mode, (int64_t)offset, (int64_t)nbytes));
    return error;
}

static void set_held(struct mm_heap *heap, struct mm_block *block, uint64_t held)
{
    uint64_t before = mm_block_held(heap, block), after = pages_nbytes(heap, held);
    block->held = held;
    heap->committed += after - before;
    if (mm_is_lane(block))
        heap->lanes[block->kind - MM_OWNED].held += after - before;
}

int mm_heap_open(struct mm_heap *heap)
{
    heap->blocks = calloc(heap->count, sizeof *heap->blocks);
    heap->taken = calloc(heap->count / 64 + 1, sizeof *heap->taken);
    heap->roots = calloc(64, sizeof *heap->roots);
    heap->weak = calloc(16, sizeof *heap->weak);
    heap->marking.top = calloc(1, sizeof *heap->marking.top);
    int error = ENOMEM;
    if (heap->blocks != NULL && heap->taken != NULL && heap->roots != NULL && heap->weak != NULL && heap->marking.top != NULL)
        error = mm_bitmaps_open(heap);
    if (error != 0) {
        mm_heap_close(heap);
        return error;
    }
    bool colours = heap->view_count == MM_VIEWS;
    heap->followed = heap->views[colours];
    heap->kept = colours ? UINT64_MAX : heap->offsets;
    heap->root_count = 1;              /* number 0 means none, of blocks too */
    heap->weak_count = 1;
    heap->blocks[0].kind = MM_EDGE;
    heap->taken[0] = 1;
    heap->hint = 1;
    mm_expect(heap);
    return 0;
}

void mm_heap_close(struct mm_heap *heap)
{
    mm_mesh_close(heap);
    for (uint32_t index = 0; heap->blocks != NULL && index < heap->count; index += 64) {
        for (uint64_t left = heap->taken != NULL ? heap->taken[index / 64] : 0; left != 0; left &= left - 1) {
            struct mm_block *block = &heap->blocks[index + (uint32_t)__builtin_ctzll(left)];
            if (block->kind != MM_OWNED)
                free(block->starts);
            free(block->marks);
            free(block->forward);
        }
    }
    for (struct mm_chunk *chunk = heap->marking.top; chunk != NULL;) {
        struct mm_chunk *below = chunk->below;
        free(chunk);
        chunk = below;
    }
    free(heap->marking.spare);
    mm_bitmaps_close(heap);
    free(heap->blocks);
    free(heap->taken);
    free(heap->roots);
    free(heap->weak);
    mm_index_close(heap);
    *heap = (struct mm_heap){0};
}

/* How much may be committed when `reserve` bytes are to be left alone. */
static uint64_t ceiling(const struct mm_heap *heap, uint64_t reserve)
{
    uint64_t limit = heap->limit > reserve ? heap->limit - reserve : 0;
    return limit < heap->allowed ? limit : heap->allowed;
}

/* Hold pages of a block that are not held, and those between them. */
static int commit(struct mm_heap *heap, uint32_t index, uint64_t pages, uint64_t reserve)
{
    struct mm_block *block = &heap->blocks[index];
    uint64_t nbytes = pages_nbytes(heap, pages), limit = ceiling(heap, reserve);
    if (heap->committed + nbytes > limit)
        mm_drain(heap);
    if (heap->committed + nbytes > limit)
        return ENOMEM;
    unsigned first = (unsigned)__builtin_ctzll(pages), last = 64 - (unsigned)__builtin_clzll(pages);
    uint64_t start = ((uint64_t)index << MM_BLOCK_SHIFT) + ((uint64_t)first << heap->page_shift);
    int error = allocate(heap, 0, start, (uint64_t)(last - first) << heap->page_shift);
    if (error == 0)
        set_held(heap, block, block->held | pages);
    return error;
}

int mm_commit_pages(struct mm_heap *heap, uint32_t index, uint32_t end, uint64_t reserve)
{
    const struct mm_block *block = &heap->blocks[index];
    uint64_t missing = mm_pages(heap, 0, end) & ~block->held;
    if (missing == 0)
        return 0;
    unsigned first = (unsigned)__builtin_ctzll(missing), last = 64 - (unsigned)__builtin_clzll(missing);
    unsigned ahead = last + (MM_AHEAD >> heap->page_shift), all = MM_BLOCK >> heap->page_shift;
    uint64_t more = page_mask(first, ahead < all ? ahead : all) & ~block->held;
    bool fits = heap->committed + pages_nbytes(heap, more) <= ceiling(heap, reserve);
    return commit(heap, index, fits ? more : missing, reserve);
}

int mm_commit_frame(struct mm_heap *heap, uint32_t index, unsigned frame)
{
    uint64_t missing = (uint64_t)1 << frame & ~heap->blocks[index].held;
    return missing != 0 ? commit(heap, index, missing, 0) : 0;
}

static void give_back(struct mm_heap *heap, uint32_t index, unsigned first, unsigned last)
{
    struct mm_block *block = &heap->blocks[index];
    uint64_t start = ((uint64_t)index << MM_BLOCK_SHIFT) + ((uint64_t)first << heap->page_shift);
    if (allocate(heap, FALLOC_FL_PUNCH_HOLE, start, (uint64_t)(last - first) << heap->page_shift) != 0)
        return;
    uint64_t pages = page_mask(first, last) & block->held;
    heap->counters.returned += pages_nbytes(heap, pages);
    set_held(heap, block, block->held & ~pages);
}

void mm_punch(struct mm_heap *heap, uint32_t index, uint64_t pages)
{
    if (heap->blocks[index].meshed)
        mm_mesh_leave(heap, index, pages);
    else
        mm_punch_frames(heap, index, pages);
}

void mm_punch_frames(struct mm_heap *heap, uint32_t index, uint64_t pages)
{
    pages &= heap->blocks[index].held;
    while (pages != 0) {
        unsigned first = (unsigned)__builtin_ctzll(pages);
        uint64_t hole = ~(pages >> first);
        unsigned last = hole == 0 ? 64 : first + (unsigned)__builtin_ctzll(hole);
        if (last > 64)
            last = 64;
        give_back(heap, index, first, last);
        pages &= ~page_mask(first, last);
    }
}

/* --- free blocks ------------------------------------------------------------------------ */

static void set_taken(struct mm_heap *heap, uint32_t index, bool taken)
{
    uint64_t bit = (uint64_t)1 << (index % 64);
    if (taken) {
        heap->taken[index / 64] |= bit;
    } else {
        heap->taken[index / 64] &= ~bit;
        if (index < heap->hint)
            heap->hint = index;
    }
}

static bool is_taken(const struct mm_heap *heap, uint32_t index)
{
    return mm_bit(heap->taken, index);
}

/* The lowest `span` neighbours that are free, or 0. */
static uint32_t find_free(struct mm_heap *heap, uint32_t span)
{
    uint32_t index = heap->hint, found = 0;
    bool first = true;
    while (index < heap->count && found < span) {
        if (index % 64 == 0 && heap->taken[index / 64] == ~(uint64_t)0) {
            index += 64;
            found = 0;
            continue;
        }
        found = is_taken(heap, index) ? 0 : found + 1;
        if (found == 1 && first) {
            heap->hint = index;
            first = false;
        }
        index++;
    }
    return found == span ? index - span : 0;
}

static void to_pool(struct mm_heap *heap, uint32_t index)
{
    heap->blocks[index].next = heap->pool;
    heap->pool = index;
    heap->pooled++;
    set_taken(heap, index, true);
}

static uint32_t from_pool(struct mm_heap *heap)
{
    uint32_t index = heap->pool;
    heap->pool = heap->blocks[index].next;
    heap->pooled--;
    return index;
}

/* A block that nothing lies in. Its pages are kept when they may be, or must be. */
static void retire(struct mm_heap *heap, uint32_t index, bool keep)
{
    struct mm_block *block = &heap->blocks[index];
    if (!keep)
        mm_punch(heap, index, block->held);
    uint64_t held = block->held, nbytes = mm_block_held(heap, block);
    if (mm_is_lane(block))
        heap->lanes[block->kind - MM_OWNED].held -= nbytes;
    if (block->kind == MM_OWNED)
        mm_bitmap_free(heap, index);
    else
        free(block->starts);
    free(block->marks);
    *block = (struct mm_block){.held = held};
    if (held != 0)
        to_pool(heap, index);
    else
        set_taken(heap, index, false);
}

void mm_free_block(struct mm_heap *heap, uint32_t index)
{
    enum mm_kind kind = (enum mm_kind)heap->blocks[index].kind;
    mm_holes_withdraw(heap, index);
    mm_unlink(heap, index);
    if (heap->blocks[index].meshed && !mm_mesh_dissolve(heap, index))
        return;
    /* some pages at hand save the kernel from clearing others */
    bool keep = (uint64_t)heap->pooled << MM_BLOCK_SHIFT < heap->committed / MM_POOL && kind != MM_GONE && kind != MM_HOST;
    retire(heap, index, keep);
}

bool mm_drain_one(struct mm_heap *heap)
{
    if (heap->pool == 0)
        return false;
    retire(heap, from_pool(heap), false);
    return true;
}

void mm_drain(struct mm_heap *heap)
{
    struct mm_budget all = {.deadline = INT64_MAX};
    mm_reap(heap, &all);
    for (uint32_t left = heap->pooled; left > 0; left--)
        mm_drain_one(heap);
}

uint32_t mm_take_block(struct mm_heap *heap, enum mm_kind kind)
{
    uint64_t *marks = NULL, *starts = NULL;
    uint32_t index = heap->pool != 0 ? heap->pool : find_free(heap, 1);
    if (index != 0 && kind == MM_OWNED) {
        starts = mm_bitmap_take(heap, index);
    } else if (index != 0) {
        starts = calloc(MM_BITMAP, sizeof *starts);
        marks = calloc(MM_BITMAP, sizeof *marks);
    }
    if (starts == NULL || (marks == NULL && kind != MM_OWNED)) {
        free(marks);
        if (kind != MM_OWNED)
            free(starts);
        return 0;
    }
    if (index == heap->pool)
        from_pool(heap);
    struct mm_block *block = &heap->blocks[index];
    uint64_t held = block->held;
    *block = (struct mm_block){.starts = starts, .marks = marks, .held = held, .kind = (uint8_t)kind};
    heap->lanes[kind - MM_OWNED].held += mm_block_held(heap, block);
    set_taken(heap, index, true);
    return index;
}

/* --- runs ------------------------------------------------------------------------------- */

static int commit_run(struct mm_heap *heap, uint32_t index, uint64_t nbytes)
{
    uint64_t page = (uint64_t)1 << heap->page_shift;
    nbytes = (nbytes + page - 1) & ~(page - 1);
    int error = allocate(heap, 0, (uint64_t)index << MM_BLOCK_SHIFT, nbytes);
    if (error != 0)
        return error;
    for (; nbytes != 0; index++) {
        uint32_t here = nbytes < MM_BLOCK ? (uint32_t)nbytes : MM_BLOCK;
        set_held(heap, &heap->blocks[index], mm_pages(heap, 0, here));
        nbytes -= here;
    }
    return 0;
}

uint32_t mm_take_run(struct mm_heap *heap, uint64_t nbytes, uint64_t reserve, int *error)
{
    uint64_t limit = ceiling(heap, reserve);
    uint64_t span = (nbytes + MM_BLOCK - 1) >> MM_BLOCK_SHIFT;
    *error = ENOMEM;
    if (nbytes > limit || span >= heap->count)
        return 0;
    uint64_t page = (uint64_t)1 << heap->page_shift, rounded = (nbytes + page - 1) & ~(page - 1);
    if (heap->committed + rounded > limit)
        mm_drain(heap);
    uint32_t index = heap->committed + rounded > limit ? 0 : find_free(heap, (uint32_t)span);
    if (index == 0)
        return 0;
    *error = commit_run(heap, index, nbytes);
    if (*error != 0)
        return 0;
    for (uint32_t at = 0; at < span; at++) {
        heap->blocks[index + at].kind = at == 0 ? MM_RUN : MM_RUN_BODY;
        set_taken(heap, index + at, true);
    }
    heap->blocks[index].span = (uint32_t)span;
    return index;
}

void mm_free_run(struct mm_heap *heap, uint32_t index)
{
    heap->blocks[index].kind = MM_DYING;
    heap->blocks[index].next = heap->dying;
    heap->dying = index;
}

/* The last slice of a dying run; its pages at hand wait in the pool if the kernel will not take them. */
static void reap_slice(struct mm_heap *heap, uint32_t first, uint32_t count)
{
    uint64_t start = (uint64_t)first << MM_BLOCK_SHIFT;
    bool punched = allocate(heap, FALLOC_FL_PUNCH_HOLE, start, (uint64_t)count << MM_BLOCK_SHIFT) == 0;
    for (uint32_t body = first; body < first + count; body++) {
        if (punched) {
            heap->counters.returned += mm_block_held(heap, &heap->blocks[body]);
            set_held(heap, &heap->blocks[body], 0);
        }
        retire(heap, body, true);
    }
}

bool mm_reap(struct mm_heap *heap, struct mm_budget *budget)
{
    while (heap->dying != 0) {
        uint32_t index = heap->dying, left = heap->blocks[index].span;
        uint32_t count = left < MM_SLICE >> MM_BLOCK_SHIFT ? left : MM_SLICE >> MM_BLOCK_SHIFT;
        heap->blocks[index].span = left - count;
        if (left == count)
            heap->dying = heap->blocks[index].next;
        reap_slice(heap, index + left - count, count);
        if (mm_spend(budget, 100000))
            return false;
    }
    return true;
}
