/* Ring: the writer. One object at a time holds the writer's place; its threads are kept apart by the
 * interpreter's lock, which is let go only to wait for room. */
#define _GNU_SOURCE
#include "ring.h"

#include "numpy.h"

#include <string.h>

/* The ring, if we hold the writer's place or can take it. */
static Ring *writer_open(PyObject *self)
{
    Ring *ring = ring_open(self);
    if (ring == NULL)
        return NULL;
    if (ring->places.holder != this_process) {
        PyObject *taken = PyObject_CallMethod(self, "_take", NULL);
        if (taken == NULL)
            return NULL;
        Py_DECREF(taken);
    }
    if (ring->places.busy || ring->reserved != 0) {
        PyObject *unused = PyObject_CallMethod(self, "_refuse_busy", "O", ring->places.busy ? Py_True : Py_False);
        Py_XDECREF(unused);
        return NULL;
    }
    return ring;
}

/* The index of the next item: nobody else changes it while we hold the place. */
static uint64_t next_index(const Ring *ring)
{
    return atomic_load_explicit(&ring->places.shared->written, memory_order_relaxed);
}

static void publish(Ring *ring, uint64_t upto)
{
    if (mm_publish(ring->places.shared, upto))
        mm_sys_wake(&ring->places.shared->data_wanted);
}

uint64_t ring_room(Ring *ring, uint64_t wanted)
{
    if (ring->overwrite)
        return UINT64_MAX;
    struct mm_control *shared = ring->places.shared;
    uint64_t written = next_index(ring);
    mm_intend(shared, written + wanted);
    uint32_t arrivals = atomic_load_explicit(&shared->arrivals, memory_order_relaxed);
    if (arrivals != ring->arrivals || written + wanted > ring->limit) {
        uint64_t slowest = mm_slowest(shared);
        ring->arrivals = arrivals;
        ring->limit = slowest > UINT64_MAX - ring->places.capacity ? UINT64_MAX : slowest + ring->places.capacity;
    }
    return ring->limit > written ? ring->limit - written : 0;
}

static void put(Ring *ring, const char *source, uint64_t count)
{
    uint64_t written = next_index(ring);
    uint64_t skipped = count > ring->places.capacity ? count - ring->places.capacity : 0;
    mm_claim(ring->places.shared, written + count);
    memcpy(ring->base + (written + skipped) * ring->item_nbytes % ring->nbytes,
           source + skipped * ring->item_nbytes, (count - skipped) * ring->item_nbytes);
    publish(ring, written + count);
}

/* Let readers make room, with `partly` for some of it while a reader starves. False: an exception. */
static bool wait_for_room(PyObject *self, Ring *ring, uint64_t count, bool partly, PyObject **deadline,
                          PyObject *timeout)
{
    if (*deadline == NULL)
        *deadline = PyObject_CallMethod(self, "_deadline", "O", timeout);
    if (*deadline == NULL)
        return false;
    ring->places.busy = true;
    PyObject *waited = PyObject_CallMethod(self, "_wait_for_room", "KiO", (unsigned long long)count, partly,
                                           *deadline);
    ring->places.busy = false;
    Py_XDECREF(waited);
    return waited != NULL;
}

/* All of them. A block that fits the ring goes in whole, unless a reader starves meanwhile: its
 * block and ours may be too long to lie in the ring together. */
static PyObject *put_all(PyObject *self, Ring *ring, const char *source, uint64_t count, PyObject *timeout)
{
    PyObject *deadline = NULL;
    bool starving = false;
    while (count != 0) {
        uint64_t most = ring->overwrite || count < ring->places.capacity ? count : ring->places.capacity;
        uint64_t room = ring_room(ring, most);
        if (room < most && (room == 0 || !starving)) {
            if (!wait_for_room(self, ring, most, true, &deadline, timeout != NULL ? timeout : Py_None))
                break;
            starving = true;
            continue;
        }
        uint64_t piece = room < most ? room : most;
        put(ring, source, piece);
        source += piece * ring->item_nbytes;
        count -= piece;
        starving = false;
    }
    Py_XDECREF(deadline);
    return count == 0 ? Py_NewRef(Py_None) : NULL;
}

/* A C-contiguous array of items with our very dtype, elsewhere in memory? */
static bool is_plain(const Ring *ring, PyObject *block, int first)
{
    if (!PyArray_Check(block))
        return false;
    PyArrayObject *array = (PyArrayObject *)block;
    if (PyArray_NDIM(array) != ring->ndim - first || !PyArray_IS_C_CONTIGUOUS(array)
        || ((PyObject *)PyArray_DESCR(array) != ring->descr
            && !PyArray_EquivTypes(PyArray_DESCR(array), (PyArray_Descr *)ring->descr)))
        return false;
    for (int i = 1; i < ring->ndim; i++)
        if (PyArray_DIM(array, i - first) != ring->dims[i])
            return false;
    const char *data = PyArray_BYTES(array);
    return data + PyArray_NBYTES(array) <= ring->base || data >= ring->base + 2 * ring->nbytes;
}

/* The argument itself, or a copy of the right dtype and shape: a new reference. Converting runs
 * foreign code, after which the ring may be closed: open it again. */
static PyObject *converted(PyObject *self, PyObject *block, int first)
{
    const Ring *ring = ring_open(self);
    if (ring == NULL)
        return NULL;
    if (is_plain(ring, block, first))
        return Py_NewRef(block);
    PyObject *copy = PyObject_CallMethod(self, "_converted", "OO", block, first ? Py_True : Py_False);
    if (copy == NULL || ring_open(self) == NULL) {
        Py_CLEAR(copy);
    } else if (!is_plain(ring, copy, first)) {
        Py_CLEAR(copy);
        PyErr_SetString(PyExc_TypeError, "the block could not be converted");
    }
    return copy;
}

static PyObject *write_block(PyObject *self, PyObject *block, PyObject *timeout, int first)
{
    PyObject *items = converted(self, block, first);
    Ring *ring = items != NULL ? writer_open(self) : NULL;
    PyObject *done = NULL;
    if (ring != NULL) {
        PyArrayObject *array = (PyArrayObject *)items;
        done = put_all(self, ring, PyArray_BYTES(array), first ? 1 : (uint64_t)PyArray_DIM(array, 0), timeout);
    }
    Py_XDECREF(items);
    return done;
}

PyObject *ring_extend(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *block, *timeout;
    if (!take_timed("extend", args, given, names, &block, &timeout))
        return NULL;
    return write_block(self, block, timeout, 0);
}

PyObject *ring_append(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *item, *timeout;
    if (!take_timed("append", args, given, names, &item, &timeout))
        return NULL;
    Ring *ring = ring_open(self);
    if (ring == NULL)
        return NULL;
    _Alignas(64) char scalar[64];
    if (ring->ndim != 1 || ring->item_nbytes > sizeof scalar || PyArray_Check(item))
        return write_block(self, item, timeout, 1);
    memset(scalar, 0, sizeof scalar); /* what padding a structured item has */
    PyObject *descr = Py_NewRef(ring->descr); /* packing runs foreign code: open the ring afterwards */
    int failed = PyArray_Pack((PyArray_Descr *)descr, scalar, item);
    Py_DECREF(descr);
    ring = failed == 0 ? writer_open(self) : NULL;
    return ring != NULL ? put_all(self, ring, scalar, 1, timeout) : NULL;
}

PyObject *ring_reserve(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *number, *timeout;
    int64_t count;
    if (!take_timed("reserve", args, given, names, &number, &timeout) || !take_numbers(&number, 1, &count, 1))
        return NULL;
    Ring *ring = writer_open(self);
    if (ring == NULL)
        return NULL;
    if (count < 1 || (uint64_t)count > ring->places.capacity)
        return PyErr_Format(PyExc_ValueError, "reserve 1 to %llu items, not %lld",
                            (unsigned long long)ring->places.capacity, (long long)count);
    PyObject *deadline = NULL, *zero = PyLong_FromLong(0);
    bool failed = zero == NULL;
    while (!failed && ring_room(ring, (uint64_t)count) < (uint64_t)count)
        failed = !wait_for_room(self, ring, (uint64_t)count, false, &deadline,
                                timeout != NULL ? timeout : zero);
    Py_XDECREF(zero);
    Py_XDECREF(deadline);
    if (failed)
        return NULL;
    uint64_t written = next_index(ring);
    PyObject *array = ring_array(ring, written, (uint64_t)count, true);
    if (array != NULL) {
        mm_claim(ring->places.shared, written + (uint64_t)count);
        ring->reserved = (uint64_t)count;
    }
    return array;
}

PyObject *ring_commit(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    Ring *ring = ring_open(self);
    if (ring == NULL)
        return NULL;
    if (ring->places.holder != this_process || ring->reserved == 0) {
        PyErr_SetString(PyExc_ValueError, "nothing is reserved: call reserve() first");
        return NULL;
    }
    int64_t count = (int64_t)ring->reserved;
    if (given != 0 && args[0] != Py_None && !take_numbers(args, given, &count, 1))
        return NULL;
    if (count < 0 || (uint64_t)count > ring->reserved)
        return PyErr_Format(PyExc_ValueError, "commit 0 to %llu items, not %lld", (unsigned long long)ring->reserved,
                            (long long)count);
    ring->reserved = 0;
    if (count != 0)
        publish(ring, next_index(ring) + (uint64_t)count);
    Py_RETURN_NONE;
}
