/* One word in memory that processes share: a count that is stored when what it counts is there. */
#include "core.h"

#include <stdatomic.h>

/* The word at `offset` of a region, or NULL with an exception. */
static _Atomic uint64_t *word_at(PyObject *object, int64_t offset)
{
    Region *region = region_open(object);
    if (region == NULL)
        return NULL;
    if (offset < 0 || offset % 8 != 0 || region->nbytes < 8 || (size_t)offset > region->nbytes - 8) {
        PyErr_SetString(PyExc_ValueError, "word: outside what the region shows");
        return NULL;
    }
    return (_Atomic uint64_t *)(region->address + (size_t)offset);
}

/* store_word(offset, value): released, so that whoever loads it sees what was written before */
PyObject *region_store_word(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    if (!take_numbers(args, given, number, 2))
        return NULL;
    _Atomic uint64_t *word = word_at(self, number[0]);
    if (word == NULL)
        return NULL;
    if (!region_of(self)->writable) {
        PyErr_SetString(PyExc_ValueError, "word: the region may not be written");
        return NULL;
    }
    atomic_store_explicit(word, (uint64_t)number[1], memory_order_release);
    Py_RETURN_NONE;
}

/* load_word(offset) -> value: acquires what store_word released */
PyObject *region_load_word(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t offset;
    if (!take_numbers(args, given, &offset, 1))
        return NULL;
    const _Atomic uint64_t *word = word_at(self, offset);
    if (word == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(atomic_load_explicit(word, memory_order_acquire));
}
