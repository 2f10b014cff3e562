/* HeapBase: the heap as Python's Heap sees it. Policy, names and containers stand in heap/. */
#define _GNU_SOURCE
#include "heap_types.h"

#include "heap_doc.h"
#include "places.h"

#include <errno.h>

PyTypeObject *heap_type;

HeapBase *heap_of(PyObject *object)
{
    return (HeapBase *)object;
}

bool heap_is_ours(PyObject *self)
{
    return heap_of(self)->region != NULL && heap_of(self)->process == this_process;
}

struct mm_heap *heap_open(PyObject *self)
{
    if (heap_is_ours(self) && heap_of(self)->failure == NULL)
        return &heap_of(self)->core;
    if (heap_is_ours(self)) {
        PyErr_SetObject(PyTuple_GetItem(heap_of(self)->failure, 0), PyTuple_GetItem(heap_of(self)->failure, 1));
        return NULL;
    }
    PyErr_SetString(closed_error, heap_of(self)->region == NULL
                                      ? "this heap is closed"
                                      : "this heap belongs to the process that made it: make another one in the forked child");
    return NULL;
}

/* The views of colours, which must lie as references count. */
static bool take_colours(HeapBase *heap, PyObject *colours, bool guard)
{
    struct mm_heap *core = &heap->core;
    Py_ssize_t count = PyTuple_Size(colours);
    core->view_count = 1;
    for (Py_ssize_t colour = 0; colour < count && count == MM_COLOURS; colour++) {
        PyObject *shown = PyTuple_GetItem(colours, colour);
        Region *region = Py_TYPE(shown) == region_type ? region_open(shown) : NULL;
        unsigned char *first = core->view_count > 1 ? core->views[1] : NULL;
        if (region == NULL || region->nbytes != core->offsets + 1
            || (first != NULL && (unsigned char *)region->address != first + ((uint64_t)colour << core->shift)))
            break;
        core->views[core->view_count++] = (unsigned char *)region->address;
    }
    if (PyErr_Occurred() || (Py_ssize_t)core->view_count != 1 + count || (guard && count == 0)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "_attach: bad views");
        return false;
    }
    core->guard = guard;
    int error = mm_guard(core);
    if (error != 0)
        raise_errno(error);
    return error == 0;
}

/* _attach(region, colours, guard, fd, page_nbytes, limit, target): over the pages that the region shows from offset
 * 0 on, and each of the colours' regions too */
static PyObject *heap_attach(PyObject *self, PyObject *args)
{
    PyObject *shown, *colours;
    int fd, guard;
    unsigned page_nbytes, target;
    unsigned long long limit;
    if (!PyArg_ParseTuple(args, "O!O!piIKI", region_type, &shown, &PyTuple_Type, &colours, &guard, &fd, &page_nbytes,
                          &limit, &target))
        return NULL;
    HeapBase *heap = heap_of(self);
    Region *region = region_open(shown);
    if (region == NULL)
        return NULL;
    uint64_t nbytes = region->nbytes;
    if (heap->region != NULL || (nbytes & (nbytes - 1)) != 0 || nbytes >> MM_BLOCK_SHIFT < 4 || limit > nbytes
        || nbytes >> MM_BLOCK_SHIFT > UINT32_MAX || page_nbytes > MM_BLOCK || page_nbytes < MM_BLOCK / 64 || target < 1000) {
        PyErr_SetString(PyExc_ValueError, "_attach: bad sizes");
        return NULL;
    }
    heap->core = (struct mm_heap){
        .base = (unsigned char *)region->address, .fd = fd, .shift = (unsigned)__builtin_ctzll(nbytes),
        .page_shift = (unsigned)__builtin_ctz(page_nbytes), .limit = limit, .target = target,
        .count = (uint32_t)(nbytes >> MM_BLOCK_SHIFT), .views = {(unsigned char *)region->address}, .offsets = nbytes - 1,
    };
    heap->core.pacing.bell = -1;
    if (!take_colours(heap, colours, guard != 0))
        return NULL;
    int error = mm_heap_open(&heap->core);
    if (error != 0)
        return error == ENOMEM ? PyErr_NoMemory() : raise_errno(error);
    heap->dtypes = PyList_New(0);
    heap->numbers = PyDict_New();
    heap->layouts = PyList_New(0);
    heap->types = PyList_New(0);
    if (heap->dtypes == NULL || heap->numbers == NULL || heap->layouts == NULL || heap->types == NULL)
        return NULL;
    heap->region = Py_NewRef(shown);
    heap->colours = Py_NewRef(colours);
    heap->process = this_process;
    Py_RETURN_NONE;
}

static void detach(HeapBase *heap)
{
    if (heap_is_ours((PyObject *)heap))
        mm_ring(&heap->core);          /* its thread is to see that there is nothing left to do */
    heap->life++;
    struct mm_index keys = heap_take_keys(heap);
    mm_heap_close(&heap->core);
    heap_forget_layouts(heap);
    Py_CLEAR(heap->layouts);
    Py_CLEAR(heap->types);
    Py_CLEAR(heap->region);
    Py_CLEAR(heap->colours);
    Py_CLEAR(heap->dtypes);
    Py_CLEAR(heap->numbers);
    Py_CLEAR(heap->failure);
    heap_drop_keys(&keys);             /* last: it may run any code */
}

/* _detach(): nothing is left. BufferError while a view lives. */
static PyObject *heap_detach(PyObject *self, PyObject *unused)
{
    (void)unused;
    if (heap_of(self)->core.exports != 0) {
        PyErr_Format(PyExc_BufferError, "%u arrays or memoryviews still show objects of this heap; delete them first",
                     heap_of(self)->core.exports);
        return NULL;
    }
    detach(heap_of(self));
    Py_RETURN_NONE;
}

static void heap_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    detach(heap_of(self));
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *heap_get_closed(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(!heap_is_ours(self));
}

/* --- roots by number, for names -------------------------------------------------------------- */

uint32_t heap_root(struct mm_heap *core, PyObject *number)
{
    unsigned long root = PyLong_AsUnsignedLong(number);
    if (PyErr_Occurred())
        return 0;
    if (root == 0 || root >= core->root_count || core->roots[root].kind != MM_ROOT) {
        PyErr_SetString(PyExc_ValueError, "no such root");
        return 0;
    }
    return (uint32_t)root;
}

/* _hold(ref) -> its root, with a holder more, until _drop(root) */
static PyObject *heap_hold(PyObject *self, PyObject *ref)
{
    struct mm_heap *core = heap_open(self);
    uint64_t offset = core != NULL ? ref_offset(core, self, ref) : 0;
    return offset != 0 ? PyLong_FromUnsignedLong(mm_hold(core, offset)) : NULL;
}

static PyObject *heap_drop(PyObject *self, PyObject *number)
{
    struct mm_heap *core = heap_open(self);
    uint32_t root = core != NULL ? heap_root(core, number) : 0;
    if (root == 0)
        return NULL;
    mm_drop(core, root);
    Py_RETURN_NONE;
}

static PyObject *heap_ref(PyObject *self, PyObject *number)
{
    struct mm_heap *core = heap_open(self);
    uint32_t root = core != NULL ? heap_root(core, number) : 0;
    if (root == 0)
        return NULL;
    return heap_object(self, core->roots[root].offset);
}

/* --- weak references -------------------------------------------------------------------------- */

static PyObject *heap_weak(PyObject *self, PyObject *ref)
{
    struct mm_heap *core = heap_open(self);
    uint64_t offset = core != NULL ? ref_offset(core, self, ref) : 0;
    if (offset == 0)
        return NULL;
    uint32_t index = mm_weak_new(core, offset);
    return index != 0 ? PyLong_FromUnsignedLong(index) : PyErr_NoMemory();
}

static uint32_t take_weak(struct mm_heap *core, PyObject *number)
{
    unsigned long index = PyLong_AsUnsignedLong(number);
    if (PyErr_Occurred())
        return 0;
    if (index == 0 || index >= core->weak_count || core->weak[index] % 2 != 0) {
        PyErr_SetString(PyExc_ValueError, "no such weak reference");
        return 0;
    }
    return (uint32_t)index;
}

static PyObject *heap_weak_ref(PyObject *self, PyObject *number)
{
    struct mm_heap *core = heap_open(self);
    uint32_t index = core != NULL ? take_weak(core, number) : 0;
    if (index == 0)
        return NULL;
    uint64_t offset = mm_weak_get(core, index);
    if (offset == 0)
        Py_RETURN_NONE;
    return heap_object(self, offset);
}

/* _weak_drop(index): nothing where the heap is closed or another process's */
static PyObject *heap_weak_drop(PyObject *self, PyObject *number)
{
    uint32_t index = heap_is_ours(self) ? take_weak(&heap_of(self)->core, number) : 0;
    if (index != 0)
        mm_weak_drop(&heap_of(self)->core, index);
    else if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* --- what there is ------------------------------------------------------------------------------ */

/* _verify() -> (objects, references, bytes, what is wrong or None, where) */
static PyObject *heap_verify(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct mm_heap *core = heap_open(self);
    if (core == NULL)
        return NULL;
    struct mm_census census;
    uint64_t where;
    const char *wrong = mm_verify(core, &census, &where);
    return Py_BuildValue("(KKKzK)", census.objects, census.references, census.bytes, wrong, where);
}

/* _stats() -> the fields of HeapStats that are counted here, in their order */
static PyObject *heap_stats(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct mm_heap *core = heap_open(self);
    if (core == NULL)
        return NULL;
    const struct mm_counters *counters = &core->counters;
    return Py_BuildValue("(KKKIKKKKKKI)", mm_live(core), core->committed, core->pinned, core->exports, counters->collections,
                         counters->marked, counters->moved, counters->copied, counters->returned, counters->stayed,
                         (unsigned)core->phase);
}

/* _allow(nbytes): so much may be committed beyond what is, until _look() is called again */
static PyObject *heap_allow(PyObject *self, PyObject *number)
{
    struct mm_heap *core = heap_open(self);
    unsigned long long nbytes = PyLong_AsUnsignedLongLong(number);
    if (core == NULL || PyErr_Occurred())
        return NULL;
    core->allowed = core->committed + nbytes;
    Py_RETURN_NONE;
}

/* _index_nbytes() -> bytes of the tables of containers */
static PyObject *heap_index_nbytes(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct mm_heap *core = heap_open(self);
    return core != NULL ? PyLong_FromUnsignedLongLong(mm_index_nbytes(core)) : NULL;
}

/* _dtypes() -> those of arrays in it, by number - 1 */
static PyObject *heap_dtypes(PyObject *self, PyObject *unused)
{
    (void)unused;
    return heap_open(self) != NULL ? PyList_GetSlice(heap_of(self)->dtypes, 0, PY_SSIZE_T_MAX) : NULL;
}

static PyMethodDef heap_methods[] = {
    {"_attach", heap_attach, METH_VARARGS, NULL},
    {"_detach", heap_detach, METH_NOARGS, NULL},
    {"put", heap_put, METH_O, put_doc},
    {"new", (PyCFunction)(void (*)(void))heap_new, METH_VARARGS | METH_KEYWORDS, new_doc},
    {"_hold", heap_hold, METH_O, NULL},
    {"_drop", heap_drop, METH_O, NULL},
    {"_ref", heap_ref, METH_O, NULL},
    {"_weak", heap_weak, METH_O, NULL},
    {"_weak_ref", heap_weak_ref, METH_O, NULL},
    {"_weak_drop", heap_weak_drop, METH_O, NULL},
    {"_pace", heap_pace, METH_VARARGS, NULL},
    {"_goal", heap_goal, METH_NOARGS, NULL},
    {"_advance", heap_advance, METH_VARARGS, NULL},
    {"_step", heap_step, METH_O, NULL},
    {"_slide", heap_slide, METH_O, NULL},
    {"_tend", heap_tend, METH_O, NULL},
    {"_fail", heap_fail, METH_O, NULL},
    {"_pauses", heap_pauses, METH_NOARGS, NULL},
    {"_verify", heap_verify, METH_NOARGS, NULL},
    {"_stats", heap_stats, METH_NOARGS, NULL},
    {"_allow", heap_allow, METH_O, NULL},
    {"_index_nbytes", heap_index_nbytes, METH_NOARGS, NULL},
    {"_dtypes", heap_dtypes, METH_NOARGS, NULL},
    {"_adopt", heap_adopt, METH_VARARGS, NULL},
    {"_blocks", heap_blocks, METH_NOARGS, NULL},
    {"_mesh_most", heap_mesh_most, METH_O, NULL},
    {"_meshing", heap_meshing, METH_NOARGS, NULL},
    {"_pins", heap_pins, METH_O, NULL},
    {"_freeze", heap_freeze, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef heap_getset[] = {
    {"closed", heap_get_closed, NULL, "Whether close() was called, or another process made it.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot heap_slots[] = {
    {Py_tp_doc, "Objects in pages of one sparse object in memory."},
    {Py_tp_dealloc, heap_dealloc},
    {Py_tp_methods, heap_methods},
    {Py_tp_getset, heap_getset},
    {0, NULL},
};

PyType_Spec heap_spec = {
    .name = "mirrormap._core.HeapBase",
    .basicsize = sizeof(HeapBase),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = heap_slots,
};
