/* Where the interpreter has no lock: one for the extension, taken by every way into it. */
#ifndef MIRRORMAP_GUARD_H
#define MIRRORMAP_GUARD_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
/* Make the lock, once. -1: an exception is set. */
int guard_setup(void);
/* Put a function that takes the lock in front of each of these, in place and once. */
void guard_methods(PyMethodDef *methods);
void guard_type(PyType_Spec *spec);
#else
static inline int guard_setup(void)
{
    return 0;
}

static inline void guard_methods(PyMethodDef *methods)
{
    (void)methods;
}

static inline void guard_type(PyType_Spec *spec)
{
    (void)spec;
}
#endif

#endif
