/* a populated mirror of memory that is there: c_mirror NBYTES ROUTE ROUNDS -> seconds a round, one a line
 * ROUTE: alias (mremap, old_size 0, then MADV_POPULATE_READ), map (mmap MAP_POPULATE of the memfd), touch (mremap,
 * then one store a page), huge (as map, on 2 MiB pages of the pool) */
#include "ring.h"

int main(int argc, char **argv)
{
    (void)argc;
    size_t n = strtoull(argv[1], NULL, 0), page = (size_t)sysconf(_SC_PAGESIZE);
    char route = argv[2][0];
    int rounds = atoi(argv[3]);
    int fd = memfd_create("bench", MFD_CLOEXEC | (route == 'h' ? MFD_HUGETLB : 0u));
    if (fd < 0 || ftruncate(fd, (off_t)n) < 0)
        return 1;
    char *source = ok(mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0));
    memset(source, 1, n);
    for (int i = 0; i < rounds; i++) {
        double start = now();
        char *mirror;
        if (route == 'm' || route == 'h') {
            mirror = ok(mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0));
        } else {
            mirror = ok(mremap(source, 0, n, MREMAP_MAYMOVE));
            if (route == 'a' && madvise(mirror, n, MADV_POPULATE_READ) < 0)
                return 1;
            for (size_t at = 0; route == 't' && at < n; at += page)
                ((volatile char *)mirror)[at] = 1;
        }
        printf("%.9f\n", now() - start);
        munmap(mirror, n);
    }
    return 0;
}
