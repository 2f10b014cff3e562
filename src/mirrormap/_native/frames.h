/* A channel: messages of any length in a stream of bytes, and who has taken which.
 *
 * The cursors of cursors.h count bytes. A message is a frame: one line of header, the description of an
 * array if it is one, the payload; the next frame begins at the next line. Frames know how far the next
 * and the last one are. `tally` tells the sender's successor, and whoever arrives, which message comes
 * next: of its two entries that one counts whose `end` is `written`, and the other is rewritten before
 * `written` moves, so that both change at one store. `index` holds where the first frame of each of
 * MM_SEGMENTS parts of the data begins, for those who look for the oldest.
 *
 * Nothing here trusts what it finds: a header is copied once, and has a checksum over its place too;
 * lengths are compared with sizes that the caller holds itself. A forged one still names no byte
 * outside the frames between `from` and `upto`, because mm_frame_at() says so. */
#ifndef MIRRORMAP_FRAMES_H
#define MIRRORMAP_FRAMES_H

#include "cursors.h"

enum { MM_SEGMENTS = 1024, MM_GROUPS = 32, MM_ANNEX = 16384, MM_ABOUT = 4032 };
enum { MM_PLAIN = 1, MM_ARRAY = 2, MM_SKIP = 3 };
#define MM_UNSET UINT64_MAX
#define MM_FAR ((uint64_t)1 << 62) /* no channel lives to see such a position or number */

struct mm_header {
    uint64_t sequence;         /* of the message, counted from 0 */
    uint64_t frame_nbytes;     /* to the next header */
    uint64_t before_nbytes;    /* to the header before; 0: there is none */
    uint64_t nbytes;           /* of payload */
    int64_t time_ns;           /* CLOCK_MONOTONIC at commit */
    uint32_t kind;             /* MM_PLAIN, MM_ARRAY; MM_SKIP: no message */
    uint32_t about_nbytes;     /* of the description between header and payload */
    uint64_t unused;
    uint64_t check;
};
_Static_assert(sizeof(struct mm_header) == MM_LINE, "a header is a line");

struct mm_tally {
    _Atomic uint64_t end;      /* the value of `written` for which this entry counts */
    _Atomic uint64_t sequence; /* of the message that begins there */
    _Atomic uint64_t start;    /* of the frame that ends there; `end` itself: there is none */
};

struct mm_group {
    _Alignas(MM_LINE) _Atomic uint64_t key; /* a digest of its name; 0: free */
    _Atomic uint64_t cursor;   /* the next message to be taken, and the slot that took the last; see groups.c */
    _Atomic uint64_t count;    /* the number of that message, and how often that went back; see groups.c */
    char name[40];             /* cut short; for people */
};

struct mm_annex {
    _Alignas(MM_LINE) struct mm_tally tally[2];
    _Alignas(MM_LINE) _Atomic uint32_t bells;   /* 1: some slot says `rings` */
    _Atomic uint32_t orphans;                   /* one bit a group: what a dead worker had waits for another */
    _Atomic uint64_t network;                   /* the sender's network namespace */
    struct mm_group groups[MM_GROUPS];
    _Alignas(MM_LINE) _Atomic uint64_t index[MM_SEGMENTS];
};
_Static_assert(sizeof(struct mm_annex) <= MM_ANNEX, "the annex holds groups and index");

/* What both ends of a channel know for themselves. */
struct mm_stream {
    struct mm_control *shared;
    struct mm_annex *annex;
    const char *data;          /* shows `nbytes` twice in a row */
    uint64_t nbytes;
};

/* --- the sender ------------------------------------------------------------------------- */

/* Where the next message goes, as far as the sender knows by itself. */
struct mm_next {
    uint64_t start, sequence;  /* where it begins; its number */
    uint64_t last;             /* where the frame before begins */
    int tally;                 /* the entry that does not count now */
};

/* Bytes from a header to the next: header, description and payload, whole lines. UINT64_MAX: too many. */
uint64_t mm_frame_nbytes(uint64_t about_nbytes, uint64_t nbytes);
/* Go on where the last sender ended. False: the tally is damaged. */
bool mm_resume(const struct mm_stream *stream, struct mm_next *next);
/* Write the header of a frame that begins at next->start, and step over it. */
void mm_frame(const struct mm_stream *stream, char *data, struct mm_next *next, struct mm_header header);
/* Everything before next->start is there. Does not wake. */
void mm_commit(const struct mm_stream *stream, struct mm_next *next);

/* --- a receiver ------------------------------------------------------------------------- */

/* Copy the header at `position` and check it: a frame that ends by `upto`, all of it inside the data.
 * False: there is none. Whether it was overwritten meanwhile is for mm_oldest() to say. */
bool mm_frame_at(const struct mm_stream *stream, uint64_t position, uint64_t upto, struct mm_header *header);
/* What `written` is now, and which message begins there. False: the tally is damaged. */
bool mm_newest(const struct mm_stream *stream, struct mm_next *next);
/* Where the oldest frame at or after `from` begins that is intact, at most `count` messages back; `upto`
 * if there is none. */
uint64_t mm_oldest_frame(const struct mm_stream *stream, uint64_t from, uint64_t count, uint64_t *upto);

/* --- groups: each message to one of them, also when one dies at any step ------------------- */

/* The next message of a group, and the word that says so; MM_UNSET, and 0: it has not begun. */
uint64_t mm_group_at(const struct mm_group *group, uint64_t *word);
/* The number of that message, as far as anybody has counted. */
static inline uint64_t mm_group_sequence(const struct mm_group *group)
{
    return atomic_load_explicit(&group->count, memory_order_acquire) >> 8;
}

/* A place between messages, and the number of the one that begins there. */
struct mm_place {
    uint64_t position, sequence;
};

/* Number of the message at the cursor. Exact if the cursor is `word` still, which take and skip will say. Here and
 * below `number` is 1 + the group's index. */
uint64_t mm_group_count(struct mm_control *shared, struct mm_group *group, uint32_t number, uint64_t word);
/* Take, into a slot that names the group and holds nothing, the bytes from where the cursor was when it was `word`
 * up to `end`: so many messages.
 * False: somebody was faster; the sender may wait for what the slot seemed to need, wake room_wanted. */
bool mm_group_take(struct mm_control *shared, struct mm_group *group, int slot, uint64_t word, struct mm_place end,
                   uint32_t messages);
/* Move the cursor without taking, in the name of a slot that names the group and holds nothing. `word` 0: the group
 * begins. False: somebody was faster. */
bool mm_group_skip(struct mm_control *shared, struct mm_group *group, int slot, uint64_t word, struct mm_place to);
/* Move the cursor nowhere. False: somebody was faster. */
bool mm_group_drop(struct mm_control *shared, struct mm_group *group, uint32_t number, uint64_t word);
/* `slot` needs nothing before `position` of what it took any more, and so many messages from there on. True: the
 * sender waits, wake room_wanted. */
bool mm_group_done(struct mm_control *shared, int slot, uint64_t position, uint32_t messages);
/* What a slot has taken and not done with. False: nothing. */
bool mm_group_held(struct mm_control *shared, struct mm_group *group, int slot, uint64_t *start, uint64_t *end);
/* The lowest position of any reader and any group; UINT64_MAX without. */
uint64_t mm_needed(const struct mm_stream *stream);

#endif
