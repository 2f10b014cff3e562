/* Looking values up, taking them out: the operations of a container that have one key. */
#define _GNU_SOURCE
#include "heap_container.h"

#include "heap_doc.h"
#include "numpy.h"

#include <string.h>

struct mm_heap *container_open(const Container *self)
{
    if (self->heap != NULL && self->life == heap_of(self->heap)->life)
        return heap_open(self->heap);
    PyErr_SetString(closed_error, "the heap of these values is closed");
    return NULL;
}

/* _attach(heap, limit or None, callback or None) */
static PyObject *container_attach(PyObject *object, PyObject *args)
{
    Container *self = container_of(object);
    PyObject *heap, *limit, *on_evict;
    if (!PyArg_ParseTuple(args, "O!OO", heap_type, &heap, &limit, &on_evict))
        return NULL;
    uint64_t nbytes = limit != Py_None ? PyLong_AsUnsignedLongLong(limit) : UINT64_MAX;
    struct mm_heap *core = heap_open(heap);
    if (PyErr_Occurred() || core == NULL)
        return NULL;
    if (self->heap != NULL) {
        PyErr_SetString(PyExc_ValueError, "_attach: this container has a heap");
        return NULL;
    }
    if (mm_owner_open(core, &self->owner) != 0)
        return PyErr_NoMemory();
    self->heap = Py_NewRef(heap);
    self->life = heap_of(heap)->life;
    self->limit = nbytes;
    self->bounded = limit != Py_None;
    self->on_evict = on_evict != Py_None ? Py_NewRef(on_evict) : NULL;
    Py_RETURN_NONE;
}

/* --- values ------------------------------------------------------------------------------------- */

static const struct mm_entry *entry_at(const Container *self, uint32_t entry)
{
    return &mm_entries(&heap_of(self->heap)->core.index)[entry];
}

static PyObject *array_of(const Container *self, uint32_t entry)
{
    struct mm_heap *core = &heap_of(self->heap)->core;
    const struct mm_object *header = mm_header_at(core, entry_at(self, entry)->offset);
    PyObject *descr = PyList_GetItem(heap_of(self->heap)->dtypes, header->dtype - 1);
    npy_intp dims[NPY_MAXDIMS];
    memcpy(dims, (const unsigned char *)header + mm_shape_at(header), 8u * header->ndim);
    uint64_t changes = self->owner.changes;
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)Py_NewRef(descr), header->ndim, dims, NULL,
                                           NULL, 0, NULL);
    /* making it may have run a collection of Python's, and destructors that do anything */
    if (array != NULL && (container_open(self) == NULL || self->owner.changes != changes))
        Py_CLEAR(array);
    if (array != NULL) {
        Py_ssize_t nbytes;
        const unsigned char *data = heap_data(core, entry_at(self, entry)->offset, &nbytes);
        memcpy(PyArray_DATA((PyArrayObject *)array), data, (size_t)nbytes);
    }
    return array;
}

PyObject *copy_of(const Container *self, uint32_t entry)
{
    const struct mm_heap *core = &heap_of(self->heap)->core;
    uint64_t offset = entry_at(self, entry)->offset;
    if (mm_header_at(core, offset)->dtype != 0)
        return array_of(self, entry);
    Py_ssize_t nbytes;
    const unsigned char *data = heap_data(core, offset, &nbytes);
    return PyBytes_FromStringAndSize((const char *)data, nbytes);
}

uint64_t nbytes_of(const struct mm_heap *core, uint32_t entry)
{
    return mm_data_nbytes(mm_header_at(core, mm_entries(&core->index)[entry].offset));
}

PyObject *take_out(Container *self, struct mm_heap *core, uint32_t entry)
{
    PyObject *key = key_held(&mm_entries(&core->index)[entry]);
    uint64_t nbytes = nbytes_of(core, entry);
    mm_entry_remove(core, &self->owner, entry);
    mm_give_way(core, nbytes);
    return key;
}

enum use { PEEK, USE, TAKE };

/* A copy of the value of a key. NULL without an exception: there is none. */
static PyObject *fetch(Container *self, PyObject *object, enum use use)
{
    struct wanted wanted;
    if (wanted_of(object, &wanted) < 0)
        return NULL;
    for (;;) {
        uint32_t entry;
        if (find(self, &wanted, &entry) <= 0)
            return NULL;
        struct mm_heap *core = &heap_of(self->heap)->core;
        PyObject *value = copy_of(self, entry);
        if (value == NULL && !PyErr_Occurred())
            continue;
        if (value != NULL && use == TAKE)
            Py_XDECREF(take_out(self, core, entry));
        else if (value != NULL && use == USE && self->bounded)
            mm_entry_touch(core, &self->owner, entry);
        return value;
    }
}

static PyObject *fetch_or_raise(PyObject *self, PyObject *object, enum use use)
{
    PyObject *value = fetch(container_of(self), object, use);
    return value != NULL || PyErr_Occurred() ? value : no_such_key(object);
}

static PyObject *container_getitem(PyObject *self, PyObject *object)
{
    return fetch_or_raise(self, object, USE);
}

static PyObject *container_peek(PyObject *self, PyObject *object)
{
    return fetch_or_raise(self, object, PEEK);
}

/* (key, default) as positions or words: the default, `missing` where none was given, NULL: TypeError. */
static PyObject *default_of(PyObject *const *args, Py_ssize_t given, PyObject *names, PyObject *missing)
{
    Py_ssize_t named = names != NULL ? PyTuple_Size(names) : 0;
    if (given == 1 && named == 0)
        return missing;
    if (given == 2 && named == 0)
        return args[1];
    if (given == 1 && named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "default") == 0)
        return args[1];
    PyErr_SetString(PyExc_TypeError, "a key is needed, and a default may follow");
    return NULL;
}

static PyObject *container_get(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *otherwise = default_of(args, given, names, Py_None);
    if (otherwise == NULL)
        return NULL;
    PyObject *value = fetch(container_of(self), args[0], USE);
    return value != NULL || PyErr_Occurred() ? value : Py_NewRef(otherwise);
}

static PyObject *container_pop(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *otherwise = default_of(args, given, names, self);
    if (otherwise == NULL)
        return NULL;
    PyObject *value = fetch(container_of(self), args[0], TAKE);
    if (value != NULL || PyErr_Occurred())
        return value;
    return otherwise == self ? no_such_key(args[0]) : Py_NewRef(otherwise);
}

/* 1: it is there, 0: it is not, -1: an exception is set. */
static int look_up(const Container *self, PyObject *key, uint32_t *entry)
{
    struct wanted wanted;
    return wanted_of(key, &wanted) < 0 ? -1 : find(self, &wanted, entry);
}

static PyObject *container_view(PyObject *object, PyObject *key)
{
    Container *self = container_of(object);
    uint32_t entry;
    int found = look_up(self, key, &entry);
    if (found <= 0)
        return found < 0 ? NULL : no_such_key(key);
    struct mm_heap *core = &heap_of(self->heap)->core;
    bool plain = mm_header_at(core, entry_at(self, entry)->offset)->dtype == 0;
    uint32_t root = mm_show(core, entry);
    if (root == 0)
        return PyErr_NoMemory();
    if (self->bounded)
        mm_entry_touch(core, &self->owner, entry);
    PyObject *lens = ref_make(lens_type, self->heap, root, false);
    PyObject *array = lens != NULL && !plain ? ref_array(lens) : Py_XNewRef(lens);
    PyObject *view = array != NULL ? PyMemoryView_FromObject(array) : NULL;
    Py_XDECREF(array);
    Py_XDECREF(lens);
    return view;
}

/* --- the rest -------------------------------------------------------------------------------------- */

static int container_remove(PyObject *object, PyObject *key)
{
    Container *self = container_of(object);
    uint32_t entry;
    int found = look_up(self, key, &entry);
    if (found == 0)
        no_such_key(key);
    if (found <= 0)
        return -1;
    Py_XDECREF(take_out(self, &heap_of(self->heap)->core, entry));
    return 0;
}

static int container_setitem(PyObject *self, PyObject *key, PyObject *value)
{
    return value != NULL ? container_assign(self, key, value) : container_remove(self, key);
}

static int container_contains(PyObject *self, PyObject *key)
{
    uint32_t entry;
    return look_up(container_of(self), key, &entry);
}

static Py_ssize_t container_length(PyObject *self)
{
    return container_open(container_of(self)) != NULL ? (Py_ssize_t)container_of(self)->owner.count : -1;
}

static PyObject *get_nbytes(PyObject *self, void *unused)
{
    (void)unused;
    if (container_open(container_of(self)) == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(container_of(self)->owner.nbytes);
}

static PyObject *get_limit(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(container_of(self)->limit);
}

static int set_limit(PyObject *self, PyObject *value, void *unused)
{
    (void)unused;
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "a limit cannot be deleted");
        return -1;
    }
    unsigned long long limit = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred())
        return -1;
    container_of(self)->limit = limit;
    return 0;
}

static PyObject *get_heap(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(container_of(self)->heap != NULL ? container_of(self)->heap : Py_None);
}

static void container_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    container_clear(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

#define WORDS(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL | METH_KEYWORDS

static PyMethodDef container_methods[] = {
    {"_attach", container_attach, METH_VARARGS, NULL},
    {"_peek", container_peek, METH_O, NULL},
    {"view", container_view, METH_O, view_doc},
    {"get", WORDS(container_get), get_doc},
    {"pop", WORDS(container_pop), pop_doc},
    {"popitem", container_popitem, METH_NOARGS, popitem_doc},
    {"clear", container_clear_all, METH_NOARGS, clear_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef container_getset[] = {
    {"nbytes", get_nbytes, NULL, "Bytes of payload of all values.", NULL},
    {"_limit", get_limit, set_limit, NULL, NULL},
    {"_heap", get_heap, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot container_slots[] = {
    {Py_tp_doc, "Keys, and values that lie in a heap."},
    {Py_tp_dealloc, container_dealloc},
    {Py_tp_traverse, container_traverse},
    {Py_tp_clear, container_clear},
    {Py_tp_iter, container_iter},
    {Py_mp_length, container_length},
    {Py_mp_subscript, container_getitem},
    {Py_mp_ass_subscript, container_setitem},
    {Py_sq_contains, container_contains},
    {Py_tp_methods, container_methods},
    {Py_tp_getset, container_getset},
    {0, NULL},
};

PyType_Spec container_spec = {
    .name = "mirrormap._core.Container",
    .basicsize = sizeof(Container),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = container_slots,
};
