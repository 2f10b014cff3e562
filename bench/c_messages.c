/* The limit: one sender, one receiver, a ring shown twice, no safety. The cursors lie in shared memory made before
 * fork(); whoever waits spins and then sleeps on a futex. Either bound to NumPy (reserve, commit, peek, release), or
 * with both loops in C (produce, consume): the same work, a message filled with its number and summed. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "clock.h"
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>

struct cursor {
    _Alignas(64) _Atomic uint64_t position;
    _Alignas(64) _Atomic uint32_t wanted; /* a futex: the other side sleeps */
};

struct shared {
    struct cursor written, read;
};

typedef struct {
    PyObject_HEAD
    struct shared *shared;
    char *data;
    uint64_t capacity, written, read, seen, spin_ns, size;
    PyObject *descr;
} Limit;

static void wait_until(struct cursor *cursor, uint64_t at_least, uint64_t *seen, uint64_t spin_ns)
{
    *seen = atomic_load_explicit(&cursor->position, memory_order_acquire);
    if (*seen >= at_least)
        return;
    double until = now() + 1e-9 * (double)spin_ns;
    do {
        for (int i = 0; i < 32; i++) {
            *seen = atomic_load_explicit(&cursor->position, memory_order_acquire);
            if (*seen >= at_least)
                return;
            __asm__ volatile("" ::: "memory");
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    } while (now() < until);
    for (;;) {
        atomic_store(&cursor->wanted, 1);
        *seen = atomic_load(&cursor->position);
        if (*seen >= at_least)
            break;
        syscall(SYS_futex, &cursor->wanted, FUTEX_WAIT, 1, NULL, NULL, 0);
    }
    atomic_store_explicit(&cursor->wanted, 0, memory_order_relaxed);
}

static void move(struct cursor *cursor, uint64_t position)
{
    atomic_store_explicit(&cursor->position, position, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&cursor->wanted, memory_order_relaxed) != 0) {
        atomic_store(&cursor->wanted, 0);
        syscall(SYS_futex, &cursor->wanted, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
}

/* Room for a message of `size` bytes; its length stands before it. */
static char *place(Limit *limit, uint64_t size)
{
    uint64_t end = limit->written + 8 + size;
    if (end > limit->seen + limit->capacity)
        wait_until(&limit->shared->read, end - limit->capacity, &limit->seen, limit->spin_ns);
    char *at = limit->data + limit->written % limit->capacity;
    memcpy(at, &size, 8);
    limit->size = size;
    return at + 8;
}

static char *next(Limit *limit, uint64_t *size)
{
    if (limit->seen <= limit->read)
        wait_until(&limit->shared->written, limit->read + 1, &limit->seen, limit->spin_ns);
    char *at = limit->data + limit->read % limit->capacity;
    memcpy(size, at, 8);
    limit->size = *size;
    return at + 8;
}

static PyObject *limit_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    (void)names;
    unsigned long long capacity, spin_ns;
    if (!PyArg_ParseTuple(args, "KK", &capacity, &spin_ns))
        return NULL;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (capacity + page - 1) / page * page;
    Limit *limit = (Limit *)type->tp_alloc(type, 0);
    int fd = memfd_create("limit", MFD_CLOEXEC);
    if (limit == NULL || fd < 0 || ftruncate(fd, (off_t)(n + page)) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    int both = PROT_READ | PROT_WRITE;
    char *base = mmap(NULL, 2 * n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    limit->shared = mmap(NULL, page, both, MAP_SHARED, fd, (off_t)n);
    if (base == MAP_FAILED || limit->shared == MAP_FAILED
        || mmap(base, n, both, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED
        || mmap(base + n, n, both, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    close(fd);
    limit->data = base;
    limit->capacity = n;
    limit->spin_ns = spin_ns;
    limit->descr = (PyObject *)PyArray_DescrFromType(NPY_UINT64);
    return (PyObject *)limit;
}

static void limit_dealloc(PyObject *self)
{
    Limit *limit = (Limit *)self;
    if (limit->data != NULL)
        munmap(limit->data, 2 * limit->capacity);
    if (limit->shared != NULL)
        munmap(limit->shared, (size_t)sysconf(_SC_PAGESIZE));
    Py_XDECREF(limit->descr);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *shown(PyObject *self, char *at, uint64_t size)
{
    Limit *limit = (Limit *)self;
    npy_intp count = (npy_intp)(size / 8);
    Py_INCREF(limit->descr);
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)limit->descr, 1, &count, NULL, at,
                                           NPY_ARRAY_DEFAULT, NULL);
    if (array != NULL && PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(self)) < 0)
        Py_CLEAR(array);
    return array;
}

static PyObject *limit_reserve(PyObject *self, PyObject *number)
{
    uint64_t size = PyLong_AsUnsignedLongLong(number);
    char *at;
    Py_BEGIN_ALLOW_THREADS
    at = place((Limit *)self, size);
    Py_END_ALLOW_THREADS
    return shown(self, at, size);
}

static PyObject *limit_commit(PyObject *self, PyObject *unused)
{
    (void)unused;
    Limit *limit = (Limit *)self;
    limit->written += 8 + limit->size;
    move(&limit->shared->written, limit->written);
    Py_RETURN_NONE;
}

static PyObject *limit_peek(PyObject *self, PyObject *unused)
{
    (void)unused;
    uint64_t size;
    char *at;
    Py_BEGIN_ALLOW_THREADS
    at = next((Limit *)self, &size);
    Py_END_ALLOW_THREADS
    return shown(self, at, size);
}

static PyObject *limit_release(PyObject *self, PyObject *unused)
{
    (void)unused;
    Limit *limit = (Limit *)self;
    limit->read += 8 + limit->size;
    move(&limit->shared->read, limit->read);
    Py_RETURN_NONE;
}

/* produce(first, count, nbytes): messages filled with first, first + 1, ... */
static PyObject *limit_produce(PyObject *self, PyObject *args)
{
    unsigned long long first, count, size;
    if (!PyArg_ParseTuple(args, "KKK", &first, &count, &size))
        return NULL;
    Limit *limit = (Limit *)self;
    Py_BEGIN_ALLOW_THREADS
    for (uint64_t number = first; number < first + count; number++) {
        uint64_t *words = (uint64_t *)place(limit, size);
        for (uint64_t i = 0; i < size / 8; i++)
            words[i] = number;
        limit->written += 8 + size;
        move(&limit->shared->written, limit->written);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* consume(count) -> their sums, as an array */
static PyObject *limit_consume(PyObject *self, PyObject *args)
{
    npy_intp count;
    if (!PyArg_ParseTuple(args, "n", &count))
        return NULL;
    Limit *limit = (Limit *)self;
    PyObject *sums = PyArray_SimpleNew(1, &count, NPY_UINT64);
    if (sums == NULL)
        return NULL;
    uint64_t *out = PyArray_DATA((PyArrayObject *)sums);
    Py_BEGIN_ALLOW_THREADS
    for (npy_intp number = 0; number < count; number++) {
        uint64_t size, sum = 0;
        const uint64_t *words = (const uint64_t *)next(limit, &size);
        for (uint64_t i = 0; i < size / 8; i++)
            sum += words[i];
        out[number] = sum;
        limit->read += 8 + size;
        move(&limit->shared->read, limit->read);
    }
    Py_END_ALLOW_THREADS
    return sums;
}

/* --- how far apart two processors are --- */

enum { TRIPS = 500 };

struct line {
    _Alignas(128) _Atomic uint32_t there;
    _Alignas(128) _Atomic uint32_t back;
    int processor;
};

static void stay_on(int processor)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void *answer(void *argument)
{
    struct line *line = argument;
    stay_on(line->processor);
    for (uint32_t i = 0; i <= TRIPS; i++) {
        while (atomic_load_explicit(&line->there, memory_order_acquire) != i + 1)
            ;
        atomic_store_explicit(&line->back, i + 1, memory_order_release);
    }
    return NULL;
}

/* line(one, other) -> nanoseconds in which a cache line goes to another processor and comes back, at best */
static PyObject *line_between(PyObject *self, PyObject *args)
{
    (void)self;
    int one, other;
    if (!PyArg_ParseTuple(args, "ii", &one, &other))
        return NULL;
    struct line line = {.processor = other};
    cpu_set_t before;
    pthread_t thread;
    double best = 1e9;
    sched_getaffinity(0, sizeof before, &before);
    if (pthread_create(&thread, NULL, answer, &line) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    stay_on(one);
    for (uint32_t i = 0; i <= TRIPS; i++) {
        double start = now();
        atomic_store_explicit(&line.there, i + 1, memory_order_release);
        while (atomic_load_explicit(&line.back, memory_order_acquire) != i + 1)
            if (i == 0)
                sched_yield(); /* it may still be on this processor */
        double took = now() - start;
        best = i != 0 && took < best ? took : best;
    }
    pthread_join(thread, NULL);
    sched_setaffinity(0, sizeof before, &before);
    return PyFloat_FromDouble(best * 1e9);
}

static PyMethodDef module_methods[] = {
    {"line", line_between, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef limit_methods[] = {
    {"reserve", limit_reserve, METH_O, NULL},
    {"commit", limit_commit, METH_NOARGS, NULL},
    {"peek", limit_peek, METH_NOARGS, NULL},
    {"release", limit_release, METH_NOARGS, NULL},
    {"produce", limit_produce, METH_VARARGS, NULL},
    {"consume", limit_consume, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject limit_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "c_messages.Limit",
    .tp_basicsize = sizeof(Limit),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = limit_new,
    .tp_dealloc = limit_dealloc,
    .tp_methods = limit_methods,
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "c_messages", .m_size = -1,
                                        .m_methods = module_methods};

PyMODINIT_FUNC PyInit_c_messages(void)
{
    import_array();
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddType(module, &limit_type) < 0)
        return NULL;
    return module;
}
