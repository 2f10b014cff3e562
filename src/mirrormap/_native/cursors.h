/* The words that the processes round one ring share, and the only code that touches them.
 *
 *   written - capacity   claimed - capacity        written        claimed
 *          |  overwritten now  |   intact: readers  |  being written |
 *
 * One writer, any number of readers. Before the writer touches the first byte of an item's place it
 * publishes `claimed`, after the last byte `written`; both only grow, in items since the beginning.
 * What a reader sees from claimed - capacity on was intact at that moment, so reading and then asking
 * again proves what was read (a seqlock whose sequence is the cursor itself; Boehm, "Can seqlocks get
 * along with programming language memory models?", 2012).
 *
 * Waiting goes through flags: whoever is about to sleep sets the flag, looks once more, and sleeps on
 * it as a futex; whoever changes the cursor clears the flag, if it is set, and wakes. Both sides put a
 * full fence between their store and their load, so one of them sees the other. Bit 0 of the word is
 * the flag and the rest counts how often it was cleared: were it the same word again once another
 * sleeper has set it anew, the first would sleep on after its wake-up had come and gone.
 *
 * Nothing here trusts the words: positions are reduced modulo sizes that the caller holds itself. */
#ifndef MIRRORMAP_CURSORS_H
#define MIRRORMAP_CURSORS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MM_LINE = 64, MM_SLOTS = 184, MM_CONTROL = 16384, MM_GEOMETRY = MM_CONTROL / 4 };

/* A reader that the writer has to wait for. What follows `position` is a channel's, and nothing in a ring. */
struct mm_slot {
    _Alignas(MM_LINE) _Atomic uint64_t owner; /* who holds it: process and start time; 0: free */
    _Atomic uint64_t position;                /* the first item it still needs; UINT64_MAX: none */
    _Atomic uint64_t held, held_end;          /* a group's worker: what it has taken, see groups.c */
    _Atomic uint64_t sequence;                /* of its next message, in a group of the one at `held_end` */
    _Atomic uint64_t missed;                  /* messages it never saw */
    _Atomic uint64_t address;                 /* of the socket it waits at; 0: none */
    _Atomic uint32_t left;                    /* messages that it has taken and not done with, or more */
    _Atomic uint16_t group;                   /* 1 + the group's index; 0: none */
    _Atomic uint16_t rings;                   /* 1: send a byte to `address` */
};
_Static_assert(sizeof(struct mm_slot) == MM_LINE, "a slot is a cache line");

struct mm_control {
    unsigned char geometry[MM_GEOMETRY];      /* written once, before anybody else can look */
    _Alignas(MM_LINE) _Atomic uint64_t claimed;
    _Atomic uint64_t written;
    _Atomic uint64_t intended;                /* lossless: claimed once the readers allow it */
    _Atomic uint64_t writer;                  /* who holds the writer's place; 0: nobody */
    _Atomic uint64_t writers;                 /* how often it has been taken */
    _Alignas(MM_LINE) _Atomic uint32_t data_wanted; /* bit 0: somebody waits */
    _Alignas(MM_LINE) _Atomic uint32_t room_wanted;
    _Atomic uint32_t arrivals;                /* readers that have taken a slot so far */
    struct mm_slot slots[MM_SLOTS];
};
_Static_assert(sizeof(struct mm_control) <= MM_CONTROL, "the control pages hold the cursors");

/* Between two looks at a word that another processor is about to change. */
static inline void mm_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* --- the writer ------------------------------------------------------------------------- */

/* Everything below `upto` may be overwritten from now on, as far as it lies a lap behind. */
void mm_claim(struct mm_control *shared, uint64_t upto);
/* All items below `upto` are there. True: somebody waits, wake data_wanted. */
bool mm_publish(struct mm_control *shared, uint64_t upto);
/* Lossless: say what is to be claimed, before the slots are looked at. */
void mm_intend(struct mm_control *shared, uint64_t upto);
/* The lowest position of any reader; UINT64_MAX without readers. */
uint64_t mm_slowest(const struct mm_control *shared);

/* --- a reader --------------------------------------------------------------------------- */

/* Index of the first item that is intact now. To be asked again after reading. */
uint64_t mm_oldest(struct mm_control *shared, uint64_t capacity);
/* Take a free slot. Returns its index, or -1. `*position` is raised to what no writer will touch. */
int mm_arrive(struct mm_control *shared, uint64_t owner, uint64_t capacity, uint64_t *position);
/* Move on, or leave with position UINT64_MAX. True: the writer waits, wake room_wanted. */
bool mm_advance(struct mm_control *shared, int slot, uint64_t position);

/* Forget what a slot held and free it; the owner's word is ours. */
void mm_vacate(struct mm_slot *slot);

/* --- both ------------------------------------------------------------------------------- */

/* Replace the owner of a place if it is still `expected`. */
bool mm_seize(_Atomic uint64_t *owner, uint64_t expected, uint64_t wanted);
/* About to sleep: set the flag; the caller must look at the cursors once more afterwards. Returns the
 * word to sleep on. */
uint32_t mm_want(_Atomic uint32_t *flag);
/* After a store that somebody may wait for: clear the flag. True: it was set, wake. */
bool mm_is_wanted(_Atomic uint32_t *flag);

#endif
