/* Which frame each page shows, and how that changes: the bytes first, then the mapping, then the frame
 * that was left. All of it under the interpreter's lock; whoever reads without it, through a view, sees
 * the same bytes before, during and after, because one mmap(2) replaces what a page shows at once. */
#define _GNU_SOURCE
#include "heap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static unsigned block_pages(const struct mm_heap *heap)
{
    unsigned count = MM_BLOCK >> heap->page_shift;
    return count < MM_PAGES ? count : MM_PAGES;
}

static uint64_t all_pages(const struct mm_heap *heap)
{
    return ~(uint64_t)0 >> (64 - block_pages(heap));
}

uint32_t mm_page_of(const struct mm_heap *heap, uint32_t index, unsigned page)
{
    return index * block_pages(heap) + page;
}

uint32_t mm_block_of_page(const struct mm_heap *heap, uint32_t page)
{
    return page / block_pages(heap);
}

static unsigned place_of(const struct mm_heap *heap, uint32_t page)
{
    return page % block_pages(heap);
}

static uint64_t bit_of(const struct mm_heap *heap, uint32_t page)
{
    return (uint64_t)1 << place_of(heap, page);
}

/* Its block is meshed. */
static struct mm_mesh *table_of(const struct mm_heap *heap, uint32_t page)
{
    return heap->meshing.tables[mm_block_of_page(heap, page)];
}

static uint32_t *next_of(const struct mm_heap *heap, uint32_t page)
{
    return &table_of(heap, page)->next[place_of(heap, page)];
}

static uint16_t *users_of(const struct mm_heap *heap, uint32_t frame)
{
    return &table_of(heap, frame)->users[place_of(heap, frame)];
}

static bool is_meshed(const struct mm_heap *heap, uint32_t page)
{
    return heap->blocks[mm_block_of_page(heap, page)].meshed;
}

uint32_t mm_shown(const struct mm_heap *heap, uint32_t page)
{
    return is_meshed(heap, page) ? table_of(heap, page)->shows[place_of(heap, page)] : page;
}

uint32_t mm_sharer(const struct mm_heap *heap, uint32_t page)
{
    return is_meshed(heap, page) ? *next_of(heap, page) : page;
}

bool mm_is_member(const struct mm_heap *heap, uint32_t page)
{
    uint64_t among = is_meshed(heap, page) ? table_of(heap, page)->members : heap->blocks[mm_block_of_page(heap, page)].held;
    return (among & bit_of(heap, page)) != 0;
}

bool mm_is_shown(const struct mm_heap *heap, uint32_t index, uint64_t pages)
{
    const struct mm_block *block = &heap->blocks[index];
    if (!block->meshed)
        return (pages & ~block->held) == 0;
    for (uint64_t left = pages; left != 0; left &= left - 1) {
        uint32_t page = mm_page_of(heap, index, (unsigned)__builtin_ctzll(left)), frame = mm_shown(heap, page);
        if (!mm_is_member(heap, page) || (heap->blocks[mm_block_of_page(heap, frame)].held & bit_of(heap, frame)) == 0)
            return false;
    }
    return true;
}

/* --- mappings ------------------------------------------------------------------------------------ */

/* How many mappings end at the beginning of one of the pages [first, last]. */
static uint32_t breaks(const struct mm_heap *heap, uint32_t first, uint32_t last)
{
    uint32_t found = 0, end = heap->count * block_pages(heap);
    for (uint32_t page = first != 0 ? first : 1; page <= last && page < end; page++)
        found += mm_shown(heap, page) != mm_shown(heap, page - 1) + 1;
    return found;
}

static int show_in(const struct mm_heap *heap, unsigned view, uint32_t page, unsigned count, uint32_t frame)
{
    uint64_t nbytes = (uint64_t)1 << heap->page_shift;
    uintptr_t address = (uintptr_t)heap->views[view] + page * nbytes, got;
    int protection = mm_view_protection(heap, view);
    int error = mm_sys_map(address, count * nbytes, protection, MAP_SHARED | MAP_FIXED, heap->fd, (int64_t)(frame * nbytes), &got);
    /* the flags of the whole view, or the mappings would not join again */
    if (error == 0 && view != 0)
        mm_sys_advise(address, count * nbytes, MADV_DONTDUMP);
    if (error == 0 || mm_sys_sync(address, count * nbytes, MS_ASYNC) == 0)
        return error;
    /* before Linux 6.12 one without memory for it unmaps first: nobody else must move in */
    for (unsigned at = 0; at < count; at++)
        mm_sys_map(address + at * nbytes, nbytes, protection, MAP_SHARED | MAP_FIXED_NOREPLACE, heap->fd,
                   (int64_t)(mm_shown(heap, page + at) * nbytes), &got);
    return error;
}

/* Let pages of one block show frames in a row, in every view. What lives in them must be in those frames
 * already. 0 or an errno: they show what they did. */
static int show(struct mm_heap *heap, uint32_t page, unsigned count, uint32_t frame)
{
    int error = 0;
    unsigned view = 0;
    while (view < heap->view_count && (error = show_in(heap, view, page, count, frame)) == 0)
        view++;
    if (error != 0) {
        while (view-- > 0)
            for (unsigned at = 0; at < count; at++)
                show_in(heap, view, page + at, 1, mm_shown(heap, page + at));
        return error;
    }
    struct mm_mesh *mesh = table_of(heap, page);
    heap->meshing.breaks -= breaks(heap, page, page + count);
    for (unsigned at = 0; at < count; at++)
        mesh->shows[place_of(heap, page) + at] = frame + at;
    heap->meshing.breaks += breaks(heap, page, page + count);
    return 0;
}

/* --- who shows a frame --------------------------------------------------------------------------- */

static int make_table(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    if (block->meshed)
        return 0;
    if (heap->meshing.tables == NULL)
        heap->meshing.tables = calloc(heap->count, sizeof(struct mm_mesh *));
    struct mm_mesh *mesh = heap->meshing.tables != NULL ? calloc(1, sizeof *mesh) : NULL;
    if (mesh == NULL)
        return ENOMEM;
    mesh->members = block->held;
    for (unsigned at = 0; at < block_pages(heap); at++) {
        mesh->shows[at] = mesh->next[at] = mm_page_of(heap, index, at);
        mesh->users[at] = block->held >> at & 1;
    }
    heap->meshing.tables[index] = mesh;
    block->meshed = true;
    return 0;
}

static void join(struct mm_heap *heap, uint32_t page, uint32_t host)
{
    *next_of(heap, page) = *next_of(heap, host);
    *next_of(heap, host) = page;
    if (++*users_of(heap, mm_shown(heap, host)) > 1)
        heap->meshing.saved++;
}

/* A page needs this frame no more. Without users it goes. */
static void let_go(struct mm_heap *heap, uint32_t page, uint32_t frame)
{
    uint32_t before = page, index = mm_block_of_page(heap, frame);
    while (*next_of(heap, before) != page)
        before = *next_of(heap, before);
    *next_of(heap, before) = *next_of(heap, page);
    *next_of(heap, page) = page;
    if (--*users_of(heap, frame) != 0) {
        heap->meshing.saved--;
        return;
    }
    mm_punch_frames(heap, index, bit_of(heap, frame));
    if (heap->blocks[index].kind == MM_HOST)
        mm_free_block(heap, index);
}

static void copy(struct mm_heap *heap, uint32_t page, uint32_t host, const uint64_t *bits)
{
    size_t count = ((size_t)1 << heap->page_shift) / MM_GRANULE;
    const unsigned char *from = heap->base + ((uint64_t)page << heap->page_shift);
    unsigned char *to = heap->base + ((uint64_t)host << heap->page_shift);
    for (size_t start = 0; start < count; start++) {
        size_t end = start;
        while (end < count && mm_bit(bits, end))
            end++;
        if (end != start)
            memcpy(to + start * MM_GRANULE, from + start * MM_GRANULE, (end - start) * MM_GRANULE);
        start = end;
    }
}

int mm_mesh_join(struct mm_heap *heap, uint32_t page, uint32_t host, const uint64_t *bits)
{
    mm_holes_withdraw(heap, mm_block_of_page(heap, page));
    mm_holes_withdraw(heap, mm_block_of_page(heap, host));
    int error = make_table(heap, mm_block_of_page(heap, page));
    if (error == 0)
        error = make_table(heap, mm_block_of_page(heap, host));
    if (error != 0)
        return error;
    copy(heap, page, host, bits);      /* over what is dead in that frame */
    uint32_t before = mm_shown(heap, page);
    error = show(heap, page, 1, mm_shown(heap, host));
    if (error != 0)
        return error;
    let_go(heap, page, before);
    join(heap, page, host);
    return 0;
}

/* --- leaving ------------------------------------------------------------------------------------- */

static uint64_t foreign(const struct mm_heap *heap, uint32_t index)
{
    const struct mm_mesh *mesh = heap->meshing.tables[index];
    uint64_t found = 0;
    for (unsigned at = 0; at < block_pages(heap); at++)
        found |= (uint64_t)(mesh->shows[at] != mm_page_of(heap, index, at)) << at;
    return found;
}

static uint64_t used(const struct mm_heap *heap, uint32_t index)
{
    const struct mm_mesh *mesh = heap->meshing.tables[index];
    uint64_t found = 0;
    for (unsigned at = 0; at < block_pages(heap); at++)
        found |= (uint64_t)(mesh->users[at] != 0) << at;
    return found;
}

/* Pages that nothing lives in show their own frames again, in as few calls as can be. */
static void restore(struct mm_heap *heap, uint32_t index, uint64_t pages)
{
    uint64_t wrong = pages & foreign(heap, index);
    while (wrong != 0) {
        unsigned first = (unsigned)__builtin_ctzll(wrong);
        uint64_t behind = ~(pages >> first);       /* the page where this row of them ends */
        unsigned length = behind != 0 ? (unsigned)__builtin_ctzll(behind) : 64 - first;
        uint64_t row = (~(uint64_t)0 >> (64 - length)) << first;
        unsigned count = 64 - (unsigned)__builtin_clzll(wrong & row) - first;
        show(heap, mm_page_of(heap, index, first), count, mm_page_of(heap, index, first));
        wrong &= ~row;
    }
}

void mm_mesh_leave(struct mm_heap *heap, uint32_t index, uint64_t pages)
{
    struct mm_mesh *mesh = heap->meshing.tables[index];
    pages &= all_pages(heap);
    for (uint64_t left = pages & mesh->members; left != 0; left &= left - 1) {
        unsigned at = (unsigned)__builtin_ctzll(left);
        mesh->members &= ~((uint64_t)1 << at);
        let_go(heap, mm_page_of(heap, index, at), mesh->shows[at]);
    }
    restore(heap, index, pages);
    mm_punch_frames(heap, index, ~used(heap, index));      /* also what the kernel would not take before */
}

bool mm_mesh_dissolve(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    struct mm_mesh *mesh = heap->meshing.tables[index];
    mm_mesh_leave(heap, index, all_pages(heap));
    if (used(heap, index) != 0 || foreign(heap, index) != 0) {
        if (mm_is_lane(block))
            heap->lanes[block->kind - MM_OWNED].held -= mm_block_held(heap, block);
        if (block->kind == MM_OWNED)
            mm_bitmap_free(heap, index);
        else
            free(block->starts);
        free(block->marks);
        *block = (struct mm_block){.held = block->held, .kind = MM_HOST, .meshed = true};
        return false;
    }
    free(mesh);
    heap->meshing.tables[index] = NULL;
    block->meshed = false;
    return true;
}

void mm_mesh_close(struct mm_heap *heap)
{
    mm_pool_free(heap);
    for (uint32_t index = 0; heap->meshing.tables != NULL && index < heap->count; index = mm_next_block(heap, index))
        free(heap->meshing.tables[index]);
    free(heap->meshing.tables);
}

/* --- writing ------------------------------------------------------------------------------------- */

/* This page, and those round it up to `last`, move from the frame they share to the page's own. */
static int move_to_own(struct mm_heap *heap, uint32_t page, uint32_t last)
{
    uint32_t frame = mm_shown(heap, page), index = mm_block_of_page(heap, page);
    uint64_t nbytes = (uint64_t)1 << heap->page_shift;
    int error = mm_commit_frame(heap, index, place_of(heap, page));
    if (error == 0)
        error = mm_sys_write_at(heap->fd, heap->base + page * nbytes, nbytes, (int64_t)(page * nbytes));
    for (uint32_t each = page, next; error == 0; each = next) {
        next = *next_of(heap, each);
        bool done = each == last;
        error = show(heap, each, 1, page);
        if (error != 0)
            break;
        let_go(heap, each, frame);
        if (each == page)
            ++*users_of(heap, page);
        else
            join(heap, each, page);
        if (done)
            break;
    }
    if (*users_of(heap, page) == 0)
        mm_punch_frames(heap, index, bit_of(heap, page));
    return error;
}

/* No other page shows what this one shows. */
static int part(struct mm_heap *heap, uint32_t page)
{
    uint32_t other = *next_of(heap, page), last = other;
    if (other == page)
        return 0;
    if (mm_shown(heap, page) != page)
        return move_to_own(heap, page, page);
    while (*next_of(heap, last) != page)
        last = *next_of(heap, last);
    return move_to_own(heap, other, last);         /* the others go, and this page stays */
}

int mm_mesh_part(struct mm_heap *heap, uint64_t offset)
{
    uint32_t index = mm_block_at(offset);
    int error = 0;
    if (!heap->blocks[index].meshed)
        return 0;
    uint64_t end = offset + mm_object_nbytes(mm_header_at(heap, offset)) - 1;
    for (uint32_t page = (uint32_t)(offset >> heap->page_shift); error == 0 && page <= end >> heap->page_shift; page++)
        error = part(heap, page);
    return error;
}
