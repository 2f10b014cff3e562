/* Which pages share a frame: each page of a block that views pin, in the order of their addresses, goes to
 * the fullest frame seen before in which nothing lives where it lives, or becomes such a frame. Pages that share
 * one already do so together; of the two frames the one that fewer pages show is left. */
#define _GNU_SOURCE
#include "heap.h"

#include <stdlib.h>
#include <string.h>

enum {
    CLASSES = 16,                      /* frames by how many sixteenths are occupied */
    PROBES = 768,                      /* frames looked at for one page */
    MOST_WORDS = MM_BITMAP,            /* of a page that is a whole block */
    MOST_FRAMES = 1 << 16,
    MOST_MOVED = 8,                    /* pages, for one frame less */
    PAGE_NS = 1500, JOIN_NS = 12000,
};

/* Frames that are occupied alike: the first word of each is a page that shows it and the number of granules
 * in which something lives, `page << 32 | occupied`; the others are their bits. */
struct shelf {
    uint64_t *words;
    uint32_t count, room, turn;        /* frames; where the last search ended */
};

struct mm_pool {
    unsigned granules, words;          /* of a page */
    uint32_t count;
    struct shelf shelves[CLASSES];
};

void mm_pool_free(struct mm_heap *heap)
{
    struct mm_pool *pool = heap->meshing.pool;
    for (unsigned at = 0; pool != NULL && at < CLASSES; at++)
        free(pool->shelves[at].words);
    free(pool);
    heap->meshing.pool = NULL;
}

static uint64_t *frame_at(const struct mm_pool *pool, const struct shelf *shelf, uint32_t at)
{
    return shelf->words + (size_t)at * (1 + pool->words);
}

static void put(struct mm_pool *pool, uint32_t page, unsigned occupied, const uint64_t *bits)
{
    unsigned class = occupied * CLASSES / pool->granules;
    if (class >= CLASSES - 1 || pool->count == MOST_FRAMES)
        return;                        /* hardly anything fits in */
    struct shelf *shelf = &pool->shelves[class];
    if (shelf->count == shelf->room) {
        uint32_t room = shelf->room != 0 ? 2 * shelf->room : 64;
        uint64_t *longer = realloc(shelf->words, (size_t)room * (1 + pool->words) * sizeof *longer);
        if (longer == NULL)
            return;
        shelf->words = longer;
        shelf->room = room;
    }
    uint64_t *frame = frame_at(pool, shelf, shelf->count++);
    frame[0] = (uint64_t)page << 32 | occupied;
    memcpy(frame + 1, bits, pool->words * sizeof *bits);
    pool->count++;
}

static void take(struct mm_pool *pool, struct shelf *shelf, uint32_t at)
{
    shelf->count--;
    pool->count--;
    memmove(frame_at(pool, shelf, at), frame_at(pool, shelf, shelf->count), (1 + pool->words) * sizeof *shelf->words);
}

/* May pages of this block share a frame? */
static bool is_meshable(const struct mm_heap *heap, const struct mm_block *block)
{
    (void)heap;
    return (block->kind == MM_OWNED || block->kind == MM_BYTES) && !block->open && block->pins != 0 && !block->written;
}

/* Anything may have happened since the frame was seen, but nothing more lives in it than did then, unless its block is
 * another one. */
static bool is_still_there(const struct mm_heap *heap, uint32_t page)
{
    const struct mm_block *block = &heap->blocks[mm_block_of_page(heap, page)];
    return is_meshable(heap, block) && block->seen && mm_is_member(heap, page);
}

/* The fullest frame that this page fits into; `at` says where it stands. NULL: none. */
static struct shelf *find(struct mm_heap *heap, unsigned occupied, const uint64_t *bits, uint32_t *at)
{
    struct mm_pool *pool = heap->meshing.pool;
    int probes = PROBES;
    for (unsigned class = (pool->granules - occupied) * CLASSES / pool->granules + 1; class-- > 0 && probes > 0;) {
        struct shelf *shelf = &pool->shelves[class < CLASSES ? class : CLASSES - 1];
        for (uint32_t left = shelf->count; left > 0 && probes-- > 0; left--) {
            *at = shelf->turn = shelf->turn + 1 < shelf->count ? shelf->turn + 1 : 0;
            const uint64_t *frame = frame_at(pool, shelf, *at);
            uint64_t both = 0;
            for (unsigned word = 0; word < pool->words; word++)
                both |= frame[1 + word] & bits[word];
            if (both != 0)
                continue;
            if (is_still_there(heap, (uint32_t)(frame[0] >> 32)))
                return shelf;
            take(pool, shelf, *at);
        }
    }
    return NULL;
}

/* Pages round one frame, the frame's own last: while others show it, it has nowhere else to go. Returns how many; 0: too many,
 * or one that may not move. */
static unsigned ring_of(const struct mm_heap *heap, uint32_t page, uint32_t *pages)
{
    uint32_t frame = mm_shown(heap, page), each = page;
    unsigned count = 0;
    bool at_home = false;
    do {
        if (count + at_home == MOST_MOVED || !is_meshable(heap, &heap->blocks[mm_block_of_page(heap, each)]))
            return 0;
        if (each == frame)
            at_home = true;
        else
            pages[count++] = each;
        each = mm_sharer(heap, each);
    } while (each != page);
    if (at_home)
        pages[count++] = frame;
    return count;
}

/* All pages round the frame of one go to that of the other. Returns the page that they are now with; 0: there are too many,
 * `*error`: there is no more to be had. */
static uint32_t merge(struct mm_heap *heap, uint32_t page, uint32_t host, uint64_t *about, int *error)
{
    uint32_t pages[2][MOST_MOVED];
    unsigned ours = ring_of(heap, page, pages[0]), theirs = ring_of(heap, host, pages[1]);
    bool swapped = ours == 0 || (theirs != 0 && theirs < ours);
    unsigned count = swapped ? theirs : ours;
    uint32_t to = swapped ? page : host;
    if (count == 0 || (heap->meshing.breaks + 2 * count) * heap->view_count > heap->meshing.most)
        return 0;
    for (unsigned at = 0; at < count && *error == 0; at++) {
        uint64_t bits[MOST_WORDS];
        mm_page_bits(heap, pages[swapped][at], bits);
        *error = mm_mesh_join(heap, pages[swapped][at], to, bits);
        *about += JOIN_NS;
    }
    return to;
}

/* A page, and those that share its frame: what lives in them. 0, or an errno: there is no more to be had. */
static int place(struct mm_heap *heap, uint32_t page, unsigned occupied, uint64_t *bits, uint64_t *about)
{
    struct mm_pool *pool = heap->meshing.pool;
    uint32_t at, to = 0;
    int error = 0;
    struct shelf *shelf = find(heap, occupied, bits, &at);
    uint64_t *frame = shelf != NULL ? frame_at(pool, shelf, at) : NULL;
    if (frame != NULL)
        to = merge(heap, page, (uint32_t)(frame[0] >> 32), about, &error);
    if (to != 0) {
        for (unsigned word = 0; word < pool->words; word++)
            bits[word] |= frame[1 + word];
        occupied += (unsigned)(uint32_t)frame[0];
        take(pool, shelf, at);
        page = to;
    }
    put(pool, page, occupied, bits);
    return error;
}

/* A page, unless hardly anything fits beside what lives in it; a frame that pages share once, by the first of them. */
static int consider(struct mm_heap *heap, uint32_t page, uint64_t *about)
{
    uint64_t bits[MOST_WORDS], more[MOST_WORDS];
    struct mm_pool *pool = heap->meshing.pool;
    unsigned occupied = mm_page_bits(heap, page, bits);
    *about += PAGE_NS;
    if (occupied == 0 || occupied * CLASSES / pool->granules >= CLASSES - 1)
        return 0;
    for (uint32_t other = mm_sharer(heap, page); other != page; other = mm_sharer(heap, other)) {
        if (other < page)
            return 0;
        occupied += mm_page_bits(heap, other, more);
        *about += PAGE_NS / 4;
        for (unsigned word = 0; word < pool->words; word++)
            bits[word] |= more[word];
    }
    return place(heap, page, occupied, bits, about);
}

/* Does anybody write to an object of the block? */
static bool is_written(const struct mm_heap *heap, uint32_t index)
{
    const struct mm_block *block = &heap->blocks[index];
    for (size_t granule = mm_next_start(block->starts, 0); block->written && granule < MM_BLOCK / MM_GRANULE;
         granule = mm_next_start(block->starts, granule + 1)) {
        uint64_t offset = ((uint64_t)index << MM_BLOCK_SHIFT) + granule * MM_GRANULE;
        uint32_t root = mm_header_at(heap, offset)->root;
        if ((root & MM_ENTRY) == 0 && heap->roots[root].writers != 0)
            return true;
    }
    return false;
}

static bool start(struct mm_heap *heap)
{
    struct mm_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return false;
    mm_pool_free(heap);
    heap->meshing.pool = pool;
    pool->granules = (1u << heap->page_shift) / MM_GRANULE;
    pool->words = pool->granules / 64;
    return true;
}

/* The next page of a block that may be meshed, from `page` on; or where the heap ends. */
static uint32_t next_page(struct mm_heap *heap, uint32_t page)
{
    uint32_t index = mm_block_of_page(heap, page);
    while (index < heap->count) {
        struct mm_block *block = &heap->blocks[index];
        if (page == mm_page_of(heap, index, 0) && block->written)
            block->written = mm_is_lane(block) && is_written(heap, index);
        if (is_meshable(heap, block) && mm_holds_too_much(heap, block->kind))
            break;
        index = mm_next_block(heap, index);
        page = mm_page_of(heap, index, 0);
    }
    return page;
}

/* cursor: a page. */
bool mm_mesh(struct mm_heap *heap, struct mm_budget *budget)
{
    if (heap->cursor == 1) {
        bool wanted = mm_holds_too_much(heap, MM_OWNED) || mm_holds_too_much(heap, MM_BYTES);
        if (!wanted || heap->exports == 0 || !start(heap))
            return true;
        heap->cursor = mm_page_of(heap, 1, 0);
    }
    uint32_t end = mm_page_of(heap, heap->count - 1, 0) + mm_page_of(heap, 1, 0);
    int error = 0;
    while (error == 0 && (heap->cursor = next_page(heap, heap->cursor)) < end) {
        uint64_t about = 100;
        heap->blocks[mm_block_of_page(heap, heap->cursor)].seen = true;
        if ((heap->meshing.breaks + 2) * heap->view_count > heap->meshing.most || (heap->meshing.tidying && mm_has_many_holes(heap)))
            break;
        if (mm_is_member(heap, heap->cursor))
            error = consider(heap, heap->cursor, &about);
        heap->cursor++;
        if (mm_spend(budget, about))
            return false;
    }
    mm_pool_free(heap);
    return true;
}
