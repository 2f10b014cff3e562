/* An image: what some roots of a heap reach, copied into bytes that mean the same at any address.
 *
 *     the owner's header | objects, one behind the other | a bit a granule where one begins
 *
 * Objects are as in the heap, but for two things: they name no roots, and a reference is an offset in the
 * image, without a colour. Whoever reads an image trusts nothing in it. */
#ifndef MIRRORMAP_IMAGE_H
#define MIRRORMAP_IMAGE_H

#include "heap.h"

enum { MM_IMAGE_START = 64, MM_MOST_DIMS = 64 };

struct mm_freeze {
    unsigned char *base;               /* of a shared view of the object behind `fd`, from its first byte on */
    uint64_t room;                     /* bytes of that view */
    uint64_t allowed;                  /* bytes that may be committed */
    int fd;
    uint64_t *roots;                   /* offsets in the heap; in the image afterwards */
    size_t root_count;
    uint64_t end, starts_at, nbytes;   /* of the objects; of the bits; of all: results */
};

/* ENOMEM: no memory for the books, or more than is allowed. EFBIG: `nbytes` are needed, and `room` is less. The heap
 * is as before in any case. */
int mm_freeze(struct mm_heap *heap, struct mm_freeze *freeze);

/* What a reader knows of an image; its bytes cannot change any more. */
struct mm_image {
    const unsigned char *base;
    uint64_t end;                      /* of the objects, a multiple of MM_GRANULE */
    const uint64_t *starts;
    const uint32_t *words;             /* the header's word of each type of records */
    uint32_t types, dtypes;            /* how many there are */
};

static inline struct mm_object *mm_image_at(const struct mm_image *image, uint64_t offset)
{
    return (struct mm_object *)(void *)(uintptr_t)(image->base + offset);
}

/* NULL: an object lies there, as a whole, and its type is known; else what is wrong. */
const char *mm_image_check(const struct mm_image *image, uint64_t offset);

#endif
