/* What is put into a heap, and how it gets there. */
#ifndef MIRRORMAP_HEAP_PUT_H
#define MIRRORMAP_HEAP_PUT_H

#include "heap_types.h"

#include "numpy.h"

/* A buffer, or a C-contiguous array. */
struct source {
    Py_buffer buffer;
    PyArrayObject *array;      /* or NULL */
    const void *data;
    struct mm_shape shape;
};

/* False: an exception is set. It may have run Python code. */
bool source_open(HeapBase *heap, PyObject *data, struct source *source);
void source_done(struct source *source);
/* Into an object that was made for it. */
void source_fill(struct mm_heap *core, uint64_t offset, const struct source *source);

#endif
