/* What the files of the extension share: object layouts and small helpers. */
#ifndef MIRRORMAP_CORE_H
#define MIRRORMAP_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "sys.h"

/* How a METH_FASTCALL function stands in a method table. */
#define FASTCALL(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL

/* One live buffer export, kept in its region's list so that a shrinking range
 * knows the last byte anybody may still touch. */
struct export {
    struct export *previous, *next;
    size_t start, end;         /* offsets in the region, half open */
};

/* A range of addresses and the right to unmap it.
 * reserved -> mapped (expose) -> closed (close, or the last reference). */
typedef struct {
    PyObject_HEAD
    uintptr_t address;
    size_t window;             /* bytes owned from `address`; 0 once closed */
    size_t nbytes;             /* bytes shown through buffers, <= window */
    bool readable, writable;   /* what buffers may promise */
    pid_t owner;               /* 0: any process; else the only one that may unmap */
    struct export *exports;
    PyObject *keep;            /* lives at least as long as the range */
    PyObject *weak;
} Region;

/* Bytes [offset, offset + nbytes) of a region as a buffer of their own. */
typedef struct {
    PyObject_HEAD
    PyObject *region;
    size_t offset, nbytes;
    bool readonly;
} Span;

/* Base of the Python classes that show one region at a time and may change it. */
typedef struct {
    PyObject_HEAD
    PyObject *region;          /* a Region or NULL */
} Exporter;

/* The module's types and the exception for closed objects; one interpreter. */
extern PyTypeObject *region_type, *span_type;
extern PyObject *closed_error;

/* The only way from a PyObject to the state behind it. */
Region *region_of(PyObject *object);

extern PyType_Spec region_spec, span_spec, exporter_spec;
int region_export(Region *region, PyObject *owner, size_t offset, size_t nbytes, bool readonly,
                  Py_buffer *view, int flags);
int region_export_all(PyObject *self, Py_buffer *view, int flags);
void region_unexport(Region *region, Py_buffer *view);

/* export.c and maps.c: module functions. */
PyObject *span_new(PyObject *module, PyObject *args);
PyObject *maps_vma(PyObject *module, PyObject *args);
PyObject *maps_vmas(PyObject *module, PyObject *args);
PyObject *maps_scan(PyObject *module, PyObject *args);
PyObject *maps_stretches(PyObject *module, PyObject *args);

/* region.c, for window.c and export.c: NULL or false come with an exception set. */
Region *region_open(PyObject *self);
PyObject *region_make(uintptr_t address, size_t window);
bool region_holds(const Region *region, size_t offset, size_t nbytes);
bool region_refuse_shown(const Region *region, size_t start, size_t end);

/* window.c: what a failed MAP_FIXED or MREMAP_FIXED left; the methods that change what lies in the window. */
void region_mend(Region *region, size_t offset, size_t nbytes);
PyObject *region_reserve(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *region_map(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *region_place(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *region_alias(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *region_vacate(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *region_trim(PyObject *self, PyObject *args);
PyObject *region_split(PyObject *self, PyObject *args);

/* words.c: methods on one word of a region. */
PyObject *region_store_word(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *region_load_word(PyObject *self, PyObject *const *args, Py_ssize_t given);

/* freeze.c: methods that move page tables between regions and put a private view in place. */
PyObject *region_carry(PyObject *self, PyObject *args);
PyObject *region_replace(PyObject *self, PyObject *const *args, Py_ssize_t given);

/* heap_record.c: a module function. */
PyObject *record_class(PyObject *module, PyObject *args);

/* allocator.c: module functions. */
PyObject *allocator_new(PyObject *module, PyObject *args);
PyObject *allocator_set(PyObject *module, PyObject *handler);
PyObject *allocator_limit(PyObject *module, PyObject *args);
PyObject *allocator_trim(PyObject *module, PyObject *args);
PyObject *allocator_share(PyObject *module, PyObject *args);
PyObject *allocator_state(PyObject *module, PyObject *unused);

extern PyMethodDef call_methods[];

PyObject *raise_errno(int error);   /* OSError; always NULL */

/* The arguments of a METH_FASTCALL function, all of them ints; false: an exception is set. */
bool take_numbers(PyObject *const *args, Py_ssize_t given, int64_t *values, Py_ssize_t wanted);

/* Run `call` (an expression giving 0 or errno) without the interpreter's lock,
 * again after a signal whose handler returned. EINTR left in `error` means that
 * a handler raised and the exception is set. */
#define WAITING(error, call)                                  \
    do {                                                      \
        Py_BEGIN_ALLOW_THREADS                                \
        (error) = (call);                                     \
        Py_END_ALLOW_THREADS                                  \
    } while ((error) == EINTR && PyErr_CheckSignals() == 0)

#endif
