/* Pages that share frames, for SPIN: a heap that meshes, parts, punches and uses blocks again, one who writes through a view
 * without the lock, and one who reads everything at any moment.
 *
 * A block is a page of two granules here. `means` is the truth: what lives in a granule of a page (0: nothing), and so what every
 * view of it shows. The heap's acts are made of steps, as they are of copies and system calls; only other acts of the heap wait.
 *
 *     -DPAGES=2, -DACTS=0        how large it is, and after how many acts of the heap it ends; 0: never
 *     -DMAPS_FIRST     broken on purpose: shows the other frame before the bytes are in it    -DPUNCHES_FIRST  or gives the old one back
 *     -DOVERLAPPING    does not look whether anything overlaps            -DPUNCHES_SHARED  gives back what another page shows
 *     -DMESHES_WRITTEN shares pages that somebody writes to               -DWRITES_SHARED   writes where a frame is shared
 *     -DOWN_FIRST      leaves its own frame to others, and has none to go to
 *     -DREUSES_FRAMES  uses a block again while others show its frame     -DNEVER_RESTORED  or while its page shows another's
 */
#ifndef PAGES
#define PAGES 2
#endif
#ifndef ACTS
#define ACTS 0
#endif
#define CELLS (2 * PAGES)
#define HOLE 7                          /* what nobody may see */

byte means[CELLS], frame[CELLS] = HOLE;
byte shows[PAGES];
bool held[PAGES], member[PAGES], writing[PAGES];
bool lock;

#define SEEN(page, granule) frame[2 * shows[page] + granule]
#define USED(page) (means[2 * page] != 0 || means[2 * page + 1] != 0)
#define MEETS(page, other) ((means[2 * page] != 0 && means[2 * other] != 0) || (means[2 * page + 1] != 0 && means[2 * other + 1] != 0))

inline count_users(which) {
    users = 0;
    for (k : 0 .. PAGES - 1) {
        if
        :: member[k] && shows[k] == which -> users++
        :: else
        fi
    }
    k = 0
}

/* A page needs this frame no more. */
inline let_go(which) {
    atomic {
        count_users(which);
        if
#ifdef PUNCHES_SHARED
        :: true ->
#else
        :: users == 0 ->
#endif
            held[which] = false; frame[2 * which] = HOLE; frame[2 * which + 1] = HOLE
        :: else
        fi;
        users = 0
    }
}

inline copy(from, to) {
    if
    :: means[2 * from] != 0 -> frame[2 * to] = SEEN(from, 0)
    :: else
    fi;
    if
    :: means[2 * from + 1] != 0 -> frame[2 * to + 1] = SEEN(from, 1)
    :: else
    fi
}

/* Do more pages than this one show its frame, and is any of the frame's pages written to? */
inline look(page) {
    users = 0; written = false;
    for (k : 0 .. PAGES - 1) {
        if
        :: member[k] && shows[k] == shows[page] ->
            users++;
            written = written || writing[k]
        :: else
        fi
    }
    k = 0
}

/* p and everything that shows what q shows do not overlap */
inline look_for_room() {
    fits = true;
    for (k : 0 .. PAGES - 1) {
        if
        :: member[k] && shows[k] == shows[q] && MEETS(p, k) -> fits = false
        :: else
        fi
    }
    k = 0;
#ifdef OVERLAPPING
    fits = true
#endif
}

inline mesh() {
    atomic {
        fits = false;
        if
        :: p != q && member[p] && member[q] && shows[p] != shows[q] && USED(p) && USED(q) ->
            look(q); fits = !written;
            look(p); fits = fits && !written;
#ifdef MESHES_WRITTEN
            fits = true;
#endif
            if
            /* of several that share a frame one goes at a time, and any of those steps may fail */
#ifdef OWN_FIRST
            :: fits -> look_for_room()
#else
            :: (users == 1 || shows[p] != p) && fits -> look_for_room()
#endif
            :: else -> fits = false
            fi
        :: else
        fi;
        users = 0; written = false
    }
    if
    :: fits ->
        old = shows[p];
#ifdef PUNCHES_FIRST
        atomic { held[old] = false; frame[2 * old] = HOLE; frame[2 * old + 1] = HOLE }
#endif
#ifdef MAPS_FIRST
        new = shows[q]; shows[p] = new;
        frame[2 * new] = (means[2 * p] != 0 -> frame[2 * old] : frame[2 * new]);
        frame[2 * new + 1] = (means[2 * p + 1] != 0 -> frame[2 * old + 1] : frame[2 * new + 1]);
#else
        new = shows[q];
        copy(p, new);
        shows[p] = new;
#endif
        let_go(old)
    :: else
    fi
}

/* All that show what p shows, p apart from q alone, move to p's own frame. */
inline move_to_own(page, alone) {
    assert(!held[page]);                /* there is one to go to */
    held[page] = true;
    frame[2 * page] = SEEN(page, 0);
    frame[2 * page + 1] = SEEN(page, 1);
    old = shows[page];
    shows[page] = page;
    for (i : 0 .. PAGES - 1) {
        if
        :: !alone && member[i] && shows[i] == old && i != p -> shows[i] = page
        :: else
        fi
    }
    i = 0
}

/* Somebody wants to write to p. */
inline part() {
    atomic { look(p); written = false }
    if
#ifdef WRITES_SHARED
    :: users > 1 && shows[p] == p && writing[q] && q != p && member[q] && shows[q] == p -> move_to_own(q, false)
#else
    :: users > 1 && shows[p] != p -> move_to_own(p, true)
    :: users > 1 && shows[p] == p ->
        atomic {
            new = 0;
            do
            :: new == p || !member[new] || shows[new] != p -> new++
            :: else -> break
            od
        }
        move_to_own(new, false)
#endif
    :: else
    fi;
    atomic { users = 0; writing[p] = true }
}

/* Nothing lives in p any more. */
inline leave() {
    atomic {
        old = shows[p];
        member[p] = false
    }
    let_go(old);
#ifndef NEVER_RESTORED
    shows[p] = p
#endif
}

/* A block is used again: the frame is its own. */
inline put() {
    atomic {
        count_users(p);
#ifdef REUSES_FRAMES
        users = 0;
#endif
        if
#ifdef NEVER_RESTORED
        :: users == 0 ->
#else
        :: users == 0 && shows[p] == p ->
#endif
            held[p] = true; member[p] = true;
            if
            :: means[2 * p] = 1; SEEN(p, 0) = 1
            :: means[2 * p + 1] = 2; SEEN(p, 1) = 2
            fi
        :: else
        fi;
        users = 0
    }
}

inline die() {
    atomic {
        if
        :: means[2 * p] = 0
        :: means[2 * p + 1] = 0
        fi
    }
}

active proctype heap() {
    byte acts, p, q, i, k, old, new, users;
    bool fits, written;
    atomic {
        for (p : 0 .. PAGES - 1) { shows[p] = p }
        p = 0; lock = true
    }
    do
    :: atomic { ACTS == 0 || acts < ACTS ->
        acts = (ACTS == 0 -> 0 : acts + 1);
        i = 0; k = 0; old = 0; new = 0; users = 0; fits = false; written = false; p = 0; q = 0;
        do
        :: p < PAGES - 1 -> p++
        :: break
        od;
        do
        :: q < PAGES - 1 -> q++
        :: break
        od }
        if
        :: mesh()
        :: member[p] && USED(p) && !writing[p] -> part()
        :: writing[p] -> writing[p] = false
        :: member[p] && !USED(p) -> leave()
        :: !member[p] -> put()
        :: member[p] && !writing[p] && USED(p) -> die()
        :: else
        fi
    :: ACTS != 0 && acts == ACTS -> break
    od
}

/* Stores through a view whenever it likes: other bytes, the same ones again later. */
active proctype writer() {
    byte cell;
    (lock);
    do
    :: atomic {
        cell = 0;
        do
        :: cell < CELLS - 1 -> cell++
        :: break
        od;
        if
        :: writing[cell / 2] && means[cell] != 0 ->
            means[cell] = (means[cell] < 3 -> means[cell] + 2 : means[cell] - 2);
            SEEN(cell / 2, cell % 2) = means[cell]
        :: else
        fi;
        cell = 0 }
    od
}

active proctype reader() {
    byte at;
    (lock);
    atomic {
        for (at : 0 .. CELLS - 1) {
            assert(means[at] == 0 || (held[shows[at / 2]] && SEEN(at / 2, at % 2) == means[at]))
        }
    }
}
