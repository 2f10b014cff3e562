"""Build and run the fuzzers of native code: libFuzzer, AddressSanitizer and UBSan, which clang brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src" / "mirrormap" / "_native"
PROTOCOL = ["cursors.c", "frames.c", "groups.c"]
HEAP = ["sys.c", *(f"heap/{path.name}" for path in sorted((NATIVE / "heap").glob("*.c")))]
TARGETS = {"frames": PROTOCOL, "groups": PROTOCOL, "maps": ["maps.c"], "image": HEAP}
FLAGS = ["-std=gnu11", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]


def compiler() -> str | None:
    """clang, which alone brings libFuzzer."""
    return shutil.which("clang")


def built(name: str, folder: Path) -> Path:
    """One fuzzer. Raises: CalledProcessError."""
    target = folder / name
    sources = [ROOT / "tests" / "fuzz" / "native" / f"{name}.c", *(NATIVE / one for one in TARGETS[name])]
    command = [str(compiler()), *FLAGS, f"-I{NATIVE}", *map(str, sources), "-o", str(target)]
    if name == "maps":  # it makes Python objects
        library = sysconfig.get_config_var("LIBDIR")
        command += [f"-I{sysconfig.get_path('include')}", f"-L{library}", f"-Wl,-rpath,{library}"]
        command += [f"-lpython{sysconfig.get_config_var('LDVERSION')}"]
    subprocess.run(command, check=True)
    return target


def command(name: str, folder: Path, corpus: Path) -> tuple[list[str], dict[str, str]]:
    """What runs a fuzzer, and its environment."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    return [str(built(name, folder)), str(corpus), "-max_len=4096"], environment
