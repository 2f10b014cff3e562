/* Sender: places a message, frames it, tells those who wait. One object a process at a time; its threads are
 * kept apart by the interpreter's lock, which is let go only to wait for room and for long copies. */
#define _GNU_SOURCE
#include "channel.h"
#include "channel_doc.h"

#include <string.h>

enum { MUCH = 4, /* that part of the data */ WARM = 8 << 20 };

static Sender *sender_of(PyObject *object)
{
    return (Sender *)object;
}

static Sender *refuse(PyObject *self, const char *why)
{
    PyObject *unused = PyObject_CallMethod(self, "_refuse", "s", why);
    Py_XDECREF(unused);
    return NULL;
}

Sender *sender_open(PyObject *self)
{
    Places *places = places_open(self);
    if (places == NULL)
        return NULL;
    Sender *sender = sender_of(self);
    if (places->holder != this_process)
        return refuse(self, "process");
    if (places->busy)
        return refuse(self, "thread");
    return sender->open != NULL ? refuse(self, sender->open->open ? "reservation" : "view") : sender;
}

/* _begin(inflight, spin_ns, longest): go on where the last sender ended; the place is ours. False: the tally is damaged. */
static PyObject *sender_begin(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[3];
    if (places_open(self) == NULL || !take_numbers(args, given, number, 3))
        return NULL;
    Sender *sender = sender_of(self);
    int64_t inflight = number[0];
    sender->patience.spin_ns = number[1];
    sender->longest = (uint64_t)number[2];
    if (!mm_resume(&sender->end.stream, &sender->next))
        Py_RETURN_FALSE;
    if (inflight > 0 && sender->ends == NULL) {
        sender->ends = PyMem_Calloc((size_t)inflight, sizeof *sender->ends);
        if (sender->ends == NULL)
            return PyErr_NoMemory();
        sender->inflight = (uint64_t)inflight;
        /* what a dead sender left counts as unread until it is read */
        for (uint64_t i = 0; i < sender->inflight; i++)
            sender->ends[i] = sender->next.start;
    }
    sender->arrivals = atomic_load_explicit(&sender->end.stream.shared->arrivals, memory_order_relaxed) - 1;
    sender->end.places.holder = this_process;
    Py_RETURN_TRUE;
}

/* --- room --- */

/* Where a frame goes: at the next place, or with few messages in flight at the start of the data again as soon as
 * those fit there and WARM bytes are used, so that the same pages stay in the cache that all processors share. Sooner
 * is slower: what the receiver has just read would have to be taken back out of its own cache, line by line. */
static uint64_t chosen_start(Sender *sender, uint64_t frame_nbytes)
{
    uint64_t start = sender->next.start, nbytes = sender->end.stream.nbytes;
    if (sender->inflight == 0)
        return start;
    if (frame_nbytes > sender->largest)
        sender->largest = frame_nbytes;
    uint64_t offset = start % nbytes;
    if (sender->largest > nbytes / sender->inflight || offset < frame_nbytes
        || offset + frame_nbytes <= sender->largest * sender->inflight || offset + frame_nbytes <= WARM)
        return start;
    return start - offset + nbytes;
}

/* May the message that is being placed be written, as far as receivers go? */
static bool has_room(Sender *sender, bool anew)
{
    if (sender->end.overwrite)
        return true;
    const struct mm_control *shared = sender->end.stream.shared;
    uint32_t arrivals = atomic_load_explicit(&shared->arrivals, memory_order_acquire);
    if (anew || arrivals != sender->arrivals || sender->needed < sender->required) {
        sender->needed = mm_needed(&sender->end.stream);
        sender->arrivals = arrivals;
    }
    return sender->needed >= sender->required;
}

/* _wait_room(milliseconds) -> is there room for what is being placed? 0 milliseconds gives up. */
static PyObject *sender_wait_room(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t milliseconds;
    if (places_open(self) == NULL || !take_numbers(args, given, &milliseconds, 1))
        return NULL;
    Sender *sender = sender_of(self);
    struct mm_control *shared = sender->end.stream.shared;
    uint32_t word = mm_want(&shared->room_wanted);
    if (has_room(sender, true))
        Py_RETURN_TRUE;
    if (milliseconds > 0 && sleep_on(&shared->room_wanted, word, milliseconds) < 0)
        return NULL;
    return PyBool_FromLong(has_room(sender, true));
}

/* Room for more than one message: where there is none for one, waiting for each alone would cost as often. */
static bool has_much_room(void *sender)
{
    const Sender *asks = sender;
    uint64_t much = asks->required + asks->end.stream.nbytes / MUCH, all = asks->next.start;
    if (asks->inflight != 0 || much > all)
        much = asks->inflight != 0 || all < asks->required ? asks->required : all;
    return has_room(sender, true) && asks->needed >= much;
}

static bool wait_for_room(PyObject *self, Sender *sender, PyObject *timeout)
{
    sender->end.places.busy = true;
    if (spin_until(&sender->patience, has_much_room, sender) || has_room(sender, true)) {
        sender->end.places.busy = false;
        return true;
    }
    PyObject *waited = PyObject_CallMethod(self, "_wait_for_room", "(O)", timeout != NULL ? timeout : Py_None);
    sender->end.places.busy = false;
    if (waited == NULL) /* newcomers may have what we asked for */
        mm_intend(sender->end.stream.shared,
                  atomic_load_explicit(&sender->end.stream.shared->claimed, memory_order_relaxed));
    Py_XDECREF(waited);
    return waited != NULL;
}

bool sender_place(PyObject *self, Sender *sender, uint64_t about_nbytes, uint64_t nbytes, PyObject *timeout)
{
    uint64_t frame = mm_frame_nbytes(about_nbytes, nbytes), capacity = sender->end.stream.nbytes;
    if (nbytes > sender->longest || frame > capacity) {
        PyObject *unused = PyObject_CallMethod(self, "_refuse_length", "K", (unsigned long long)nbytes);
        Py_XDECREF(unused);
        return false;
    }
    sender->start = chosen_start(sender, frame);
    uint64_t end = sender->start + frame;
    sender->required = end > capacity ? end - capacity : 0;
    if (sender->inflight != 0 && !sender->end.overwrite) {
        uint64_t oldest = sender->ends[sender->next.sequence % sender->inflight];
        if (oldest > sender->required)
            sender->required = oldest;
    }
    struct mm_control *shared = sender->end.stream.shared;
    if (!sender->end.overwrite)
        mm_intend(shared, end);
    if (!has_room(sender, false)) {
        /* what a batch has ready is what receivers may be waiting for */
        if (atomic_load_explicit(&shared->written, memory_order_relaxed) != sender->next.start)
            mm_commit(&sender->end.stream, &sender->next);
        if (sender_tell(self, sender) < 0 || !wait_for_room(self, sender, timeout))
            return false;
    }
    mm_claim(shared, end);
    return true;
}

/* --- the message --- */

char *sender_payload(const Sender *sender, uint64_t about_nbytes)
{
    uint64_t header = mm_frame_nbytes(about_nbytes, 0);
    return (char *)sender->end.stream.data + sender->start % sender->end.stream.nbytes + header;
}

void sender_frame(Sender *sender, uint32_t about_nbytes, uint64_t nbytes)
{
    const struct mm_stream *stream = &sender->end.stream;
    char *data = (char *)stream->data;
    struct mm_header header = {.kind = MM_SKIP, .frame_nbytes = sender->start - sender->next.start};
    if (header.frame_nbytes != 0)
        mm_frame(stream, data, &sender->next, header);
    if (about_nbytes != 0)
        memcpy(data + sender->start % stream->nbytes + MM_LINE, sender->end.about.text, about_nbytes);
    header = (struct mm_header){.kind = about_nbytes != 0 ? MM_ARRAY : MM_PLAIN, .about_nbytes = about_nbytes,
                                .nbytes = nbytes, .frame_nbytes = mm_frame_nbytes(about_nbytes, nbytes),
                                .time_ns = mm_sys_now()};
    uint64_t number = sender->next.sequence;
    mm_frame(stream, data, &sender->next, header);
    if (sender->inflight != 0)
        sender->ends[number % sender->inflight] = sender->next.start;
}

int sender_tell(PyObject *self, Sender *sender)
{
    struct mm_control *shared = sender->end.stream.shared;
    if (!mm_is_wanted(&shared->data_wanted))
        return 0;
    mm_sys_wake(&shared->data_wanted);
    if (atomic_load_explicit(&sender->end.stream.annex->bells, memory_order_relaxed) == 0)
        return 0;
    PyObject *rung = PyObject_CallMethod(self, "_ring_bells", NULL);
    Py_XDECREF(rung);
    return rung != NULL ? 0 : -1;
}

static PyObject *get_sequence(PyObject *self, void *unused)
{
    (void)unused;
    return places_open(self) != NULL ? PyLong_FromUnsignedLongLong(sender_of(self)->next.sequence) : NULL;
}

/* _abandon(): give up an open reservation. Raises: BufferError while a view of one lives. */
static PyObject *sender_abandon(PyObject *self, PyObject *unused)
{
    (void)unused;
    Sender *sender = sender_of(self);
    if (sender->open != NULL && sender->open->exports != 0) {
        PyErr_SetString(PyExc_BufferError, "arrays or memoryviews still show a reservation; delete them first");
        return NULL;
    }
    if (sender->open != NULL)
        sender->open->open = false;
    sender->open = NULL;
    Py_RETURN_NONE;
}

/* _detach(): let go of the pages; nothing is reserved any more */
static PyObject *sender_detach(PyObject *self, PyObject *unused)
{
    Sender *sender = sender_of(self);
    if (sender->end.places.busy) {
        PyErr_SetString(PyExc_RuntimeError, "another thread waits inside this sender");
        return NULL;
    }
    PyObject *abandoned = sender_abandon(self, unused);
    if (abandoned != NULL) {
        Py_CLEAR(sender->wish);
        end_clear(&sender->end);
    }
    return abandoned;
}

static void sender_dealloc(PyObject *self)
{
    Sender *sender = sender_of(self);
    Py_CLEAR(sender->wish);
    end_clear(&sender->end);
    PyMem_Free(sender->ends);
    free_object(self);
}

static PyMethodDef sender_methods[] = {
    {"send", (PyCFunction)(void (*)(void))sender_send, METH_FASTCALL | METH_KEYWORDS, send_doc},
    {"send_many", (PyCFunction)(void (*)(void))sender_send_many, METH_FASTCALL | METH_KEYWORDS, send_many_doc},
    {"reserve", (PyCFunction)(void (*)(void))sender_reserve, METH_FASTCALL | METH_KEYWORDS, reserve_doc},
    {"_begin", FASTCALL(sender_begin), NULL},
    {"_wait_room", FASTCALL(sender_wait_room), NULL},
    {"_abandon", sender_abandon, METH_NOARGS, NULL},
    {"_detach", sender_detach, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef sender_getset[] = {
    {"sequence", get_sequence, NULL, sequence_doc, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot sender_slots[] = {
    {Py_tp_doc, "Base of Sender."},
    {Py_tp_dealloc, sender_dealloc},
    {Py_tp_methods, sender_methods},
    {Py_tp_getset, sender_getset},
    {0, NULL},
};

PyType_Spec sender_spec = {
    .name = "mirrormap._core.SenderBase",
    .basicsize = sizeof(Sender),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = sender_slots,
};
