/* Whole address spaces, of this process or another: their entries, and what stands in their page tables. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <string.h>
#include <sys/sysmacros.h>

enum { STEP = 64 };            /* entries to ask for before the interpreter's lock is taken again */

/* (start, end, protection, shared, page_nbytes, offset, dev, inode, name); takes no reference to the name */
static PyObject *vma_tuple(const struct mm_vma *vma, PyObject *name)
{
    return Py_BuildValue(
        "(KKiOKKKKO)", (unsigned long long)vma->start, (unsigned long long)vma->end, (int)(vma->flags & 7),
        vma->flags & MM_VMA_SHARED ? Py_True : Py_False, (unsigned long long)vma->page_nbytes,
        (unsigned long long)vma->offset, (unsigned long long)makedev(vma->dev_major, vma->dev_minor),
        (unsigned long long)vma->inode, name);
}

/* vma(fd, address, next) -> as above */
PyObject *maps_vma(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, next, error;
    unsigned long long address;
    struct mm_vma vma;
    if (!PyArg_ParseTuple(args, "iKp", &fd, &address, &next))
        return NULL;
    WAITING(error, mm_sys_vma(fd, address, next != 0, &vma));
    if (error != 0)
        return raise_errno(error);
    PyObject *name = PyUnicode_DecodeFSDefault(vma.name);
    if (name == NULL)
        return NULL;
    PyObject *result = vma_tuple(&vma, name);
    Py_DECREF(name);
    return result;
}

/* The next entries from `*address` on, up to STEP; fewer: there are no more. */
static int next_vmas(int fd, uint64_t *address, struct mm_vma *found, size_t *count)
{
    for (*count = 0; *count < STEP; ++*count) {
        struct mm_vma *vma = &found[*count];
        int error = mm_sys_vma(fd, *address, true, vma);
        if (error == ENOENT)
            return 0;
        if (error != 0)
            return error;
        if (vma->start < *address) {   /* it has grown downwards over what was told before */
            vma->offset += *address - vma->start;
            vma->start = *address;
        }
        *address = vma->end;
    }
    return 0;
}

/* Append one tuple an entry; neighbours of one name share the string in `*name`. */
static int append_vmas(PyObject *list, const struct mm_vma *found, size_t count, PyObject **name, char *last)
{
    for (size_t index = 0; index < count; index++) {
        const struct mm_vma *vma = &found[index];
        if (*name == NULL || strcmp(last, vma->name) != 0) {
            Py_XDECREF(*name);
            *name = PyUnicode_DecodeFSDefault(vma->name);
            if (*name == NULL)
                return -1;
            memcpy(last, vma->name, strlen(vma->name) + 1);
        }
        PyObject *tuple = vma_tuple(vma, *name);
        if (tuple == NULL)
            return -1;
        int error = PyList_Append(list, tuple);
        Py_DECREF(tuple);
        if (error < 0)
            return -1;
    }
    return 0;
}

/* vmas(fd) -> [as above, ...], the whole address space */
PyObject *maps_vmas(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, error = 0;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    struct mm_vma *found = PyMem_Malloc((STEP + 1) * sizeof *found);
    if (found == NULL)
        return PyErr_NoMemory();
    PyObject *list = PyList_New(0), *name = NULL;
    uint64_t address = 0;
    size_t count = STEP;
    while (list != NULL && count == STEP) {
        WAITING(error, next_vmas(fd, &address, found, &count));
        if (error != 0)
            raise_errno(error);
        if (error != 0 || append_vmas(list, found, count, &name, found[STEP].name) < 0)
            Py_CLEAR(list);
    }
    Py_XDECREF(name);
    PyMem_Free(found);
    return list;
}

static int sum(int fd, struct mm_walk walk, uint64_t *present, uint64_t *huge)
{
    struct mm_stretch found[256];
    *present = *huge = 0;
    while (walk.start < walk.end) {
        size_t count;
        int error = mm_sys_scan(fd, &walk, found, sizeof found / sizeof found[0], &count);
        if (error != 0)
            return error;
        for (size_t index = 0; index < count; index++) {
            uint64_t nbytes = found[index].end - found[index].start;
            *present += nbytes;
            if (found[index].sort & MM_PAGE_HUGE)
                *huge += nbytes;
        }
    }
    return 0;
}

/* scan(fd, start, end) -> (present, huge), bytes */
PyObject *maps_scan(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, error;
    unsigned long long start, end;
    uint64_t present, huge;
    if (!PyArg_ParseTuple(args, "iKK", &fd, &start, &end))
        return NULL;
    struct mm_walk walk = {start, end, 0, MM_PAGE_PRESENT, MM_PAGE_PRESENT | MM_PAGE_HUGE};
    WAITING(error, sum(fd, walk, &present, &huge));
    if (error != 0)
        return raise_errno(error);
    return Py_BuildValue("(KK)", (unsigned long long)present, (unsigned long long)huge);
}

/* The kernel calls every entry swapped that is neither empty nor a page, so too a guard of MADV_GUARD_INSTALL, such as
 * glibc puts below the stack of a thread. Kernels younger than that advice tell guards apart. */
static int step(int fd, struct mm_walk *walk, struct mm_stretch *found, size_t room, size_t *count)
{
    walk->told |= MM_PAGE_GUARD;
    int error = mm_sys_scan(fd, walk, found, room, count);
    if (error == EINVAL) {
        walk->told &= ~(uint64_t)MM_PAGE_GUARD;
        return mm_sys_scan(fd, walk, found, room, count);
    }
    size_t kept = 0;
    for (size_t index = 0; error == 0 && index < *count; index++)
        if (!(found[index].sort & MM_PAGE_GUARD))
            found[kept++] = found[index];
    *count = kept;
    return error;
}

/* stretches(fd, start, end, pages) -> (bytes of struct mm_stretch, where to go on); one step */
PyObject *maps_stretches(PyObject *module, PyObject *args)
{
    (void)module;
    enum { ROOM = 1 << 14 };
    int fd, error;
    unsigned long long start, end, pages;
    size_t count = 0;
    if (!PyArg_ParseTuple(args, "iKKK", &fd, &start, &end, &pages))
        return NULL;
    struct mm_stretch *found = PyMem_Calloc(ROOM, sizeof *found);
    if (found == NULL)
        return PyErr_NoMemory();
    struct mm_walk walk = {
        start, end, pages, MM_PAGE_PRESENT | MM_PAGE_SWAPPED,
        MM_PAGE_FILE | MM_PAGE_PRESENT | MM_PAGE_SWAPPED | MM_PAGE_ZERO | MM_PAGE_HUGE,
    };
    WAITING(error, step(fd, &walk, found, ROOM, &count));
    PyObject *result = NULL;
    if (error == 0)
        result = Py_BuildValue("(y#K)", (const char *)found, (Py_ssize_t)(count * sizeof *found),
                               (unsigned long long)walk.start);
    else
        raise_errno(error);
    PyMem_Free(found);
    return result;
}
