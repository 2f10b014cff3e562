/* Layout and Field: what a declared type of records is made of, and its fields as descriptors. */
#define _GNU_SOURCE
#include "heap_record.h"

#include <stdbool.h>
#include <string.h>

PyTypeObject *layout_type, *field_type;

static uint64_t last_serial;

Layout *layout_of(PyObject *object)
{
    return (Layout *)object;
}

static Field *field_of(PyObject *object)
{
    return (Field *)object;
}

static unsigned nbytes_of(char kind)
{
    switch (kind) {
    case '?': case 'b': case 'B': return 1;
    case 'h': case 'H': return 2;
    case 'i': case 'I': case 'f': return 4;
    default: return strchr("qQdR", kind) != NULL && kind != 0 ? 8 : 0;
    }
}

/* Fields of `nbytes` get their places one behind the other, from *at on; references are apart, and last. */
static bool place(PyObject *fields, unsigned nbytes, bool references, uint32_t *at)
{
    for (Py_ssize_t index = 0; index < PyTuple_Size(fields); index++) {
        Field *field = field_of(PyTuple_GetItem(fields, index));
        if (nbytes_of(field->kind) != nbytes || (field->kind == 'R') != references)
            continue;
        field->at = *at;
        *at += nbytes;
        if (*at > MM_RECORD_HEADER + 8 * MM_MOST_WORDS * (references ? 2u : 1u)) {
            PyErr_SetString(PyExc_ValueError, "a record is limited to 8,184 bytes of data and 1,023 references");
            return false;
        }
    }
    return true;
}

/* The largest first, so that each is aligned and none leaves a gap. */
static bool place_all(Layout *layout, unsigned number)
{
    uint32_t at = MM_RECORD_HEADER;
    for (unsigned nbytes = 8; nbytes > 0; nbytes /= 2)
        if (!place(layout->fields, nbytes, false, &at))
            return false;
    uint32_t words = (at - MM_RECORD_HEADER + 7) / 8, start = MM_RECORD_HEADER + 8 * words;
    at = start;
    if (!place(layout->fields, 8, true, &at))
        return false;
    uint32_t nrefs = (at - start) / 8;
    if (nrefs > MM_MOST_WORDS) {
        PyErr_SetString(PyExc_ValueError, "a record has at most 1,023 references");
        return false;
    }
    layout->word = MM_RECORD | number << 20 | words << 10 | nrefs;
    return true;
}

static PyObject *field_make(Layout *layout, PyObject *pair)
{
    PyObject *name;
    int kind;
    if (!PyTuple_Check(pair)) {
        PyErr_SetString(PyExc_TypeError, "a field is a pair of its name and its kind");
        return NULL;
    }
    if (!PyArg_ParseTuple(pair, "UC", &name, &kind))
        return NULL;
    if (kind > 127 || nbytes_of((char)kind) == 0) {
        PyErr_Format(PyExc_ValueError, "field %R is of no kind that a record can have", name);
        return NULL;
    }
    Field *field = PyObject_New(Field, field_type);
    if (field == NULL)
        return NULL;
    field->name = Py_NewRef(name);
    field->serial = layout->serial;
    field->at = 0;
    field->kind = (char)kind;
    return (PyObject *)field;
}

static bool make_fields(Layout *layout, PyObject *pairs)
{
    Py_ssize_t count = PyTuple_Size(pairs);
    layout->fields = PyTuple_New(count);
    layout->places = PyDict_New();
    if (layout->fields == NULL || layout->places == NULL)
        return false;
    for (Py_ssize_t index = 0; index < count; index++) {
        PyObject *field = field_make(layout, PyTuple_GetItem(pairs, index));
        if (field == NULL || PyTuple_SetItem(layout->fields, index, field) < 0
            || PyDict_SetItem(layout->places, field_of(field)->name, field) < 0)
            return false;
    }
    if (PyDict_Size(layout->places) != count) {
        PyErr_SetString(PyExc_ValueError, "two fields have the same name");
        return false;
    }
    return true;
}

/* Layout(name, number, ((field, kind), ...)) */
static PyObject *layout_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *name, *pairs;
    unsigned number;
    (void)names;
    if (!PyArg_ParseTuple(args, "UIO!", &name, &number, &PyTuple_Type, &pairs))
        return NULL;
    if (number >= MM_MOST_TYPES) {
        PyErr_Format(PyExc_ValueError, "there can be %d types of records, and no more", MM_MOST_TYPES);
        return NULL;
    }
    Layout *layout = PyObject_New(Layout, type);
    if (layout == NULL)
        return NULL;
    layout->heap = layout->fields = layout->places = NULL;
    layout->name = Py_NewRef(name);
    layout->serial = ++last_serial;
    if (make_fields(layout, pairs) && place_all(layout, number))
        return (PyObject *)layout;
    Py_DECREF(layout);
    return NULL;
}

static void layout_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(layout_of(self)->name);
    Py_XDECREF(layout_of(self)->fields);
    Py_XDECREF(layout_of(self)->places);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *layout_get_fields(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(layout_of(self)->fields);
}

static PyObject *layout_get_nbytes(PyObject *self, void *unused)
{
    (void)unused;
    const struct mm_object header = {.word = layout_of(self)->word};
    return PyLong_FromUnsignedLongLong(mm_object_nbytes(&header));
}

static PyGetSetDef layout_getset[] = {
    {"fields", layout_get_fields, NULL, NULL, NULL},
    {"nbytes", layout_get_nbytes, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot layout_slots[] = {
    {Py_tp_doc, "The fields of a type of records, and where they lie."},
    {Py_tp_new, layout_new},
    {Py_tp_dealloc, layout_dealloc},
    {Py_tp_getset, layout_getset},
    {0, NULL},
};

PyType_Spec layout_spec = {
    .name = "mirrormap._core.Layout",
    .basicsize = sizeof(Layout),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = layout_slots,
};

/* --- one field of one record --------------------------------------------------------------- */

static PyObject *load(const unsigned char *data, char kind)
{
    union { int8_t b; uint8_t B; int16_t h; uint16_t H; int32_t i; uint32_t I; int64_t q; uint64_t Q; float f; double d; } value;
    memcpy(&value, data, nbytes_of(kind));
    switch (kind) {
    case '?': return PyBool_FromLong(value.B != 0);
    case 'b': return PyLong_FromLong(value.b);
    case 'B': return PyLong_FromLong(value.B);
    case 'h': return PyLong_FromLong(value.h);
    case 'H': return PyLong_FromLong(value.H);
    case 'i': return PyLong_FromLong(value.i);
    case 'I': return PyLong_FromUnsignedLong(value.I);
    case 'q': return PyLong_FromLongLong(value.q);
    case 'Q': return PyLong_FromUnsignedLongLong(value.Q);
    case 'f': return PyFloat_FromDouble(value.f);
    default: return PyFloat_FromDouble(value.d);
    }
}

/* An int that fits, as `to`. */
static bool whole(PyObject *value, char kind, unsigned char *to)
{
    PyObject *number = PyNumber_Index(value);
    if (number == NULL)
        return false;
    unsigned nbytes = nbytes_of(kind), shift = 64 - 8 * nbytes;
    uint64_t bits;
    bool fits;
    if (strchr("BHIQ", kind) != NULL) {
        bits = PyLong_AsUnsignedLongLong(number);
        fits = bits <= UINT64_MAX >> shift;
    } else {
        int64_t found = PyLong_AsLongLong(number);
        bits = (uint64_t)found;
        fits = found <= INT64_MAX >> shift && found >= INT64_MIN >> shift;
    }
    Py_DECREF(number);
    if (PyErr_Occurred() != NULL && !PyErr_ExceptionMatches(PyExc_OverflowError))
        return false;
    if (PyErr_Occurred() != NULL || !fits) {
        PyErr_Format(PyExc_OverflowError, "%R does not fit into %u bytes", value, nbytes);
        return false;
    }
    uint8_t one = (uint8_t)bits;
    uint16_t two = (uint16_t)bits;
    uint32_t four = (uint32_t)bits;
    memcpy(to, nbytes == 1 ? (void *)&one : nbytes == 2 ? (void *)&two : nbytes == 4 ? (void *)&four : (void *)&bits, nbytes);
    return true;
}

/* A value as the bytes of a field. It may run Python code. */
static bool convert(PyObject *value, char kind, unsigned char *to)
{
    if (kind == '?') {
        int truth = PyObject_IsTrue(value);
        to[0] = truth > 0;
        return truth >= 0;
    }
    if (kind != 'f' && kind != 'd')
        return whole(value, kind, to);
    double number = PyFloat_AsDouble(value);
    if (number == -1 && PyErr_Occurred() != NULL)
        return false;
    float single = (float)number;
    memcpy(to, kind == 'f' ? (void *)&single : (void *)&number, nbytes_of(kind));
    return true;
}

static _Atomic uint64_t *slot_of(struct mm_object *header, const Field *field)
{
    return (_Atomic uint64_t *)(void *)((unsigned char *)header + field->at);
}

/* The record that a field is asked of; NULL: it is none of this layout, or its heap is closed. */
static struct mm_object *find(const Field *field, PyObject *owner, bool *frozen)
{
    PyObject *layout = NULL;
    *frozen = is_frozen_record(owner);
    if (*frozen)
        layout = ((Frozen *)owner)->layout;
    else if (is_record(owner))
        layout = ((Record *)owner)->layout;
    if (layout == NULL || layout_of(layout)->serial != field->serial) {
        PyErr_Format(PyExc_TypeError, "field %R is none of %R", field->name, (PyObject *)Py_TYPE(owner));
        return NULL;
    }
    if (*frozen)
        return frozen_header(owner);
    Ref *ref = &((Record *)owner)->ref;
    struct mm_heap *core = heap_open(ref->heap);
    return core != NULL ? mm_header_at(core, core->roots[ref->root].offset) : NULL;
}

static PyObject *field_get(PyObject *self, PyObject *owner, PyObject *type)
{
    (void)type;
    if (owner == NULL || owner == Py_None)
        return Py_NewRef(self);
    const Field *field = field_of(self);
    bool frozen;
    struct mm_object *header = find(field, owner, &frozen);
    if (header == NULL)
        return NULL;
    if (field->kind != 'R')
        return load((unsigned char *)header + field->at, field->kind);
    if (frozen)
        return frozen_at(((Frozen *)owner)->image, atomic_load_explicit(slot_of(header, field), memory_order_relaxed));
    PyObject *heap = ((Record *)owner)->ref.heap;
    uint64_t reference = mm_load_reference(&heap_of(heap)->core, slot_of(header, field));
    if (reference == 0)
        Py_RETURN_NONE;
    return heap_object_at(heap, reference);
}

int field_set(PyObject *self, PyObject *owner, PyObject *value)
{
    const Field *field = field_of(self);
    bool frozen;
    struct mm_object *header = find(field, owner, &frozen);
    if (header == NULL)
        return -1;
    if (value == NULL || frozen) {
        PyErr_Format(PyExc_AttributeError, frozen ? "%U is part of a frozen image, which is read-only" : "%U cannot be deleted",
                     field->name);
        return -1;
    }
    if (field->kind == 'R') {
        PyObject *heap = ((Record *)owner)->ref.heap;
        struct mm_heap *core = &heap_of(heap)->core;
        uint64_t offset = value != Py_None ? ref_offset(core, heap, value) : 0;
        if (offset == 0 && value != Py_None)
            return -1;
        mm_store(core, slot_of(header, field), offset);
        return 0;
    }
    unsigned char bytes[8];
    if (!convert(value, field->kind, bytes))
        return -1;
    header = find(field, owner, &frozen);   /* converting may have closed the heap, or moved the record */
    if (header == NULL)
        return -1;
    memcpy((unsigned char *)header + field->at, bytes, nbytes_of(field->kind));
    return 0;
}

static void field_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(field_of(self)->name);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *field_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<Field %U>", field_of(self)->name);
}

static PyObject *field_get_name(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(field_of(self)->name);
}

static PyGetSetDef field_getset[] = {
    {"name", field_get_name, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot field_slots[] = {
    {Py_tp_doc, "One field of the records of a class."},
    {Py_tp_dealloc, field_dealloc},
    {Py_tp_repr, field_repr},
    {Py_tp_getset, field_getset},
    {Py_tp_descr_get, field_get},
    {Py_tp_descr_set, field_set},
    {0, NULL},
};

PyType_Spec field_spec = {
    .name = "mirrormap._core.Field",
    .basicsize = sizeof(Field),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = field_slots,
};
