"""mirrormap maps, run as a user runs it: the table, JSON, live, and the page in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Generator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import mirrormap as mm
from mirrormap import ribbons
from mirrormap.sameness import MirrorGroup, MirrorView
from support import PAGE, PATIENCE_S, scaled
from support import command as run

MIB = 1 << 20

HOLD = """
import os, sys, time, mirrormap as mm
heap = mm.Pages("8MiB", name="held-heap")
views = heap.views(3, populate=True)
ring = mm.Pages("1MiB", name="held <b>&ring").arrange([(0, "1MiB"), (0, "1MiB")], populate=True)
if len(sys.argv) > 1:
    pid = os.fork()
print(views[0].address, flush=True)
sys.stdin.read()
"""

MANY = """
import mmap, sys, mirrormap as mm
page = mmap.PAGESIZE
pages, held = mm.Pages(2 * page, name="many"), []
while 2 * len(held) < int(sys.argv[1]):
    held.append(pages.arrange([(page, page), (0, page)]))
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def running(script: str = HOLD, *arguments: str) -> Generator[tuple[int, str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line
        yield child.pid, line
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def test_the_table_tells_true_size_and_what_rss_claims() -> None:
    with running() as (pid, _):
        done = run("maps", str(pid))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    heap = next(line for line in done.stdout.splitlines() if "held-heap" in line)
    assert re.search(r"8 MiB +8 MiB +24 MiB +3 ", heap), heap
    assert heap.index("held-heap") < done.stdout.index(
        "held <b>&ring"
    )  # the biggest first, markup left alone
    assert "17 MiB of RSS are second and later views" in done.stdout
    assert "page tables" in done.stdout


def test_json_is_as_documented() -> None:
    with running() as (pid, line):
        done = run("maps", str(pid), "--json")
        found = mm.mirrors(pid)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert set(told) == {"groups", "rss", "pss"}
    assert [group["name"] for group in told["groups"]] == [
        "/memfd:mirrormap:held-heap",
        "/memfd:mirrormap:held <b>&ring",
    ]
    heap = told["groups"][0]
    assert set(heap) == {"name", "nbytes", "views"}
    at = int(line)
    assert heap["nbytes"] == 8 * MIB
    assert heap["views"] == [
        {"start": at + index * 8 * MIB, "end": at + (index + 1) * 8 * MIB, "offset": 0} for index in range(3)
    ]
    assert told["rss"] == found.rss
    assert 0 < told["pss"] < told["rss"] - 17 * MIB  # libraries are divided by whoever uses them just now


def test_a_name_stands_for_every_process_of_that_name(tmp_path: Path) -> None:
    program = tmp_path / "held-by-name"
    program.symlink_to(sys.executable)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen([program, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(2)
    ]  # fmt: skip
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline()
        told = json.loads(run("maps", "held-by-name", "--json").stdout)
        pids = {view["pid"] for group in told["groups"] for view in group["views"]}
        assert {child.pid for child in children} == pids
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_children_are_taken_together() -> None:
    with running(HOLD, "fork") as (pid, _):
        alone = json.loads(run("maps", str(pid), "--json").stdout)
        done = run("maps", str(pid), "--children", "--json")
        table = run("maps", str(pid), "--children").stdout
    told = json.loads(done.stdout)
    heap = next(group for group in told["groups"] if group["name"].endswith("held-heap"))
    assert len(alone["groups"][0]["views"]) == 3
    assert len(heap["views"]) == 6
    assert len({view["pid"] for view in heap["views"]}) == 2
    assert told["rss"] > alone["rss"]
    assert "together" in table
    if os.geteuid() == 0:
        assert "shared since a fork" in table


def test_self_is_the_command_itself() -> None:
    done = run("maps", "self")
    assert done.returncode == 0
    assert "No memory is shown more than once." in done.stdout


@pytest.mark.parametrize("target", ["999999999", "no-such-program", "99999999999999999999", "0", "\u0661"])
def test_who_is_not_there_is_said_so_without_a_traceback(target: str) -> None:
    done = run("maps", target)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"mirrormap: (no )?process .*\n", done.stderr), done.stderr


def test_one_that_ends_meanwhile_is_said_so_without_a_traceback() -> None:
    for pause in (0.0, 0.1, 0.2, 0.3):
        child = subprocess.Popen(["sleep", str(0.25 + pause)])
        try:
            for _ in range(scaled(3)):
                done = run("maps", str(child.pid))
                assert "Traceback" not in done.stderr
                assert done.returncode == (1 if done.stderr else 0)
        finally:
            child.wait()


def test_what_may_not_be_looked_at_is_said_so() -> None:
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    script = f"""
import os, sys
from mirrormap.cli import main
main(["maps", "self"])  # imports what nobody else may read here
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(["maps", "{os.getpid()}"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"mirrormap: process \d+ belongs to somebody else.*\n", done.stderr), done.stderr


def test_wrong_usage() -> None:
    assert run("maps").returncode == 2
    assert run("maps", "self", "--watch", "--json").returncode == 2
    done = run("maps", "self", "--watch")
    assert done.returncode == 1
    assert "needs a terminal" in done.stderr
    done = run("maps", "self", "--html", "/nonexistent/folder/x.html")
    assert done.returncode == 1
    assert "mirrormap: /nonexistent/folder/x.html: No such file or directory" in done.stderr


# --- live ----------------------------------------------------------------------------------


class Terminal:
    """mirrormap in a pseudo-terminal."""

    def __init__(self, *arguments: str, program: tuple[str, ...] = ("-m", "mirrormap")) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # whoever runs in the background of a shell ignores it
            os.environ.update(TERM="xterm-256color", COLUMNS="100", LINES="40")
            os.execv(sys.executable, [sys.executable, *program, *arguments])
        self.text = ""

    def until(self, pattern: str, seconds: float = 20) -> float:
        """Read until the pattern has come. Returns: when."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} did not come: {self.text!r}"
            if select.select([self.fd], [], [], left)[0]:
                with contextlib.suppress(OSError):  # EIO: it has ended
                    self.text += os.read(self.fd, 1 << 16).decode(errors="replace")
        return time.monotonic()

    def ends(self) -> int:
        """Its exit status."""
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                if select.select([self.fd], [], [], 0.05)[0]:
                    self.text += os.read(self.fd, 1 << 16).decode(errors="replace")
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                with contextlib.suppress(OSError):  # EIO: all it said has been read
                    while said := os.read(self.fd, 1 << 16):
                        self.text += said.decode(errors="replace")
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, self.text


def test_watch_shows_it_every_second_and_quits_on_q() -> None:
    with running() as (pid, _):
        terminal = Terminal("maps", str(pid), "--watch")
        first = terminal.until("(?s)held-heap.*q: quit")
        terminal.text = ""
        second = terminal.until("(?s)held-heap.*q: quit")
        assert second - first > 0.5
        os.write(terminal.fd, b"x")  # other keys are not for us
        terminal.text = ""
        terminal.until("(?s)held-heap.*q: quit")
        os.write(terminal.fd, b"q")
        assert terminal.ends() == 0
        assert "\x1b[?1049l" in terminal.text  # the screen as it was


def test_watch_says_when_the_process_has_ended() -> None:
    with running() as (pid, _):
        terminal = Terminal("maps", str(pid), "--watch")
        terminal.until("(?s)held-heap.*q: quit")
    terminal.text = ""
    assert terminal.ends() == 1
    assert f"process {pid} " in terminal.text
    assert "Traceback" not in terminal.text


def test_watch_ends_with_control_c() -> None:
    with running() as (pid, _):
        terminal = Terminal("maps", str(pid), "--watch")
        terminal.until("(?s)held-heap.*q: quit")
        os.write(terminal.fd, b"\x03")
        assert terminal.ends() == 130
        assert "Traceback" not in terminal.text


IMPATIENT = """
import sys
from mirrormap.cli import maps
from mirrormap.cli.main import main
maps._PATIENCE_S = 0
sys.exit(main(sys.argv[1:]))
"""


def test_progress_is_shown_while_it_lasts_and_then_taken_away() -> None:
    with running() as (pid, _):
        terminal = Terminal("maps", str(pid), program=("-c", IMPATIENT))
        assert terminal.ends() == 0
    waited, table = terminal.text.index("reading page tables"), terminal.text.index("held-heap")
    assert waited < table
    assert "\x1b[2K" in terminal.text[waited:table], "the line it took is cleared"


# --- drawn ---------------------------------------------------------------------------------


class Outside(HTMLParser):
    """What a page would fetch from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag in ("link", "img", "iframe", "object", "embed"):
            self.found.append(tag)


def test_the_page_and_the_picture_need_nothing_else(tmp_path: Path) -> None:
    with running() as (pid, line):
        done = run("maps", str(pid), "--html", str(tmp_path / "a.html"), "--svg", str(tmp_path / "a.svg"))
        assert done.returncode == 0, done.stderr
        assert run("maps", str(pid), "--svg", "-").stdout.startswith("<svg ")
    page = (tmp_path / "a.html").read_text()
    outside = Outside()
    outside.feed(page)
    assert not outside.found
    assert "@import" not in page
    assert "url(" not in page
    assert "held &lt;b&gt;&amp;ring" in page
    picture = ET.fromstring((tmp_path / "a.svg").read_text())
    svg = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f".//{svg}g[@class='view']")) == 5
    assert len(picture.findall(f".//{svg}g[@class='pages']")) == 2
    ribbon = picture.findall(f".//{svg}path[@class='ribbon']")
    assert len(ribbon) == 5
    assert f"{int(line):#x}" in (tmp_path / "a.svg").read_text()


def found(groups: list[MirrorGroup]) -> mm.Mirrors:
    cost = mm.Footprint(1, "x", 1, 1, 1, 0, 0, 0, 0, 1, 65530)
    return mm.Mirrors(tuple(groups), (cost,), ())


@pytest.mark.parametrize("name", ["", "\0\x1b[31m", "]]>--><script>", "\ud800", "é\u202e", "x" * 5000])
def test_any_name_makes_sound_xml(name: str) -> None:
    view = MirrorView(PAGE, 2 * PAGE, 0, 1, PAGE, 1, "rw", True, None, ((PAGE, 0, PAGE),))
    group = MirrorGroup(name, PAGE, (view, view), ((0, PAGE, 2),), None, None, PAGE, "object", 1, 1)
    text = ribbons.picture(found([group]))
    ET.fromstring(text)
    assert "<script" not in text
    ribbons.page(found([group])).encode()


def test_nothing_mirrored_is_drawn_in_words() -> None:
    assert "No memory is shown more than once." in ribbons.picture(found([]))
    ET.fromstring(ribbons.picture(found([])))


PROBE = """
<script>
addEventListener("error", event => document.body.dataset.error = event.message);
setTimeout(() => {
  const told = [];
  for (const part of [...document.querySelectorAll(".view .ribbon, .view .box, .pages .box")].slice(0, 40)) {
    const box = part.getBoundingClientRect();
    part.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
    told.push([document.getElementById("details").textContent, document.querySelectorAll("g.hit").length,
               document.querySelector("svg").classList.contains("on"), box.width, box.height]);
  }
  document.querySelector("h1").dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
  const labels = [...document.querySelectorAll("svg text")].map(text => text.getBoundingClientRect());
  const picture = document.querySelector("svg").getBoundingClientRect();
  document.body.dataset.told = JSON.stringify({
    told, hits: document.querySelectorAll(".hit").length, errors: document.body.dataset.error ?? "",
    outside: labels.filter(box => box.left < picture.left - 1 || box.right > picture.right + 1).length,
    paper: getComputedStyle(document.body).backgroundColor, text: getComputedStyle(document.body).color,
    height: picture.height, fetched: performance.getEntriesByType("resource").length,
  });
}, 50);
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    pytest.skip("no Chromium is installed (apt-get install chromium)")


def browse(browser: str, page: Path, *options: str) -> str:
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1100,900",
    ]
    environment = {**os.environ, "HOME": str(page.parent)}
    environment.pop("LD_PRELOAD", None)  # a sanitizer's runtime is not for the browser
    done = subprocess.run(
        [*command, f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()],
        capture_output=True, text=True, timeout=PATIENCE_S, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen_in(browser: str, page: Path, *options: str) -> dict[str, object]:
    """What a browser makes of the page, with a script added that points at everything."""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    text = browse(browser, probed, "--virtual-time-budget=2000", "--dump-dom", *options)
    told = re.search(r'data-told="([^"]*)"', text)
    assert told, text[-2000:]
    seen: dict[str, object] = json.loads(
        told[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )
    return seen


def pixels(path: Path) -> tuple[int, int, bytes]:
    """Width, height and the unfiltered first row of a PNG."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    packed, at = b"", 8
    while at < len(data):
        (count,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + count]
        at += 12 + count
    return width, height, zlib.decompress(packed)


@pytest.mark.parametrize(("scheme", "paper", "text"), [(1, "rgb(255, 255, 255)", "rgb(31, 41, 55)"), (0, "rgb(17, 24, 39)", "rgb(229, 231, 235)")])  # fmt: skip
def test_the_page_in_a_real_browser(browser: str, tmp_path: Path, scheme: int, paper: str, text: str) -> None:
    page = tmp_path / "a.html"
    with running() as (pid, line):
        assert run("maps", str(pid), "--html", str(page)).returncode == 0
    colours = f"--blink-settings=preferredColorScheme={scheme}"
    seen = seen_in(browser, page, colours)
    assert (seen["errors"], seen["fetched"], seen["outside"], seen["hits"]) == ("", 0, 0, 0)
    assert (seen["paper"], seen["text"]) == (paper, text)
    told = seen["told"]
    assert isinstance(told, list)
    assert len(told) == 5 + 5 + 2
    for details, hits, dimmed, width, height in told:
        assert hits in (3, 4)  # the views of the group and its pages
        assert dimmed
        assert width > 20
        assert height > 10
        assert re.search(r"resident, counted as", details)
    assert any(f"{int(line):#x}-" in details for details, *_ in told)
    assert any("8 MiB resident, counted as 24 MiB in RSS" in details for details, *_ in told)
    picture = tmp_path / "a.png"
    browse(browser, page, colours, f"--screenshot={picture}")
    width, height, raw = pixels(picture)
    assert (width, height) == (1100, 900)
    assert len(set(raw)) > 32  # not a blank sheet


def test_fifty_thousand_mappings_on_one_page(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "many.html"
    with running(MANY, "50000") as (pid, _):
        assert len(mm.mappings(pid)) > 49_000
        begin = time.monotonic()
        assert run("maps", str(pid), "--html", str(page)).returncode == 0
        assert time.monotonic() - begin < 60
    assert page.stat().st_size < MIB
    seen = seen_in(browser, page)
    assert (seen["errors"], seen["outside"]) == ("", 0)
    told = seen["told"]
    assert isinstance(told, list)
    assert 3 < len(told) <= 40
    assert "more views" in told[0][0]
    height = seen["height"]
    assert isinstance(height, float | int)
    assert height < 1500
