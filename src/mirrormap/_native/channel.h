/* Channel: what its files share. Sender and Receiver are both an End. */
#ifndef MIRRORMAP_CHANNEL_H
#define MIRRORMAP_CHANNEL_H

#include "frames.h"
#include "places.h"

#include "numpy.h"

enum { MOST_DIMS = 64 };

/* A dtype and a shape, and the text that tells them to others. */
struct about {
    PyObject *descr;           /* NULL: none is known yet */
    int ndim;
    npy_intp dims[MOST_DIMS];
    uint64_t nbytes;           /* of an array of it */
    uint32_t text_nbytes;
    char text[MM_ABOUT];
};

typedef struct {
    Places places;
    PyObject *data;            /* a Region that shows the same bytes twice; NULL: none is needed */
    struct mm_stream stream;
    bool overwrite;
    struct about about;        /* of the last array */
} End;

struct reservation;

typedef struct {
    End end;
    struct mm_next next;       /* our own: what stands in shared memory is for others */
    uint64_t needed;           /* nobody needs what lies before; as of `arrivals` */
    uint32_t arrivals;
    uint64_t inflight;         /* messages that may be unread; 0: as many as fit */
    uint64_t *ends;            /* where the last `inflight` messages end */
    uint64_t longest;          /* message that is taken, in bytes */
    uint64_t largest;          /* frame so far, in bytes */
    uint64_t start, required;  /* of the message that is being placed */
    struct patience patience;
    struct reservation *open;  /* whose bytes may still be written to */
    PyObject *wish;            /* what reserve() was asked for last, which `about` answers */
} Sender;

typedef struct message {
    PyObject_HEAD
    PyObject *receiver;        /* NULL once released */
    struct message *previous, *next; /* among those that are not released, in order of their places */
    const char *payload;
    uint64_t start, end, nbytes, sequence;
    int64_t time_ns;
    uint32_t about_nbytes;
    int slot;                  /* that pins it, or -1 */
    long exports;
} Message;

typedef struct {
    End end;
    long process;
    uint64_t position;         /* of the next frame */
    uint64_t sequence;         /* of the next message */
    int slot;                  /* our own; -1: an overwriting channel had none left */
    uint64_t seen;             /* what `written` was when it was last looked at */
    struct patience patience;
    struct mm_group *group;    /* NULL: every message is for us */
    Message *first, *last;     /* handed out and not released */
    Message *given;            /* by iteration: released at its next step */
    PyObject *pending;         /* a list of messages that are taken and not handed out */
} Receiver;

typedef struct reservation {
    PyObject_HEAD
    PyObject *sender;
    char *payload;
    uint64_t nbytes;
    uint32_t about_nbytes;     /* 0: bytes */
    bool open;                 /* neither committed nor abandoned */
    long exports;
} Reservation;

extern PyTypeObject *end_type, *message_type, *pin_type, *reservation_type;
extern PyType_Spec end_spec, sender_spec, receiver_spec, message_spec, pin_spec, reservation_spec;

/* channel.c */
bool about_set(struct about *about, PyObject *answer);   /* (text, dtype, shape) from Python */
/* An array of it. `base` is handed over, lives as long as any array of these bytes and is to count as an export. */
PyObject *about_array(const struct about *about, char *payload, PyObject *base, bool writable);
int end_clear(End *end);
void free_object(PyObject *self);

/* sender.c */
Sender *sender_open(PyObject *self);
/* Room for a message, waiting for it. False: an exception is set. */
bool sender_place(PyObject *self, Sender *sender, uint64_t about_nbytes, uint64_t nbytes, PyObject *timeout);
char *sender_payload(const Sender *sender, uint64_t about_nbytes);
/* The message that was placed is there: frame it and tell. -1: an exception is set. */
void sender_frame(Sender *sender, uint32_t about_nbytes, uint64_t nbytes);
int sender_tell(PyObject *self, Sender *sender);

/* sender_send.c */
PyObject *sender_send(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names);
PyObject *sender_send_many(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names);

/* reservation.c */
PyObject *reservation_new(PyObject *self, Sender *sender, uint64_t nbytes, uint32_t about_nbytes);
PyObject *sender_reserve(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names);

/* receiver.c */
Receiver *receiver_open(PyObject *self);
enum found { NOTHING, FOUND, OVERRUN, DAMAGED };
/* The frame at `position`. */
enum found receiver_look(Receiver *receiver, uint64_t position, struct mm_header *header);
/* Where the oldest message is that is left, and its number. False: an exception is set. */
bool receiver_oldest(PyObject *self, uint64_t *position, uint64_t *sequence);
/* Tell by an exception that messages were missed, and count them; true when none were. */
bool receiver_missed(PyObject *self, Receiver *receiver, uint64_t from, uint64_t to);
void receiver_corrupt(PyObject *self, const char *what);
/* Give up everything that is handed out. False: a view shows some of it, BufferError is set. */
bool receiver_release_all(Receiver *receiver);

/* receiver_wait.c */
bool receiver_spin(Receiver *receiver); /* look for a message before sleeping */
PyObject *receiver_wait_data(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *receiver_want_bell(PyObject *self, PyObject *const *args, Py_ssize_t given);

/* message.c */
PyObject *message_new(PyObject *self, Receiver *receiver, int slot, uint64_t start, const struct mm_header *header);
int message_release(Message *message);   /* -1: BufferError */
bool message_is_intact(const Message *message);

/* worker.c */
PyObject *worker_next(PyObject *self, Receiver *receiver, int64_t limit);
PyObject *worker_adopt(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *worker_missed(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *worker_found(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *worker_join(PyObject *self, PyObject *args);
void worker_done(Receiver *receiver, const Message *message);
bool worker_leave(PyObject *self, Receiver *receiver);

/* worker_groups.c */
PyObject *worker_held(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *worker_groups(PyObject *self, PyObject *unused);
PyObject *worker_drop(PyObject *self, PyObject *const *args, Py_ssize_t given);

#endif
