/* Receiver in a group: takes messages that then are nobody else's. What it has taken stands in a slot, a second
 * one if the first still holds something; who is alive is decided in Python. */
#define _GNU_SOURCE
#include "channel.h"

#include <string.h>

static int index_of(const Receiver *receiver)
{
    return (int)(receiver->group - receiver->end.stream.annex->groups);
}

/* 1 + the group's index, as slots name it. */
static uint32_t number_of(const Receiver *receiver)
{
    return (uint32_t)index_of(receiver) + 1;
}

static Receiver *worker_open(PyObject *self)
{
    Receiver *receiver = receiver_open(self);
    if (receiver != NULL && receiver->group == NULL) {
        PyErr_SetString(PyExc_ValueError, "this receiver is in no group");
        return NULL;
    }
    return receiver;
}

/* _join(key, name) -> is there a place among the groups? */
PyObject *worker_join(PyObject *self, PyObject *args)
{
    long long number;
    const char *name;
    Py_ssize_t name_nbytes;
    if (places_open(self) == NULL || !PyArg_ParseTuple(args, "Ly#", &number, &name, &name_nbytes))
        return NULL;
    Receiver *receiver = (Receiver *)self;
    struct mm_group *groups = receiver->end.stream.annex->groups;
    uint64_t key = (uint64_t)number;
    for (int i = 0; i < MM_GROUPS; i++) {
        uint64_t found = atomic_load(&groups[i].key);
        if (found == key)
            receiver->group = &groups[i];
    }
    for (int i = 0; i < MM_GROUPS && receiver->group == NULL; i++) {
        uint64_t found = atomic_load(&groups[i].key);
        if (found == 0 && atomic_compare_exchange_strong(&groups[i].key, &found, key))
            memcpy(groups[i].name, name,
                       (size_t)name_nbytes < sizeof groups[i].name ? (size_t)name_nbytes : sizeof groups[i].name);
        if (found == 0 || found == key)
            receiver->group = &groups[i];
    }
    return PyBool_FromLong(receiver->group != NULL);
}

/* _found(slot, position, sequence): a slot pins that position; the group begins there unless it has begun. */
PyObject *worker_found(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[3];
    Receiver *receiver = worker_open(self);
    if (receiver == NULL || !take_numbers(args, given, number, 3) || number[0] < 0 || number[0] >= MM_SLOTS)
        return NULL;
    struct mm_control *shared = receiver->end.stream.shared;
    struct mm_slot *slot = &shared->slots[number[0]];
    atomic_store(&slot->group, (uint16_t)number_of(receiver));
    struct mm_place place = {.position = (uint64_t)number[1], .sequence = (uint64_t)number[2]};
    mm_group_skip(shared, receiver->group, (int)number[0], 0, place);
    /* the cursor pins it from now on */
    atomic_store_explicit(&slot->position, UINT64_MAX, memory_order_release);
    if (mm_is_wanted(&shared->room_wanted))
        mm_sys_wake(&shared->room_wanted);
    Py_RETURN_NONE;
}

/* --- taking --- */

/* Some place is not needed any more. */
static void tell_sender(const Receiver *receiver)
{
    struct mm_control *shared = receiver->end.stream.shared;
    if (mm_is_wanted(&shared->room_wanted))
        mm_sys_wake(&shared->room_wanted);
}

/* A slot that holds nothing: our own, or one more, `slot` if that is one. Our own only as long as no Python runs: then
 * another thread may take something into it. -1: an exception is set. */
static int free_slot(PyObject *self, Receiver *receiver, int slot)
{
    uint64_t start, end;
    if (slot >= 0 && slot != receiver->slot)
        return slot;
    if (!mm_group_held(receiver->end.stream.shared, receiver->group, receiver->slot, &start, &end))
        return receiver->slot;
    PyObject *number = PyObject_CallMethod(self, "_another_slot", NULL);
    long another = number != NULL ? PyLong_AsLong(number) : -1;
    Py_XDECREF(number);
    if (another < 0 || another >= MM_SLOTS)
        return -1;
    atomic_store(&receiver->end.stream.shared->slots[another].group, (uint16_t)number_of(receiver));
    return (int)another;
}

static void leave_slot(Receiver *receiver, int slot)
{
    if (slot != receiver->slot && mm_advance(receiver->end.stream.shared, slot, UINT64_MAX))
        mm_sys_wake(&receiver->end.stream.shared->room_wanted);
}

/* Messages for the frames from `start` to `end`, which `slot` holds; they are pending. */
static int64_t make_messages(PyObject *self, Receiver *receiver, int slot, uint64_t start, uint64_t end)
{
    struct mm_header header;
    int64_t count = 0;
    if (receiver->pending == NULL && (receiver->pending = PyList_New(0)) == NULL)
        return -1;
    for (; start < end; start += header.frame_nbytes) {
        if (!mm_frame_at(&receiver->end.stream, start, end, &header))
            break;
        if (header.kind == MM_SKIP)
            continue;
        PyObject *message = message_new(self, receiver, slot, start, &header);
        int failed = message == NULL ? -1 : PyList_Append(receiver->pending, message);
        Py_XDECREF(message);
        if (failed < 0)
            return -1;
        count++;
    }
    return count;
}

static PyObject *pop_pending(const Receiver *receiver)
{
    if (receiver->pending == NULL || PyList_Size(receiver->pending) == 0)
        return NULL;
    PyObject *message = Py_NewRef(PyList_GetItem(receiver->pending, 0));
    if (PyList_SetSlice(receiver->pending, 0, 1, NULL) < 0)
        Py_CLEAR(message);
    return message;
}

/* Nothing could be taken at the cursor, and not because there is nothing. `*slot`: as of free_slot(). True: look again. */
static bool get_past(PyObject *self, Receiver *receiver, int *slot, enum found found, uint64_t word)
{
    struct mm_control *shared = receiver->end.stream.shared;
    if (atomic_load(&receiver->group->cursor) != word)
        return true; /* somebody took it, and what we looked at may be something else by now */
    struct mm_place to = {.position = atomic_load(&shared->written)};
    if (found == OVERRUN && !receiver_oldest(self, &to.position, &to.sequence))
        return false;
    int free = free_slot(self, receiver, *slot);
    if (free < 0)
        return false;
    *slot = free;
    uint64_t before = mm_group_count(shared, receiver->group, number_of(receiver), word);
    if (found != OVERRUN)
        to.sequence = before;
    if (!mm_group_skip(shared, receiver->group, *slot, word, to))
        return true;
    if (found == OVERRUN)
        return receiver_missed(self, receiver, before, to.sequence);
    tell_sender(receiver);
    receiver_corrupt(self, "a message's header is damaged");
    return false;
}

/* Restart a group whose place was dropped, or take over what dead workers left. False: an exception. */
static bool look_after(PyObject *self, const char *method)
{
    PyObject *done = PyObject_CallMethod(self, method, NULL);
    Py_XDECREF(done);
    return done != NULL;
}

/* How far up to `limit` frames reach from the cursor, and how many of them are messages. */
static enum found reach(Receiver *receiver, struct mm_place *place, int64_t limit, int64_t *count)
{
    struct mm_header header;
    enum found found = receiver_look(receiver, place->position, &header);
    enum found first = found;
    while (found == FOUND && limit-- > 0) {
        bool message = header.kind != MM_SKIP;
        place->position += header.frame_nbytes;
        place->sequence = header.sequence + message; /* a gap has the number of what follows it */
        *count += message;
        found = limit > 0 ? receiver_look(receiver, place->position, &header) : NOTHING;
    }
    return first;
}

/* Of what is ours alone so many messages are gone. */
static void tell_missed(PyObject *self, Receiver *receiver, uint64_t count)
{
    if (!receiver->end.overwrite)
        receiver_corrupt(self, "a message's header is damaged");
    else
        receiver_missed(self, receiver, 0, count);
}

/* The messages of what was just taken into `slot`, pending from now on. -1: an exception. */
static int64_t hold(PyObject *self, Receiver *receiver, int slot, uint64_t start, uint64_t end, int64_t taken)
{
    int64_t count = make_messages(self, receiver, slot, start, end);
    if (count < 0 || count == taken)
        return count;
    /* nobody else is told of what was overwritten after it was taken */
    atomic_store(&receiver->end.stream.shared->slots[slot].left, (uint32_t)count);
    tell_missed(self, receiver, (uint64_t)(taken - count));
    return count;
}

PyObject *worker_next(PyObject *self, Receiver *receiver, int64_t limit)
{
    struct mm_control *shared = receiver->end.stream.shared;
    struct mm_annex *annex = receiver->end.stream.annex;
    int slot = -1;
    PyObject *message = NULL;
    while (message == NULL) {
        int64_t taken = 0;
        uint64_t word, start = mm_group_at(receiver->group, &word);
        struct mm_place end = {.position = start};
        if ((atomic_load(&annex->orphans) >> index_of(receiver) & 1) != 0) {
            atomic_fetch_and(&annex->orphans, ~((uint32_t)1 << index_of(receiver)));
            if (!look_after(self, "_adopt_orphans") || (message = pop_pending(receiver)) != NULL)
                break;
            continue;
        }
        if (start == MM_UNSET) {
            if (!look_after(self, "_restart"))
                break;
            continue;
        }
        enum found found = reach(receiver, &end, limit, &taken);
        if (found == NOTHING)
            break;
        if (found != FOUND) {
            if (!get_past(self, receiver, &slot, found, word))
                break;
            continue;
        }
        int free = free_slot(self, receiver, slot);
        if (free < 0)
            break;
        slot = free;
        if (!mm_group_take(shared, receiver->group, slot, word, end, (uint32_t)taken)) {
            tell_sender(receiver); /* it may have seen the place that was not ours after all */
            continue;
        }
        int64_t count = hold(self, receiver, slot, start, end.position, taken);
        if (count > 0)
            return PyErr_Occurred() ? NULL : pop_pending(receiver);
        if (mm_group_done(shared, slot, end.position, 0)) /* no message was among them */
            mm_sys_wake(&shared->room_wanted);
        if (PyErr_Occurred())
            break;
    }
    if (slot >= 0)
        leave_slot(receiver, slot);
    return message;
}

void worker_done(Receiver *receiver, const Message *message)
{
    int slot = message->slot;
    if (slot < 0 || (message->previous != NULL && message->previous->slot == slot))
        return; /* an earlier one is still needed */
    struct mm_control *shared = receiver->end.stream.shared;
    bool more = message->next != NULL && message->next->slot == slot;
    uint64_t needed = more ? message->next->start : atomic_load(&shared->slots[slot].held_end);
    uint64_t left = atomic_load(&shared->slots[slot].left), done = more ? message->next->sequence - message->sequence : left;
    if (mm_group_done(shared, slot, needed, done < left ? (uint32_t)(left - done) : 0))
        mm_sys_wake(&shared->room_wanted);
    if (!more)
        leave_slot(receiver, slot);
}

/* --- after the dead --- */

/* The messages that are left of what a slot holds. -1: an exception. */
static int64_t make_rest(PyObject *self, Receiver *receiver, int slot, uint64_t start, uint64_t end)
{
    uint64_t sequence;
    int64_t count = make_messages(self, receiver, slot, start, end);
    if (count != 0 || !receiver->end.overwrite)
        return count;
    if (!receiver_oldest(self, &start, &sequence))
        return -1;
    return make_messages(self, receiver, slot, start, end);
}

/* _adopt(slot, dead, own): what a dead worker held is ours now -> how many messages of it were overwritten; -1: it
 * held none */
PyObject *worker_adopt(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[3];
    Receiver *receiver = worker_open(self);
    if (receiver == NULL || !take_numbers(args, given, number, 3) || number[0] < 0 || number[0] >= MM_SLOTS)
        return NULL;
    struct mm_control *shared = receiver->end.stream.shared;
    struct mm_slot *slot = &shared->slots[number[0]];
    uint64_t start, end;
    if (!mm_group_held(shared, receiver->group, (int)number[0], &start, &end))
        return PyLong_FromLong(-1);
    if (!mm_seize(&slot->owner, (uint64_t)number[1], (uint64_t)number[2]))
        return PyLong_FromLong(0);
    int64_t left = atomic_load(&slot->left), count = make_rest(self, receiver, (int)number[0], start, end);
    if (count > 0)
        atomic_store(&slot->left, (uint32_t)count);
    else if (count == 0) /* overwritten, or nothing but a gap */
        leave_slot(receiver, (int)number[0]);
    return count < 0 ? NULL : PyLong_FromLongLong(count < left ? left - count : 0);
}

/* _missed(count): raises what tells that so many messages we adopted are gone */
PyObject *worker_missed(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t count;
    Receiver *receiver = worker_open(self);
    if (receiver == NULL || !take_numbers(args, given, &count, 1))
        return NULL;
    tell_missed(self, receiver, (uint64_t)count);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* Leave: what was taken and not handed out goes to others, what was handed out is done with. */
bool worker_leave(PyObject *self, Receiver *receiver)
{
    struct mm_control *shared = receiver->end.stream.shared;
    PyObject *pending = receiver->pending != NULL ? Py_NewRef(receiver->pending) : NULL;
    Py_ssize_t count = pending != NULL ? PyList_Size(pending) : 0;
    for (Message *message = receiver->first, *next; message != NULL; message = next) {
        next = message->next;
        if (count != 0 && PySequence_Contains(pending, (PyObject *)message) == 1)
            continue;
        if (message_release(message) < 0) {
            Py_XDECREF(pending);
            return false;
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Message *message = (Message *)PyList_GetItem(pending, i);
        int slot = message->slot;
        message->slot = -1;
        if (slot < 0)
            continue;
        atomic_store(&shared->slots[slot].owner, 1); /* no process: it counts as dead */
        if (slot == receiver->slot)
            receiver->slot = -1;
    }
    Py_XDECREF(pending);
    if (count == 0)
        return true;
    PyObject *told = PyObject_CallMethod(self, "_orphan", "i", index_of(receiver));
    Py_XDECREF(told);
    return told != NULL;
}
