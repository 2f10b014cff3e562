/* Groups of a channel as anybody sees them who has its control pages: what a slot holds, which there are, and their end. */
#define _GNU_SOURCE
#include "channel.h"

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
                                        (unsigned long long)mm_group_sequence(&annex->groups[i]),
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
    bool dropped = position != MM_UNSET && mm_group_drop(stream->shared, group, (uint32_t)number[0] + 1, word);
    if (number[1] != 0)
        atomic_store(&group->key, 0);
    return PyBool_FromLong(dropped);
}
