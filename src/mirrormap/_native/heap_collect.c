/* Collecting, as Heap drives it: steps under the interpreter's lock, none of which runs Python code. */
#define _GNU_SOURCE
#include "heap_types.h"

/* _pace(mode, bell, stress): who starts collections; an eventfd to wake a thread by, or -1; every how many bytes */
PyObject *heap_pace(PyObject *self, PyObject *args)
{
    struct mm_heap *core = heap_open(self);
    unsigned mode;
    int bell;
    unsigned long long stress;
    if (core == NULL || !PyArg_ParseTuple(args, "IiK", &mode, &bell, &stress))
        return NULL;
    core->pacing.mode = (enum mm_mode)mode;
    core->pacing.bell = bell;
    core->pacing.stress = stress;
    Py_RETURN_NONE;
}

/* _goal() -> how many collections will have been when one that begins now is over */
PyObject *heap_goal(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct mm_heap *core = heap_open(self);
    if (core == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(core->counters.collections + 1 + (core->phase != MM_IDLE && !core->meshing.tidying));
}

/* _advance(goal, ns) -> whether there is more to do until so many collections have been */
PyObject *heap_advance(PyObject *self, PyObject *args)
{
    struct mm_heap *core = heap_open(self);
    unsigned long long goal;
    long long ns;
    if (core == NULL || !PyArg_ParseTuple(args, "KL", &goal, &ns))
        return NULL;
    if (core->counters.collections < goal) {
        if (core->phase == MM_IDLE)
            mm_begin(core);
        mm_step(core, MM_BY_COLLECT, ns);
    }
    return PyBool_FromLong(core->counters.collections < goal);
}

/* _step(ns) -> whether a collection is under way; one begins where anything may have died since the last */
PyObject *heap_step(PyObject *self, PyObject *number)
{
    struct mm_heap *core = heap_open(self);
    long long ns = PyLong_AsLongLong(number);
    if (core == NULL || PyErr_Occurred())
        return NULL;
    if (core->phase == MM_IDLE && mm_lost(core) > 0)
        mm_begin(core);
    return PyBool_FromLong(mm_step(core, MM_BY_STEP, ns));
}

/* _slide(always) -> how many objects have slid down within their block; for tests: whether all do from now on, instead of
 * being evacuated where there is room */
PyObject *heap_slide(PyObject *self, PyObject *always)
{
    struct mm_heap *core = heap_open(self);
    int truth = core != NULL ? PyObject_IsTrue(always) : -1;
    if (truth < 0)
        return NULL;
    core->pacing.in_place = truth != 0;
    return PyLong_FromUnsignedLongLong(core->counters.slid);
}

/* _tend(ns) -> milliseconds until it wants to be called again; -1: when the bell has rung */
PyObject *heap_tend(PyObject *self, PyObject *number)
{
    struct mm_heap *core = heap_open(self);
    long long ns = PyLong_AsLongLong(number);
    if (core == NULL || PyErr_Occurred())
        return NULL;
    return PyLong_FromLongLong(mm_tend(core, ns));
}

/* _fail((exception, text)): every call raises it from now on */
PyObject *heap_fail(PyObject *self, PyObject *failure)
{
    if (!PyTuple_Check(failure) || PyTuple_Size(failure) != 2) {
        PyErr_SetString(PyExc_TypeError, "_fail: an exception and a text");
        return NULL;
    }
    Py_CLEAR(heap_of(self)->failure);
    heap_of(self)->failure = Py_NewRef(failure);
    Py_RETURN_NONE;
}

/* _pauses() -> for each cause, in the order of mm_cause: count, p50, p99, p99.9 and longest, in ns */
PyObject *heap_pauses(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct mm_heap *core = heap_open(self);
    PyObject *all = core != NULL ? PyTuple_New(MM_CAUSES) : NULL;
    for (int cause = 0; all != NULL && cause < MM_CAUSES; cause++) {
        const struct mm_pauses *pauses = &core->pauses[cause];
        PyObject *one = Py_BuildValue("(KLLLL)", pauses->count, mm_pause_at(pauses, 500), mm_pause_at(pauses, 990),
                                      mm_pause_at(pauses, 999), pauses->longest_ns);
        if (one == NULL)
            Py_CLEAR(all);
        else
            PyTuple_SetItem(all, cause, one);
    }
    return all;
}
