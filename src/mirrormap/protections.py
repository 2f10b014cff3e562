"""Names for PROT_* bits."""

from __future__ import annotations

from typing import Final

from mirrormap import kernel

__all__ = ["protection_bits", "protection_name"]

_PROTECTIONS: Final = {
    "none": kernel.PROT_NONE,
    "r": kernel.PROT_READ,
    "rw": kernel.PROT_READ | kernel.PROT_WRITE,
    "rx": kernel.PROT_READ | kernel.PROT_EXEC,
}


def protection_bits(protection: str) -> int:
    """PROT_* bits of "none", "r", "rw" or "rx". Raises: ValueError for anything else."""
    try:
        return _PROTECTIONS[protection]
    except (KeyError, TypeError):
        raise ValueError(f"protection {protection!r} must be one of 'none', 'r', 'rw', 'rx'") from None


def protection_name(bits: int) -> str:
    """The name of PROT_* bits; combinations that mirrormap never makes too, such as "rwx"."""
    return (
        "".join(
            letter
            for letter, bit in (("r", kernel.PROT_READ), ("w", kernel.PROT_WRITE), ("x", kernel.PROT_EXEC))
            if bits & bit
        )
        or "none"
    )
