/* A group of a channel under any order of its steps: libFuzzer chooses who acts, on what it saw when, and who dies where.
 *
 * Each message must belong to exactly one worker or to nobody, also when one dies between two of the steps inside
 * mm_group_take(), which are done here one at a time for that. Messages are a line long. */
#include "frames.h"

#include <stdlib.h>
#include <string.h>

enum { WORKERS = 6, MESSAGES = 400, NUMBERED = 7, NOBODYS = -1, FINISHED = -2, DONE = 3, INTENT = 1, STATE = MM_LINE - 1 };

static struct mm_control *control;
static struct mm_annex *annex;
static int holder[MESSAGES];       /* of each message: a slot, NOBODYS or FINISHED */
static uint64_t seen[WORKERS];     /* the cursor's word when a worker last looked */
static bool dead[WORKERS];

static void check(bool right)
{
    if (!right)
        abort();
}

static uint64_t line(uint64_t position)
{
    return position / MM_LINE;
}

/* What the words say each slot holds is what the model says. */
static void compare(void)
{
    struct mm_group *group = &annex->groups[0];
    for (int slot = 0; slot < WORKERS; slot++) {
        uint64_t start, end;
        bool holds = mm_group_held(control, group, slot, &start, &end);
        for (uint64_t i = 0; i < MESSAGES; i++)
            check((holder[i] == slot) == (holds && i >= line(start) && i < line(end)));
        if (holds) /* the sender waits for it */
            check(atomic_load(&control->slots[slot].position) <= start);
    }
    uint64_t word, at = mm_group_at(group, &word);
    check(mm_group_count(control, group, 1, word) == NUMBERED + line(at));
}

static void won(int slot, uint64_t from, uint64_t to)
{
    for (uint64_t i = line(from); i < line(to); i++) {
        check(holder[i] == NOBODYS);
        holder[i] = slot;
    }
}

static struct mm_place at_line(uint64_t number)
{
    return (struct mm_place){.position = number * MM_LINE, .sequence = NUMBERED + number};
}

static bool is_idle(int slot)
{
    for (int i = 0; i < MESSAGES; i++)
        if (holder[i] == slot)
            return false;
    return !dead[slot];
}

/* mm_group_take(), to die in after `steps` of what it does. */
static void die_taking(int slot, uint64_t word, uint64_t start, uint64_t end, int steps)
{
    struct mm_group *group = &annex->groups[0];
    struct mm_slot *own = &control->slots[slot];
    dead[slot] = true;
    mm_group_count(control, group, 1, word); /* settles it */
    if (steps > 0)
        atomic_store(&own->held_end, end);
    if (steps > 1)
        atomic_store(&own->sequence, NUMBERED + line(end));
    if (steps > 2)
        atomic_store(&own->position, start);
    if (steps > 3)
        atomic_store(&own->held, start | INTENT);
    if (steps > 4 && atomic_compare_exchange_strong(&group->cursor, &word, end >> 6 << 8 | ((uint64_t)slot + 1)))
        won(slot, start, end);
}

static void act(int slot, int what, uint64_t much)
{
    struct mm_group *group = &annex->groups[0];
    uint64_t word, at = mm_group_at(group, &word), start, end;
    switch (what) {
    case 0:
        seen[slot] = word;
        break;
    case 1: case 2: case 3: {
        uint64_t from = seen[slot] >> 8 << 6, to = from + (1 + much % 3) * MM_LINE;
        if (!is_idle(slot) || line(to) > MESSAGES || seen[slot] == 0)
            break;
        if (what == 3) {
            die_taking(slot, seen[slot], from, to, (int)(much / 3 % 6));
            break;
        }
        bool taken = mm_group_take(control, group, slot, seen[slot], at_line(line(to)), (uint32_t)line(to - from));
        check(!taken || seen[slot] == word);
        if (taken)
            won(slot, from, to);
        seen[slot] = 0; /* a worker looks anew before it takes anew */
        break;
    }
    case 4:
        if (!dead[slot] && mm_group_held(control, group, slot, &start, &end)) {
            uint64_t upto = start + (1 + much % 3) * MM_LINE;
            upto = upto < end ? upto : end;
            mm_group_done(control, slot, upto, (uint32_t)line(end - upto));
            for (uint64_t i = line(start); i < line(upto); i++)
                holder[i] = FINISHED;
        }
        break;
    case 5:
        if (!is_idle(slot))
            break;
        seen[slot] = 0; /* after this too */
        if (mm_group_skip(control, group, slot, word, at_line(line(at) + much % 2)))
            for (uint64_t i = line(at); i < line(at) + much % 2 && i < MESSAGES; i++)
                holder[i] = FINISHED;
        break;
    default:
        dead[slot] = true;
    }
}

/* Another takes over what a dead worker's slot holds, by its owner's word, and finishes it. */
static void bury(int slot)
{
    uint64_t start, end;
    if (!dead[slot])
        return;
    if (mm_group_held(control, &annex->groups[0], slot, &start, &end)) {
        mm_group_done(control, slot, end, 0);
        for (uint64_t i = line(start); i < line(end); i++)
            holder[i] = FINISHED;
    }
    /* the slot's next holder begins with nothing, once the cursor does not name it */
    uint64_t word;
    mm_group_at(&annex->groups[0], &word);
    if ((word & 255) == (uint64_t)slot + 1)
        return;
    mm_vacate(&control->slots[slot]);
    atomic_store(&control->slots[slot].group, 1);
    atomic_store(&control->slots[slot].held, DONE);
    dead[slot] = false;
    seen[slot] = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (control == NULL) {
        control = aligned_alloc(MM_LINE, MM_CONTROL);
        annex = aligned_alloc(MM_LINE, MM_ANNEX);
        check(control != NULL && annex != NULL);
    }
    memset(control, 0, MM_CONTROL);
    memset(annex, 0, MM_ANNEX);
    memset(dead, 0, sizeof dead);
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < MESSAGES; i++)
        holder[i] = i == 0 ? FINISHED : NOBODYS;
    atomic_store(&annex->groups[0].key, 1);
    for (int i = 0; i < WORKERS; i++) {
        atomic_store(&control->slots[i].group, 1);
        atomic_store(&control->slots[i].held, DONE);
    }
    check(mm_group_skip(control, &annex->groups[0], 0, 0, at_line(1))); /* it begins */
    for (size_t i = 0; i + 1 < count && i < 2000; i += 2) {
        int slot = bytes[i] % WORKERS, what = bytes[i] / WORKERS % 9;
        if (what == 8)
            bury(slot);
        else
            act(slot, what, bytes[i + 1]);
        compare();
    }
    return 0;
}
