/* create, show twice, (populate,) and destroy: c_ring NBYTES POPULATE ROUNDS -> seconds a round, one a line */
#include "ring.h"

#define HUGE_ENTRY ((size_t)2 << 20)

int main(int argc, char **argv)
{
    size_t n = strtoull(argv[argc > 1 ? 1 : 0], NULL, 0);
    int populate = atoi(argv[2]), rounds = atoi(argv[3]);
    for (int i = 0; i < rounds; i++) {
        double start = now();
        int fd = memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING | 8);
        if (fd < 0 || ftruncate(fd, (off_t)n) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
            return 1;
        size_t extra = 2 * n >= HUGE_ENTRY ? HUGE_ENTRY : 0;
        char *base = ok(mmap(NULL, 2 * n + extra, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        char *at = extra ? (char *)(((uintptr_t)base + extra - 1) & -extra) : base;
        ok(mmap(at, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0));
        ok(mmap(at + n, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0));
        madvise(at + n, n, MADV_DONTDUMP);
        if (populate && (madvise(at, n, MADV_POPULATE_READ) < 0 || madvise(at + n, n, MADV_POPULATE_READ) < 0))
            return 1;
        munmap(base, 2 * n + extra);
        close(fd);
        printf("%.9f\n", now() - start);
    }
    return 0;
}
