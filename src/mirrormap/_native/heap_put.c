/* Bringing bytes and arrays into the heap. */
#define _GNU_SOURCE
#include "heap_put.h"

#include <string.h>

void source_done(struct source *source)
{
    if (source->array != NULL)
        Py_DECREF(source->array);
    else
        PyBuffer_Release(&source->buffer);
}

/* The heap's number for a dtype, from 1 on; 0: an exception is set. */
static uint16_t number_of(HeapBase *heap, PyArray_Descr *descr)
{
    PyObject *known = PyDict_GetItemWithError(heap->numbers, (PyObject *)descr);
    if (known != NULL)
        return (uint16_t)PyLong_AsLong(known);
    if (PyErr_Occurred())
        return 0;
    if (PyDataType_REFCHK(descr)) {
        PyErr_Format(PyExc_TypeError, "dtype %R holds Python objects: the heap keeps bytes", (PyObject *)descr);
        return 0;
    }
    Py_ssize_t count = PyList_Size(heap->dtypes);
    if (count >= UINT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "the heap knows 65,535 dtypes already, and can know no more");
        return 0;
    }
    PyObject *number = PyLong_FromSsize_t(count + 1);
    if (number == NULL || PyList_Append(heap->dtypes, (PyObject *)descr) < 0) {
        Py_XDECREF(number);
        return 0;
    }
    int failed = PyDict_SetItem(heap->numbers, (PyObject *)descr, number);
    Py_DECREF(number);
    return failed < 0 ? 0 : (uint16_t)(count + 1);
}

static bool source_array(HeapBase *heap, PyObject *data, struct source *source)
{
    source->array = (PyArrayObject *)PyArray_FROM_OF(data, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ENSUREARRAY);
    if (source->array == NULL)
        return false;
    uint16_t number = number_of(heap, PyArray_DESCR(source->array));
    if (number == 0) {
        Py_CLEAR(source->array);
        return false;
    }
    source->data = PyArray_DATA(source->array);
    source->shape = (struct mm_shape){
        .nbytes = (uint64_t)PyArray_NBYTES(source->array), .dtype = number,
        .ndim = (uint8_t)PyArray_NDIM(source->array),
    };
    return true;
}

bool source_open(HeapBase *heap, PyObject *data, struct source *source)
{
    *source = (struct source){.array = NULL};
    if (PyArray_Check(data))
        return source_array(heap, data, source);
    if (PyObject_GetBuffer(data, &source->buffer, PyBUF_SIMPLE) < 0)
        return false;
    source->data = source->buffer.buf;
    source->shape.nbytes = (uint64_t)source->buffer.len;
    return true;
}

static uint64_t no_room(const struct mm_heap *core, uint64_t nbytes, int error)
{
    uint64_t live = mm_live(core), ceiling = core->limit < core->allowed ? core->limit : core->allowed;
    PyErr_Format(PyExc_MemoryError,
                 "no room for %llu bytes (%s): the heap holds %llu of at most %llu bytes%s, %llu of them in objects, "
                 "%llu pinned by views",
                 (unsigned long long)nbytes, strerror(error), (unsigned long long)core->committed,
                 (unsigned long long)ceiling, ceiling < core->limit ? ", more than which the memory cgroup does not allow" : "",
                 (unsigned long long)live, (unsigned long long)core->pinned);
    return 0;
}

/* Ask what the memory cgroup allows by now. */
static bool look(PyObject *self)
{
    PyObject *answer = PyObject_CallMethod(self, "_look", NULL);
    Py_XDECREF(answer);
    return answer != NULL && heap_open(self) != NULL;
}

uint64_t heap_make(PyObject *self, bool owned, const struct mm_shape *shape)
{
    struct mm_heap *core = &heap_of(self)->core;
    int error;
    mm_pay(core, shape->nbytes + sizeof(struct mm_object));
    uint64_t offset = mm_allocate(core, owned, shape, &error);
    if (offset != 0)
        return offset;
    if (!look(self))
        return 0;
    offset = mm_allocate(core, owned, shape, &error);
    if (offset == 0) {
        mm_collect(core, MM_BY_FULL);
        offset = mm_allocate(core, owned, shape, &error);
    }
    return offset != 0 ? offset : no_room(core, shape->nbytes, error);
}

void source_fill(struct mm_heap *core, uint64_t offset, const struct source *source)
{
    struct mm_object *header = mm_header_at(core, offset);
    if (source->shape.nbytes != 0)
        memcpy(header + 1, source->data, source->shape.nbytes);
    if (source->shape.ndim != 0)
        memcpy((unsigned char *)header + mm_shape_at(header), PyArray_DIMS(source->array), 8u * source->shape.ndim);
}

/* Hold what was made by a Ref. What nobody holds is the next collection's. */
static PyObject *held(PyObject *self, struct mm_heap *core, uint64_t offset)
{
    uint32_t root = mm_hold(core, offset);
    return root != 0 ? ref_make(ref_type, self, root, false) : PyErr_NoMemory();
}

PyObject *heap_put(PyObject *self, PyObject *data)
{
    struct source source;
    if (heap_open(self) == NULL || !source_open(heap_of(self), data, &source))
        return NULL;
    /* again: the buffer may have been made by a Python function */
    struct mm_heap *core = heap_open(self);
    uint64_t offset = core != NULL ? heap_make(self, false, &source.shape) : 0;
    if (offset != 0)
        source_fill(core, offset, &source);
    /* held before anybody else may run */
    PyObject *ref = offset != 0 ? held(self, core, offset) : NULL;
    source_done(&source);
    return ref;
}

PyObject *heap_new(PyObject *self, PyObject *args, PyObject *names)
{
    static char *words[] = {"nbytes", "nrefs", NULL};
    Py_ssize_t nbytes, nrefs = 0;
    if (!PyArg_ParseTupleAndKeywords(args, names, "n|n:new", words, &nbytes, &nrefs))
        return NULL;
    struct mm_heap *core = heap_open(self);
    if (core == NULL)
        return NULL;
    if (nbytes < 0 || nbytes >> 40 != 0 || nrefs < 0 || (uint64_t)nrefs >= MM_RECORD) {
        PyErr_Format(PyExc_ValueError, "an object of %zd bytes and %zd references cannot be", nbytes, nrefs);
        return NULL;
    }
    struct mm_shape shape = {.nbytes = (uint64_t)nbytes, .word = (uint32_t)nrefs};
    uint64_t offset = heap_make(self, false, &shape);
    if (offset == 0)
        return NULL;
    memset(mm_header_at(core, offset) + 1, 0, (size_t)nbytes);
    return held(self, core, offset);
}
