/* Threads use one heap while another collects it: hammer_heap STEPS [slide]
 *
 * As the library does it: every way into the heap is one step under one lock, and only what a view shows is read outside of it.
 * Each mutator makes objects, links, loads and drops them, owns values, asks weak references, and pins objects to read them
 * without the lock; the collector makes the smallest steps, and the heap is verified now and then. All words of an object but its
 * references follow from the first. With `slide` blocks are compacted in place half of the time. Exit status 0 if all held. With UNLOCKED the collector takes no lock, which a sanitizer is to see. */
#define _GNU_SOURCE
#include "heap/heap.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

enum { PATIENCE_S = 15 };              /* of processor time, where a step takes microseconds and to verify takes milliseconds */
enum { MUTATORS = 3, SLOTS = 2500, VIEWS = 2, MOST_WORDS = 700, SPACE = 1 << 28, LIMIT = 24 << 20, LARGE_WORDS = 12000 };

static struct mm_heap heap;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t steps;
static bool sliding;
static _Atomic unsigned working = MUTATORS;
static _Atomic uint64_t ended;         /* steps of all threads; relaxed, or it would order what must be ordered by the lock */

struct view {
    uint32_t root;                     /* 0: none */
    bool owned;                        /* nobody else has it any more */
    const uint64_t *data;
    uint64_t count;
};

struct mutator {
    uint64_t luck, number;
    uint32_t held[SLOTS];              /* roots of objects, by holders of this thread */
    struct mm_owner owner;             /* values, by the numbers of slots */
    uint32_t weak[SLOTS];
    struct view views[VIEWS];
    uint64_t reads;
};

static void fail(const char *why, uint64_t what)
{
    fprintf(stderr, "%s: %llx\n", why, (unsigned long long)what);
    exit(1);
}

/* A list that leads back to itself is damage too, and who follows it keeps the lock. */
static void look_whether_it_moves(int signal)
{
    static const char WHY[] = "a step does not end\n";
    static uint64_t before = UINT64_MAX;
    uint64_t now = atomic_load_explicit(&ended, memory_order_relaxed);
    if (now == before)
        _exit(write(STDERR_FILENO, WHY, sizeof WHY - 1) < 0 ? signal : 1);
    before = now;
}

static uint64_t random_below(struct mutator *self, uint64_t limit)
{
    self->luck ^= self->luck << 13;
    self->luck ^= self->luck >> 7;
    self->luck ^= self->luck << 17;
    return (self->luck >> 20) % limit;
}

static void check(const uint64_t *words, uint64_t count)
{
    for (uint64_t at = 1; at < count; at++)
        if (words[at] != words[0] * 31 + at)
            fail("bytes of another object", words[0]);
}

static uint64_t *words_of(uint64_t offset, uint64_t *count)
{
    struct mm_object *header = mm_header_at(&heap, offset);
    *count = mm_data_nbytes(header) / 8;
    return (uint64_t *)(void *)mm_data(header);
}

/* --- each of these under the lock ------------------------------------------------------------------------- */

static void verify(void)
{
    struct mm_census census;
    uint64_t where;
    const char *wrong = mm_verify(&heap, &census, &where);
    if (wrong != NULL)
        fail(wrong, where);
}

static uint64_t make(struct mutator *self, bool owned)
{
    uint64_t sort = random_below(self, 400), words = sort == 0 ? LARGE_WORDS : 1 + random_below(self, sort < 40 ? MOST_WORDS : 12);
    uint32_t nrefs = owned ? 0 : (uint32_t)random_below(self, 4);
    struct mm_shape shape = {.nbytes = 8 * words, .word = nrefs};
    if (!owned && sort % 3 == 1 && words < 12)
        shape.word = MM_RECORD | 7u << 20 | (uint32_t)words << 10 | nrefs;
    int error;
    mm_pay(&heap, shape.nbytes);
    uint64_t offset = mm_allocate(&heap, owned, &shape, &error);
    if (offset == 0) {
        mm_collect(&heap, MM_BY_FULL);
        offset = mm_allocate(&heap, owned, &shape, &error);
    }
    if (offset == 0)
        return 0;
    uint64_t count, *data = words_of(offset, &count);
    data[0] = ++self->number;
    for (uint64_t at = 1; at < count; at++)
        data[at] = data[0] * 31 + at;
    return offset;
}

static void replace(uint32_t *slot, uint32_t root)
{
    if (*slot != 0)
        mm_drop(&heap, *slot);
    *slot = root;
}

static void put(struct mutator *self)
{
    uint64_t offset = make(self, false);
    replace(&self->held[random_below(self, SLOTS)], offset != 0 ? mm_hold(&heap, offset) : 0);
}

static struct mm_key key_of(uint64_t slot)
{
    struct mm_key key = {.kind = MM_KEY_INT, .length = sizeof slot};
    memcpy(key.text, &slot, sizeof slot);
    return key;
}

static uint32_t hash_of(uint64_t slot)
{
    return (uint32_t)(slot * 0x9e3779b1);
}

/* The entry of a slot, or 0. */
static uint32_t entry_of(struct mutator *self, uint64_t slot)
{
    struct mm_key key = key_of(slot);
    uint32_t entry = self->owner.count != 0 ? mm_first_of(&self->owner, hash_of(slot)) : 0;
    while (entry != 0 && memcmp(mm_entries(&heap.index)[entry].text, key.text, sizeof slot) != 0)
        entry = mm_entries(&heap.index)[entry].chain;
    return entry;
}

static void disown(struct mutator *self, uint32_t entry)
{
    uint64_t nbytes = mm_object_nbytes(mm_header_at(&heap, mm_entries(&heap.index)[entry].offset));
    mm_entry_remove(&heap, &self->owner, entry);
    mm_give_way(&heap, nbytes);
}

static void own(struct mutator *self)
{
    uint64_t slot = random_below(self, SLOTS);
    uint32_t entry = entry_of(self, slot);
    if (entry != 0)
        disown(self, entry);
    if (mm_entry_reserve(&heap, &self->owner) != 0)
        return;
    uint64_t offset = make(self, true);
    struct mm_key key = key_of(slot);
    if (offset != 0)
        mm_entry_add(&heap, &self->owner, &key, hash_of(slot), offset);
}

/* Let one object lead to another, and go where one leads. */
static void link_and_follow(struct mutator *self)
{
    uint32_t from = self->held[random_below(self, SLOTS)], to = self->held[random_below(self, SLOTS)];
    if (from == 0)
        return;
    struct mm_object *header = mm_header_at(&heap, heap.roots[from].offset);
    if (mm_nrefs(header) == 0)
        return;
    _Atomic uint64_t *slot = &mm_slots(header)[random_below(self, mm_nrefs(header))];
    uint64_t found = mm_load(&heap, slot);
    if (found != 0) {
        uint64_t count, *data = words_of(found, &count);
        check(data, count);
        replace(&self->held[random_below(self, SLOTS)], mm_hold(&heap, found));
    }
    /* what was taken out may have been the last to hold these */
    if (random_below(self, 2) && to != 0 && heap.roots[to].kind == MM_ROOT && heap.roots[from].kind == MM_ROOT)
        mm_store(&heap, &mm_slots(mm_header_at(&heap, heap.roots[from].offset))[0], heap.roots[to].offset);
}

static void look_weakly(struct mutator *self)
{
    uint32_t *slot = &self->weak[random_below(self, SLOTS)], root = self->held[random_below(self, SLOTS)];
    uint64_t found = *slot != 0 ? mm_weak_get(&heap, *slot) : 0;
    if (found != 0) {
        uint64_t count, *data = words_of(found, &count);
        check(data, count);
    }
    if (*slot != 0)
        mm_weak_drop(&heap, *slot);
    *slot = root != 0 ? mm_weak_new(&heap, heap.roots[root].offset) : 0;
}

/* --- and what happens outside ------------------------------------------------------------------------------- */

/* Pin an object, and let its container go now and then: the view goes on. */
static void show(struct mutator *self, struct view *view)
{
    uint64_t slot = random_below(self, SLOTS);
    view->owned = random_below(self, 2) != 0;
    uint32_t entry = view->owned ? entry_of(self, slot) : 0, root = view->owned ? 0 : self->held[slot];
    if (entry != 0)
        root = mm_show(&heap, entry);
    if (root == 0 || mm_is_record(mm_header_at(&heap, heap.roots[root].offset)))
        return;
    if (!view->owned)
        heap.roots[root].holders++;    /* the view's own Ref */
    mm_pin(&heap, root);
    view->root = root;
    view->data = words_of(heap.roots[root].offset, &view->count);
    if (view->owned && random_below(self, 2))
        disown(self, entry_of(self, slot));
}

static void hide(struct view *view)
{
    mm_unpin(&heap, view->root);
    if (view->owned)
        mm_show_no_more(&heap, view->root);
    else
        mm_drop(&heap, view->root);
    view->root = 0;
}

/* A view is taken and given up under the lock, and read without it. */
static void look(struct mutator *self, bool last)
{
    struct view *view = &self->views[random_below(self, VIEWS)];
    bool shown = view->root != 0;
    if (shown) {
        check(view->data, view->count);
        self->reads++;
    }
    pthread_mutex_lock(&lock);
    if (!shown && !last)
        show(self, view);
    else if (shown && (last || random_below(self, 4) == 0))
        hide(view);
    pthread_mutex_unlock(&lock);
}

static void *mutate(void *argument)
{
    struct mutator *self = argument;
    void (*const acts[])(struct mutator *) = {put, put, own, link_and_follow, link_and_follow, link_and_follow, look_weakly};
    for (uint64_t step = 0; step < steps; step++, atomic_fetch_add_explicit(&ended, 1, memory_order_relaxed)) {
        uint64_t act = random_below(self, sizeof acts / sizeof *acts + 1);
        if (act == sizeof acts / sizeof *acts) {
            look(self, false);
            continue;
        }
        pthread_mutex_lock(&lock);
        acts[act](self);
        if (step % 4096 == 0)
            verify();
        pthread_mutex_unlock(&lock);
        if (step % 8 == 0)
            sched_yield();             /* or nobody else gets the lock */
    }
    for (int again = 0; again < 100 * VIEWS; again++)
        look(self, true);
    working--;
    return argument;
}

static void *collect(void *unused)
{
    for (uint64_t step = 0; working != 0; step++, atomic_fetch_add_explicit(&ended, 1, memory_order_relaxed)) {
#ifndef UNLOCKED
        pthread_mutex_lock(&lock);
#endif
        if (heap.phase == MM_IDLE)
            mm_begin(&heap);
        heap.pacing.in_place = sliding && step / 8 % 2 == 0;
        mm_step(&heap, MM_BY_BACKGROUND, step % 3 ? 0 : 10000);
        if (step % 512 == 0)
            verify();
#ifndef UNLOCKED
        pthread_mutex_unlock(&lock);
#endif
        sched_yield();
    }
    return unused;
}

int main(int count, char **words)
{
    steps = count > 1 ? strtoull(words[1], NULL, 10) : 100000;
    sliding = count > 2 && strcmp(words[2], "slide") == 0;
    int fd = memfd_create("hammer", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, SPACE) != 0)
        fail("no memory object", 0);
    unsigned char *base = mmap(NULL, SPACE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    heap = (struct mm_heap){
        .base = base, .fd = fd, .shift = (unsigned)__builtin_ctz(SPACE), .page_shift = (unsigned)__builtin_ctzl((unsigned long)getpagesize()),
        .limit = LIMIT, .allowed = UINT64_MAX, .target = 1050, .count = SPACE >> MM_BLOCK_SHIFT,
        .offsets = SPACE - 1, .views = {base}, .view_count = 1,
    };
    heap.pacing.bell = -1;
    heap.pacing.mode = MM_BACKGROUND;
    if (base == MAP_FAILED || mm_heap_open(&heap) != 0)
        fail("no heap", 0);
    pthread_t threads[MUTATORS + 1];
    static struct mutator mutators[MUTATORS];
    for (int which = 0; which < MUTATORS; which++)
        if (mm_owner_open(&heap, &mutators[which].owner) != 0)
            fail("no container", 0);
    const struct timeval patience = {.tv_sec = PATIENCE_S};
    sigaction(SIGPROF, &(struct sigaction){.sa_handler = look_whether_it_moves, .sa_flags = SA_RESTART}, NULL);
    setitimer(ITIMER_PROF, &(struct itimerval){patience, patience}, NULL);
    pthread_create(&threads[MUTATORS], NULL, collect, NULL);
    for (uint64_t which = 0; which < MUTATORS; which++) {
        mutators[which].luck = 0x9e3779b97f4a7c15 * (which + 1);
        mutators[which].number = which << 40;
        pthread_create(&threads[which], NULL, mutate, &mutators[which]);
    }
    uint64_t reads = 0;
    for (int which = 0; which <= MUTATORS; which++)
        pthread_join(threads[which], NULL);
    for (int which = 0; which < MUTATORS; which++)
        reads += mutators[which].reads;
    verify();
    const struct mm_counters *counters = &heap.counters;
    printf("%llu collections, %llu objects moved, %llu slid, %llu views\n", (unsigned long long)counters->collections,
           (unsigned long long)counters->moved, (unsigned long long)counters->slid, (unsigned long long)reads);
    if (counters->collections == 0 || counters->moved == 0 || reads == 0 || (sliding && counters->slid == 0))
        fail("nothing was collected, moved or looked at", 0);
    if (heap.exports != 0 || heap.pinned != 0)
        fail("views that nobody has", heap.exports);
    for (int which = 0; which < MUTATORS; which++) {
        while (mutators[which].owner.oldest != 0)
            mm_entry_remove(&heap, &mutators[which].owner, mutators[which].owner.oldest);
        mm_owner_close(&heap, &mutators[which].owner);
    }
    verify();
    mm_heap_close(&heap);
    return 0;
}
