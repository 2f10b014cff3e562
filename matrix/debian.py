"""Kernels and small roots, taken from the archive that this Debian machine already uses.

Nothing is installed here: apt gets a state of its own for every suite and architecture, and packages
are only unpacked. A root for a foreign architecture needs no second stage that way.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mirrormap-matrix"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SCRIPTS = Path("/usr/share/debootstrap/scripts")
NEEDED = {
    "debootstrap": "debootstrap",
    "cpio": "cpio",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-ppc64": "qemu-system-ppc",
    "qemu-system-s390x": "qemu-system-misc",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "powerpc64le-linux-gnu-gcc": "gcc-powerpc64le-linux-gnu",
    "s390x-linux-gnu-gcc": "gcc-s390x-linux-gnu",
    "/usr/aarch64-linux-gnu/include/limits.h": "libc6-dev-arm64-cross",
    "/usr/powerpc64le-linux-gnu/include/limits.h": "libc6-dev-ppc64el-cross",
    "/usr/s390x-linux-gnu/include/limits.h": "libc6-dev-s390x-cross",
}
UNUSED = (
    "boot debootstrap proc sys dev var/cache/apt var/lib/apt var/cache/debconf usr/share/doc usr/share/man "
    "usr/share/locale usr/share/info usr/share/i18n usr/share/zoneinfo usr/share/lintian usr/lib/*/perl* "
    "usr/share/perl* usr/lib/python3*/idlelib usr/lib/python3*/tkinter usr/lib/python3*/ensurepip "
    "usr/lib/*/gconv usr/share/bash-completion usr/share/common-licenses usr/lib/python3/dist-packages/numpy/*/tests"
)


class UnavailableError(Exception):
    """What was asked for is not in the archive, or a tool is missing."""


def run(*command: str | Path, **options: object) -> str:
    """A command's output. Raises: UnavailableError with the end of what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise UnavailableError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return str(done.stdout)


def missing_tools(names: set[str]) -> list[str]:
    """The Debian packages that bring those of the programs and headers that are not here."""
    return sorted({NEEDED[name] for name in names if not (shutil.which(name) or Path(name).exists())})


def archive(suite: str) -> str:
    """Address of the archive that this machine's own sources name."""
    wanted = "debian-security/" if suite.endswith("-security") else "debian/"
    for line in run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split():
        if line.endswith(wanted):
            return line
    raise UnavailableError(f"apt knows no archive of Debian ending in {wanted}: run this on Debian")


def apt_of(suite: str, arch: str) -> dict[str, str]:
    """An environment in which apt sees one suite and one architecture, with a state of its own."""
    state = CACHE / "apt" / f"{suite}-{arch}"
    for part in (
        "etc/sources.list.d",
        "etc/apt.conf.d",
        "etc/preferences.d",
        "lists/partial",
        "cache/archives/partial",
    ):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "etc/sources.list").write_text(
        f"deb [arch={arch} signed-by={KEYRING}] {archive(suite)} {suite} main\n"
    )
    (state / "apt.conf").write_text(
        f'Dir::Etc "{state}/etc"; Dir::State "{state}"; Dir::State::status "{state}/status";\n'
        f'Dir::State::lists "{state}/lists"; Dir::Cache "{state}/cache";\n'
        f'APT::Architecture "{arch}"; APT::Architectures {{"{arch}";}}; APT::Sandbox::User "root";\n'
        'Acquire::Languages "none"; Acquire::Check-Valid-Until "false";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(state / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
    if not (state / "updated").exists():
        run("apt-get", "update", "-qq", env=environment)
        (state / "updated").touch()
    return environment


def version_key(name: str) -> list[int]:
    """Sorts package names by the numbers in them."""
    return [int(number) for number in re.findall(r"\d+", name)]


def download(package: str, environment: dict[str, str], folder: Path) -> Path:
    """One package, into a folder."""
    run("apt-get", "download", "-qq", package, cwd=folder, env=environment)
    return next(folder.glob("*.deb"))


def kernel(suite: str, pattern: str, arch: str) -> Path:
    """The newest kernel whose package name matches, from the cache if it is there."""
    key = re.sub(r"[^\w.-]+", "_", f"{suite}-{pattern}-{arch}")
    folder = CACHE / "kernels" / key
    if folder.is_dir() and (found := sorted(folder.iterdir())):
        return found[0]
    environment = apt_of(suite, arch)
    names = run("apt-cache", "pkgnames", "linux-", env=environment).split()
    fitting = [
        name
        for name in names
        # from 6.19 on the image package is a wrapper around linux-binary-*
        if re.fullmatch(rf"linux-(binary|image)-{pattern}", name) and not re.search("dbg|unsigned|-rt-", name)
    ]
    if not fitting:
        raise UnavailableError(f"{suite} has no kernel {pattern} for {arch}")
    newest = max(fitting, key=lambda name: (version_key(name), "binary" in name))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        package = download(newest, environment, Path(scratch))
        unpacked = Path(scratch) / "root"
        run("dpkg-deb", "--extract", package, unpacked)
        images = [*unpacked.glob("boot/vmlinu*"), *unpacked.glob("usr/lib/modules/*/vmlinuz")]
        if not images:
            raise UnavailableError(f"{newest} holds no kernel image")
        release = images[0].name.partition("-")[2] or images[0].parent.name
        kept = folder / f"vmlinuz-{release}"
        shutil.move(images[0], kept.with_suffix(".part"))
        kept.with_suffix(".part").rename(kept)
    return kept


def root(suite: str, arch: str, packages: list[str]) -> Path:
    """A small Debian with Python and NumPy as an uncompressed cpio archive, from the cache if there."""
    holding = hashlib.sha256(" ".join([*packages, "bytecode"]).encode()).hexdigest()[:8]
    archive_file = CACHE / "roots" / f"{suite}-{arch}-{holding}.cpio"
    if archive_file.exists():
        return archive_file
    archive_file.parent.mkdir(parents=True, exist_ok=True)
    native = run("dpkg", "--print-architecture").strip() == arch
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "root"
        included = ",".join(["python3", *packages])
        foreign = [] if native else ["--foreign"]
        script = (
            SCRIPTS / suite if (SCRIPTS / suite).exists() else SCRIPTS / "sid"
        )  # a suite newer than debootstrap
        options = [f"--arch={arch}", *foreign, "--variant=minbase", f"--include={included}"]
        run("debootstrap", *options, suite, tree, archive(suite), script)
        for package in [] if native else sorted(tree.glob("var/cache/apt/archives/*.deb")):
            run(
                "bash", "-c", f"dpkg-deb --fsys-tarfile {package} | tar -x -C {tree} --keep-directory-symlink"
            )
        trim(tree)
        compile_all(tree, suite, native)
        part = archive_file.with_suffix(".part")
        run("bash", "-c", f"find . | cpio -o -H newc --quiet > {part}", cwd=tree)
        part.rename(archive_file)
    return archive_file


def trim(tree: Path) -> None:
    """Leave out what no test needs: the archive is unpacked into memory at every boot."""
    for pattern in UNUSED.split():
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in ("proc", "sys", "dev", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    run("mknod", tree / "dev/console", "c", "5", "1")
    for folder in list(tree.rglob("__pycache__")):
        shutil.rmtree(folder)


def compile_all(tree: Path, suite: str, native: bool) -> None:
    """Bytecode is the same for every processor, and making it in an emulated one takes a minute.

    The native root of the suite is kept unpacked for it; a suite without one compiles in the guest.
    """
    kept = CACHE / "roots" / f"{suite}-native"
    if native:
        shutil.rmtree(kept, ignore_errors=True)
        run("cp", "-a", tree, kept)
    if kept.is_dir():
        inside = tree / "usr/lib"
        for folder in inside.glob("python3*"):
            compile_folder(suite, folder, f"/usr/lib/{folder.name}")


def compile_folder(suite: str, folder: Path, shown_as: str) -> None:
    """Bytecode for one folder, by the Python of the suite's native root if there is one."""
    kept = CACHE / "roots" / f"{suite}-native"
    if not kept.is_dir():
        return
    place = Path(tempfile.mkdtemp(dir=kept / "mnt"))  # another run may prepare one of the suite too
    inside = f"/mnt/{place.name}"
    run("mount", "--bind", folder, place)
    try:
        # hashes instead of times, and unchecked: nothing edits a guest; by one process, since -j needs a /dev/shm
        options = ["-q", "--invalidation-mode", "unchecked-hash", "-s", inside, "-p", shown_as]
        command = ["chroot", kept, "python3", "-m", "compileall", *options, inside]
        # its status says nothing: some files of tests are wrong on purpose
        done = subprocess.run(command, capture_output=True, text=True)
        if any(place.rglob("*.py")) and not any(place.rglob("*.pyc")):
            raise UnavailableError(f"no bytecode for {shown_as}: {(done.stderr or done.stdout)[-2000:]}")
    finally:
        run("umount", place)
        place.rmdir()
