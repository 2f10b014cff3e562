/* Objects for blocks: one descriptor each, of a length, in pages of a sort. */
#ifndef MIRRORMAP_OBJECTS_H
#define MIRRORMAP_OBJECTS_H

#include <stdbool.h>
#include <stddef.h>

#include "hugefs.h"

/* `huge_nbytes`: of a pool of such pages; 0: ordinary ones, or larger where `kind` can be had, which `*kind` then
 * still says. Of MM_LARGE_AT_ALLOCATE all of them are taken now, if there are any. Returns 0 or an errno. */
int mm_object_new(size_t nbytes, size_t huge_nbytes, enum mm_hugefs *kind, int *fd);
/* The flags by which memfd_create and mmap know a huge page's size. */
int mm_object_shift(size_t huge_nbytes);

#endif
