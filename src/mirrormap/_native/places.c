/* Places: who holds the writer's place and the readers' slots. Who is still alive is decided in Python. */
#define _GNU_SOURCE
#include "places.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

PyTypeObject *places_type;
long this_process;

static Places *places_of(PyObject *object)
{
    return (Places *)object;
}

Places *places_open(PyObject *self)
{
    Places *places = places_of(self);
    if (places->shared != NULL)
        return places;
    PyErr_Format(closed_error, "this %s is closed", places->noun != NULL ? places->noun : "object");
    return NULL;
}

int sleep_on(_Atomic uint32_t *flag, uint32_t word, int64_t milliseconds)
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = mm_sys_wait(flag, word, milliseconds * 1000000);
    Py_END_ALLOW_THREADS
    return error == EINTR ? PyErr_CheckSignals() : 0;
}

enum { ALONE_NS = 4000, LATE_NS = 10000, TAKEN_NS = 1500000, KEEP = 256, LOOKS = 32 };

static bool look_until(int64_t until, bool (*is_there)(void *), void *what)
{
    do {
        for (int i = 0; i < LOOKS; i++) {
            if (is_there(what))
                return true;
            mm_relax();
        }
    } while (mm_sys_now() < until);
    return false;
}

static bool spin(struct patience *patience, bool (*is_there)(void *), void *what)
{
    int64_t now = mm_sys_now(), until = now + patience->spin_ns, alone = now + ALONE_NS;
    if (!patience->crowded && look_until(alone < until ? alone : until, is_there, what))
        return true;
    if (patience->keep > 0) {
        patience->keep--;
        return is_there(what);
    }
    now = mm_sys_now();
    mm_sys_yield();
    int64_t taken = mm_sys_now() - now;
    patience->crowded = taken > LATE_NS;
    patience->keep = taken > TAKEN_NS ? KEEP : 0;
    return is_there(what) || (!patience->crowded && look_until(until, is_there, what));
}

bool spin_until(struct patience *patience, bool (*is_there)(void *), void *what)
{
    bool there = false;
    if (patience->spin_ns > 0) {
        Py_BEGIN_ALLOW_THREADS
        there = spin(patience, is_there, what);
        Py_END_ALLOW_THREADS
    }
    return there;
}

bool take_timed(const char *what, PyObject *const *args, Py_ssize_t given, PyObject *names,
                PyObject **first, PyObject **timeout)
{
    Py_ssize_t named = names != NULL ? PyTuple_Size(names) : 0;
    *timeout = NULL;
    if (given < 1 || given + named > 2) {
        PyErr_Format(PyExc_TypeError, "%s() takes one argument and timeout=", what);
        return false;
    }
    *first = args[0];
    if (given == 2)
        *timeout = args[1];
    if (named == 1) {
        if (PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "timeout") != 0) {
            PyErr_Format(PyExc_TypeError, "%s() takes no argument of that name", what);
            return false;
        }
        *timeout = args[given];
    }
    return is_timeout(*timeout);
}

bool is_timeout(PyObject *timeout)
{
    if (timeout == NULL || timeout == Py_None)
        return true;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds >= 0)
        return true;
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "timeout %R must be None or >= 0 seconds", timeout);
    return false;
}

/* _seize_writer(expected, owner) -> was the writer's place `expected`, and is it `owner` now? */
PyObject *places_seize_writer(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Places *places = places_open(self);
    if (places == NULL || !take_numbers(args, given, number, 2))
        return NULL;
    struct mm_control *shared = places->shared;
    bool seized = mm_seize(&shared->writer, (uint64_t)number[0], (uint64_t)number[1]);
    if (seized && number[1] != 0)
        atomic_fetch_add_explicit(&shared->writers, 1, memory_order_release);
    if (number[1] == 0 && seized)
        mm_sys_wake(&shared->data_wanted); /* readers look who is left */
    return PyBool_FromLong(seized);
}

/* _arrive(owner, position) -> (slot, position), or None when all slots are taken */
static PyObject *places_arrive(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Places *places = places_open(self);
    if (places == NULL || !take_numbers(args, given, number, 2))
        return NULL;
    uint64_t position = (uint64_t)number[1];
    int slot = mm_arrive(places->shared, (uint64_t)number[0], places->capacity, &position);
    if (slot < 0)
        Py_RETURN_NONE;
    if (mm_is_wanted(&places->shared->room_wanted)) /* it may have seen a position that has been raised since */
        mm_sys_wake(&places->shared->room_wanted);
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
static PyObject *places_advance(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Places *places = places_open(self);
    if (places == NULL || !take_numbers(args, given, number, 2) || !is_slot(number[0]))
        return NULL;
    uint64_t position = number[1] < 0 ? UINT64_MAX : (uint64_t)number[1];
    if (mm_advance(places->shared, (int)number[0], position))
        mm_sys_wake(&places->shared->room_wanted);
    Py_RETURN_NONE;
}

/* _evict(slot, owner): free the slot of a reader that died, if it is still `owner`'s */
static PyObject *places_evict(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    Places *places = places_open(self);
    if (places == NULL || !take_numbers(args, given, number, 2) || !is_slot(number[0]))
        return NULL;
    return PyBool_FromLong(mm_seize(&places->shared->slots[number[0]].owner, (uint64_t)number[1], 0));
}

/* _owners() -> (writer, times taken, {slot: (owner, position)}) */
static PyObject *places_owners(PyObject *self, PyObject *unused)
{
    (void)unused;
    Places *places = places_open(self);
    struct mm_control *shared = places != NULL ? places->shared : NULL;
    PyObject *readers = shared != NULL ? PyDict_New() : NULL;
    for (int i = 0; readers != NULL && i < MM_SLOTS; i++) {
        long long owner = (long long)atomic_load(&shared->slots[i].owner);
        if (owner == 0)
            continue;
        unsigned long long position = atomic_load(&shared->slots[i].position);
        PyObject *slot = PyLong_FromLong(i), *reader = Py_BuildValue("(LK)", owner, position);
        if (slot == NULL || reader == NULL || PyDict_SetItem(readers, slot, reader) < 0)
            Py_CLEAR(readers);
        Py_XDECREF(slot);
        Py_XDECREF(reader);
    }
    if (readers == NULL)
        return NULL;
    return Py_BuildValue("(LKN)", (long long)atomic_load(&shared->writer),
                         (unsigned long long)atomic_load(&shared->writers), readers);
}

static PyObject *get_holds(PyObject *self, void *unused)
{
    (void)unused;
    const Places *places = places_of(self);
    return PyBool_FromLong(places->shared != NULL && places->holder == this_process);
}

static PyObject *get_waiting(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(places_of(self)->busy);
}

static PyObject *get_attached(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(places_of(self)->shared != NULL);
}

/* written <= claimed, and far from where counting would end */
static PyObject *get_cursors_fit(PyObject *self, void *unused)
{
    (void)unused;
    const Places *places = places_open(self);
    if (places == NULL)
        return NULL;
    uint64_t written = atomic_load_explicit(&places->shared->written, memory_order_acquire);
    uint64_t claimed = atomic_load_explicit(&places->shared->claimed, memory_order_acquire);
    return PyBool_FromLong(claimed < (uint64_t)1 << 62 && written <= claimed);
}

static PyMethodDef places_methods[] = {
    {"_seize_writer", FASTCALL(places_seize_writer), NULL},
    {"_arrive", FASTCALL(places_arrive), NULL},
    {"_advance", FASTCALL(places_advance), NULL},
    {"_evict", FASTCALL(places_evict), NULL},
    {"_owners", places_owners, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef places_getset[] = {
    {"_holds", get_holds, NULL, NULL, NULL},
    {"_waiting", get_waiting, NULL, NULL, NULL},
    {"_attached", get_attached, NULL, NULL, NULL},
    {"_cursors_fit", get_cursors_fit, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot places_slots[] = {
    {Py_tp_doc, "Base of Ring and of both ends of a Channel: places in shared memory, and who holds them."},
    {Py_tp_methods, places_methods},
    {Py_tp_getset, places_getset},
    {0, NULL},
};

PyType_Spec places_spec = {
    .name = "mirrormap._core.Places",
    .basicsize = sizeof(Places),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = places_slots,
};

static void in_forked_child(void)
{
    this_process = (long)getpid();
}

int places_setup(void)
{
    in_forked_child();
    if (pthread_atfork(NULL, NULL, in_forked_child) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}
