/* Reservation: the place of the next message, to be written where it will be read. */
#define _GNU_SOURCE
#include "channel.h"
#include "channel_doc.h"

PyTypeObject *reservation_type;

static Reservation *reservation_of(PyObject *object)
{
    return (Reservation *)object;
}

static Sender *sender_of(const Reservation *reservation)
{
    return (Sender *)reservation->sender;
}

PyObject *reservation_new(PyObject *self, Sender *sender, uint64_t nbytes, uint32_t about_nbytes)
{
    Reservation *reservation = PyObject_New(Reservation, reservation_type);
    if (reservation == NULL)
        return NULL;
    reservation->sender = Py_NewRef(self);
    reservation->payload = sender_payload(sender, about_nbytes);
    reservation->nbytes = nbytes;
    reservation->about_nbytes = about_nbytes;
    reservation->open = true;
    reservation->exports = 0;
    sender->open = reservation;
    return (PyObject *)reservation;
}

/* What reserve() was asked for: a number of bytes, or what Python makes of (shape, dtype). */
static bool understand(PyObject *self, Sender *sender, PyObject *wish, uint64_t *nbytes, uint32_t *about_nbytes)
{
    if (PyTuple_Check(wish)) {
        int same = sender->wish == NULL ? 0 : PyObject_RichCompareBool(wish, sender->wish, Py_EQ);
        if (same < 0)
            return false;
        if (!same) {
            PyObject *answer = PyObject_CallMethod(self, "_understand", "(O)", wish);
            Py_CLEAR(sender->wish);
            bool known = answer != NULL && about_set(&sender->end.about, answer);
            Py_XDECREF(answer);
            if (!known)
                return false;
            sender->wish = Py_NewRef(wish);
        }
        *nbytes = sender->end.about.nbytes;
        *about_nbytes = sender->end.about.text_nbytes;
        return true;
    }
    PyObject *number = PyNumber_Index(wish);
    if (number == NULL) {
        PyErr_SetString(PyExc_TypeError, "reserve a number of bytes, or (shape, dtype)");
        return false;
    }
    int64_t count;
    bool fits = take_numbers(&number, 1, &count, 1);
    Py_DECREF(number);
    if (fits && count < 0) {
        PyErr_Format(PyExc_ValueError, "reserve 0 bytes or more, not %lld", (long long)count);
        fits = false;
    }
    *nbytes = (uint64_t)count;
    *about_nbytes = 0;
    return fits;
}

PyObject *sender_reserve(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *wish, *timeout;
    uint64_t nbytes;
    uint32_t about_nbytes;
    if (!take_timed("reserve", args, given, names, &wish, &timeout))
        return NULL;
    Sender *sender = sender_open(self);
    if (sender == NULL || !understand(self, sender, wish, &nbytes, &about_nbytes) || sender_open(self) == NULL
        || !sender_place(self, sender, about_nbytes, nbytes, timeout))
        return NULL;
    return reservation_new(self, sender, nbytes, about_nbytes);
}

/* No message will come of it. As long as a view shows its place, the sender refuses to use that. */
static void give_up(Reservation *reservation)
{
    Sender *sender = sender_of(reservation);
    reservation->open = false;
    if (sender->open == reservation && reservation->exports == 0)
        sender->open = NULL;
}

static bool is_open(const Reservation *reservation)
{
    if (reservation->open && sender_of(reservation)->end.places.holder == this_process)
        return true;
    PyErr_SetString(closed_error, "this reservation was committed or abandoned");
    return false;
}

static PyObject *commit(Reservation *reservation, uint64_t nbytes)
{
    if (reservation->exports != 0) {
        give_up(reservation);
        PyErr_SetString(PyExc_BufferError, "arrays or memoryviews still show this reservation, so it was abandoned; "
                                           "delete them before it is committed");
        return NULL;
    }
    Sender *sender = sender_of(reservation);
    give_up(reservation);
    sender_frame(sender, reservation->about_nbytes, nbytes);
    mm_commit(&sender->end.stream, &sender->next);
    return sender_tell(reservation->sender, sender) == 0 ? Py_NewRef(Py_None) : NULL;
}

static PyObject *reservation_commit(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    Reservation *reservation = reservation_of(self);
    Py_ssize_t named = names != NULL ? PyTuple_Size(names) : 0;
    if (given + named > 1
        || (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "nbytes") != 0)) {
        PyErr_SetString(PyExc_TypeError, "commit() takes nbytes= and nothing else");
        return NULL;
    }
    int64_t nbytes = (int64_t)reservation->nbytes;
    if (!is_open(reservation) || (given + named == 1 && args[0] != Py_None && !take_numbers(args, 1, &nbytes, 1)))
        return NULL;
    bool whole = reservation->about_nbytes != 0;
    if (nbytes < 0 || (uint64_t)nbytes > reservation->nbytes || (whole && (uint64_t)nbytes != reservation->nbytes))
        return PyErr_Format(PyExc_ValueError, whole ? "an array is committed whole: %llu bytes, not %lld"
                                                    : "commit 0 to %llu bytes, not %lld",
                            (unsigned long long)reservation->nbytes, (long long)nbytes);
    return commit(reservation, (uint64_t)nbytes);
}

static PyObject *reservation_abandon(PyObject *self, PyObject *unused)
{
    (void)unused;
    give_up(reservation_of(self));
    Py_RETURN_NONE;
}

static PyObject *reservation_enter(PyObject *self, PyObject *unused)
{
    (void)unused;
    return is_open(reservation_of(self)) ? Py_NewRef(self) : NULL;
}

static PyObject *reservation_exit(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    Reservation *reservation = reservation_of(self);
    if (!reservation->open)
        Py_RETURN_NONE;
    if (given > 0 && args[0] != Py_None) {
        give_up(reservation);
        Py_RETURN_NONE;
    }
    return is_open(reservation) ? commit(reservation, reservation->nbytes) : NULL;
}

static int reservation_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    Reservation *reservation = reservation_of(self);
    view->obj = NULL;
    if (!is_open(reservation)
        || PyBuffer_FillInfo(view, self, reservation->payload, (Py_ssize_t)reservation->nbytes, 0, flags) < 0)
        return -1;
    reservation->exports++;
    return 0;
}

static void reservation_releasebuffer(PyObject *self, Py_buffer *view)
{
    (void)view;
    Reservation *reservation = reservation_of(self);
    reservation->exports--;
    if (!reservation->open)
        give_up(reservation);
}

static void reservation_dealloc(PyObject *self)
{
    give_up(reservation_of(self));
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(reservation_of(self)->sender);
    PyObject_Free(self);
    Py_DECREF(type);
}

static Py_ssize_t reservation_length(PyObject *self)
{
    return (Py_ssize_t)reservation_of(self)->nbytes;
}

static PyObject *get_nbytes(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(reservation_of(self)->nbytes);
}

static PyObject *get_array(PyObject *self, void *unused)
{
    (void)unused;
    Reservation *reservation = reservation_of(self);
    if (!is_open(reservation))
        return NULL;
    if (reservation->about_nbytes != 0)
        return about_array(&sender_of(reservation)->end.about, reservation->payload, PyMemoryView_FromObject(self),
                           true);
    struct about flat = {.descr = (PyObject *)PyArray_DescrFromType(NPY_UINT8), .ndim = 1,
                         .dims = {(npy_intp)reservation->nbytes}};
    PyObject *array = about_array(&flat, reservation->payload, PyMemoryView_FromObject(self), true);
    Py_DECREF(flat.descr);
    return array;
}

static PyMethodDef reservation_methods[] = {
    {"commit", (PyCFunction)(void (*)(void))reservation_commit, METH_FASTCALL | METH_KEYWORDS, commit_doc},
    {"abandon", reservation_abandon, METH_NOARGS, abandon_doc},
    {"__enter__", reservation_enter, METH_NOARGS, NULL},
    {"__exit__", FASTCALL(reservation_exit), NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reservation_getset[] = {
    {"nbytes", get_nbytes, NULL, "Bytes of payload.", NULL},
    {"array", get_array, NULL, room_array_doc, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot reservation_slots[] = {
    {Py_tp_doc, (char *)reservation_doc},
    {Py_tp_dealloc, reservation_dealloc},
    {Py_tp_methods, reservation_methods},
    {Py_tp_getset, reservation_getset},
    {Py_sq_length, reservation_length},
    {Py_bf_getbuffer, reservation_getbuffer},
    {Py_bf_releasebuffer, reservation_releasebuffer},
    {0, NULL},
};

PyType_Spec reservation_spec = {
    .name = "mirrormap.Reservation",
    .basicsize = sizeof(Reservation),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reservation_slots,
};
