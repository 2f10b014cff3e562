/* Objects of an image: FrozenRef, and FrozenRecord, base of the classes of its records. */
#define _GNU_SOURCE
#include "heap_record.h"

#include "heap_doc.h"
#include "numpy.h"

#include <string.h>

static Frozen *frozen_of(PyObject *object)
{
    return (Frozen *)object;
}

bool is_frozen_record(PyObject *object)
{
    return PyType_IsSubtype(Py_TYPE(object), frozen_record_type) != 0;
}

static void frozen_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(frozen_of(self)->image);
    Py_XDECREF(frozen_of(self)->layout);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int frozen_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    view->obj = NULL;
    struct mm_object *header = frozen_header(self);
    if (header == NULL)
        return -1;
    PyObject *region = image_region(frozen_of(self)->image);
    size_t at = (size_t)(mm_data(header) - (unsigned char *)region_of(region)->address);
    return region_export(region_of(region), self, at, (size_t)mm_data_nbytes(header), true, view, flags);
}

static void frozen_releasebuffer(PyObject *self, Py_buffer *view)
{
    region_unexport(region_of(image_region(frozen_of(self)->image)), view);
}

/* Does a shape in an image fill the bytes that are there? NumPy refuses products too large for it of an empty one too. */
static bool fills(const npy_intp *dims, int ndim, npy_intp item_nbytes, uint64_t nbytes)
{
    npy_intp total = item_nbytes;
    bool empty = false;
    for (int axis = 0; axis < ndim; axis++) {
        if (dims[axis] < 0)
            return false;
        empty = empty || dims[axis] == 0;
        if (dims[axis] != 0 && __builtin_mul_overflow(total, dims[axis], &total))
            return false;
    }
    return item_nbytes > 0 && (empty ? nbytes == 0 : (uint64_t)total == nbytes);
}

static PyObject *array_over(PyObject *self, struct mm_object *header, PyObject *view)
{
    npy_intp dims[MM_MOST_DIMS] = {(npy_intp)mm_data_nbytes(header)};
    int ndim = header->dtype != 0 ? header->ndim : 1;
    if (header->dtype != 0)
        memcpy(dims, (const unsigned char *)header + mm_shape_at(header), 8u * header->ndim);
    PyArray_Descr *descr = header->dtype == 0
        ? PyArray_DescrFromType(NPY_UINT8)
        : (PyArray_Descr *)Py_NewRef(image_dtype(frozen_of(self)->image, header->dtype - 1));
    if (descr == NULL)
        return NULL;
    if (ndim > NPY_MAXDIMS || !fills(dims, ndim, PyDataType_ELSIZE(descr), mm_data_nbytes(header))) {
        Py_DECREF(descr);
        PyErr_SetString(corrupt_error, "this image is damaged: an array is not as long as its shape");
        return NULL;
    }
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, ndim, dims, NULL, mm_data(header), 0, NULL);
    if (array != NULL && PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(view)) < 0)
        Py_CLEAR(array);
    return array;
}

static PyObject *get_array(PyObject *self, void *unused)
{
    (void)unused;
    PyObject *view = PyMemoryView_FromObject(self);
    struct mm_object *header = view != NULL ? frozen_header(self) : NULL;
    PyObject *array = header != NULL ? array_over(self, header, view) : NULL;
    Py_XDECREF(view);
    return array;
}

static PyObject *get_nbytes(PyObject *self, void *unused)
{
    (void)unused;
    const struct mm_object *header = frozen_header(self);
    return header != NULL ? PyLong_FromUnsignedLongLong(mm_data_nbytes(header)) : NULL;
}

static PyObject *get_nrefs(PyObject *self, void *unused)
{
    (void)unused;
    const struct mm_object *header = frozen_header(self);
    return header != NULL ? PyLong_FromUnsignedLong(mm_nrefs(header)) : NULL;
}

static PyObject *frozen_bytes(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct mm_object *header = frozen_header(self);
    return header != NULL ? PyBytes_FromStringAndSize((const char *)mm_data(header), (Py_ssize_t)mm_data_nbytes(header)) : NULL;
}

static PyObject *frozen_getitem(PyObject *self, PyObject *index)
{
    Py_ssize_t at = PyNumber_AsSsize_t(index, PyExc_IndexError);
    struct mm_object *header = at == -1 && PyErr_Occurred() != NULL ? NULL : frozen_header(self);
    if (header == NULL)
        return NULL;
    if (at < 0)
        at += (Py_ssize_t)mm_nrefs(header);
    if (at < 0 || at >= (Py_ssize_t)mm_nrefs(header)) {
        PyErr_Format(PyExc_IndexError, "the object has %u references", mm_nrefs(header));
        return NULL;
    }
    return frozen_at(frozen_of(self)->image, atomic_load_explicit(&mm_slots(header)[at], memory_order_relaxed));
}

static PyObject *frozen_compare(PyObject *self, PyObject *other, int how)
{
    if (Py_TYPE(other) != Py_TYPE(self) || (how != Py_EQ && how != Py_NE))
        Py_RETURN_NOTIMPLEMENTED;
    bool same = frozen_of(self)->image == frozen_of(other)->image && frozen_of(self)->offset == frozen_of(other)->offset;
    return PyBool_FromLong(same == (how == Py_EQ));
}

static Py_hash_t frozen_hash(PyObject *self)
{
    Py_hash_t hash = (Py_hash_t)((uintptr_t)frozen_of(self)->image >> 4 ^ frozen_of(self)->offset << 20);
    return hash == -1 ? -2 : hash;
}

static PyObject *frozen_repr(PyObject *self)
{
    struct mm_object *header = frozen_header(self);
    if (header == NULL) {
        PyErr_Clear();
        return PyUnicode_FromString("<FrozenRef closed>");
    }
    return PyUnicode_FromFormat("<FrozenRef %llu bytes, %u references>", (unsigned long long)mm_data_nbytes(header), mm_nrefs(header));
}

static PyMethodDef frozen_methods[] = {
    {"__bytes__", frozen_bytes, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef frozen_getset[] = {
    {"array", get_array, NULL, array_doc, NULL},
    {"nbytes", get_nbytes, NULL, "Bytes of data, without references.", NULL},
    {"nrefs", get_nrefs, NULL, "How many references it has: ref[0] and so on.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot frozen_ref_slots[] = {
    {Py_tp_doc, (char *)frozen_ref_doc},
    {Py_tp_dealloc, frozen_dealloc},
    {Py_tp_repr, frozen_repr},
    {Py_tp_hash, frozen_hash},
    {Py_tp_richcompare, frozen_compare},
    {Py_tp_methods, frozen_methods},
    {Py_tp_getset, frozen_getset},
    {Py_mp_subscript, frozen_getitem},
    {Py_bf_getbuffer, frozen_getbuffer},
    {Py_bf_releasebuffer, frozen_releasebuffer},
    {0, NULL},
};

PyType_Spec frozen_ref_spec = {
    .name = "mirrormap.FrozenRef",
    .basicsize = sizeof(Frozen),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = frozen_ref_slots,
};

static PyObject *record_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    (void)args;
    (void)names;
    PyErr_Format(PyExc_TypeError, "%R is of a frozen image, to which nothing is added", (PyObject *)type);
    return NULL;
}

static PyObject *record_repr_or_closed(PyObject *self)
{
    if (frozen_header(self) != NULL)
        return record_repr(self);
    PyErr_Clear();
    return PyUnicode_FromFormat("<%U closed>", layout_of(frozen_of(self)->layout)->name);
}

static PyType_Slot frozen_record_slots[] = {
    {Py_tp_doc, (char *)frozen_record_doc},
    {Py_tp_new, record_new},
    {Py_tp_dealloc, frozen_dealloc},
    {Py_tp_repr, record_repr_or_closed},
    {Py_tp_hash, frozen_hash},
    {Py_tp_richcompare, frozen_compare},
    {0, NULL},
};

PyType_Spec frozen_record_spec = {
    .name = "mirrormap.FrozenRecord",
    .basicsize = sizeof(Frozen),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = frozen_record_slots,
};
