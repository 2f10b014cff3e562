/* A channel whose memory lies, and a sender and receivers that use it: libFuzzer writes the program.
 *
 * Nothing may be read or written outside the data (guard pages lie on both sides), no call may go on for ever,
 * and what a call accepts must keep what frames.h says of it. */
#define _GNU_SOURCE
#include "frames.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 2, OPS = 12 };

static struct mm_control *control;
static struct mm_annex *annex;
static char *data;
static size_t nbytes;

static void check(bool right)
{
    if (!right)
        abort();
}

/* The same pages twice, between two pages that nobody may touch. */
static void map_data(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    nbytes = PAGES * page;
    int fd = memfd_create("fuzz", 0);
    check(fd >= 0 && ftruncate(fd, (off_t)nbytes) == 0);
    char *window = mmap(NULL, 2 * nbytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(window != MAP_FAILED);
    data = window + page;
    for (int i = 0; i < 2; i++)
        check(mmap(data + (size_t)i * nbytes, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0)
              != MAP_FAILED);
    control = aligned_alloc(MM_LINE, MM_CONTROL);
    annex = aligned_alloc(MM_LINE, MM_ANNEX);
    check(control != NULL && annex != NULL);
}

struct input {
    const uint8_t *at, *end;
};

static uint64_t take(struct input *input, size_t count)
{
    uint64_t value = 0;
    for (size_t i = 0; i < count && input->at < input->end; i++)
        value |= (uint64_t)*input->at++ << 8 * i;
    return value;
}

/* Some word of the shared memory: cursors and tally more often than slots and the rest. */
static _Atomic uint64_t *some_word(struct input *input)
{
    uint64_t which = take(input, 1);
    switch (which % 8) {
    case 0: return &control->claimed;
    case 1: return &control->written;
    case 2: return &annex->tally[which >> 3 & 1].end;
    case 3: return &annex->tally[which >> 3 & 1].start;
    case 4: return &annex->tally[which >> 3 & 1].sequence;
    case 5: return &annex->index[take(input, 2) % MM_SEGMENTS];
    case 6: return (_Atomic uint64_t *)(void *)&control->slots[which >> 3] + take(input, 1) % 7;
    default: return which >> 3 & 1 ? &annex->groups[which >> 4].key : &annex->groups[which >> 4].cursor;
    }
}

/* What was accepted lies inside the data, every byte of it. */
static void look_at(uint64_t position, uint64_t upto, const struct mm_header *header)
{
    check(position % MM_LINE == 0 && header->frame_nbytes % MM_LINE == 0);
    check(header->frame_nbytes <= nbytes && header->frame_nbytes <= upto - position);
    uint64_t body = MM_LINE + header->about_nbytes + header->nbytes;
    check(header->kind == MM_SKIP || body <= header->frame_nbytes);
    const volatile char *frame = data + position % nbytes;
    for (uint64_t i = 0; i < header->frame_nbytes; i += 8)
        (void)frame[i];
}

static void send(const struct mm_stream *stream, struct mm_next *next, struct input *input)
{
    uint64_t length = take(input, 2) % (nbytes / 2), about = take(input, 1) % 200;
    struct mm_header header = {.nbytes = length, .about_nbytes = (uint32_t)about};
    header.kind = take(input, 1) % 8 == 0 ? MM_SKIP : about ? MM_ARRAY : MM_PLAIN;
    header.frame_nbytes = mm_frame_nbytes(about, length);
    check(header.frame_nbytes <= nbytes);
    mm_claim(control, next->start + header.frame_nbytes);
    memset(data + next->start % nbytes + MM_LINE, 'x', about + length);
    uint64_t start = next->start;
    mm_frame(stream, data, next, header);
    mm_commit(stream, next);
    struct mm_header again;
    check(mm_frame_at(stream, start, next->start, &again) && again.nbytes == length);
    mm_publish(control, next->start);
}

static void receive(const struct mm_stream *stream, struct input *input)
{
    uint64_t upto, from = take(input, 3) * MM_LINE, count = take(input, 1) % 4 == 0 ? UINT64_MAX : take(input, 1);
    uint64_t position = mm_oldest_frame(stream, from, count, &upto);
    struct mm_header header;
    for (int i = 0; i < 300 && mm_frame_at(stream, position, upto, &header); i++) {
        look_at(position, upto, &header);
        position += header.frame_nbytes;
    }
}

static void step(const struct mm_stream *stream, struct mm_next *next, bool *sends, struct input *input)
{
    struct mm_header header;
    struct mm_next found;
    uint64_t position;
    switch (take(input, 1) % OPS) {
    case 0: case 1: case 2:
        if (*sends)
            send(stream, next, input);
        break;
    case 3:
        atomic_store(some_word(input), take(input, 8));
        break;
    case 4:
        atomic_fetch_add(some_word(input), (uint64_t)((int64_t)take(input, 1) - 128) * MM_LINE);
        break;
    case 5:
        data[take(input, 2) % nbytes] = (char)take(input, 1);
        break;
    case 6:
        *sends = mm_resume(stream, next);
        break;
    case 7:
        if (mm_newest(stream, &found))
            check(found.last <= found.start && found.start - found.last <= nbytes);
        break;
    case 8: {
        uint64_t upto = atomic_load(&control->written);
        position = upto - take(input, 2) * MM_LINE;
        if (mm_frame_at(stream, position, upto, &header))
            look_at(position, upto, &header);
        break;
    }
    case 9: {
        uint64_t wanted = position = take(input, 3) * MM_LINE;
        int slot = mm_arrive(control, 1 + take(input, 1), nbytes, &position);
        check(slot < MM_SLOTS && position >= wanted);
        if (slot >= 0 && take(input, 1) % 2)
            mm_advance(control, slot, take(input, 1) % 2 ? UINT64_MAX : position);
        break;
    }
    case 10:
        check(mm_needed(stream) <= mm_slowest(control));
        break;
    default:
        receive(stream, input);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (data == NULL)
        map_data();
    memset(control, 0, MM_CONTROL);
    memset(annex, 0, MM_ANNEX);
    memset(data, 0, nbytes);
    struct mm_stream stream = {control, annex, data, nbytes};
    struct mm_next next;
    bool sends = mm_resume(&stream, &next);
    struct input input = {bytes, bytes + count};
    for (int i = 0; i < 200 && input.at < input.end; i++)
        step(&stream, &next, &sends, &input);
    return 0;
}
