/* Receiver: waiting for a message, in short slices; how long is decided in Python. */
#define _GNU_SOURCE
#include "channel.h"

/* What there is to look at while others may close the receiver. */
struct watch {
    struct mm_annex *annex;
    struct mm_control *shared;
    struct mm_group *group;
    uint64_t position;
};

static struct watch watch(const Receiver *receiver)
{
    return (struct watch){.annex = receiver->end.stream.annex, .shared = receiver->end.stream.shared,
                          .group = receiver->group, .position = receiver->position};
}

/* May there be something for us? */
static bool is_there(const struct watch *watch)
{
    uint64_t written = atomic_load_explicit(&watch->shared->written, memory_order_acquire), word;
    if (watch->group == NULL)
        return written != watch->position;
    uint32_t orphans = atomic_load_explicit(&watch->annex->orphans, memory_order_relaxed);
    return written != mm_group_at(watch->group, &word) || (orphans >> (watch->group - watch->annex->groups) & 1) != 0;
}

/* _wait_data(milliseconds) -> may there be a message now? 0 milliseconds only looks. */
PyObject *receiver_wait_data(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t milliseconds;
    Receiver *receiver = receiver_open(self);
    if (receiver == NULL || !take_numbers(args, given, &milliseconds, 1))
        return NULL;
    struct watch seen = watch(receiver);
    if (milliseconds <= 0)
        return PyBool_FromLong(is_there(&seen));
    struct mm_control *shared = receiver->end.stream.shared;
    PyObject *control = Py_NewRef(receiver->end.places.control); /* close() may come in between */
    uint32_t word = mm_want(&shared->data_wanted);
    int failed = is_there(&seen) ? 0 : sleep_on(&shared->data_wanted, word, milliseconds);
    bool there = is_there(&seen);
    Py_DECREF(control);
    return failed < 0 ? NULL : PyBool_FromLong(there);
}

/* _want_bell(address) -> may there be a message now? If not, the sender will send a byte to `address`. */
PyObject *receiver_want_bell(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t address;
    Receiver *receiver = receiver_open(self);
    if (receiver == NULL || !take_numbers(args, given, &address, 1))
        return NULL;
    struct mm_control *shared = receiver->end.stream.shared;
    if (receiver->slot >= 0) {
        atomic_store(&shared->slots[receiver->slot].address, (uint64_t)address);
        atomic_store(&shared->slots[receiver->slot].rings, 1);
        atomic_store(&receiver->end.stream.annex->bells, 1);
        mm_want(&shared->data_wanted);
    }
    struct watch seen = watch(receiver);
    return PyBool_FromLong(is_there(&seen));
}

static bool look(void *seen)
{
    return is_there(seen);
}

/* True: there may be a message. */
bool receiver_spin(Receiver *receiver)
{
    struct watch seen = watch(receiver);
    PyObject *control = Py_NewRef(receiver->end.places.control); /* close() may come in between */
    bool there = spin_until(&receiver->patience, look, &seen);
    Py_DECREF(control);
    return there;
}
