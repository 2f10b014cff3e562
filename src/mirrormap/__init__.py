"""Mirrored memory: the same physical pages, visible at two or more virtual addresses."""

from mirrormap.aliasing import copyto, is_mirror, shares_memory
from mirrormap.arrays import empty, full, share, zeros
from mirrormap.capabilities import Capabilities, probe
from mirrormap.errors import (
    BusyError,
    ClosedError,
    CorruptError,
    MapError,
    MirrorError,
    NotMirrorableError,
    Overrun,
    WriterGone,
)
from mirrormap.mapping import Mapping
from mirrormap.mirror import mirror
from mirrormap.pages import Pages
from mirrormap.reader import Reader
from mirrormap.remap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, MREMAP_MIRROR, mremap
from mirrormap.ring import Ring

__all__ = [
    "MREMAP_DONTUNMAP",
    "MREMAP_FIXED",
    "MREMAP_MAYMOVE",
    "MREMAP_MIRROR",
    "BusyError",
    "Capabilities",
    "ClosedError",
    "CorruptError",
    "MapError",
    "Mapping",
    "MirrorError",
    "NotMirrorableError",
    "Overrun",
    "Pages",
    "Reader",
    "Ring",
    "WriterGone",
    "copyto",
    "empty",
    "full",
    "is_mirror",
    "mirror",
    "mremap",
    "probe",
    "share",
    "shares_memory",
    "zeros",
]
