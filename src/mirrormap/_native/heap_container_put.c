/* Putting values into a container, and making room for them. */
#define _GNU_SOURCE
#include "heap_container.h"
#include "heap_put.h"

enum { MOST_PAID_FOR = 31 << 10 };     /* bytes of one value that is put: moving others for it is waited for */

/* Give up what was used least recently. 1: Python code ran, which may have done anything; -1: it raised. */
static int evict(Container *self, struct mm_heap *core)
{
    if (self->on_evict == NULL) {      /* moving the others together is put off until the new value is there */
        uint32_t entry = self->owner.oldest;
        PyObject *held = key_held(&mm_entries(&core->index)[entry]);
        mm_entry_remove(core, &self->owner, entry);
        Py_XDECREF(held);
        return held != NULL;
    }
    PyObject *item = take_oldest(self, core);
    if (item == NULL)
        return PyErr_Occurred() ? -1 : 1;
    PyObject *on_evict = Py_NewRef(self->on_evict);
    PyObject *answer = PyObject_Call(on_evict, item, NULL);
    Py_DECREF(on_evict);
    Py_DECREF(item);
    Py_XDECREF(answer);
    return answer != NULL ? 1 : -1;
}

/* Until so many more bytes fit. 1: Python code ran; -1: an exception is set. */
static int make_room(Container *self, uint64_t nbytes)
{
    int ran = 0;
    for (;;) {
        struct mm_heap *core = container_open(self);
        if (core == NULL)
            return -1;
        if (self->owner.oldest == 0 || self->owner.nbytes + nbytes <= self->limit)
            return ran;
        int result = evict(self, core);
        if (result < 0)
            return -1;
        ran |= result;
    }
}

/* A value for the entry of a key, or a new one. Nothing in here runs Python code. */
static int enter(Container *self, const struct wanted *wanted, bool found, uint32_t entry, uint64_t offset)
{
    struct mm_heap *core = &heap_of(self->heap)->core;
    if (found) {
        mm_entry_replace(core, &self->owner, entry, offset);
        if (self->bounded)
            mm_entry_touch(core, &self->owner, entry);
        return 0;
    }
    if (mm_entry_reserve(core, &self->owner) != 0) {
        mm_release(core, offset);
        PyErr_NoMemory();
        return -1;
    }
    mm_entry_add(core, &self->owner, &wanted->key, wanted->hash, offset);
    if (wanted->key.kind == MM_KEY_OBJECT)
        Py_INCREF(wanted->object);
    return 0;
}

static int put(Container *self, const struct wanted *wanted, const struct source *source)
{
    uint64_t nbytes = source->shape.nbytes;
    if (self->bounded && nbytes > self->limit) {
        PyErr_Format(PyExc_ValueError, "a value of %llu bytes does not fit into a cache of %llu",
                     (unsigned long long)nbytes, (unsigned long long)self->limit);
        return -1;
    }
    for (;;) {
        uint32_t entry = 0;
        int found = find(self, wanted, &entry);
        int ran = found == 0 && self->bounded ? make_room(self, nbytes) : 0;
        if (found < 0 || ran < 0)
            return -1;
        if (ran > 0)
            continue;
        struct mm_heap *core = &heap_of(self->heap)->core;
        uint64_t changes = self->owner.changes;
        uint64_t offset = heap_make(self->heap, true, &source->shape);
        if (offset == 0)
            return -1;
        if (self->owner.changes != changes) {   /* Python code was asked for memory */
            mm_release(core, offset);
            continue;
        }
        source_fill(core, offset, source);
        if (enter(self, wanted, found != 0, entry, offset) < 0)
            return -1;
        mm_give_way(core, nbytes < MOST_PAID_FOR ? nbytes : MOST_PAID_FOR);
        return found != 0 && self->bounded && make_room(self, 0) < 0 ? -1 : 0;
    }
}

int container_assign(PyObject *object, PyObject *key, PyObject *value)
{
    Container *self = container_of(object);
    struct wanted wanted;
    struct source source;
    if (container_open(self) == NULL || wanted_of(key, &wanted) < 0 || container_open(self) == NULL
        || !source_open(heap_of(self->heap), value, &source))
        return -1;
    int result = put(self, &wanted, &source);
    source_done(&source);
    return result;
}
