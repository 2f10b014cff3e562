/* Places: base of everything that works on the words in cursors.h, Ring and both ends of a Channel. */
#ifndef MIRRORMAP_PLACES_H
#define MIRRORMAP_PLACES_H

#include "core.h"
#include "cursors.h"

typedef struct {
    PyObject_HEAD
    PyObject *control;             /* a Region; NULL until attached and once closed */
    struct mm_control *shared;     /* inside `control` */
    uint64_t capacity;             /* how far the writer may be ahead: items, or bytes */
    const char *noun;              /* what the user calls it */
    bool busy;                     /* waits with the interpreter's lock released */
    long holder;                   /* the process in which we hold the writer's place; 0: none */
} Places;

/* How long to look before sleeping. */
struct patience {
    int64_t spin_ns;               /* 0: not at all */
    bool crowded;                  /* the last time, others wanted this processor */
    uint32_t keep;                 /* so many times it is not offered to them */
};

/* Look again and again until `is_there`, without the interpreter's lock; it must not touch Python. False: the time
 * is over. The other side may be waiting for this very processor, so it is offered once: who gets it back late and
 * still finds nothing should sleep. Where somebody else took it for long, sleeping is better: who is woken goes first. */
bool spin_until(struct patience *patience, bool (*is_there)(void *), void *what);

/* The pid of this process, known without a system call. */
extern long this_process;

Places *places_open(PyObject *self);   /* NULL: closed, exception set */
PyObject *places_seize_writer(PyObject *self, PyObject *const *args, Py_ssize_t given);
/* Sleep on a flag for some milliseconds, unless its word is no longer what mm_want() returned. -1: a
 * signal handler raised. */
int sleep_on(_Atomic uint32_t *flag, uint32_t word, int64_t milliseconds);
/* The two arguments of calls that may wait: one, and timeout=. False: an exception is set. */
bool take_timed(const char *what, PyObject *const *args, Py_ssize_t given, PyObject *names,
                PyObject **first, PyObject **timeout);

/* A timeout is None or seconds >= 0. False: an exception is set. */
bool is_timeout(PyObject *timeout);

int places_setup(void);                /* 0, or -1 with an exception */
extern PyTypeObject *places_type;
extern PyType_Spec places_spec;

#endif
