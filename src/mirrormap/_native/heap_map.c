/* What lies where in a heap, block by block, to be drawn. */
#define _GNU_SOURCE
#include "heap_types.h"

/* _blocks() -> [(kind, bytes alive, bytes filled, bytes of pages held, pinned objects)], without what is free at the end */
PyObject *heap_blocks(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct mm_heap *core = heap_open(self);
    if (core == NULL)
        return NULL;
    uint32_t end = core->count;
    while (end > 1 && core->blocks[end - 1].kind == MM_FREE && core->blocks[end - 1].held == 0)
        end--;
    PyObject *found = PyList_New(0);
    for (uint32_t index = 1; found != NULL && index < end; index++) {
        const struct mm_block *block = &core->blocks[index];
        PyObject *told = Py_BuildValue("(IIIKI)", (unsigned)block->kind, block->live, block->used,
                                       (unsigned long long)mm_block_held(core, block), block->pins);
        if (told == NULL || PyList_Append(found, told) < 0)
            Py_CLEAR(found);
        Py_XDECREF(told);
    }
    return found;
}
