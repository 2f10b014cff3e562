/* Copying what roots reach into an image, and looking at one without trusting it. */
#define _GNU_SOURCE
#include "image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct carry {
    struct mm_heap *heap;
    uint64_t **to;                     /* by block and granule: where the object will lie; 0: not seen yet */
    uint64_t *queue;                   /* references to objects in the order in which they will lie */
    size_t count, room;
    uint64_t end;
};

/* Where an object goes; 0: there is no memory. The first time it gets a place behind all others. */
static uint64_t carry_object(struct carry *carry, uint64_t reference)
{
    uint64_t offset = mm_offset(carry->heap, reference);
    uint32_t index = mm_block_at(offset);
    if (carry->to[index] == NULL) {
        size_t count = carry->heap->blocks[index].kind == MM_RUN ? 1 : MM_BLOCK / MM_GRANULE;
        carry->to[index] = calloc(count, sizeof *carry->to[index]);
        if (carry->to[index] == NULL)
            return 0;
    }
    uint64_t *to = &carry->to[index][mm_granule(offset)];
    if (*to != 0)
        return *to;
    if (carry->count == carry->room) {
        size_t room = carry->room != 0 ? 2 * carry->room : 1024;
        uint64_t *longer = realloc(carry->queue, room * sizeof *longer);
        if (longer == NULL)
            return 0;
        carry->queue = longer;
        carry->room = room;
    }
    carry->queue[carry->count++] = reference;
    *to = carry->end;
    carry->end += mm_object_nbytes(mm_at(carry->heap, reference));
    return *to;
}

/* Give everything that can be reached its place. The queue is what is still to be looked at, and the order. */
static int find(struct carry *carry, struct mm_freeze *freeze)
{
    for (size_t root = 0; root < freeze->root_count; root++) {
        freeze->roots[root] = carry_object(carry, freeze->roots[root] | carry->heap->good);
        if (freeze->roots[root] == 0)
            return ENOMEM;
    }
    for (size_t head = 0; head < carry->count; head++) {
        struct mm_object *header = mm_at(carry->heap, carry->queue[head]);
        for (uint32_t index = 0, count = mm_nrefs(header); index < count; index++) {
            uint64_t reference = mm_load_reference(carry->heap, &mm_slots(header)[index]);
            if (reference != 0 && carry_object(carry, reference) == 0)
                return ENOMEM;
        }
    }
    return 0;
}

static void copy(struct carry *carry, const struct mm_freeze *freeze)
{
    uint64_t *starts = (uint64_t *)(void *)(freeze->base + freeze->starts_at), at = MM_IMAGE_START;
    for (size_t head = 0; head < carry->count; head++) {
        struct mm_object *from = mm_at(carry->heap, carry->queue[head]);
        struct mm_object *to = (struct mm_object *)(void *)(freeze->base + at);
        uint64_t nbytes = mm_object_nbytes(from), slots_at = mm_slots_at(from);
        memcpy(to, from, slots_at);
        to->root = 0;
        for (uint32_t index = 0, count = mm_nrefs(from); index < count; index++) {
            uint64_t offset = mm_load(carry->heap, &mm_slots(from)[index]);
            uint64_t there = offset != 0 ? carry->to[mm_block_at(offset)][mm_granule(offset)] : 0;
            atomic_store_explicit(&mm_slots(to)[index], there, memory_order_relaxed);
        }
        starts[at / MM_GRANULE / 64] |= (uint64_t)1 << (at / MM_GRANULE % 64);
        at += nbytes;
    }
}

/* fallocate, again after a signal. */
static int commit(const struct mm_freeze *freeze)
{
    int error;
    AGAIN(error, mm_sys_allocate(freeze->fd, 0, 0, (int64_t)freeze->nbytes));
    return error;
}

static int freeze_with(struct carry *carry, struct mm_freeze *freeze)
{
    int error = find(carry, freeze);
    if (error != 0)
        return error;
    freeze->end = freeze->starts_at = carry->end;
    freeze->nbytes = carry->end + (carry->end / MM_GRANULE + 63) / 64 * 8;
    if (freeze->nbytes > freeze->room)
        return EFBIG;
    if (freeze->nbytes > freeze->allowed)
        return ENOMEM;
    error = commit(freeze);
    if (error == 0)
        copy(carry, freeze);
    return error;
}

int mm_freeze(struct mm_heap *heap, struct mm_freeze *freeze)
{
    struct carry carry = {.heap = heap, .to = calloc(heap->count, sizeof *carry.to), .end = MM_IMAGE_START};
    int error = carry.to != NULL ? freeze_with(&carry, freeze) : ENOMEM;
    for (uint32_t index = 0; carry.to != NULL && index < heap->count; index++)
        free(carry.to[index]);
    free(carry.to);
    free(carry.queue);
    return error;
}

const char *mm_image_check(const struct mm_image *image, uint64_t offset)
{
    if (offset < MM_IMAGE_START || offset >= image->end || offset % MM_GRANULE != 0)
        return "a reference leads out of it";
    if (!mm_bit(image->starts, (size_t)(offset / MM_GRANULE)))
        return "a reference leads to no object";
    const struct mm_object *header = mm_image_at(image, offset);
    if (mm_object_nbytes(header) > image->end - offset)
        return "an object reaches beyond its end";
    if (mm_is_record(header))
        return mm_type(header) < image->types && header->word == image->words[mm_type(header)]
                   ? NULL : "a record is of no type that it declares";
    return header->dtype <= image->dtypes && header->ndim <= MM_MOST_DIMS ? NULL : "an array is of no dtype that it declares";
}
