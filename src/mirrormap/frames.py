"""Private pages that show the same memory: by physical frame, which only root is told.

A fork leaves them shared until one side writes, and KSM merges equal ones. An anonymous page is mapped once
in a process otherwise, so there is nothing else to find.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mirrormap import kernel, pagetables
from mirrormap.kernel import PAGE_NBYTES, VmaInfo
from mirrormap.sameness import PROTECTIONS, MirrorGroup, MirrorView, Part, Snapshot

__all__ = ["by_frame"]

_PRESENT: Final = np.uint64(kernel.PAGE_IS_PRESENT)
_PRIVATE: Final = np.uint64(kernel.PAGE_IS_FILE | kernel.PAGE_IS_PFNZERO)


def by_frame(snapshots: list[Snapshot]) -> list[MirrorGroup] | None:
    """Groups of private pages in the same physical frames; None without CAP_SYS_ADMIN.

    Pages are grouped by the first entry that shows them, and by whether KSM merged them.
    """
    frames: list[NDArray[np.uint64]] = []
    entries: list[Part] = []
    which_entry: list[NDArray[np.intp]] = []
    for which, snapshot in enumerate(snapshots):
        rows = snapshot.rows
        if rows is None:
            continue
        rows = rows[(rows[:, 2] & _PRESENT != 0) & (rows[:, 2] & _PRIVATE == 0)]
        pages = pagetables.frames_of(snapshot.pid, rows)
        if pages is None:
            return None
        starts = np.array([vma[0] for vma in snapshot.entries], np.uint64)
        frames.append(pages)
        which_entry.append(np.searchsorted(starts, pages[:, 0], "right") - 1 + len(entries))
        entries += [Part(which, VmaInfo._make(row)) for row in snapshot.entries]
    if not frames:
        return []
    pages, entry = np.concatenate(frames), np.concatenate(which_entry)
    order = np.argsort(pages[:, 1], kind="stable")  # the first entry stays first
    pages, entry = pages[order], entry[order]
    numbers, first, count = np.unique(pages[:, 1], return_index=True, return_counts=True)
    many = (count > 1) & (numbers != 0)
    if not all(snapshot.scanned for snapshot in snapshots):
        many[many] = ~pagetables.zero_frames(numbers[many])
    merged = np.zeros(len(numbers), bool)
    merged[many] = pagetables.merged_frames(numbers[many])
    groups: list[MirrorGroup] = []
    owner = 2 * entry[first] + merged
    for key in np.unique(owner[many]).tolist():
        mine = np.flatnonzero(many & (owner == key))
        rows_of = np.repeat(first[mine] - np.cumsum(count[mine]) + count[mine], count[mine])
        rows_of += np.arange(len(rows_of))
        groups.append(_of_frames(snapshots, entries, entry[rows_of], pages[rows_of, 0], count[mine], key))
    return groups


def _of_frames(
    snapshots: list[Snapshot],
    entries: list[Part],
    entry: NDArray[np.intp],
    addresses: NDArray[np.uint64],
    count: NDArray[np.intp],
    key: int,
) -> MirrorGroup:
    home = entries[key // 2].vma
    once = len(count) * PAGE_NBYTES
    views: list[MirrorView] = []
    for index in map(int, np.unique(entry)):
        shown = addresses[entry == index]
        which, vma = entries[index]
        low, high = int(shown.min()), int(shown.max()) + PAGE_NBYTES
        nbytes = len(shown) * PAGE_NBYTES
        views.append(
            MirrorView(
                low, high, low - vma.start, snapshots[which].pid, nbytes, 1,
                PROTECTIONS[vma.protection], False, nbytes,
                ((low, 0, min(nbytes, once)),),
            )
        )  # fmt: skip
    depth, pages = np.unique(count, return_counts=True)
    at = 0
    runs: list[tuple[int, int, int]] = []
    for views_each, number in zip(depth.tolist(), pages.tolist(), strict=True):
        runs.append((at, number * PAGE_NBYTES, views_each))
        at += number * PAGE_NBYTES
    return MirrorGroup(
        name=home.name.removesuffix(" (deleted)"),
        nbytes=once,
        views=tuple(views),
        counts=tuple(runs),
        resident=once,
        rss=len(addresses) * PAGE_NBYTES,
        page_size=PAGE_NBYTES,
        kind="ksm" if key % 2 else "fork",
        dev=0,
        inode=0,
    )
