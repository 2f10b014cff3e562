/* Create, show twice, (populate,) and destroy, in seconds; negative: it failed. A shared object, so that the two sides
 * take turns in one process, a few rounds at a time: whatever the machine does meanwhile, it does to both. */
#include "clock.h"

#define HUGE_ENTRY ((size_t)2 << 20)

double c_ring(size_t n, int populate)
{
    double start = now();
    int fd = memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING | 8);
    if (fd < 0 || ftruncate(fd, (off_t)n) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
        return -1;
    size_t extra = 2 * n >= HUGE_ENTRY ? HUGE_ENTRY : 0;
    char *base = mmap(NULL, 2 * n + extra, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *at = extra ? (char *)(((uintptr_t)base + extra - 1) & -extra) : base;
    if (base == MAP_FAILED
        || mmap(at, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED
        || mmap(at + n, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        return -1;
    madvise(at + n, n, MADV_DONTDUMP);
    if (populate && (madvise(at, n, MADV_POPULATE_READ) < 0 || madvise(at + n, n, MADV_POPULATE_READ) < 0))
        return -1;
    if (munmap(base, 2 * n + extra) < 0 || close(fd) < 0)
        return -1;
    return now() - start;
}
