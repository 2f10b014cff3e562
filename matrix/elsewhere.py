"""Pythons that this machine has not: newer ones in a root of Debian's, and some without the interpreter's lock.

Debian packages no free-threaded build, so they are made from its source packages, once, into the cache.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import build
import debian
from debian import CACHE, UnavailableError, run

SUITES = {"3.14": "sid", "3.15": "sid"}
FREE_THREADED = {"3.13t": "trixie", "3.14t": "sid"}  # and the suite whose source it is built from
NEEDED = ("gcc", "make", "xz")


def tree(version: str) -> Path:
    """A small Debian with that Python, unpacked; from the cache if it is there. Raises: UnavailableError."""
    if os.geteuid() != 0 or (missing := debian.missing_tools({"debootstrap"})):
        raise UnavailableError("only root on Debian can unpack one" if os.geteuid() else f"needs {missing}")
    folder = CACHE / "pythons" / version
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        suite = SUITES[version]
        script = debian.SCRIPTS / suite
        options = ["--variant=minbase", f"--include=python{version}"]
        run("debootstrap", *options, suite, part, debian.archive(suite), script)
        part.rename(folder)
    return folder


def inside(
    version: str, wheel: Path, packages: list[str], tests: list[str]
) -> subprocess.CompletedProcess[str]:
    """pytest on this checkout in such a root, with the kernel's files of this machine. Raises: UnavailableError."""
    root = tree(version)
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as site:
        os.chmod(site, 0o755)  # tests become ordinary users
        options = ["--only-binary", ":all:", "--python-version", version, "--target", site]
        options += ["--python-platform", f"{platform.machine()}-manylinux_2_40"]
        run(uv, "pip", "install", "--quiet", *options, *packages, wheel)
        shown = {"proc": "/proc", "sys": "/sys", "dev": "/dev", "t": str(build.ROOT), "site": site}
        # it becomes the root, as in a container: in a chroot nobody may make a user namespace, and / is no mount
        mounts = [f"mount --bind {root} {root}"]
        for name, source in shown.items():
            (root / name).mkdir(exist_ok=True)
            mounts.append(f"mount --rbind {shlex.quote(source)} {root / name}")
        if (
            pages := Path(site, "share", "man")
        ).is_dir():  # of this package alone, as its tests want to see them
            mounts.append(f"mount --bind {pages} {root / 'usr/share/man'}")
        (root / "before").mkdir(exist_ok=True)
        mounts += [f"cd {root}", "pivot_root . before", "umount --lazy before"]
        python = f"PYTHONPATH=/site PYTHONDONTWRITEBYTECODE=1 python{version}"
        command = f"{python} -m pytest -q -p no:cacheprovider {shlex.join(tests)}"
        script = " && ".join([*mounts, "cd /t", f"exec env {command}"])
        return subprocess.run(
            ["unshare", "--mount", "bash", "-c", script], capture_output=True, text=True, check=False
        )


def free_threaded(version: str) -> Path:
    """python3.13t and its like, built from Debian's source (four minutes) unless cached. Raises: UnavailableError."""
    prefix = CACHE / "pythons" / version
    python = prefix / "bin" / f"python{version}"
    if python.exists():
        return python
    if absent := [name for name in NEEDED if shutil.which(name) is None]:
        raise UnavailableError(f"building it needs {', '.join(absent)}")
    suite = FREE_THREADED[version]
    environment = debian.apt_of(suite, run("dpkg", "--print-architecture").strip())
    etc = Path(environment["APT_CONFIG"]).parent / "etc"
    source = etc / "sources.list.d" / "source.list"
    source.write_text(f"deb-src [signed-by={debian.KEYRING}] {debian.archive(suite)} {suite} main\n")
    run("apt-get", "update", "-qq", env=environment)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = f"python{version.removesuffix('t')}"
        run("apt-get", "source", "-qq", "--download-only", package, cwd=folder, env=environment)
        archive = next(folder.glob("*.orig.tar.xz"))
        run("tar", "--extract", "--strip-components=1", "--file", archive, cwd=folder)
        run("./configure", "--quiet", "--disable-gil", f"--prefix={prefix}", cwd=folder)
        run("make", "--silent", f"-j{len(os.sched_getaffinity(0))}", cwd=folder)
        run("make", "--silent", "install", cwd=folder)
    return python
