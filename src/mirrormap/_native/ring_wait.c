/* Ring: waiting on the shared flags, and the places of the writer and its readers. Waits are short
 * slices; how long, and who is still alive, is decided in Python. */
#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>

/* Sleep on a flag for some milliseconds, unless its word is no longer what mm_want() returned. -1: a
 * signal handler raised. */
static int sleep_on(_Atomic uint32_t *flag, uint32_t word, int64_t milliseconds)
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = mm_sys_wait(flag, word, milliseconds * 1000000);
    Py_END_ALLOW_THREADS
    return error == EINTR ? PyErr_CheckSignals() : 0;
}

/* _wait_data(target, milliseconds) -> are `target` items written? 0 milliseconds gives up: nobody
 * shall write in pieces for a reader that has gone away. */
PyObject *ring_wait_data(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, number, 2))
        return NULL;
    struct mm_control *shared = ring->shared;
    uint64_t target = (uint64_t)number[0];
    if (number[1] == 0) {
        if (mm_is_wanted(&shared->data_wanted)) /* it may be others' flag: they set it again */
            mm_sys_wake(&shared->data_wanted);
        return PyBool_FromLong(atomic_load_explicit(&shared->written, memory_order_acquire) >= target);
    }
    PyObject *control = Py_NewRef(ring->control); /* close() may come in between */
    uint32_t word = mm_want(&shared->data_wanted);
    if (mm_is_wanted(&shared->room_wanted)) /* the writer may be waiting for us */
        mm_sys_wake(&shared->room_wanted);
    bool there = atomic_load_explicit(&shared->written, memory_order_acquire) >= target;
    int failed = there ? 0 : sleep_on(&shared->data_wanted, word, number[1]);
    there = atomic_load_explicit(&shared->written, memory_order_acquire) >= target;
    Py_DECREF(control);
    return failed < 0 ? NULL : PyBool_FromLong(there);
}

static bool is_enough(Ring *ring, uint64_t count, bool partly)
{
    uint64_t room = ring_room(ring, count);
    return room >= count
           || (partly && room > 0
               && (atomic_load_explicit(&ring->shared->data_wanted, memory_order_relaxed) & 1) != 0);
}

/* _wait_room(count, milliseconds, partly) -> is there room for `count` more items, or partly for
 * fewer, while a reader waits for them? */
PyObject *ring_wait_room(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[3];
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, number, 3))
        return NULL;
    uint64_t count = (uint64_t)number[0];
    uint32_t word = mm_want(&ring->shared->room_wanted);
    ring->limit = 0;
    if (is_enough(ring, count, number[2] != 0))
        Py_RETURN_TRUE;
    if (number[1] > 0 && sleep_on(&ring->shared->room_wanted, word, number[1]) < 0)
        return NULL;
    ring->limit = 0;
    bool there = is_enough(ring, count, number[2] != 0);
    if (!there && number[1] == 0) /* given up: newcomers may have what we asked for */
        mm_intend(ring->shared, atomic_load_explicit(&ring->shared->claimed, memory_order_relaxed));
    return PyBool_FromLong(there);
}

/* _seize_writer(expected, owner) -> was the writer's place `expected`, and is it `owner` now? */
PyObject *ring_seize_writer(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, number, 2))
        return NULL;
    bool seized = mm_seize(&ring->shared->writer, (uint64_t)number[0], (uint64_t)number[1]);
    if (seized && number[1] != 0)
        atomic_fetch_add_explicit(&ring->shared->writers, 1, memory_order_release);
    if (number[1] == 0 && seized)
        mm_sys_wake(&ring->shared->data_wanted); /* readers look who is left */
    return PyBool_FromLong(seized);
}

/* _arrive(owner, position) -> (slot, position), or None when all slots are taken */
PyObject *ring_arrive(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, number, 2))
        return NULL;
    uint64_t position = (uint64_t)number[1];
    int slot = mm_arrive(ring->shared, (uint64_t)number[0], ring->capacity, &position);
    if (slot < 0)
        Py_RETURN_NONE;
    if (mm_is_wanted(&ring->shared->room_wanted)) /* it may have seen a position that has been raised since */
        mm_sys_wake(&ring->shared->room_wanted);
    return Py_BuildValue("(iK)", slot, (unsigned long long)position);
}

static bool is_slot(int64_t slot)
{
    if (slot >= 0 && slot < MM_SLOTS)
        return true;
    PyErr_SetString(PyExc_ValueError, "no such slot");
    return false;
}

/* _advance(slot, position): -1 leaves the slot */
PyObject *ring_advance(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, number, 2) || !is_slot(number[0]))
        return NULL;
    uint64_t position = number[1] < 0 ? UINT64_MAX : (uint64_t)number[1];
    if (mm_advance(ring->shared, (int)number[0], position))
        mm_sys_wake(&ring->shared->room_wanted);
    Py_RETURN_NONE;
}

/* _evict(slot, owner): free the slot of a reader that died, if it is still `owner`'s */
PyObject *ring_evict(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, number, 2) || !is_slot(number[0]))
        return NULL;
    return PyBool_FromLong(mm_seize(&ring->shared->slots[number[0]].owner, (uint64_t)number[1], 0));
}

/* _owners() -> (writer, times taken, {slot: (owner, position)}) */
PyObject *ring_owners(PyObject *self, PyObject *unused)
{
    (void)unused;
    Ring *ring = ring_open(self);
    PyObject *readers = ring != NULL ? PyDict_New() : NULL;
    for (int i = 0; readers != NULL && i < MM_SLOTS; i++) {
        long long owner = (long long)atomic_load(&ring->shared->slots[i].owner);
        if (owner == 0)
            continue;
        unsigned long long position = atomic_load(&ring->shared->slots[i].position);
        PyObject *slot = PyLong_FromLong(i), *reader = Py_BuildValue("(LK)", owner, position);
        if (slot == NULL || reader == NULL || PyDict_SetItem(readers, slot, reader) < 0)
            Py_CLEAR(readers);
        Py_XDECREF(slot);
        Py_XDECREF(reader);
    }
    if (readers == NULL)
        return NULL;
    return Py_BuildValue("(LKN)", (long long)atomic_load(&ring->shared->writer),
                         (unsigned long long)atomic_load(&ring->shared->writers), readers);
}
