/* NumPy's data-allocator hook (NEP 49): large arrays on blocks, small ones where NumPy puts them.
 * The address decides who frees, so that it does not matter which handler made an array. */
#define _GNU_SOURCE
#include "core.h"

#include "blocks.h"
#include "numpy.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CAPSULE "mem_handler"  /* the name NumPy asks for */

/* One handler with its settings, which lives as long as an array that it made. */
struct handler {
    PyDataMem_Handler hook;
    size_t threshold;
    struct mm_block_kind kind;
};

/* NumPy's own, for small arrays and for what is not ours. */
static PyDataMemAllocator plain;

/* Each block is a mapping, of which a process may have so many: beyond that NumPy's own memory does. */
static void *allocate(void *context, size_t nbytes)
{
    const struct handler *handler = context;
    if (nbytes < handler->threshold)
        return plain.malloc(plain.ctx, nbytes);
    void *block = mm_block_new(nbytes, &handler->kind, false);
    return block != NULL ? block : plain.malloc(plain.ctx, nbytes);
}

static void *allocate_zeros(void *context, size_t count, size_t item_nbytes)
{
    const struct handler *handler = context;
    if (item_nbytes != 0 && count > SIZE_MAX / item_nbytes)
        return NULL;
    if (count * item_nbytes < handler->threshold)
        return plain.calloc(plain.ctx, count, item_nbytes);
    void *block = mm_block_new(count * item_nbytes, &handler->kind, true);
    return block != NULL ? block : plain.calloc(plain.ctx, count, item_nbytes);
}

static void deallocate(void *context, void *data, size_t nbytes)
{
    (void)context;
    if (data != NULL && mm_block_is(data))
        mm_block_free(data);
    else
        plain.free(plain.ctx, data, nbytes);
}

/* Where page tables do not do it: other memory, and a copy. */
static void *move_block(void *context, void *data, size_t nbytes)
{
    size_t old = mm_block_nbytes(data);
    void *moved = allocate(context, nbytes);
    if (moved != NULL) {
        memcpy(moved, data, old < nbytes ? old : nbytes);
        mm_block_free(data);
    }
    return moved;
}

static void *reallocate(void *context, void *data, size_t nbytes)
{
    const struct handler *handler = context;
    if (data == NULL)
        return allocate(context, nbytes);
    if (mm_block_is(data)) {
        void *resized = nbytes < handler->threshold ? NULL : mm_block_resize(data, nbytes);
        return resized != NULL ? resized : move_block(context, data, nbytes);
    }
    /* how long it was is not known here: let NumPy lengthen it, then copy all of it */
    void *longer = plain.realloc(plain.ctx, data, nbytes);
    if (longer == NULL || nbytes < handler->threshold)
        return longer;
    void *block = mm_block_new(nbytes, &handler->kind, false);
    if (block == NULL)
        return longer;
    memcpy(block, longer, nbytes);
    plain.free(plain.ctx, longer, nbytes);
    return block;
}

static void handler_release(PyObject *capsule)
{
    free(PyCapsule_GetPointer(capsule, CAPSULE));
}

/* allocator_new(threshold, huge_nbytes, eager_nbytes, eager_zero_nbytes, pmd_nbytes)
 * -> a handler for allocator_set */
PyObject *allocator_new(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t threshold, huge_nbytes, eager_nbytes, eager_zero_nbytes, pmd_nbytes;
    if (!PyArg_ParseTuple(args, "nnnnn", &threshold, &huge_nbytes, &eager_nbytes, &eager_zero_nbytes, &pmd_nbytes))
        return NULL;
    if (threshold < 1 || huge_nbytes < 0 || eager_nbytes < 0 || eager_zero_nbytes < 0 || pmd_nbytes < 1
        || (pmd_nbytes & (pmd_nbytes - 1)) != 0 || (huge_nbytes & (huge_nbytes - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "allocator_new: bad sizes");
        return NULL;
    }
    const PyDataMem_Handler *own = PyCapsule_GetPointer(PyDataMem_DefaultHandler, CAPSULE);
    if (own == NULL)
        return NULL;
    plain = own->allocator;
    int error = mm_blocks_setup((size_t)sysconf(_SC_PAGESIZE), (size_t)pmd_nbytes);
    if (error != 0)
        return raise_errno(error);
    struct handler *handler = malloc(sizeof *handler);
    if (handler == NULL)
        return PyErr_NoMemory();
    *handler = (struct handler){
        .hook = {
            .name = "mirrormap", .version = 1,
            .allocator = {handler, allocate, allocate_zeros, reallocate, deallocate},
        },
        .threshold = (size_t)threshold,
        .kind = {(size_t)huge_nbytes, (size_t)eager_nbytes, (size_t)eager_zero_nbytes},
    };
    PyObject *capsule = PyCapsule_New(handler, CAPSULE, handler_release);
    if (capsule == NULL)
        free(handler);
    return capsule;
}

/* allocator_set(handler or None) -> the one before; None is NumPy's own */
PyObject *allocator_set(PyObject *module, PyObject *handler)
{
    (void)module;
    if (handler != Py_None && !PyCapsule_IsValid(handler, CAPSULE)) {
        PyErr_SetString(PyExc_TypeError, "a handler or None");
        return NULL;
    }
    return PyDataMem_SetHandler(handler == Py_None ? NULL : handler);
}

/* allocator_limit(cached_nbytes, descriptors, blocks) */
PyObject *allocator_limit(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t cached_nbytes, descriptors, blocks;
    if (!PyArg_ParseTuple(args, "nnn", &cached_nbytes, &descriptors, &blocks))
        return NULL;
    mm_blocks_limit((size_t)cached_nbytes, (size_t)descriptors, (size_t)blocks);
    Py_RETURN_NONE;
}

/* allocator_trim(keep) -> bytes given back */
PyObject *allocator_trim(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t keep;
    if (!PyArg_ParseTuple(args, "n", &keep))
        return NULL;
    return PyLong_FromSize_t(mm_blocks_trim((size_t)keep));
}

/* allocator_share(start, nbytes): these pages are shown elsewhere from now on */
PyObject *allocator_share(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long start, nbytes;
    if (!PyArg_ParseTuple(args, "KK", &start, &nbytes))
        return NULL;
    mm_blocks_share((uintptr_t)start, (uintptr_t)(start + nbytes));
    Py_RETURN_NONE;
}

/* allocator_state() -> (blocks, bytes, cached blocks, cached bytes) */
PyObject *allocator_state(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    struct mm_blocks_state now = mm_blocks_state();
    return Py_BuildValue("(nnnn)", (Py_ssize_t)now.count, (Py_ssize_t)now.nbytes,
                         (Py_ssize_t)now.cached, (Py_ssize_t)now.cached_nbytes);
}
