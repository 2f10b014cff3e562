/* Groups of a channel: a work queue without a lock, whose workers may die at any step.
 *
 * The cursor is one word: where the next message begins, in lines, and which slot took the one before.
 * A worker that wants [start, end) says so in its own slot (INTENT), and then tries to move the cursor.
 * Whether it was the one is read off the cursor for as long as its slot stands there; whoever moves the
 * cursor on writes it into that slot first (TAKEN), so the answer is never lost. A dead worker's slot
 * with something TAKEN is taken over as a whole, by one exchange of its owner.
 *
 * A cursor of 0 is nowhere: the group has not begun, or was dropped when nobody of it was alive.
 *
 * What nobody has taken is pinned by the cursor, what somebody holds by his slot's position, which is
 * there before the cursor moves: mm_needed() looks at them in an order that misses neither. */
#include "frames.h"

enum { INTENT = 1, TAKEN = 2, DONE = 3, STATE = MM_LINE - 1, NOBODY = 255 };
_Static_assert((int)MM_SLOTS <= (int)NOBODY, "a slot's index fits the cursor");

static uint64_t at(uint64_t word)
{
    return word >> 8 << 6;
}

static uint64_t cursor_word(uint64_t position, int slot)
{
    return position >> 6 << 8 | (uint64_t)slot;
}

uint64_t mm_group_at(const struct mm_group *group, uint64_t *word)
{
    *word = atomic_load_explicit(&group->cursor, memory_order_acquire);
    return *word == 0 ? MM_UNSET : at(*word);
}

/* The slot that the cursor names has taken what it intended to: write that into it. `number`: 1 + the group's
 * index; a slot that has gone over to another group meanwhile intends something else. */
static void settle(struct mm_control *shared, uint32_t number, uint64_t word)
{
    uint64_t slot = word & 255;
    if (slot >= MM_SLOTS || atomic_load_explicit(&shared->slots[slot].group, memory_order_acquire) != number)
        return;
    _Atomic uint64_t *held = &shared->slots[slot].held;
    uint64_t seen = atomic_load_explicit(held, memory_order_acquire);
    /* one that intends more begins at the cursor or behind it */
    if ((seen & STATE) == INTENT && seen - INTENT < at(word))
        atomic_compare_exchange_strong_explicit(held, &seen, seen - INTENT + TAKEN, memory_order_acq_rel,
                                                memory_order_relaxed);
}

bool mm_group_take(struct mm_control *shared, struct mm_group *group, int index, uint64_t word, uint64_t end)
{
    struct mm_slot *slot = &shared->slots[index];
    uint64_t start = at(word);
    settle(shared, atomic_load_explicit(&slot->group, memory_order_relaxed), word);
    atomic_store_explicit(&slot->held_end, end, memory_order_relaxed);
    atomic_store_explicit(&slot->position, start, memory_order_release);
    atomic_store_explicit(&slot->held, start | INTENT, memory_order_release);
    /* acq_rel: the sender that sees the cursor moved sees the position too */
    if (atomic_compare_exchange_strong_explicit(&group->cursor, &word, cursor_word(end, index), memory_order_acq_rel,
                                                memory_order_acquire)) {
        atomic_store_explicit(&slot->held, start | TAKEN, memory_order_release);
        return true;
    }
    atomic_store_explicit(&slot->held, start | DONE, memory_order_release);
    atomic_store_explicit(&slot->position, UINT64_MAX, memory_order_release);
    return false;
}

bool mm_group_skip(struct mm_control *shared, struct mm_group *group, uint32_t number, uint64_t word, uint64_t to)
{
    settle(shared, number, word);
    return atomic_compare_exchange_strong_explicit(&group->cursor, &word,
                                                   to == MM_UNSET ? 0 : cursor_word(to, NOBODY),
                                                   memory_order_acq_rel, memory_order_acquire);
}

bool mm_group_done(struct mm_control *shared, int index, uint64_t position)
{
    struct mm_slot *slot = &shared->slots[index];
    bool all = position >= atomic_load_explicit(&slot->held_end, memory_order_relaxed);
    atomic_store_explicit(&slot->held, position | (all ? DONE : TAKEN), memory_order_release);
    /* release: what was read has been read */
    atomic_store_explicit(&slot->position, all ? UINT64_MAX : position, memory_order_release);
    return mm_is_wanted(&shared->room_wanted);
}

bool mm_group_held(struct mm_control *shared, struct mm_group *group, int index, uint64_t *start, uint64_t *end)
{
    struct mm_slot *slot = &shared->slots[index];
    uint64_t word = atomic_load_explicit(&group->cursor, memory_order_acquire);
    if ((word & 255) == (uint64_t)index)
        settle(shared, atomic_load_explicit(&slot->group, memory_order_relaxed), word);
    /* after the cursor: who moved it on has written TAKEN before */
    uint64_t held = atomic_load_explicit(&slot->held, memory_order_acquire);
    *start = held & ~(uint64_t)STATE;
    *end = atomic_load_explicit(&slot->held_end, memory_order_relaxed);
    return (held & STATE) == TAKEN && *start < *end;
}

uint64_t mm_needed(const struct mm_stream *stream)
{
    /* a slot that founds a group lets go of its position once the cursor has it: slots, then cursors */
    uint64_t lowest = mm_slowest(stream->shared);
    bool grouped = false;
    for (int i = 0; i < MM_GROUPS; i++) {
        const struct mm_group *group = &stream->annex->groups[i];
        if (atomic_load_explicit(&group->key, memory_order_relaxed) == 0)
            continue;
        uint64_t word, position = mm_group_at(group, &word);
        grouped = true;
        if (position < lowest)
            lowest = position;
    }
    if (!grouped)
        return lowest;
    /* a worker's position is there before it moves the cursor: cursors, then slots */
    uint64_t slowest = mm_slowest(stream->shared);
    return slowest < lowest ? slowest : lowest;
}
