/* What help() says of the parts of Heap that are written in C. */
#ifndef MIRRORMAP_HEAP_DOC_H
#define MIRRORMAP_HEAP_DOC_H

#define DOC static const char __attribute__((unused))

DOC ref_doc[] =
    "A hold on one object of a Heap, which lives at least as long. Made by the heap, never called.\n\n"
    "memoryview(ref), ref.array and np.asarray(ref) show its bytes where they lie, read-only; bytes(ref) copies\n"
    "them. While any view lives the object keeps its address; otherwise it may move, which nobody can see.\n\n"
    "ref[i] is a Ref of the object that reference number i leads to, or None; ref[i] = other, or None, stores\n"
    "one. Refs of one object are equal and hash alike for as long as one of them lives.\n\n"
    "Raises: ClosedError after the heap was closed, and in a forked child; IndexError; TypeError;\n"
    "    ValueError for a Ref of another heap; MemoryError.";

DOC array_doc[] =
    "Its bytes as a read-only ndarray, no copy: of the dtype and shape that were put, else of uint8.";

DOC writable_doc[] =
    "writable($self)\n--\n\n"
    "with ref.writable() as array: the same array, and it may be written.\n\n"
    "The object keeps its address while that array, or anything cut from it, lives.";

DOC put_doc[] =
    "put($self, data, /)\n--\n\n"
    "A copy of the data in the heap.\n\n"
    "Args: data: bytes-like and contiguous; or an ndarray, whose dtype and shape are kept, in C order.\n"
    "Returns: a Ref.\n"
    "Raises: MemoryError, with the figures, when a collection has not made room either; TypeError for other\n"
    "    objects and for dtypes with objects; ClosedError. Kernel call: fallocate(2), before bytes are stored.";

DOC new_doc[] =
    "new($self, nbytes, nrefs=0)\n--\n\n"
    "An object of zero bytes of data, to be written by ref.writable(), and of references that are None.\n\n"
    "Args: nbytes: of data, below 1 TiB. nrefs: how many references, below 2**31.\n"
    "Returns: a Ref.\n"
    "Raises: MemoryError as put(); ValueError; ClosedError.";

DOC record_doc[] =
    "Base of the classes that Heap.record() declares: Node(key=5, left=other), fields that were not given are zero,\n"
    "False or None. Fields are given by name, or in their order.\n\n"
    "node.key reads a field, node.key = 6 stores one. Records go wherever a Ref goes; two of the same record are equal\n"
    "and hash alike. They show no bytes: memoryview() and numpy do not take them.\n\n"
    "Raises: ClosedError after the heap was closed, and in a forked child; OverflowError for an int that does not fit;\n"
    "    TypeError; ValueError for a Ref of another heap; MemoryError.";

DOC view_doc[] =
    "view($self, key, /)\n--\n\n"
    "A read-only memoryview of a value where it lies, in its dtype and shape; a context manager. A use of it.\n\n"
    "The value keeps its address, and its bytes, until the view is released, also when it is removed meanwhile.\n"
    "Raises: KeyError; ClosedError; MemoryError.";

DOC get_doc[] =
    "get($self, key, default=None)\n--\n\n"
    "A copy of the value of a key, or the default.";

DOC pop_doc[] =
    "pop($self, key, default=...)\n--\n\n"
    "Remove a key. Returns: a copy of its value, or the default. Raises: KeyError where none is given.";

DOC popitem_doc[] =
    "popitem($self)\n--\n\n"
    "Remove the first key. Returns: it, and a copy of its value. Raises: KeyError: there is none.";

DOC clear_doc[] =
    "clear($self)\n--\n\n"
    "Remove all keys that are there now.";

DOC frozen_ref_doc[] =
    "One object of a Frozen image, read-only. memoryview(ref), ref.array and np.asarray(ref) show it where it lies,\n"
    "bytes(ref) copies it, ref[i] is what reference number i leads to, or None. Equal where the object is the same.\n\n"
    "Raises: CorruptError for what cannot be; ClosedError after the image was closed; IndexError.";

DOC frozen_record_doc[] =
    "Base of the classes of records in a Frozen image: the fields of Heap.record(), to be read. Equal where the record is\n"
    "the same.\n\n"
    "Raises: CorruptError; ClosedError after the image was closed; AttributeError on an attempt to store.";

#endif
