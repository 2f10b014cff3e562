#define _GNU_SOURCE
#include "objects.h"
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

int mm_object_new(size_t nbytes, size_t huge_nbytes, enum mm_hugefs *kind, int *fd)
{
    int error;
    *fd = -1;
    if (*kind == MM_NO_HUGEFS || huge_nbytes != 0 || mm_hugefs_file(*kind, "mirrormap:numpy", fd) != 0) {
        *kind = MM_NO_HUGEFS;
        error = make_memfd(huge_nbytes, fd);
        if (error != 0)
            return error;
    }
    AGAIN(error, mm_sys_truncate(*fd, (int64_t)nbytes));
    if (error == 0 && *kind == MM_NO_HUGEFS)
        AGAIN(error, mm_sys_seal(*fd, F_SEAL_SHRINK));
    if (error == 0 && *kind == MM_LARGE_AT_ALLOCATE)
        (void)mm_sys_allocate(*fd, 0, 0, (int64_t)nbytes);     /* else they come as they are touched */
    if (error != 0) {
        mm_sys_close(*fd);
        *fd = -1;
    }
    return error;
}
