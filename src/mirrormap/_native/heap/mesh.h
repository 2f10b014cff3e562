/* Pages that share a frame. A *page* is a piece of the heap's addresses, a *frame* a piece of its file;
 * both are counted through the whole heap, and page n shows frame n unless its block has a table that says
 * otherwise. Pages whose living objects do not overlap may show one frame. */
#ifndef MIRRORMAP_MESH_H
#define MIRRORMAP_MESH_H

#include <stdbool.h>
#include <stdint.h>

struct mm_heap;
struct mm_budget;

enum { MM_PAGES = 64 };                /* of a block, at most */

/* Of one block. A page whose own frame is in use by pages shows that one: so whoever leaves a shared frame
 * has one to go to. */
struct mm_mesh {
    uint64_t members;                  /* pages that need what they show */
    uint32_t shows[MM_PAGES];          /* by page: a frame */
    uint32_t next[MM_PAGES];           /* round all members that show the same frame */
    uint16_t users[MM_PAGES];          /* by frame: members of whatever block that show it */
};

struct mm_pool;
struct mm_meshing {
    struct mm_mesh **tables;           /* by block; NULL until something is meshed */
    struct mm_pool *pool;              /* while the phase goes on: frames with room */
    uint64_t saved;                    /* frames that there would be, if each member had one */
    uint32_t breaks;                   /* where a mapping of the heap's addresses ends and another begins */
    uint32_t most;                     /* breaks that there may be; 0: nothing is meshed */
    uint64_t holes;                    /* bytes that died beside pinned values since holes were last looked for */
    int64_t tidied, tidied_ns;         /* when that was, and what it took */
    bool tidying;                      /* what is under way is that, and no collection */
};

/* mesh.c */
uint32_t mm_page_of(const struct mm_heap *heap, uint32_t index, unsigned page);
uint32_t mm_block_of_page(const struct mm_heap *heap, uint32_t page);
uint32_t mm_shown(const struct mm_heap *heap, uint32_t page);
/* The next page that shows the same frame; itself: none. */
uint32_t mm_sharer(const struct mm_heap *heap, uint32_t page);
/* Can what lies in these pages of a block be read? */
bool mm_is_shown(const struct mm_heap *heap, uint32_t index, uint64_t pages);
/* Does anything of a closed block need this page? */
bool mm_is_member(const struct mm_heap *heap, uint32_t page);
/* The granules of a page in which something alive lies, a bit each. Returns how many. */
unsigned mm_page_bits(const struct mm_heap *heap, uint32_t page, uint64_t *bits);
/* A page shows the frame of another from now on; `bits`: what lives in it. One whose own frame others show must not
 * leave before them. 0 or an errno: nothing has changed. */
int mm_mesh_join(struct mm_heap *heap, uint32_t page, uint32_t host, const uint64_t *bits);
/* Nothing lives in these pages of a meshed block any more. */
void mm_mesh_leave(struct mm_heap *heap, uint32_t index, uint64_t pages);
/* Nothing lives in a meshed block. False: others show its frames; it is MM_HOST until they let go. */
bool mm_mesh_dissolve(struct mm_heap *heap, uint32_t index);
/* An object is to be written to: frames that no other page shows. 0 or an errno. */
int mm_mesh_part(struct mm_heap *heap, uint64_t offset);
void mm_mesh_close(struct mm_heap *heap);

/* space.c: these pages of the file, whoever shows them: give them back; hold one. */
void mm_punch_frames(struct mm_heap *heap, uint32_t index, uint64_t frames);
int mm_commit_frame(struct mm_heap *heap, uint32_t index, unsigned frame);
/* roots.c: mm_pin by one who writes: the object shares no frame until mm_unpin_written. 0, or an errno and no pin. */
int mm_pin_written(struct mm_heap *heap, uint32_t root);
void mm_unpin_written(struct mm_heap *heap, uint32_t root);
/* evacuate.c: do the blocks of this mm_kind hold more than their target and the blocks being filled explain? */
bool mm_holds_too_much(const struct mm_heap *heap, unsigned kind);
/* cycle.c: the last phases alone, for holes beside pinned values. */
void mm_begin_tidying(struct mm_heap *heap);
/* pacing.c */
/* Nothing pins this meshed block any more. */
void mm_loosened(struct mm_heap *heap, uint32_t index);
/* So many bytes of values died beside pinned ones. */
void mm_left_holes(struct mm_heap *heap, uint64_t nbytes);
/* So many that it is better to begin with them again than to go on meshing. */
bool mm_has_many_holes(const struct mm_heap *heap);

/* pairs.c: the phase. */
bool mm_mesh(struct mm_heap *heap, struct mm_budget *budget);
void mm_pool_free(struct mm_heap *heap);

/* mesh_check.c: NULL, or what is wrong with the tables, and where. */
const char *mm_mesh_check(const struct mm_heap *heap, uint64_t *where);

#endif
