/* Windows: reserving a range of addresses and placing pages in it. Placing is
 * possible only inside a range that is owned, which is what makes every
 * MAP_FIXED here safe. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <sys/mman.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define RESERVATION (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

static int reserve_at(uintptr_t address, size_t nbytes, uintptr_t *result)
{
    int error = mm_sys_map(address, nbytes, PROT_NONE, RESERVATION | MAP_FIXED_NOREPLACE, -1, 0,
                           result);
    if (error == 0 && *result != address) {   /* before 4.17 the flag was only a hint */
        mm_sys_unmap(*result, nbytes);
        error = EEXIST;
    }
    return error;
}

/* A window whose address is `skew` modulo `alignment`, a power of two. */
static int reserve_aligned(size_t nbytes, size_t alignment, size_t skew, uintptr_t *result)
{
    uintptr_t got;
    int error = mm_sys_map(0, nbytes, PROT_NONE, RESERVATION, -1, 0, &got);
    if (error != 0 || (got & (alignment - 1)) == skew) {
        *result = got;
        return error;
    }
    error = mm_sys_unmap(got, nbytes);
    if (error != 0)
        return error;
    if (nbytes > SIZE_MAX - alignment)
        return ENOMEM;
    error = mm_sys_map(0, nbytes + alignment, PROT_NONE, RESERVATION, -1, 0, &got);
    if (error != 0)
        return error;
    size_t before = (skew - got) & (alignment - 1);
    size_t after = alignment - before;
    if (before != 0 && (error = mm_sys_unmap(got, before)) != 0) {
        mm_sys_unmap(got, nbytes + alignment);
        return error;
    }
    if (after != 0 && (error = mm_sys_unmap(got + before + nbytes, after)) != 0) {
        mm_sys_unmap(got + before, nbytes + after);
        return error;
    }
    *result = got + before;
    return 0;
}

/* reserve(nbytes, alignment, skew, address) -> Region; address 0: the kernel's choice */
PyObject *region_reserve(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    (void)module;
    int64_t number[4];
    if (!take_numbers(args, given, number, 4))
        return NULL;
    int64_t nbytes = number[0], alignment = number[1], skew = number[2];
    if (nbytes <= 0 || alignment <= 0 || (alignment & (alignment - 1)) != 0 || skew < 0
        || skew >= alignment) {
        PyErr_SetString(PyExc_ValueError, "reserve: bad size, alignment or skew");
        return NULL;
    }
    uintptr_t address = (uintptr_t)number[3];
    int error;
    if (address != 0)
        WAITING(error, reserve_at(address, (size_t)nbytes, &address));
    else
        WAITING(error, reserve_aligned((size_t)nbytes, (size_t)alignment, (size_t)skew, &address));
    if (error != 0)
        return raise_errno(error);
    PyObject *region = region_make(address, (size_t)nbytes);
    if (region == NULL)
        mm_sys_unmap(address, (size_t)nbytes);
    return region;
}

/* map(nbytes, protection, flags, fd, fd_offset) -> Region where the kernel likes */
PyObject *region_map(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    (void)module;
    int64_t number[5];
    if (!take_numbers(args, given, number, 5))
        return NULL;
    int64_t nbytes = number[0], fd_offset = number[4];
    int protection = (int)number[1], flags = (int)number[2], fd = (int)number[3];
    if (nbytes <= 0) {
        PyErr_SetString(PyExc_ValueError, "map: bad size");
        return NULL;
    }
    uintptr_t address;
    int error;
    WAITING(error, mm_sys_map(0, (size_t)nbytes, protection, flags | MAP_SHARED, fd, fd_offset,
                              &address));
    if (error != 0)
        return raise_errno(error);
    PyObject *region = region_make(address, (size_t)nbytes);
    if (region == NULL)
        mm_sys_unmap(address, (size_t)nbytes);
    return region;
}

/* After a MAP_FIXED into the window failed: the kernel may have unmapped the
 * target first. Take the hole back before a stranger does; where that cannot be
 * proved, give up the window from there on and never unmap the hole. */
void region_mend(Region *region, size_t offset, size_t nbytes)
{
    uintptr_t hole = region->address + offset, got;
    int error = reserve_at(hole, nbytes, &got);
    if (error == 0)
        return;
    /* EEXIST and every page mapped and unreadable: still our own reservation */
    if (error == EEXIST && mm_sys_sync(hole, nbytes, MS_ASYNC) == 0
        && mm_sys_readable(hole) == EFAULT)
        return;
    size_t behind = offset + nbytes;
    if (behind < region->window)
        mm_sys_unmap(region->address + behind, region->window - behind);
    region->window = offset;
    if (region->nbytes > offset)
        region->nbytes = offset;
}

/* place(offset, nbytes, protection, flags, fd, fd_offset): mmap over the window */
PyObject *region_place(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[6];
    if (!take_numbers(args, given, number, 6))
        return NULL;
    int64_t offset = number[0], nbytes = number[1], fd_offset = number[5];
    int protection = (int)number[2], flags = (int)number[3], fd = (int)number[4];
    Region *region = region_open(self);
    if (region == NULL || !region_holds(region, (size_t)offset, (size_t)nbytes))
        return NULL;
    uintptr_t target = region->address + (size_t)offset, got;
    int error;
    WAITING(error, mm_sys_map(target, (size_t)nbytes, protection, flags | MAP_SHARED | MAP_FIXED,
                              fd, fd_offset, &got));
    if (error != 0) {
        region_mend(region, (size_t)offset, (size_t)nbytes);
        return raise_errno(error);
    }
    Py_RETURN_NONE;
}

/* alias(offset, nbytes, source): mremap(source, 0, ...) over the window */
PyObject *region_alias(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[3];
    if (!take_numbers(args, given, number, 3))
        return NULL;
    int64_t offset = number[0], nbytes = number[1];
    uintptr_t source = (uintptr_t)number[2];
    Region *region = region_open(self);
    if (region == NULL || !region_holds(region, (size_t)offset, (size_t)nbytes))
        return NULL;
    uintptr_t target = region->address + (size_t)offset, got;
    if (source < target + (size_t)nbytes && target < source + (size_t)nbytes) {
        PyErr_SetString(PyExc_ValueError, "source and target overlap: the kernel would unmap the source");
        return NULL;
    }
    int error;
    WAITING(error, mm_sys_remap(source, 0, (size_t)nbytes,
                                MREMAP_MAYMOVE | MREMAP_FIXED, target, &got));
    if (error != 0) {
        region_mend(region, (size_t)offset, (size_t)nbytes);
        return raise_errno(error);
    }
    Py_RETURN_NONE;
}

/* vacate(offset, nbytes): back to a reservation, pages out of sight */
PyObject *region_vacate(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    if (!take_numbers(args, given, number, 2))
        return NULL;
    int64_t offset = number[0], nbytes = number[1];
    Region *region = region_open(self);
    if (region == NULL || !region_holds(region, (size_t)offset, (size_t)nbytes)
        || region_refuse_shown(region, (size_t)offset, (size_t)offset + (size_t)nbytes))
        return NULL;
    uintptr_t got;
    int error;
    WAITING(error, mm_sys_map(region->address + (size_t)offset, (size_t)nbytes, PROT_NONE,
                              RESERVATION | MAP_FIXED, -1, 0, &got));
    if (error != 0)
        return raise_errno(error);
    Py_RETURN_NONE;
}

/* trim(window): unmap everything behind and own no more than that */
PyObject *region_trim(PyObject *self, PyObject *args)
{
    Py_ssize_t window;
    if (!PyArg_ParseTuple(args, "n", &window))
        return NULL;
    Region *region = region_open(self);
    if (region == NULL)
        return NULL;
    if (window <= 0 || (size_t)window > region->window) {
        PyErr_SetString(PyExc_ValueError, "trim: outside the reserved window");
        return NULL;
    }
    if ((size_t)window == region->window)
        Py_RETURN_NONE;
    if (region_refuse_shown(region, (size_t)window, region->window))
        return NULL;
    int error;
    WAITING(error, mm_sys_unmap(region->address + (size_t)window, region->window - (size_t)window));
    if (error != 0)
        return raise_errno(error);
    region->window = (size_t)window;
    if (region->nbytes > region->window)
        region->nbytes = region->window;
    Py_RETURN_NONE;
}

/* split(window) -> Region owning what lies behind; this one keeps the front */
PyObject *region_split(PyObject *self, PyObject *args)
{
    Py_ssize_t window;
    if (!PyArg_ParseTuple(args, "n", &window))
        return NULL;
    Region *region = region_open(self);
    if (region == NULL)
        return NULL;
    if (window <= 0 || (size_t)window >= region->window || region->nbytes > (size_t)window) {
        PyErr_SetString(PyExc_ValueError, "split: not inside the free part of the window");
        return NULL;
    }
    PyObject *rest = region_make(region->address + (size_t)window, region->window - (size_t)window);
    if (rest != NULL)
        region->window = (size_t)window;
    return rest;
}
