/* What live views pin, and what pages share because of it. */
#define _GNU_SOURCE
#include "heap_types.h"

#include <stdlib.h>

/* _mesh_most(count): so many mappings meshing may make; 0: none, and it does nothing more */
PyObject *heap_mesh_most(PyObject *self, PyObject *number)
{
    struct mm_heap *core = heap_open(self);
    unsigned long long most = PyLong_AsUnsignedLongLong(number);
    if (core == NULL || PyErr_Occurred())
        return NULL;
    core->meshing.most = most < INT32_MAX ? (uint32_t)most : INT32_MAX;
    Py_RETURN_NONE;
}

/* _meshing() -> (bytes of frames saved, mappings that there are because of that) */
PyObject *heap_meshing(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct mm_heap *core = heap_open(self);
    if (core == NULL)
        return NULL;
    return Py_BuildValue("(KI)", (unsigned long long)(core->meshing.saved << core->page_shift), core->meshing.breaks * core->view_count);
}

/* Larger objects first, and among equals the lower address. */
static int compare(const void *one, const void *other)
{
    const uint64_t *left = one, *right = other;
    if (left[0] != right[0])
        return left[0] < right[0] ? 1 : -1;
    return left[1] < right[1] ? -1 : 1;
}

/* (bytes, root) of pinned objects, the largest `most` of them first. Returns how many. */
static size_t find(const struct mm_heap *core, uint64_t (*found)[2], size_t most)
{
    size_t count = 0;
    for (uint32_t root = 1; root < core->root_count && core->exports != 0; root++) {
        if (core->roots[root].kind == MM_UNUSED || core->roots[root].exports == 0)
            continue;
        found[count][0] = mm_object_nbytes(mm_header_at(core, core->roots[root].offset));
        found[count++][1] = root;
        if (count == 2 * most) {       /* the smaller half cannot be among them */
            qsort(found, count, sizeof *found, compare);
            count = most;
        }
    }
    qsort(found, count, sizeof *found, compare);
    return count < most ? count : most;
}

static PyObject *tell(const struct mm_heap *core, uint32_t root)
{
    const struct mm_root *slot = &core->roots[root];
    Py_ssize_t nbytes;
    uintptr_t address = (uintptr_t)heap_data(core, slot->offset, &nbytes);
    return Py_BuildValue("(KnIOI)", (unsigned long long)address, nbytes, slot->exports,
                         slot->kind == MM_VALUE ? Py_True : Py_False, slot->writers);
}

/* _pins(most) -> [(address, bytes of data, views, whether a container owns it, views that write)], the largest first */
PyObject *heap_pins(PyObject *self, PyObject *number)
{
    struct mm_heap *core = heap_open(self);
    size_t most = PyLong_AsSize_t(number);
    if (core == NULL || PyErr_Occurred())
        return NULL;
    if (most == 0 || most > 1 << 20) {
        PyErr_SetString(PyExc_ValueError, "_pins: a number from 1 to 1,048,576");
        return NULL;
    }
    uint64_t (*found)[2] = malloc(2 * most * sizeof *found);
    if (found == NULL)
        return PyErr_NoMemory();
    size_t count = find(core, found, most);
    PyObject *told = PyList_New((Py_ssize_t)count);
    for (size_t at = 0; told != NULL && at < count; at++) {
        PyObject *one = tell(core, (uint32_t)found[at][1]);
        if (one == NULL)
            Py_CLEAR(told);
        else
            PyList_SetItem(told, (Py_ssize_t)at, one);
    }
    free(found);
    return told;
}
