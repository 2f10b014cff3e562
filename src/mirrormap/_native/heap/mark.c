/* Which objects can be reached: a bit each, with a stack of those that nobody has looked into. */
#define _GNU_SOURCE
#include "heap.h"

#include <stdlib.h>
#include <string.h>

enum { PIECE = 256, PER_OBJECT_NS = 12, PER_REFERENCE_NS = 6 };

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

size_t mm_last_start(const uint64_t *starts, size_t granule)
{
    uint64_t below = ((uint64_t)1 << (granule % 64)) - 1;
    for (size_t word = granule / 64 + 1; word-- > 0; below = ~(uint64_t)0)
        if ((starts[word] & below) != 0)
            return word * 64 + 63 - (size_t)__builtin_clzll(starts[word] & below);
    return MM_BLOCK / MM_GRANULE;
}

uint32_t mm_next_block(const struct mm_heap *heap, uint32_t index)
{
    for (index++; index < heap->count; index = (index / 64 + 1) * 64) {
        uint64_t bits = heap->taken[index / 64] & ~(((uint64_t)1 << (index % 64)) - 1);
        if (bits != 0)
            return index / 64 * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return heap->count;
}

/* --- the stack --------------------------------------------------------------------------------- */

static bool push(struct mm_marking *marking, uint64_t reference)
{
    struct mm_chunk *top = marking->top;
    if (top->count == MM_CHUNK) {
        struct mm_chunk *more = marking->spare != NULL ? marking->spare : malloc(sizeof *more);
        if (more == NULL)
            return false;
        marking->spare = NULL;
        more->below = top;
        more->count = 0;
        marking->top = top = more;
    }
    top->references[top->count++] = reference;
    return true;
}

/* One off the stack, or 0. */
static uint64_t pop(struct mm_marking *marking)
{
    struct mm_chunk *top = marking->top;
    if (top->count == 0 && top->below != NULL) {
        marking->top = top->below;
        free(marking->spare);
        marking->spare = top;
        top = marking->top;
    }
    return top->count != 0 ? top->references[--top->count] : 0;
}

/* The next object to look into, or 0: one that was asked of memory a while ago. */
static uint64_t next(struct mm_heap *heap)
{
    struct mm_marking *marking = &heap->marking;
    uint64_t reference;
    while (marking->count < MM_AHEAD_OF && (reference = pop(marking)) != 0) {
        __builtin_prefetch(mm_at(heap, reference));
        marking->ahead[(marking->first + marking->count++) % MM_AHEAD_OF] = reference;
    }
    if (marking->count == 0)
        return 0;
    reference = marking->ahead[marking->first];
    marking->first = (marking->first + 1) % MM_AHEAD_OF;
    marking->count--;
    return reference;
}

/* --- marking ------------------------------------------------------------------------------------- */

static bool is_traced(const struct mm_block *block)
{
    return block->kind == MM_BYTES || block->kind == MM_OBJECTS;
}

/* The colour does not turn before the stack is empty: what lies there stays good. */
static void shade(struct mm_heap *heap, uint64_t reference)
{
    uint64_t offset = mm_offset(heap, reference);
    struct mm_block *block = &heap->blocks[mm_block_at(offset)];
    if (block->kind == MM_RUN) {
        if (block->marked != 0)
            return;
        block->marked = 1;
    } else {
        size_t granule = mm_granule(offset);
        uint64_t bit = (uint64_t)1 << (granule % 64), *word = &block->marks[granule / 64];
        if ((*word & bit) != 0)
            return;
        *word |= bit;
    }
    if (!push(&heap->marking, reference))
        block->late = heap->marking.late = true;
}

void mm_shade(struct mm_heap *heap, uint64_t offset)
{
    shade(heap, offset | heap->good);
}

bool mm_is_marked(const struct mm_heap *heap, uint64_t offset)
{
    const struct mm_block *block = &heap->blocks[mm_block_at(offset)];
    return block->kind == MM_RUN ? block->marked != 0 : mm_bit(block->marks, mm_granule(offset));
}

static void look_into(struct mm_heap *heap, struct mm_object *header, uint32_t from, uint32_t to)
{
    _Atomic uint64_t *slots = mm_slots(header);
    for (uint32_t index = from; index < to; index++) {
        uint64_t reference = mm_load_reference(heap, &slots[index]);
        if (reference != 0)
            shade(heap, reference);
    }
}

/* Look into what was marked without being remembered, a block of it: its stack is empty now. */
static bool look_again(struct mm_heap *heap)
{
    uint32_t index = 0;
    do {
        index = mm_next_block(heap, index);
    } while (index < heap->count && !heap->blocks[index].late);
    heap->marking.late = index < heap->count;
    if (index == heap->count)
        return false;
    struct mm_block *block = &heap->blocks[index];
    uint64_t first = (uint64_t)index << MM_BLOCK_SHIFT;
    block->late = false;
    if (block->kind == MM_RUN) {
        look_into(heap, mm_header_at(heap, first), 0, mm_nrefs(mm_header_at(heap, first)));
        return true;
    }
    block->marked = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t granule = mm_next_start(block->marks, 0); granule < MM_BLOCK / MM_GRANULE;
             granule = mm_next_start(block->marks, granule + 1)) {
            struct mm_object *header = mm_header_at(heap, first + granule * MM_GRANULE);
            if (pass == 0)
                block->marked += (uint32_t)mm_object_nbytes(header);
            else
                look_into(heap, header, 0, mm_nrefs(header));
        }
    }
    return true;
}

bool mm_mark_roots(struct mm_heap *heap, struct mm_budget *budget)
{
    while (heap->cursor < heap->marking.limit) {
        const struct mm_root *root = &heap->roots[heap->cursor++];
        if (root->kind == MM_ROOT)
            mm_shade(heap, root->offset);
        if (mm_spend(budget, PER_REFERENCE_NS))
            return false;
    }
    return true;
}

/* Look into one object, or a piece of it. Returns how many references were looked at. */
static uint32_t trace_one(struct mm_heap *heap, uint64_t reference, uint32_t from)
{
    struct mm_block *block = &heap->blocks[mm_block_at(mm_offset(heap, reference))];
    struct mm_object *header = mm_at(heap, reference);
    uint32_t nrefs = mm_nrefs(header), to = nrefs - from > PIECE ? from + PIECE : nrefs;
    if (from == 0) {
        heap->counters.marked++;
        if (block->kind != MM_RUN)
            block->marked += (uint32_t)mm_object_nbytes(header);
    }
    heap->marking.wide = to < nrefs ? reference : 0;
    heap->marking.at = to;
    look_into(heap, header, from, to);
    return to - from;
}

bool mm_trace(struct mm_heap *heap, struct mm_budget *budget)
{
    struct mm_marking *marking = &heap->marking;
    for (;;) {
        uint64_t reference = marking->wide;
        uint32_t from = reference != 0 ? marking->at : 0;
        if (reference == 0)
            reference = next(heap);
        if (reference != 0) {
            if (mm_spend(budget, PER_OBJECT_NS + PER_REFERENCE_NS * (uint64_t)trace_one(heap, reference, from)))
                return false;
        } else if (!marking->late || !look_again(heap)) {
            return true;
        } else if (mm_spend(budget, MM_BLOCK / MM_GRANULE * PER_OBJECT_NS)) {
            return false;
        }
    }
}

bool mm_clear_weak(struct mm_heap *heap, struct mm_budget *budget)
{
    while (heap->cursor < heap->weak_count) {
        _Atomic uint64_t *weak = &heap->weak[heap->cursor++];
        if (*weak != 0 && *weak % 2 == 0 && !mm_is_marked(heap, mm_load(heap, weak)))
            *weak = 0;
        if (mm_spend(budget, PER_OBJECT_NS))
            return false;
    }
    return true;
}

/* --- what was not marked -------------------------------------------------------------------------- */

static void sweep_block(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    uint64_t *marks = block->marks;
    block->marks = block->starts;
    block->starts = marks;
    memset(block->marks, 0, MM_BITMAP * sizeof *marks);
    heap->pacing.found += block->live - block->marked;
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

static void sweep_run(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    if (!block->owned && block->marked == 0) {
        uint64_t nbytes = mm_object_nbytes(mm_header_at(heap, (uint64_t)index << MM_BLOCK_SHIFT));
        heap->pacing.found += nbytes;
        heap->runs_live -= nbytes;
        mm_free_run(heap, index);
    } else {
        block->marked = 0;
    }
}

bool mm_sweep(struct mm_heap *heap, struct mm_budget *budget)
{
    while (heap->cursor < heap->count) {
        uint32_t index = heap->cursor;
        struct mm_block *block = &heap->blocks[index];
        /* every reference to a live object has been mended: nobody asks any more where things went */
        free(block->forward);
        block->forward = NULL;
        block->slid = false;
        if (is_traced(block))
            sweep_block(heap, index);
        else if (block->kind == MM_RUN)
            sweep_run(heap, index);
        else if (block->kind == MM_GONE)
            mm_free_block(heap, index);
        heap->cursor = mm_next_block(heap, index);
        if (mm_spend(budget, 1000))
            return false;
    }
    return true;
}
