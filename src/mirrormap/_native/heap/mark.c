/* Which objects can be reached: a bit each, with a stack of those whose references are still to be seen. */
#define _GNU_SOURCE
#include "heap.h"

#include <errno.h>
#include <stdlib.h>

size_t mm_next_start(const uint64_t *starts, size_t from)
{
    for (size_t word = from / 64; word < MM_BITMAP; word++) {
        uint64_t bits = starts[word];
        if (word == from / 64)
            bits &= ~(((uint64_t)1 << (from % 64)) - 1);
        if (bits != 0)
            return word * 64 + (size_t)__builtin_ctzll(bits);
    }
    return MM_BLOCK / MM_GRANULE;
}

static int push(struct mm_heap *heap, uint64_t offset)
{
    if (heap->stack_count == heap->stack_room) {
        size_t room = heap->stack_room != 0 ? 2 * heap->stack_room : 1024;
        uint64_t *longer = realloc(heap->stack, room * sizeof *longer);
        if (longer == NULL)
            return ENOMEM;
        heap->stack = longer;
        heap->stack_room = room;
    }
    heap->stack[heap->stack_count++] = offset;
    return 0;
}

/* Mark one object; the first time, its references wait on the stack. */
static int reach(struct mm_heap *heap, uint64_t offset)
{
    struct mm_block *block = &heap->blocks[mm_block_at(offset)];
    if (block->kind == MM_RUN) {
        if (block->marked != 0)
            return 0;
        block->marked = 1;
    } else {
        size_t granule = mm_granule(offset);
        uint64_t bit = (uint64_t)1 << (granule % 64), *word = &block->marks[granule / 64];
        if ((*word & bit) != 0)
            return 0;
        *word |= bit;
    }
    const struct mm_object *header = mm_header_at(heap, offset);
    if (block->kind != MM_RUN)
        block->marked += (uint32_t)mm_object_nbytes(header);
    heap->counters.marked++;
    return mm_nrefs(header) != 0 ? push(heap, offset) : 0;
}

static int trace(struct mm_heap *heap)
{
    while (heap->stack_count != 0) {
        struct mm_object *header = mm_header_at(heap, heap->stack[--heap->stack_count]);
        _Atomic uint64_t *slots = mm_slots(header);
        for (uint32_t index = 0, count = mm_nrefs(header); index < count; index++) {
            uint64_t offset = mm_load(heap, &slots[index]);
            int error = offset != 0 ? reach(heap, offset) : 0;
            if (error != 0)
                return error;
        }
    }
    return 0;
}

static bool is_traced(const struct mm_block *block)
{
    return block->kind == MM_BYTES || block->kind == MM_OBJECTS;
}

static void clear_marks(struct mm_heap *heap)
{
    for (uint32_t index = 0; index < heap->count; index += 64)
        for (uint64_t left = heap->taken[index / 64]; left != 0; left &= left - 1) {
            struct mm_block *block = &heap->blocks[index + (uint32_t)__builtin_ctzll(left)];
            free(block->marks);
            block->marks = NULL;
            block->marked = 0;
        }
    free(heap->stack);
    heap->stack = NULL;
    heap->stack_count = heap->stack_room = 0;
}

static int begin(struct mm_heap *heap)
{
    for (uint32_t index = 0; index < heap->count; index += 64)
        for (uint64_t left = heap->taken[index / 64]; left != 0; left &= left - 1) {
            struct mm_block *block = &heap->blocks[index + (uint32_t)__builtin_ctzll(left)];
            if (is_traced(block) && (block->marks = calloc(MM_BITMAP, sizeof *block->marks)) == NULL)
                return ENOMEM;
        }
    return 0;
}

static bool is_marked(const struct mm_heap *heap, uint64_t offset)
{
    const struct mm_block *block = &heap->blocks[mm_block_at(offset)];
    return block->kind == MM_RUN ? block->marked != 0 : mm_bit(block->marks, mm_granule(offset));
}

static void clear_weak(struct mm_heap *heap)
{
    for (uint32_t index = 1; index < heap->weak_count; index++) {
        uint64_t offset = heap->weak[index];
        if (offset != 0 && offset % 2 == 0 && !is_marked(heap, offset))
            heap->weak[index] = 0;
    }
}

static void sweep_block(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    free(block->starts);
    block->starts = block->marks;
    block->marks = NULL;
    heap->lanes[block->kind - MM_OWNED].live -= block->live - block->marked;
    block->live = block->marked;
    block->marked = 0;
    if (block->open)
        return;
    if (block->live == 0)
        mm_free_block(heap, index);
    else
        mm_relink(heap, index);
}

static void sweep(struct mm_heap *heap)
{
    for (uint32_t index = 1; index < heap->count; index++) {
        if (index % 64 == 0 && heap->taken[index / 64] == 0) {
            index += 63;
            continue;
        }
        struct mm_block *block = &heap->blocks[index];
        if (is_traced(block)) {
            sweep_block(heap, index);
        } else if (block->kind == MM_RUN && !block->owned && block->marked == 0) {
            heap->runs_live -= mm_object_nbytes(mm_header_at(heap, (uint64_t)index << MM_BLOCK_SHIFT));
            mm_free_run(heap, index);
        } else if (block->kind == MM_RUN) {
            block->marked = 0;
        }
    }
}

/* Every reference to a live object has been mended: nobody asks any more where things went. */
static void drop_forwarding(struct mm_heap *heap)
{
    while (heap->gone != 0) {
        uint32_t index = heap->gone;
        struct mm_block *block = &heap->blocks[index];
        heap->gone = block->next;
        block->next = 0;
        free(block->forward);
        block->forward = NULL;
        mm_free_block(heap, index);
    }
}

int mm_mark(struct mm_heap *heap)
{
    uint64_t marked = heap->counters.marked;
    int error = begin(heap);
    for (uint32_t root = 1; error == 0 && root < heap->root_count; root++)
        if (heap->roots[root].kind == MM_ROOT)
            error = reach(heap, heap->roots[root].offset);
    if (error == 0)
        error = trace(heap);
    if (error != 0) {
        clear_marks(heap);
        heap->counters.marked = marked;
        return error;
    }
    clear_weak(heap);
    sweep(heap);
    drop_forwarding(heap);
    clear_marks(heap);
    return 0;
}
