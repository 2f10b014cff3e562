/* Marking and moving in a heap, for SPIN: a program that holds, follows, stores, pins and lets go, and a collector.
 *
 * Every step is atomic, as it is under the interpreter's lock; what is checked is that any order of them is right. Places
 * hold objects of one reference slot each, two places a block. `what` and `means` are the truth: which object lies where,
 * and which one its slot should lead to. Whatever the program follows must lead to that object, and a view stays where it is.
 *
 *     -DBLOCKS=3, -DOBJECTS=3     how large it is           -DACTS=5, -DCYCLES=2    how long it lives
 *     -DNO_STORE_BARRIER  broken on purpose: overwrites a slot without marking what it led to
 *     -DNO_DROP_BARRIER   a root goes before it was scanned, unmarked     -DUNMARKED_BIRTH  new objects are not marked
 *     -DUNSWEPT_BIRTH     nor where a block is still to be swept          -DWEAK_UNMARKED   had back by weak, unmarked
 *     -DWEAK_TOO_LATE     had back when marking has ended                 -DGOOD_TOO_SOON   good colour into what leaves
 *     -DNO_TURN           moves without turning the colour                -DEARLY_DROP      tables go when marking begins
 *     -DMOVES_PINNED      moves blocks with views                         -DPINS_LEAVING    a view of what is to move
 *     -DDEAF_WEAK         weak references are not looked up               -DTWO_COLOURS     there are only two
 *     -DBARE_WEAK         weak references have no colour                  -DASKS_ALWAYS     good references are looked up too
 */
#ifndef BLOCKS
#define BLOCKS 3
#endif
#ifndef OBJECTS
#define OBJECTS 3
#endif
#ifndef ACTS
#define ACTS 5
#endif
#ifndef CYCLES
#define CYCLES 2
#endif
#define PLACES (2 * BLOCKS)
#define NONE 15
#ifdef TWO_COLOURS
#define COLOURS 2
#else
#define COLOURS 3
#endif
#define VIEW 2                          /* the register of the one that pins */

mtype = { idle, roots, tracing, weak, sweep, choose, moving };
mtype phase = idle;
byte cursor, good, cycles;
byte what[PLACES], to[PLACES] = NONE, colour[PLACES], forward[PLACES] = NONE;
bool marked[PLACES], grey[PLACES];
bool leaving[BLOCKS], table[BLOCKS];    /* a table: something moved out of it, and it is not swept yet */
byte at[3] = NONE, held[3];             /* what the program holds: roots */
byte seen = NONE;                       /* where the view was taken */
byte faint = NONE, faintly, faint_colour; /* the weak reference */
byte means[OBJECTS + 1];

#define FORWARDED(place) (forward[place] != NONE -> forward[place] : place)
#ifdef GOOD_TOO_SOON
#define COLOURED(place) good
#else
#define COLOURED(place) (leaving[place / 2] -> (good + COLOURS - 1) % COLOURS : good)
#endif
#define MARKING (phase == roots || phase == tracing)
#define ROOM(place) (what[place] == 0 && !leaving[place / 2] && !table[place / 2])

inline shade(place) {
    if
    :: !marked[place] -> marked[place] = true; grey[place] = true
    :: else
    fi
}

inline load(place, result) {
    result = to[place];
    if
#ifdef ASKS_ALWAYS
    :: result != NONE ->
#else
    :: result != NONE && colour[place] != good ->
#endif
        result = FORWARDED(result);
        to[place] = result;
        colour[place] = COLOURED(result)
    :: else
    fi
}

/* Another object, or none, is held by a register. */
inline hold(register, place) {
#ifndef NO_DROP_BARRIER
    if
    :: phase == roots && register >= cursor && at[register] != NONE -> shade(at[register])
    :: else
    fi;
#endif
    at[register] = place;
    held[register] = (place == NONE -> 0 : what[place])
}

inline move(from, there) {
    what[there] = what[from]; to[there] = to[from]; colour[there] = colour[from];
    what[from] = 0; to[from] = NONE; colour[from] = 0;
    forward[from] = there;
    table[from / 2] = true;
    for (k : 0 .. 2) {
        if
        :: at[k] == from -> at[k] = there
        :: else
        fi
    }
}

inline some_room(result) {
    result = 0;
    do
    :: result < PLACES && !ROOM(result) -> result++
    :: else -> break
    od
}

/* No room: what lies behind a gap slides down, in one go. Then a place may be where one object was and where another is. */
inline slide(block) {
    if
    :: what[2 * block] == 0 && what[2 * block + 1] != 0 -> move((2 * block + 1), (2 * block))
    :: else
    fi;
    leaving[block] = false
}

/* An object gets a view: where it will be, or its block stays. */
inline settle(register) {
#ifdef PINS_LEAVING
    skip
#else
    if
    :: leaving[at[register] / 2] ->
        some_room(other);
        number = at[register];
        if
        :: phase == moving && other < PLACES -> move(number, other)
        :: phase == moving -> other = number / 2; slide(other)
        :: leaving[at[register] / 2] = false
        fi
    :: else
    fi
#endif
}

inline new_object() {
    number = 1;
    do
    :: number <= OBJECTS ->
        other = 0;
        do
        :: other < PLACES && what[other] != number -> other++
        :: else -> break
        od;
        if
        :: other == PLACES -> break
        :: else -> number++
        fi
    :: else -> break
    od;
    some_room(other);
    if
    :: number <= OBJECTS && other < PLACES ->
        what[other] = number; means[number] = 0;
        to[other] = NONE;
#ifndef UNMARKED_BIRTH
        if
        :: MARKING || phase == weak -> marked[other] = true
        :: else
        fi;
#endif
#ifndef UNSWEPT_BIRTH
        if
        :: phase == sweep && other / 2 >= cursor -> marked[other] = true
        :: else
        fi;
#endif
        hold(j, other)
    :: else
    fi
}

/* A weak reference is loaded as any other. */
inline weak_load(result) {
    result = faint;
    if
#ifdef BARE_WEAK
    :: true ->
#else
    :: faint_colour != good ->
#endif
        result = FORWARDED(result);
        faint = result;
        faint_colour = COLOURED(result)
    :: else
    fi
}

inline weak_get() {
    if
    :: faint != NONE ->
#ifdef DEAF_WEAK
        other = faint;
#else
        weak_load(other);
#endif
#ifndef WEAK_UNMARKED
        if
        :: MARKING -> shade(other)
        :: else
        fi;
#endif
#ifndef WEAK_TOO_LATE
        if
        :: phase == weak && !marked[other] -> other = NONE; faint = NONE
        :: else
        fi;
#endif
        assert(other == NONE || what[other] == faintly);
        if
        :: other != NONE -> hold(j, other)
        :: else
        fi
    :: else
    fi
}

inline pick(register) {
    if
    :: register = 0
    :: register = 1
    fi
}

inline follow() {
    assert(what[at[i]] == held[i]);
    load(at[i], other);
    assert((other == NONE -> 0 : what[other]) == means[held[i]]);
    pick(j);
    hold(j, other)
}

inline store() {
    load(at[i], other);
#ifndef NO_STORE_BARRIER
    if
    :: MARKING && other != NONE -> shade(other)
    :: else
    fi;
#endif
    pick(j);
    if
    :: other = at[j]
    :: other = NONE
    fi;
    to[at[i]] = other;
    colour[at[i]] = (other != NONE -> COLOURED(other) : 0);
    means[held[i]] = (other != NONE -> held[j] : 0)
}

inline with_an_object() {
    pick(i);
    if
    :: at[i] != NONE -> follow()
    :: at[i] != NONE -> store()
    :: at[i] != NONE && faint == NONE -> faint = at[i]; faintly = held[i]; faint_colour = COLOURED(faint)
    :: at[i] != NONE && at[VIEW] == NONE -> settle(i); hold(VIEW, at[i]); seen = at[VIEW]
    :: at[i] == NONE
    fi
}

proctype program() {
    byte i, j, k, other, number, acts;
    do
    :: atomic { acts < ACTS ->
        acts++;
        if
        :: with_an_object()
        :: pick(j); new_object()
        :: pick(j); hold(j, NONE)
        :: pick(j); weak_get()
        :: at[VIEW] != NONE -> hold(VIEW, NONE); seen = NONE
        fi;
        assert(at[VIEW] == seen);
        i = 0; j = 0; k = 0; other = 0; number = 0 }
    :: acts == ACTS -> break
    od;
    (cycles == CYCLES);
    atomic {                            /* whatever there is is what it should be */
        for (i : 0 .. 2) {
            do
            :: at[i] != NONE && j < OBJECTS ->
                assert(what[at[i]] == held[i]);
                load(at[i], other);
                assert((other == NONE -> 0 : what[other]) == means[held[i]]);
                j++;
                at[i] = other;
                held[i] = (other == NONE -> 0 : what[other])
            :: else -> break
            od;
            j = 0
        }
    }
}

/* A block that holds something and shows nothing. */
#ifdef MOVES_PINNED
#define MAY_LEAVE(block) (what[2 * block] != 0 || what[2 * block + 1] != 0)
#else
#define MAY_LEAVE(block) ((what[2 * block] != 0 || what[2 * block + 1] != 0) && (at[VIEW] == NONE || at[VIEW] / 2 != block))
#endif

inline sweep_place(place) {
    forward[place] = NONE;
    if
    :: what[place] != 0 && !marked[place] -> what[place] = 0; to[place] = NONE; colour[place] = 0
    :: else
    fi;
    marked[place] = false
}

inline drop_tables() {
    for (p : 0 .. PLACES - 1) { forward[p] = NONE }
    for (p : 0 .. BLOCKS - 1) { table[p] = false }
}

inline mark() {
    atomic {
        phase = roots; cursor = 0;
#ifdef EARLY_DROP
        drop_tables();
#endif
        p = 0
    }
    do
    :: atomic { cursor <= VIEW ->
        if
        :: at[cursor] != NONE -> shade(at[cursor])
        :: else
        fi;
        cursor++ }
    :: atomic { cursor > VIEW -> phase = tracing; break }
    od;
    do
    :: atomic {
        p = 0;
        do
        :: p < PLACES && !grey[p] -> p++
        :: else -> break
        od;
        if
        :: p < PLACES ->
            grey[p] = false;
            load(p, other);
            if
            :: other != NONE -> shade(other)
            :: else
            fi
        :: else -> phase = weak; cursor = 0; p = 0; other = 0; break
        fi;
        p = 0; other = 0 }
    od
}

inline clean() {
    atomic {
        if
        :: faint != NONE ->
#ifndef DEAF_WEAK
            weak_load(other);
#endif
            if
            :: !marked[faint] -> faint = NONE
            :: else
            fi
        :: else
        fi;
        other = 0;
        phase = sweep }
    do
    :: atomic { cursor < BLOCKS ->
        sweep_place(2 * cursor);
        sweep_place(2 * cursor + 1);
        table[cursor] = false;
        cursor++ }
    :: atomic { cursor == BLOCKS -> phase = choose; cursor = 0; break }
    od
}

inline compact() {
    do
    :: atomic { cursor < BLOCKS ->
        if
        :: MAY_LEAVE(cursor) -> leaving[cursor] = true
        :: true
        fi;
        cursor++ }
    :: atomic { cursor == BLOCKS ->
        phase = moving; cursor = 0;
#ifndef NO_TURN
        for (p : 0 .. BLOCKS - 1) {
            if
            :: leaving[p] -> cursor = 1
            :: else
            fi
        }
        good = (cursor == 1 -> (good + 1) % COLOURS : good);
        cursor = 0;
#endif
        p = 0;
        break }
    od;
    do
    :: atomic {
        p = 0;
        do
        :: p < BLOCKS && !leaving[p] -> p++
        :: else -> break
        od;
        if
        :: p == BLOCKS -> break
        :: else
        fi;
        p = (what[2 * p] != 0 -> 2 * p : 2 * p + 1);
        some_room(other);
        if
        :: what[p] == 0 -> leaving[p / 2] = false
        :: what[p] != 0 && other < PLACES -> move(p, other)
        :: what[p] != 0 -> other = p / 2; slide(other)
        :: what[p] != 0 ->              /* nothing can turn the colour: all stay that have not gone */
            for (p : 0 .. BLOCKS - 1) { leaving[p] = false }
        fi;
        p = 0; other = 0; k = 0 }
    od
}

proctype collector() {
    byte p, k, other;
    do
    :: cycles < CYCLES ->
        mark(); clean(); compact();
        atomic { phase = idle; p = 0; other = 0; k = 0; cycles++ }
    :: cycles == CYCLES -> break
    od
}

init {
    atomic {                            /* 1 leads to 2, and is held */
        what[0] = 1; what[1] = 2;
        to[0] = 1; means[1] = 2;
        at[0] = 0; held[0] = 1;
        run program();
        run collector()
    }
}
