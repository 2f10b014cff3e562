/* What stands in a page table, by walks of PAGEMAP_SCAN. */
#include "core.h"

#include <errno.h>

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
PyObject *scan_sums(PyObject *module, PyObject *args)
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

/* stretches(fd, start, end, pages) -> (bytes of struct mm_stretch, where to go on); one step */
PyObject *scan_stretches(PyObject *module, PyObject *args)
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
    WAITING(error, mm_sys_scan(fd, &walk, found, ROOM, &count));
    PyObject *result = NULL;
    if (error == 0)
        result = Py_BuildValue("(y#K)", (const char *)found, (Py_ssize_t)(count * sizeof *found),
                               (unsigned long long)walk.start);
    else
        raise_errno(error);
    PyMem_Free(found);
    return result;
}
