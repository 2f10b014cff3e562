/* Ways into the heap from outside: roots, values of containers, weak references. */
#define _GNU_SOURCE
#include "heap.h"

#include <stdlib.h>
#include <string.h>

/* A slot of the table, or 0. */
static uint32_t new_root(struct mm_heap *heap, uint64_t offset, enum mm_root_kind kind)
{
    uint32_t root = heap->root_free;
    if (root != 0) {
        heap->root_free = (uint32_t)heap->roots[root].offset;
    } else {
        /* it is a power of two long, and full, when its count is one */
        if (heap->root_count >= 64 && (heap->root_count & (heap->root_count - 1)) == 0) {
            if (heap->root_count > UINT32_MAX / 2)
                return 0;
            struct mm_root *longer = realloc(heap->roots, 2 * (size_t)heap->root_count * sizeof *longer);
            if (longer == NULL)
                return 0;
            heap->roots = longer;
        }
        root = heap->root_count++;
    }
    heap->roots[root] = (struct mm_root){.offset = offset, .kind = kind};
    mm_header_at(heap, offset)->root = root;
    return root;
}

static void free_root(struct mm_heap *heap, uint32_t root)
{
    mm_header_at(heap, heap->roots[root].offset)->root = 0;
    heap->roots[root] = (struct mm_root){.offset = heap->root_free};
    heap->root_free = root;
}

uint32_t mm_hold_at(struct mm_heap *heap, uint64_t reference)
{
    uint32_t root = mm_at(heap, reference)->root;
    if (root == 0)
        root = new_root(heap, mm_offset(heap, reference), MM_ROOT);
    if (root != 0)
        heap->roots[root].holders++;
    return root;
}

uint32_t mm_hold(struct mm_heap *heap, uint64_t offset)
{
    return mm_hold_at(heap, offset | heap->good);
}

void mm_drop(struct mm_heap *heap, uint32_t root)
{
    struct mm_root *slot = &heap->roots[root];
    if (--slot->holders != 0)
        return;
    /* the marking has not come to it yet: it was a way in when that began */
    if (heap->phase == MM_ROOTS && root >= heap->cursor && root < heap->marking.limit)
        mm_shade(heap, slot->offset);
    mm_dropped(heap, mm_object_nbytes(mm_header_at(heap, slot->offset)));
    free_root(heap, root);
}

uint32_t mm_show(struct mm_heap *heap, uint32_t entry)
{
    uint64_t offset = mm_entries(&heap->index)[entry].offset;
    uint32_t root = mm_header_at(heap, offset)->root;
    if ((root & MM_ENTRY) != 0) {
        root = new_root(heap, offset, MM_VALUE);
        if (root == 0)
            return 0;
        heap->roots[root].entry = entry;
    }
    heap->roots[root].holders++;
    return root;
}

static void release_value(struct mm_heap *heap, uint32_t root)
{
    struct mm_root *slot = &heap->roots[root];
    if (slot->holders != 0 || slot->exports != 0)
        return;
    uint64_t offset = slot->offset;
    uint32_t entry = slot->entry;
    free_root(heap, root);
    if (entry != 0)
        mm_own(heap, offset, entry);
    else
        mm_release(heap, offset);
}

void mm_show_no_more(struct mm_heap *heap, uint32_t root)
{
    heap->roots[root].holders--;
    release_value(heap, root);
}

void mm_disown(struct mm_heap *heap, uint64_t offset)
{
    uint32_t root = mm_header_at(heap, offset)->root;
    if ((root & MM_ENTRY) == 0)
        heap->roots[root].entry = 0;   /* it goes with the last view */
    else
        mm_release(heap, offset);
}

void mm_own(struct mm_heap *heap, uint64_t offset, uint32_t entry)
{
    struct mm_object *header = mm_header_at(heap, offset);
    if (header->root == 0 || (header->root & MM_ENTRY) != 0)
        header->root = entry | MM_ENTRY;
    else
        heap->roots[header->root].entry = entry;
}

void mm_tell(struct mm_heap *heap, const struct mm_object *header, uint64_t to)
{
    uint32_t root = header->root, entry = root & ~MM_ENTRY;
    if (root == 0)
        return;
    if ((root & MM_ENTRY) == 0) {
        heap->roots[root].offset = to;
        entry = heap->roots[root].entry;
    }
    if (entry != 0)
        mm_entries(&heap->index)[entry].offset = to;
}

void mm_pin(struct mm_heap *heap, uint32_t root)
{
    struct mm_root *slot = &heap->roots[root];
    heap->exports++;
    if (slot->exports++ != 0)
        return;
    mm_settle(heap, slot->offset);
    uint32_t index = mm_block_at(slot->offset);
    heap->pinned += mm_object_nbytes(mm_header_at(heap, slot->offset));
    if (heap->blocks[index].pins++ == 0)
        mm_unlink(heap, index);
}

void mm_unpin(struct mm_heap *heap, uint32_t root)
{
    struct mm_root *slot = &heap->roots[root];
    heap->exports--;
    if (--slot->exports != 0)
        return;
    uint32_t index = mm_block_at(slot->offset);
    heap->pinned -= mm_object_nbytes(mm_header_at(heap, slot->offset));
    if (--heap->blocks[index].pins == 0) {
        mm_link(heap, index);
        mm_holes_offer(heap, index);
        if (heap->blocks[index].meshed)
            mm_loosened(heap, index);
    }
    if (slot->kind == MM_VALUE)
        release_value(heap, root);
}

int mm_pin_written(struct mm_heap *heap, uint32_t root)
{
    mm_pin(heap, root);
    uint64_t offset = heap->roots[root].offset;
    int error = mm_mesh_part(heap, offset);
    if (error != 0) {
        mm_unpin(heap, root);
        return error;
    }
    heap->roots[root].writers++;
    heap->blocks[mm_block_at(offset)].written = true;
    return 0;
}

void mm_unpin_written(struct mm_heap *heap, uint32_t root)
{
    heap->roots[root].writers--;
    mm_unpin(heap, root);
}

uint32_t mm_weak_new(struct mm_heap *heap, uint64_t offset)
{
    uint32_t index = heap->weak_free;
    if (index != 0) {
        heap->weak_free = (uint32_t)(heap->weak[index] >> 1);
    } else {
        if (heap->weak_count >= 16 && (heap->weak_count & (heap->weak_count - 1)) == 0) {
            if (heap->weak_count > UINT32_MAX / 2)
                return 0;
            _Atomic uint64_t *longer = realloc(heap->weak, 2 * (size_t)heap->weak_count * sizeof *longer);
            if (longer == NULL)
                return 0;
            heap->weak = longer;
        }
        index = heap->weak_count++;
    }
    heap->weak[index] = mm_coloured(heap, offset);
    return index;
}

uint64_t mm_weak_get(struct mm_heap *heap, uint32_t index)
{
    uint64_t offset = mm_load(heap, &heap->weak[index]);
    if (offset == 0)
        return 0;
    if (mm_is_marking(heap))
        mm_shade(heap, offset);        /* there may have been no other way to it */
    else if (heap->phase == MM_WEAK && !mm_is_marked(heap, offset))
        heap->weak[index] = offset = 0;
    return offset;
}

void mm_weak_drop(struct mm_heap *heap, uint32_t index)
{
    heap->weak[index] = (uint64_t)heap->weak_free << 1 | 1;
    heap->weak_free = index;
}
