"""What demonstrations show: files of packages that are installed for these alone, and never imported."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path


def shipped_by(package: str, file: str) -> Path | None:
    """Where `file` of a package lies, or None where either is not there."""
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.exists() else None
