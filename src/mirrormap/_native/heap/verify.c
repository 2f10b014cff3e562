/* A second trace that shares nothing with marking: another order, bitmaps of its own, references read
 * without the barrier; then the books against what lies there, and against the kernel's. */
#define _GNU_SOURCE
#include "heap.h"

#include <stdlib.h>

struct walk {
    const struct mm_heap *heap;
    uint64_t **seen;                   /* a bitmap a block, made when it is first needed */
    uint64_t *queue;
    size_t head, tail, room;
    struct mm_census *census;
    uint64_t where;
};

static const char *const no_memory = "there is no memory to look";

/* What is wrong with an object, or NULL. */
static const char *check_object(const struct mm_heap *heap, uint64_t offset)
{
    if (offset == 0 || offset % MM_GRANULE != 0 || mm_block_at(offset) >= heap->count)
        return "a reference leads out of the heap";
    const struct mm_block *block = &heap->blocks[mm_block_at(offset)];
    const struct mm_object *header = mm_header_at(heap, offset);
    uint64_t start = offset % MM_BLOCK, nbytes = mm_object_nbytes(header);
    if (block->kind == MM_RUN) {
        if (start != 0 || nbytes > (uint64_t)block->span << MM_BLOCK_SHIFT || nbytes <= MM_LARGE)
            return "a large object is not as long as its run";
    } else {
        if (!mm_is_lane(block))
            return "an object lies where no objects are";
        if (!mm_bit(block->starts, mm_granule(offset)))
            return "a reference leads to no object";
        if (nbytes > MM_LARGE || start + nbytes > block->used)
            return "an object reaches beyond what is filled";
        if (!mm_is_shown(heap, mm_block_at(offset), mm_pages(heap, (uint32_t)start, (uint32_t)(start + nbytes))))
            return "the page of a live object was given back";
        if ((header->word != 0) != (block->kind == MM_OBJECTS) && block->kind != MM_OWNED)
            return "an object lies among others of another kind";
    }
    uint32_t root = header->root, entry = root & ~MM_ENTRY;
    if ((root & MM_ENTRY) != 0 && (entry >= heap->index.used || mm_entries(&heap->index)[entry].offset != offset))
        return "an object names an entry that is not its own";
    if ((root & MM_ENTRY) == 0 && (root >= heap->root_count || (root != 0 && heap->roots[root].offset != offset)))
        return "an object names a root that is not its own";
    return NULL;
}

/* Has it moved away, or is it about to? Before the colour turns, references may still lead there. */
static bool is_stale(const struct mm_heap *heap, uint64_t offset)
{
    const struct mm_block *block = &heap->blocks[mm_block_at(offset)];
    return (mm_forwarded(heap, offset) != offset && !block->slid)
           || (heap->phase == MM_MOVE && mm_is_leaving(block));
}

/* When marking has ended, everything alive is marked, until its block is swept. */
static bool is_missed(const struct mm_heap *heap, uint64_t offset)
{
    uint32_t index = mm_block_at(offset);
    const struct mm_block *block = &heap->blocks[index];
    if (block->kind == MM_OWNED || block->owned)
        return false;
    return (heap->phase == MM_WEAK || (heap->phase == MM_SWEEP && index >= heap->cursor)) && !mm_is_marked(heap, offset);
}

/* Where a reference leads, read without the barrier. */
static uint64_t found_at(const struct mm_heap *heap, uint64_t reference)
{
    uint64_t offset = reference & (((uint64_t)1 << heap->shift) - 1);
    return reference >> heap->shift << heap->shift == heap->good ? offset : mm_forwarded(heap, offset);
}

static const char *visit(struct walk *walk, uint64_t offset)
{
    const char *wrong = check_object(walk->heap, offset);
    walk->where = offset;
    if (wrong == NULL && is_missed(walk->heap, offset))
        wrong = "an object that can be reached was not marked";
    if (wrong != NULL)
        return wrong;
    uint64_t **map = &walk->seen[mm_block_at(offset)];
    if (*map == NULL && (*map = calloc(MM_BITMAP, sizeof **map)) == NULL)
        return no_memory;
    size_t granule = mm_granule(offset);
    if (mm_bit(*map, granule))
        return NULL;
    (*map)[granule / 64] |= (uint64_t)1 << (granule % 64);
    walk->census->objects++;
    walk->census->bytes += mm_object_nbytes(mm_header_at(walk->heap, offset));
    if (walk->tail == walk->room) {
        size_t room = walk->room != 0 ? 2 * walk->room : 256;
        uint64_t *longer = realloc(walk->queue, room * sizeof *longer);
        if (longer == NULL)
            return no_memory;
        walk->queue = longer;
        walk->room = room;
    }
    walk->queue[walk->tail++] = offset;
    return NULL;
}

/* First come, first served. */
static const char *follow(struct walk *walk)
{
    const struct mm_heap *heap = walk->heap;
    const char *wrong = NULL;
    while (wrong == NULL && walk->head < walk->tail) {
        struct mm_object *header = mm_header_at(heap, walk->queue[walk->head++]);
        for (uint32_t index = 0; wrong == NULL && index < mm_nrefs(header); index++) {
            uint64_t reference = atomic_load(&mm_slots(header)[index]);
            if (reference == 0)
                continue;
            walk->census->references++;
            uint64_t colour = reference >> heap->shift, offset = reference - (colour << heap->shift);
            walk->where = offset;
            if (colour > 2 || mm_block_at(offset) >= heap->count)
                wrong = "a reference leads out of the heap";
            else if (colour << heap->shift == heap->good && is_stale(heap, offset))
                wrong = "a reference of the good colour leads to where something was, or will not be";
            else
                wrong = visit(walk, found_at(heap, reference));
        }
    }
    return wrong;
}

static const char *check_roots(struct walk *walk)
{
    const struct mm_heap *heap = walk->heap;
    const char *wrong = NULL;
    uint64_t pinned = 0, exports = 0;
    for (uint32_t root = 1; wrong == NULL && root < heap->root_count; root++) {
        const struct mm_root *slot = &heap->roots[root];
        if (slot->kind == MM_UNUSED)
            continue;
        wrong = visit(walk, slot->offset);
        if (wrong == NULL && mm_header_at(heap, slot->offset)->root != root)
            wrong = "a root leads to an object that does not know it";
        if (slot->exports != 0 && wrong == NULL)
            pinned += mm_object_nbytes(mm_header_at(heap, slot->offset));
        exports += slot->exports;
    }
    for (uint32_t index = 1; wrong == NULL && index < heap->weak_count; index++)
        if (heap->weak[index] != 0 && heap->weak[index] % 2 == 0)
            wrong = check_object(heap, found_at(heap, heap->weak[index]));
    if (wrong == NULL && (pinned != heap->pinned || exports != heap->exports))
        wrong = "views were miscounted";
    return wrong;
}

/* A container's entries by hash and by age, and what it counts of them. */
static const char *check_owner(struct walk *walk, const struct mm_owner *owner)
{
    const struct mm_entry *entries = mm_entries(&walk->heap->index);
    uint64_t nbytes = 0;
    uint32_t count = 0, chained = 0, before = 0;
    for (uint32_t entry = owner->oldest; entry != 0; before = entry, entry = entries[entry].next) {
        const struct mm_entry *it = &entries[entry];
        const char *wrong = visit(walk, it->offset);
        if (wrong != NULL)
            return wrong;
        const struct mm_object *header = mm_header_at(walk->heap, it->offset);
        if (header->root != (entry | MM_ENTRY) && ((header->root & MM_ENTRY) != 0 || walk->heap->roots[header->root].entry != entry))
            return "a value does not know its entry";
        if (it->kind == MM_HOLE || it->owner != owner->number || it->previous != before || count++ > walk->heap->index.used)
            return "the entries of a container are in no order";
        uint32_t link = mm_first_of(owner, it->hash);
        while (link != 0 && link != entry)
            link = entries[link].chain;
        chained += link != 0;
        nbytes += mm_data_nbytes(header);
    }
    if (before != owner->youngest || count != owner->count || chained != count || nbytes != owner->nbytes)
        return "the entries of a container were miscounted";
    return NULL;
}

static const char *check_containers(struct walk *walk)
{
    const struct mm_index *index = &walk->heap->index;
    const char *wrong = NULL;
    uint32_t count = 0;
    for (uint32_t number = 1; wrong == NULL && number < index->owner_count; number++) {
        if (((uintptr_t)index->owners[number] & 1) != 0)
            continue;
        wrong = check_owner(walk, index->owners[number]);
        count += index->owners[number]->count;
    }
    if (wrong == NULL && index->used != 0 && count + index->holes + 1 != index->used)
        wrong = "entries were lost";
    return wrong;
}

/* One block's own books. */
static const char *check_block(const struct mm_heap *heap, const struct mm_block *block, const uint64_t *seen)
{
    uint64_t live = 0, marked = 0;
    if (block->kind == MM_GONE)
        return block->forward != NULL && block->live == 0 ? NULL : "an evacuated block has no forwarding table";
    if (!mm_is_lane(block))
        return NULL;
    for (size_t granule = mm_next_start(block->starts, 0); granule < MM_BLOCK / MM_GRANULE;
         granule = mm_next_start(block->starts, granule + 1)) {
        uint64_t offset = ((uint64_t)(block - heap->blocks) << MM_BLOCK_SHIFT) + granule * MM_GRANULE;
        live += mm_object_nbytes(mm_header_at(heap, offset));
        if (block->marks != NULL && mm_bit(block->marks, granule))
            marked += mm_object_nbytes(mm_header_at(heap, offset));
        if (block->kind == MM_OWNED && (seen == NULL || !mm_bit(seen, granule)))
            return "a value belongs to no container";
    }
    if (live != block->live)
        return "a block's live bytes were miscounted";
    if (!mm_is_marking(heap) && block->marked != marked)
        return "a block's marked bytes were miscounted";
    if (block->linked == 0 && !block->open && block->pins == 0)
        return "a block is in no bucket";
    return NULL;
}

static const char *check_books(struct walk *walk)
{
    const struct mm_heap *heap = walk->heap;
    const char *wrong = NULL;
    uint64_t committed = 0, live = 0, lanes = 0, held[MM_LANES] = {0};
    for (uint32_t index = 0; wrong == NULL && index < heap->count; index++) {
        const struct mm_block *block = &heap->blocks[index];
        walk->where = (uint64_t)index << MM_BLOCK_SHIFT;
        committed += mm_block_held(heap, block);
        if (!mm_bit(heap->taken, index) && (block->held != 0 || block->kind != MM_FREE))
            wrong = "a block that counts as free is not";
        else
            wrong = check_block(heap, block, walk->seen[index]);
        if (mm_is_lane(block)) {
            held[block->kind - MM_OWNED] += mm_block_held(heap, block);
            live += block->live;
        }
    }
    for (int lane = 0; wrong == NULL && lane < MM_LANES; lane++) {
        lanes += heap->lanes[lane].live;
        if (held[lane] != heap->lanes[lane].held)
            wrong = "the pages of a lane were miscounted";
    }
    if (wrong == NULL && (lanes != live || committed != heap->committed))
        wrong = "live or committed bytes were miscounted";
    struct mm_file file;
    if (wrong == NULL && mm_sys_stat(heap->fd, &file) == 0 && (uint64_t)file.allocated != committed)
        wrong = "the kernel holds other pages than were counted";
    return wrong;
}

const char *mm_verify(struct mm_heap *heap, struct mm_census *census, uint64_t *where)
{
    *census = (struct mm_census){0};
    struct walk walk = {.heap = heap, .seen = calloc(heap->count, sizeof *walk.seen), .census = census};
    const char *wrong = walk.seen == NULL ? no_memory : check_roots(&walk);
    if (wrong == NULL)
        wrong = check_containers(&walk);
    if (wrong == NULL)
        wrong = follow(&walk);
    if (wrong == NULL)
        wrong = check_books(&walk);
    if (wrong == NULL)
        wrong = mm_mesh_check(heap, &walk.where);
    if (wrong == NULL)
        wrong = mm_holes_check(heap, &walk.where);
    for (uint32_t index = 0; walk.seen != NULL && index < heap->count; index++)
        free(walk.seen[index]);
    free(walk.seen);
    free(walk.queue);
    *where = walk.where;
    return wrong;
}
