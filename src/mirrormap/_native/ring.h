/* The base type of Ring: what its two files share. */
#ifndef MIRRORMAP_RING_H
#define MIRRORMAP_RING_H

#include "places.h"

typedef struct {
    Places places;
    PyObject *data;                /* a Region, as places.control */
    PyObject *shown;               /* a read-only Span of `data`: the base of windows */
    char *base;                    /* first byte of `data`, which shows the same `nbytes` twice */
    PyObject *descr;
    uint64_t nbytes, item_nbytes;
    Py_ssize_t dims[32];           /* of one item; dims[0] is for the number of items */
    int ndim;                      /* with it */
    bool overwrite;
    uint64_t reserved;             /* items of an open reservation */
    uint64_t limit;                /* lossless: may be written without looking at the slots again */
    uint32_t arrivals;             /* what `limit` was computed for */
} Ring;

Ring *ring_open(PyObject *self);   /* NULL: closed, exception set */
/* `count` items from index `start` on, as an array that keeps the pages. */
PyObject *ring_array(Ring *ring, uint64_t start, uint64_t count, bool writable);
/* Items that fit now: UINT64_MAX when nothing holds the writer back. */
uint64_t ring_room(Ring *ring, uint64_t wanted);

int ring_setup(void);              /* 0, or -1 with an exception */
extern PyType_Spec ring_spec;

/* ring_write.c: methods of the writer */
PyObject *ring_append(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names);
PyObject *ring_extend(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names);
PyObject *ring_reserve(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names);
PyObject *ring_commit(PyObject *self, PyObject *const *args, Py_ssize_t given);

/* ring_wait.c: methods of those who wait */
PyObject *ring_wait_data(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *ring_wait_room(PyObject *self, PyObject *const *args, Py_ssize_t given);

#endif
