/* Gaps between the values that containers own: new values go there first. */
#ifndef MIRRORMAP_HOLES_H
#define MIRRORMAP_HOLES_H

#include <stdbool.h>
#include <stdint.h>

/* Classes by length in granules: one for each below MM_HOLE_STEPS, and so many to each doubling from there on. */
enum { MM_HOLE_STEPS = 32, MM_HOLE_CLASSES = 352, MM_HOLE_WORDS = (MM_HOLE_CLASSES + 63) / 64 };

struct mm_holes {
    uint64_t first[MM_HOLE_CLASSES];   /* offsets; 0: there is none */
    uint64_t any[MM_HOLE_WORDS];       /* a bit a class that is not empty */
};

struct mm_heap;

/* A closed block without views offers what lies between its values, as far as the kernel holds its pages. */
void mm_holes_offer(struct mm_heap *heap, uint32_t index);
/* It offers nothing any more: it will be emptied, meshed, punched, or is free. */
void mm_holes_withdraw(struct mm_heap *heap, uint32_t index);
/* The value at `offset` is no more, and its bit in `starts` is to be cleared: it joins the gaps beside it. */
void mm_holes_freed(struct mm_heap *heap, uint64_t offset, uint64_t nbytes);
/* Room for a value in a gap that fits well, its bit set; 0: there is none. */
uint64_t mm_holes_take(struct mm_heap *heap, uint64_t nbytes);
/* NULL, or what is wrong with the books. */
const char *mm_holes_check(const struct mm_heap *heap, uint64_t *where);

/* slide.c: push what lives in a block together, where it lies; pages behind it go back. */
void mm_slide(struct mm_heap *heap, uint32_t index);

#endif
