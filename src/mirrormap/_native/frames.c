#include "frames.h"

#include <string.h>

static uint64_t load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static void store(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

uint64_t mm_frame_nbytes(uint64_t about_nbytes, uint64_t nbytes)
{
    uint64_t about = (about_nbytes + MM_LINE - 1) / MM_LINE * MM_LINE;
    if (nbytes > MM_FAR || about_nbytes > MM_ABOUT)
        return UINT64_MAX;
    return MM_LINE + about + (nbytes + MM_LINE - 1) / MM_LINE * MM_LINE;
}

static uint64_t mixed(const struct mm_header *header, uint64_t position)
{
    const uint64_t words[7] = {header->sequence,
                               header->frame_nbytes,
                               header->before_nbytes,
                               header->nbytes,
                               (uint64_t)header->time_ns,
                               (uint64_t)header->about_nbytes << 32 | header->kind,
                               position};
    uint64_t one = 0x9e3779b97f4a7c15, two = 0xc2b2ae3d27d4eb4f;
    for (int i = 0; i < 6; i += 2) {
        one = (one ^ words[i]) * 0xff51afd7ed558ccd;
        two = (two ^ words[i + 1]) * 0xc4ceb9fe1a85ec53;
    }
    one = (one ^ words[6] ^ (two >> 29)) * 0xff51afd7ed558ccd;
    return one ^ (one >> 32) ^ two;
}

/* --- the sender --- */

void mm_frame(const struct mm_stream *stream, char *data, struct mm_next *next, struct mm_header header)
{
    uint64_t start = next->start, segment_nbytes = stream->nbytes / MM_SEGMENTS + 1;
    uint64_t at = start % stream->nbytes, last = next->last % stream->nbytes;
    header.sequence = next->sequence;
    header.before_nbytes = start - next->last;
    header.unused = 0;
    header.check = mixed(&header, start);
    memcpy(data + at, &header, sizeof header);
    if (at / segment_nbytes != last / segment_nbytes || start - next->last > segment_nbytes || start == next->last)
        store(&stream->annex->index[at / segment_nbytes], start);
    next->last = start;
    next->start = start + header.frame_nbytes;
    next->sequence += header.kind != MM_SKIP;
}

void mm_commit(const struct mm_stream *stream, struct mm_next *next)
{
    struct mm_tally *tally = &stream->annex->tally[next->tally];
    store(&tally->end, MM_UNSET); /* neither the old entry nor the new one, for those who look right now */
    atomic_thread_fence(memory_order_release);
    store(&tally->sequence, next->sequence);
    store(&tally->start, next->last);
    atomic_store_explicit(&tally->end, next->start, memory_order_release);
    next->tally ^= 1;
    atomic_store_explicit(&stream->shared->written, next->start, memory_order_release);
}

bool mm_newest(const struct mm_stream *stream, struct mm_next *next)
{
    for (int tries = 0; tries < 1 << 16; tries++) {
        uint64_t written = atomic_load_explicit(&stream->shared->written, memory_order_acquire);
        for (int i = 0; i < 2; i++) {
            const struct mm_tally *tally = &stream->annex->tally[i];
            if (atomic_load_explicit(&tally->end, memory_order_acquire) != written)
                continue;
            struct mm_next found = {.start = written, .sequence = load(&tally->sequence), .last = load(&tally->start),
                                    .tally = i ^ 1};
            atomic_thread_fence(memory_order_acquire);
            if (load(&tally->end) != written)
                continue; /* rewritten meanwhile */
            *next = found;
            return found.start % MM_LINE == 0 && found.last % MM_LINE == 0 && found.last <= found.start
                   && found.start - found.last <= stream->nbytes && found.start < MM_FAR && found.sequence < MM_FAR;
        }
    }
    return false;
}

bool mm_resume(const struct mm_stream *stream, struct mm_next *next)
{
    if (!mm_newest(stream, next))
        return false;
    /* Frames that the last sender wrote and did not commit have sound headers as well. Where ours are longer
     * or skip, those stay in between, and nobody may begin there. */
    for (int i = 0; i < MM_SEGMENTS; i++)
        if (load(&stream->annex->index[i]) >= next->start)
            store(&stream->annex->index[i], MM_UNSET);
    return true;
}

/* --- a receiver --- */

/* What lies there may change at any moment, and then the checksum tells: a race that is meant. */
#if defined(__SANITIZE_THREAD__)
__attribute__((no_sanitize("thread")))
#endif
static struct mm_header copy_of(const char *data)
{
    union { uint64_t words[MM_LINE / 8]; struct mm_header header; } copy;
    for (int i = 0; i < MM_LINE / 8; i++)
        copy.words[i] = ((const volatile uint64_t *)data)[i];
    return copy.header;
}

bool mm_frame_at(const struct mm_stream *stream, uint64_t position, uint64_t upto, struct mm_header *header)
{
    if (position % MM_LINE != 0 || upto < position || upto - position < MM_LINE)
        return false;
    *header = copy_of(stream->data + position % stream->nbytes);   /* once, and from then on our own copy */
    if (header->check != mixed(header, position) || header->frame_nbytes % MM_LINE != 0
        || header->frame_nbytes < MM_LINE || header->frame_nbytes > stream->nbytes
        || header->frame_nbytes > upto - position || header->before_nbytes > position || position >= MM_FAR
        || header->sequence >= MM_FAR)
        return false;
    if (header->kind == MM_SKIP)
        return true;
    return (header->kind == MM_PLAIN || header->kind == MM_ARRAY)
           && mm_frame_nbytes(header->about_nbytes, header->nbytes) <= header->frame_nbytes;
}

/* One frame back from `position`, unless that is not intact or lies before `from`. */
static bool step_back(const struct mm_stream *stream, uint64_t from, uint64_t *position, uint64_t before_nbytes,
                      struct mm_header *header)
{
    uint64_t there = *position - before_nbytes;
    if (before_nbytes == 0 || before_nbytes > *position || there < from
        || !mm_frame_at(stream, there, *position, header) || header->frame_nbytes != before_nbytes
        || mm_oldest(stream->shared, stream->nbytes) > there)
        return false;
    *position = there;
    return true;
}

/* The lowest position in the index from which frames go on: far back without looking at each. */
static uint64_t from_index(const struct mm_stream *stream, uint64_t from, uint64_t upto, struct mm_header *header)
{
    uint64_t lowest = upto;
    for (int i = 0; i < MM_SEGMENTS; i++) {
        uint64_t position = load(&stream->annex->index[i]);
        if (position >= from && position < lowest)
            lowest = position;
    }
    if (lowest == upto || !mm_frame_at(stream, lowest, upto, header)
        || mm_oldest(stream->shared, stream->nbytes) > lowest)
        return upto;
    return lowest;
}

uint64_t mm_oldest_frame(const struct mm_stream *stream, uint64_t from, uint64_t count, uint64_t *upto)
{
    struct mm_next newest;
    struct mm_header header;
    if (!mm_newest(stream, &newest)) {
        *upto = atomic_load_explicit(&stream->shared->written, memory_order_acquire);
        return *upto;
    }
    *upto = newest.start;
    uint64_t oldest = mm_oldest(stream->shared, stream->nbytes);
    if (oldest < from)
        oldest = from;
    uint64_t position = newest.start, before = newest.start - newest.last;
    if (count == UINT64_MAX) {
        position = from_index(stream, oldest, newest.start, &header);
        if (position != newest.start)
            before = header.before_nbytes;
    }
    /* each step is a line at least, so that a forged chain ends too */
    for (uint64_t steps = stream->nbytes / MM_LINE; steps != 0 && count != 0; steps--) {
        if (!step_back(stream, oldest, &position, before, &header))
            break;
        before = header.before_nbytes;
        count -= header.kind != MM_SKIP;
    }
    return position;
}
