/* The heap's Python objects. Its state may be touched only while heap_open says so: the heap belongs to
 * the process that made it, and everything here runs with the interpreter's lock held, or that of guard.c. */
#ifndef MIRRORMAP_HEAP_TYPES_H
#define MIRRORMAP_HEAP_TYPES_H

#include "core.h"
#include "heap/heap.h"

typedef struct {
    PyObject_HEAD
    struct mm_heap core;
    PyObject *region;          /* the plain view; NULL: closed, or not attached yet */
    PyObject *colours;         /* tuple: the colours' views, or none */
    PyObject *dtypes;          /* list: number - 1 -> dtype */
    PyObject *numbers;         /* dict: dtype -> number */
    PyObject *failure;         /* or (exception, text): the collector's thread died */
    PyObject *layouts, *types; /* lists by number: what records are made of, and their classes */
    long process;
    uint32_t life;             /* how often it was closed */
} HeapBase;

/* A holder of a root. A Ref's object is the collector's, a Lens may also look at a container's value. */
typedef struct {
    PyObject_HEAD
    PyObject *heap;
    uint32_t root;
    bool writable;             /* Lens */
} Ref;

extern PyTypeObject *heap_type, *ref_type, *lens_type;
extern PyType_Spec heap_spec, ref_spec, lens_spec;

/* NULL: ClosedError is set. */
struct mm_heap *heap_open(PyObject *heap);
HeapBase *heap_of(PyObject *heap);
/* Is it open, and ours to touch? For destructors. */
bool heap_is_ours(PyObject *heap);
/* A new Ref or Lens (`type`) that takes over one holder of the root. */
PyObject *ref_make(PyTypeObject *type, PyObject *heap, uint32_t root, bool writable);
/* The object behind a Ref of this heap; 0: an exception is set. */
uint64_t ref_offset(struct mm_heap *core, PyObject *heap, PyObject *ref);
void ref_dealloc(PyObject *self);
PyObject *ref_compare(PyObject *self, PyObject *other, int how);
Py_hash_t ref_hash(PyObject *self);
/* An array over an object's data; its base pins it. */
PyObject *ref_array(PyObject *exporter);
unsigned char *heap_data(const struct mm_heap *core, uint64_t offset, Py_ssize_t *nbytes);

/* The root that a number from Python names; 0: an exception is set. */
uint32_t heap_root(struct mm_heap *core, PyObject *number);

/* heap_collect.c */
PyObject *heap_pace(PyObject *self, PyObject *args);
PyObject *heap_goal(PyObject *self, PyObject *unused);
PyObject *heap_advance(PyObject *self, PyObject *args);
PyObject *heap_step(PyObject *self, PyObject *ns);
PyObject *heap_slide(PyObject *self, PyObject *always);
PyObject *heap_tend(PyObject *self, PyObject *ns);
PyObject *heap_fail(PyObject *self, PyObject *failure);
PyObject *heap_pauses(PyObject *self, PyObject *unused);

/* heap_record.c: what holds the object at an offset, a Ref or a record of its class; and the heap's classes. */
PyObject *heap_object(PyObject *heap, uint64_t offset);
PyObject *heap_object_at(PyObject *heap, uint64_t reference);
PyObject *heap_adopt(PyObject *self, PyObject *args);
void heap_forget_layouts(HeapBase *heap);
/* heap_map.c */
PyObject *heap_blocks(PyObject *self, PyObject *unused);
/* heap_pins.c */
PyObject *heap_mesh_most(PyObject *self, PyObject *most);
PyObject *heap_meshing(PyObject *self, PyObject *unused);
PyObject *heap_pins(PyObject *self, PyObject *most);
/* heap_frozen.c */
PyObject *heap_freeze(PyObject *self, PyObject *args);

/* heap_put.c: a new object; the heap is collected where it does not fit at first. 0: an exception is set. */
uint64_t heap_make(PyObject *self, bool owned, const struct mm_shape *shape);
PyObject *heap_put(PyObject *self, PyObject *data);
PyObject *heap_new(PyObject *self, PyObject *args, PyObject *names);

/* heap_key.c: what containers still hold of a heap that is being closed: Python's objects among their keys. */
struct mm_index heap_take_keys(HeapBase *heap);
void heap_drop_keys(struct mm_index *index);

#endif
