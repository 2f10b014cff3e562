"""What everything that is closed has in common: a `with` block, and an end without one."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Self

__all__ = ["Closing", "SelfClosing"]


class Closing:
    """A context manager that closes at its end; what is closed already is not entered.

    A class of it has `close()`, and `_live`, which raises ClosedError once that was called.
    """

    __slots__ = ()

    @property
    def _live(self) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        _ = self._live
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BufferError:
            if kind is None:  # an exception that is on its way says more
                raise


class SelfClosing(Closing):
    """One that holds a place among processes, and gives it up when it is forgotten."""

    __slots__ = ()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
