/* Entries of containers: found by hash, in an order, and close together in memory. */
#define _GNU_SOURCE
#include "heap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    LEAST_HEADS = 8,
    HEADS = 2,                         /* an entry: chains are short */
    FEW_HOLES = 8,                     /* one of so many entries may be a hole */
    CLOSED_AT_ONCE = 2,                /* holes filled for each entry removed, so that filling outruns removing */
};

static struct mm_entry *at(const struct mm_heap *heap, uint32_t entry)
{
    return &mm_entries(&heap->index)[entry];
}

/* --- containers --------------------------------------------------------------------------------- */

int mm_owner_open(struct mm_heap *heap, struct mm_owner *owner)
{
    struct mm_index *index = &heap->index;
    *owner = (struct mm_owner){.heads = LEAST_HEADS, .mask = LEAST_HEADS - 1};
    uint32_t number = index->owner_free;
    if (number == 0 && (index->owner_count & (index->owner_count - 1)) == 0) {
        size_t count = index->owner_count != 0 ? 2 * (size_t)index->owner_count : 2;
        struct mm_owner **longer = count <= MM_MOST_OWNERS ? realloc(index->owners, count * sizeof *longer) : NULL;
        if (longer == NULL)
            return ENOMEM;
        index->owners = longer;
        if (index->owner_count == 0)
            index->owners[index->owner_count++] = NULL;
    }
    if (mm_room_resize(&owner->room, LEAST_HEADS * sizeof(uint32_t)) != 0)
        return ENOMEM;
    memset(owner->room.memory, 0, LEAST_HEADS * sizeof(uint32_t));
    if (number != 0)
        index->owner_free = (uint32_t)((uintptr_t)index->owners[number] >> 1);
    else
        number = index->owner_count++;
    index->owners[number] = owner;
    owner->number = number;
    return 0;
}

void mm_owner_close(struct mm_heap *heap, struct mm_owner *owner)
{
    struct mm_index *index = &heap->index;
    index->owners[owner->number] = (struct mm_owner *)((uintptr_t)index->owner_free << 1 | 1);
    index->owner_free = owner->number;
    owner->number = 0;
    mm_room_close(&owner->room);
}

void mm_index_close(struct mm_heap *heap)
{
    mm_room_close(&heap->index.room);
    free(heap->index.owners);
}

uint64_t mm_index_nbytes(const struct mm_heap *heap)
{
    const struct mm_index *index = &heap->index;
    uint64_t nbytes = index->room.nbytes + index->owner_count * sizeof *index->owners;
    for (uint32_t number = 1; number < index->owner_count; number++)
        if (((uintptr_t)index->owners[number] & 1) == 0)
            nbytes += index->owners[number]->room.nbytes;
    return nbytes;
}

/* --- chains by hash -------------------------------------------------------------------------------- */

static uint32_t *heads(const struct mm_owner *owner)
{
    return owner->room.memory;
}

static uint32_t *head_of(const struct mm_owner *owner, uint32_t hash)
{
    uint32_t head = hash & owner->mask;
    return &heads(owner)[head < owner->heads ? head : head & owner->mask >> 1];
}

uint32_t mm_first_of(const struct mm_owner *owner, uint32_t hash)
{
    return *head_of(owner, hash);
}

/* The link that leads to an entry. */
static uint32_t *link_to(const struct mm_heap *heap, const struct mm_owner *owner, uint32_t entry)
{
    uint32_t *link = head_of(owner, at(heap, entry)->hash);
    while (*link != entry)
        link = &at(heap, *link)->chain;
    return link;
}

/* One more head takes its part of the chain that it splits. */
static void split(const struct mm_heap *heap, struct mm_owner *owner)
{
    uint32_t made = owner->heads++;
    if (made > owner->mask)
        owner->mask = 2 * owner->mask + 1;
    uint32_t *to = &heads(owner)[made], *link = &heads(owner)[made & owner->mask >> 1];
    *to = 0;
    while (*link != 0) {
        struct mm_entry *entry = at(heap, *link);
        if ((entry->hash & owner->mask) != made) {
            link = &entry->chain;
            continue;
        }
        *to = *link;
        to = &entry->chain;
        *link = entry->chain;
        *to = 0;
    }
}

/* The last head gives its chain back. */
static void merge(const struct mm_heap *heap, struct mm_owner *owner)
{
    uint32_t last = --owner->heads;
    uint32_t *link = &heads(owner)[last & owner->mask >> 1];
    while (*link != 0)
        link = &at(heap, *link)->chain;
    *link = heads(owner)[last];
    if (owner->heads == (owner->mask >> 1) + 1)
        owner->mask >>= 1;
}

static void merge_some(const struct mm_heap *heap, struct mm_owner *owner)
{
    for (int step = 0; step < 2 * HEADS && owner->heads > LEAST_HEADS && owner->heads > HEADS * owner->count; step++)
        merge(heap, owner);
    size_t needed = owner->heads * sizeof(uint32_t);
    if (owner->room.nbytes / 2 > needed)
        mm_room_resize(&owner->room, needed + needed / 4);   /* or it stays longer */
}

/* --- order ------------------------------------------------------------------------------------------- */

static void join(struct mm_heap *heap, struct mm_owner *owner, uint32_t entry)
{
    at(heap, entry)->previous = owner->youngest;
    at(heap, entry)->next = 0;
    if (owner->youngest != 0)
        at(heap, owner->youngest)->next = entry;
    else
        owner->oldest = entry;
    owner->youngest = entry;
    owner->turns++;
}

/* The neighbours of an entry get others for it: the older one `after`, the younger one `before`. */
static void bridge(struct mm_heap *heap, struct mm_owner *owner, const struct mm_entry *entry, uint32_t before, uint32_t after)
{
    if (entry->previous != 0)
        at(heap, entry->previous)->next = after;
    else
        owner->oldest = after;
    if (entry->next != 0)
        at(heap, entry->next)->previous = before;
    else
        owner->youngest = before;
}

void mm_entry_touch(struct mm_heap *heap, struct mm_owner *owner, uint32_t entry)
{
    if (owner->youngest == entry)
        return;
    const struct mm_entry *it = at(heap, entry);
    bridge(heap, owner, it, it->previous, it->next);
    join(heap, owner, entry);
}

/* --- entries ------------------------------------------------------------------------------------------- */

int mm_entry_reserve(struct mm_heap *heap, struct mm_owner *owner)
{
    struct mm_index *index = &heap->index;
    size_t used = index->used != 0 ? index->used : 1, needed = (used + 1) * sizeof(struct mm_entry);
    if (index->hole == 0 && needed > index->room.nbytes) {
        if (used >= MM_ENTRY || mm_room_resize(&index->room, needed + needed / 4 + 4 * sizeof(struct mm_entry)) != 0)
            return ENOMEM;
    }
    size_t wanted = (owner->heads + HEADS) * sizeof(uint32_t);
    if (wanted > owner->room.nbytes && mm_room_resize(&owner->room, wanted + wanted / 4) != 0)
        return ENOMEM;
    index->used = (uint32_t)used;
    return 0;
}

static uint32_t take_hole(struct mm_heap *heap, uint32_t hole)
{
    const struct mm_entry *it = at(heap, hole);
    if (it->previous != 0)
        at(heap, it->previous)->next = it->next;
    else
        heap->index.hole = it->next;
    if (it->next != 0)
        at(heap, it->next)->previous = it->previous;
    heap->index.holes--;
    return hole;
}

uint32_t mm_entry_add(struct mm_heap *heap, struct mm_owner *owner, const struct mm_key *key, uint32_t hash, uint64_t offset)
{
    struct mm_index *index = &heap->index;
    uint32_t entry = index->hole != 0 ? take_hole(heap, index->hole) : index->used++;
    struct mm_entry *it = at(heap, entry);
    *it = (struct mm_entry){.offset = offset, .hash = hash, .owner = owner->number & (MM_MOST_OWNERS - 1),
                            .kind = key->kind & 15u, .length = key->length};
    memcpy(it->text, key->text, sizeof it->text);
    owner->count++;
    owner->objects += key->kind == MM_KEY_OBJECT;
    owner->nbytes += mm_data_nbytes(mm_header_at(heap, offset));
    owner->changes++;
    for (int step = 0; step < HEADS && owner->heads < HEADS * (uint64_t)owner->count; step++)
        split(heap, owner);
    uint32_t *head = head_of(owner, hash);
    it->chain = *head;
    *head = entry;
    join(heap, owner, entry);
    mm_own(heap, offset, entry);
    return entry;
}

/* The last entry moves into a hole. */
static void relocate(struct mm_heap *heap, uint32_t from, uint32_t to)
{
    struct mm_owner *owner = heap->index.owners[at(heap, from)->owner];
    *link_to(heap, owner, from) = to;
    *at(heap, to) = *at(heap, from);
    bridge(heap, owner, at(heap, to), to, to);
    mm_own(heap, at(heap, to)->offset, to);
    owner->changes++;
    for (struct mm_walker *walker = owner->walkers; walker != NULL; walker = walker->next)
        if (walker->at == from)
            walker->at = to;
}

static void close_holes(struct mm_heap *heap)
{
    struct mm_index *index = &heap->index;
    for (int step = 0; step < CLOSED_AT_ONCE && index->holes > index->used / FEW_HOLES; step++) {
        uint32_t last = index->used - 1;
        if (at(heap, last)->kind == MM_HOLE)
            take_hole(heap, last);
        else
            relocate(heap, last, take_hole(heap, index->hole));
        index->used--;
    }
    size_t needed = index->used * sizeof(struct mm_entry);
    if (index->room.nbytes > 2 * needed)
        mm_room_resize(&index->room, needed + needed / 4 + 4 * sizeof(struct mm_entry));
}

/* In a full cache this one is the next to go: ask memory for what will be touched then. */
static void expect(const struct mm_heap *heap, const struct mm_owner *owner, const struct mm_entry *entry)
{
    __builtin_prefetch(heap->base + entry->offset);
    __builtin_prefetch(head_of(owner, entry->hash));
    __builtin_prefetch(at(heap, entry->next));
}

void mm_entry_remove(struct mm_heap *heap, struct mm_owner *owner, uint32_t entry)
{
    struct mm_index *index = &heap->index;
    struct mm_entry *it = at(heap, entry);
    *link_to(heap, owner, entry) = it->chain;
    bridge(heap, owner, it, it->previous, it->next);
    owner->count--;
    owner->objects -= it->kind == MM_KEY_OBJECT;
    owner->nbytes -= mm_data_nbytes(mm_header_at(heap, it->offset));
    owner->changes++;
    owner->turns++;
    mm_disown(heap, it->offset);
    *it = (struct mm_entry){.next = index->hole};
    if (index->hole != 0)
        at(heap, index->hole)->previous = entry;
    index->hole = entry;
    index->holes++;
    merge_some(heap, owner);
    close_holes(heap);
    if (owner->oldest != 0)
        expect(heap, owner, at(heap, owner->oldest));
}

void mm_entry_replace(struct mm_heap *heap, struct mm_owner *owner, uint32_t entry, uint64_t offset)
{
    uint64_t before = at(heap, entry)->offset;
    owner->nbytes += mm_data_nbytes(mm_header_at(heap, offset)) - mm_data_nbytes(mm_header_at(heap, before));
    at(heap, entry)->offset = offset;
    owner->changes++;
    mm_own(heap, offset, entry);
    mm_disown(heap, before);
}
