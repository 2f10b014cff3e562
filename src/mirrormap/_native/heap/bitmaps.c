/* Where the values of containers begin, a bit a granule: one bitmap a block, at a place of its own in one
 * reservation, so that no other memory is between them and what blocks no longer need goes back. */
#define _GNU_SOURCE
#include "heap.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum {
    NBYTES = MM_BITMAP * 8,
    OPENED_AT_ONCE = 1 << 20,          /* bytes made accessible; they cost nothing until they are written */
};

static size_t whole(const struct mm_heap *heap)
{
    size_t page = (size_t)1 << heap->page_shift;
    return ((size_t)heap->count * NBYTES + page - 1) & ~(page - 1);
}

int mm_bitmaps_open(struct mm_heap *heap)
{
    uintptr_t address;
    int error;
    AGAIN(error, mm_sys_map(0, whole(heap), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &address));
    if (error != 0)
        return error;
    mm_sys_advise(address, whole(heap), MADV_NOHUGEPAGE);   /* they would be most of a small heap */
    heap->bitmaps = (unsigned char *)address;
    return 0;
}

void mm_bitmaps_close(struct mm_heap *heap)
{
    if (heap->bitmaps != NULL)
        mm_sys_unmap((uintptr_t)heap->bitmaps, whole(heap));
}

uint64_t *mm_bitmap_take(struct mm_heap *heap, uint32_t index)
{
    size_t start = (size_t)index * NBYTES, all = whole(heap);
    if (start + NBYTES > heap->bitmaps_nbytes) {
        size_t end = (start + NBYTES + OPENED_AT_ONCE - 1) & ~(size_t)(OPENED_AT_ONCE - 1);
        end = end < all ? end : all;
        if (mm_sys_protect((uintptr_t)heap->bitmaps, end, PROT_READ | PROT_WRITE) != 0)
            return NULL;
        heap->bitmaps_nbytes = end;
    }
    return memset(heap->bitmaps + start, 0, NBYTES);
}

void mm_bitmap_free(struct mm_heap *heap, uint32_t index)
{
    size_t page = (size_t)1 << heap->page_shift, start = (size_t)index * NBYTES & ~(page - 1);
    uint32_t first = (uint32_t)(start / NBYTES);
    for (uint32_t other = first; other < first + page / NBYTES && other < heap->count; other++)
        if (other != index && heap->blocks[other].kind == MM_OWNED)
            return;
    mm_sys_advise((uintptr_t)heap->bitmaps + start, page, MADV_DONTNEED);
}
