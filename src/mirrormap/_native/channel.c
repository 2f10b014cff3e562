/* Channel: what its two ends share, and what can be seen of all that take part. */
#define _GNU_SOURCE
#include "channel.h"

#include <string.h>

PyTypeObject *end_type;

static End *end_of(PyObject *object)
{
    return (End *)object;
}

void free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* _attach(sending, control, data, nbytes, overwrite): regions of the same object; `data` shows `nbytes` twice, or
 * is None where only the control pages are looked at */
static PyObject *end_attach(PyObject *self, PyObject *args)
{
    End *end = end_of(self);
    PyObject *control, *data;
    int sending, overwrite;
    long long nbytes;
    if (!PyArg_ParseTuple(args, "pO!OLp", &sending, region_type, &control, &data, &nbytes, &overwrite))
        return NULL;
    if (end->places.shared != NULL || nbytes < MM_LINE || region_of(control)->nbytes < MM_CONTROL + MM_ANNEX
        || (data != Py_None
            && (!PyObject_TypeCheck(data, region_type) || region_of(data)->nbytes < 2 * (size_t)nbytes))) {
        PyErr_SetString(PyExc_ValueError, "_attach: geometry that cannot be");
        return NULL;
    }
    char *start = (char *)region_of(control)->address;
    end->places.noun = data == Py_None ? "channel" : sending ? "sender" : "receiver";
    end->places.capacity = (uint64_t)nbytes;
    end->places.control = Py_NewRef(control);
    end->places.shared = (struct mm_control *)start;
    end->data = data != Py_None ? Py_NewRef(data) : NULL;
    end->stream.shared = end->places.shared;
    end->stream.annex = (struct mm_annex *)(start + MM_CONTROL);
    end->stream.nbytes = (uint64_t)nbytes;
    end->stream.data = data != Py_None ? (const char *)region_of(data)->address : NULL;
    end->overwrite = overwrite != 0;
    Py_RETURN_NONE;
}

int end_clear(End *end)
{
    end->places.shared = NULL;
    end->places.holder = 0;
    Py_CLEAR(end->places.control);
    Py_CLEAR(end->data);
    Py_CLEAR(end->about.descr);
    return 0;
}

static void end_dealloc(PyObject *self)
{
    end_clear(end_of(self));
    free_object(self);
}

/* --- arrays --- */

bool about_set(struct about *about, PyObject *answer)
{
    const char *text;
    Py_ssize_t text_nbytes;
    PyObject *descr, *shape;
    if (!PyArg_ParseTuple(answer, "y#OO!", &text, &text_nbytes, &descr, &PyTuple_Type, &shape))
        return false;
    Py_ssize_t ndim = PyTuple_Size(shape);
    if (!PyArray_DescrCheck(descr) || ndim > MOST_DIMS || text_nbytes > MM_ABOUT) {
        PyErr_SetString(PyExc_ValueError, "the description of the array is too long: too many fields or dimensions");
        return false;
    }
    Py_CLEAR(about->descr);
    uint64_t nbytes = (uint64_t)PyDataType_ELSIZE((PyArray_Descr *)descr);
    for (Py_ssize_t i = 0; i < ndim; i++) {
        about->dims[i] = PyLong_AsSsize_t(PyTuple_GetItem(shape, i));
        if (about->dims[i] == -1 && PyErr_Occurred())
            return false;
        if (about->dims[i] < 0 || __builtin_mul_overflow(nbytes, (uint64_t)about->dims[i], &nbytes)) {
            PyErr_SetString(PyExc_ValueError, "an array of this shape cannot be");
            return false;
        }
    }
    about->ndim = (int)ndim;
    about->nbytes = nbytes;
    about->text_nbytes = (uint32_t)text_nbytes;
    memcpy(about->text, text, (size_t)text_nbytes);
    about->descr = Py_NewRef(descr);
    return true;
}

PyObject *about_array(const struct about *about, char *payload, PyObject *base, bool writable)
{
    if (base == NULL)
        return NULL;
    int flags = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | (writable ? NPY_ARRAY_WRITEABLE : 0);
    Py_INCREF(about->descr);
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)about->descr, about->ndim,
                                           (npy_intp *)about->dims, NULL, payload, flags, NULL);
    if (array == NULL)
        Py_DECREF(base);
    else if (PyArray_SetBaseObject((PyArrayObject *)array, base) < 0)
        Py_CLEAR(array);
    return array;
}

/* --- who takes part --- */

/* _peers() -> [(slot, owner, group, sequence, missed), ...] */
static PyObject *end_peers(PyObject *self, PyObject *unused)
{
    (void)unused;
    End *end = places_open(self) != NULL ? end_of(self) : NULL;
    PyObject *peers = end != NULL ? PyList_New(0) : NULL;
    for (int i = 0; peers != NULL && i < MM_SLOTS; i++) {
        struct mm_slot *slot = &end->stream.shared->slots[i];
        unsigned long long owner = atomic_load(&slot->owner);
        if (owner == 0)
            continue;
        PyObject *peer = Py_BuildValue("(iLIKK)", i, (long long)owner, (unsigned)atomic_load(&slot->group),
                                       (unsigned long long)atomic_load(&slot->sequence),
                                       (unsigned long long)atomic_load(&slot->missed));
        if (peer == NULL || PyList_Append(peers, peer) < 0)
            Py_CLEAR(peers);
        Py_XDECREF(peer);
    }
    return peers;
}

/* _bells() -> addresses of the sockets at which somebody waits, each once */
static PyObject *end_bells(PyObject *self, PyObject *unused)
{
    (void)unused;
    End *end = places_open(self) != NULL ? end_of(self) : NULL;
    PyObject *addresses = end != NULL ? PyList_New(0) : NULL;
    if (addresses == NULL || atomic_exchange(&end->stream.annex->bells, 0) == 0)
        return addresses;
    for (int i = 0; addresses != NULL && i < MM_SLOTS; i++) {
        struct mm_slot *slot = &end->stream.shared->slots[i];
        if (atomic_load(&slot->rings) == 0 || atomic_exchange(&slot->rings, 0) == 0)
            continue;
        PyObject *address = PyLong_FromUnsignedLongLong(atomic_load(&slot->address));
        if (address == NULL || PyList_Append(addresses, address) < 0)
            Py_CLEAR(addresses);
        Py_XDECREF(address);
    }
    return addresses;
}

/* _wake(): everybody who waits looks round, for room or for messages */
static PyObject *end_wake(PyObject *self, PyObject *unused)
{
    (void)unused;
    Places *places = places_open(self);
    if (places == NULL)
        return NULL;
    if (mm_is_wanted(&places->shared->data_wanted))
        mm_sys_wake(&places->shared->data_wanted);
    if (mm_is_wanted(&places->shared->room_wanted))
        mm_sys_wake(&places->shared->room_wanted);
    Py_RETURN_NONE;
}

/* _orphan(group): say that what a dead worker had waits for another */
static PyObject *end_orphan(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t group;
    if (places_open(self) == NULL || !take_numbers(args, given, &group, 1))
        return NULL;
    atomic_fetch_or(&end_of(self)->stream.annex->orphans, (uint32_t)1 << (group & (MM_GROUPS - 1)));
    return end_wake(self, NULL);
}

/* _clear(slot, owner): free a slot, whatever it held, if it is still `owner`'s */
static PyObject *end_clear_slot(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[3];
    Places *places = places_open(self);
    if (places == NULL || !take_numbers(args, given, number, 3))
        return NULL;
    if (number[0] < 0 || number[0] >= MM_SLOTS) {
        PyErr_SetString(PyExc_ValueError, "no such slot");
        return NULL;
    }
    struct mm_slot *slot = &places->shared->slots[number[0]];
    /* ours first: who takes a free slot shall not find what the dead one held */
    if (!mm_seize(&slot->owner, (uint64_t)number[1], (uint64_t)number[2]))
        Py_RETURN_FALSE;
    mm_vacate(slot);
    Py_RETURN_TRUE;
}

/* _newest() -> (written, sequence of the next message), or None if that is damaged */
static PyObject *end_newest(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct mm_next next;
    if (places_open(self) == NULL)
        return NULL;
    if (!mm_newest(&end_of(self)->stream, &next))
        Py_RETURN_NONE;
    return Py_BuildValue("(KK)", (unsigned long long)next.start, (unsigned long long)next.sequence);
}

static PyObject *get_network(PyObject *self, void *unused)
{
    (void)unused;
    return places_open(self) != NULL
               ? PyLong_FromUnsignedLongLong(atomic_load(&end_of(self)->stream.annex->network))
               : NULL;
}

static int set_network(PyObject *self, PyObject *value, void *unused)
{
    (void)unused;
    unsigned long long number = value != NULL ? PyLong_AsUnsignedLongLong(value) : 0;
    if (PyErr_Occurred() || places_open(self) == NULL)
        return -1;
    atomic_store(&end_of(self)->stream.annex->network, number);
    return 0;
}

static PyMethodDef end_methods[] = {
    {"_attach", end_attach, METH_VARARGS, NULL},
    {"_peers", end_peers, METH_NOARGS, NULL},
    {"_bells", end_bells, METH_NOARGS, NULL},
    {"_wake", end_wake, METH_NOARGS, NULL},
    {"_orphan", FASTCALL(end_orphan), NULL},
    {"_clear", FASTCALL(end_clear_slot), NULL},
    {"_newest", end_newest, METH_NOARGS, NULL},
    {"_held", FASTCALL(worker_held), NULL},
    {"_groups", worker_groups, METH_NOARGS, NULL},
    {"_drop", FASTCALL(worker_drop), NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef end_getset[] = {
    {"_network", get_network, set_network, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot end_slots[] = {
    {Py_tp_doc, "Base of Sender and Receiver: a channel's control pages, and its data."},
    {Py_tp_dealloc, end_dealloc},
    {Py_tp_methods, end_methods},
    {Py_tp_getset, end_getset},
    {0, NULL},
};

PyType_Spec end_spec = {
    .name = "mirrormap._core.End",
    .basicsize = sizeof(End),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = end_slots,
};
