/* Gaps between the values that containers own, by their length: segregated fits, whose lists lie in the gaps themselves
 * (two-level, as in Masmano et al., "TLSF: a new dynamic memory allocator for real-time systems", 2004).
 *
 * A gap is a stretch of granules in which nothing lives, of pages that the kernel holds, as long as it can be: where the
 * values of a block are tells all there is to know of its gaps, so that none of them has to be remembered. What a block
 * offers is taken back as a whole before anything else happens to it. */
#define _GNU_SOURCE
#include "heap.h"

enum { ALL = MM_BLOCK / MM_GRANULE, PROBES = 8, LENGTH_BITS = 16 };

/* What lies at the beginning of a gap: one granule. */
struct gap {
    uint64_t next;                     /* an offset, or 0 */
    uint64_t rest;                     /* the gap before in the list, an offset, << 12 | length in granules */
};
_Static_assert(sizeof(struct gap) == MM_GRANULE, "the least gap holds its own head");

static struct gap *gap_at(const struct mm_heap *heap, uint64_t offset)
{
    return (struct gap *)(void *)(heap->base + offset);
}

static size_t length_of(const struct gap *gap)
{
    return gap->rest & ((1u << LENGTH_BITS) - 1);
}

static uint64_t previous_of(const struct gap *gap)
{
    return gap->rest >> LENGTH_BITS << 4;
}

static void set_rest(struct gap *gap, uint64_t previous, size_t length)
{
    gap->rest = previous >> 4 << LENGTH_BITS | length;
}

static unsigned class_of(size_t length)
{
    if (length < MM_HOLE_STEPS)
        return (unsigned)length;
    unsigned doubling = 63 - (unsigned)__builtin_clzll(length) - 5;
    return MM_HOLE_STEPS + doubling * MM_HOLE_STEPS + ((unsigned)(length >> doubling) & (MM_HOLE_STEPS - 1));
}

static void insert(struct mm_heap *heap, uint64_t offset, size_t length)
{
    unsigned class = class_of(length);
    struct gap *gap = gap_at(heap, offset);
    gap->next = heap->holes.first[class];
    set_rest(gap, 0, length);
    if (gap->next != 0)
        set_rest(gap_at(heap, gap->next), offset, length_of(gap_at(heap, gap->next)));
    heap->holes.first[class] = offset;
    heap->holes.any[class / 64] |= (uint64_t)1 << (class % 64);
}

static void take_out(struct mm_heap *heap, uint64_t offset, size_t length)
{
    unsigned class = class_of(length);
    const struct gap *gap = gap_at(heap, offset);
    uint64_t previous = previous_of(gap);
    if (gap->next != 0)
        set_rest(gap_at(heap, gap->next), previous, length_of(gap_at(heap, gap->next)));
    if (previous != 0)
        gap_at(heap, previous)->next = gap->next;
    else
        heap->holes.first[class] = gap->next;
    if (heap->holes.first[class] == 0)
        heap->holes.any[class / 64] &= ~((uint64_t)1 << (class % 64));
}

/* Stretches of pages that the kernel holds in granules [from, to) of a block: true: there is one, [*from, *end). */
static bool next_stretch(const struct mm_heap *heap, const struct mm_block *block, size_t *from, size_t to, size_t *end)
{
    size_t page = ((size_t)1 << heap->page_shift) / MM_GRANULE;
    while (*from < to) {
        uint64_t held = block->held >> (*from / page);
        if ((held & 1) != 0) {
            size_t count = ~held != 0 ? (size_t)__builtin_ctzll(~held) : 64;
            *end = (*from / page + count) * page;
            *end = *end < to ? *end : to;
            return true;
        }
        *from = (*from / page + 1) * page;
    }
    return false;
}

static void each_in(struct mm_heap *heap, uint32_t index, size_t from, size_t to,
                    void (*act)(struct mm_heap *heap, uint64_t offset, size_t length))
{
    for (size_t end; next_stretch(heap, &heap->blocks[index], &from, to, &end); from = end)
        act(heap, ((uint64_t)index << MM_BLOCK_SHIFT) + from * MM_GRANULE, end - from);
}

static size_t granules_at(const struct mm_heap *heap, uint32_t index, size_t granule)
{
    uint64_t offset = ((uint64_t)index << MM_BLOCK_SHIFT) + granule * MM_GRANULE;
    return mm_object_nbytes(mm_header_at(heap, offset)) / MM_GRANULE;
}

static void each_of(struct mm_heap *heap, uint32_t index, void (*act)(struct mm_heap *heap, uint64_t offset, size_t length))
{
    size_t behind = 0;
    const uint64_t *starts = heap->blocks[index].starts;
    for (size_t granule = mm_next_start(starts, 0); granule < ALL; granule = mm_next_start(starts, behind)) {
        each_in(heap, index, behind, granule, act);
        behind = granule + granules_at(heap, index, granule);
    }
    each_in(heap, index, behind, ALL, act);
}

void mm_holes_offer(struct mm_heap *heap, uint32_t index)
{
    struct mm_block *block = &heap->blocks[index];
    if (block->kind != MM_OWNED || block->open || block->meshed || block->pins != 0 || block->offered)
        return;
    block->offered = true;
    each_of(heap, index, insert);
}

void mm_holes_withdraw(struct mm_heap *heap, uint32_t index)
{
    if (!heap->blocks[index].offered)
        return;
    each_of(heap, index, take_out);
    heap->blocks[index].offered = false;
}

/* The end of the last value before a granule. */
static size_t end_before(const struct mm_heap *heap, uint32_t index, size_t granule)
{
    size_t found = mm_last_start(heap->blocks[index].starts, granule);
    return found == ALL ? 0 : found + granules_at(heap, index, found);
}

void mm_holes_freed(struct mm_heap *heap, uint64_t offset, uint64_t nbytes)
{
    uint32_t index = mm_block_at(offset);
    struct mm_block *block = &heap->blocks[index];
    size_t granule = mm_granule(offset), end = granule + nbytes / MM_GRANULE;
    uint64_t bit = (uint64_t)1 << (granule % 64);
    if (block->offered) {
        size_t before = end_before(heap, index, granule), behind = mm_next_start(block->starts, end);
        each_in(heap, index, before, granule, take_out);
        each_in(heap, index, end, behind, take_out);
        each_in(heap, index, before, behind, insert);
    }
    block->starts[granule / 64] &= ~bit;
}

/* A gap of so many granules, or some more; 0: there is none. */
static uint64_t find(const struct mm_heap *heap, size_t length)
{
    const struct mm_holes *holes = &heap->holes;
    unsigned class = class_of(length), probes = PROBES;
    for (uint64_t offset = holes->first[class]; offset != 0 && probes-- > 0; offset = gap_at(heap, offset)->next)
        if (length_of(gap_at(heap, offset)) >= length)
            return offset;
    for (unsigned word = ++class / 64; word < MM_HOLE_WORDS; word++) {
        uint64_t bits = holes->any[word];
        if (word == class / 64)
            bits &= ~(((uint64_t)1 << (class % 64)) - 1);
        if (bits != 0)
            return holes->first[word * 64 + (unsigned)__builtin_ctzll(bits)];
    }
    return 0;
}

uint64_t mm_holes_take(struct mm_heap *heap, uint64_t nbytes)
{
    size_t length = nbytes / MM_GRANULE;
    uint64_t offset;
    /* beside views nothing new goes: their blocks are to become empty, or meshed */
    while ((offset = find(heap, length)) != 0 && heap->blocks[mm_block_at(offset)].pins != 0)
        mm_holes_withdraw(heap, mm_block_at(offset));
    if (offset == 0)
        return 0;
    struct mm_block *block = &heap->blocks[mm_block_at(offset)];
    size_t granule = mm_granule(offset), all = length_of(gap_at(heap, offset));
    take_out(heap, offset, all);
    if (all > length)
        insert(heap, offset + nbytes, all - length);
    block->starts[granule / 64] |= (uint64_t)1 << (granule % 64);
    block->live += (uint32_t)nbytes;
    heap->lanes[0].live += nbytes;
    uint32_t end = (uint32_t)((granule + length) * MM_GRANULE);
    block->used = end > block->used ? end : block->used;
    block->seen = false;               /* by meshing: more lives there now */
    mm_relink(heap, mm_block_at(offset));
    return offset;
}

/* --- for verify.c --------------------------------------------------------------------------------- */

struct tally { uint64_t nbytes, count; };

static struct tally expected(const struct mm_heap *heap, uint32_t index)
{
    const struct mm_block *block = &heap->blocks[index];
    struct tally found = {0};
    for (size_t from = 0, to, end; from < ALL; from = to < ALL ? to + granules_at(heap, index, to) : ALL) {
        to = mm_next_start(block->starts, from);
        for (size_t at = from; next_stretch(heap, block, &at, to, &end); at = end) {
            found.nbytes += (end - at) * MM_GRANULE;
            found.count++;
        }
    }
    return found;
}

const char *mm_holes_check(const struct mm_heap *heap, uint64_t *where)
{
    struct tally listed = {0}, all = {0};
    for (uint32_t index = 1; index < heap->count; index = mm_next_block(heap, index)) {
        const struct mm_block *block = &heap->blocks[index];
        *where = (uint64_t)index << MM_BLOCK_SHIFT;
        if (block->offered && (block->kind != MM_OWNED || block->open || block->meshed))
            return "a block offers gaps that may not be filled";
        struct tally here = block->offered ? expected(heap, index) : (struct tally){0};
        all.nbytes += here.nbytes;
        all.count += here.count;
    }
    for (unsigned class = 0; class < MM_HOLE_CLASSES; class++) {
        if ((heap->holes.first[class] != 0) != ((heap->holes.any[class / 64] >> (class % 64) & 1) != 0))
            return "a class of gaps is not what its bit says";
        for (uint64_t offset = heap->holes.first[class], before = 0; offset != 0; before = offset, offset = gap_at(heap, offset)->next) {
            *where = offset;
            const struct gap *gap = gap_at(heap, offset);
            if (!heap->blocks[mm_block_at(offset)].offered || previous_of(gap) != before || class_of(length_of(gap)) != class
                || ++listed.count > all.count)
                return "a list of gaps is in no order";
            listed.nbytes += length_of(gap) * MM_GRANULE;
        }
    }
    bool same = listed.nbytes == all.nbytes && listed.count == all.count;
    return same ? NULL : "gaps were miscounted";
}
