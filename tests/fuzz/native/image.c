/* An image of a heap whose bytes are what libFuzzer makes of a sound one: what is checked before it is followed stays inside. */
#define _GNU_SOURCE
#include "heap/image.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SPACE = 1 << 22, ROOM = 1 << 16, MOST = 4000, RECORD = MM_RECORD | 1u << 20 | 2u << 10 | 2 };

static const uint8_t *at, *end;
static unsigned char sound[ROOM];
static struct mm_freeze frozen;
static const uint32_t words[] = {MM_RECORD | 1u << 10, RECORD};

static uint64_t take(size_t count)
{
    uint64_t value = 0;
    for (size_t i = 0; i < count && at < end; i++)
        value |= (uint64_t)*at++ << 8 * i;
    return value;
}

static unsigned char *shared(size_t nbytes, int *fd)
{
    *fd = memfd_create("fuzzed", MFD_CLOEXEC);
    void *base = *fd < 0 || ftruncate(*fd, (off_t)nbytes) != 0 ? MAP_FAILED
                 : mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (base == MAP_FAILED)
        abort();
    return base;
}

/* A heap with bytes, arrays, records and cycles, and its image. */
static void prepare(void)
{
    static struct mm_heap heap;
    static uint64_t root;
    heap = (struct mm_heap){
        .shift = (unsigned)__builtin_ctz(SPACE), .page_shift = (unsigned)__builtin_ctzl((unsigned long)getpagesize()),
        .limit = SPACE, .allowed = UINT64_MAX, .target = 1100, .count = SPACE >> MM_BLOCK_SHIFT,
    };
    heap.base = shared(SPACE, &heap.fd);
    heap.pacing.bell = -1;
    if (mm_heap_open(&heap) != 0)
        abort();
    const struct mm_shape shapes[] = {
        {.nbytes = 20, .word = 3}, {.word = RECORD}, {.nbytes = 24, .dtype = 1, .ndim = 2}, {.nbytes = 100}, {.nbytes = 8, .word = 20},
    };
    uint64_t last = 0;
    for (int round = 0; round < 20; round++) {
        int error;
        uint64_t made = mm_allocate(&heap, false, &shapes[round % 5], &error);
        struct mm_object *header = mm_header_at(&heap, made);
        memset(mm_data(header), round, mm_data_nbytes(header));
        if (header->ndim != 0)
            memcpy((unsigned char *)header + mm_shape_at(header), (uint64_t[]){1, 3}, 16);
        for (uint32_t index = 0; index < mm_nrefs(header); index++)
            mm_store(&heap, &mm_slots(header)[index], index % 2 ? made : last);
        if (mm_nrefs(header) != 0)
            last = made;
    }
    root = last;
    frozen = (struct mm_freeze){.room = ROOM, .allowed = ROOM, .roots = &root, .root_count = 1};
    frozen.base = shared(ROOM, &frozen.fd);
    if (mm_freeze(&heap, &frozen) != 0)
        abort();
    memcpy(sound, frozen.base, frozen.nbytes);
}

/* Everything a reader looks at of one object. Returns a sum of it, so that nothing is left out. */
static uint64_t look(const struct mm_image *image, uint64_t offset, uint64_t *queue, size_t *count)
{
    struct mm_object *header = mm_image_at(image, offset);
    const unsigned char *data = mm_data(header);
    uint64_t sum = mm_type(header);
    for (uint64_t index = 0; index < mm_data_nbytes(header); index++)
        sum += data[index];
    if (!mm_is_record(header))
        for (uint64_t index = 0; index < 8u * header->ndim; index++)
            sum += ((const unsigned char *)header)[mm_shape_at(header) + index];
    for (uint32_t index = 0; index < mm_nrefs(header); index++)
        if (*count < MOST)
            queue[(*count)++] = atomic_load_explicit(&mm_slots(header)[index], memory_order_relaxed);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (frozen.base == NULL)
        prepare();
    at = bytes, end = bytes + count;
    /* of exactly the image's length: a byte beyond it is found */
    unsigned char *copy = aligned_alloc(16, (frozen.nbytes + 15) / 16 * 16);
    if (copy == NULL)
        abort();
    memcpy(copy, sound, frozen.nbytes);
    for (uint64_t changes = take(1) % 16; changes > 0; changes--) {
        uint64_t where = take(2) % frozen.nbytes;
        for (uint64_t left = 1 + take(1) % 12; left > 0 && where < frozen.nbytes; left--)
            copy[where++] = (unsigned char)take(1);
    }
    struct mm_image image = {
        .base = copy, .end = frozen.end, .starts = (const uint64_t *)(void *)(copy + frozen.starts_at), .words = words,
        .types = 2, .dtypes = 1,
    };
    static uint64_t queue[MOST + 1];
    size_t length = 0;
    volatile uint64_t sum = 0;
    queue[length++] = frozen.roots[0];
    queue[length++] = take(8);
    for (size_t head = 0; head < length; head++)
        if (mm_image_check(&image, queue[head]) == NULL)
            sum += look(&image, queue[head], queue, &length);
    free(copy);
    return 0;
}
