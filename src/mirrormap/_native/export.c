/* Buffers: a span of one region, and the base class that shows a region which
 * may change under it. A view belongs to the region it was taken from, so a
 * mapping that moved keeps its old addresses valid for the views it gave out. */
#include "core.h"

#include <errno.h>

PyTypeObject *span_type;

static Span *span_of(PyObject *object)
{
    return (Span *)object;
}

/* span(region, offset, nbytes, readonly) -> Span */
PyObject *span_new(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *object;
    Py_ssize_t offset, nbytes;
    int readonly;
    if (!PyArg_ParseTuple(args, "O!nnp", region_type, &object, &offset, &nbytes, &readonly))
        return NULL;
    Region *region = region_open(object);
    if (region == NULL)
        return NULL;
    if (offset < 0 || nbytes < 0 || (size_t)offset > region->nbytes
        || (size_t)nbytes > region->nbytes - (size_t)offset) {
        PyErr_SetString(PyExc_ValueError, "span: outside the mapping");
        return NULL;
    }
    Span *span = PyObject_New(Span, span_type);
    if (span == NULL)
        return NULL;
    span->region = Py_NewRef(object);
    span->offset = (size_t)offset;
    span->nbytes = (size_t)nbytes;
    span->readonly = readonly != 0;
    return (PyObject *)span;
}

static int span_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    Span *span = span_of(self);
    Region *region = region_of(span->region);
    if (region->window != 0
        && (span->offset > region->nbytes || span->nbytes > region->nbytes - span->offset)) {
        view->obj = NULL;
        PyErr_SetString(closed_error, "the mapping no longer reaches this far");
        return -1;
    }
    return region_export(region, self, span->offset, span->nbytes, span->readonly, view, flags);
}

static void span_releasebuffer(PyObject *self, Py_buffer *view)
{
    region_unexport(region_of(span_of(self)->region), view);
}

static void span_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(span_of(self)->region);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *span_get_region(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(span_of(self)->region);
}

static PyGetSetDef span_getset[] = {
    {"region", span_get_region, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot span_slots[] = {
    {Py_tp_doc, "Some bytes of a region as a buffer of their own."},
    {Py_tp_dealloc, span_dealloc},
    {Py_tp_getset, span_getset},
    {Py_bf_getbuffer, span_getbuffer},
    {Py_bf_releasebuffer, span_releasebuffer},
    {0, NULL},
};

PyType_Spec span_spec = {
    .name = "mirrormap._core.Span",
    .basicsize = sizeof(Span),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = span_slots,
};

static Exporter *exporter_of(PyObject *object)
{
    return (Exporter *)object;
}

static int exporter_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    PyObject *region = exporter_of(self)->region;
    if (region == NULL) {
        view->obj = NULL;
        PyErr_SetString(closed_error, "this mapping is closed");
        return -1;
    }
    return region_export_all(region, view, flags);
}

/* Never called, because view->obj is the region; it must be there all the same:
 * NumPy keeps a view alive only for types that have it. */
static void exporter_releasebuffer(PyObject *self, Py_buffer *view)
{
    (void)self;
    (void)view;
}

static void exporter_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_CLEAR(exporter_of(self)->region);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *exporter_get_region(PyObject *self, void *unused)
{
    (void)unused;
    PyObject *region = exporter_of(self)->region;
    return Py_NewRef(region != NULL ? region : Py_None);
}

static int exporter_set_region(PyObject *self, PyObject *value, void *unused)
{
    (void)unused;
    if (value == NULL || value == Py_None) {
        value = NULL;
    } else if (!PyObject_TypeCheck(value, region_type)) {
        PyErr_SetString(PyExc_TypeError, "a Region or None");
        return -1;
    }
    PyObject *old = exporter_of(self)->region;
    exporter_of(self)->region = Py_XNewRef(value);
    Py_XDECREF(old);
    return 0;
}

static PyGetSetDef exporter_getset[] = {
    {"_region", exporter_get_region, exporter_set_region, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot exporter_slots[] = {
    {Py_tp_doc, "Base of objects that show one region at a time."},
    {Py_tp_dealloc, exporter_dealloc},
    {Py_tp_getset, exporter_getset},
    {Py_bf_getbuffer, exporter_getbuffer},
    {Py_bf_releasebuffer, exporter_releasebuffer},
    {0, NULL},
};

PyType_Spec exporter_spec = {
    .name = "mirrormap._core.Exporter",
    .basicsize = sizeof(Exporter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = exporter_slots,
};
