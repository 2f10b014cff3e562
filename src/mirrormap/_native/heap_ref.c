/* Ref: a hold on an object of the heap, and its bytes as buffer and array. Lens: the same look at what no
 * Ref may name, or with the right to write. */
#define _GNU_SOURCE
#include "heap_record.h"

#include "heap_doc.h"
#include "numpy.h"

#include <string.h>

PyTypeObject *ref_type, *lens_type;

static Ref *ref_of(PyObject *object)
{
    return (Ref *)object;
}

static void let_go(struct mm_heap *core, uint32_t root)
{
    if (core->roots[root].kind == MM_VALUE)
        mm_show_no_more(core, root);
    else
        mm_drop(core, root);
}

PyObject *ref_make(PyTypeObject *type, PyObject *heap, uint32_t root, bool writable)
{
    Ref *ref = PyObject_New(Ref, type);
    if (ref == NULL) {
        let_go(&heap_of(heap)->core, root);
        return NULL;
    }
    ref->heap = Py_NewRef(heap);
    ref->root = root;
    ref->writable = writable;
    return (PyObject *)ref;
}

/* Where its object lies; 0: ClosedError. */
static uint64_t where(const Ref *ref)
{
    struct mm_heap *core = heap_open(ref->heap);
    return core != NULL ? core->roots[ref->root].offset : 0;
}

static struct mm_heap *core_of(const Ref *ref)
{
    return &heap_of(ref->heap)->core;
}

uint64_t ref_offset(struct mm_heap *core, PyObject *heap, PyObject *object)
{
    if (Py_TYPE(object) != ref_type && !is_record(object)) {
        PyErr_Format(PyExc_TypeError, "a Ref or a record is needed, not %R", (PyObject *)Py_TYPE(object));
        return 0;
    }
    if (ref_of(object)->heap != heap) {
        PyErr_SetString(PyExc_ValueError, "this Ref belongs to another heap");
        return 0;
    }
    return core->roots[ref_of(object)->root].offset;
}

unsigned char *heap_data(const struct mm_heap *core, uint64_t offset, Py_ssize_t *nbytes)
{
    struct mm_object *header = mm_header_at(core, offset);
    *nbytes = (Py_ssize_t)mm_data_nbytes(header);
    return (unsigned char *)(header + 1);
}

void ref_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Ref *ref = ref_of(self);
    if (heap_is_ours(ref->heap))
        let_go(core_of(ref), ref->root);
    Py_DECREF(ref->heap);
    PyObject_Free(self);
    Py_DECREF(type);
}

static bool pin(const Ref *ref)
{
    struct mm_heap *core = core_of(ref);
    if (!ref->writable) {
        mm_pin(core, ref->root);
        return true;
    }
    if (mm_pin_written(core, ref->root) == 0)
        return true;
    PyErr_Format(PyExc_MemoryError, "no room to write to an object that shares its pages: the heap holds %llu of at most "
                 "%llu bytes", (unsigned long long)core->committed, (unsigned long long)core->limit);
    return false;
}

static void unpin(const Ref *ref)
{
    if (ref->writable)
        mm_unpin_written(core_of(ref), ref->root);
    else
        mm_unpin(core_of(ref), ref->root);
}

static int ref_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    Ref *ref = ref_of(self);
    view->obj = NULL;
    if (where(ref) == 0)
        return -1;
    if (!pin(ref))                     /* which may move it, for the last time */
        return -1;
    Py_ssize_t nbytes;
    void *data = heap_data(core_of(ref), where(ref), &nbytes);
    if (PyBuffer_FillInfo(view, self, data, nbytes, !ref->writable, flags) == 0)
        return 0;
    unpin(ref);
    return -1;
}

static void ref_releasebuffer(PyObject *self, Py_buffer *view)
{
    (void)view;
    if (heap_is_ours(ref_of(self)->heap))
        unpin(ref_of(self));
    else
        core_of(ref_of(self))->exports--;   /* a forked child's own count: what it may not unmap yet */
}

PyObject *ref_array(PyObject *self)
{
    Ref *ref = ref_of(self);
    /* pin it first: whatever is allocated below may run destructors, and they may let the heap move things */
    PyObject *view = PyMemoryView_FromObject(self);
    if (view == NULL)
        return NULL;
    uint64_t offset = core_of(ref)->roots[ref->root].offset;
    const struct mm_object *header = mm_header_at(core_of(ref), offset);
    npy_intp dims[NPY_MAXDIMS] = {(npy_intp)mm_data_nbytes(header)};
    PyObject *descr;
    if (header->dtype == 0) {
        descr = (PyObject *)PyArray_DescrFromType(NPY_UINT8);
    } else {
        memcpy(dims, (const unsigned char *)header + mm_shape_at(header), 8u * header->ndim);
        descr = Py_XNewRef(PyList_GetItem(heap_of(ref->heap)->dtypes, header->dtype - 1));
    }
    Py_ssize_t nbytes;
    PyObject *array = descr == NULL ? NULL
        : PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)descr, header->dtype == 0 ? 1 : header->ndim, dims, NULL,
                               heap_data(core_of(ref), offset, &nbytes), ref->writable ? NPY_ARRAY_WRITEABLE : 0, NULL);
    if (array == NULL)
        Py_DECREF(view);
    else if (PyArray_SetBaseObject((PyArrayObject *)array, view) < 0)
        Py_CLEAR(array);
    return array;
}

static PyObject *get_array(PyObject *self, void *unused)
{
    (void)unused;
    return ref_array(self);
}

static PyObject *get_nbytes(PyObject *self, void *unused)
{
    (void)unused;
    uint64_t offset = where(ref_of(self));
    return offset != 0 ? PyLong_FromUnsignedLongLong(mm_data_nbytes(mm_header_at(core_of(ref_of(self)), offset))) : NULL;
}

static PyObject *get_nrefs(PyObject *self, void *unused)
{
    (void)unused;
    uint64_t offset = where(ref_of(self));
    return offset != 0 ? PyLong_FromUnsignedLong(mm_nrefs(mm_header_at(core_of(ref_of(self)), offset))) : NULL;
}

static PyObject *ref_bytes(PyObject *self, PyObject *unused)
{
    (void)unused;
    uint64_t offset = where(ref_of(self));
    if (offset == 0)
        return NULL;
    Py_ssize_t nbytes;
    const char *data = (const char *)heap_data(core_of(ref_of(self)), offset, &nbytes);
    return PyBytes_FromStringAndSize(data, nbytes);
}

/* The reference slot of an index, or NULL with an exception. */
static _Atomic uint64_t *slot_at(PyObject *self, PyObject *index)
{
    Py_ssize_t at = PyNumber_AsSsize_t(index, PyExc_IndexError);
    uint64_t offset = at == -1 && PyErr_Occurred() ? 0 : where(ref_of(self));
    if (offset == 0)
        return NULL;
    struct mm_object *header = mm_header_at(core_of(ref_of(self)), offset);
    if (at < 0)
        at += (Py_ssize_t)mm_nrefs(header);
    if (at < 0 || at >= (Py_ssize_t)mm_nrefs(header)) {
        PyErr_Format(PyExc_IndexError, "the object has %u references", mm_nrefs(header));
        return NULL;
    }
    return &mm_slots(header)[at];
}

static PyObject *ref_getitem(PyObject *self, PyObject *index)
{
    _Atomic uint64_t *slot = slot_at(self, index);
    if (slot == NULL)
        return NULL;
    struct mm_heap *core = core_of(ref_of(self));
    uint64_t reference = mm_load_reference(core, slot);
    if (reference == 0)
        Py_RETURN_NONE;
    return heap_object_at(ref_of(self)->heap, reference);
}

static int ref_setitem(PyObject *self, PyObject *index, PyObject *value)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "references cannot be deleted: store None");
        return -1;
    }
    _Atomic uint64_t *slot = slot_at(self, index);
    if (slot == NULL)
        return -1;
    struct mm_heap *core = core_of(ref_of(self));
    uint64_t offset = 0;
    if (value != Py_None && (offset = ref_offset(core, ref_of(self)->heap, value)) == 0)
        return -1;
    mm_store(core, slot, offset);
    return 0;
}

PyObject *ref_compare(PyObject *self, PyObject *other, int how)
{
    if (Py_TYPE(other) != Py_TYPE(self) || (how != Py_EQ && how != Py_NE))
        Py_RETURN_NOTIMPLEMENTED;
    bool same = ref_of(self)->heap == ref_of(other)->heap && ref_of(self)->root == ref_of(other)->root;
    return PyBool_FromLong(same == (how == Py_EQ));
}

Py_hash_t ref_hash(PyObject *self)
{
    Py_hash_t hash = (Py_hash_t)((uintptr_t)ref_of(self)->heap >> 4 ^ (uintptr_t)ref_of(self)->root << 24);
    return hash == -1 ? -2 : hash;
}

static PyObject *ref_repr(PyObject *self)
{
    if (!heap_is_ours(ref_of(self)->heap))
        return PyUnicode_FromString("<Ref closed>");
    const struct mm_object *header = mm_header_at(core_of(ref_of(self)), core_of(ref_of(self))->roots[ref_of(self)->root].offset);
    return PyUnicode_FromFormat("<Ref %llu bytes, %u references>", (unsigned long long)mm_data_nbytes(header), mm_nrefs(header));
}

static PyObject *ref_writable(PyObject *self, PyObject *unused)
{
    (void)unused;
    uint64_t offset = where(ref_of(self));
    if (offset == 0)
        return NULL;
    uint32_t root = mm_hold(core_of(ref_of(self)), offset);
    return ref_make(lens_type, ref_of(self)->heap, root, true);
}

static PyMethodDef ref_methods[] = {
    {"__bytes__", ref_bytes, METH_NOARGS, NULL},
    {"writable", ref_writable, METH_NOARGS, writable_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ref_getset[] = {
    {"array", get_array, NULL, array_doc, NULL},
    {"nbytes", get_nbytes, NULL, "Bytes of data, without references.", NULL},
    {"nrefs", get_nrefs, NULL, "How many references it has: ref[0] and so on.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ref_slots[] = {
    {Py_tp_doc, (char *)ref_doc},
    {Py_tp_dealloc, ref_dealloc},
    {Py_tp_repr, ref_repr},
    {Py_tp_hash, ref_hash},
    {Py_tp_richcompare, ref_compare},
    {Py_tp_methods, ref_methods},
    {Py_tp_getset, ref_getset},
    {Py_mp_subscript, ref_getitem},
    {Py_mp_ass_subscript, ref_setitem},
    {Py_bf_getbuffer, ref_getbuffer},
    {Py_bf_releasebuffer, ref_releasebuffer},
    {0, NULL},
};

PyType_Spec ref_spec = {
    .name = "mirrormap.Ref",
    .basicsize = sizeof(Ref),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ref_slots,
};

static PyObject *lens_enter(PyObject *self, PyObject *unused)
{
    (void)unused;
    return ref_array(self);
}

static PyObject *lens_exit(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    Py_RETURN_NONE;
}

static PyMethodDef lens_methods[] = {
    {"__enter__", lens_enter, METH_NOARGS, NULL},
    {"__exit__", lens_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lens_slots[] = {
    {Py_tp_doc, "A look at an object of a heap, by one who may write, or at a value that a container owns."},
    {Py_tp_dealloc, ref_dealloc},
    {Py_tp_methods, lens_methods},
    {Py_bf_getbuffer, ref_getbuffer},
    {Py_bf_releasebuffer, ref_releasebuffer},
    {0, NULL},
};

PyType_Spec lens_spec = {
    .name = "mirrormap._core.Lens",
    .basicsize = sizeof(Ref),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = lens_slots,
};
