/* The heap: objects in the pages of one sparse object in memory, found by offset, moved when that
 * gives pages back. No Python here. One thread at a time: the caller holds the interpreter's lock.
 *
 * The offset space is cut into blocks. A block is
 *
 *     FREE -> OWNED | BYTES | OBJECTS   filled from the front; OWNED: then where gaps are, see holes.h
 *          -> RUN, RUN_BODY ...         one large value that never moves
 *     RUN -> DYING -> FREE              its pages go back slice by slice
 *     BYTES | OBJECTS -> leaving -> slid, where there is no room
 *                     -> leaving -> GONE -> FREE
 *                                       evacuated: no pages, but a table that says where things went,
 *                                       until the next marking has mended every reference
 *     any that shared its frames -> HOST -> FREE
 *                                       nothing lies there, but pages of others show its frames
 *
 * A reference inside the heap is `offset | colour << shift`; 0 is none. A reference of the good colour
 * is right as it stands: none leads into a block that is leaving, or to where something was. Another
 * may, and is looked up, and mended if its object is where it will be.
 *
 * Work by offset is done in the plain view of the pages, which is where exports lie too. There may be
 * three more, one for each colour, at the addresses that references of that colour are counted from.
 *
 * A collection is a row of phases, cut into steps of any length; between two steps anybody may do
 * anything. What can be reached when ROOTS begins, and all that is made later, is marked when TRACE
 * ends: whoever takes a root away or overwrites a reference marks what it led to. */
#ifndef MIRRORMAP_HEAP_H
#define MIRRORMAP_HEAP_H

#include "../sys.h"
#include "cycle.h"
#include "holes.h"
#include "index.h"
#include "mesh.h"

enum {
    MM_GRANULE = 16,                   /* objects begin at multiples of it */
    MM_BLOCK_SHIFT = 18,
    MM_BLOCK = 1 << MM_BLOCK_SHIFT,
    MM_BITMAP = MM_BLOCK / MM_GRANULE / 64,  /* words of a bitmap with one bit a granule */
    MM_LARGE = 1 << 16,                /* what takes more has a run of its own */
    MM_AHEAD = 1 << 16,                /* bytes committed at once in a block that is being filled */
    MM_POOL = 256,                     /* free blocks may keep pages, one of so many that are held */
    MM_SLICE = 1 << 20,                /* bytes of a run given back in one call */
    MM_FULLEST = 64,                   /* blocks by how many 64ths of what they hold is alive */
    MM_LOOSE,                          /* and meshed ones without pins, which go first */
    MM_BUCKETS,
    MM_FULL = 62,                      /* a block from this bucket on is not worth moving */
};

enum mm_kind { MM_FREE, MM_OWNED, MM_BYTES, MM_OBJECTS, MM_RUN, MM_RUN_BODY, MM_GONE, MM_DYING, MM_EDGE, MM_HOST };
enum { MM_COLOURS = 3, MM_VIEWS = 1 + MM_COLOURS };
enum { MM_LANES = 3, MM_OPEN = 4 };    /* OWNED, BYTES, OBJECTS: lane = kind - MM_OWNED */

/* What stands before an object's bytes:  header | data | shape, 8 bytes each | references, 8 each
 *
 * A record has the first two words only, and its data begin where the third would be: `word` is then
 *   MM_RECORD | number of its type << 20 | words of 8 bytes of data << 10 | references */
struct mm_object {
    uint32_t root;                     /* its root slot, or 0; MM_ENTRY | number of a container's entry */
    uint32_t word;                     /* references, below MM_RECORD; or what a record is */
    uint32_t low;                      /* bytes of data, the low 32 bits */
    uint16_t dtype;                    /* 0: plain bytes; else the owner's number for a dtype */
    uint8_t ndim;
    uint8_t high;                      /* and the high 8 */
};

enum { MM_RECORD_HEADER = 8, MM_MOST_TYPES = 1 << 11, MM_MOST_WORDS = (1 << 10) - 1 };
#define MM_RECORD 0x80000000u
#define MM_ENTRY 0x80000000u

/* What an object is made of. */
struct mm_shape {
    uint64_t nbytes;
    uint32_t word;                     /* as in the header */
    uint16_t dtype;
    uint8_t ndim;
};

/* Where the objects of a block went that is leaving, GONE or slid, or had to stay half-way: `to` in the order of their start bits. */
struct mm_forward {
    uint64_t starts[MM_BITMAP];
    uint16_t before[MM_BITMAP];        /* start bits in the words before this one */
    uint32_t moved;
    uint64_t to[];                     /* 0: still where it was */
};

struct mm_block {
    uint64_t *starts, *marks;          /* a bit a granule where an object begins, and where a marked one does */
    struct mm_forward *forward;        /* or NULL */
    uint64_t held;                     /* a bit a page the kernel holds for it */
    uint32_t used;                     /* bytes filled */
    uint32_t live;                     /* bytes of objects not known to be dead; RUN: unused */
    uint32_t marked;                   /* bytes marked so far; RUN: 1 */
    uint32_t pins;                     /* pinned objects in it */
    uint32_t span;                     /* RUN: its blocks; leaving: bytes that its going will free */
    uint32_t previous, next;           /* neighbours in a bucket, the pool, or among those leaving or dying */
    uint8_t kind;
    uint8_t linked;                    /* its bucket + 1, MM_LEAVING, or 0 */
    bool open;                         /* being filled */
    bool owned : 1;                    /* RUN: by a container */
    bool late : 1;                     /* something in it was marked while there was no memory to remember it */
    bool slid : 1;                     /* `forward` leads to places in this very block */
    bool meshed : 1;                   /* it has a table of what its pages show */
    bool seen : 1;                     /* by the meshing under way, or one before */
    bool written : 1;                  /* an object in it may have a view for writing */
    bool offered : 1;                  /* OWNED: its gaps are to be had */
};
enum { MM_LEAVING = MM_BUCKETS + 1 };

struct mm_lane {
    uint32_t open[MM_OPEN];            /* filled by allocation, and by evacuation, and with what little fits at
                                          the end of one that was; 0: none */
    uint32_t buckets[MM_BUCKETS];      /* closed blocks without pins */
    uint64_t held, live;               /* bytes */
    uint64_t promised;                 /* of what is held, freed when those that are leaving have gone */
};

enum mm_root_kind { MM_UNUSED, MM_ROOT, MM_VALUE };

/* A way in from outside. A ROOT lives while it has holders. A VALUE of a container has one while somebody
 * looks at it; it dies when nobody does any more, if its container has let go of it by then. */
struct mm_root {
    uint64_t offset;                   /* UNUSED: the next free one */
    uint32_t holders;
    uint32_t exports;
    uint32_t kind;
    uint32_t entry;                    /* VALUE: its container's, or 0 */
    uint32_t writers;                  /* of the exports */
};

struct mm_heap {
    unsigned char *base;               /* of the plain view */
    unsigned char *views[MM_VIEWS];    /* all there are: the plain one, and one for each colour, 1 << shift apart */
    unsigned view_count;               /* 1 or MM_VIEWS */
    unsigned char *followed;           /* where references lead to: what is `kept` of one, from here on */
    uint64_t kept;
    bool guard;                        /* of the colours' views only that of the good one may be touched */
    int fd;
    unsigned shift, page_shift;
    uint64_t good;                     /* the good colour, in place */
    uint64_t offsets;                  /* the bits of a reference that are its offset */
    uint64_t limit, committed;         /* bytes */
    uint64_t allowed;                  /* committed bytes up to which nothing outside need be asked */
    unsigned target;                   /* held per live bytes, in thousandths */
    struct mm_block *blocks;
    uint32_t count, hint;              /* blocks; none below `hint` is free */
    unsigned char *bitmaps;            /* `starts` of OWNED blocks, and how many bytes are accessible */
    size_t bitmaps_nbytes;
    uint64_t *taken;                   /* a bit a block that is not FREE, or in the pool */
    uint32_t pool, pooled;             /* free blocks that hold pages */
    struct mm_lane lanes[MM_LANES];
    struct mm_holes holes;
    uint64_t runs_live;                /* bytes of objects in runs */
    uint64_t pinned;                   /* bytes that live exports hold in place */
    uint32_t exports;
    struct mm_root *roots;
    uint32_t root_count, root_free;
    struct mm_index index;             /* values of containers */
    _Atomic uint64_t *weak;            /* references to what is pointed at; 0: dead; odd: a free slot */
    uint32_t weak_count, weak_free;
    uint32_t leaving, leaving_last;    /* blocks on their way out, the emptiest first */
    uint32_t dying;                    /* runs */
    enum mm_phase phase;
    uint32_t cursor;                   /* how far the phase has come */
    struct mm_marking marking;
    struct mm_meshing meshing;
    struct mm_pacing pacing;
    struct mm_counters counters;
    struct mm_pauses pauses[MM_CAUSES];
};

static inline uint32_t mm_block_at(uint64_t offset)
{
    return (uint32_t)(offset >> MM_BLOCK_SHIFT);
}

static inline struct mm_object *mm_header_at(const struct mm_heap *heap, uint64_t offset)
{
    return (struct mm_object *)(void *)(heap->base + offset);
}

static inline bool mm_is_record(const struct mm_object *header)
{
    return (header->word & MM_RECORD) != 0;
}

/* The number of a record's type. */
static inline uint32_t mm_type(const struct mm_object *header)
{
    return header->word >> 20 & (MM_MOST_TYPES - 1);
}

static inline uint32_t mm_nrefs(const struct mm_object *header)
{
    return mm_is_record(header) ? header->word & MM_MOST_WORDS : header->word;
}

static inline uint64_t mm_data_nbytes(const struct mm_object *header)
{
    if (mm_is_record(header))
        return 8u * (header->word >> 10 & MM_MOST_WORDS);
    return header->low | (uint64_t)header->high << 32;
}

static inline unsigned char *mm_data(struct mm_object *header)
{
    return (unsigned char *)header + (mm_is_record(header) ? MM_RECORD_HEADER : sizeof *header);
}

/* Where the shape begins, counted from the header. */
static inline uint64_t mm_shape_at(const struct mm_object *header)
{
    if (mm_is_record(header))
        return MM_RECORD_HEADER + mm_data_nbytes(header);
    return (sizeof *header + mm_data_nbytes(header) + 7) & ~(uint64_t)7;
}

/* Where the references begin, counted from the header. */
static inline uint64_t mm_slots_at(const struct mm_object *header)
{
    return mm_shape_at(header) + (mm_is_record(header) ? 0 : 8u * header->ndim);
}

static inline _Atomic uint64_t *mm_slots(struct mm_object *header)
{
    return (_Atomic uint64_t *)(void *)((unsigned char *)header + mm_slots_at(header));
}

/* Bytes it takes, with its header. */
static inline uint64_t mm_object_nbytes(const struct mm_object *header)
{
    uint64_t nbytes = mm_slots_at(header) + 8ull * mm_nrefs(header);
    return (nbytes + MM_GRANULE - 1) & ~(uint64_t)(MM_GRANULE - 1);
}

static inline size_t mm_granule(uint64_t offset)
{
    return (size_t)(offset % MM_BLOCK) / MM_GRANULE;
}

static inline bool mm_bit(const uint64_t *words, size_t index)
{
    return (words[index / 64] >> (index % 64) & 1) != 0;
}

static inline bool mm_is_lane(const struct mm_block *block)
{
    return block->kind >= MM_OWNED && block->kind <= MM_OBJECTS;
}

static inline bool mm_is_leaving(const struct mm_block *block)
{
    return block->linked == MM_LEAVING;
}

/* Between two steps of marking. */
static inline bool mm_is_marking(const struct mm_heap *heap)
{
    return heap->phase == MM_ROOTS || heap->phase == MM_TRACE;
}

/* Is what is made in this block now marked from the start? */
static inline bool mm_is_born_marked(const struct mm_heap *heap, uint32_t index)
{
    return heap->phase >= MM_ROOTS && heap->phase <= MM_SWEEP && (heap->phase != MM_SWEEP || index >= heap->cursor);
}

/* space.c: blocks and their pages. 0 or an errno; nothing has changed then. */
int mm_heap_open(struct mm_heap *heap);
void mm_heap_close(struct mm_heap *heap);
/* Pages for [0, end) of a block, and some more; `reserve` bytes below the limit are left alone. */
int mm_commit_pages(struct mm_heap *heap, uint32_t index, uint32_t end, uint64_t reserve);
/* A block of this kind with nothing in it, or 0. */
uint32_t mm_take_block(struct mm_heap *heap, enum mm_kind kind);
void mm_free_block(struct mm_heap *heap, uint32_t index);
uint32_t mm_take_run(struct mm_heap *heap, uint64_t nbytes, uint64_t reserve, int *error);
/* Nobody can reach it any more; its pages go when it is reaped. */
void mm_free_run(struct mm_heap *heap, uint32_t index);
/* Give back pages of dying runs. True: there are none left. */
bool mm_reap(struct mm_heap *heap, struct mm_budget *budget);
/* Nothing lies in these pages of a block: give back what they hold, save what others share; what the kernel
 * will not take stays. */
void mm_punch(struct mm_heap *heap, uint32_t index, uint64_t pages);
/* Give back the pages of a block in the pool. False: it is empty. */
bool mm_drain_one(struct mm_heap *heap);
void mm_drain(struct mm_heap *heap);   /* of all of them, and what dying runs hold */
uint64_t mm_block_held(const struct mm_heap *heap, const struct mm_block *block);
/* The pages that hold [start, end) of a block. */
uint64_t mm_pages(const struct mm_heap *heap, uint32_t start, uint32_t end);

/* lanes.c: blocks by how full they are, and the objects in them. */
void mm_link(struct mm_heap *heap, uint32_t index);
void mm_unlink(struct mm_heap *heap, uint32_t index);
void mm_relink(struct mm_heap *heap, uint32_t index);
void mm_set_aside(struct mm_heap *heap, uint32_t index); /* it counts as full until more dies in it */
/* Done filling: what was committed behind the last object goes back. */
void mm_close_block(struct mm_heap *heap, uint32_t index);
/* Room for an object in the open block of a lane; `evacuating`: in the other one, from the reserve. */
uint64_t mm_bump(struct mm_heap *heap, enum mm_kind kind, bool evacuating, uint64_t nbytes, int *error);
/* A new object without references, data and shape as they lay there (a record's are zero); 0: `error` says why. */
uint64_t mm_allocate(struct mm_heap *heap, bool owned, const struct mm_shape *shape, int *error);
/* A container's value is no more. */
void mm_release(struct mm_heap *heap, uint64_t offset);

/* roots.c */
/* The root of an object, made if it has none, with one holder more; 0: no memory. */
uint32_t mm_hold(struct mm_heap *heap, uint64_t offset);
uint32_t mm_hold_at(struct mm_heap *heap, uint64_t reference);
void mm_drop(struct mm_heap *heap, uint32_t root);
/* The root of an entry's value, with one who looks at it more; 0: no memory. */
uint32_t mm_show(struct mm_heap *heap, uint32_t entry);
void mm_show_no_more(struct mm_heap *heap, uint32_t root);
/* A container has let go of a value. */
void mm_disown(struct mm_heap *heap, uint64_t offset);
/* What holds an object learns where it lies now. */
void mm_tell(struct mm_heap *heap, const struct mm_object *header, uint64_t to);
/* The value at an offset belongs to this entry. */
void mm_own(struct mm_heap *heap, uint64_t offset, uint32_t entry);
void mm_pin(struct mm_heap *heap, uint32_t root);
void mm_unpin(struct mm_heap *heap, uint32_t root);
uint32_t mm_weak_new(struct mm_heap *heap, uint64_t offset);
/* What it points at, 0: that is dead. */
uint64_t mm_weak_get(struct mm_heap *heap, uint32_t index);
void mm_weak_drop(struct mm_heap *heap, uint32_t index);

/* barrier.c: references inside the heap. */
uint64_t mm_mend(struct mm_heap *heap, _Atomic uint64_t *slot, uint64_t reference);
void mm_store(struct mm_heap *heap, _Atomic uint64_t *slot, uint64_t offset);
/* The reference to store: of another colour than the good one while its object is about to leave. */
uint64_t mm_coloured(const struct mm_heap *heap, uint64_t offset);
/* Where the object is now that was here when the colour turned. */
uint64_t mm_forwarded(const struct mm_heap *heap, uint64_t offset);
struct mm_forward *mm_forward_new(const struct mm_block *block);      /* NULL: no memory */
size_t mm_forward_rank(const struct mm_forward *forward, size_t granule);

/* mark.c: phases return whether they have come to their end. */
void mm_shade(struct mm_heap *heap, uint64_t offset);                 /* it is alive */
bool mm_is_marked(const struct mm_heap *heap, uint64_t offset);
bool mm_mark_roots(struct mm_heap *heap, struct mm_budget *budget);
bool mm_trace(struct mm_heap *heap, struct mm_budget *budget);
bool mm_clear_weak(struct mm_heap *heap, struct mm_budget *budget);
bool mm_sweep(struct mm_heap *heap, struct mm_budget *budget);
/* The next object of a block from granule `from` on, and the last that begins before one; or MM_BLOCK / MM_GRANULE. */
size_t mm_next_start(const uint64_t *starts, size_t from);
size_t mm_last_start(const uint64_t *starts, size_t granule);
/* From one block that is in use to the next, or `count`. */
uint32_t mm_next_block(const struct mm_heap *heap, uint32_t index);

/* evacuate.c */
bool mm_choose(struct mm_heap *heap, struct mm_budget *budget);
bool mm_move_out(struct mm_heap *heap, struct mm_budget *budget);
/* An object is to be pinned: take it out of its leaving block, or let the block slide, or stay. */
void mm_settle(struct mm_heap *heap, uint64_t offset);
bool mm_punch_holes(struct mm_heap *heap, struct mm_budget *budget);
/* Move values that containers own while that lane holds too much, at most `most` bytes. Returns how many. */
uint64_t mm_pace(struct mm_heap *heap, uint64_t most);

/* cycle.c */
void mm_begin(struct mm_heap *heap);
/* Go on with what is under way, for `ns` nanoseconds (0: as little as can be). True: there is more to do. */
bool mm_step(struct mm_heap *heap, enum mm_cause cause, int64_t ns);
/* All of a collection that begins now. */
void mm_collect(struct mm_heap *heap, enum mm_cause cause);

/* pacing.c */
/* What is expected of losses before any marking has shown what they stand for. */
void mm_expect(struct mm_heap *heap);
/* Compare what a marking found with that, and expect better the next time. */
void mm_learn(struct mm_heap *heap);
/* So many bytes lost a holder, and may be garbage. */
void mm_dropped(struct mm_heap *heap, uint64_t nbytes);
/* So many bytes of containers' values came or went: move others together, and wake who helps. */
void mm_give_way(struct mm_heap *heap, uint64_t nbytes);
/* A reference was overwritten: what it led to may be garbage. */
void mm_unlinked(struct mm_heap *heap);
/* Bytes of garbage that are expected, beyond what a marking that runs will find. */
static inline double mm_lost(const struct mm_heap *heap)
{
    return heap->pacing.lost[MM_HELD] + heap->pacing.lost[MM_LINKS];
}
/* Has so much died that a collection is due? */
bool mm_is_due(struct mm_heap *heap);
/* So many bytes will be allocated: work that is paid for by that. */
void mm_pay(struct mm_heap *heap, uint64_t nbytes);
/* What a thread does that looks after the heap: a step, if there is reason. Returns the milliseconds until it
 * should come again, or -1: when the bell rings. */
int64_t mm_tend(struct mm_heap *heap, int64_t ns);
void mm_ring(struct mm_heap *heap);
uint64_t mm_live(const struct mm_heap *heap);
void mm_note_pause(struct mm_pauses *pauses, int64_t ns);
/* Nanoseconds that `thousandths` of the pauses do not exceed. */
int64_t mm_pause_at(const struct mm_pauses *pauses, unsigned thousandths);

/* verify.c: a trace of its own. NULL: all is well; else what is not, at `where`. */
struct mm_census { uint64_t objects, references, bytes; };
const char *mm_verify(struct mm_heap *heap, struct mm_census *census, uint64_t *where);

#include "views.h"

#endif
