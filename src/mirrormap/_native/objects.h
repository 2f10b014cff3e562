/* Objects for blocks: one descriptor each, of a length, in pages of a sort. */
#ifndef MIRRORMAP_OBJECTS_H
#define MIRRORMAP_OBJECTS_H

#include <stdbool.h>
#include <stddef.h>

/* Again after a signal: whoever asked for memory cannot be told of it. */
#define AGAIN(error, call) do (error) = (call); while ((error) == EINTR)

/* `huge_nbytes`: of a pool of such pages; 0: ordinary ones. `large`: preferably such as MADV_HUGEPAGE makes
 * huge when they are touched, and then `*faults_huge`. Returns 0 or an errno. */
int mm_object_new(size_t nbytes, size_t huge_nbytes, bool large, int *fd, bool *faults_huge);
/* The flags by which memfd_create and mmap know a huge page's size. */
int mm_object_shift(size_t huge_nbytes);

#endif
