/* Ring: waiting on the shared flags, in short slices; how long is decided in Python. */
#define _GNU_SOURCE
#include "ring.h"

/* _wait_data(target, milliseconds) -> are `target` items written? 0 milliseconds gives up: nobody
 * shall write in pieces for a reader that has gone away. */
PyObject *ring_wait_data(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Ring *ring = ring_open(self);
    if (ring == NULL || !take_numbers(args, given, number, 2))
        return NULL;
    struct mm_control *shared = ring->places.shared;
    uint64_t target = (uint64_t)number[0];
    if (number[1] == 0) {
        if (mm_is_wanted(&shared->data_wanted)) /* it may be others' flag: they set it again */
            mm_sys_wake(&shared->data_wanted);
        return PyBool_FromLong(atomic_load_explicit(&shared->written, memory_order_acquire) >= target);
    }
    PyObject *control = Py_NewRef(ring->places.control); /* close() may come in between */
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
               && (atomic_load_explicit(&ring->places.shared->data_wanted, memory_order_relaxed) & 1) != 0);
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
    uint32_t word = mm_want(&ring->places.shared->room_wanted);
    ring->limit = 0;
    if (is_enough(ring, count, number[2] != 0))
        Py_RETURN_TRUE;
    if (number[1] > 0 && sleep_on(&ring->places.shared->room_wanted, word, number[1]) < 0)
        return NULL;
    ring->limit = 0;
    bool there = is_enough(ring, count, number[2] != 0);
    if (!there && number[1] == 0) /* given up: newcomers may have what we asked for */
        mm_intend(ring->places.shared, atomic_load_explicit(&ring->places.shared->claimed, memory_order_relaxed));
    return PyBool_FromLong(there);
}
