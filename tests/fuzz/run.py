"""make fuzz: each fuzzer for a while, with a corpus that begins with the real thing and is kept in build/.

make fuzz SECONDS=60              each for a minute (the default)
make fuzz TARGET=channel          one alone, until it finds something or is stopped
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import native

HERE = Path(__file__).parent
BUILD = native.ROOT / "build" / "fuzz"
PYTHON = [
    "smaps", "cgroup", "layout", "about", "sizes", "recorded", "ring", "channel", "rows", "handed", "frozen",
]  # fmt: skip
ALL = [*native.TARGETS, *PYTHON]


def prepared(name: str, corpus: Path) -> tuple[list[str], dict[str, str] | None]:
    """What runs a fuzzer, and its environment."""
    if name in native.TARGETS:
        return native.command(name, BUILD, corpus)
    return [sys.executable, str(HERE / "parsers.py"), name, str(corpus), "-max_len=4096"], None


def missing(name: str) -> str:
    """What a fuzzer needs and has not."""
    if name in native.TARGETS:
        return "" if native.compiler() else "clang is not installed: apt-get install clang libclang-rt-dev"
    return "" if importlib.util.find_spec("atheris") else "atheris has no wheel for this Python"


def fuzzed(name: str, seconds: int, console: Console) -> tuple[str, str, str]:
    """Run one. Returns: how often it ran, what it covered; what it found."""
    corpus = BUILD / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    command, environment = prepared(name, corpus)
    command += [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={BUILD}/{name}-",
        "-timeout=120",
        "-rss_limit_mb=4096",
    ]
    log = BUILD / f"{name}.log"
    begun = time.monotonic()
    with log.open("wb") as file, console.status(name) as status:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        while process.poll() is None:
            status.update(f"{name}: {time.monotonic() - begun:,.0f} s, {counted(log)[0]} runs")
            time.sleep(1)
    runs, covered = counted(log)
    if process.returncode == 0:
        return runs, covered, ""
    return runs, covered, log.read_text(errors="replace")[-3000:]


def counted(log: Path) -> tuple[str, str]:
    """Runs so far, and edges covered, as libFuzzer says."""
    found = re.findall(r"^#(\d+)\s.* cov: (\d+)", log.read_text(errors="replace"), re.MULTILINE)
    done = re.findall(r"^Done (\d+) runs", log.read_text(errors="replace"), re.MULTILINE)
    runs, covered = found[-1] if found else ("0", "0")
    return f"{int(done[-1] if done else runs):,}", covered


def main() -> int:
    """Returns: 1 if any found something, or could not run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each")
    parser.add_argument("--target", nargs="+", choices=ALL, default=ALL)
    options = parser.parse_args()
    console = Console()
    shown = Table("target", "runs", "edges covered", "found", title=f"{options.seconds} s each")
    failed = False
    for name in options.target:
        if why := missing(name):
            shown.add_row(name, "", "", why)
            continue
        runs, covered, trouble = fuzzed(name, options.seconds, console)
        failed |= bool(trouble)
        shown.add_row(name, runs, covered, "see above" if trouble else "nothing")
        if trouble:
            console.print(f"{name}:\n{trouble}", markup=False, highlight=False)
        elif not console.is_terminal:
            console.print(f"{name}: {runs} runs, {covered} edges, nothing found", highlight=False)
    console.print(shown)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
