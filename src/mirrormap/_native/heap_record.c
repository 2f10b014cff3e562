/* Record: base of the classes that Heap.record() declares. An instance is a hold on a record, as a Ref is on any
 * other object, but it shows no bytes. */
#define _GNU_SOURCE
#include "heap_record.h"

#include "heap_doc.h"

PyTypeObject *record_type;
PyObject *corrupt_error;

static PyObject *layout_name;          /* the attribute of a class */

static Record *record_of(PyObject *object)
{
    return (Record *)object;
}

bool is_record(PyObject *object)
{
    return PyType_IsSubtype(Py_TYPE(object), record_type) != 0;
}

/* A record of that class, which takes over one holder of the root. */
static PyObject *make(PyTypeObject *type, PyObject *layout, PyObject *heap, uint32_t root)
{
    PyObject *made = ref_make(type, heap, root, false);
    if (made != NULL)
        record_of(made)->layout = Py_NewRef(layout);
    return made;
}

PyObject *heap_object_at(PyObject *heap, uint64_t reference)
{
    struct mm_heap *core = &heap_of(heap)->core;
    const struct mm_object *header = mm_at(core, reference);
    Py_ssize_t number = mm_is_record(header) ? (Py_ssize_t)mm_type(header) : -1;
    uint32_t root = mm_hold_at(core, reference);
    if (root == 0)
        return PyErr_NoMemory();
    if (number < 0)
        return ref_make(ref_type, heap, root, false);
    return make((PyTypeObject *)PyList_GetItem(heap_of(heap)->types, number), PyList_GetItem(heap_of(heap)->layouts, number),
                heap, root);
}

PyObject *heap_object(PyObject *heap, uint64_t offset)
{
    return heap_object_at(heap, offset | heap_of(heap)->core.good);
}

/* _adopt(class, layout): the records of that layout are instances of that class from now on */
PyObject *heap_adopt(PyObject *self, PyObject *args)
{
    PyObject *class, *layout;
    if (!PyArg_ParseTuple(args, "O!O!", &PyType_Type, &class, layout_type, &layout) || heap_open(self) == NULL)
        return NULL;
    HeapBase *heap = heap_of(self);
    const struct mm_object header = {.word = layout_of(layout)->word};
    if (mm_type(&header) != PyList_Size(heap->types) || !PyType_IsSubtype((PyTypeObject *)class, record_type)) {
        PyErr_SetString(PyExc_ValueError, "_adopt: not the next type of this heap");
        return NULL;
    }
    if (PyList_Append(heap->layouts, layout) < 0 || PyList_Append(heap->types, class) < 0)
        return NULL;
    layout_of(layout)->heap = self;
    Py_RETURN_NONE;
}

void heap_forget_layouts(HeapBase *heap)
{
    for (Py_ssize_t index = 0; heap->layouts != NULL && index < PyList_Size(heap->layouts); index++)
        layout_of(PyList_GetItem(heap->layouts, index))->heap = NULL;
}

/* --- making one ------------------------------------------------------------------------------ */

/* The layout of a class that the heap knows; NULL: an exception is set. */
static Layout *layout_for(PyTypeObject *type)
{
    PyObject *found = PyObject_GetAttr((PyObject *)type, layout_name);
    if (found == NULL)
        PyErr_Clear();
    Py_XDECREF(found);                 /* a class keeps it, and below the heap does */
    if (found == NULL || Py_TYPE(found) != layout_type) {
        PyErr_Format(PyExc_TypeError, "%R makes no records: declare a class of them by Heap.record()", (PyObject *)type);
        return NULL;
    }
    Layout *layout = layout_of(found);
    if (layout->heap == NULL) {
        PyErr_SetString(closed_error, "the heap of these records is gone");
        return NULL;
    }
    if (heap_open(layout->heap) == NULL)
        return NULL;
    const struct mm_object header = {.word = layout->word};
    if (PyList_GetItem(heap_of(layout->heap)->types, (Py_ssize_t)mm_type(&header)) != (PyObject *)type) {
        PyErr_SetString(PyExc_TypeError, "classes of records cannot be derived from");
        return NULL;
    }
    return layout;
}

static bool fill(PyObject *made, Layout *layout, PyObject *args, PyObject *names)
{
    Py_ssize_t given = PyTuple_Size(args), at = 0;
    if (given > PyTuple_Size(layout->fields)) {
        PyErr_Format(PyExc_TypeError, "%U has %zd fields, not %zd", layout->name, PyTuple_Size(layout->fields), given);
        return false;
    }
    for (Py_ssize_t index = 0; index < given; index++)
        if (field_set(PyTuple_GetItem(layout->fields, index), made, PyTuple_GetItem(args, index)) < 0)
            return false;
    PyObject *name, *value;
    while (names != NULL && PyDict_Next(names, &at, &name, &value)) {
        PyObject *field = PyDict_GetItemWithError(layout->places, name);
        if (field == NULL && PyErr_Occurred() == NULL)
            PyErr_Format(PyExc_TypeError, "%U has no field %R", layout->name, name);
        for (Py_ssize_t index = 0; field != NULL && index < given; index++)
            if (PyTuple_GetItem(layout->fields, index) == field) {
                PyErr_Format(PyExc_TypeError, "field %R is given twice", name);
                field = NULL;
            }
        if (field == NULL || field_set(field, made, value) < 0)
            return false;
    }
    return true;
}

static PyObject *record_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    Layout *layout = layout_for(type);
    if (layout == NULL)
        return NULL;
    PyObject *heap = layout->heap;
    const struct mm_object header = {.word = layout->word};
    const struct mm_shape shape = {.nbytes = mm_data_nbytes(&header), .word = layout->word};
    uint64_t offset = heap_make(heap, false, &shape);
    if (offset == 0)
        return NULL;
    uint32_t root = mm_hold(&heap_of(heap)->core, offset);
    if (root == 0)
        return PyErr_NoMemory();
    PyObject *made = make(type, (PyObject *)layout, heap, root);
    if (made == NULL || fill(made, layout, args, names))
        return made;
    Py_DECREF(made);
    return NULL;
}

static void record_dealloc(PyObject *self)
{
    Py_XDECREF(record_of(self)->layout);
    ref_dealloc(self);
}

/* --- what it shows --------------------------------------------------------------------------- */

static PyObject *told(PyObject *self, PyObject *field)
{
    PyObject *name = PyObject_GetAttrString(field, "name");
    PyObject *value = name != NULL ? PyObject_GetAttr(self, name) : NULL;
    PyObject *text = NULL;
    if (value != NULL) {
        bool refers = is_record(value) || Py_TYPE(value) == ref_type || Py_TYPE(value) == frozen_ref_type || is_frozen_record(value);
        PyObject *kind = refers ? PyType_GetName(Py_TYPE(value)) : NULL;
        text = kind != NULL ? PyUnicode_FromFormat("%U=<%U>", name, kind) : PyUnicode_FromFormat("%U=%R", name, value);
        Py_XDECREF(kind);
    }
    Py_XDECREF(value);
    Py_XDECREF(name);
    return text;
}

PyObject *record_repr(PyObject *self)
{
    Layout *layout = layout_of(is_record(self) ? record_of(self)->layout : ((Frozen *)self)->layout);
    PyObject *parts = PyList_New(0), *comma = PyUnicode_FromString(", "), *text = NULL;
    for (Py_ssize_t index = 0; parts != NULL && comma != NULL && index < PyTuple_Size(layout->fields); index++) {
        PyObject *part = told(self, PyTuple_GetItem(layout->fields, index));
        if (part == NULL || PyList_Append(parts, part) < 0)
            Py_CLEAR(parts);
        Py_XDECREF(part);
    }
    PyObject *joined = parts != NULL && comma != NULL ? PyUnicode_Join(comma, parts) : NULL;
    if (joined != NULL)
        text = PyUnicode_FromFormat("%U(%U)", layout->name, joined);
    Py_XDECREF(joined);
    Py_XDECREF(parts);
    Py_XDECREF(comma);
    return text;
}

static PyObject *live_repr(PyObject *self)
{
    if (!heap_is_ours(record_of(self)->ref.heap))
        return PyUnicode_FromFormat("<%U closed>", layout_of(record_of(self)->layout)->name);
    return record_repr(self);
}

static PyType_Slot record_slots[] = {
    {Py_tp_doc, (char *)record_doc},
    {Py_tp_new, record_new},
    {Py_tp_dealloc, record_dealloc},
    {Py_tp_repr, live_repr},
    {Py_tp_hash, ref_hash},
    {Py_tp_richcompare, ref_compare},
    {0, NULL},
};

PyType_Spec record_spec = {
    .name = "mirrormap.Record",
    .basicsize = sizeof(Record),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = record_slots,
};

/* record_class(base, name, attributes): derived from a base of records. Not by type(): instances of what that makes
 * are looked after by the garbage collector of Python's, for nothing. */
PyObject *record_class(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *base, *attributes, *key, *value;
    const char *name;
    Py_ssize_t at = 0;
    if (!PyArg_ParseTuple(args, "O!sO!", &PyType_Type, &base, &name, &PyDict_Type, &attributes))
        return NULL;
    void *release = PyType_GetSlot((PyTypeObject *)base, Py_tp_dealloc);
    PyType_Slot slots[] = {{Py_tp_dealloc, release}, {0, NULL}};
    PyType_Spec spec = {.name = name, .flags = Py_TPFLAGS_DEFAULT, .slots = slots};
    PyObject *made = PyType_FromSpecWithBases(&spec, base);
    while (made != NULL && PyDict_Next(attributes, &at, &key, &value))
        if (PyObject_SetAttr(made, key, value) < 0)
            Py_CLEAR(made);
    return made;
}

int record_setup(void)
{
    layout_name = PyUnicode_InternFromString("_layout");
    corrupt_error = Py_NewRef(PyExc_ValueError);
    return layout_name != NULL ? 0 : -1;
}
