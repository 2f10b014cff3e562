/* Ring: where its bytes lie, and windows of it as arrays. */
#define _GNU_SOURCE
#include "ring.h"

#define MIRRORMAP_NUMPY_OWNER
#include "numpy.h"
#include "ring_doc.h"

static Ring *ring_of(PyObject *object)
{
    return (Ring *)object;
}

Ring *ring_open(PyObject *self)
{
    return places_open(self) != NULL ? ring_of(self) : NULL;
}

PyObject *ring_array(Ring *ring, uint64_t start, uint64_t count, bool writable)
{
    char *first = ring->base + start * ring->item_nbytes % ring->nbytes;
    PyArray_Descr *descr = (PyArray_Descr *)ring->descr;
    npy_intp dims[32];
    for (int i = 1; i < ring->ndim; i++)
        dims[i] = ring->dims[i];
    dims[0] = (npy_intp)count;
    int flags = NPY_ARRAY_C_CONTIGUOUS | (writable ? NPY_ARRAY_WRITEABLE : 0);
    if ((uintptr_t)first % (uintptr_t)PyDataType_ALIGNMENT(descr) == 0)
        flags |= NPY_ARRAY_ALIGNED;
    Py_INCREF(ring->descr);
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, ring->ndim, dims, NULL, first, flags, NULL);
    /* No export is counted: a window keeps its pages and nothing more. The base of a read-only one
     * gives out read-only buffers, so that its flag cannot be turned round. */
    PyObject *base = writable ? ring->data : ring->shown;
    if (array != NULL && PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(base)) < 0)
        Py_CLEAR(array);
    return array;
}

/* _attach(control, data, shown, nbytes, descr, item_nbytes, shape, overwrite): two regions, of which
 * `data` shows the same `nbytes` twice in a row, and a read-only span of it */
static PyObject *ring_attach(PyObject *self, PyObject *args)
{
    Ring *ring = ring_of(self);
    PyObject *control, *data, *shown, *descr, *shape;
    long long nbytes, item_nbytes;
    int overwrite;
    if (!PyArg_ParseTuple(args, "O!O!O!LOLO!p", region_type, &control, region_type, &data, span_type, &shown,
                          &nbytes, &descr, &item_nbytes, &PyTuple_Type, &shape, &overwrite))
        return NULL;
    Py_ssize_t ndim = PyTuple_Size(shape) + 1;
    if (!PyArray_DescrCheck(descr) || nbytes <= 0 || item_nbytes <= 0 || item_nbytes > nbytes || ndim > 32
        || region_of(control)->nbytes < MM_CONTROL || region_of(data)->nbytes < 2 * (size_t)nbytes
        || ring->places.shared != NULL) {
        PyErr_SetString(PyExc_ValueError, "_attach: geometry that cannot be");
        return NULL;
    }
    for (Py_ssize_t i = 1; i < ndim; i++) {
        ring->dims[i] = PyLong_AsSsize_t(PyTuple_GetItem(shape, i - 1));
        if (ring->dims[i] == -1 && PyErr_Occurred())
            return NULL;
    }
    ring->ndim = (int)ndim;
    ring->nbytes = (uint64_t)nbytes;
    ring->item_nbytes = (uint64_t)item_nbytes;
    ring->places.capacity = ring->nbytes / ring->item_nbytes;
    ring->overwrite = overwrite != 0;
    ring->places.noun = "ring";
    ring->places.control = Py_NewRef(control);
    ring->data = Py_NewRef(data);
    ring->shown = Py_NewRef(shown);
    ring->descr = Py_NewRef(descr);
    ring->places.shared = (struct mm_control *)region_of(control)->address;
    ring->base = (char *)region_of(data)->address;
    Py_RETURN_NONE;
}

/* _detach(): let go of the pages; windows keep theirs */
static PyObject *ring_detach(PyObject *self, PyObject *unused)
{
    (void)unused;
    Ring *ring = ring_of(self);
    if (ring->places.busy) {
        PyErr_SetString(PyExc_RuntimeError, "another thread waits inside this ring");
        return NULL;
    }
    ring->places.shared = NULL;
    ring->places.holder = 0;
    Py_CLEAR(ring->places.control);
    Py_CLEAR(ring->data);
    Py_CLEAR(ring->shown);
    Py_CLEAR(ring->descr);
    Py_RETURN_NONE;
}

static void ring_dealloc(PyObject *self)
{
    Ring *ring = ring_of(self);
    PyTypeObject *type = Py_TYPE(self);
    Py_CLEAR(ring->places.control);
    Py_CLEAR(ring->data);
    Py_CLEAR(ring->shown);
    Py_CLEAR(ring->descr);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* --- windows --- */

static uint64_t written_of(const Ring *ring)
{
    return atomic_load_explicit(&ring->places.shared->written, memory_order_acquire);
}

static PyObject *refuse_overrun(PyObject *self, uint64_t start, uint64_t oldest)
{
    PyObject *unused = PyObject_CallMethod(self, "_overrun", "KK", (unsigned long long)start,
                                           (unsigned long long)oldest);
    Py_XDECREF(unused);
    return NULL;
}

/* Items [start, start + count), which must be written and intact. */
static PyObject *window_at(PyObject *self, Ring *ring, uint64_t start, uint64_t count)
{
    uint64_t oldest = mm_oldest(ring->places.shared, ring->places.capacity);
    if (start < oldest && count > 0)
        return refuse_overrun(self, start, oldest);
    return ring_array(ring, start, count, false);
}

static PyObject *ring_latest(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t count;
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, &count, 1))
        return NULL;
    uint64_t written = written_of(ring);
    if (count < 0 || (uint64_t)count > written || (uint64_t)count > ring->places.capacity)
        return PyErr_Format(PyExc_ValueError, "%lld items are asked for; %llu are written, and the ring holds %llu",
                            (long long)count, (unsigned long long)written, (unsigned long long)ring->places.capacity);
    return window_at(self, ring, written - (uint64_t)count, (uint64_t)count);
}

static PyObject *ring_window(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t at[2];
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, at, 2))
        return NULL;
    uint64_t written = written_of(ring);
    if (at[0] < 0 || at[1] < at[0])
        return PyErr_Format(PyExc_ValueError, "no window from item %lld to %lld", (long long)at[0], (long long)at[1]);
    if ((uint64_t)at[1] > written)
        return PyErr_Format(PyExc_IndexError, "item %lld is not written yet: %llu are", (long long)at[1] - 1,
                            (unsigned long long)written);
    uint64_t count = (uint64_t)(at[1] - at[0]);
    if (count > ring->places.capacity)
        return refuse_overrun(self, (uint64_t)at[0], mm_oldest(ring->places.shared, ring->places.capacity));
    return window_at(self, ring, (uint64_t)at[0], count);
}

static PyObject *ring_valid(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t start;
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, &start, 1))
        return NULL;
    return PyBool_FromLong(start >= 0 && (uint64_t)start >= mm_oldest(ring->places.shared, ring->places.capacity));
}

static PyObject *get_written(PyObject *self, void *unused)
{
    (void)unused;
    Ring *ring = ring_open(self);
    return ring != NULL ? PyLong_FromUnsignedLongLong(written_of(ring)) : NULL;
}

static PyObject *get_oldest(PyObject *self, void *unused)
{
    (void)unused;
    Ring *ring = ring_open(self);
    if (ring == NULL)
        return NULL;
    uint64_t written = written_of(ring), oldest = mm_oldest(ring->places.shared, ring->places.capacity);
    return PyLong_FromUnsignedLongLong(oldest < written ? oldest : written);
}

static PyObject *get_capacity(PyObject *self, void *unused)
{
    (void)unused;
    Ring *ring = ring_open(self);
    return ring != NULL ? PyLong_FromUnsignedLongLong(ring->places.capacity) : NULL;
}

static PyObject *get_regions(PyObject *self, void *unused)
{
    (void)unused;
    Ring *ring = ring_open(self);
    return ring != NULL ? PyTuple_Pack(3, ring->places.control, ring->data, ring->shown) : NULL;
}

/* As of Places. It is ours from this very moment, for the other threads too; a reservation that an earlier holder
 * had open is none. */
static PyObject *ring_seize_writer(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    PyObject *seized = places_seize_writer(self, args, given);
    Ring *ring = ring_of(self);
    if (seized == Py_True && PyObject_IsTrue(args[1]) == 1) {
        ring->places.holder = this_process;
        ring->reserved = 0;
        ring->limit = 0;
    }
    return seized;
}

static PyMethodDef ring_methods[] = {
    {"_attach", ring_attach, METH_VARARGS, NULL},
    {"_detach", ring_detach, METH_NOARGS, NULL},
    {"_seize_writer", FASTCALL(ring_seize_writer), NULL},
    {"append", (PyCFunction)(void (*)(void))ring_append, METH_FASTCALL | METH_KEYWORDS, append_doc},
    {"extend", (PyCFunction)(void (*)(void))ring_extend, METH_FASTCALL | METH_KEYWORDS, extend_doc},
    {"reserve", (PyCFunction)(void (*)(void))ring_reserve, METH_FASTCALL | METH_KEYWORDS, reserve_doc},
    {"commit", FASTCALL(ring_commit), commit_doc},
    {"latest", FASTCALL(ring_latest), latest_doc},
    {"window", FASTCALL(ring_window), window_doc},
    {"valid", FASTCALL(ring_valid), valid_doc},
    {"_wait_data", FASTCALL(ring_wait_data), NULL},
    {"_wait_room", FASTCALL(ring_wait_room), NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ring_getset[] = {
    {"written", get_written, NULL, written_doc, NULL},
    {"oldest", get_oldest, NULL, oldest_doc, NULL},
    {"capacity", get_capacity, NULL, capacity_doc, NULL},
    {"_regions", get_regions, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, "Base of Ring: cursors in shared memory, and windows between them."},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_methods, ring_methods},
    {Py_tp_getset, ring_getset},
    {0, NULL},
};

PyType_Spec ring_spec = {
    .name = "mirrormap._core.RingBase",
    .basicsize = sizeof(Ring),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ring_slots,
};

int ring_setup(void)
{
    return PyArray_ImportNumPyAPI();
}
