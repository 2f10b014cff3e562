/* One populated mirror of memory that is there, made and unmapped again, in seconds without the unmapping; negative:
 * it failed. A shared object, so that both sides mirror the very same pages: how they happen to lie in physical
 * memory decides up to a third of the time. */
#include "clock.h"

/* ROUTE: a: mremap with old_size 0, then MADV_POPULATE_READ; m: mmap of `fd` with MAP_POPULATE; t: mremap, then one
 * store a page */
double c_mirror(void *source, size_t nbytes, int fd, char route)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    double start = now();
    char *mirror;
    if (route == 'm')
        mirror = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    else
        mirror = mremap(source, 0, nbytes, MREMAP_MAYMOVE);
    if (mirror == MAP_FAILED || (route == 'a' && madvise(mirror, nbytes, MADV_POPULATE_READ) < 0))
        return -1;
    for (size_t at = 0; route == 't' && at < nbytes; at += page)
        ((volatile char *)mirror)[at] = 1; /* a load first would map 16 pages at a time */
    double seconds = now() - start;
    return munmap(mirror, nbytes) == 0 ? seconds : -1;
}
