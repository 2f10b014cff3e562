/* Files in memory that take transparent huge pages as they are touched, where MADV_HUGEPAGE asks.
 *
 * A memfd lies on the kernel's own mount of tmpfs, and that takes huge pages only where the administrator
 * says so in shmem_enabled, which by default is "never". A tmpfs mounted by ourselves with huge=advise
 * does as it is asked: one fault for each huge page instead of 512, and a ninth of the time. */
#ifndef MIRRORMAP_HUGEFS_H
#define MIRRORMAP_HUGEFS_H

#include <stdbool.h>

/* An empty nameless file, or an errno: no such mount can be made here. Unlike a memfd it cannot be sealed.
 * `name` is seen in /proc/PID/maps. Made once a process, and again where somebody closed its descriptor. */
int mm_hugefs_file(const char *name, int *fd);

#endif
