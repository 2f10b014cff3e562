/* Message: one message where it lies, pinned until the last view of it is gone. */
#define _GNU_SOURCE
#include "channel.h"
#include "channel_doc.h"

#include <string.h>

PyTypeObject *message_type, *pin_type;

/* What the arrays of a message have as their base: an export, cheaper than a memoryview, and nobody can release it. */
typedef struct {
    PyObject_HEAD
    PyObject *message;
} Pin;

static Message *message_of(PyObject *object)
{
    return (Message *)object;
}

static Receiver *receiver_of(const Message *message)
{
    return (Receiver *)message->receiver;
}

PyObject *message_new(PyObject *self, Receiver *receiver, int slot, uint64_t start, const struct mm_header *header)
{
    Message *message = PyObject_New(Message, message_type);
    if (message == NULL)
        return NULL;
    message->receiver = Py_NewRef(self);
    message->payload = receiver->end.stream.data + start % receiver->end.stream.nbytes
                       + mm_frame_nbytes(header->about_nbytes, 0);
    message->start = start;
    message->end = start + header->frame_nbytes;
    message->nbytes = header->nbytes;
    message->sequence = header->sequence;
    message->time_ns = header->time_ns;
    message->about_nbytes = header->kind == MM_ARRAY ? header->about_nbytes : 0;
    message->slot = slot;
    message->exports = 0;
    message->next = NULL;
    message->previous = receiver->last;
    if (receiver->last != NULL)
        receiver->last->next = message;
    else
        receiver->first = message;
    receiver->last = message;
    return (PyObject *)message;
}

bool message_is_intact(const Message *message)
{
    const Receiver *receiver = receiver_of(message);
    return receiver == NULL || !receiver->end.overwrite
           || mm_oldest(receiver->end.stream.shared, receiver->end.stream.nbytes) <= message->start;
}

/* Tell the sender how far we need the stream now. */
static void let_go(Receiver *receiver, const Message *message)
{
    struct mm_control *shared = receiver->end.stream.shared;
    if (receiver->group != NULL) {
        worker_done(receiver, message);
    } else if (message->slot >= 0 && message->previous == NULL) {
        uint64_t needed = message->next != NULL ? message->next->start : receiver->position;
        if (mm_advance(shared, message->slot, needed))
            mm_sys_wake(&shared->room_wanted);
    }
}

int message_release(Message *message)
{
    Receiver *receiver = receiver_of(message);
    if (receiver == NULL)
        return 0;
    if (message->exports != 0) {
        PyErr_SetString(PyExc_BufferError, "arrays or memoryviews still show this message; delete them first");
        return -1;
    }
    /* a forked child has a copy of the object, and no right to the place */
    if (receiver->end.places.shared != NULL && receiver->process == this_process)
        let_go(receiver, message);
    if (message->previous != NULL)
        message->previous->next = message->next;
    else
        receiver->first = message->next;
    if (message->next != NULL)
        message->next->previous = message->previous;
    else
        receiver->last = message->previous;
    if (receiver->given == message)
        receiver->given = NULL;
    Py_CLEAR(message->receiver);
    return 0;
}

static bool is_open(const Message *message)
{
    if (message->receiver != NULL)
        return true;
    PyErr_SetString(closed_error, "this message was released");
    return false;
}

/* Release, and say so if it was overwritten while it was held. */
static PyObject *release(Message *message)
{
    bool intact = message_is_intact(message);
    PyObject *receiver = Py_XNewRef(message->receiver), *told = NULL;
    if (message_release(message) == 0)
        told = intact ? Py_NewRef(Py_None) : PyObject_CallMethod(receiver, "_overrun", "i", 1);
    Py_XDECREF(receiver);
    return told;
}

static PyObject *message_release_method(PyObject *self, PyObject *unused)
{
    (void)unused;
    return release(message_of(self));
}

static PyObject *message_enter(PyObject *self, PyObject *unused)
{
    (void)unused;
    return is_open(message_of(self)) ? Py_NewRef(self) : NULL;
}

static PyObject *message_exit(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    Message *message = message_of(self);
    if (given == 0 || args[0] == Py_None)
        return release(message);
    /* the exception in flight is what matters; a view that its traceback keeps pins the message on */
    if (message->exports == 0)
        message_release(message);
    Py_RETURN_NONE;
}

static int message_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    Message *message = message_of(self);
    view->obj = NULL;
    if (!is_open(message)
        || PyBuffer_FillInfo(view, self, (char *)message->payload, (Py_ssize_t)message->nbytes, 1, flags) < 0)
        return -1;
    message->exports++;
    return 0;
}

static void message_releasebuffer(PyObject *self, Py_buffer *view)
{
    (void)view;
    message_of(self)->exports--;
}

static void message_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    message_release(message_of(self));
    PyObject_Free(self);
    Py_DECREF(type);
}

/* The description between header and payload, copied before it is looked at: it may change. */
static bool describe(const Message *message, struct about *about)
{
    char text[MM_ABOUT];
    uint64_t nbytes = message->about_nbytes;
    memcpy(text, message->payload - (mm_frame_nbytes(nbytes, 0) - MM_LINE), nbytes);
    if (about->descr == NULL || about->text_nbytes != nbytes || memcmp(about->text, text, nbytes) != 0) {
        PyObject *answer = PyObject_CallMethod(message->receiver, "_understood", "y#", text, (Py_ssize_t)nbytes);
        bool known = answer != NULL && about_set(about, answer);
        Py_XDECREF(answer);
        if (!known)
            return false;
    }
    if (about->nbytes == message->nbytes)
        return true;
    PyObject *unused = PyObject_CallMethod(message->receiver, "_corrupt", "s",
                                           "a message is not as long as its shape and dtype say");
    Py_XDECREF(unused);
    return false;
}

static PyObject *pinned(PyObject *self)
{
    Pin *pin = PyObject_New(Pin, pin_type);
    if (pin == NULL)
        return NULL;
    pin->message = Py_NewRef(self);
    message_of(self)->exports++;
    return (PyObject *)pin;
}

static void pin_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject *message = ((Pin *)self)->message;
    message_of(message)->exports--;
    Py_DECREF(message);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *get_array(PyObject *self, void *unused)
{
    (void)unused;
    Message *message = message_of(self);
    if (!is_open(message))
        return NULL;
    if (message->about_nbytes != 0) {
        struct about *about = &receiver_of(message)->end.about;
        if (!describe(message, about) || !is_open(message))
            return NULL;
        return about_array(about, (char *)message->payload, pinned(self), false);
    }
    struct about flat = {.descr = (PyObject *)PyArray_DescrFromType(NPY_UINT8), .ndim = 1};
    flat.dims[0] = (npy_intp)message->nbytes;
    PyObject *array = about_array(&flat, (char *)message->payload, pinned(self), false);
    Py_DECREF(flat.descr);
    return array;
}

static Py_ssize_t message_length(PyObject *self)
{
    return (Py_ssize_t)message_of(self)->nbytes;
}

static PyObject *get_nbytes(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(message_of(self)->nbytes);
}

static PyObject *get_sequence(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(message_of(self)->sequence);
}

static PyObject *get_time_ns(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromLongLong(message_of(self)->time_ns);
}

static PyObject *get_intact(PyObject *self, void *unused)
{
    (void)unused;
    return is_open(message_of(self)) ? PyBool_FromLong(message_is_intact(message_of(self))) : NULL;
}

static PyObject *get_released(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(message_of(self)->receiver == NULL);
}

static PyObject *message_repr(PyObject *self)
{
    const Message *message = message_of(self);
    return PyUnicode_FromFormat("<Message %llu, %llu bytes%s>", (unsigned long long)message->sequence,
                                (unsigned long long)message->nbytes, message->receiver == NULL ? ", released" : "");
}

static PyMethodDef message_methods[] = {
    {"release", message_release_method, METH_NOARGS, release_doc},
    {"__enter__", message_enter, METH_NOARGS, NULL},
    {"__exit__", FASTCALL(message_exit), NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef message_getset[] = {
    {"array", get_array, NULL, array_doc, NULL},
    {"nbytes", get_nbytes, NULL, "Bytes of payload.", NULL},
    {"sequence", get_sequence, NULL, "The message's number: the first ever sent is 0.", NULL},
    {"time_ns", get_time_ns, NULL, "CLOCK_MONOTONIC when it was committed, in nanoseconds.", NULL},
    {"intact", get_intact, NULL, intact_doc, NULL},
    {"released", get_released, NULL, "Whether release() was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot message_slots[] = {
    {Py_tp_doc, (char *)message_doc},
    {Py_tp_dealloc, message_dealloc},
    {Py_tp_repr, message_repr},
    {Py_tp_methods, message_methods},
    {Py_tp_getset, message_getset},
    {Py_sq_length, message_length},
    {Py_bf_getbuffer, message_getbuffer},
    {Py_bf_releasebuffer, message_releasebuffer},
    {0, NULL},
};

PyType_Spec message_spec = {
    .name = "mirrormap.Message",
    .basicsize = sizeof(Message),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = message_slots,
};

static PyType_Slot pin_slots[] = {
    {Py_tp_dealloc, pin_dealloc},
    {0, NULL},
};

PyType_Spec pin_spec = {
    .name = "mirrormap._core.Pin",
    .basicsize = sizeof(Pin),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pin_slots,
};
