/* What lives in a page; and whether the tables of meshed blocks are right, for the verifier and for tests. */
#define _GNU_SOURCE
#include "heap.h"

#include <string.h>

static void set(uint64_t *bits, size_t first, size_t last)
{
    for (size_t at = first; at < last;) {
        size_t count = 64 - at % 64 < last - at ? 64 - at % 64 : last - at;
        bits[at / 64] |= (~(uint64_t)0 >> (64 - count)) << (at % 64);
        at += count;
    }
}

unsigned mm_page_bits(const struct mm_heap *heap, uint32_t page, uint64_t *bits)
{
    uint32_t index = mm_block_of_page(heap, page);
    const struct mm_block *block = &heap->blocks[index];
    size_t count = ((size_t)1 << heap->page_shift) / MM_GRANULE, none = MM_BLOCK / MM_GRANULE;
    size_t first = (page - mm_page_of(heap, index, 0)) * count, end = first + count;
    memset(bits, 0, count / 8);
    size_t granule = mm_last_start(block->starts, first);
    if (granule == none)
        granule = mm_next_start(block->starts, first);
    for (; granule < end; granule = mm_next_start(block->starts, granule + 1)) {
        uint64_t offset = ((uint64_t)index << MM_BLOCK_SHIFT) + granule * MM_GRANULE;
        size_t behind = granule + (size_t)(mm_object_nbytes(mm_header_at(heap, offset)) / MM_GRANULE);
        if (behind > first)
            set(bits, (granule > first ? granule : first) - first, (behind < end ? behind : end) - first);
    }
    unsigned found = 0;
    for (size_t word = 0; word < count / 64; word++)
        found += (unsigned)__builtin_popcountll(bits[word]);
    return found;
}

/* All round one page. */
static const char *check_ring(const struct mm_heap *heap, uint32_t page, uint64_t users)
{
    uint64_t together[MM_BITMAP] = {0}, bits[MM_BITMAP], count = 0;
    uint32_t at = page;
    do {
        if (!mm_is_member(heap, at) || mm_shown(heap, at) != mm_shown(heap, page) || ++count > users)
            return "pages that share a frame do not know of each other";
        mm_page_bits(heap, at, bits);
        for (size_t word = 0; word < ((size_t)1 << heap->page_shift) / MM_GRANULE / 64; word++) {
            if ((together[word] & bits[word]) != 0)
                return "objects that share a frame overlap";
            together[word] |= bits[word];
        }
        at = mm_sharer(heap, at);
    } while (at != page);
    return count == users ? NULL : "the users of a frame were miscounted";
}

const char *mm_mesh_check(const struct mm_heap *heap, uint64_t *where)
{
    uint64_t saved = 0, members = 0, users = 0, breaks = 0;
    for (uint32_t page = mm_page_of(heap, 1, 0), end = mm_page_of(heap, heap->count, 0); page < end; page++) {
        uint32_t index = mm_block_of_page(heap, page);
        const struct mm_block *block = &heap->blocks[index];
        unsigned at = page - mm_page_of(heap, index, 0);
        if (at == 0 && !block->meshed && !heap->blocks[index - 1].meshed) {
            page = mm_page_of(heap, mm_next_block(heap, index), 0) - 1;
            continue;
        }
        *where = (uint64_t)page << heap->page_shift;
        breaks += mm_shown(heap, page) != mm_shown(heap, page - 1) + 1;
        if (!block->meshed)
            continue;
        const struct mm_mesh *mesh = heap->meshing.tables[index];
        users += mesh->users[at];
        saved += mesh->users[at] > 1 ? mesh->users[at] - 1u : 0;
        if (mesh->users[at] != 0 && mesh->shows[at] != page)
            return "a page left its own frame to others, and would have none to go to";
        if (!mm_is_member(heap, page))
            continue;
        members++;
        uint32_t frame = mesh->shows[at], host = mm_block_of_page(heap, frame);
        if (!mm_is_shown(heap, index, (uint64_t)1 << at) || !heap->blocks[host].meshed)
            return "a page shows a frame that was given back";
        const char *wrong = check_ring(heap, page, heap->meshing.tables[host]->users[frame - mm_page_of(heap, host, 0)]);
        if (wrong != NULL)
            return wrong;
    }
    if (users != members || saved != heap->meshing.saved)
        return "pages that share frames were miscounted";
    return breaks == heap->meshing.breaks ? NULL : "mappings were miscounted";
}
