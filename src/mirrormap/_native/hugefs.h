/* Files in memory that take transparent huge pages, or large ones, where they are asked to.
 *
 * A memfd lies on the kernel's own mount of tmpfs, and that takes huge pages only where the administrator
 * says so in shmem_enabled, which by default is "never". A tmpfs mounted by ourselves does as it is asked:
 * with huge=advise there is one fault for each huge page instead of 512, and a ninth of the time; with
 * huge=within_size fallocate(2) takes the largest pieces that fit (Linux 6.14), and a first touch maps a piece. */
#ifndef MIRRORMAP_HUGEFS_H
#define MIRRORMAP_HUGEFS_H

#include <stdbool.h>

enum mm_hugefs {
    MM_NO_HUGEFS = -1,
    MM_HUGE_AT_TOUCH,      /* under MADV_HUGEPAGE */
    MM_LARGE_AT_ALLOCATE,  /* what fallocate takes */
    MM_HUGEFS_KINDS,
};

/* An empty nameless file, or an errno: no such mount can be made here. Unlike a memfd it cannot be sealed.
 * `name` is seen in /proc/PID/maps. Its mount is made once a process, and again where somebody closed its descriptor. */
int mm_hugefs_file(enum mm_hugefs kind, const char *name, int *fd);

#endif
