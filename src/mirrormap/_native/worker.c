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
    atomic_store(&slot->group, number_of(receiver));
    if (mm_group_skip(shared, receiver->group, number_of(receiver), 0, (uint64_t)number[1]))
        atomic_store(&receiver->group->sequence, (uint64_t)number[2]);
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

/* A slot that holds nothing: our own, or one more. -1: an exception is set. */
static int free_slot(PyObject *self, Receiver *receiver)
{
    uint64_t start, end;
    if (!mm_group_held(receiver->end.stream.shared, receiver->group, receiver->slot, &start, &end))
        return receiver->slot;
    PyObject *number = PyObject_CallMethod(self, "_another_slot", NULL);
    long slot = number != NULL ? PyLong_AsLong(number) : -1;
    Py_XDECREF(number);
    if (slot < 0 || slot >= MM_SLOTS)
        return -1;
    atomic_store(&receiver->end.stream.shared->slots[slot].group, number_of(receiver));
    return (int)slot;
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

/* All messages below `sequence` were taken, or told as missed. Who took later may have said so before: it only grows.
 * Until who moved the cursor has come here, another may count what that one took as missed; never the other way. */
static void count_up_to(struct mm_group *group, uint64_t sequence)
{
    uint64_t before = atomic_load(&group->sequence);
    while (before < sequence && !atomic_compare_exchange_weak(&group->sequence, &before, sequence))
        ;
}

/* Nothing could be taken at the cursor, and not because there is nothing. True: look again. */
static bool get_past(PyObject *self, Receiver *receiver, enum found found, uint64_t word)
{
    struct mm_control *shared = receiver->end.stream.shared;
    if (atomic_load(&receiver->group->cursor) != word)
        return true; /* somebody took it, and what we looked at may be something else by now */
    uint64_t position = atomic_load(&shared->written), sequence = 0;
    if (found == DAMAGED) {
        if (mm_group_skip(shared, receiver->group, number_of(receiver), word, position)) {
            tell_sender(receiver);
            receiver_corrupt(self, "a message's header is damaged");
        }
        return !PyErr_Occurred();
    }
    if (!receiver_oldest(self, &position, &sequence))
        return false;
    uint64_t before = atomic_load(&receiver->group->sequence);
    if (!mm_group_skip(shared, receiver->group, number_of(receiver), word, position))
        return true;
    count_up_to(receiver->group, sequence);
    return receiver_missed(self, receiver, before, sequence);
}

/* Restart a group whose place was dropped, or take over what dead workers left. False: an exception. */
static bool look_after(PyObject *self, const char *method)
{
    PyObject *done = PyObject_CallMethod(self, method, NULL);
    Py_XDECREF(done);
    return done != NULL;
}

/* How far up to `limit` frames reach from the cursor. `*sequence`: after the last of them; `*count`: messages. */
static enum found reach(Receiver *receiver, uint64_t *position, int64_t limit, uint64_t *sequence, int64_t *count)
{
    struct mm_header header;
    enum found found = receiver_look(receiver, *position, &header);
    enum found first = found;
    while (found == FOUND && limit-- > 0) {
        *position += header.frame_nbytes;
        if (header.kind != MM_SKIP) {
            *sequence = header.sequence + 1;
            ++*count;
        }
        found = limit > 0 ? receiver_look(receiver, *position, &header) : NOTHING;
    }
    return first;
}

PyObject *worker_next(PyObject *self, Receiver *receiver, int64_t limit)
{
    struct mm_control *shared = receiver->end.stream.shared;
    struct mm_annex *annex = receiver->end.stream.annex;
    int slot = -1;
    PyObject *message = NULL;
    while (message == NULL) {
        int64_t taken = 0;
        uint64_t word, sequence = 0, start = mm_group_at(receiver->group, &word), end = start;
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
        enum found found = reach(receiver, &end, limit, &sequence, &taken);
        if (found == NOTHING)
            break;
        if (found != FOUND) {
            if (!get_past(self, receiver, found, word))
                break;
            continue;
        }
        if (slot < 0 && (slot = free_slot(self, receiver)) < 0)
            return NULL;
        if (!mm_group_take(shared, receiver->group, slot, word, end)) {
            tell_sender(receiver); /* it may have seen the place that was not ours after all */
            continue;
        }
        count_up_to(receiver->group, sequence);
        atomic_store_explicit(&shared->slots[slot].sequence, sequence, memory_order_relaxed);
        int64_t count = make_messages(self, receiver, slot, start, end);
        /* nobody else is told of what was overwritten after it was taken */
        bool told = count < 0 || !receiver->end.overwrite || receiver_missed(self, receiver, 0, (uint64_t)(taken - count));
        if (count > 0)
            return told ? pop_pending(receiver) : NULL;
        if (mm_group_done(shared, slot, end)) /* no message was among them */
            mm_sys_wake(&shared->room_wanted);
        if (count < 0 || !told)
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
    if (mm_group_done(shared, slot, needed))
        mm_sys_wake(&shared->room_wanted);
    if (!more)
        leave_slot(receiver, slot);
}

/* --- after the dead --- */

/* _held(slot) -> does it hold a message of its group? */
PyObject *worker_held(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t index;
    if (places_open(self) == NULL || !take_numbers(args, given, &index, 1) || index < 0 || index >= MM_SLOTS)
        return NULL;
    const struct mm_stream *stream = &((End *)self)->stream;
    uint32_t group = atomic_load(&stream->shared->slots[index].group);
    uint64_t start, end;
    if (group == 0 || group > MM_GROUPS)
        Py_RETURN_FALSE;
    return PyBool_FromLong(
        mm_group_held(stream->shared, &stream->annex->groups[group - 1], (int)index, &start, &end));
}

/* _adopt(slot, dead, own) -> how many messages of a dead worker are ours now; -1: it held none */
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
    int64_t count = make_messages(self, receiver, (int)number[0], start, end);
    if (count == 0) /* overwritten, or nothing but a gap */
        leave_slot(receiver, (int)number[0]);
    return count < 0 ? NULL : PyLong_FromLongLong(count);
}

/* _groups() -> [(index, key, begun, sequence, name), ...] */
PyObject *worker_groups(PyObject *self, PyObject *unused)
{
    (void)unused;
    if (places_open(self) == NULL)
        return NULL;
    const struct mm_annex *annex = ((End *)self)->stream.annex;
    PyObject *groups = PyList_New(0);
    for (int i = 0; groups != NULL && i < MM_GROUPS; i++) {
        uint64_t key = atomic_load(&annex->groups[i].key), word, position = mm_group_at(&annex->groups[i], &word);
        if (key == 0)
            continue;
        PyObject *group = Py_BuildValue("(iLNKy#)", i, (long long)key, PyBool_FromLong(position != MM_UNSET),
                                        (unsigned long long)atomic_load(&annex->groups[i].sequence),
                                        annex->groups[i].name, (Py_ssize_t)sizeof annex->groups[i].name);
        if (group == NULL || PyList_Append(groups, group) < 0)
            Py_CLEAR(groups);
        Py_XDECREF(group);
    }
    return groups;
}

/* _drop(group, forget): nobody of it is alive, so nothing is kept for it */
PyObject *worker_drop(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t number[2];
    if (places_open(self) == NULL || !take_numbers(args, given, number, 2) || number[0] < 0 || number[0] >= MM_GROUPS)
        return NULL;
    const struct mm_stream *stream = &((End *)self)->stream;
    struct mm_group *group = &stream->annex->groups[number[0]];
    uint64_t word, position = mm_group_at(group, &word);
    bool dropped = position != MM_UNSET && mm_group_skip(stream->shared, group, (uint32_t)number[0] + 1, word, MM_UNSET);
    if (number[1] != 0)
        atomic_store(&group->key, 0);
    return PyBool_FromLong(dropped);
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
