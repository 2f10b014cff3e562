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
    NotPermittedError,
    Overrun,
    ProcessGone,
    WriterGone,
)
from mirrormap.inspect import Footprint, MirrorGroup, Mirrors, MirrorView, Vma, mappings, mirrors
from mirrormap.growable import Growable
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
    "Footprint",
    "Growable",
    "MapError",
    "Mapping",
    "MirrorError",
    "MirrorGroup",
    "MirrorView",
    "Mirrors",
    "NotMirrorableError",
    "NotPermittedError",
    "Overrun",
    "Pages",
    "ProcessGone",
    "Reader",
    "Ring",
    "Vma",
    "WriterGone",
    "copyto",
    "empty",
    "full",
    "is_mirror",
    "mappings",
    "mirror",
    "mirrors",
    "mremap",
    "probe",
    "share",
    "shares_memory",
    "zeros",
]
