/* Every kernel call the package makes, and nothing else.
 *
 * Shared preconditions: addresses and lengths are multiples of the page size of
 * the memory they name, lengths are not zero, and no range wraps round.
 * Each function returns 0 or an errno value and leaves the global errno alone
 * for the caller; results come back through the last pointer and are written
 * only on success. None of them knows of Python, so none may be called with
 * the expectation that it holds or drops the interpreter's lock. */
#ifndef MIRRORMAP_SYS_H
#define MIRRORMAP_SYS_H

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Again after a signal, where nobody can be told of it. */
#define AGAIN(error, call) do (error) = (call); while ((error) == EINTR)

/* One entry of the address space, as PROCMAP_QUERY tells it. */
struct mm_vma {
    uint64_t start, end;       /* bytes, half open */
    uint64_t page_nbytes;      /* the kernel page size behind it: hugetlb shows here */
    uint64_t offset;           /* of `start` inside the object */
    uint64_t inode;
    uint32_t dev_major, dev_minor;
    uint32_t flags;            /* MM_VMA_* */
    char name[PATH_MAX];       /* "" if it is longer, always terminated */
};
enum { MM_VMA_READ = 1, MM_VMA_WRITE = 2, MM_VMA_EXEC = 4, MM_VMA_SHARED = 8 };

/* What fstat and fstatfs say of a descriptor. */
struct mm_file {
    int64_t nbytes;            /* logical length */
    int64_t allocated;         /* bytes the kernel really holds */
    uint64_t dev, inode;
    uint32_t mode;             /* st_mode */
    uint64_t fs_magic;         /* HUGETLBFS_MAGIC, TMPFS_MAGIC, ... */
    uint64_t fs_block;         /* a hugetlbfs's page size */
    int open_flags;            /* O_RDONLY, O_RDWR, ... as opened */
};

/* Neighbouring pages of one sort, as PAGEMAP_SCAN tells them; the kernel's layout. */
struct mm_stretch {
    uint64_t start, end;       /* bytes, half open */
    uint64_t sort;             /* MM_PAGE_* */
};
enum {
    MM_PAGE_FILE = 4, MM_PAGE_PRESENT = 8, MM_PAGE_SWAPPED = 16, MM_PAGE_ZERO = 32, MM_PAGE_HUGE = 64,
    MM_PAGE_GUARD = 256,
};

/* How far a walk over a page table has come, and what it looks for. */
struct mm_walk {
    uint64_t start, end;       /* what is left, bytes */
    uint64_t pages;            /* the most to find in one call; 0: any number */
    uint64_t wanted, told;     /* MM_PAGE_*: any of these counts; these are told apart */
};

/* mmap(2). MAP_FIXED only over ranges the caller owns. */
int mm_sys_map(uintptr_t address, size_t nbytes, int protection, int flags, int fd,
               int64_t offset, uintptr_t *result);
int mm_sys_unmap(uintptr_t address, size_t nbytes);
/* mremap(2), all five arguments; `target` counts only with MREMAP_FIXED. */
int mm_sys_remap(uintptr_t address, size_t old_nbytes, size_t new_nbytes, int flags,
                 uintptr_t target, uintptr_t *result);
int mm_sys_protect(uintptr_t address, size_t nbytes, int protection);
int mm_sys_advise(uintptr_t address, size_t nbytes, int advice);
int mm_sys_sync(uintptr_t address, size_t nbytes, int flags);
/* Can one aligned word be read here? 0, or EFAULT where a load would fault: also
 * on memory that get_user_pages refuses, and without raising SIGBUS. */
int mm_sys_readable(uintptr_t address);
/* Make page-table entries by loads (write == false) or by atomic no-op stores,
 * for kernels without MADV_POPULATE_*. EFAULT instead of SIGBUS. */
int mm_sys_touch(uintptr_t address, size_t nbytes, size_t page_nbytes, bool write);

int mm_sys_memfd(const char *name, unsigned flags, int *fd);
int mm_sys_open(const char *path, int flags, unsigned mode, int *fd);
int mm_sys_open_at(int folder, const char *name, int flags, unsigned mode, int *fd);
int mm_sys_unlink_at(int folder, const char *name);
/* fsopen, fsconfig, fsmount (Linux 5.2): a tmpfs with this value of its option `huge`, attached nowhere, reached
 * by its descriptor. Without the right to mount, from a user namespace that a short-lived child makes. */
int mm_sys_mount_tmpfs(const char *huge, int *mount);
int mm_sys_duplicate(int fd, int *copy);                 /* close-on-exec */
int mm_sys_close(int fd);
int mm_sys_truncate(int fd, int64_t nbytes);
int mm_sys_allocate(int fd, int mode, int64_t offset, int64_t nbytes);
/* pwrite(2), all of it, again after a signal. */
int mm_sys_write_at(int fd, const void *data, size_t nbytes, int64_t offset);
int mm_sys_seal(int fd, int seals);
int mm_sys_seals(int fd, int *seals);
int mm_sys_flush(int fd);
int mm_sys_stat(int fd, struct mm_file *result);

/* PROCMAP_QUERY on an open /proc/PID/maps: the entry covering `address`, or with
 * `next` the first one behind it. ENOENT: none. ENOTTY: kernel before 6.11. */
int mm_sys_vma(int fd, uint64_t address, bool next, struct mm_vma *result);
/* One step of a walk by PAGEMAP_SCAN on an open /proc/PID/pagemap: at most `room` stretches, and
 * the walk moves on. ENOTTY: kernel before 6.7. */
int mm_sys_scan(int fd, struct mm_walk *walk, struct mm_stretch *found, size_t room, size_t *count);

/* futex(2) on a word that processes share: sleep while it is `expected`, for at most `nanoseconds`;
 * 0 also when it was not, or after the time. EINTR: a signal came. */
int mm_sys_wait(_Atomic uint32_t *word, uint32_t expected, int64_t nanoseconds);
void mm_sys_wake(_Atomic uint32_t *word);                /* everybody */

int64_t mm_sys_now(void);                                /* CLOCK_MONOTONIC, nanoseconds */
int64_t mm_sys_cpu(void);                                /* what this thread has used, nanoseconds */
void mm_sys_ring(int fd);                                /* add 1 to an eventfd; one that is full rings already */
void mm_sys_yield(void);                                 /* let another task of this processor go on */

#ifdef MIRRORMAP_FAULTS
/* Make the nth next call named `call` ("mmap", "*" for any) answer `error`, and
 * after that the next one named `then`, unless that is "". */
void mm_fault_arm(const char *call, long nth, int error, const char *then);
/* How many calls have been made to fail since the last arming, and the first of them, or "". */
int mm_fault_hits(const char **first);
#endif

#endif
