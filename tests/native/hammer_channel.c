/* One sender, two receivers and three workers of a group hammer frames through one address: hammer_channel MESSAGES
 *
 * Lossless. Messages of 0 to 900 bytes hold their number in every word. Each receiver sees each message, in order and whole; of
 * the group each message goes to exactly one worker, some of which give up with a message in hand, as the dead do, so that
 * another adopts it. Exit status 0 if all that held. Then what a slot intends for one group is no business of another's. */
#include "frames.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGES_NBYTES = 1 << 14, RECEIVERS = 2, WORKERS = 3, LONGEST = 900, DEAD = 1 };

static _Alignas(64) struct mm_control shared;
static _Alignas(64) struct mm_annex annex;
static char data[2 * PAGES_NBYTES]; /* the first half is the channel; frames never cross the seam here, see send_all */
static const struct mm_stream stream = {.shared = &shared, .annex = &annex, .data = data, .nbytes = PAGES_NBYTES};
static uint64_t messages;
static _Atomic uint64_t finished; /* by the group */
static _Atomic unsigned char *times; /* how often each message was finished */

static void fail(const char *why, uint64_t number)
{
    fprintf(stderr, "%s: message %llu\n", why, (unsigned long long)number);
    exit(1);
}

static uint64_t length_of(uint64_t number)
{
    return number * 2654435761u % LONGEST / 8 * 8;
}

/* Wait until nobody needs what lies before `end` less a lap. */
static void wait_for_room(uint64_t end)
{
    mm_intend(&shared, end);
    for (uint64_t needed; (needed = mm_needed(&stream)) != UINT64_MAX && end > needed + PAGES_NBYTES;)
        sched_yield();
    mm_claim(&shared, end);
}

static void *send_all(void *unused)
{
    struct mm_next next = {.tally = 1};
    if (!mm_resume(&stream, &next))
        fail("no tally", 0);
    for (uint64_t number = 0; number < messages; number++) {
        uint64_t nbytes = length_of(number), frame = mm_frame_nbytes(0, nbytes);
        uint64_t left = PAGES_NBYTES - next.start % PAGES_NBYTES, gap = left < frame ? left : 0;
        wait_for_room(next.start + gap + frame);
        if (gap != 0)
            mm_frame(&stream, data, &next, (struct mm_header){.kind = MM_SKIP, .frame_nbytes = gap});
        uint64_t *payload = (uint64_t *)(data + next.start % PAGES_NBYTES + MM_LINE);
        for (uint64_t word = 0; word < nbytes / 8; word++)
            payload[word] = number;
        mm_frame(&stream, data, &next,
                 (struct mm_header){.kind = MM_PLAIN, .nbytes = nbytes, .frame_nbytes = frame});
        if (number % 3 == 0 || number + 1 == messages)
            mm_commit(&stream, &next);
        if (number % 1000 == 999) { /* as a successor would */
            mm_commit(&stream, &next);
            struct mm_next again;
            if (!mm_resume(&stream, &again) || again.sequence != number + 1 || again.start != next.start)
                fail("a successor would go on elsewhere", number);
            next = again;
        }
    }
    return unused;
}

static void check(uint64_t position, const struct mm_header *header)
{
    const uint64_t *payload = (const uint64_t *)(data + position % PAGES_NBYTES + MM_LINE);
    if (header->nbytes != length_of(header->sequence))
        fail("a wrong length", header->sequence);
    for (uint64_t word = 0; word < header->nbytes / 8; word++)
        if (payload[word] != header->sequence)
            fail("torn", header->sequence);
}

static void *receive_all(void *argument)
{
    int slot = *(int *)argument;
    uint64_t position = 0, number = 0;
    struct mm_header header;
    while (number < messages) {
        uint64_t written = atomic_load_explicit(&shared.written, memory_order_acquire);
        if (written == position) {
            sched_yield();
            continue;
        }
        if (!mm_frame_at(&stream, position, written, &header))
            fail("no frame", number);
        if (header.kind == MM_PLAIN) {
            if (header.sequence != number++)
                fail("out of order", number);
            check(position, &header);
        }
        position += header.frame_nbytes;
        mm_advance(&shared, slot, position);
    }
    mm_advance(&shared, slot, UINT64_MAX);
    return NULL;
}

static void finish(int slot, uint64_t start, uint64_t end)
{
    struct mm_header header;
    while (start < end) {
        if (!mm_frame_at(&stream, start, end, &header))
            fail("what was taken is no frame", start);
        if (header.kind == MM_PLAIN) {
            check(start, &header);
            if (atomic_fetch_add(&times[header.sequence], 1) != 0)
                fail("finished twice", header.sequence);
            atomic_fetch_add(&finished, 1);
        }
        start += header.frame_nbytes;
        if (slot >= 0)
            mm_group_done(&shared, slot, start, 0);
    }
}

/* Take over what slots of the dead hold, as worker_adopt() does. */
static void adopt(uint64_t own)
{
    for (int slot = 0; slot < MM_SLOTS; slot++) {
        uint64_t start, end;
        if (atomic_load(&shared.slots[slot].owner) != DEAD || atomic_load(&shared.slots[slot].group) != 1)
            continue;
        if (mm_group_held(&shared, &annex.groups[0], slot, &start, &end)) {
            if (mm_seize(&shared.slots[slot].owner, DEAD, own)) {
                finish(slot, start, end);
                mm_advance(&shared, slot, UINT64_MAX);
            }
        } else if (mm_seize(&shared.slots[slot].owner, DEAD, own)) {
            mm_vacate(&shared.slots[slot]);
        }
    }
}

static int hired(uint64_t own)
{
    uint64_t position = ((uint64_t)1 << 62) - 1;
    int slot;
    while ((slot = mm_arrive(&shared, own, PAGES_NBYTES, &position)) < 0)
        adopt(own);
    atomic_store(&shared.slots[slot].group, 1);
    atomic_store_explicit(&shared.slots[slot].position, UINT64_MAX, memory_order_release);
    return slot;
}

static void *work(void *argument)
{
    uint64_t own = *(uint64_t *)argument, seed = own;
    struct mm_group *group = &annex.groups[0];
    int slot = hired(own);
    while (atomic_load(&finished) < messages) {
        uint64_t word, start = mm_group_at(group, &word), count = mm_group_count(&shared, group, 1, word), first = 0;
        struct mm_place end = {.position = start};
        uint32_t taken = 0;
        uint64_t written = atomic_load_explicit(&shared.written, memory_order_acquire);
        struct mm_header header;
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        if (start == written) {
            adopt(own);
            sched_yield();
            continue;
        }
        /* one frame, or two; what lies there may be another lap's if somebody was faster */
        for (int most = 1 + (int)(seed >> 60) % 2; most > 0 && mm_frame_at(&stream, end.position, written, &header); most--) {
            first = end.position == start ? header.sequence : first;
            end.position += header.frame_nbytes;
            end.sequence = header.sequence + (header.kind == MM_PLAIN);
            taken += header.kind == MM_PLAIN;
        }
        if (end.position == start)
            continue;
        if (!(seed >> 35 & 15)) { /* past it in a slot's name, as over what was overwritten; another finishes it */
            int other = hired(own);
            /* before the cursor leaves it, as one that takes does: these frames are read below */
            atomic_store_explicit(&shared.slots[other].position, start, memory_order_release);
            if (mm_group_skip(&shared, group, other, word, end)) {
                if (count != first)
                    fail("a group that skips has not counted", first);
                finish(-1, start, end.position);
            }
            mm_advance(&shared, other, UINT64_MAX);
            continue;
        }
        if (!mm_group_take(&shared, group, slot, word, end, taken))
            continue;
        if (count != first)
            fail("a group has not counted", first);
        if (seed >> 40 & 7) {
            finish(slot, start, end.position);
        } else { /* dies with it in hand */
            atomic_store(&shared.slots[slot].owner, DEAD);
            slot = hired(own);
        }
    }
    mm_advance(&shared, slot, UINT64_MAX);
    return NULL;
}

/* Group 2's cursor names a slot that group 1's worker has now, and intends something with. */
static void strangers(void)
{
    uint64_t position = 0, start, end;
    int slot = mm_arrive(&shared, 7, PAGES_NBYTES, &position), other = mm_arrive(&shared, 8, PAGES_NBYTES, &position);
    struct mm_group *two = &annex.groups[1];
    atomic_store(&shared.slots[slot].group, 1);
    atomic_store(&shared.slots[other].group, 2);
    atomic_store(&two->cursor, (uint64_t)4 << 8 | ((uint64_t)slot + 1));
    atomic_store(&shared.slots[slot].held_end, 4 * MM_LINE);
    atomic_store(&shared.slots[slot].held, 3 * MM_LINE | 1); /* INTENT */
    uint64_t word, from = mm_group_at(two, &word);
    if (!mm_group_take(&shared, two, other, word, (struct mm_place){.position = from + MM_LINE, .sequence = 5}, 1)
        || mm_group_count(&shared, two, 2, (from + MM_LINE) >> 6 << 8 | ((uint64_t)other + 1)) != 5
        || (atomic_load(&shared.slots[slot].held) & 63) != 1
        || !mm_group_held(&shared, two, other, &start, &end) || start != from)
        fail("a stranger's intention was settled", 0);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    messages = strtoull(argv[1], NULL, 10);
    times = calloc(messages, 1);
    pthread_t threads[RECEIVERS + WORKERS + 1];
    int slots[RECEIVERS];
    uint64_t owners[WORKERS];
    atomic_store(&annex.groups[0].key, 1);
    int founder = hired(1);
    if (times == NULL || !mm_group_skip(&shared, &annex.groups[0], founder, 0, (struct mm_place){0}))
        return 3;
    mm_advance(&shared, founder, UINT64_MAX);
    for (int i = 0; i < RECEIVERS; i++) {
        uint64_t position = 0;
        slots[i] = mm_arrive(&shared, 100, PAGES_NBYTES, &position);
        pthread_create(&threads[i], NULL, receive_all, &slots[i]);
    }
    for (int i = 0; i < WORKERS; i++) {
        owners[i] = 200 + (uint64_t)i;
        pthread_create(&threads[RECEIVERS + i], NULL, work, &owners[i]);
    }
    pthread_create(&threads[RECEIVERS + WORKERS], NULL, send_all, NULL);
    for (int i = 0; i <= RECEIVERS + WORKERS; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t number = 0; number < messages; number++)
        if (times[number] != 1)
            fail("not finished once", number);
    strangers();
    return 0;
}
