/* Blocks: memory for arrays, each an object of its own in shareable pages. No Python here, so that
 * NumPy may ask from any thread, with or without the interpreter's lock. */
#ifndef MIRRORMAP_BLOCKS_H
#define MIRRORMAP_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What all blocks hold, in bytes, and how many there are. */
struct mm_blocks_state {
    size_t count, nbytes;      /* in use */
    size_t cached, cached_nbytes;
};

/* Which pages a block gets. */
struct mm_block_kind {
    size_t huge_nbytes;        /* from a pool of such pages, for blocks that fill one; 0: no */
    size_t eager_nbytes;       /* blocks up to this take transparent huge pages at once */
    size_t eager_zero_nbytes;  /* the same for those asked for as zeros, which may stay untouched */
};

/* Before anything else: 0 or an errno. */
int mm_blocks_setup(size_t page_nbytes, size_t pmd_nbytes);
/* Bytes of freed blocks to keep for later, descriptors to keep open, and blocks: each is a mapping. */
void mm_blocks_limit(size_t cached_nbytes, size_t descriptors, size_t blocks);

/* NULL: there is no memory. Huge pages are used where they can be had, ordinary ones otherwise. */
void *mm_block_new(size_t nbytes, const struct mm_block_kind *kind, bool zero);
/* Does a block begin here? Only such addresses may be given to the functions below. */
bool mm_block_is(const void *address);
/* Give it to the cache, or back to the system if anybody may show its pages. */
void mm_block_free(void *address);
/* Longer or shorter, by page tables; NULL: not possible so, and unchanged. */
void *mm_block_resize(void *address, size_t nbytes);
/* Bytes that can be used; 0 if no block begins here. */
size_t mm_block_nbytes(const void *address);

/* The pages under [start, end) are shown elsewhere from now on: never to be used again. */
void mm_blocks_share(uintptr_t start, uintptr_t end);
/* Give back cached blocks until no more than `keep` bytes are left; how much that was. */
size_t mm_blocks_trim(size_t keep);
struct mm_blocks_state mm_blocks_state(void);

#endif
