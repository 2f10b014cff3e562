/* Sender: messages that are copied into their place, one or many. */
#define _GNU_SOURCE
#include "channel.h"

#include <string.h>

enum { LONG_COPY = 1 << 18, BATCH_NBYTES = 1 << 15 };

static bool put(PyObject *self, Sender *sender, const char *source, uint64_t nbytes, uint32_t about_nbytes,
                PyObject *timeout)
{
    if (!sender_place(self, sender, about_nbytes, nbytes, timeout))
        return false;
    char *target = sender_payload(sender, about_nbytes);
    if (nbytes < LONG_COPY) {
        memcpy(target, source, nbytes);
    } else {
        sender->end.places.busy = true;
        Py_BEGIN_ALLOW_THREADS
        memcpy(target, source, nbytes);
        Py_END_ALLOW_THREADS
        sender->end.places.busy = false;
    }
    sender_frame(sender, about_nbytes, nbytes);
    return true;
}

static bool is_described(const struct about *about, PyArrayObject *array)
{
    if ((PyObject *)PyArray_DESCR(array) != about->descr || PyArray_NDIM(array) != about->ndim)
        return false;
    for (int i = 0; i < about->ndim; i++)
        if (PyArray_DIM(array, i) != about->dims[i])
            return false;
    return true;
}

/* Describe what an array is made of, in Python unless it is like the one before. */
static bool describe(PyObject *self, Sender *sender, PyArrayObject *array)
{
    if (is_described(&sender->end.about, array))
        return true;
    PyObject *answer = PyObject_CallMethod(self, "_describe", "(O)", (PyObject *)array);
    Py_CLEAR(sender->wish);
    bool known = answer != NULL && about_set(&sender->end.about, answer);
    Py_XDECREF(answer);
    return known && sender_open(self) != NULL;
}

static bool put_array(PyObject *self, Sender *sender, PyObject *data, PyObject *timeout)
{
    PyObject *plain = PyArray_FROM_OF(data, NPY_ARRAY_C_CONTIGUOUS);
    if (plain == NULL)
        return false;
    PyArrayObject *array = (PyArrayObject *)plain;
    bool done = describe(self, sender, array)
                && put(self, sender, PyArray_BYTES(array), (uint64_t)PyArray_NBYTES(array),
                       sender->end.about.text_nbytes, timeout);
    Py_DECREF(plain);
    return done;
}

static bool put_object(PyObject *self, Sender *sender, PyObject *data, PyObject *timeout)
{
    if (PyBytes_CheckExact(data))
        return put(self, sender, PyBytes_AsString(data), (uint64_t)PyBytes_Size(data), 0, timeout);
    if (PyArray_Check(data) || PyArray_IsScalar(data, Generic))
        return put_array(self, sender, data, timeout);
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_FULL_RO) < 0) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_SetString(PyExc_TypeError, "a message is bytes-like or an ndarray; encode other objects first");
        return false;
    }
    bool done = false;
    if (sender_open(self) == NULL) {
        /* exporting runs foreign code */
    } else if (PyBuffer_IsContiguous(&view, 'C')) {
        done = put(self, sender, view.buf, (uint64_t)view.len, 0, timeout);
    } else {
        char *copy = PyMem_Malloc(view.len > 0 ? (size_t)view.len : 1);
        if (copy == NULL)
            PyErr_NoMemory();
        else if (PyBuffer_ToContiguous(copy, &view, view.len, 'C') == 0)
            done = put(self, sender, copy, (uint64_t)view.len, 0, timeout);
        PyMem_Free(copy);
    }
    PyBuffer_Release(&view);
    return done;
}

PyObject *sender_send(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *data, *timeout;
    if (!take_timed("send", args, given, names, &data, &timeout))
        return NULL;
    Sender *sender = sender_open(self);
    if (sender == NULL || !put_object(self, sender, data, timeout))
        return NULL;
    mm_commit(&sender->end.stream, &sender->next);
    return sender_tell(self, sender) == 0 ? Py_NewRef(Py_None) : NULL;
}

PyObject *sender_send_many(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *items, *timeout;
    if (!take_timed("send_many", args, given, names, &items, &timeout))
        return NULL;
    PyObject *iterator = sender_open(self) != NULL ? PyObject_GetIter(items) : NULL;
    if (iterator == NULL)
        return NULL;
    Sender *sender = (Sender *)self;
    uint64_t first = sender->next.sequence, committed = sender->next.start;
    PyObject *item;
    while ((item = PyIter_Next(iterator)) != NULL) {
        bool done = sender_open(self) != NULL && put_object(self, sender, item, timeout);
        Py_DECREF(item);
        if (!done)
            break;
        if (sender->next.start - committed >= BATCH_NBYTES) {
            mm_commit(&sender->end.stream, &sender->next); /* those who look anyway may begin; nobody is woken */
            committed = sender->next.start;
        }
    }
    Py_DECREF(iterator);
    if (sender->end.places.shared == NULL || sender->end.places.holder != this_process)
        return NULL;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (atomic_load_explicit(&sender->end.stream.shared->written, memory_order_relaxed) != sender->next.start)
        mm_commit(&sender->end.stream, &sender->next);
    int told = sender_tell(self, sender);
    if (type != NULL) {
        PyErr_Restore(type, value, trace);
        return NULL;
    }
    return told == 0 ? PyLong_FromUnsignedLongLong(sender->next.sequence - first) : NULL;
}
