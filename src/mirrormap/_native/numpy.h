/* NumPy's C API: the table is filled in by ring.c and used by the others. */
#ifndef MIRRORMAP_NUMPY_H
#define MIRRORMAP_NUMPY_H

#include <stdio.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL mirrormap_numpy_api
#ifndef MIRRORMAP_NUMPY_OWNER
#define NO_IMPORT_ARRAY
#endif
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wundef"
#include <numpy/arrayobject.h>
#pragma GCC diagnostic pop

#endif
