/* One writer and two readers hammer the cursors through one address: hammer lossless|overwriting ITEMS
 *
 * Items are eight words that all hold the item's index. Lossless: every reader sees every item. Overwriting: whatever was
 * still intact after it was read is whole, and what was missed is counted. Exit status 0 if all that held.
 * Under ThreadSanitizer only the lossless way: reading what may be overwritten, and asking afterwards, is a race by design. */
#include "cursors.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY = 64, WORDS = 8, READERS = 2 };

static _Alignas(64) struct mm_control shared;
static uint64_t data[CAPACITY][WORDS];
static uint64_t items;
static bool lossless;

static void *write_all(void *unused)
{
    for (uint64_t next = 0; next < items; next++) {
        if (lossless) {
            mm_intend(&shared, next + 1);
            for (uint64_t slowest; (slowest = mm_slowest(&shared)) != UINT64_MAX && next + 1 > slowest + CAPACITY;)
                sched_yield();
        }
        mm_claim(&shared, next + 1);
        for (int word = 0; word < WORDS; word++)
            data[next % CAPACITY][word] = next;
        mm_publish(&shared, next + 1);
    }
    return unused;
}

static void *read_all(void *argument)
{
    int slot = *(int *)argument;
    uint64_t next = 0, seen = 0, missed = 0, bad = 0;
    while (next < items) {
        uint64_t written = atomic_load_explicit(&shared.written, memory_order_acquire);
        if (next == written) {
            sched_yield();
            continue;
        }
        uint64_t copy[WORDS];
        memcpy(copy, data[next % CAPACITY], sizeof copy);
        uint64_t oldest = mm_oldest(&shared, CAPACITY);
        if (!lossless && next < oldest) {
            missed += oldest - next;
            next = oldest;
            continue;
        }
        for (int word = 0; word < WORDS; word++)
            bad += copy[word] != next;
        seen++;
        next++;
        if (lossless)
            mm_advance(&shared, slot, next);
    }
    if (bad != 0 || seen + missed != items || (lossless && missed != 0)) {
        fprintf(stderr, "%llu torn, %llu seen, %llu missed\n", (unsigned long long)bad, (unsigned long long)seen,
                (unsigned long long)missed);
        exit(1);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    lossless = strcmp(argv[1], "lossless") == 0;
    items = strtoull(argv[2], NULL, 10);
    pthread_t threads[READERS + 1];
    int slots[READERS] = {0};
    for (int i = 0; i < READERS; i++) {
        uint64_t position = 0;
        if (lossless && (slots[i] = mm_arrive(&shared, 1, CAPACITY, &position)) < 0)
            return 3;
        pthread_create(&threads[i], NULL, read_all, &slots[i]);
    }
    pthread_create(&threads[READERS], NULL, write_all, NULL);
    for (int i = 0; i <= READERS; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
