/* Receiver: the next message of a place in the stream, checked before it is believed. */
#define _GNU_SOURCE
#include "channel.h"
#include "channel_doc.h"

enum { MOST_AT_ONCE = 1 << 20 };

static Receiver *receiver_of(PyObject *object)
{
    return (Receiver *)object;
}

Receiver *receiver_open(PyObject *self)
{
    Receiver *receiver = places_open(self) != NULL ? receiver_of(self) : NULL;
    if (receiver == NULL || receiver->process == this_process)
        return receiver;
    PyErr_SetString(closed_error, "this receiver belongs to the parent process; make one of your own");
    return NULL;
}

/* _begin(slot, position, sequence, spin_ns): stand there from now on */
static PyObject *receiver_begin(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[4];
    if (places_open(self) == NULL || !take_numbers(args, given, number, 4))
        return NULL;
    Receiver *receiver = receiver_of(self);
    receiver->process = this_process;
    receiver->slot = number[0] >= 0 && number[0] < MM_SLOTS ? (int)number[0] : -1;
    receiver->position = (uint64_t)number[1];
    receiver->sequence = (uint64_t)number[2];
    receiver->patience.spin_ns = number[3];
    if (receiver->slot >= 0)
        atomic_store(&receiver->end.stream.shared->slots[receiver->slot].sequence, receiver->sequence);
    Py_RETURN_NONE;
}

/* _find(from, count) -> (position, sequence) of the oldest intact frame from there on, at most `count` messages back
 * (-1: any number); None where the tally is damaged */
static PyObject *receiver_find(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    if (places_open(self) == NULL || !take_numbers(args, given, number, 2))
        return NULL;
    const struct mm_stream *stream = &receiver_of(self)->end.stream;
    struct mm_next next;
    struct mm_header header;
    for (int tries = 0; tries < 1000; tries++) {
        uint64_t upto, position = mm_oldest_frame(stream, (uint64_t)number[0], (uint64_t)number[1], &upto);
        if (position != upto && mm_frame_at(stream, position, upto, &header)
            && mm_oldest(stream->shared, stream->nbytes) <= position)
            return Py_BuildValue("(KK)", (unsigned long long)position, (unsigned long long)header.sequence);
        if (position == upto && mm_newest(stream, &next) && next.start == upto)
            return Py_BuildValue("(KK)", (unsigned long long)upto, (unsigned long long)next.sequence);
    }
    Py_RETURN_NONE;
}

/* --- the next message --- */

enum found receiver_look(Receiver *receiver, uint64_t position, struct mm_header *header)
{
    const struct mm_stream *stream = &receiver->end.stream;
    uint64_t written = receiver->seen;
    if (written <= position) /* only then: the sender needs the line it is in */
        written = receiver->seen = atomic_load_explicit(&stream->shared->written, memory_order_acquire);
    if (written == position)
        return NOTHING;
    bool there = written > position && mm_frame_at(stream, position, written, header);
    if (receiver->end.overwrite && mm_oldest(stream->shared, stream->nbytes) > position)
        return OVERRUN;
    return there && written - position <= stream->nbytes ? FOUND : DAMAGED;
}

void receiver_corrupt(PyObject *self, const char *what)
{
    PyObject *unused = PyObject_CallMethod(self, "_corrupt", "s", what);
    Py_XDECREF(unused);
}

bool receiver_oldest(PyObject *self, uint64_t *position, uint64_t *sequence)
{
    unsigned long long at, number;
    PyObject *found = PyObject_CallMethod(self, "_find", "ii", 0, -1);
    if (found == Py_None)
        receiver_corrupt(self, "its count of messages is damaged");
    bool known = found != NULL && found != Py_None && PyArg_ParseTuple(found, "KK", &at, &number);
    Py_XDECREF(found);
    if (known) {
        *position = at;
        *sequence = number;
    }
    return known;
}

bool receiver_missed(PyObject *self, Receiver *receiver, uint64_t from, uint64_t to)
{
    if (to <= from)
        return true;
    if (receiver->slot >= 0)
        atomic_fetch_add_explicit(&receiver->end.stream.shared->slots[receiver->slot].missed, to - from,
                                  memory_order_relaxed);
    PyObject *unused = PyObject_CallMethod(self, "_overrun", "K", (unsigned long long)(to - from));
    Py_XDECREF(unused);
    return false;
}

/* The sender was a lap ahead: stand at the oldest message that is left. True: nothing was missed. */
static bool catch_up(PyObject *self, Receiver *receiver)
{
    uint64_t position, sequence, before = receiver->sequence;
    if (!receiver_oldest(self, &position, &sequence))
        return false;
    receiver->position = position;
    receiver->sequence = sequence;
    return receiver_missed(self, receiver, before, sequence);
}

/* The next message; NULL without an exception: there is none, or `quiet` and some were missed. */
static PyObject *next_message(PyObject *self, Receiver *receiver, bool quiet)
{
    struct mm_control *shared = receiver->end.stream.shared;
    struct mm_header header;
    for (;;) {
        enum found found = receiver_look(receiver, receiver->position, &header);
        if (found == OVERRUN && !quiet && catch_up(self, receiver))
            continue;
        if (found == DAMAGED) { /* go on with what comes next */
            receiver->position = atomic_load_explicit(&shared->written, memory_order_acquire);
            receiver_corrupt(self, "a message's header is damaged");
        }
        if (found != FOUND)
            return NULL;
        uint64_t start = receiver->position;
        receiver->position += header.frame_nbytes;
        if (header.kind == MM_SKIP) {
            if (receiver->slot >= 0 && receiver->first == NULL && mm_advance(shared, receiver->slot, receiver->position))
                mm_sys_wake(&shared->room_wanted);
            continue;
        }
        receiver->sequence = header.sequence + 1;
        if (receiver->slot >= 0)
            atomic_store_explicit(&shared->slots[receiver->slot].sequence, receiver->sequence, memory_order_relaxed);
        return message_new(self, receiver, receiver->slot, start, &header);
    }
}

/* What is there now, for a worker of a group up to `limit` messages of which the first is returned. */
static PyObject *try_next(PyObject *self, Receiver *receiver, int64_t limit, bool quiet)
{
    if (receiver->pending != NULL && PyList_Size(receiver->pending) > 0) {
        PyObject *message = Py_NewRef(PyList_GetItem(receiver->pending, 0));
        if (PyList_SetSlice(receiver->pending, 0, 1, NULL) < 0)
            Py_CLEAR(message);
        return message;
    }
    return receiver->group != NULL ? worker_next(self, receiver, limit) : next_message(self, receiver, quiet);
}

/* _try() -> the next message or None */
static PyObject *receiver_try(PyObject *self, PyObject *unused)
{
    (void)unused;
    Receiver *receiver = receiver_open(self);
    PyObject *message = receiver != NULL ? try_next(self, receiver, 1, false) : NULL;
    return message != NULL || PyErr_Occurred() ? message : Py_NewRef(Py_None);
}

static PyObject *receive(PyObject *self, PyObject *timeout)
{
    Receiver *receiver = is_timeout(timeout) ? receiver_open(self) : NULL;
    PyObject *message = receiver != NULL ? try_next(self, receiver, 1, false) : NULL;
    if (receiver == NULL || message != NULL || PyErr_Occurred())
        return message;
    if (receiver_spin(receiver)) {
        receiver = receiver_open(self);
        message = receiver != NULL ? try_next(self, receiver, 1, false) : NULL;
        if (receiver == NULL || message != NULL || PyErr_Occurred())
            return message;
    }
    return PyObject_CallMethod(self, "_receive_slowly", "(O)", timeout != NULL ? timeout : Py_None);
}

static PyObject *receiver_receive(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    Py_ssize_t named = names != NULL ? PyTuple_Size(names) : 0;
    if (given + named > 1
        || (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "timeout") != 0)) {
        PyErr_SetString(PyExc_TypeError, "receive() takes timeout= and nothing else");
        return NULL;
    }
    return receive(self, given + named == 1 ? args[0] : NULL);
}

static PyObject *receiver_receive_many(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *number, *timeout, *message;
    int64_t limit;
    if (!take_timed("receive_many", args, given, names, &number, &timeout)
        || !take_numbers(&number, 1, &limit, 1))
        return NULL;
    if (limit < 1)
        return PyErr_Format(PyExc_ValueError, "receive at least 1 message, not %lld", (long long)limit);
    Receiver *receiver = receiver_open(self);
    if (receiver == NULL)
        return NULL;
    message = try_next(self, receiver, limit < MOST_AT_ONCE ? limit : MOST_AT_ONCE, false);
    if (message == NULL && !PyErr_Occurred())
        message = receive(self, timeout);
    PyObject *messages = message != NULL ? PyList_New(0) : NULL;
    while (message != NULL && messages != NULL) {
        if (PyList_Append(messages, message) < 0)
            Py_CLEAR(messages);
        Py_CLEAR(message);
        receiver = receiver_open(self);
        if (messages == NULL || PyList_Size(messages) >= limit || receiver == NULL
            || (receiver->group != NULL && (receiver->pending == NULL || PyList_Size(receiver->pending) == 0)))
            break;
        message = try_next(self, receiver, 1, true); /* what was missed is told by the next call */
    }
    Py_XDECREF(message);
    if (PyErr_Occurred())
        Py_CLEAR(messages);
    return messages;
}

/* The message that iteration gave out before is done with, unless a view of it lives. */
static int done_with_given(PyObject *self, Receiver *receiver)
{
    Message *given = receiver->given;
    if (given == NULL)
        return 0;
    receiver->given = NULL;
    if (given->exports != 0)
        return 0;
    bool intact = message_is_intact(given);
    message_release(given);
    PyObject *told = intact ? Py_NewRef(Py_None) : PyObject_CallMethod(self, "_overrun", "i", 1);
    Py_XDECREF(told);
    return told != NULL ? 0 : -1;
}

/* _done(): see done_with_given. _give(message): it is the one from now on. */
static PyObject *receiver_done(PyObject *self, PyObject *unused)
{
    (void)unused;
    Receiver *receiver = receiver_open(self);
    return receiver != NULL && done_with_given(self, receiver) == 0 ? Py_NewRef(Py_None) : NULL;
}

static PyObject *receiver_give(PyObject *self, PyObject *message)
{
    if (!PyObject_TypeCheck(message, message_type) || ((Message *)message)->receiver != self) {
        PyErr_SetString(PyExc_TypeError, "a message of this receiver");
        return NULL;
    }
    receiver_of(self)->given = (Message *)message;
    return Py_NewRef(message);
}

static PyObject *receiver_next(PyObject *self)
{
    Receiver *receiver = receiver_open(self);
    if (receiver == NULL || done_with_given(self, receiver) < 0)
        return NULL;
    PyObject *message = receive(self, NULL);
    if (message != NULL)
        receiver->given = (Message *)message;
    return message;
}

/* --- the end --- */

bool receiver_release_all(Receiver *receiver)
{
    for (const Message *message = receiver->first; message != NULL; message = message->next)
        if (message->exports != 0) {
            PyErr_SetString(PyExc_BufferError, "arrays or memoryviews still show messages of this receiver; "
                                               "delete them first");
            return false;
        }
    while (receiver->first != NULL)
        message_release(receiver->first);
    return true;
}

/* _leave(): give up messages and places. Raises: BufferError while a view of a message lives. */
static PyObject *receiver_leave(PyObject *self, PyObject *unused)
{
    (void)unused;
    Receiver *receiver = receiver_of(self);
    if (receiver->end.places.shared == NULL)
        Py_RETURN_NONE;
    if (receiver->group != NULL && receiver->process == this_process && !worker_leave(self, receiver))
        return NULL;
    PyObject *keep = Py_NewRef(self);
    bool left = receiver_release_all(receiver);
    Py_DECREF(keep);
    if (!left)
        return NULL;
    struct mm_control *shared = receiver->end.stream.shared;
    if (receiver->slot >= 0 && receiver->process == this_process && mm_advance(shared, receiver->slot, UINT64_MAX))
        mm_sys_wake(&shared->room_wanted);
    receiver->slot = -1;
    Py_CLEAR(receiver->pending);
    receiver->group = NULL;
    end_clear(&receiver->end);
    Py_RETURN_NONE;
}

static void receiver_dealloc(PyObject *self)
{
    Py_CLEAR(receiver_of(self)->pending);
    end_clear(&receiver_of(self)->end);
    free_object(self);
}

static PyObject *get_sequence(PyObject *self, void *unused)
{
    (void)unused;
    Receiver *receiver = receiver_open(self);
    if (receiver == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(receiver->group == NULL
                                           ? receiver->sequence
                                           : mm_group_sequence(receiver->group));
}

static PyObject *get_slot(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromLong(receiver_of(self)->slot);
}

static PyMethodDef receiver_methods[] = {
    {"receive", (PyCFunction)(void (*)(void))receiver_receive, METH_FASTCALL | METH_KEYWORDS, receive_doc},
    {"receive_many", (PyCFunction)(void (*)(void))receiver_receive_many, METH_FASTCALL | METH_KEYWORDS,
     receive_many_doc},
    {"_begin", FASTCALL(receiver_begin), NULL},
    {"_find", FASTCALL(receiver_find), NULL},
    {"_try", receiver_try, METH_NOARGS, NULL},
    {"_wait_data", FASTCALL(receiver_wait_data), NULL},
    {"_want_bell", FASTCALL(receiver_want_bell), NULL},
    {"_done", receiver_done, METH_NOARGS, NULL},
    {"_give", receiver_give, METH_O, NULL},
    {"_leave", receiver_leave, METH_NOARGS, NULL},
    {"_join", worker_join, METH_VARARGS, NULL},
    {"_found", FASTCALL(worker_found), NULL},
    {"_adopt", FASTCALL(worker_adopt), NULL},
    {"_missed", FASTCALL(worker_missed), NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef receiver_getset[] = {
    {"sequence", get_sequence, NULL, next_doc, NULL},
    {"_slot", get_slot, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot receiver_slots[] = {
    {Py_tp_doc, "Base of Receiver."},
    {Py_tp_dealloc, receiver_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, receiver_next},
    {Py_tp_methods, receiver_methods},
    {Py_tp_getset, receiver_getset},
    {0, NULL},
};

PyType_Spec receiver_spec = {
    .name = "mirrormap._core.ReceiverBase",
    .basicsize = sizeof(Receiver),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = receiver_slots,
};
