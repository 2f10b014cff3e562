#define _GNU_SOURCE
#include "objects.h"
#include "hugefs.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif
#define HUGE_SHIFT 26 /* where both calls want log2 of a huge page's size */

int mm_object_shift(size_t huge_nbytes)
{
    return huge_nbytes == 0 ? 0 : __builtin_ctzll(huge_nbytes) << HUGE_SHIFT;
}

static int make_memfd(size_t huge_nbytes, int *fd)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int error;
    if (huge_nbytes != 0)
        flags |= MFD_HUGETLB | (unsigned)mm_object_shift(huge_nbytes);
    AGAIN(error, mm_sys_memfd("mirrormap:numpy", flags | MFD_NOEXEC_SEAL, fd));
    if (error == EINVAL)       /* before 6.3 */
        AGAIN(error, mm_sys_memfd("mirrormap:numpy", flags, fd));
    return error;
}

int mm_object_new(size_t nbytes, size_t huge_nbytes, bool large, int *fd, bool *faults_huge)
{
    int error;
    *fd = -1;
    *faults_huge = large && huge_nbytes == 0 && mm_hugefs_file("mirrormap:numpy", fd) == 0;
    error = *faults_huge ? 0 : make_memfd(huge_nbytes, fd);
    if (error != 0)
        return error;
    AGAIN(error, mm_sys_truncate(*fd, (int64_t)nbytes));
    if (error == 0 && !*faults_huge)
        AGAIN(error, mm_sys_seal(*fd, F_SEAL_SHRINK));
    if (error != 0) {
        mm_sys_close(*fd);
        *fd = -1;
    }
    return error;
}
