"""Mirrored memory: the same physical pages, visible at two or more virtual addresses."""

from mirrormap.aliasing import copyto, is_mirror, shares_memory
from mirrormap.allocator import Allocator, numpy_allocator
from mirrormap.arrays import empty, full, share, zeros
from mirrormap.capabilities import Capabilities, probe
from mirrormap.channel import Channel
from mirrormap.errors import (
    BusyError,
    ClosedError,
    CorruptError,
    MapError,
    MirrorError,
    NotMirrorableError,
    NotPermittedError,
    Overrun,
    ProcessGone,
    SenderGone,
    WriterGone,
)
from mirrormap.growable import Growable
from mirrormap.handles import Handle, handle
from mirrormap.heap import (
    LRU,
    Census,
    Frozen,
    FrozenRoots,
    Heap,
    HeapArray,
    HeapStats,
    Map,
    Pauses,
    Pin,
    Roots,
    Weak,
)  # fmt: skip
from mirrormap.inspect import Footprint, MirrorGroup, Mirrors, MirrorView, Vma, mappings, mirrors
from mirrormap.kernel import Message, Reservation
from mirrormap.kernel.heaps import FrozenRecord, FrozenRef, Record, Ref
from mirrormap.mapping import Mapping
from mirrormap.members import Peer
from mirrormap.mirror import mirror
from mirrormap.pages import Pages
from mirrormap.reader import Reader
from mirrormap.receiver import Receiver
from mirrormap.remap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, MREMAP_MIRROR, mremap
from mirrormap.ring import Ring
from mirrormap.sender import Sender
from mirrormap.snapshot import Snapshot, snapshot
from mirrormap.stitch import stitch

__all__ = [
    "MREMAP_DONTUNMAP",
    "MREMAP_FIXED",
    "MREMAP_MAYMOVE",
    "MREMAP_MIRROR",
    "Allocator",
    "BusyError",
    "Capabilities",
    "Census",
    "Channel",
    "ClosedError",
    "CorruptError",
    "Footprint",
    "Frozen",
    "FrozenRecord",
    "FrozenRef",
    "FrozenRoots",
    "Growable",
    "Handle",
    "Heap",
    "HeapArray",
    "HeapStats",
    "LRU",
    "Map",
    "MapError",
    "Mapping",
    "Message",
    "MirrorError",
    "MirrorGroup",
    "MirrorView",
    "Mirrors",
    "NotMirrorableError",
    "NotPermittedError",
    "Overrun",
    "Pages",
    "Pauses",
    "Pin",
    "ProcessGone",
    "Peer",
    "Reader",
    "Receiver",
    "Record",
    "Ref",
    "Reservation",
    "Ring",
    "Roots",
    "Vma",
    "Snapshot",
    "Sender",
    "SenderGone",
    "Weak",
    "WriterGone",
    "copyto",
    "empty",
    "full",
    "handle",
    "is_mirror",
    "mappings",
    "mirror",
    "mirrors",
    "mremap",
    "numpy_allocator",
    "probe",
    "share",
    "shares_memory",
    "snapshot",
    "stitch",
    "zeros",
]
