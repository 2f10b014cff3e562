"""Who takes part in a channel, who of them is dead, and what is done about that."""

from __future__ import annotations

from typing import Literal, NamedTuple

from mirrormap.cursors import is_alive, is_still_alive, own_token
from mirrormap.kernel import End

__all__ = ["Peer", "evict", "forget_groups", "is_sender_gone", "peers"]


class Peer(NamedTuple):
    """One that takes part in a channel, as `Channel.peers` saw it.

    Attributes:
        role: "sender" or "receiver". pid: its process. alive: whether that runs.
        group: the name of its work queue (its first 40 bytes), or None.
        lag: messages sent and not read yet, by the whole group where there is one; 0 for a sender.
        missed: messages it never saw because they were overwritten.
    """

    role: Literal["sender", "receiver"]
    pid: int
    alive: bool
    group: str | None
    lag: int
    missed: int


def peers(end: End) -> list[Peer]:
    """The sender first, then the receivers by slot; the dead too, until somebody evicts them."""
    sender, _, _ = end._owners()
    newest = end._newest()
    sent = newest[1] if newest is not None else 0
    groups = {index: (sequence, name) for index, _, _, sequence, name in end._groups()}
    found = [Peer("sender", sender >> 32, is_alive(sender), None, 0, 0)] if sender else []
    for _, owner, group, sequence, missed in end._peers():
        name = None
        if group:
            sequence, text = groups.get(group - 1, (sent, b""))
            name = text.rstrip(b"\0").decode(errors="replace")
        found.append(Peer("receiver", owner >> 32, is_alive(owner), name, max(0, sent - sequence), missed))
    return found


def is_sender_gone(end: End) -> bool:
    """Was there a sender, and is there none now?"""
    sender, taken, _ = end._owners()
    # one killed as it took the place may not have been counted
    return bool(taken or sender) and not (sender and is_still_alive(sender))


def evict(end: End, *, drop: bool = False) -> bool:
    """Free the places of the dead.

    What a dead worker had taken stays for a living one of its group. Args: drop: a group without any is
    dropped with all that it had not done: nobody waits for the dead.
    Returns: whether anything was freed.
    """
    freed = False
    members = end._peers()
    living = {owner: is_alive(owner) for _, owner, *_ in members}
    alive = {group for _, owner, group, *_ in members if living[owner]}
    for slot, owner, group, *_ in members:
        if living[owner]:
            continue
        if group and end._held(slot) and (group in alive or not drop):
            if group in alive:
                end._orphan(group - 1)
            continue
        freed |= end._clear(slot, owner, own_token())
    if drop:
        for index, _, begun, *_ in end._groups():
            if begun and index + 1 not in alive:
                freed |= end._drop(index, False)
    return freed


def forget_groups(end: End) -> None:
    """Make room in the table of groups: those without a living worker are forgotten."""
    evict(end, drop=True)
    alive = {group for _, _, group, *_ in end._peers()}
    for index, *_ in end._groups():
        if index + 1 not in alive:
            end._drop(index, True)
