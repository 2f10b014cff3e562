#include "cursors.h"

static uint64_t load(const _Atomic uint64_t *word, memory_order order)
{
    return atomic_load_explicit(word, order);
}

void mm_claim(struct mm_control *shared, uint64_t upto)
{
    /* a writer that died may have claimed more than it wrote: that stays lost */
    if (upto > load(&shared->claimed, memory_order_relaxed))
        atomic_store_explicit(&shared->claimed, upto, memory_order_relaxed);
    /* no byte of the items may be stored before the claim */
    atomic_thread_fence(memory_order_release);
}

bool mm_is_wanted(_Atomic uint32_t *flag)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t word = atomic_load_explicit(flag, memory_order_relaxed);
    return (word & 1) != 0
           && atomic_compare_exchange_strong_explicit(flag, &word, word + 1, memory_order_relaxed,
                                                      memory_order_relaxed);
}

bool mm_publish(struct mm_control *shared, uint64_t upto)
{
    atomic_store_explicit(&shared->written, upto, memory_order_release);
    return mm_is_wanted(&shared->data_wanted);
}

void mm_intend(struct mm_control *shared, uint64_t upto)
{
    atomic_store_explicit(&shared->intended, upto, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst); /* against mm_arrive */
}

uint64_t mm_slowest(const struct mm_control *shared)
{
    uint64_t slowest = UINT64_MAX;
    for (int i = 0; i < MM_SLOTS; i++) {
        const struct mm_slot *slot = &shared->slots[i];
        if (load(&slot->owner, memory_order_acquire) == 0)
            continue;
        /* acquire: the reader has done with what lies before */
        uint64_t position = load(&slot->position, memory_order_acquire);
        if (position < slowest)
            slowest = position;
    }
    return slowest;
}

uint64_t mm_oldest(struct mm_control *shared, uint64_t capacity)
{
    /* no byte of the items may be loaded after the claim is looked at */
    atomic_thread_fence(memory_order_acquire);
    uint64_t claimed = load(&shared->claimed, memory_order_relaxed);
    return claimed > capacity ? claimed - capacity : 0;
}

int mm_arrive(struct mm_control *shared, uint64_t owner, uint64_t capacity, uint64_t *position)
{
    for (int i = 0; i < MM_SLOTS; i++) {
        struct mm_slot *slot = &shared->slots[i];
        if (load(&slot->owner, memory_order_relaxed) != 0 || !mm_seize(&slot->owner, 0, owner))
            continue;
        /* Until the fence the writer may see whatever position the last holder left. */
        atomic_store_explicit(&slot->position, *position, memory_order_release);
        /* release: whoever sees this count sees the owner, and a writer looks at slots once a count */
        atomic_fetch_add_explicit(&shared->arrivals, 1, memory_order_release);
        atomic_thread_fence(memory_order_seq_cst); /* against mm_intend */
        uint64_t intended = load(&shared->intended, memory_order_relaxed);
        uint64_t claimed = load(&shared->claimed, memory_order_relaxed);
        uint64_t upto = intended > claimed ? intended : claimed;
        uint64_t safe = upto > capacity ? upto - capacity : 0;
        if (*position < safe) {
            *position = safe;
            atomic_store_explicit(&slot->position, safe, memory_order_release);
        }
        return i;
    }
    return -1;
}

void mm_vacate(struct mm_slot *slot)
{
    atomic_store_explicit(&slot->held, 0, memory_order_relaxed);
    /* first, and where no cursor is: what comes into `sequence` now belongs to no place any more */
    atomic_store_explicit(&slot->held_end, UINT64_MAX, memory_order_relaxed);
    atomic_store_explicit(&slot->sequence, 0, memory_order_release);
    atomic_store_explicit(&slot->missed, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->address, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->left, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->group, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->rings, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->owner, 0, memory_order_release);
}

bool mm_advance(struct mm_control *shared, int index, uint64_t position)
{
    struct mm_slot *slot = &shared->slots[index];
    if (position == UINT64_MAX)
        mm_vacate(slot);
    else
        /* release: what was read has been read */
        atomic_store_explicit(&slot->position, position, memory_order_release);
    return mm_is_wanted(&shared->room_wanted);
}

bool mm_seize(_Atomic uint64_t *owner, uint64_t expected, uint64_t wanted)
{
    return atomic_compare_exchange_strong(owner, &expected, wanted);
}

uint32_t mm_want(_Atomic uint32_t *flag)
{
    uint32_t word = atomic_fetch_or_explicit(flag, 1, memory_order_relaxed) | 1;
    atomic_thread_fence(memory_order_seq_cst);
    return word;
}
