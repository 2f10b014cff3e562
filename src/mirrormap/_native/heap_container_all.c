/* Going through a container, and emptying it. */
#define _GNU_SOURCE
#include "heap_container.h"

/* An iterator over keys, the oldest first. */
typedef struct {
    PyObject_HEAD
    PyObject *container;       /* NULL: it has come to its end */
    struct mm_walker walker;
    uint32_t count;
    uint64_t turns;
} Round;

PyTypeObject *round_type;

static Round *round_of(PyObject *object)
{
    return (Round *)object;
}

PyObject *container_iter(PyObject *object)
{
    Container *self = container_of(object);
    if (container_open(self) == NULL)
        return NULL;
    Round *made = PyObject_GC_New(Round, round_type);
    if (made == NULL)
        return NULL;
    made->container = Py_NewRef(object);
    made->walker = (struct mm_walker){.next = self->owner.walkers, .at = self->owner.oldest};
    made->count = self->owner.count;
    made->turns = self->owner.turns;
    self->owner.walkers = &made->walker;
    PyObject_GC_Track((PyObject *)made);
    return (PyObject *)made;
}

static int round_clear(PyObject *self)
{
    Round *round = round_of(self);
    if (round->container == NULL)
        return 0;
    struct mm_walker **link = &container_of(round->container)->owner.walkers;
    while (*link != &round->walker)
        link = &(*link)->next;
    *link = round->walker.next;
    Py_CLEAR(round->container);
    return 0;
}

static PyObject *round_next(PyObject *self)
{
    Round *round = round_of(self);
    if (round->container == NULL)
        return NULL;
    const Container *container = container_of(round->container);
    const struct mm_heap *core = container_open(container);
    if (core == NULL)
        return NULL;
    if (round->count != container->owner.count || round->turns != container->owner.turns) {
        PyErr_SetString(PyExc_RuntimeError, round->count != container->owner.count
                                                ? "the container changed size during iteration"
                                                : "the order of the container changed during iteration");
        round->count = UINT32_MAX;     /* for good */
        return NULL;
    }
    if (round->walker.at == 0) {
        round_clear(self);
        return NULL;
    }
    const struct mm_entry *entry = &mm_entries(&core->index)[round->walker.at];
    round->walker.at = entry->next;
    return key_object(entry);
}

static int round_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(round_of(self)->container);
    return 0;
}

static void round_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    round_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyType_Slot round_slots[] = {
    {Py_tp_doc, "The keys of a container, one after the other."},
    {Py_tp_dealloc, round_dealloc},
    {Py_tp_traverse, round_traverse},
    {Py_tp_clear, round_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, round_next},
    {0, NULL},
};

PyType_Spec round_spec = {
    .name = "mirrormap._core.Round",
    .basicsize = sizeof(Round),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = round_slots,
};

/* --- emptying ----------------------------------------------------------------------------------- */

PyObject *take_oldest(Container *self, struct mm_heap *core)
{
    uint32_t entry = self->owner.oldest;
    uint64_t changes = self->owner.changes;
    PyObject *value = copy_of(self, entry);
    PyObject *key = value != NULL ? key_object(&mm_entries(&core->index)[entry]) : NULL;
    PyObject *item = key != NULL ? PyTuple_Pack(2, key, value) : NULL;
    Py_XDECREF(value);
    Py_XDECREF(key);
    if (item == NULL)
        return NULL;
    if (container_open(self) == NULL || self->owner.changes != changes) {
        Py_DECREF(item);
        return NULL;
    }
    Py_XDECREF(take_out(self, core, entry));
    return item;
}

PyObject *container_popitem(PyObject *object, PyObject *unused)
{
    (void)unused;
    Container *self = container_of(object);
    PyObject *item = NULL;
    while (item == NULL) {
        struct mm_heap *core = container_open(self);
        if (core == NULL)
            return NULL;
        if (self->owner.oldest == 0) {
            PyErr_SetString(PyExc_KeyError, "the container is empty");
            return NULL;
        }
        item = take_oldest(self, core);
        if (item == NULL && PyErr_Occurred())
            return NULL;
    }
    return item;
}

/* Take out what is in it now, whatever letting go of the keys puts in; no value is moved for others that go. */
static void empty(Container *self)
{
    uint32_t count = self->owner.count;
    while (count-- != 0 && self->owner.oldest != 0 && container_is_ours(self)) {
        struct mm_heap *core = &heap_of(self->heap)->core;
        PyObject *held = key_held(&mm_entries(&core->index)[self->owner.oldest]);
        mm_entry_remove(core, &self->owner, self->owner.oldest);
        Py_XDECREF(held);
    }
}

PyObject *container_clear_all(PyObject *object, PyObject *unused)
{
    (void)unused;
    Container *self = container_of(object);
    if (container_open(self) == NULL)
        return NULL;
    empty(self);
    if (container_open(self) == NULL)
        return NULL;
    mm_give_way(&heap_of(self->heap)->core, 0);
    Py_RETURN_NONE;
}

/* The entries of a container whose heap was not closed, also in a forked child: its memory is a copy. */
static struct mm_index *index_of(const Container *self)
{
    if (self->heap == NULL || self->life != heap_of(self->heap)->life)
        return NULL;
    struct mm_index *index = &heap_of(self->heap)->core.index;
    return index->room.memory != NULL ? index : NULL;
}

int container_traverse(PyObject *object, visitproc visit, void *arg)
{
    const Container *self = container_of(object);
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->heap);
    Py_VISIT(self->on_evict);
    const struct mm_index *index = self->owner.objects != 0 ? index_of(self) : NULL;
    for (uint32_t entry = index != NULL ? self->owner.oldest : 0; entry != 0; entry = mm_entries(index)[entry].next)
        Py_VISIT(key_held(&mm_entries(index)[entry]));
    return 0;
}

/* A forked child's own copy: its keys are let go of, and nothing of the heap is touched. */
static void forget_keys(Container *self)
{
    for (;;) {
        struct mm_index *index = index_of(self);
        uint32_t entry = self->owner.oldest;
        if (index == NULL || entry == 0)
            return;
        PyObject *held = key_held(&mm_entries(index)[entry]);
        self->owner.oldest = mm_entries(index)[entry].next;
        mm_entries(index)[entry].kind = MM_KEY_INT;
        Py_XDECREF(held);
    }
}

int container_clear(PyObject *object)
{
    Container *self = container_of(object);
    while (self->owner.oldest != 0 && container_is_ours(self))
        empty(self);
    forget_keys(self);
    if (container_is_ours(self))
        mm_owner_close(&heap_of(self->heap)->core, &self->owner);
    else
        mm_room_close(&self->owner.room);
    Py_CLEAR(self->on_evict);
    Py_CLEAR(self->heap);
    return 0;
}
