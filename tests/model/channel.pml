/* The life of a channel, for SPIN: senders one after the other, receivers, workers of groups, kill -9 at any step.
 *
 * Sequentially consistent; hammer_channel.c has the orderings. Lossless, since only that way does anybody wait. ring.pml has
 * arrivals and flags in more detail: both are the same code. Here are frames, the tally that a sender's successor reads, and
 * groups. Waits end with their slice only once somebody was killed: a deadlock, which SPIN reports, is a lost wake-up.
 *
 *     -DRECEIVERS=0..1 -DWORKERS=0..3 -DSENDERS=1..2     how many there are; the first of each may be killed:
 *     -DKILL_SENDER    -DKILL_RECEIVER   -DKILL_WORKER
 *     -DSENT           all is sent before anybody comes, and the sender is gone
 *     -DSHORT          all messages are one unit long
 *     -DLATE           receivers and workers come when they like, not before the first message
 * Broken on purpose:
 *     -DONE_TALLY      the entry that counts is rewritten            -DLATE_TALLY     `written` moves before its entry is there
 *     -DLATE_POSITION  a worker pins after it moved the cursor       -DONE_LOOK       needed: slots, then cursors, and no more
 *     -DCURSORS_FIRST  needed: cursors, then slots, and no more      -DNO_SETTLE      moves the cursor on without a word
 *     -DNO_EXCHANGE    adopts without taking over the slot           -DCLEAR_HELD     evicts a dead worker with what it had
 *     -DNO_ORPHANS     never tells that a dead worker had something  -DNO_DROP        waits for a group of the dead
 *     -DNO_LOOK        sleeps without looking once more              -DHASTY          looks at the sender last
 *     -DQUIET_DONE     is done without waking the sender             -DQUIET_LOSER    comes too late without waking the sender
 *     -DTWO_CURSORS    takes without comparing
 */
#ifndef CAPACITY
#define CAPACITY 2                      /* units; a message is a frame of one or two */
#endif
#ifndef TOTAL
#define TOTAL 3
#endif
#ifndef WAKES
#define WAKES 2                         /* how far the flags count, twice that; in memory 2^32 */
#endif
#ifndef RECEIVERS
#define RECEIVERS 0
#endif
#ifndef WORKERS
#define WORKERS 0
#endif
#ifndef SENDERS
#define SENDERS 1
#endif
#define SLOTS (RECEIVERS + WORKERS)     /* everybody's own; the workers' come first */
#define SENDER SLOTS                    /* asleep[] of the one that sends */
#define NOBODY 255
#define UNSET 254
#define FINISHED 253

mtype = { INTENT, TAKEN, DONE };

byte data[CAPACITY], size_of[CAPACITY]; /* 1 + the number of the message in each unit; in the first its length */
byte claimed, written, intended;
byte tally_end[2], tally_sequence[2];
byte data_wanted, room_wanted;          /* bit 0: somebody waits; the rest: how often it was cleared */
bool asleep[SLOTS + 1];
byte owner[SLOTS] = NOBODY, position[SLOTS];
byte writer = NOBODY;
bool sender_died[2], taken, kill_sender;
byte here;                              /* who has arrived */
#if RECEIVERS
bool receiver_died, kill_receiver;
#else
#define kill_receiver false
#endif
#if WORKERS
mtype held[WORKERS] = DONE;             /* with held_start one word */
byte held_start[WORKERS], held_end[WORKERS];
byte cursor = UNSET, last = NOBODY;     /* one word: where the next message begins, who took the last */
bool orphans;
bool worker_died, kill_worker, worker_left[3];
byte holder[TOTAL] = NOBODY;            /* in nobody's memory: who should have which message */
byte first, upto;                       /* messages that the group has to do, and has taken */
#else
#define kill_worker false
#endif

#define ANY_KILL (kill_sender || kill_receiver || kill_worker)
#define GONE (taken && (writer == NOBODY || sender_died[writer]))
#define CLEAR(word) word = (word & 1 -> (word + 1) % (2 * WAKES) : word)
#define RECEIVER 9                      /* as the holder of a slot; workers are 0, 1, 2 */
#if WORKERS && RECEIVERS
#define IS_DEAD(who) ((who == 0 && worker_died) || (who == RECEIVER && receiver_died))
#elif WORKERS
#define IS_DEAD(who) (who == 0 && worker_died)
#else
#define IS_DEAD(who) (who == RECEIVER && receiver_died)
#endif

#define IS_GONE(slot) (owner[slot] == NOBODY || IS_DEAD(owner[slot]))
#define GONE_0 IS_GONE(0)
#if SLOTS > 1
#define GONE_1 IS_GONE(1)
#else
#define GONE_1 true
#endif
#if SLOTS > 2
#undef GONE_0
#define GONE_0 (IS_GONE(0) && IS_GONE(2))
#endif

inline want(word) { atomic { word = word | 1; ticket = word } }
inline sleep_on(word, who) { asleep[who] = (word == ticket) }
inline wake_all()
{
    d_step {
        asleep[0] = false;
#if SLOTS > 1
        asleep[1] = false;
#endif
#if SLOTS > 2
        asleep[2] = false;
#endif
    }
}
inline tell_receivers()
{
    if
    :: data_wanted & 1 -> atomic { CLEAR(data_wanted) }; wake_all()
    :: else
    fi
}
inline tell_sender()
{
    if
    :: room_wanted & 1 -> atomic { CLEAR(room_wanted) }; asleep[SENDER] = false
    :: else
    fi
}

/* mm_newest: the entry whose end is `written`, the same before and after. */
inline newest(at, sequence)
{
    do
    :: at = written;
        if
        :: tally_end[0] == at -> sequence = tally_sequence[0];
            if
            :: tally_end[0] == at -> break
            :: else
            fi
        :: tally_end[1] == at -> sequence = tally_sequence[1];
            if
            :: tally_end[1] == at -> break
            :: else
            fi
        :: else
        fi
    od
}

/* --- what nobody may overwrite yet --- */

inline look_at(slot)
{
    atomic {
        if
        :: owner[slot] != NOBODY && position[slot] < lowest -> lowest = position[slot]
        :: else
        fi
    }
}
inline look_at_slots()
{
    look_at(0);
#if SLOTS > 1
    look_at(1);
#endif
#if SLOTS > 2
    look_at(2);
#endif
}
inline look_at_cursor()
{
#if WORKERS
    atomic {
        if
        :: cursor < lowest -> lowest = cursor
        :: else
        fi
    }
#else
    skip
#endif
}
inline needed()
{
    lowest = UNSET;
#ifndef CURSORS_FIRST
    look_at_slots();
#endif
    look_at_cursor();
#ifndef ONE_LOOK
    look_at_slots()
#endif
}
#define ROOM (lowest == UNSET || end <= lowest + CAPACITY)

/* --- groups: see groups.c --- */

#if WORKERS
/* The slot that the cursor names has taken what it intended to. */
inline settle(at, slot)
{
#ifdef NO_SETTLE
    skip
#else
    if
    :: slot < WORKERS ->
        atomic {
            if
            :: held[slot] == INTENT && held_start[slot] < at -> held[slot] = TAKEN
            :: else
            fi
        }
    :: else
    fi
#endif
}
/* mm_group_held */
inline holds(slot, answer)
{
    atomic { at = cursor; who = last };
    if
    :: who == slot -> settle(at, slot)
    :: else
    fi;
    answer = (held[slot] == TAKEN)
}
/* Free the slots of dead workers, or tell that they had something. */
inline evict_worker(slot, drop)
{
    if
    :: d_step { owner[slot] != NOBODY && IS_DEAD(owner[slot]) -> dead = owner[slot] };
        holds(slot, yes);
#ifdef CLEAR_HELD
        yes = false;
#endif
        if
        :: yes && (alive || !drop) ->
#ifndef NO_ORPHANS
            if
            :: alive -> orphans = true; tell_receivers()
            :: else
            fi
#endif
        :: else ->
            atomic {
                if
                :: owner[slot] == dead -> held[slot] = DONE; owner[slot] = NOBODY
                :: else
                fi
            }
        fi
    :: else
    fi
}
#endif

inline evict_all(drop)
{
#if RECEIVERS
    atomic {
        if
        :: owner[SLOTS - 1] != NOBODY && IS_DEAD(owner[SLOTS - 1]) -> owner[SLOTS - 1] = NOBODY
        :: else
        fi
    };
#endif
#if WORKERS
    d_step {
        alive = (owner[0] != NOBODY && !IS_DEAD(owner[0]));
#if WORKERS > 1
        alive = alive || (owner[1] != NOBODY && !IS_DEAD(owner[1]));
#endif
#if WORKERS > 2
        alive = alive || (owner[2] != NOBODY && !IS_DEAD(owner[2]));
#endif
        skip
    };
    evict_worker(0, drop);
#endif
#if WORKERS > 1
    evict_worker(1, drop);
#endif
#if WORKERS > 2
    evict_worker(2, drop);
#endif
#if WORKERS && !defined(NO_DROP)
    if
    :: drop && !alive ->
        atomic { at = cursor; who = last };
        settle(at, who);
        d_step {
            if
            :: cursor == at && last == who -> cursor = UNSET; last = NOBODY
            :: else
            fi
        }
    :: else
    fi;
#endif
    skip
}

proctype Sender(byte me)
{
    byte start, sequence, end, lowest, ticket, entry;
    bool nobody;
#if WORKERS
    byte at, who, dead;
    bool alive, yes;
#endif
    {
        atomic { (writer == NOBODY || sender_died[writer]) -> writer = me; taken = true };
#ifndef LATE
        here == SLOTS;
#endif
        /* mm_resume; nobody else writes these now */
        d_step {
            start = written;
            if
            :: tally_end[0] == start -> entry = 1; sequence = tally_sequence[0]
            :: else -> entry = 0; sequence = tally_sequence[1]
            fi;
            assert(tally_end[entry ^ 1] == start)       /* one always counts */
        };
        do
        :: sequence < TOTAL ->
            if
            :: end = start + 1
#ifndef SHORT
            :: end = start + 2
#endif
            fi;
            intended = end;
            needed();
            do
            :: ROOM -> break
            :: else ->
                want(room_wanted);
#ifndef NO_LOOK
                needed();
                if
                :: ROOM -> break
                :: else
                fi;
#endif
                sleep_on(room_wanted, SENDER);
                (!asleep[SENDER] || ANY_KILL);
                nobody = (GONE_0 && GONE_1);
                if
                :: ANY_KILL -> evict_all(true)
                :: else
                fi;
                needed();
#ifndef LATE
                assert(ROOM || !nobody)         /* nobody waits for the dead */
#endif
            od;
            claimed = (end > claimed -> end : claimed);
            d_step { data[start % CAPACITY] = 0; data[(end - 1) % CAPACITY] = 0 };
            d_step { data[start % CAPACITY] = sequence + 1; size_of[start % CAPACITY] = end - start };
            data[(end - 1) % CAPACITY] = sequence + 1;
            /* mm_commit */
#ifdef ONE_TALLY
            entry = entry ^ 1;
#endif
#ifdef LATE_TALLY
            written = end;
#endif
            tally_end[entry] = UNSET;
            tally_sequence[entry] = sequence + 1;
            tally_end[entry] = end;
            entry = entry ^ 1;
            written = end;
            tell_receivers();
            d_step { start = end; sequence++ }
        :: else -> break
        od;
        atomic { writer = NOBODY; CLEAR(data_wanted) };
        wake_all()
    } unless { kill_sender && me == 0; sender_died[me] = true }
}

/* A frame that is there, and whole: what a receiver sees of it. */
inline read_frame(from)
{
    d_step { number = data[from % CAPACITY]; length = size_of[from % CAPACITY] };
    assert(number > 0 && length > 0);
    assert(data[(from + length - 1) % CAPACITY] == number)
}

#if RECEIVERS
proctype Receiver()
{
    byte pos, sequence, committed, safe, ticket, number, length;
    {
        newest(pos, sequence);
        owner[SLOTS - 1] = RECEIVER;
        position[SLOTS - 1] = pos;
        safe = (intended > claimed -> intended : claimed);
        safe = (safe > CAPACITY -> safe - CAPACITY : 0);
        do
        :: pos < safe -> newest(pos, sequence); position[SLOTS - 1] = (pos < safe -> safe : pos)
        :: else -> break
        od;
        tell_sender();
        here++;
        do
        :: written > pos ->
            read_frame(pos);
            assert(number == sequence + 1);     /* each, in order, also after another sender */
            d_step { pos = pos + length; sequence++ };
            position[SLOTS - 1] = pos;
            tell_sender()
        :: else ->
            want(data_wanted);
#ifndef NO_LOOK
            if
            :: written > pos -> goto again
            :: else
            fi;
#endif
            sleep_on(data_wanted, SLOTS - 1);
            (!asleep[SLOTS - 1] || GONE || kill_sender);
#ifdef HASTY
            if
            :: written > pos -> goto again
            :: else
            fi;
#endif
            if
            :: atomic { GONE -> committed = written };
#ifndef HASTY
                if
                :: written > pos -> goto again
                :: else
                fi;
#endif
                assert(pos == committed);       /* SenderGone comes after the last message */
                break
            :: else
            fi;
again:      skip
        od;
        owner[SLOTS - 1] = NOBODY;
        tell_sender()
    } unless { kill_receiver; receiver_died = true }
}
#endif

#if WORKERS
/* What was taken from `from` on, in a slot of ours: look at it, and be done with it. */
inline work(slot, from)
{
    read_frame(from);
    assert(holder[number - 1] == me);
    assert(from + length == held_end[slot]);
    d_step { holder[number - 1] = FINISHED; held[slot] = DONE };
    position[slot] = UNSET;
#ifndef QUIET_DONE
    tell_sender()
#endif
}

inline adopt(slot)
{
    if
    :: d_step { owner[slot] != NOBODY && IS_DEAD(owner[slot]) -> dead = owner[slot] };
        holds(slot, yes);
        if
        :: yes ->
            d_step {
                yes = false;
                if
                :: owner[slot] == dead ->
#ifndef NO_EXCHANGE
                    owner[slot] = me;
#endif
                    yes = true;
                    number = data[held_start[slot] % CAPACITY];
                    assert(number > 0 && holder[number - 1] == dead);
                    holder[number - 1] = me
                :: else
                fi
            };
            if
            :: yes -> work(slot, held_start[slot]);
                if
                :: slot != me -> owner[slot] = NOBODY; tell_sender()
                :: else
                fi
            :: else
            fi
        :: else ->
            atomic {
                if
                :: owner[slot] == dead -> owner[slot] = NOBODY
                :: else
                fi
            }
        fi
    :: else
    fi
}

/* _stand and _found: a slot pins what the cursor will. */
inline found(slot)
{
    newest(at, number);
    owner[slot] = me;
    position[slot] = at;
    safe = (intended > claimed -> intended : claimed);
    safe = (safe > CAPACITY -> safe - CAPACITY : 0);
    do
    :: at < safe -> newest(at, number); position[slot] = (at < safe -> safe : at)
    :: else -> break
    od;
    skip;
    d_step {
        if
        :: cursor == UNSET -> cursor = at; last = slot; first = number; upto = number
        :: else
        fi
    };
    position[slot] = UNSET;
    tell_sender()
}

proctype Worker(byte me)
{
    byte at, who, dead, ticket, number, length, safe;
    bool yes, alive, ok, gone, looked;
    {
        found(me);
        here++;
more:   do
        :: orphans ->
            orphans = false;
            adopt(0);
#if WORKERS > 1
            adopt(1);
#endif
#if WORKERS > 2
            adopt(2);
#endif
            skip
        :: else ->
            atomic { at = cursor; who = last };
            if
            :: at == UNSET -> found(me)
            :: at != UNSET && written > at ->
                d_step { number = data[at % CAPACITY]; length = size_of[at % CAPACITY] };
                if
                :: cursor != at || last != who -> goto more    /* what we looked at may be something else */
                :: else
                fi;
                assert(number > 0 && length > 0);
                settle(at, who);
                held_end[me] = at + length;
#ifndef LATE_POSITION
                position[me] = at;
#endif
                d_step { held[me] = INTENT; held_start[me] = at };
                d_step {
                    ok = false;
#ifdef TWO_CURSORS
                    if
                    :: true ->
#else
                    if
                    :: cursor == at && last == who ->
#endif
                        cursor = at + length; last = me; ok = true;
                        assert(holder[number - 1] == NOBODY);   /* each message to one of them */
                        holder[number - 1] = me;
                        upto = number
                    :: else
                    fi
                };
#ifdef LATE_POSITION
                position[me] = at;
#endif
                if
                :: ok -> held[me] = TAKEN; work(me, at)
                :: else -> held[me] = DONE; position[me] = UNSET;
#ifndef QUIET_LOSER
                    tell_sender()       /* it may have seen the position */
#endif
                fi
            :: else ->
                want(data_wanted);
#ifndef NO_LOOK
                if
                :: written != cursor || orphans -> goto more
                :: else
                fi;
#endif
                sleep_on(data_wanted, me);
                (!asleep[me] || GONE || ANY_KILL);
                gone = GONE;
                if
                :: ANY_KILL -> evict_all(false)
                :: else
                fi;
                if
                :: gone && written == cursor && !orphans && (me == 0 || looked || worker_left[0]) -> goto leave
                :: gone && written == cursor && !orphans && !(me == 0 || looked || worker_left[0]) ->
                    /* what the other has when it dies is for whoever comes then: let that be us */
                    (worker_left[0] || worker_died);
                    looked = true
                :: else
                fi
            fi
        od;
leave:  skip;
        d_step {
            if
            :: me == 1 ->
                do
                :: first < upto ->
                    /* nothing is lost; of three, the third may be about to do it */
                    assert(holder[first] == FINISHED || WORKERS == 3);
                    first++
                :: else -> break
                od
            :: else
            fi
        };
        owner[me] = NOBODY;
        worker_left[me] = true;
        tell_sender()
    } unless { kill_worker && me == 0; worker_died = true }
}
#endif

/* Death is noticed by looking: it wakes nobody. */
active proctype Killer()
{
    here == SLOTS;
    if
#ifdef KILL_SENDER
    :: kill_sender = true
#endif
#ifdef KILL_RECEIVER
    :: kill_receiver = true
#endif
#ifdef KILL_WORKER
    :: kill_worker = true
#endif
    :: skip
    fi
}

init {
#ifdef SENT
    d_step {
        do
        :: written < TOTAL -> data[written] = written + 1; size_of[written] = 1; written++
        :: else -> break
        od;
        claimed = TOTAL; intended = TOTAL; tally_end[0] = TOTAL; tally_sequence[0] = TOTAL; taken = true;
        cursor = 0; last = NOBODY
    };
#endif
    atomic {
#ifndef SENT
        run Sender(0);
#endif
#if SENDERS == 2
        run Sender(1);
#endif
#if RECEIVERS
        run Receiver();
#endif
#if WORKERS
        run Worker(0);
#endif
#if WORKERS > 1
        run Worker(1);
#endif
#if WORKERS > 2
        run Worker(2)
#endif
    }
}
