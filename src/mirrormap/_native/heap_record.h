/* Records: what their types are made of, shared by those of a heap and those of an image. */
#ifndef MIRRORMAP_HEAP_RECORD_H
#define MIRRORMAP_HEAP_RECORD_H

#include "heap/image.h"
#include "heap_types.h"

/* The fields of one declared type and where they lie. */
typedef struct {
    PyObject_HEAD
    PyObject *heap;            /* borrowed: the heap tells when it goes; NULL then, and for images */
    PyObject *name;
    PyObject *fields;          /* tuple of Field, as declared */
    PyObject *places;          /* dict: name -> Field */
    uint64_t serial;           /* its own in this process */
    uint32_t word;             /* of a record's header */
} Layout;

/* One field: a descriptor in the class of its records. */
typedef struct {
    PyObject_HEAD
    PyObject *name;
    uint64_t serial;           /* of its layout */
    uint32_t at;               /* bytes from the header on */
    char kind;                 /* as in struct; 'R': a reference */
} Field;

/* A record of a heap: a Ref whose type says what its bytes mean. */
typedef struct {
    Ref ref;
    PyObject *layout;
} Record;

/* A record of an image, or, without a layout, any other object of one. */
typedef struct {
    PyObject_HEAD
    PyObject *image;
    uint64_t offset;
    PyObject *layout;
} Frozen;

extern PyTypeObject *layout_type, *field_type, *record_type, *frozen_record_type, *frozen_ref_type, *image_type;
extern PyType_Spec layout_spec, field_spec, record_spec, frozen_record_spec, frozen_ref_spec, image_spec;
extern PyObject *corrupt_error;

int record_setup(void);                /* 0, or -1 with an exception */
Layout *layout_of(PyObject *object);
int field_set(PyObject *field, PyObject *record, PyObject *value);
/* Does an instance of a record's class have fields of this layout? */
bool is_record(PyObject *object);
bool is_frozen_record(PyObject *object);
/* "name(field=value, ...)" with references by type only. */
PyObject *record_repr(PyObject *self);

/* heap_frozen.c: where an object of an image lies, NULL: ClosedError; the object behind an offset, None for 0. */
struct mm_object *frozen_header(PyObject *self);
PyObject *frozen_at(PyObject *image, uint64_t offset);
/* Borrowed: what an open image is mapped by, and a dtype that it declares. */
PyObject *image_region(PyObject *image);
PyObject *image_dtype(PyObject *image, Py_ssize_t index);

#endif
