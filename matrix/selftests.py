"""The kernel's own tests of memory, from the source of Debian's newest kernel, built here and kept outside the tree."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from debian import CACHE, UnavailableError, apt_of, download, run

SUITE = "trixie-backports"
CAPABILITIES = "bookworm"  # whose libcap.a fits the cross-compilers' C libraries
TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
TRIPLETS |= {"ppc64el": "powerpc64le-linux-gnu", "s390x": "s390x-linux-gnu"}
SELFTESTS = "tools/testing/selftests"
WANTED = (
    *(f"{SELFTESTS}/{name}" for name in ("*.h", "mm", "memfd", "proc")),
    "tools/include",
    "mm/gup_test.h",
)


@dataclass(frozen=True)
class Selftest:
    """One program.

    Attributes:
        name, folder, arguments: how it is built and called.
        subject: which of our calls it is about.
        here: whether it leaves the machine's own settings, its pool of huge pages above all, alone.
        user: run by somebody else than root, as it asks for.
    """

    name: str
    subject: str
    folder: str = "mm"
    arguments: str = ""
    more: tuple[str, ...] = ()
    here: bool = True
    user: bool = False

    @property
    def shown(self) -> str:
        """Name and arguments."""
        return f"{self.name} {self.arguments}".strip()


TESTS = [
    Selftest("mremap_test", "mremap: moves, growth, alignment, many mappings"),
    Selftest("mremap_dontunmap", "snapshots: MREMAP_DONTUNMAP"),
    Selftest("merge", "which mappings the kernel joins after mremap"),
    Selftest("map_fixed_noreplace", "map(address=): MAP_FIXED_NOREPLACE"),
    Selftest("map_populate", "MAP_POPULATE and copies of it"),
    Selftest("madv_populate", "populate: MADV_POPULATE_READ and _WRITE"),
    Selftest("pagemap_ioctl", "residency: PAGEMAP_SCAN"),
    Selftest("mlock2-tests", "locked sources"),
    Selftest("mlock-random-test", "locked sources, RLIMIT_MEMLOCK", user=True),
    Selftest("on-fault-limit", "RLIMIT_MEMLOCK", user=True),
    Selftest("mseal_test", "sealed mappings"),
    Selftest("memfd_secret", "memory that nobody may map again"),
    Selftest("memfd_test", "memfd: seals, names, sizes", folder="memfd", more=("common",)),
    Selftest(
        "memfd_test",
        "memfd of huge pages",
        folder="memfd",
        arguments="hugetlbfs",
        more=("common",),
        here=False,
    ),
    Selftest("proc-self-map-files-001", "map_files", folder="proc"),
    Selftest("proc-self-map-files-002", "map_files", folder="proc"),
    Selftest("hugetlb-mremap", "huge pages moved: mremap", here=False),
    Selftest("hugetlb-mmap", "huge pages: mmap", here=False),
    Selftest("hugetlb-madvise", "huge pages: MADV_DONTNEED, MADV_REMOVE, holes", here=False),
    Selftest("khugepaged", "MADV_COLLAPSE of shared memory", arguments="madvise:shmem", here=False),
]
PER_TEST_S = 420
OPTIONS = ("-static", "-O2", "-w", "-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", "-U_FORTIFY_SOURCE")


@dataclass
class Outcome:
    """What one program said.

    Attributes:
        status: its exit status; None: not built, `reason` says why.
        passed, failed, skipped: its cases by name; a program that does not list cases is one itself.
        words, explained: what a failure said, and why that is as it should be, by case, where known.
    """

    status: int | None
    reason: str = ""
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    explained: dict[str, str] = field(default_factory=dict)


@functools.cache
def source() -> Path:
    """The unpacked parts of the kernel's source, and headers/ with those of the same release, cached."""
    environment = apt_of(SUITE, "amd64")
    names = run("apt-cache", "pkgnames", "linux-source-", env=environment).split()
    found = [name for name in names if re.fullmatch(r"linux-source-\d+\.\d+", name)]
    if not found:
        raise UnavailableError(f"{SUITE} has no source of a kernel")
    newest = max(found, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    folder = CACHE / newest
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        for package in (newest, "linux-libc-dev"):
            (place := Path(scratch) / package).mkdir()
            unpacked = part / "headers" if package != newest else place / "tree"
            run("dpkg-deb", "--extract", download(package, environment, place), unpacked)
        (tarball,) = Path(scratch).glob(f"{newest}/tree/usr/src/*.tar.xz")
        wanted = [f"*/{name}" for name in WANTED]
        run("tar", "-xf", tarball, "-C", part, "--strip-components=1", "--wildcards", *wanted)
    (part / SELFTESTS / "mm/local_config.h").touch()  # its configuration looks for liburing alone
    part.rename(folder)
    return folder


def release() -> str:
    """The version of the source, as Debian writes it."""
    environment = apt_of(SUITE, "amd64")
    policy = run("apt-cache", "policy", source().name, env=environment)
    found = re.search(r"Candidate: (\S+)", policy)
    return found[1] if found else source().name


def capabilities(arch: str) -> Path:
    """usr/ of libcap's development package."""
    folder = CACHE / "libcap" / arch
    if not folder.is_dir():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            package = download("libcap-dev", apt_of(CAPABILITIES, arch), Path(scratch))
            run("dpkg-deb", "--extract", package, folder)
    return folder / "usr"


def built(arch: str) -> Path:
    """A folder with the programs, statically linked, so that one build serves every guest; NAME.why for what failed."""
    names = hashlib.sha256(repr((TESTS, OPTIONS)).encode()).hexdigest()[:8]
    folder = source() / f"built-{arch}-{names}"
    if folder.is_dir():
        return folder
    triplet = TRIPLETS[arch]
    compiler = "gcc" if arch == "amd64" else f"{triplet}-gcc"
    root, libcap = source() / "headers/usr/include", capabilities(arch)
    selftests = source() / SELFTESTS
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    options = [*OPTIONS]
    for place in (root / triplet, root, libcap / "include"):
        options += ["-isystem", str(place)]
    options += [f"-I{selftests}", f"-I{source() / 'tools/include'}", f"-I{source()}"]
    for test in TESTS:
        mine = selftests / test.folder
        names = [test.name, *test.more, *(("vm_util", "hugepage_settings") if test.folder == "mm" else ())]
        files = [mine / f"{name}.c" for name in names]
        libraries = ["-lrt", "-lpthread", "-lm", f"-L{libcap / 'lib' / triplet}", "-lcap"]
        try:
            # some write files beside their own source, which no guest has
            run(
                compiler,
                *options,
                f"-fmacro-prefix-map={mine}=/tmp",
                *files,
                "-o",
                part / test.name,
                *libraries,
                cwd=mine,
            )
        except UnavailableError as error:
            lines = str(error).splitlines()
            why = next((line for line in lines if "error" in line), lines[-1])
            (part / f"{test.name}.why").write_text(why.rpartition("/")[2])
    part.rename(folder)
    return folder


def script(folder: str, *, here: bool) -> str:
    """What a shell runs: every program, between marks."""
    lines = [f"cd {folder} || exit 1", "ulimit -c 0"]
    for test in TESTS:
        if here and not test.here:
            continue
        # a limit is what on-fault-limit and mlock-random-test are about; the user may not have raised it
        somebody = "setpriv --reuid=1000 --regid=1000 --clear-groups --inh-caps=-all " if test.user else ""
        called = (
            f"{somebody}timeout -k 5 {PER_TEST_S} setarch -R ./{test.name} {test.arguments} 2>&1 </dev/null"
        )
        lines += [
            f"echo '@@TEST {test.shown}@@'",
            f"if [ -x {test.name} ]; then {called}; else cat {test.name}.why; false; fi",
        ]
        lines += ["status=$?; echo; echo @@EXIT $status@@"]
    return "\n".join(lines)


def outcomes(output: str, folder: Path) -> dict[str, Outcome]:
    """By `shown` name, what each program of the script() said."""
    found: dict[str, Outcome] = {}
    for shown, said, status in re.findall(
        r"^@@TEST (.*?)@@\n(.*?)\n@@EXIT (\d+)@@$", output, re.MULTILINE | re.DOTALL
    ):
        name = shown.partition(" ")[0]
        if (folder / f"{name}.why").exists():
            found[shown] = Outcome(None, f"not built: {said.strip()}")
        else:
            found[shown] = judged(shown, said, int(status))
    return found


def judged(shown: str, said: str, status: int) -> Outcome:
    """The lines `ok`, `not ok` and `# SKIP` of TAP; without any the exit status alone speaks (4: skipped)."""
    outcome = Outcome(status)
    last = [line for line in said.splitlines() if line.strip()][-1:] or [""]
    for verdict, rest in re.findall(r"^(ok|not ok) \d+ ?(.*)$", said, re.MULTILINE):
        name, mark, why = rest.partition("# SKIP")
        name = re.sub(r"0x[0-9a-f]+|# (XFAIL|XPASS)", "", name).strip(" -\t")
        if mark:
            outcome.skipped[name or why.strip()] = why.strip()
        else:
            (outcome.passed if verdict == "ok" else outcome.failed).append(name or shown)
    whole = re.search(r"^1\.\.0 # SKIP (.*)$", said, re.MULTILINE)
    if whole or (status == 4 and not outcome.failed):
        outcome.skipped.setdefault(shown, whole[1].strip() if whole else last[0])
    elif status in (124, 137):
        outcome.failed.append(f"did not end in {PER_TEST_S} s")
    elif status and not outcome.failed:
        outcome.failed.append(f"exit status {status}: {last[0][:120]}")
    elif not (outcome.passed or outcome.failed or outcome.skipped):
        outcome.passed.append(shown)
    return outcome
