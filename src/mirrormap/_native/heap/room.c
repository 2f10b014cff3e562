/* Memory of its own for one table. Above a threshold it is a mapping: growing moves page-table entries, not
 * bytes, what was never written costs nothing, and shrinking gives pages back at once. */
#define _GNU_SOURCE
#include "index.h"

#include "../faults.h"
#include "../sys.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MAPPED = 1 << 16 };             /* bytes; also what a mapping's length is a multiple of */

static size_t rounded(size_t nbytes)
{
    return nbytes < MAPPED ? nbytes : (nbytes + MAPPED - 1) & ~(size_t)(MAPPED - 1);
}

static int fresh(size_t nbytes, void **memory)
{
    uintptr_t address = 0;
    int error = 0;
    if (nbytes < MAPPED)
        address = (uintptr_t)malloc(nbytes);
    else
        error = mm_sys_map(0, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &address);
    *memory = (void *)address;
    return error != 0 || address == 0 ? ENOMEM : 0;
}

static void discard(void *memory, size_t nbytes)
{
    if (nbytes < MAPPED)
        free(memory);
    else
        mm_sys_unmap((uintptr_t)memory, nbytes);
}

int mm_room_resize(struct mm_room *room, size_t nbytes)
{
    FAULT("room");
    nbytes = rounded(nbytes);
    if (nbytes == room->nbytes)
        return 0;
    void *memory;
    if (nbytes >= MAPPED && room->nbytes >= MAPPED) {
        uintptr_t address;
        if (mm_sys_remap((uintptr_t)room->memory, room->nbytes, nbytes, MREMAP_MAYMOVE, 0, &address) != 0)
            return ENOMEM;
        memory = (void *)address;
    } else {
        if (fresh(nbytes, &memory) != 0)
            return ENOMEM;
        if (room->memory != NULL)
            memcpy(memory, room->memory, nbytes < room->nbytes ? nbytes : room->nbytes);
        discard(room->memory, room->nbytes);
    }
    *room = (struct mm_room){memory, nbytes};
    return 0;
}

void mm_room_close(struct mm_room *room)
{
    discard(room->memory, room->nbytes);
    *room = (struct mm_room){0};
}
