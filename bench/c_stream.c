/* The limit: append a block to a double-mapped ring and take the newest window, `steps` times. Seconds, or negative. */
#include "clock.h"

#include <string.h>

double c_stream(const float *block, size_t count, size_t window, size_t capacity, size_t steps)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (capacity * sizeof *block + page - 1) / page * page;
    int fd = memfd_create("bench", MFD_CLOEXEC);
    char *base = mmap(NULL, 2 * n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fd < 0 || ftruncate(fd, (off_t)n) < 0 || base == MAP_FAILED
        || mmap(base, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED
        || mmap(base + n, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED)
        return -1;
    memset(base, 0, n);
    size_t written = 0;
    const volatile float *newest = NULL;
    double start = now();
    for (size_t i = 0; i < steps; i++) {
        memcpy(base + written % n, block, count * sizeof *block);
        written += count * sizeof *block;
        newest = (const float *)(base + (written + n - window * sizeof *block) % n);
    }
    double seconds = now() - start;
    munmap(base, 2 * n);
    close(fd);
    return newest != NULL ? seconds : -1;
}
