/* Containers of values in a heap as Python sees them; the Python classes in heap/containers.py add nothing but names. */
#ifndef MIRRORMAP_HEAP_CONTAINER_H
#define MIRRORMAP_HEAP_CONTAINER_H

#include "heap_types.h"

typedef struct {
    PyObject_HEAD
    PyObject *heap;            /* NULL: not attached yet, or no more */
    uint32_t life;             /* of the heap: it may have been closed and made again */
    struct mm_owner owner;
    PyObject *on_evict;        /* or NULL */
    uint64_t limit;            /* of data, in bytes */
    bool bounded;              /* an LRU: uses make an entry the youngest */
} Container;

/* What is looked for. */
struct wanted {
    PyObject *object;          /* borrowed */
    uint32_t hash;
    struct mm_key key;
};

extern PyType_Spec container_spec, round_spec;
extern PyTypeObject *round_type;

static inline Container *container_of(PyObject *object)
{
    return (Container *)object;
}

static inline bool container_is_ours(const Container *self)
{
    return self->heap != NULL && self->life == heap_of(self->heap)->life && heap_is_ours(self->heap);
}

/* NULL: ClosedError is set. */
struct mm_heap *container_open(const Container *self);

/* heap_key.c. -1: an exception is set; wanted_of and find may run Python code, which may change anything. */
int wanted_of(PyObject *object, struct wanted *wanted);
/* 1: it is there, 0: it is not; the heap is open then. */
int find(const Container *self, const struct wanted *wanted, uint32_t *entry);
/* A new reference to the key of an entry. */
PyObject *key_object(const struct mm_entry *entry);
/* The object that is an entry's key, or NULL: borrowed. */
PyObject *key_held(const struct mm_entry *entry);
PyObject *no_such_key(PyObject *object);   /* KeyError; NULL */

/* heap_container.c */
/* A copy of the value of an entry. NULL without an exception: it may be another by now, so look again. */
PyObject *copy_of(const Container *self, uint32_t entry);
/* Take an entry out, and move others together. The caller lets go of its key's object, if it has one. */
PyObject *take_out(Container *self, struct mm_heap *core, uint32_t entry);
uint64_t nbytes_of(const struct mm_heap *core, uint32_t entry);   /* of data */

/* heap_container_put.c */
int container_assign(PyObject *self, PyObject *key, PyObject *value);

/* heap_container_all.c */
/* Take out the oldest of some entries: (key, value). NULL without an exception: something changed, so look again. */
PyObject *take_oldest(Container *self, struct mm_heap *core);
PyObject *container_iter(PyObject *self);
PyObject *container_popitem(PyObject *self, PyObject *unused);
PyObject *container_clear_all(PyObject *self, PyObject *unused);
int container_traverse(PyObject *self, visitproc visit, void *arg);
int container_clear(PyObject *self);

#endif
