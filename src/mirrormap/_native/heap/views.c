/* The views of a heap's pages. Where each colour has one, the good colour's base and a reference make
 * an address; a guarded one lets nobody touch the others, so that whoever follows a stale reference
 * is stopped there. */
#define _GNU_SOURCE
#include "heap.h"

#include <sys/mman.h>

enum { WRITABLE = PROT_READ | PROT_WRITE };

/* The number of a colour's view, from the colour in place. */
static unsigned view_of(const struct mm_heap *heap, uint64_t colour)
{
    return 1 + (unsigned)(colour >> heap->shift);
}

int mm_view_protection(const struct mm_heap *heap, unsigned view)
{
    return heap->guard && view != 0 && view != view_of(heap, heap->good) ? PROT_NONE : WRITABLE;
}

static int protect(const struct mm_heap *heap, uint64_t colour, int protection)
{
    return mm_sys_protect((uintptr_t)heap->views[view_of(heap, colour)], (size_t)heap->offsets + 1, protection);
}

int mm_guard(struct mm_heap *heap)
{
    int error = 0;
    for (uint64_t colour = 0; error == 0 && heap->guard && colour < MM_COLOURS; colour++)
        error = protect(heap, colour << heap->shift, mm_view_protection(heap, 1 + (unsigned)colour));
    return error;
}

bool mm_turn(struct mm_heap *heap)
{
    uint64_t before = heap->good, good = ((before >> heap->shift) + 1) % MM_COLOURS << heap->shift;
    if (heap->guard && protect(heap, good, WRITABLE) != 0)
        return false;
    if (heap->guard && protect(heap, before, PROT_NONE) != 0) {
        protect(heap, good, PROT_NONE);
        return false;
    }
    heap->good = good;
    return true;
}
