/* Groups of a channel: a work queue without a lock, whose workers may die at any step.
 *
 * The cursor is one word: where the next message begins, in lines, and which slot took the one before.
 * A worker that wants [start, end) says so in its own slot (INTENT), and then tries to move the cursor.
 * Whether it was the one is read off the cursor for as long as its slot stands there; whoever moves the
 * cursor on writes it into that slot first (TAKEN), so the answer is never lost. A dead worker's slot
 * with something TAKEN is taken over as a whole, by one exchange of its owner.
 *
 * The slot also says which message begins where it moved the cursor to: that place's number, told from its position by
 * nothing else once the sender has overwritten it. It is written into the group's count before the cursor moves on or the
 * slot is used again, so that whoever moves the cursor over messages that are gone knows how many those are.
 * Each write of the count is a compare-and-exchange from a value seen while the cursor stood where the
 * new one belongs: late ones fail, because the count changed before the cursor did. Where a group that was dropped begins
 * again further back, the low bits change.
 *
 * A cursor of 0 is nowhere: the group has not begun, or was dropped when nobody of it was alive.
 *
 * What nobody has taken is pinned by the cursor, what somebody holds by his slot's position, which is
 * there before the cursor moves: mm_needed() looks at them in an order that misses neither. */
#include "frames.h"

enum { INTENT = 1, TAKEN = 2, DONE = 3, STATE = MM_LINE - 1, BACK = 255 };
_Static_assert((int)MM_SLOTS < 255, "a slot's index fits the cursor");

static uint64_t at(uint64_t word)
{
    return word >> 8 << 6;
}

static uint64_t cursor_word(uint64_t position, int slot)
{
    return position >> 6 << 8 | ((uint64_t)slot + 1);
}

uint64_t mm_group_at(const struct mm_group *group, uint64_t *word)
{
    *word = atomic_load_explicit(&group->cursor, memory_order_acquire);
    return *word == 0 ? MM_UNSET : at(*word);
}

/* The group's count is what the slot says that its cursor names, unless the slot intends more already: then it has
 * counted. */
static void count(struct mm_group *group, const struct mm_slot *slot, uint64_t word)
{
    for (;;) {
        uint64_t seen = atomic_load_explicit(&group->count, memory_order_acquire);
        /* the slot writes the end first: the number between two looks at the same end is that end's, or an old one
         * of a slot that has counted */
        uint64_t end = atomic_load_explicit(&slot->held_end, memory_order_acquire);
        uint64_t sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
        if (end != at(word) || atomic_load_explicit(&slot->held_end, memory_order_relaxed) != end
            || atomic_load_explicit(&group->cursor, memory_order_acquire) != word || sequence == seen >> 8)
            return;
        uint64_t back = (seen + (sequence < seen >> 8)) & BACK;
        if (atomic_compare_exchange_strong_explicit(&group->count, &seen, sequence << 8 | back, memory_order_acq_rel,
                                                    memory_order_relaxed))
            return;
    }
}

/* The slot that the cursor names has taken what it intended to: write that into it, and count. A slot that has gone
 * over to another group meanwhile intends something else. */
static void settle(struct mm_control *shared, struct mm_group *group, uint32_t number, uint64_t word)
{
    uint64_t named = word & 255;
    if (named == 0 || named > MM_SLOTS)
        return;
    struct mm_slot *slot = &shared->slots[named - 1];
    if (atomic_load_explicit(&slot->group, memory_order_acquire) != number)
        return;
    count(group, slot, word);
    uint64_t seen = atomic_load_explicit(&slot->held, memory_order_acquire);
    /* one that intends more begins at the cursor or behind it */
    if ((seen & STATE) == INTENT && seen - INTENT < at(word))
        atomic_compare_exchange_strong_explicit(&slot->held, &seen, seen - INTENT + TAKEN, memory_order_acq_rel,
                                                memory_order_relaxed);
}

uint64_t mm_group_count(struct mm_control *shared, struct mm_group *group, uint32_t number, uint64_t word)
{
    settle(shared, group, number, word);
    return mm_group_sequence(group);
}

/* Say in a slot where the cursor will be moved to in its name. Release: what the slot said before was counted. */
static void say(struct mm_slot *slot, struct mm_place end)
{
    atomic_store_explicit(&slot->held_end, end.position, memory_order_release);
    atomic_store_explicit(&slot->sequence, end.sequence, memory_order_release);
}

/* acq_rel: the sender that sees the cursor moved sees the slot's position too */
static bool move(struct mm_group *group, uint64_t word, uint64_t to)
{
    return atomic_compare_exchange_strong_explicit(&group->cursor, &word, to, memory_order_acq_rel, memory_order_acquire);
}

bool mm_group_take(struct mm_control *shared, struct mm_group *group, int index, uint64_t word, struct mm_place end,
                   uint32_t messages)
{
    struct mm_slot *slot = &shared->slots[index];
    uint64_t start = at(word), moved = cursor_word(end.position, index);
    settle(shared, group, atomic_load_explicit(&slot->group, memory_order_relaxed), word);
    say(slot, end);
    atomic_store_explicit(&slot->left, messages, memory_order_relaxed);
    atomic_store_explicit(&slot->position, start, memory_order_release);
    atomic_store_explicit(&slot->held, start | INTENT, memory_order_release);
    if (move(group, word, moved)) {
        atomic_store_explicit(&slot->held, start | TAKEN, memory_order_release);
        count(group, slot, moved);
        return true;
    }
    atomic_store_explicit(&slot->held, start | DONE, memory_order_release);
    atomic_store_explicit(&slot->position, UINT64_MAX, memory_order_release);
    return false;
}

bool mm_group_skip(struct mm_control *shared, struct mm_group *group, int index, uint64_t word, struct mm_place to)
{
    struct mm_slot *slot = &shared->slots[index];
    uint64_t moved = cursor_word(to.position, index);
    settle(shared, group, atomic_load_explicit(&slot->group, memory_order_relaxed), word);
    say(slot, to);
    if (!move(group, word, moved))
        return false;
    count(group, slot, moved);
    return true;
}

bool mm_group_drop(struct mm_control *shared, struct mm_group *group, uint32_t number, uint64_t word)
{
    settle(shared, group, number, word);
    return move(group, word, 0);
}

bool mm_group_done(struct mm_control *shared, int index, uint64_t position, uint32_t messages)
{
    struct mm_slot *slot = &shared->slots[index];
    bool all = position >= atomic_load_explicit(&slot->held_end, memory_order_relaxed);
    /* first: who dies in between has done with the message, whether or not another will find it intact */
    atomic_store_explicit(&slot->left, messages, memory_order_relaxed);
    atomic_store_explicit(&slot->held, position | (all ? DONE : TAKEN), memory_order_release);
    /* release: what was read has been read */
    atomic_store_explicit(&slot->position, all ? UINT64_MAX : position, memory_order_release);
    return mm_is_wanted(&shared->room_wanted);
}

bool mm_group_held(struct mm_control *shared, struct mm_group *group, int index, uint64_t *start, uint64_t *end)
{
    struct mm_slot *slot = &shared->slots[index];
    uint64_t word = atomic_load_explicit(&group->cursor, memory_order_acquire);
    if ((word & 255) == (uint64_t)index + 1)
        settle(shared, group, atomic_load_explicit(&slot->group, memory_order_relaxed), word);
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
