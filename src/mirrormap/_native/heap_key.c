/* Keys of containers. An int of 64 bits, and text or bytes that are short, are kept without an object: what
 * they are says all about them. Any other key is held, and compared as dict does. */
#define _GNU_SOURCE
#include "heap_container.h"

#include <string.h>

/* Neighbouring ints must not share the bits that choose a chain, nor multiples of a power of two all of them. */
static uint32_t mixed(Py_hash_t hash)
{
    uint64_t bits = (uint64_t)hash;
    bits = (bits ^ bits >> 32) * 0x9e3779b97f4a7c15u;
    bits = (bits ^ bits >> 29) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)(bits >> 32);
}

static bool short_text(struct mm_key *key, enum mm_key_kind kind, const char *text, Py_ssize_t nbytes)
{
    if (text == NULL || nbytes > MM_KEY_INLINE)
        return false;
    memcpy(key->text, text, (size_t)nbytes);
    key->kind = (uint8_t)kind;
    key->length = (uint8_t)nbytes;
    return true;
}

/* Whatever cannot be told of the object makes it a key that is held. */
static bool is_short(PyObject *object, struct mm_key *key)
{
    Py_ssize_t nbytes = 0;
    if (PyLong_CheckExact(object)) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
        return overflow == 0 && short_text(key, MM_KEY_INT, (const char *)&number, sizeof number);
    }
    if (PyUnicode_CheckExact(object)) {
        if (PyUnicode_GetLength(object) > MM_KEY_INLINE)
            return false;
        const char *text = PyUnicode_AsUTF8AndSize(object, &nbytes);
        if (text == NULL)
            PyErr_Clear();             /* a lone surrogate */
        return short_text(key, MM_KEY_STR, text, nbytes);
    }
    char *bytes = NULL;
    if (PyBytes_CheckExact(object) && PyBytes_AsStringAndSize(object, &bytes, &nbytes) == 0)
        return short_text(key, MM_KEY_BYTES, bytes, nbytes);
    return false;
}

int wanted_of(PyObject *object, struct wanted *wanted)
{
    Py_hash_t hash = PyObject_Hash(object);
    if (hash == -1)
        return -1;
    *wanted = (struct wanted){.object = object, .hash = mixed(hash), .key.kind = MM_KEY_OBJECT};
    if (!is_short(object, &wanted->key))
        memcpy(wanted->key.text, &object, sizeof object);
    return 0;
}

PyObject *key_held(const struct mm_entry *entry)
{
    PyObject *object = NULL;
    if (entry->kind == MM_KEY_OBJECT)
        memcpy(&object, entry->text, sizeof object);
    return object;
}

PyObject *key_object(const struct mm_entry *entry)
{
    const char *text = (const char *)entry->text;
    long long number;
    switch ((enum mm_key_kind)entry->kind) {
    case MM_KEY_INT:
        memcpy(&number, text, sizeof number);
        return PyLong_FromLongLong(number);
    case MM_KEY_STR:
        return PyUnicode_DecodeUTF8(text, entry->length, "strict");
    case MM_KEY_BYTES:
        return PyBytes_FromStringAndSize(text, entry->length);
    default:
        return Py_NewRef(key_held(entry));
    }
}

/* Is this its key? -1: an exception is set. */
static int is_key(const struct mm_entry *entry, const struct wanted *wanted)
{
    const struct mm_key *key = &wanted->key;
    if (entry->kind == key->kind && entry->length == key->length && memcmp(entry->text, key->text, MM_KEY_INLINE) == 0)
        return 1;
    if (entry->kind != MM_KEY_OBJECT && key->kind != MM_KEY_OBJECT)
        return 0;
    PyObject *kept = key_object(entry);
    int same = kept != NULL ? PyObject_RichCompareBool(kept, wanted->object, Py_EQ) : -1;
    Py_XDECREF(kept);
    return same;
}

int find(const Container *self, const struct wanted *wanted, uint32_t *found)
{
    const struct mm_owner *owner = &self->owner;
    const struct mm_heap *core = container_open(self);
    uint32_t entry = core != NULL ? mm_first_of(owner, wanted->hash) : 0;
    while (entry != 0) {
        const struct mm_entry *it = &mm_entries(&core->index)[entry];
        if (it->hash == wanted->hash) {
            __builtin_prefetch(core->base + it->offset);
            uint64_t changes = owner->changes;
            int same = is_key(it, wanted);
            core = container_open(self);
            if (same < 0 || core == NULL)
                return -1;
            if (owner->changes != changes) {   /* the comparison did that: from the beginning */
                entry = mm_first_of(owner, wanted->hash);
                continue;
            }
            if (same != 0) {
                *found = entry;
                return 1;
            }
        }
        entry = mm_entries(&core->index)[entry].chain;
    }
    return core != NULL ? 0 : -1;
}

PyObject *no_such_key(PyObject *object)
{
    PyObject *arguments = PyTuple_Pack(1, object);   /* a tuple would be taken for several */
    if (arguments != NULL)
        PyErr_SetObject(PyExc_KeyError, arguments);
    Py_XDECREF(arguments);
    return NULL;
}

struct mm_index heap_take_keys(HeapBase *heap)
{
    struct mm_index taken = heap->core.index;
    heap->core.index = (struct mm_index){.owners = taken.owners};
    return taken;
}

void heap_drop_keys(struct mm_index *index)
{
    for (uint32_t entry = 1; entry < index->used; entry++)
        Py_XDECREF(key_held(&mm_entries(index)[entry]));
    mm_room_close(&index->room);
}
