"""Which kernels, page sizes and Pythons are tried."""

from __future__ import annotations

from dataclasses import dataclass

# by Python: the suites whose own Python it is, the first that answers is taken
SUITES = {"3.11": ("bookworm",), "3.13": ("trixie",), "3.14": ("forky", "sid")}
ANY = r"\d+\.\d+\..*"


@dataclass(frozen=True)
class Cell:
    """One kernel on one processor under one Python.

    Attributes:
        kernel, pages, python: what `make matrix` chooses by.
        suites, pattern: where its package is found, and what its name looks like.
        short: among those that every run of the checks boots.
    """

    kernel: str
    pages: str
    python: str
    arch: str
    suites: tuple[str, ...]
    pattern: str
    short: bool = False

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.kernel}-{self.arch}-{self.pages}-py{self.python}"


def cloud(version: str) -> str:
    """Debian's kernel for virtual machines, a quarter the size of the general one."""
    return rf"{version}-cloud-amd64"


CELLS = [
    Cell("5.10", "4k", "3.13", "amd64", ("bullseye-security",), cloud(r"5\.10\..*"), short=True),
    Cell("6.1", "4k", "3.11", "amd64", ("bookworm",), cloud(r"6\.1\..*")),
    Cell("6.12", "4k", "3.13", "amd64", ("trixie",), cloud(r"6\.12\..*"), short=True),
    Cell("6.18", "4k", "3.13", "amd64", ("trixie-backports",), cloud(r"6\.18\..*")),
    Cell("newest", "4k", "3.13", "amd64", ("trixie-backports",), cloud(ANY), short=True),
    Cell("newest", "4k", "3.14", "amd64", ("trixie-backports",), cloud(ANY)),
    Cell("6.12", "16k", "3.13", "arm64", ("trixie",), r"6\.12\..*-arm64-16k", short=True),
    Cell("newest", "16k", "3.13", "arm64", ("trixie-backports",), ANY + "-arm64-16k"),
    Cell("newest", "64k", "3.14", "ppc64el", ("forky", "sid"), ANY + "-powerpc64le-64k", short=True),
    Cell("newest", "4k", "3.14", "s390x", ("forky", "sid"), ANY + "-s390x"),
]
