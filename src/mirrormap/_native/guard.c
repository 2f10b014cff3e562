/* The extension is written for an interpreter whose lock is held while C runs, and may go to another thread
 * wherever Python code runs or a call waits. Without such a lock (PEP 703) a critical section gives the same:
 * it is held by whoever is in here, and given up wherever the thread is detached, so it cannot deadlock with a
 * lock of somebody's Python code.
 *
 * Functions from Python have no closure to find the guarded one by, so each gets a front of its own out of a pool.
 * What no table leads to, the handler that NumPy allocates by, has a lock itself (blocks.c). No object is found by
 * a pointer that owns nothing and then kept: one whose last reference is gone waits in its destructor for the
 * lock, and may be unlinked meanwhile. */
#include "guard.h"

#ifdef Py_GIL_DISABLED

#include <assert.h>
#include <stdlib.h>

static PyObject *lock; /* an object for the section's sake */

#define ROW(X, r)                                                                                                  \
    X(r##0) X(r##1) X(r##2) X(r##3) X(r##4) X(r##5) X(r##6) X(r##7)                                                  \
    X(r##8) X(r##9) X(r##a) X(r##b) X(r##c) X(r##d) X(r##e) X(r##f)
#define FEW(X) ROW(X, 0x0) ROW(X, 0x1)
#define MANY(X)                                                                                                    \
    FEW(X) ROW(X, 0x2) ROW(X, 0x3) ROW(X, 0x4) ROW(X, 0x5) ROW(X, 0x6) ROW(X, 0x7)                                 \
    ROW(X, 0x8) ROW(X, 0x9) ROW(X, 0xa) ROW(X, 0xb) ROW(X, 0xc) ROW(X, 0xd) ROW(X, 0xe) ROW(X, 0xf)
enum { FEW_COUNT = 32, MANY_COUNT = 256 }; /* tests/test_tidy.py counts what needs one */

/* A pool: `kind` is its name, `sort` what the functions are, `COUNT` FEW or MANY. */
#define FRONT(kind, type, parameters, arguments, n)                                                                \
    static type kind##_##n parameters                                                                              \
    {                                                                                                              \
        type result;                                                                                               \
        Py_BEGIN_CRITICAL_SECTION(lock);                                                                           \
        result = kind##_behind[n] arguments;                                                                       \
        Py_END_CRITICAL_SECTION();                                                                                 \
        return result;                                                                                             \
    }
#define SILENT_FRONT(kind, parameters, arguments, n)                                                               \
    static void kind##_##n parameters                                                                              \
    {                                                                                                              \
        Py_BEGIN_CRITICAL_SECTION(lock);                                                                           \
        kind##_behind[n] arguments;                                                                                \
        Py_END_CRITICAL_SECTION();                                                                                 \
    }
/* The front for one more of the kind. */
#define TAKER(kind, sort, COUNT)                                                                                   \
    static sort kind##_front(sort behind)                                                                          \
    {                                                                                                              \
        static const sort fronts[] = {COUNT(kind##_NAME)};                                                         \
        static size_t used;                                                                                        \
        if (used == sizeof fronts / sizeof fronts[0])                                                              \
            Py_FatalError("mirrormap: the pool of fronts of guard.c is too small");                                \
        kind##_behind[used] = behind;                                                                              \
        return fronts[used++];                                                                                     \
    }

static PyCFunction plain_behind[MANY_COUNT];
#define plain_ONE(n) FRONT(plain, PyObject *, (PyObject * self, PyObject *given), (self, given), n)
#define plain_NAME(n) plain_##n,
MANY(plain_ONE)
TAKER(plain, PyCFunction, MANY)

static PyCFunctionFast fast_behind[MANY_COUNT];
#define fast_ONE(n)                                                                                                \
    FRONT(fast, PyObject *, (PyObject * self, PyObject *const *given, Py_ssize_t count), (self, given, count), n)
#define fast_NAME(n) fast_##n,
MANY(fast_ONE)
TAKER(fast, PyCFunctionFast, MANY)

static PyCFunctionWithKeywords words_behind[FEW_COUNT];
#define words_ONE(n) FRONT(words, PyObject *, (PyObject * self, PyObject *given, PyObject *names), (self, given, names), n)
#define words_NAME(n) words_##n,
FEW(words_ONE)
TAKER(words, PyCFunctionWithKeywords, FEW)

static PyCFunctionFastWithKeywords fastwords_behind[FEW_COUNT];
#define fastwords_ONE(n)                                                                                           \
    FRONT(fastwords, PyObject *, (PyObject * self, PyObject *const *given, Py_ssize_t count, PyObject *names),     \
          (self, given, count, names), n)
#define fastwords_NAME(n) fastwords_##n,
FEW(fastwords_ONE)
TAKER(fastwords, PyCFunctionFastWithKeywords, FEW)

static destructor end_behind[FEW_COUNT];
#define end_ONE(n) SILENT_FRONT(end, (PyObject * self), (self), n)
#define end_NAME(n) end_##n,
FEW(end_ONE)
TAKER(end, destructor, FEW)

static getbufferproc get_behind[FEW_COUNT];
#define get_ONE(n) FRONT(get, int, (PyObject * self, Py_buffer *view, int flags), (self, view, flags), n)
#define get_NAME(n) get_##n,
FEW(get_ONE)
TAKER(get, getbufferproc, FEW)

static releasebufferproc release_behind[FEW_COUNT];
#define release_ONE(n) SILENT_FRONT(release, (PyObject * self, Py_buffer *view), (self, view), n)
#define release_NAME(n) release_##n,
FEW(release_ONE)
TAKER(release, releasebufferproc, FEW)

static unaryfunc unary_behind[FEW_COUNT]; /* repr, iter and iternext, too */
#define unary_ONE(n) FRONT(unary, PyObject *, (PyObject * self), (self), n)
#define unary_NAME(n) unary_##n,
FEW(unary_ONE)
TAKER(unary, unaryfunc, FEW)

static binaryfunc binary_behind[FEW_COUNT];
#define binary_ONE(n) FRONT(binary, PyObject *, (PyObject * self, PyObject *other), (self, other), n)
#define binary_NAME(n) binary_##n,
FEW(binary_ONE)
TAKER(binary, binaryfunc, FEW)

static newfunc make_behind[FEW_COUNT];
#define make_ONE(n)                                                                                                \
    FRONT(make, PyObject *, (PyTypeObject * type, PyObject *given, PyObject *names), (type, given, names), n)
#define make_NAME(n) make_##n,
FEW(make_ONE)
TAKER(make, newfunc, FEW)

static descrgetfunc field_behind[FEW_COUNT];
#define field_ONE(n)                                                                                               \
    FRONT(field, PyObject *, (PyObject * self, PyObject *object, PyObject *type), (self, object, type), n)
#define field_NAME(n) field_##n,
FEW(field_ONE)
TAKER(field, descrgetfunc, FEW)

static objobjargproc assign_behind[FEW_COUNT]; /* a field of an object, too: the parameters are the same */
#define assign_ONE(n) FRONT(assign, int, (PyObject * self, PyObject *key, PyObject *value), (self, key, value), n)
#define assign_NAME(n) assign_##n,
FEW(assign_ONE)
TAKER(assign, objobjargproc, FEW)

static richcmpfunc compare_behind[FEW_COUNT];
#define compare_ONE(n) FRONT(compare, PyObject *, (PyObject * self, PyObject *other, int how), (self, other, how), n)
#define compare_NAME(n) compare_##n,
FEW(compare_ONE)
TAKER(compare, richcmpfunc, FEW)

static lenfunc length_behind[FEW_COUNT]; /* hash, too: both are Py_ssize_t */
#define length_ONE(n) FRONT(length, Py_ssize_t, (PyObject * self), (self), n)
#define length_NAME(n) length_##n,
FEW(length_ONE)
TAKER(length, lenfunc, FEW)

static inquiry clear_behind[FEW_COUNT];
#define clear_ONE(n) FRONT(clear, int, (PyObject * self), (self), n)
#define clear_NAME(n) clear_##n,
FEW(clear_ONE)
TAKER(clear, inquiry, FEW)

static objobjproc contains_behind[FEW_COUNT];
#define contains_ONE(n) FRONT(contains, int, (PyObject * self, PyObject *key), (self, key), n)
#define contains_NAME(n) contains_##n,
FEW(contains_ONE)
TAKER(contains, objobjproc, FEW)

/* Attributes have a closure, so two fronts do for all. */
struct attribute {
    getter get;
    setter set;
};

static PyObject *get_attribute(PyObject *self, void *closure)
{
    PyObject *result;
    Py_BEGIN_CRITICAL_SECTION(lock);
    result = ((struct attribute *)closure)->get(self, NULL);
    Py_END_CRITICAL_SECTION();
    return result;
}

static int set_attribute(PyObject *self, PyObject *value, void *closure)
{
    int result;
    Py_BEGIN_CRITICAL_SECTION(lock);
    result = ((struct attribute *)closure)->set(self, value, NULL);
    Py_END_CRITICAL_SECTION();
    return result;
}

static void guard_attributes(PyGetSetDef *attributes)
{
    static struct attribute behind[MANY_COUNT];
    static size_t used;
    for (PyGetSetDef *one = attributes; one->name != NULL; one++) {
        assert(one->closure == NULL);
        if (used == sizeof behind / sizeof behind[0])
            Py_FatalError("mirrormap: guard.c has room for fewer attributes");
        behind[used] = (struct attribute){one->get, one->set};
        one->closure = &behind[used++];
        one->get = get_attribute;
        one->set = one->set != NULL ? set_attribute : NULL;
    }
}

#define AS(type, function) ((type)(void (*)(void))(function))

void guard_methods(PyMethodDef *methods)
{
    for (PyMethodDef *one = methods; one->ml_name != NULL; one++) {
        PyCFunction behind = one->ml_meth;
        switch (one->ml_flags) {
        case METH_FASTCALL:
            one->ml_meth = AS(PyCFunction, fast_front(AS(PyCFunctionFast, behind)));
            break;
        case METH_FASTCALL | METH_KEYWORDS:
            one->ml_meth = AS(PyCFunction, fastwords_front(AS(PyCFunctionFastWithKeywords, behind)));
            break;
        case METH_VARARGS | METH_KEYWORDS:
            one->ml_meth = AS(PyCFunction, words_front(AS(PyCFunctionWithKeywords, behind)));
            break;
        default: /* METH_NOARGS, METH_O, METH_VARARGS */
            one->ml_meth = plain_front(behind);
        }
    }
}

/* The front for one slot of a type; what leads to no code of ours is left as it is. */
static void *slot_front(int slot, void *behind)
{
    switch (slot) {
    case Py_tp_dealloc: return (void *)end_front((destructor)behind);
    case Py_tp_clear: return (void *)clear_front((inquiry)behind);
    case Py_sq_contains: return (void *)contains_front((objobjproc)behind);
    case Py_tp_repr: case Py_tp_iter: case Py_tp_iternext: return (void *)unary_front((unaryfunc)behind);
    case Py_tp_hash: case Py_sq_length: case Py_mp_length: return (void *)length_front((lenfunc)behind);
    case Py_tp_richcompare: return (void *)compare_front((richcmpfunc)behind);
    case Py_mp_subscript: return (void *)binary_front((binaryfunc)behind);
    case Py_mp_ass_subscript: case Py_tp_descr_set: return (void *)assign_front((objobjargproc)behind);
    case Py_tp_new: return (void *)make_front((newfunc)behind);
    case Py_tp_descr_get: return (void *)field_front((descrgetfunc)behind);
    case Py_bf_getbuffer: return (void *)get_front((getbufferproc)behind);
    case Py_bf_releasebuffer: return (void *)release_front((releasebufferproc)behind);
    default: return behind;
    }
}

void guard_type(PyType_Spec *spec)
{
    for (PyType_Slot *one = spec->slots; one->slot != 0; one++) {
        if (one->slot == Py_tp_methods)
            guard_methods(one->pfunc);
        else if (one->slot == Py_tp_getset)
            guard_attributes(one->pfunc);
        else
            one->pfunc = slot_front(one->slot, one->pfunc);
    }
}

int guard_setup(void)
{
    if (lock == NULL)
        lock = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    return lock != NULL ? 0 : -1;
}

#endif
