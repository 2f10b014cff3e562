"""Every Python block of the README and the documentation is run, page by page."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import PATIENCE_S, default_huge_nbytes, reserved

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {page: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}
OF_OTHERS = {
    "zenoh": "eclipse-zenoh", "symspellpy": "--no-deps symspellpy", "PIL": "pillow", "scipy": "scipy", "pandas": "pandas",
}  # fmt: skip


def runs(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    script = "\n".join(BLOCKS[page])
    for module, install in OF_OTHERS.items():
        if re.search(rf"\b{module}\b", script) and importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install {install}")
    (tmp_path / "page.py").write_text(script)  # a file, as a spawned worker needs it
    if "needs: huge pages" in script:
        with reserved(default_huge_nbytes(), 8):
            runs(tmp_path)
    else:
        runs(tmp_path)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
