/* maps.c under a kernel that answers anything: PROCMAP_QUERY and PAGEMAP_SCAN are what libFuzzer says they are. */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t *at, *end;

static uint64_t take(size_t count)
{
    uint64_t value = 0;
    for (size_t i = 0; i < count && at < end; i++)
        value |= (uint64_t)*at++ << 8 * i;
    return value;
}

PyObject *raise_errno(int error)
{
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

int mm_sys_vma(int fd, uint64_t address, bool next, struct mm_vma *result)
{
    (void)fd, (void)next;
    if (at == end)
        return ENOENT;
    memset(result, 0, sizeof *result);
    uint64_t sort = take(1);
    if (sort % 16 == 0)
        return (int)take(1) % 3 == 0 ? ENOTTY : ESRCH;
    /* what the kernel promises is an entry that ends behind the address; the rest is anything */
    result->start = sort % 16 == 1 ? take(8) : address + take(2);
    result->end = address + 1 + take(sort % 2 ? 2 : 8);
    result->flags = take(1);
    result->page_nbytes = take(3);
    result->offset = take(8);
    result->dev_major = (uint32_t)take(4), result->dev_minor = (uint32_t)take(4);
    result->inode = take(8);
    for (size_t i = 0, count = take(1); i < count && i < sizeof result->name - 1; i++)
        result->name[i] = (char)take(1);
    return 0;
}

int mm_sys_scan(int fd, struct mm_walk *walk, struct mm_stretch *found, size_t room, size_t *count)
{
    (void)fd;
    if (at == end) {
        walk->start = walk->end;
        *count = 0;
        return 0;
    }
    if (take(1) % 16 == 0)
        return ENOTTY;
    size_t wanted = take(2);
    *count = wanted < room ? wanted : room;
    for (size_t i = 0; i < *count; i++)
        found[i] = (struct mm_stretch){take(4), take(4), take(1)};
    walk->start += 1 + take(3);
    return 0;
}

static void asked(PyObject *(*question)(PyObject *, PyObject *), PyObject *arguments)
{
    if (arguments == NULL)
        abort();
    PyObject *answer = question(NULL, arguments);
    if (answer == NULL && !PyErr_ExceptionMatches(PyExc_OSError)) {
        PyErr_Print();
        abort();
    }
    PyErr_Clear();
    Py_XDECREF(answer);
    Py_DECREF(arguments);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (!Py_IsInitialized())
        Py_InitializeEx(0);
    at = bytes, end = bytes + count;
    switch (take(1) % 4) {
    case 0: asked(maps_vma, Py_BuildValue("(iKi)", 0, take(6), (int)take(1) % 2)); break;
    case 1: asked(maps_vmas, Py_BuildValue("(i)", 0)); break;
    case 2: asked(maps_scan, Py_BuildValue("(iKK)", 0, take(6), take(6))); break;
    default: asked(maps_stretches, Py_BuildValue("(iKKK)", 0, take(6), take(6), take(2)));
    }
    return 0;
}
