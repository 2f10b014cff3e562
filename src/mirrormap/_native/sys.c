#define _GNU_SOURCE
#include "sys.h"
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* The uapi structures are spelled out: distributions ship headers years older
 * than the kernels their users boot. */
struct procmap_query {
    uint64_t size, query_flags, query_addr;
    uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
    uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
    uint64_t vma_name_addr, build_id_addr;
};
#define MM_PROCMAP_QUERY _IOWR('f', 17, struct procmap_query)
enum { QUERY_COVERING_OR_NEXT = 0x10 };

struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define MM_PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)

static int failed(int result)
{
    return result < 0 ? errno : 0;
}

int mm_sys_map(uintptr_t address, size_t nbytes, int protection, int flags, int fd,
               int64_t offset, uintptr_t *result)
{
    FAULT("mmap");
    void *got = mmap((void *)address, nbytes, protection, flags, fd, (off_t)offset);
    if (got == MAP_FAILED)
        return errno;
    *result = (uintptr_t)got;
    return 0;
}

int mm_sys_unmap(uintptr_t address, size_t nbytes)
{
    FAULT("munmap");
    return failed(munmap((void *)address, nbytes));
}

int mm_sys_remap(uintptr_t address, size_t old_nbytes, size_t new_nbytes, int flags,
                 uintptr_t target, uintptr_t *result)
{
    FAULT("mremap");
    /* syscall(), because glibc drops the fifth argument unless it knows the flag */
    long got = syscall(SYS_mremap, address, old_nbytes, new_nbytes, (unsigned long)flags, target);
    if (got == -1)
        return errno;
    *result = (uintptr_t)got;
    return 0;
}

int mm_sys_protect(uintptr_t address, size_t nbytes, int protection)
{
    FAULT("mprotect");
    return failed(mprotect((void *)address, nbytes, protection));
}

int mm_sys_advise(uintptr_t address, size_t nbytes, int advice)
{
    FAULT("madvise");
    return failed(madvise((void *)address, nbytes, advice));
}

int mm_sys_sync(uintptr_t address, size_t nbytes, int flags)
{
    FAULT("msync");
    return failed(msync((void *)address, nbytes, flags));
}

int mm_sys_readable(uintptr_t address)
{
    FAULT("readable");
    /* The kernel copies the set in before it looks at `how`, so an impossible
     * `how` reads one word and changes nothing: EINVAL means readable. */
    long got = syscall(SYS_rt_sigprocmask, ~0, (void *)address, NULL, (size_t)(_NSIG / 8));
    if (got == 0 || errno == EINVAL)
        return 0;
    return errno;
}

static int touch_readable(uintptr_t address, size_t nbytes, size_t page_nbytes)
{
    for (size_t at = 0; at < nbytes; at += page_nbytes) {
        int error = mm_sys_readable(address + at);
        if (error != 0)
            return error;
    }
    return 0;
}

int mm_sys_touch(uintptr_t address, size_t nbytes, size_t page_nbytes, bool write)
{
    FAULT("touch");
    /* The read pass goes through the kernel: a page that cannot be had answers
     * EFAULT there, and the stores then find every page in place. */
    int error = touch_readable(address, nbytes, page_nbytes);
    if (error != 0 || !write)
        return error;
    for (size_t at = 0; at < nbytes; at += page_nbytes)
        atomic_fetch_or_explicit((_Atomic unsigned char *)(address + at), 0, memory_order_relaxed);
    return 0;
}

int mm_sys_memfd(const char *name, unsigned flags, int *fd)
{
    FAULT("memfd_create");
    int got = memfd_create(name, flags);
    if (got < 0)
        return errno;
    *fd = got;
    return 0;
}

int mm_sys_open(const char *path, int flags, unsigned mode, int *fd)
{
    FAULT("open");
    int got = open(path, flags | O_CLOEXEC, (mode_t)mode);
    if (got < 0)
        return errno;
    *fd = got;
    return 0;
}

int mm_sys_duplicate(int fd, int *copy)
{
    FAULT("dup");
    int got = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (got < 0)
        return errno;
    *copy = got;
    return 0;
}

int mm_sys_close(int fd)
{
    FAULT("close");
    return failed(close(fd));
}

int mm_sys_truncate(int fd, int64_t nbytes)
{
    FAULT("ftruncate");
    return failed(ftruncate(fd, (off_t)nbytes));
}

int mm_sys_allocate(int fd, int mode, int64_t offset, int64_t nbytes)
{
    FAULT("fallocate");
    return failed(fallocate(fd, mode, (off_t)offset, (off_t)nbytes));
}

int mm_sys_write_at(int fd, const void *data, size_t nbytes, int64_t offset)
{
    FAULT("pwrite");
    for (size_t done = 0; done < nbytes;) {
        ssize_t got = pwrite(fd, (const char *)data + done, nbytes - done, (off_t)(offset + (int64_t)done));
        if (got < 0 && errno != EINTR)
            return errno;
        if (got == 0)
            return ENOSPC;
        done += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

int mm_sys_seal(int fd, int seals)
{
    FAULT("fcntl");
    return failed(fcntl(fd, F_ADD_SEALS, seals));
}

int mm_sys_seals(int fd, int *seals)
{
    FAULT("fcntl");
    int got = fcntl(fd, F_GET_SEALS);
    if (got < 0)
        return errno;
    *seals = got;
    return 0;
}

int mm_sys_flush(int fd)
{
    FAULT("fdatasync");
    return failed(fdatasync(fd));
}

int mm_sys_stat(int fd, struct mm_file *result)
{
    FAULT("fstat");
    struct stat file;
    struct statfs fs;
    int open_flags = fcntl(fd, F_GETFL);
    if (open_flags < 0 || fstat(fd, &file) < 0 || fstatfs(fd, &fs) < 0)
        return errno;
    *result = (struct mm_file){
        .nbytes = file.st_size,
        .allocated = (int64_t)file.st_blocks * 512,
        .dev = file.st_dev,
        .inode = file.st_ino,
        .mode = file.st_mode,
        .fs_magic = (uint64_t)(unsigned long)fs.f_type,
        .fs_block = (uint64_t)fs.f_bsize,
        .open_flags = open_flags,
    };
    return 0;
}

int mm_sys_vma(int fd, uint64_t address, bool next, struct mm_vma *result)
{
    FAULT("procmap_query");
    struct procmap_query query = {
        .size = sizeof query,
        .query_flags = next ? QUERY_COVERING_OR_NEXT : 0,
        .query_addr = address,
        .vma_name_size = sizeof result->name,
        .vma_name_addr = (uint64_t)(uintptr_t)result->name,
    };
    result->name[0] = '\0';
    if (ioctl(fd, MM_PROCMAP_QUERY, &query) < 0) {
        if (errno != ENAMETOOLONG)
            return errno;
        /* a path too long for us: the entry counts, its name does not */
        query.vma_name_size = 0;
        query.vma_name_addr = 0;
        if (ioctl(fd, MM_PROCMAP_QUERY, &query) < 0)
            return errno;
    }
    result->start = query.vma_start;
    result->end = query.vma_end;
    result->page_nbytes = query.vma_page_size;
    result->offset = query.vma_offset;
    result->inode = query.inode;
    result->dev_major = query.dev_major;
    result->dev_minor = query.dev_minor;
    result->flags = (uint32_t)query.vma_flags;
    return 0;
}

/* Where the next call begins. The kernel collects 512 ranges at a time and says how far it came only
 * where it stopped, so after a call that did not stop walk_end is where its last 512 were full
 * (Linux 6.18). A call that had room left for more came to the end. */
static uint64_t go_on(const struct mm_walk *walk, uint64_t walk_end, const struct mm_stretch *found,
                      size_t count, size_t room)
{
    uint64_t pages = 0;
    for (size_t index = 0; index < count; index++)
        pages += (found[index].end - found[index].start) / (uint64_t)sysconf(_SC_PAGESIZE);
    if (count < room && (walk->pages == 0 || pages < walk->pages))
        return walk->end;
    uint64_t seen = count > 0 ? found[count - 1].end : walk->end;
    return walk_end > seen ? walk_end : seen;
}

int mm_sys_scan(int fd, struct mm_walk *walk, struct mm_stretch *found, size_t room, size_t *count)
{
    FAULT("pagemap_scan");
    struct pm_scan_arg scan = {
        .size = sizeof scan,
        .start = walk->start,
        .end = walk->end,
        .vec = (uint64_t)(uintptr_t)found,
        .vec_len = room,
        .max_pages = walk->pages,
        .category_anyof_mask = walk->wanted,
        .return_mask = walk->told,
    };
    int got = ioctl(fd, MM_PAGEMAP_SCAN, &scan);
    if (got < 0)
        return errno;
    *count = (size_t)got;
    walk->start = go_on(walk, scan.walk_end, found, *count, room);
    return 0;
}

int mm_sys_wait(_Atomic uint32_t *word, uint32_t expected, int64_t nanoseconds)
{
    struct timespec limit = {.tv_sec = (time_t)(nanoseconds / 1000000000), .tv_nsec = (long)(nanoseconds % 1000000000)};
    if (syscall(SYS_futex, word, FUTEX_WAIT, expected, &limit, NULL, 0) == 0 || errno == EAGAIN
        || errno == ETIMEDOUT)
        return 0;
    return errno;
}

void mm_sys_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void mm_sys_yield(void)
{
    sched_yield();
}

int64_t mm_sys_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t mm_sys_cpu(void)
{
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
}

void mm_sys_ring(int fd)
{
    uint64_t one = 1;
    int before = errno;
    (void)!write(fd, &one, sizeof one);
    errno = before;
}
