/* What help() says of the parts of Channel that are written in C. */
#ifndef MIRRORMAP_CHANNEL_DOC_H
#define MIRRORMAP_CHANNEL_DOC_H

#define DOC static const char __attribute__((unused))

DOC send_doc[] =
    "send($self, data, timeout=None)\n--\n\n"
    "Send one message.\n\n"
    "Args: data: bytes-like; or an ndarray, whose dtype and shape travel with it.\n"
    "    timeout: on a lossless channel, seconds to wait for the slowest receiver; None: for ever.\n"
    "Raises: ValueError for more than the capacity, before anything is sent; TypeError for other objects\n"
    "    and dtypes with objects; TimeoutError; BusyError while a reservation is open.";

DOC send_many_doc[] =
    "send_many($self, messages, timeout=None)\n--\n\n"
    "Send each message of an iterable, waking receivers once at the end.\n\n"
    "Args: timeout: for each of them. Returns: how many were sent.\n"
    "Raises: as send, or what the iterable raises; the messages before that are sent.";

DOC reserve_doc[] =
    "reserve($self, what, timeout=None)\n--\n\n"
    "The place of the next message, to be written where receivers will read it.\n\n"
    "Args: what: a number of bytes, or (shape, dtype).\n"
    "Returns: a Reservation, with whatever bytes were there before. Raises: as send.";

DOC sequence_doc[] = "Number of the next message; how many were ever sent.";
DOC next_doc[] = "Number of the next message, the group's where there is one.";

DOC reservation_doc[] =
    "The place of the next message; made by Sender.reserve. Exports a writable buffer (1-D, format \"B\").\n\n"
    "As a context manager it is committed at the end, and abandoned by an exception. Receivers never see\n"
    "one that was abandoned, or whose sender died.";

DOC commit_doc[] =
    "commit($self, nbytes=None)\n--\n\n"
    "Send it: the first nbytes, all by default.\n\n"
    "Raises: BufferError while an array or memoryview shows it, which abandons it; ClosedError when it was\n"
    "    committed or abandoned before; ValueError for more than was reserved, or for part of an array.";

DOC abandon_doc[] =
    "abandon($self)\n--\n\n"
    "Send nothing. The sender is busy until the last view of it is gone.";

DOC room_array_doc[] = "The place as a writable array: of the shape and dtype asked for, or 1-D of u1.";

DOC message_doc[] =
    "One message where it lies; made by a Receiver. Exports a read-only buffer (1-D, format \"B\").\n\n"
    "Its place is pinned until release(), the end of the `with` block, or the end of its last view. On an\n"
    "overwriting channel the sender does not wait: release() and the end of `with` raise Overrun if the message\n"
    "was overwritten while it was held.";

DOC release_doc[] =
    "release($self)\n--\n\n"
    "Done with it: its place may be written again.\n\n"
    "Raises: BufferError while an array or memoryview shows it, and it stays as it is; Overrun if it was\n"
    "    overwritten while it was held.";

DOC array_doc[] =
    "The message as a read-only array of the dtype and shape that were sent, 1-D of u1 for bytes; no copy.\n\n"
    "Raises: CorruptError if its description was damaged; ClosedError once released.";

DOC intact_doc[] =
    "Whether it has not been overwritten so far: the check after computing on a message of an overwriting\n"
    "channel, and always true on a lossless one.";

DOC receive_doc[] =
    "receive($self, timeout=None)\n--\n\n"
    "The next message, waiting for it here.\n\n"
    "Args: timeout: seconds; None: for ever; 0: not at all.\n"
    "Raises: TimeoutError; SenderGone when all was read and no sender is left; Overrun when messages were\n"
    "    overwritten before they were read (the receiver goes on at the oldest left); CorruptError when the shared\n"
    "    memory was damaged (it goes on with what is sent from now on).";

DOC receive_many_doc[] =
    "receive_many($self, limit, timeout=None)\n--\n\n"
    "A list of 1 to `limit` messages: waits for the first, and takes what is there.\n\n"
    "In a group they are all taken at once. Raises: as receive; ValueError for a limit below 1.";

#endif
