/* What a snapshot does to the ranges of two regions: page tables go from one to the other, and a
 * view that arrays show is replaced by another view of the same object, in one call. Both keep the
 * rule of window.c: MAP_FIXED and MREMAP_FIXED only inside what a region owns. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <sys/mman.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* A FIXED call that failed late has unmapped its target: take the hole back before a stranger can.
 * Where there is none this answers EEXIST and changes nothing. */
static int hold_hole(uintptr_t target, size_t nbytes)
{
    uintptr_t got;
    return mm_sys_map(target, nbytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0, &got);
}

/* carry(offset, nbytes, source, source_offset): mremap(source + source_offset, nbytes, nbytes,
 * MAYMOVE|FIXED|DONTUNMAP, self + offset). This region shows the source's pages with the source's
 * page-table entries; the source shows them still, and has none. */
PyObject *region_carry(PyObject *self, PyObject *args)
{
    Py_ssize_t offset, nbytes, source_offset;
    PyObject *object;
    if (!PyArg_ParseTuple(args, "nnO!n", &offset, &nbytes, region_type, &object, &source_offset))
        return NULL;
    Region *region = region_open(self), *source = region_open(object);
    if (region == NULL || source == NULL || !region_holds(region, (size_t)offset, (size_t)nbytes)
        || !region_holds(source, (size_t)source_offset, (size_t)nbytes))
        return NULL;
    if (region == source) {
        PyErr_SetString(PyExc_ValueError, "carry: between two regions");
        return NULL;
    }
    uintptr_t target = region->address + (size_t)offset, got;
    bool reserved = mm_sys_readable(target) == EFAULT; /* else arrays show it */
    int error;
    WAITING(error, mm_sys_remap(source->address + (size_t)source_offset, (size_t)nbytes,
                                (size_t)nbytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
                                target, &got));
    if (error != 0) {
        if (reserved)
            region_mend(region, (size_t)offset, (size_t)nbytes);
        else
            hold_hole(target, (size_t)nbytes);
        return raise_errno(error);
    }
    Py_RETURN_NONE;
}

/* The object shown over [target, target + nbytes), shared or private, in place of what is there. */
static int show_over(uintptr_t target, size_t nbytes, int protection, bool private, int fd,
                     int64_t fd_offset)
{
    uintptr_t got;
    int flags = MAP_FIXED | (private ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED);
    return mm_sys_map(target, nbytes, protection, flags, fd, fd_offset, &got);
}

/* replace(offset, nbytes, protection, private, fd, fd_offset): one mmap over a range that arrays
 * show. A MAP_FIXED that failed late has unmapped it: then it is shown shared again. */
PyObject *region_replace(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[6];
    if (!take_numbers(args, given, number, 6))
        return NULL;
    int64_t offset = number[0], nbytes = number[1], fd_offset = number[5];
    int protection = (int)number[2], fd = (int)number[4];
    Region *region = region_open(self);
    if (region == NULL || !region_holds(region, (size_t)offset, (size_t)nbytes))
        return NULL;
    uintptr_t target = region->address + (size_t)offset;
    int error;
    WAITING(error, show_over(target, (size_t)nbytes, protection, number[3] != 0, fd, fd_offset));
    if (error != 0) {
        if (hold_hole(target, (size_t)nbytes) == 0)
            show_over(target, (size_t)nbytes, protection, false, fd, fd_offset);
        return raise_errno(error);
    }
    Py_RETURN_NONE;
}
