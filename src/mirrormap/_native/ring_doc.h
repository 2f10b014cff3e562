/* What help() says of the methods of Ring that are written in C. */
#ifndef MIRRORMAP_RING_DOC_H
#define MIRRORMAP_RING_DOC_H

static const char append_doc[] =
    "append($self, item, timeout=None)\n--\n\n"
    "Write one item: a scalar, or an array-like of the ring's shape.\n\n"
    "Args: timeout: on a lossless ring, seconds to wait for the slowest reader; None: for ever.\n"
    "Raises: BusyError when another writer lives or a reservation is open; TimeoutError; TypeError,\n"
    "    ValueError for what does not convert by \"same_kind\".";

static const char extend_doc[] =
    "extend($self, block, timeout=None)\n--\n\n"
    "Write a block of items: array-like, shape ``(n, *shape)``.\n\n"
    "An overwriting ring takes a block of any length and keeps its newest items. A lossless one waits\n"
    "for room for the whole block; one longer than the capacity goes in by pieces.\n"
    "Args, Raises: as append.";

static const char reserve_doc[] =
    "reserve($self, n, timeout=0)\n--\n\n"
    "Room for the next n items, to be written in place and then committed.\n\n"
    "What lies a lap behind counts as overwritten from now on.\n"
    "Returns: writable, shape ``(n, *shape)``, with whatever was there before.\n"
    "Raises: TimeoutError when a lossless ring has no room within timeout seconds; BusyError;\n"
    "    ValueError unless n is 1 to the capacity.";

static const char commit_doc[] =
    "commit($self, n=None, /)\n--\n\n"
    "Publish the first n items of the reservation, all by default; the rest of it is given up.\n\n"
    "Raises: ValueError without a reservation, or for more than it has.";

static const char latest_doc[] =
    "latest($self, n, /)\n--\n\n"
    "The newest n items. On an overwriting ring a live view: check with valid().\n\n"
    "Returns: read-only, shape ``(n, *shape)``, contiguous wherever the seam lies, no copy.\n"
    "Raises: ValueError if fewer are written, or more asked for than the capacity.";

static const char window_doc[] =
    "window($self, start, stop, /)\n--\n\n"
    "Items start to stop by absolute index, as latest().\n\n"
    "Raises: IndexError for items not written yet; Overrun for items already overwritten.";

static const char valid_doc[] =
    "valid($self, start, /)\n--\n\n"
    "Is everything from item start on still intact? The check after computing on a live view.";

static const char written_doc[] = "Items ever written: the absolute index of the next one.";
static const char oldest_doc[] = "Absolute index of the oldest intact item.";
static const char capacity_doc[] = "Items the ring holds.";

#endif
