"""What a guest works on: the package with an extension for its processor, the tests, and what they import."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

from debian import CACHE, compile_folder, run

ROOT = Path(__file__).parents[1]
COMPILERS = {
    "amd64": None,
    "arm64": ("aarch64-linux-gnu", "aarch64", "little"),
    "ppc64el": ("powerpc64le-linux-gnu", "ppc64", "little"),
    "s390x": ("s390x-linux-gnu", "s390x", "big"),
}
WHEELS = {"amd64": "x86_64", "arm64": "aarch64"}  # elsewhere NumPy is Debian's
PURE = ["pytest>=9", "hypothesis", "pytest-timeout>=2.3", "rich>=13"]


def wheel() -> Path:
    """The project's wheel for this machine, built once a run."""
    folder = ROOT / "build" / "matrix" / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    uv = Path(sys.executable).with_name("uv")
    run(uv, "build", "--quiet", "--wheel", "--no-build-isolation", "--out-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


def cross_file(arch: str) -> Path:
    """What meson needs to build for a foreign architecture."""
    target = COMPILERS[arch]
    assert target is not None
    prefix, family, endian = target
    folder = ROOT / "build" / "matrix" / arch
    folder.mkdir(parents=True, exist_ok=True)
    cross = folder / "cross.ini"
    cross.write_text(
        f"[binaries]\nc = '{prefix}-gcc'\nstrip = '{prefix}-strip'\n"
        f"[host_machine]\nsystem = 'linux'\ncpu_family = '{family}'\ncpu = '{family}'\nendian = '{endian}'\n"
    )
    return cross


def extension(arch: str) -> Path | None:
    """The extension cross-built for `arch`, with the same sources and warnings; None for our own."""
    if COMPILERS[arch] is None:
        return None
    cross = cross_file(arch)
    folder = cross.parent
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}
    shutil.rmtree(folder / "objects", ignore_errors=True)
    run("meson", "setup", folder / "objects", ROOT, "--cross-file", cross, env=environment)
    run("meson", "compile", "-C", folder / "objects", env=environment)
    return folder / "objects" / "_core.abi3.so"


def packages(python: str, arch: str, suite: str) -> Path:
    """What tests import, unpacked and compiled once for each Python; NumPy too where it comes as a wheel."""
    folder = CACHE / "packages" / f"{python}-{suite}-{arch}"
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")  # a version has a suffix of its own
        shutil.rmtree(part, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-compile", "--target", part, "--only-binary", ":all:", "--python-version", python]
        run(*pip, "--platform", "any", *PURE)
        if arch in WHEELS:
            platforms = [
                word
                for tag in ("2_28", "2_27", "2014")
                for word in ("--platform", f"manylinux{'' if tag == '2014' else '_'}{tag}_{WHEELS[arch]}")
            ]
            run(*pip, *platforms, "--no-deps", "numpy>=2")
        for unused in [*part.glob("numpy/**/tests"), *part.glob("numpy/f2py"), part / "bin"]:
            shutil.rmtree(unused, ignore_errors=True)
        compile_folder(suite, part, "/t/site")
        part.rename(folder)
    return folder


def work(folder: Path, arch: str, suite: str, python: str, wheel_file: Path) -> Path:
    """A folder with site/, tests/ and the settings of pytest."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(packages(python, arch, suite), folder / "site")
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(folder / "site")
    if built := extension(arch):
        shutil.copy(built, folder / "site" / "mirrormap" / "_core.abi3.so")
    compile_folder(suite, folder / "site" / "mirrormap", "/t/site/mirrormap")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    texts = sorted(path.name for path in ROOT.glob("*.md"))
    for name in ("pyproject.toml", "LICENSE", *texts, "src", "bench", "docs"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_build", "results")
            )
        else:
            shutil.copy(source, folder / name)
    return folder
