/* The life of a ring, for SPIN: up to two writers one after the other, up to two readers, kill -9 at any step.
 *
 * Sequentially consistent, unlike test_cursor_protocol.py, which has the orderings; here programs are whole. Waits end
 * with their slice only once somebody was killed, because that is what slices are for: a deadlock, which SPIN
 * reports, is a lost wake-up.
 *
 *     -DOVERWRITE     the writer never waits, readers ask afterwards
 *     -DREADERS=1, -DWRITERS=2        how many there are
 *     -DKILL_WRITER, -DKILL_READER    the first of them may die at any step
 *     -DLATE_CLAIM    broken on purpose: claims after the bytes      -DNO_QUESTION    reads without asking afterwards
 *     -DNO_INTENT     arrives without looking at what is intended    -DNO_LOOK        sleeps without looking once more
 *     -DNO_EVICTION   never looks whether a reader is alive          -DFORGETFUL      a new writer starts at claimed 0
 *     -DHASTY         looks for items before it looks for the writer -DPLAIN_FLAG    the word is the flag alone
 *     -DQUIET_ARRIVAL raises a position without waking the writer
 */
#ifndef CAPACITY
#define CAPACITY 1
#endif
#ifndef TOTAL
#define TOTAL 3
#endif
#ifndef WAKES
#define WAKES 4                         /* how far the flags count, twice that; in memory 2^32 */
#endif
#ifndef READERS
#define READERS 2
#endif
#ifndef WRITERS
#define WRITERS 1
#endif
#define NOBODY 255

byte data[CAPACITY];                    /* 1 + the number of the item */
byte claimed, written, intended;
byte data_wanted, room_wanted;          /* bit 0: somebody waits; the rest: how often it was cleared */
bool asleep[READERS + 1];               /* on such a word as a futex; the last is the writer */
byte owner[READERS] = NOBODY, position[READERS];
bool reader_died[READERS];
byte writer = NOBODY;                   /* who holds the writer's place */
bool writer_died[2], taken;
bool kill_writer, kill_reader;          /* kill -9 comes when it likes */

#ifdef PLAIN_FLAG
#define CLEAR(word) word = 0
#else
#define CLEAR(word) word = (word & 1 -> (word + 1) % WAKES : word)
#endif

inline look_at(slot, result)
{
    atomic {
        if
        :: owner[slot] != NOBODY && position[slot] < result -> result = position[slot]
        :: else
        fi
    }
}
#if READERS == 2
inline slowest_of(result) { result = NOBODY; look_at(0, result); look_at(1, result) }
inline wake_readers() { atomic { asleep[0] = false; asleep[1] = false } }
inline evict_dead() { evict(0); evict(1) }
#else
inline slowest_of(result) { result = NOBODY; look_at(0, result) }
inline wake_readers() { asleep[0] = false }
inline evict_dead() { evict(0) }
#endif

#define GONE (taken && (writer == NOBODY || writer_died[writer]))

/* mm_want and mm_is_wanted, and the futex between them. */
inline want(word)
{
#ifdef PLAIN_FLAG
    word = 1; ticket = 1
#else
    atomic { word = word | 1; ticket = word }
#endif
}
inline sleep_on(word, who) { asleep[who] = (word == ticket) }
inline tell_readers()
{
    if
    :: data_wanted & 1 -> atomic { CLEAR(data_wanted) }; wake_readers()
    :: else
    fi
}
inline tell_writer()
{
    if
    :: room_wanted & 1 -> atomic { CLEAR(room_wanted) }; asleep[READERS] = false
    :: else
    fi
}

inline evict(slot)
{
    atomic {
        if
        :: owner[slot] != NOBODY && reader_died[owner[slot]] -> owner[slot] = NOBODY
        :: else
        fi
    }
}

proctype Writer(byte me)
{
    byte slowest, next, ticket;
    {
        atomic { (writer == NOBODY || writer_died[writer]) -> writer = me; taken = true }
#ifdef FORGETFUL
        claimed = 0;
#endif
        do
        :: written < TOTAL ->
            next = written;
#ifndef OVERWRITE
            intended = next + 1;
            slowest_of(slowest);
            do
            :: slowest != NOBODY && next + 1 > slowest + CAPACITY ->
                want(room_wanted);
#ifndef NO_LOOK
                slowest_of(slowest);
                if
                :: slowest == NOBODY || next + 1 <= slowest + CAPACITY -> break
                :: else
                fi;
#endif
                sleep_on(room_wanted, READERS);
#ifdef NO_EVICTION
                !asleep[READERS];
#else
                (!asleep[READERS] || kill_reader);
                evict_dead();
#endif
                slowest_of(slowest)
            :: else -> break
            od;
#endif
#ifdef LATE_CLAIM
            data[next % CAPACITY] = 0; data[next % CAPACITY] = next + 1;
#endif
            if
            :: next + 1 > claimed -> claimed = next + 1
            :: else
            fi;
#ifndef LATE_CLAIM
            data[next % CAPACITY] = 0;  /* half of it */
            data[next % CAPACITY] = next + 1;
#endif
            written = next + 1;
            tell_readers()
        :: else -> break
        od;
        writer = NOBODY;
        wake_readers()
    } unless { kill_writer && me == 0; writer_died[me] = true }
}

proctype Reader(byte me)
{
    byte mine, pos, safe, upto, seen, committed, ticket;
    {
#ifdef OVERWRITE
        pos = written;
#else
        /* mm_arrive, with a position that is old by the time the slot is ours */
        pos = written;
        do
        :: atomic { owner[0] == NOBODY -> owner[0] = me; mine = 0 }; break
#if READERS == 2
        :: atomic { owner[1] == NOBODY -> owner[1] = me; mine = 1 }; break
#endif
        od;
        position[mine] = pos;
#ifdef NO_INTENT
        upto = claimed;
#else
        upto = intended;
        upto = (upto > claimed -> upto : claimed);
#endif
        d_step { safe = (upto > CAPACITY -> upto - CAPACITY : 0) };
        if
        :: pos < safe -> d_step { pos = safe; position[mine] = pos }
        :: else
        fi;
#ifndef QUIET_ARRIVAL
        tell_writer();  /* it may have seen the position that was raised */
#endif
#endif
        do
        :: pos < TOTAL ->
            do
            :: written > pos -> break
            :: else ->
                want(data_wanted);
#ifndef NO_LOOK
                if
                :: written > pos -> break
                :: else
                fi;
#endif
                sleep_on(data_wanted, me);
                (!asleep[me] || GONE || kill_writer);
#ifdef HASTY
                if
                :: written > pos -> break
                :: else
                fi;
#endif
                if
                :: atomic { GONE -> committed = written };
#ifndef HASTY
                    if
                    :: written > pos -> break
                    :: else
                    fi;
#endif
                    assert(pos >= committed);   /* WriterGone comes after everything committed was read */
                    goto leave
                :: else
                fi
            od;
            seen = data[pos % CAPACITY];
#if defined(OVERWRITE) && !defined(NO_QUESTION)
            safe = (claimed > CAPACITY -> claimed - CAPACITY : 0);
            if
            :: pos < safe -> pos = safe     /* Overrun */
            :: else -> assert(seen == pos + 1); pos++
            fi
#else
            assert(seen == pos + 1);
            pos++;
#ifndef OVERWRITE
            position[mine] = pos;
            tell_writer()
#endif
#endif
        :: else -> break
        od;
leave:
#ifndef OVERWRITE
        owner[mine] = NOBODY;
        tell_writer()
#else
        skip
#endif
    } unless { kill_reader && me == 0; reader_died[me] = true }
}

/* Death is noticed by looking: it wakes nobody. */
active proctype Killer()
{
    if
#ifdef KILL_WRITER
    :: kill_writer = true
#endif
#ifdef KILL_READER
    :: kill_reader = true
#endif
    :: skip
    fi
}

init {
    atomic {
        run Writer(0); run Reader(0);
#if WRITERS == 2
        run Writer(1);
#endif
#if READERS == 2
        run Reader(1)
#endif
    }
}
