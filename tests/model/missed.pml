/* What a group that cannot keep up is told: every message is taken by one, or told as missed by exactly one who passes over it.
 *
 * Sequentially consistent; hammer_channel.c has the orderings. Overwriting, so nobody waits and nothing is pinned: channel.pml
 * has that. Here is the count of groups.c: the number of the message at the cursor, which nothing but a slot still knows once
 * the sender has overwritten it. Messages are one unit long, and a message's number is NUMBERED more than its position, so that
 * a number says at any time whether it is the right one. The first worker may be killed at any step; a third comes late, into
 * whatever slot is free, with -DDROP to a group that was dropped, which it begins again wherever it likes.
 *
 *     -DTOTAL=1..4    messages                     -DLATE         the third worker comes
 *     -DMOST=1..2     taken at a time              -DDROP         the group is dropped once its workers are dead or gone
 *     -DKILL          the first may be killed
 * Broken on purpose:
 *     -DNO_COUNT      the cursor moves on without counting for the slot it names
 *     -DLATE_COUNT    a slot says anew where it goes before it has counted
 *     -DNUMBER_FIRST  a slot says the number before the end
 *     -DNO_LOOK       counts without looking at the cursor once more
 *     -DHELD_FIRST    is done with a message before it says how many are left
 *     -DVACATE        frees a dead worker's slot without counting for it
 *     -DEND_0         a free slot says that it goes to the first place
 *     -DFROM_HEAD     what is left is what the first intact frame says
 */
#ifndef TOTAL
#define TOTAL 3
#endif
#ifndef MOST
#define MOST 1
#endif
#define NUMBERED 10
#define SLOTS 2
#define UNSET 255
#define NOBODY 255
#define FREE 254
#define FINISHED 253
#define TOLD 252

mtype = { INTENT, TAKEN, DONE };

byte written, oldest;
byte cursor = UNSET, last = NOBODY;     /* one word */
byte count = NUMBERED, back;            /* one word */
mtype held[SLOTS] = DONE;               /* with held_start one word */
byte held_start[SLOTS], held_end[SLOTS], sequence[SLOTS], left[SLOTS];
byte owner[SLOTS] = FREE;
bool dead, gone[2], kill;
byte fate[TOTAL] = NOBODY;              /* in nobody's memory: who has it, or what became of it */

#define IS_DEAD(who) (who == 0 && dead)

/* count() of groups.c */
inline counts(slot, at)
{
    do
    :: atomic { seen = count; seen_back = back };
        end = held_end[slot];
        number = sequence[slot];
        if
        :: end != at || held_end[slot] != end -> break
        :: else
        fi;
#ifndef NO_LOOK
        if
        :: cursor != at || last != slot -> break
        :: else
        fi;
#endif
        if
        :: number == seen -> break
        :: else
        fi;
        atomic {
            if
            :: count == seen && back == seen_back ->
                back = (number < seen -> (back + 1) % 2 : back); count = number; break
            :: else
            fi
        }
    od;
    skip;
    d_step { end = 0; number = 0; seen = 0; seen_back = 0 } /* nothing of it matters any more */
}

inline settle(at, slot)
{
    if
    :: slot < SLOTS ->
#ifndef NO_COUNT
        counts(slot, at);
#endif
        atomic {
            if
            :: held[slot] == INTENT && held_start[slot] < at -> held[slot] = TAKEN
            :: else
            fi
        }
    :: else
    fi
}

inline say(slot, position)
{
#ifdef NUMBER_FIRST
    sequence[slot] = position + NUMBERED;
    held_end[slot] = position
#else
    held_end[slot] = position;
    sequence[slot] = position + NUMBERED
#endif
}

/* Move the cursor in the slot's name; what is passed over was told, or is ours. */
inline move(at, slot, from, to, what)
{
    d_step {
        ok = (cursor == at && last == from);
        if
        :: ok ->
            cursor = to; last = slot; i = at;
            do
            :: i < to -> assert(fate[i] == NOBODY); fate[i] = what; i++
            :: else -> break
            od
        :: else
        fi;
        i = 0
    }
}

inline arrive(slot)
{
    atomic {
        if
        :: owner[0] == FREE -> owner[0] = me; slot = 0
        :: owner[0] != FREE && owner[1] == FREE -> owner[1] = me; slot = 1
        fi
    }
}

inline vacate(slot)
{
    d_step { held[slot] = DONE; held_start[slot] = 0 };
#ifdef END_0
    held_end[slot] = 0;
#else
    held_end[slot] = UNSET;
#endif
    sequence[slot] = 0;
    owner[slot] = FREE
}

/* What is found again was finished by one who died, or told. */
inline done(slot)
{
    position = held_start[slot];
    fate[position] = (fate[position] == TOLD -> TOLD : FINISHED)
}

/* Finish what a slot holds, one by one, by release(). */
inline work(slot)
{
    do
    :: held_start[slot] == held_end[slot] || held[slot] != TAKEN -> break
    :: else ->
#ifdef HELD_FIRST
        d_step { done(slot); held_start[slot]++; held[slot] = (held_start[slot] == held_end[slot] -> DONE : TAKEN) };
        left[slot] = (left[slot] > 0 -> left[slot] - 1 : 0)
#else
        d_step { done(slot); position = 0; left[slot] = (left[slot] > 0 -> left[slot] - 1 : 0) };
        d_step { held_start[slot]++; held[slot] = (held_start[slot] == held_end[slot] -> DONE : TAKEN) }
#endif
    od
}

/* worker_adopt: those that are intact are ours, the others are told. */
inline adopt(slot)
{
#ifndef VACATE
    atomic { at = cursor; from = last };
    if
    :: from == slot -> settle(at, slot)
    :: else
    fi;
#endif
    if
    :: held[slot] == TAKEN ->
        atomic {
            owner[slot] = me;
            i = (held_start[slot] > oldest -> held_start[slot] : oldest);
            i = (i > held_end[slot] -> held_end[slot] : i);
            number = held_end[slot] - i;                /* intact */
#ifdef FROM_HEAD
            missed = 0;
#else
            missed = (left[slot] > number -> left[slot] - number : 0);
#endif
            position = held_start[slot];
            do
            :: position < i ->
                if
                :: fate[position] == 0 -> fate[position] = TOLD; assert(missed > 0); missed--
                :: else
                fi;
                position++
            :: else -> break
            od;
            assert(missed == 0);
            i = 0; position = 0; number = 0
        };
        work(slot)
    :: else
    fi;
    vacate(slot);
    d_step { at = 0; from = 0; missed = 0 }
}

inline found()
{
    /* wherever it likes; numbers below were somebody's before the group was dropped */
    atomic {
        if
        :: to = oldest
        :: to = written
        fi
    };
    say(mine, to);
    d_step {
        ok = (cursor == UNSET);
        if
        :: ok ->
            cursor = to; last = mine; i = to;
            do
            :: i < TOTAL -> fate[i] = NOBODY; i++
            :: else -> break
            od
        :: else
        fi;
        i = 0
    };
    if
    :: ok -> counts(mine, to)
    :: else
    fi
}

proctype Worker(byte me)
{
    byte mine, at, from, to, end, number, seen, seen_back, position, missed, i;
    bool ok;
    {
#ifdef LATE
        if
        :: me == 2 -> gone[1]
        :: else
        fi;
#endif
        arrive(mine);
        do
        :: me == 1 && dead && owner[0] == 0 -> adopt(0)
        :: me == 1 && dead && owner[1] == 0 -> adopt(1)
        :: atomic { at = cursor; from = last };
            if
            :: at == UNSET -> found()
            :: at != UNSET && at < oldest ->            /* get_past: receiver_oldest, then mm_group_count */
                to = oldest;
                settle(at, from);
                missed = count;         /* nothing is settled twice */
                say(mine, to);
                move(at, mine, from, to, TOLD);
                if
                :: ok ->
                    assert(missed == at + NUMBERED);    /* to - missed is what is told */
                    counts(mine, to)
                :: else
                fi
            :: at != UNSET && at >= oldest && at < written ->
                to = at + 1;
#if MOST > 1
                if
                :: at + 1 < written -> to = at + 2
                :: true
                fi;
#endif
                settle(at, from);
                say(mine, to);
                left[mine] = to - at;
                d_step { held[mine] = INTENT; held_start[mine] = at };
                move(at, mine, from, to, me);
                if
                :: ok -> held[mine] = TAKEN;
#ifndef LATE_COUNT
                    counts(mine, to);
#endif
                    work(mine)
                :: else -> d_step { held[mine] = DONE; held_start[mine] = 0 }
                fi
            :: at == written && written == TOTAL -> break
            :: at == written && written < TOTAL ->      /* somebody looks round for the dead */
                if
                :: true -> break                        /* and goes */
                :: true
                fi
            fi;
            at = 0; from = 0; to = 0; end = 0; number = 0; seen = 0; seen_back = 0; position = 0; missed = 0
        od;
        vacate(mine);
        if
        :: me < 2 -> gone[me] = true
        :: else
        fi
    } unless { kill && me == 0; dead = true }
}

proctype Sender()
{
    do
    :: written < TOTAL -> written++
    :: oldest < written -> oldest++
    :: written == TOTAL -> break
    od
}

#ifdef DROP
/* mm_group_drop, when nobody lives */
proctype Dropper()
{
    byte at, from, end, number, seen, seen_back;
    gone[1] && (dead || gone[0]);
    atomic { at = cursor; from = last };
    if
    :: at != UNSET ->
        settle(at, from);
        d_step {
            if
            :: cursor == at && last == from -> cursor = UNSET; last = NOBODY
            :: else
            fi
        }
    :: else
    fi
}
#endif

active proctype Killer()
{
#ifdef KILL
    kill = true
#else
    skip
#endif
}

init {
    atomic {
        run Sender();
        run Worker(0);
        run Worker(1);
#ifdef LATE
        run Worker(2);
#endif
#ifdef DROP
        run Dropper();
#endif
    }
}
