/* Calls on descriptors and on ranges nobody here owns, as module functions.
 * Each raises a plain OSError; the texts and the policy live in Python. */
#define _GNU_SOURCE
#include "heap_record.h"
#include "hugefs.h"

#include <errno.h>
#include <sys/mman.h>

PyObject *raise_errno(int error)
{
    if (!PyErr_Occurred()) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return NULL;
}

bool take_numbers(PyObject *const *args, Py_ssize_t given, int64_t *values, Py_ssize_t wanted)
{
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "%zd arguments are needed, not %zd", wanted, given);
        return false;
    }
    for (Py_ssize_t i = 0; i < wanted; i++) {
        values[i] = PyLong_AsLongLong(args[i]);
        if (values[i] == -1 && PyErr_Occurred())
            return false;
    }
    return true;
}

static PyObject *none_or(int error)
{
    return error == 0 ? Py_NewRef(Py_None) : raise_errno(error);
}

static PyObject *call_memfd_create(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    unsigned flags;
    int fd, error;
    if (!PyArg_ParseTuple(args, "sI", &name, &flags))
        return NULL;
    WAITING(error, mm_sys_memfd(name, flags, &fd));
    return error == 0 ? PyLong_FromLong(fd) : raise_errno(error);
}

static PyObject *call_hugefs_file(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    int fd, error;
    if (!PyArg_ParseTuple(args, "s", &name))
        return NULL;
    WAITING(error, mm_hugefs_file(MM_HUGE_AT_TOUCH, name, &fd));
    return error == 0 ? PyLong_FromLong(fd) : raise_errno(error);
}

static PyObject *call_open(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *path = NULL;
    int flags, fd, error;
    unsigned mode;
    if (!PyArg_ParseTuple(args, "O&iI", PyUnicode_FSConverter, &path, &flags, &mode))
        return NULL;
    const char *name = PyBytes_AsString(path);
    if (name == NULL) {
        Py_DECREF(path);
        return NULL;
    }
    WAITING(error, mm_sys_open(name, flags, mode, &fd));
    Py_DECREF(path);
    return error == 0 ? PyLong_FromLong(fd) : raise_errno(error);
}

static PyObject *call_dup(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, copy, error;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    WAITING(error, mm_sys_duplicate(fd, &copy));
    return error == 0 ? PyLong_FromLong(copy) : raise_errno(error);
}

static PyObject *call_close(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, error;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = mm_sys_close(fd);   /* not again after EINTR: Linux has closed it */
    Py_END_ALLOW_THREADS
    return none_or(error == EINTR ? 0 : error);
}

static PyObject *call_ftruncate(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, error;
    long long nbytes;
    if (!PyArg_ParseTuple(args, "iL", &fd, &nbytes))
        return NULL;
    WAITING(error, mm_sys_truncate(fd, nbytes));
    return none_or(error);
}

static PyObject *call_fallocate(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, mode, error;
    long long offset, nbytes;
    if (!PyArg_ParseTuple(args, "iiLL", &fd, &mode, &offset, &nbytes))
        return NULL;
    WAITING(error, mm_sys_allocate(fd, mode, offset, nbytes));
    return none_or(error);
}

static PyObject *call_add_seals(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, seals, error;
    if (!PyArg_ParseTuple(args, "ii", &fd, &seals))
        return NULL;
    WAITING(error, mm_sys_seal(fd, seals));
    return none_or(error);
}

static PyObject *call_get_seals(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, seals, error;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    WAITING(error, mm_sys_seals(fd, &seals));
    return error == 0 ? PyLong_FromLong(seals) : raise_errno(error);
}

static PyObject *call_fdatasync(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, error;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    WAITING(error, mm_sys_flush(fd));
    return none_or(error);
}

/* fstat(fd) -> (nbytes, allocated, dev, inode, mode, fs_magic, fs_block, open_flags) */
static PyObject *call_fstat(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, error;
    struct mm_file file;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    WAITING(error, mm_sys_stat(fd, &file));
    if (error != 0)
        return raise_errno(error);
    return Py_BuildValue("(LLKKIKKi)", (long long)file.nbytes, (long long)file.allocated,
                         (unsigned long long)file.dev, (unsigned long long)file.inode, file.mode,
                         (unsigned long long)file.fs_magic, (unsigned long long)file.fs_block,
                         file.open_flags);
}

static PyObject *call_munmap(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long address;
    Py_ssize_t nbytes;
    int error;
    if (!PyArg_ParseTuple(args, "Kn", &address, &nbytes))
        return NULL;
    WAITING(error, mm_sys_unmap((uintptr_t)address, (size_t)nbytes));
    return none_or(error);
}

static PyObject *call_mremap(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long address, target, old_nbytes, new_nbytes;
    int flags, error;
    uintptr_t got;
    if (!PyArg_ParseTuple(args, "KKKiK", &address, &old_nbytes, &new_nbytes, &flags, &target))
        return NULL;
    WAITING(error, mm_sys_remap((uintptr_t)address, (size_t)old_nbytes, (size_t)new_nbytes, flags,
                                (uintptr_t)target, &got));
    return error == 0 ? PyLong_FromUnsignedLongLong(got) : raise_errno(error);
}

/* replace(address, nbytes, protection, fd, offset): show an object over a range the caller gives up */
static PyObject *call_replace(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long address, nbytes;
    int protection, fd, error;
    long long offset;
    uintptr_t got;
    if (!PyArg_ParseTuple(args, "KKiiL", &address, &nbytes, &protection, &fd, &offset))
        return NULL;
    WAITING(error, mm_sys_map((uintptr_t)address, (size_t)nbytes, protection, MAP_SHARED | MAP_FIXED, fd,
                              (int64_t)offset, &got));
    return none_or(error);
}

static PyObject *call_readable(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long address;
    int error;
    if (!PyArg_ParseTuple(args, "K", &address))
        return NULL;
    WAITING(error, mm_sys_readable((uintptr_t)address));
    return none_or(error);
}

/* buffer_address(contiguous buffer) -> (address, nbytes, readonly); the caller
 * holds the buffer for as long as the address is to mean anything */
static PyObject *call_buffer_address(PyObject *module, PyObject *source)
{
    (void)module;
    Py_buffer view;
    if (PyObject_GetBuffer(source, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *result = Py_BuildValue("(KnO)", (unsigned long long)(uintptr_t)view.buf, view.len,
                                     view.readonly ? Py_True : Py_False);
    PyBuffer_Release(&view);
    return result;
}

static PyObject *call_set_closed_error(PyObject *module, PyObject *error)
{
    (void)module;
    PyObject *old = closed_error;
    closed_error = Py_NewRef(error);
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

static PyObject *call_set_corrupt_error(PyObject *module, PyObject *error)
{
    (void)module;
    PyObject *old = corrupt_error;
    corrupt_error = Py_NewRef(error);
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

#ifdef MIRRORMAP_FAULTS
static PyObject *call_fault_arm(PyObject *module, PyObject *args)
{
    (void)module;
    const char *call, *then = "";
    long nth;
    int error;
    if (!PyArg_ParseTuple(args, "sli|s", &call, &nth, &error, &then))
        return NULL;
    mm_fault_arm(call, nth, error, then);
    Py_RETURN_NONE;
}

static PyObject *call_fault_hits(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    const char *first;
    int hits = mm_fault_hits(&first);
    return Py_BuildValue("(is)", hits, first);
}
#endif

PyMethodDef call_methods[] = {
    {"reserve", FASTCALL(region_reserve), NULL},
    {"map", FASTCALL(region_map), NULL},
    {"memfd_create", call_memfd_create, METH_VARARGS, NULL},
    {"hugefs_file", call_hugefs_file, METH_VARARGS, NULL},
    {"open", call_open, METH_VARARGS, NULL},
    {"dup", call_dup, METH_VARARGS, NULL},
    {"close", call_close, METH_VARARGS, NULL},
    {"ftruncate", call_ftruncate, METH_VARARGS, NULL},
    {"fallocate", call_fallocate, METH_VARARGS, NULL},
    {"add_seals", call_add_seals, METH_VARARGS, NULL},
    {"get_seals", call_get_seals, METH_VARARGS, NULL},
    {"fdatasync", call_fdatasync, METH_VARARGS, NULL},
    {"fstat", call_fstat, METH_VARARGS, NULL},
    {"munmap", call_munmap, METH_VARARGS, NULL},
    {"mremap", call_mremap, METH_VARARGS, NULL},
    {"replace", call_replace, METH_VARARGS, NULL},
    {"readable", call_readable, METH_VARARGS, NULL},
    {"vma", maps_vma, METH_VARARGS, NULL},
    {"vmas", maps_vmas, METH_VARARGS, NULL},
    {"scan", maps_scan, METH_VARARGS, NULL},
    {"stretches", maps_stretches, METH_VARARGS, NULL},
    {"span", span_new, METH_VARARGS, NULL},
    {"buffer_address", call_buffer_address, METH_O, NULL},
    {"allocator_new", allocator_new, METH_VARARGS, NULL},
    {"allocator_set", allocator_set, METH_O, NULL},
    {"allocator_limit", allocator_limit, METH_VARARGS, NULL},
    {"allocator_trim", allocator_trim, METH_VARARGS, NULL},
    {"allocator_share", allocator_share, METH_VARARGS, NULL},
    {"allocator_state", allocator_state, METH_NOARGS, NULL},
    {"record_class", record_class, METH_VARARGS, NULL},
    {"set_closed_error", call_set_closed_error, METH_O, NULL},
    {"set_corrupt_error", call_set_corrupt_error, METH_O, NULL},
#ifdef MIRRORMAP_FAULTS
    {"fault_arm", call_fault_arm, METH_VARARGS, NULL},
    {"fault_hits", call_fault_hits, METH_NOARGS, NULL},
#endif
    {NULL, NULL, 0, NULL},
};
