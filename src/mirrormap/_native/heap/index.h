/* The values that containers own: one table of entries for the whole heap, and for each container chains of
 * them by hash, and one chain by age.
 *
 *     container: heads | 3 | 0 | 7 | ...     linear hashing: one more head at a time splits one chain
 *                        |       |
 *     entries     1   2  3   4   7 ...       dense but for a few holes: the last one moves into a hole, so
 *                                            that the table is as long as what it holds
 *
 * No operation copies more than one chain. An entry's number stands in the header of its value, which is how
 * moving a value finds it. */
#ifndef MIRRORMAP_INDEX_H
#define MIRRORMAP_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mm_key_kind { MM_HOLE, MM_KEY_OBJECT, MM_KEY_INT, MM_KEY_STR, MM_KEY_BYTES };
enum { MM_KEY_INLINE = 20, MM_MOST_OWNERS = 1 << 20 };

/* What a value is found by: an object of the owner's, or a short key itself. */
struct mm_key {
    unsigned char text[MM_KEY_INLINE]; /* or an int64_t, or a pointer */
    uint8_t kind, length;
};

struct mm_entry {
    uint64_t offset;                   /* of the value */
    unsigned char text[MM_KEY_INLINE];
    uint32_t hash;
    uint32_t chain;                    /* the next of the same head, or 0 */
    uint32_t previous, next;           /* neighbours by age, or among the holes */
    uint32_t owner : 20, kind : 4, length : 8;
};

/* Memory that grows and shrinks with what it holds; its bytes may move. */
struct mm_room {
    void *memory;
    size_t nbytes;
};

/* Somebody who goes through a container. */
struct mm_walker {
    struct mm_walker *next;
    uint32_t at;                       /* the entry that comes next, or 0 */
};

/* A container. */
struct mm_owner {
    uint32_t number;                   /* in the heap's list; 0: none */
    uint32_t heads, mask;              /* chains, and the least 2**n - 1 that is not below their last number */
    struct mm_room room;               /* of the heads */
    uint32_t count, objects;           /* entries, and those whose key is an object */
    uint32_t oldest, youngest;
    uint64_t nbytes;                   /* of data */
    uint64_t changes, turns;           /* entries that came, went, moved or got another value; and of their order */
    struct mm_walker *walkers;
};

struct mm_index {
    struct mm_room room;               /* of the entries */
    uint32_t used;                     /* entries that were ever used, number 0 and holes among them */
    uint32_t holes, hole;              /* how many, and the first */
    struct mm_owner **owners;
    uint32_t owner_count, owner_free;  /* of the list; a free place is 2n + 1, n the next free one */
};

struct mm_heap;

static inline struct mm_entry *mm_entries(const struct mm_index *index)
{
    return index->room.memory;
}

/* room.c: 0 or ENOMEM, and nothing has changed. What is new is not zero. */
int mm_room_resize(struct mm_room *room, size_t nbytes);
void mm_room_close(struct mm_room *room);

/* index.c */
int mm_owner_open(struct mm_heap *heap, struct mm_owner *owner);
/* It has no entries any more. */
void mm_owner_close(struct mm_heap *heap, struct mm_owner *owner);
/* The first entry of a chain; the others by `chain`. */
uint32_t mm_first_of(const struct mm_owner *owner, uint32_t hash);
/* After this the next mm_entry_add cannot fail: 0 or ENOMEM. */
int mm_entry_reserve(struct mm_heap *heap, struct mm_owner *owner);
/* A new entry, the youngest, for the value at an offset. */
uint32_t mm_entry_add(struct mm_heap *heap, struct mm_owner *owner, const struct mm_key *key, uint32_t hash, uint64_t offset);
/* Out of its container; the value is let go of. Others may change their numbers. */
void mm_entry_remove(struct mm_heap *heap, struct mm_owner *owner, uint32_t entry);
/* Another value for an entry; the old one is let go of. */
void mm_entry_replace(struct mm_heap *heap, struct mm_owner *owner, uint32_t entry, uint64_t offset);
/* It becomes the youngest. */
void mm_entry_touch(struct mm_heap *heap, struct mm_owner *owner, uint32_t entry);
void mm_index_close(struct mm_heap *heap);
/* Bytes of memory for entries, heads and containers' list. */
uint64_t mm_index_nbytes(const struct mm_heap *heap);

/* bitmaps.c, for OWNED blocks: 0 or an errno; NULL: no memory. */
int mm_bitmaps_open(struct mm_heap *heap);
void mm_bitmaps_close(struct mm_heap *heap);
uint64_t *mm_bitmap_take(struct mm_heap *heap, uint32_t index);   /* all zero */
void mm_bitmap_free(struct mm_heap *heap, uint32_t index);

#endif
