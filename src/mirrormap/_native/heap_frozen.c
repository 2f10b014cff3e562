/* Images of a heap as Python sees them: making one, FrozenBase over one, and the objects in it. */
#define _GNU_SOURCE
#include "heap_record.h"

#include <errno.h>

PyTypeObject *image_type, *frozen_ref_type, *frozen_record_type;

/* A mapped image and what its description said. */
typedef struct {
    PyObject_HEAD
    struct mm_image image;
    uint32_t *words;
    PyObject *region;                  /* NULL: closed, or not attached yet */
    PyObject *dtypes, *types, *layouts;
} FrozenBase;

static FrozenBase *image_of(PyObject *object)
{
    return (FrozenBase *)object;
}

/* --- making one ------------------------------------------------------------------------------ */

static PyObject *frozen_answer(const struct mm_freeze *freeze, int error)
{
    if (error == ENOMEM || error == ENOSPC) {
        PyErr_Format(PyExc_MemoryError, "no memory for an image of %llu bytes", (unsigned long long)freeze->nbytes);
        return NULL;
    }
    if (error != 0 && error != EFBIG)
        return raise_errno(error);
    PyObject *offsets = PyList_New(0);
    for (size_t root = 0; offsets != NULL && root < freeze->root_count; root++) {
        PyObject *offset = PyLong_FromUnsignedLongLong(freeze->roots[root]);
        if (offset == NULL || PyList_Append(offsets, offset) < 0)
            Py_CLEAR(offsets);
        Py_XDECREF(offset);
    }
    if (offsets == NULL)
        return NULL;
    return Py_BuildValue("(OKKKN)", error == 0 ? Py_True : Py_False, (unsigned long long)freeze->end,
                         (unsigned long long)freeze->starts_at, (unsigned long long)freeze->nbytes, offsets);
}

/* _freeze(region, fd, allowed, roots) -> (done, end, starts_at, nbytes, offsets); not done: the region is too short */
PyObject *heap_freeze(PyObject *self, PyObject *args)
{
    PyObject *shown, *numbers;
    int fd;
    unsigned long long allowed;
    if (!PyArg_ParseTuple(args, "O!iKO!", region_type, &shown, &fd, &allowed, &PyList_Type, &numbers))
        return NULL;
    struct mm_heap *core = heap_open(self);
    Region *region = region_open(shown);
    if (core == NULL || region == NULL)
        return NULL;
    size_t count = (size_t)PyList_Size(numbers);
    uint64_t *roots = PyMem_Calloc(count != 0 ? count : 1, sizeof *roots);
    if (roots == NULL)
        return PyErr_NoMemory();
    for (size_t at = 0; at < count; at++) {
        uint32_t root = heap_root(core, PyList_GetItem(numbers, (Py_ssize_t)at));
        if (root == 0) {
            PyMem_Free(roots);
            return NULL;
        }
        roots[at] = core->roots[root].offset;
    }
    struct mm_freeze freeze = {
        .base = (unsigned char *)region->address, .room = region->nbytes, .allowed = allowed, .fd = fd,
        .roots = roots, .root_count = count,
    };
    int error = mm_freeze(core, &freeze);
    PyObject *answer = frozen_answer(&freeze, error);
    PyMem_Free(roots);
    return answer;
}

/* --- one that is there ----------------------------------------------------------------------- */

static FrozenBase *image_open(PyObject *self)
{
    FrozenBase *base = image_of(self);
    if (base->region == NULL) {
        PyErr_SetString(closed_error, "this image is closed");
        return NULL;
    }
    return region_open(base->region) != NULL ? base : NULL;
}

/* _attach(region, end, starts_at, dtypes, layouts, types): ValueError where they do not fit */
static PyObject *image_attach(PyObject *self, PyObject *args)
{
    PyObject *shown, *dtypes, *layouts, *types;
    unsigned long long end, starts_at;
    if (!PyArg_ParseTuple(args, "O!KKO!O!O!", region_type, &shown, &end, &starts_at, &PyTuple_Type, &dtypes, &PyTuple_Type,
                          &layouts, &PyTuple_Type, &types))
        return NULL;
    Region *region = region_open(shown);
    if (region == NULL)
        return NULL;
    FrozenBase *base = image_of(self);
    Py_ssize_t count = PyTuple_Size(layouts);
    if (base->region != NULL || end < MM_IMAGE_START || end % MM_GRANULE != 0 || end > starts_at || starts_at % 8 != 0
        || starts_at > region->nbytes || (end / MM_GRANULE + 63) / 64 * 8 > region->nbytes - starts_at
        || PyTuple_Size(dtypes) >= UINT16_MAX || count > MM_MOST_TYPES || PyTuple_Size(types) != count) {
        PyErr_SetString(PyExc_ValueError, "its parts do not fit together");
        return NULL;
    }
    base->words = PyMem_Calloc((size_t)count + 1, sizeof *base->words);
    if (base->words == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t index = 0; index < count; index++)
        base->words[index] = layout_of(PyTuple_GetItem(layouts, index))->word;
    base->image = (struct mm_image){
        .base = (const unsigned char *)region->address, .end = end,
        .starts = (const uint64_t *)(region->address + starts_at), .words = base->words, .types = (uint32_t)count,
        .dtypes = (uint32_t)PyTuple_Size(dtypes),
    };
    base->region = Py_NewRef(shown);
    base->dtypes = Py_NewRef(dtypes);
    base->layouts = Py_NewRef(layouts);
    base->types = Py_NewRef(types);
    Py_RETURN_NONE;
}

static void image_clear(FrozenBase *base)
{
    Py_CLEAR(base->region);
    Py_CLEAR(base->dtypes);
    Py_CLEAR(base->layouts);
    Py_CLEAR(base->types);
    PyMem_Free(base->words);
    base->words = NULL;
}

static PyObject *image_detach(PyObject *self, PyObject *unused)
{
    (void)unused;
    image_clear(image_of(self));
    Py_RETURN_NONE;
}

static void image_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    image_clear(image_of(self));
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

PyObject *frozen_at(PyObject *self, uint64_t offset)
{
    if (offset == 0)
        Py_RETURN_NONE;
    FrozenBase *base = image_open(self);
    if (base == NULL)
        return NULL;
    const char *wrong = mm_image_check(&base->image, offset);
    if (wrong != NULL) {
        PyErr_Format(corrupt_error, "this image is damaged at offset %llu: %s", (unsigned long long)offset, wrong);
        return NULL;
    }
    const struct mm_object *header = mm_image_at(&base->image, offset);
    Py_ssize_t number = mm_is_record(header) ? (Py_ssize_t)mm_type(header) : -1;
    PyObject *type = number >= 0 ? PyTuple_GetItem(base->types, number) : (PyObject *)frozen_ref_type;
    Frozen *made = PyObject_New(Frozen, (PyTypeObject *)type);
    if (made == NULL)
        return NULL;
    made->image = Py_NewRef(self);
    made->offset = offset;
    made->layout = number >= 0 ? Py_NewRef(PyTuple_GetItem(base->layouts, number)) : NULL;
    return (PyObject *)made;
}

struct mm_object *frozen_header(PyObject *self)
{
    Frozen *frozen = (Frozen *)self;
    FrozenBase *base = image_open(frozen->image);
    return base != NULL ? mm_image_at(&base->image, frozen->offset) : NULL;
}

PyObject *image_region(PyObject *self)
{
    return image_of(self)->region;
}

PyObject *image_dtype(PyObject *self, Py_ssize_t index)
{
    return PyTuple_GetItem(image_of(self)->dtypes, index);
}

static PyObject *image_at(PyObject *self, PyObject *number)
{
    unsigned long long offset = PyLong_AsUnsignedLongLong(number);
    return PyErr_Occurred() == NULL ? frozen_at(self, offset) : NULL;
}

static PyObject *image_get_closed(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(image_of(self)->region == NULL);
}

static PyMethodDef image_methods[] = {
    {"_attach", image_attach, METH_VARARGS, NULL},
    {"_detach", image_detach, METH_NOARGS, NULL},
    {"_at", image_at, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef image_getset[] = {
    {"closed", image_get_closed, NULL, "Whether close() was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot image_slots[] = {
    {Py_tp_doc, "Objects in an image of a heap."},
    {Py_tp_dealloc, image_dealloc},
    {Py_tp_methods, image_methods},
    {Py_tp_getset, image_getset},
    {0, NULL},
};

PyType_Spec image_spec = {
    .name = "mirrormap._core.FrozenBase",
    .basicsize = sizeof(FrozenBase),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = image_slots,
};
