#define _GNU_SOURCE
#include "blocks.h"
#include "objects.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

struct block {
    struct block *next;        /* in its bucket, or among the cached, newest first */
    uintptr_t address;
    size_t nbytes;             /* mapped: whole pages */
    size_t page_nbytes;
    int fd;                    /* -1: anonymous, because too many descriptors are open */
    enum mm_hugefs kind;       /* of file it is, if any */
    bool shared;               /* a mirror, a handle or a forked child may show the pages */
};

enum {
    BUCKETS = 4096,
    MOST_CACHED = 1024,        /* blocks: each is a mapping, and the cache is looked through */
    LEAST_AT_ONCE = 1 << 16,   /* bytes of a block that takes its pages when it is made, below what a huge one holds: */
    MOST_AT_ONCE = 1 << 21,    /* not so many that it matters if they stay untouched */
};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* for everything below */
static struct block *buckets[BUCKETS], *cache;
static struct mm_blocks_state state;
static size_t page, pmd, cache_limit, descriptor_limit, descriptors, block_limit;

static struct block **bucket_of(uintptr_t address)
{
    return &buckets[(address / page * 0x9E3779B97F4A7C15u) >> 52];
}

/* Where the block at an address hangs, or the end of its bucket. The lock is held. */
static struct block **find(uintptr_t address)
{
    struct block **at = bucket_of(address);
    while (*at != NULL && (*at)->address != address)
        at = &(*at)->next;
    return at;
}

static void insert(struct block *block)
{
    struct block **bucket = bucket_of(block->address);
    block->next = *bucket;
    *bucket = block;
    state.count++;
    state.nbytes += block->nbytes;
}

static struct block *take(uintptr_t address)
{
    struct block **at = find(address), *block = *at;
    *at = block->next;
    state.count--;
    state.nbytes -= block->nbytes;
    return block;
}

static void drop_descriptor(void)
{
    pthread_mutex_lock(&lock);
    descriptors--;
    pthread_mutex_unlock(&lock);
}

static void destroy(struct block *block)
{
    mm_sys_unmap(block->address, block->nbytes);
    if (block->fd >= 0) {
        mm_sys_close(block->fd);
        drop_descriptor();
    }
    free(block);
}

/* --- fork: the child shows every page of its parent, so none may be used for anything else ------- */

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void share_all(void)
{
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct block *block = buckets[i]; block != NULL; block = block->next)
            block->shared = true;
}

static void in_parent(void)
{
    share_all();
    pthread_mutex_unlock(&lock);
}

static void in_child(void)
{
    in_parent();
    mm_blocks_trim(0);         /* the parent will use these again */
}

int mm_blocks_setup(size_t page_nbytes, size_t pmd_nbytes)
{
    if (page != 0)
        return 0;
    page = page_nbytes;
    pmd = pmd_nbytes;
    return pthread_atfork(before_fork, in_parent, in_child);
}

/* --- new ones ----------------------------------------------------------------------------------- */

static bool may_hold_descriptor(void)
{
    pthread_mutex_lock(&lock);
    bool may = descriptors < descriptor_limit;
    descriptors += may;
    pthread_mutex_unlock(&lock);
    return may;
}

/* mmap for a block, aligned so that huge page-table entries are possible. */
static int map_aligned(struct block *block, int flags)
{
    int rw = PROT_READ | PROT_WRITE;
    if (block->nbytes < pmd || block->page_nbytes > page)
        return mm_sys_map(0, block->nbytes, rw, flags, block->fd, 0, &block->address);
    uintptr_t window, got;
    int error = mm_sys_map(0, block->nbytes + pmd, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                           -1, 0, &window);
    if (error != 0)
        return error;
    uintptr_t first = (window + pmd - 1) & ~(pmd - 1);
    error = mm_sys_map(first, block->nbytes, rw, flags | MAP_FIXED, block->fd, 0, &got);
    if (error != 0) {
        mm_sys_unmap(window, block->nbytes + pmd);
        return error;
    }
    if (first != window)
        mm_sys_unmap(window, first - window);
    if (first != window + pmd)
        mm_sys_unmap(first + block->nbytes, window + pmd - first);
    block->address = first;
    return 0;
}

/* Huge pages as the block is touched, where its object or shmem_enabled allows it. Where not, and `now`:
 * one page for each huge one, and the kernel makes huge ones of them, or leaves them to come one by one. */
static void take_huge_pages(const struct block *block, bool now)
{
    size_t whole = block->nbytes & ~(pmd - 1);
    if (whole != 0)
        mm_sys_advise(block->address, whole, MADV_HUGEPAGE);
    if (now && whole != 0 && pmd > page && block->kind != MM_HUGE_AT_TOUCH
        && mm_sys_touch(block->address, whole, pmd, false) == 0)
        mm_sys_advise(block->address, whole, MADV_COLLAPSE);
}

/* Map fresh pages for a block whose sizes are set: an object with a descriptor, or an anonymous one. */
static int map_fresh(struct block *block)
{
    size_t huge_nbytes = block->page_nbytes > page ? block->page_nbytes : 0;
    int flags = MAP_SHARED;
    int error;
    block->fd = -1;
    if (may_hold_descriptor()) {
        error = mm_object_new(block->nbytes, huge_nbytes, &block->kind, &block->fd);
        if (error != 0)
            drop_descriptor();
    }
    if (block->fd < 0) {
        flags |= MAP_ANONYMOUS | MAP_NORESERVE;
        if (huge_nbytes != 0)  /* reserved: a short pool is an error now and no SIGBUS later */
            flags = (flags & ~MAP_NORESERVE) | MAP_HUGETLB | mm_object_shift(huge_nbytes);
    }
    AGAIN(error, map_aligned(block, flags));
    if (error != 0 && block->fd >= 0) {
        mm_sys_close(block->fd);
        drop_descriptor();
    }
    return error;
}

/* The smallest cached block that is long enough and at most a quarter too long, or NULL. */
static struct block *from_cache(size_t nbytes, size_t page_nbytes)
{
    struct block **best = NULL;
    for (struct block **at = &cache; *at != NULL; at = &(*at)->next)
        if ((*at)->page_nbytes == page_nbytes && (*at)->nbytes >= nbytes
            && (*at)->nbytes <= nbytes + nbytes / 4 && (best == NULL || (*at)->nbytes < (*best)->nbytes))
            best = at;
    if (best == NULL)
        return NULL;
    struct block *block = *best;
    *best = block->next;
    state.cached--;
    state.cached_nbytes -= block->nbytes;
    return block;
}

static enum mm_hugefs kind_of(size_t nbytes, bool eager)
{
    if (nbytes >= pmd)
        return MM_HUGE_AT_TOUCH;
    return eager && nbytes >= LEAST_AT_ONCE && nbytes <= MOST_AT_ONCE ? MM_LARGE_AT_ALLOCATE : MM_NO_HUGEFS;
}

static struct block *block_of(size_t nbytes, size_t page_nbytes, size_t eager_nbytes, bool zero)
{
    if (nbytes > SIZE_MAX / 2)
        return NULL;
    bool eager = page_nbytes == page && nbytes <= eager_nbytes;
    size_t whole = (nbytes + pmd - 1) & ~(pmd - 1);
    if (eager && whole - nbytes <= nbytes / 4)     /* the end in a huge page too, if little is lost */
        nbytes = whole;
    nbytes = (nbytes + page_nbytes - 1) & ~(page_nbytes - 1);
    pthread_mutex_lock(&lock);
    struct block *block = from_cache(nbytes, page_nbytes);
    if (block != NULL)
        insert(block);
    bool full = state.count + state.cached >= block_limit;
    pthread_mutex_unlock(&lock);
    if (block != NULL) {
        if (zero)
            memset((void *)block->address, 0, block->nbytes);
        return block;
    }
    if (full && mm_blocks_trim(0) == 0)            /* others need mappings too */
        return NULL;
    block = malloc(sizeof *block);
    if (block == NULL)
        return NULL;
    *block = (struct block){.nbytes = nbytes, .page_nbytes = page_nbytes, .kind = kind_of(nbytes, eager)};
    int error = map_fresh(block);
    if (error != 0 && mm_blocks_trim(0) != 0)      /* what is kept for later takes memory, and mappings */
        error = map_fresh(block);
    if (error != 0) {
        free(block);
        return NULL;
    }
    if (page_nbytes == page)
        take_huge_pages(block, eager);
    pthread_mutex_lock(&lock);
    insert(block);
    pthread_mutex_unlock(&lock);
    return block;
}

void *mm_block_new(size_t nbytes, const struct mm_block_kind *kind, bool zero)
{
    struct block *block = NULL;
    if (kind->huge_nbytes != 0 && nbytes >= kind->huge_nbytes)
        block = block_of(nbytes, kind->huge_nbytes, 0, zero);
    if (block == NULL)
        block = block_of(nbytes, page, zero ? kind->eager_zero_nbytes : kind->eager_nbytes, zero);
    return block == NULL ? NULL : (void *)block->address;
}

bool mm_block_is(const void *address)
{
    if ((uintptr_t)address % page != 0)    /* nearly always: malloc puts a header before its own */
        return false;
    return mm_block_nbytes(address) != 0;
}

size_t mm_block_nbytes(const void *address)
{
    pthread_mutex_lock(&lock);
    const struct block *block = *find((uintptr_t)address);
    size_t nbytes = block != NULL ? block->nbytes : 0;
    pthread_mutex_unlock(&lock);
    return nbytes;
}

/* --- old ones ----------------------------------------------------------------------------------- */

void mm_block_free(void *address)
{
    pthread_mutex_lock(&lock);
    struct block *block = take((uintptr_t)address);
    bool keep = !block->shared && state.cached < MOST_CACHED && block->nbytes <= cache_limit
                && state.cached_nbytes <= cache_limit - block->nbytes;
    if (keep) {
        block->next = cache;
        cache = block;
        state.cached++;
        state.cached_nbytes += block->nbytes;
    }
    pthread_mutex_unlock(&lock);
    if (!keep)
        destroy(block);
}

/* Show the first `nbytes` of the object at a place where they fit; the old place is unmapped. */
static int remap(const struct block *block, size_t nbytes, uintptr_t *result)
{
    if (block->page_nbytes == page)
        return mm_sys_remap(block->address, block->nbytes, nbytes, MREMAP_MAYMOVE, 0, result);
    /* the kernel does not lengthen huge pages */
    int error = mm_sys_map(0, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, block->fd, 0, result);
    if (error == 0)
        mm_sys_unmap(block->address, block->nbytes);
    return error;
}

void *mm_block_resize(void *address, size_t nbytes)
{
    if (nbytes > SIZE_MAX / 2)
        return NULL;
    pthread_mutex_lock(&lock);
    struct block *block = take((uintptr_t)address);
    pthread_mutex_unlock(&lock);
    size_t before = block->nbytes, after = (nbytes + block->page_nbytes - 1) & ~(block->page_nbytes - 1);
    uintptr_t got = block->address;
    int error = 0;
    if (after != before && block->fd < 0)
        error = ENOTSUP;       /* an anonymous object keeps its length */
    if (after > before && error == 0)
        AGAIN(error, mm_sys_truncate(block->fd, (int64_t)after));
    if (after != before && error == 0)
        AGAIN(error, remap(block, after, &got));
    if (error == 0) {
        block->address = got;
        block->nbytes = after;
        if (after < before && !block->shared)
            mm_sys_allocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (int64_t)after,
                            (int64_t)(before - after));
    }
    pthread_mutex_lock(&lock);
    insert(block);
    pthread_mutex_unlock(&lock);
    return error == 0 ? (void *)got : NULL;
}

void mm_blocks_share(uintptr_t start, uintptr_t end)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < BUCKETS && state.count != 0; i++)
        for (struct block *block = buckets[i]; block != NULL; block = block->next)
            if (block->address < end && start < block->address + block->nbytes)
                block->shared = true;
    pthread_mutex_unlock(&lock);
}

void mm_blocks_limit(size_t cached_nbytes, size_t most_descriptors, size_t most_blocks)
{
    pthread_mutex_lock(&lock);
    cache_limit = cached_nbytes;
    descriptor_limit = most_descriptors;
    block_limit = most_blocks;
    pthread_mutex_unlock(&lock);
    mm_blocks_trim(cached_nbytes);
}

size_t mm_blocks_trim(size_t keep)
{
    size_t given = 0;
    for (;;) {
        pthread_mutex_lock(&lock);
        struct block *block = state.cached_nbytes > keep ? cache : NULL;
        if (block != NULL) {
            cache = block->next;
            state.cached--;
            state.cached_nbytes -= block->nbytes;
        }
        pthread_mutex_unlock(&lock);
        if (block == NULL)
            return given;
        given += block->nbytes;
        destroy(block);
    }
}

struct mm_blocks_state mm_blocks_state(void)
{
    pthread_mutex_lock(&lock);
    struct mm_blocks_state now = state;
    pthread_mutex_unlock(&lock);
    return now;
}
