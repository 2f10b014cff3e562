/* Region: owning a range of addresses, showing it through buffers, and refusing
 * to let go of what a buffer still shows. */
#define _GNU_SOURCE
#include "core.h"

#include <structmember.h>

#include <errno.h>
#include <stddef.h>
#include <unistd.h>

PyTypeObject *region_type;
PyObject *closed_error;

Region *region_of(PyObject *object)
{
    return (Region *)object;
}

static bool is_foreign(const Region *region)
{
    return region->owner != 0 && region->owner != getpid();
}

Region *region_open(PyObject *self)
{
    Region *region = region_of(self);
    if (region->window == 0 || is_foreign(region)) {
        PyErr_SetString(closed_error, region->window == 0
                                          ? "this mapping is closed"
                                          : "this mapping was not inherited by the forked process");
        return NULL;
    }
    return region;
}

/* [offset, offset + nbytes) inside the owned window, not empty. */
bool region_holds(const Region *region, size_t offset, size_t nbytes)
{
    if (nbytes > 0 && offset <= region->window && nbytes <= region->window - offset)
        return true;
    PyErr_SetString(PyExc_ValueError, "range outside the reserved window");
    return false;
}

PyObject *region_make(uintptr_t address, size_t window)
{
    Region *region = PyObject_New(Region, region_type);
    if (region == NULL)
        return NULL;
    region->address = address;
    region->window = window;
    region->nbytes = 0;
    region->readable = region->writable = false;
    region->owner = 0;
    region->exports = NULL;
    region->keep = NULL;
    region->weak = NULL;
    return (PyObject *)region;
}

/* Does a live export show any of [start, end)? */
static bool is_shown(const Region *region, size_t start, size_t end)
{
    for (const struct export *one = region->exports; one != NULL; one = one->next)
        if (one->end > start && one->start < end)
            return true;
    return false;
}

bool region_refuse_shown(const Region *region, size_t start, size_t end)
{
    if (!is_shown(region, start, end))
        return false;
    PyErr_SetString(PyExc_BufferError,
                    "arrays or memoryviews still show this memory; delete them first");
    return true;
}

/* expose(nbytes, readable, writable): what buffers show from now on */
static PyObject *region_expose(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[3];
    if (!take_numbers(args, given, number, 3))
        return NULL;
    int64_t nbytes = number[0];
    Region *region = region_open(self);
    if (region == NULL)
        return NULL;
    if (nbytes < 0 || (size_t)nbytes > region->window) {
        PyErr_SetString(PyExc_ValueError, "expose: more than the window holds");
        return NULL;
    }
    if ((size_t)nbytes < region->nbytes && region_refuse_shown(region, (size_t)nbytes, region->nbytes))
        return NULL;
    region->nbytes = (size_t)nbytes;
    region->readable = number[1] != 0;
    region->writable = number[2] != 0;
    Py_RETURN_NONE;
}

/* limit(nbytes): buffers show no more than this; what is exported stays exported */
static PyObject *region_limit(PyObject *self, PyObject *args)
{
    Py_ssize_t nbytes;
    if (!PyArg_ParseTuple(args, "n", &nbytes))
        return NULL;
    Region *region = region_open(self);
    if (region == NULL)
        return NULL;
    if (nbytes >= 0 && (size_t)nbytes < region->nbytes)
        region->nbytes = (size_t)nbytes;
    Py_RETURN_NONE;
}

/* One call over [offset, offset + nbytes): protect, advise and sync differ in `which`. */
static PyObject *over_range(PyObject *self, PyObject *const *args, Py_ssize_t given,
                            int (*which)(uintptr_t, size_t, int))
{
    int64_t number[3];
    if (!take_numbers(args, given, number, 3))
        return NULL;
    int64_t offset = number[0], nbytes = number[1];
    int value = (int)number[2];
    Region *region = region_open(self);
    if (region == NULL || !region_holds(region, (size_t)offset, (size_t)nbytes))
        return NULL;
    int error;
    WAITING(error, which(region->address + (size_t)offset, (size_t)nbytes, value));
    if (error != 0)
        return raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *region_protect(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    return over_range(self, args, given, mm_sys_protect);
}

static PyObject *region_advise(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    return over_range(self, args, given, mm_sys_advise);
}

static PyObject *region_sync(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    return over_range(self, args, given, mm_sys_sync);
}

/* touch(offset, nbytes, page_nbytes, write) */
static PyObject *region_touch(PyObject *self, PyObject *args)
{
    Py_ssize_t offset, nbytes, page_nbytes;
    int write;
    if (!PyArg_ParseTuple(args, "nnnp", &offset, &nbytes, &page_nbytes, &write))
        return NULL;
    Region *region = region_open(self);
    if (region == NULL || !region_holds(region, (size_t)offset, (size_t)nbytes))
        return NULL;
    if (page_nbytes <= 0) {
        PyErr_SetString(PyExc_ValueError, "touch: bad page size");
        return NULL;
    }
    int error;
    WAITING(error, mm_sys_touch(region->address + (size_t)offset, (size_t)nbytes,
                                (size_t)page_nbytes, write != 0));
    if (error != 0)
        return raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *region_shown(PyObject *self, PyObject *args)
{
    Py_ssize_t start, end;
    if (!PyArg_ParseTuple(args, "nn", &start, &end))
        return NULL;
    return PyBool_FromLong(is_shown(region_of(self), (size_t)start, (size_t)end));
}

/* release() -> address: the range is the caller's from now on */
static PyObject *region_release(PyObject *self, PyObject *unused)
{
    (void)unused;
    Region *region = region_open(self);
    if (region == NULL || region_refuse_shown(region, 0, region->window))
        return NULL;
    PyObject *address = PyLong_FromUnsignedLongLong(region->address);
    if (address != NULL)
        region->window = region->nbytes = 0;
    return address;
}

static PyObject *region_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    Region *region = region_of(self);
    if (region->window == 0 || is_foreign(region)) {
        region->window = region->nbytes = 0;
        Py_RETURN_NONE;
    }
    if (region_refuse_shown(region, 0, region->window))
        return NULL;
    size_t window = region->window, nbytes = region->nbytes;
    region->window = region->nbytes = 0;   /* no new export while the lock is away */
    int error;
    WAITING(error, mm_sys_unmap(region->address, window));
    if (error != 0) {
        region->window = window;
        region->nbytes = nbytes;
        return raise_errno(error);
    }
    Py_CLEAR(region->keep);
    Py_RETURN_NONE;
}

/* confine(on): with on, only this process may show or unmap the range */
static PyObject *region_confine(PyObject *self, PyObject *args)
{
    int on;
    if (!PyArg_ParseTuple(args, "p", &on))
        return NULL;
    Region *region = region_open(self);
    if (region == NULL)
        return NULL;
    region->owner = on ? getpid() : 0;
    Py_RETURN_NONE;
}

static void region_dealloc(PyObject *self)
{
    Region *region = region_of(self);
    PyTypeObject *type = Py_TYPE(self);
    if (region->weak != NULL)
        PyObject_ClearWeakRefs(self);
    if (region->window != 0 && !is_foreign(region)) {
        Py_BEGIN_ALLOW_THREADS
        mm_sys_unmap(region->address, region->window);
        Py_END_ALLOW_THREADS
    }
    Py_CLEAR(region->keep);
    PyObject_Free(self);
    Py_DECREF(type);
}

int region_export(Region *region, PyObject *owner, size_t offset, size_t nbytes, bool readonly,
                  Py_buffer *view, int flags)
{
    view->obj = NULL;
    if (region_open((PyObject *)region) == NULL)
        return -1;
    struct export *one = PyMem_Malloc(sizeof *one);
    if (one == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (PyBuffer_FillInfo(view, owner, (void *)(region->address + offset), (Py_ssize_t)nbytes,
                          readonly, flags)
        < 0) {
        PyMem_Free(one);
        return -1;
    }
    /* an empty export still holds the mapping open */
    *one = (struct export){
        .next = region->exports, .start = offset, .end = offset + (nbytes != 0 ? nbytes : 1)};
    if (one->next != NULL)
        one->next->previous = one;
    region->exports = one;
    view->internal = one;
    return 0;
}

void region_unexport(Region *region, Py_buffer *view)
{
    struct export *one = view->internal;
    if (one->previous != NULL)
        one->previous->next = one->next;
    else
        region->exports = one->next;
    if (one->next != NULL)
        one->next->previous = one->previous;
    PyMem_Free(one);
}

int region_export_all(PyObject *self, Py_buffer *view, int flags)
{
    Region *region = region_of(self);
    if (region->window != 0 && !region->readable) {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "protection 'none' shows no bytes; protect(\"r\") first");
        return -1;
    }
    return region_export(region, self, 0, region->nbytes, !region->writable, view, flags);
}

static void region_releasebuffer(PyObject *self, Py_buffer *view)
{
    region_unexport(region_of(self), view);
}

static PyObject *get_address(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(region_of(self)->address);
}

static PyObject *get_nbytes(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(region_of(self)->nbytes);
}

static PyObject *get_window(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(region_of(self)->window);
}

static PyObject *get_closed(PyObject *self, void *unused)
{
    (void)unused;
    Region *region = region_of(self);
    return PyBool_FromLong(region->window == 0 || is_foreign(region));
}

static PyObject *get_keep(PyObject *self, void *unused)
{
    (void)unused;
    PyObject *keep = region_of(self)->keep;
    return Py_NewRef(keep != NULL ? keep : Py_None);
}

static int set_keep(PyObject *self, PyObject *value, void *unused)
{
    (void)unused;
    Region *region = region_of(self);
    PyObject *old = region->keep;
    region->keep = Py_XNewRef(value);
    Py_XDECREF(old);
    return 0;
}

static PyMethodDef region_methods[] = {
    {"place", FASTCALL(region_place), NULL},
    {"alias", FASTCALL(region_alias), NULL},
    {"vacate", FASTCALL(region_vacate), NULL},
    {"trim", region_trim, METH_VARARGS, NULL},
    {"split", region_split, METH_VARARGS, NULL},
    {"expose", FASTCALL(region_expose), NULL},
    {"limit", region_limit, METH_VARARGS, NULL},
    {"protect", FASTCALL(region_protect), NULL},
    {"advise", FASTCALL(region_advise), NULL},
    {"sync", FASTCALL(region_sync), NULL},
    {"touch", region_touch, METH_VARARGS, NULL},
    {"carry", region_carry, METH_VARARGS, NULL},
    {"replace", FASTCALL(region_replace), NULL},
    {"store_word", FASTCALL(region_store_word), NULL},
    {"load_word", FASTCALL(region_load_word), NULL},
    {"shown", region_shown, METH_VARARGS, NULL},
    {"release", region_release, METH_NOARGS, NULL},
    {"close", region_close, METH_NOARGS, NULL},
    {"confine", region_confine, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef region_getset[] = {
    {"address", get_address, NULL, NULL, NULL},
    {"nbytes", get_nbytes, NULL, NULL, NULL},
    {"window", get_window, NULL, NULL, NULL},
    {"closed", get_closed, NULL, NULL, NULL},
    {"keep", get_keep, set_keep, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef region_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Region, weak), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot region_slots[] = {
    {Py_tp_doc, "A range of addresses and the right to unmap it."},
    {Py_tp_dealloc, region_dealloc},
    {Py_tp_methods, region_methods},
    {Py_tp_getset, region_getset},
    {Py_tp_members, region_members},
    {Py_bf_getbuffer, region_export_all},
    {Py_bf_releasebuffer, region_releasebuffer},
    {0, NULL},
};

PyType_Spec region_spec = {
    .name = "mirrormap._core.Region",
    .basicsize = sizeof(Region),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = region_slots,
};
