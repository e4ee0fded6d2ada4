# SPDX-License-Identifier: Apache-2.0
"""Each Python example of the documentation runs, and prints what the text block after it says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
EXAMPLE = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\s*^```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#]+)")
KINDS = ("added", "changed", "fixed", "removed")


def examples() -> Iterator[object]:
    for page in PAGES:
        text = page.read_text()
        for match in EXAMPLE.finditer(text):
            line = text[: match.start()].count("\n") + 1
            yield pytest.param(match["code"], match["output"] or "", id=f"{page.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize(("code", "output"), list(examples()))
def test_an_example_prints_what_the_page_says(code: str, output: str):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert (output, "", 0) == (result.stdout, result.stderr, result.returncode)


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    paths = [page.parent / match["path"] for match in LINK.finditer(page.read_text())]

    assert [] == [path for path in paths if not path.exists()]


def test_a_change_is_of_a_known_kind():
    """changelog.d/TOPIC.KIND.md."""
    names = [path.name for path in (ROOT / "changelog.d").iterdir() if path.name != "README.md"]

    assert [] == [name for name in names if not re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(KINDS)})\.md", name)]


def test_every_folder_says_what_it_is():
    """A README.md of at most 20 lines."""
    folders = [path for top in ("src", "tests") for path in (ROOT / top).iterdir() if path.is_dir()]
    folders = [path for path in folders if not path.name.startswith(("_", "."))]
    others = ("tests", "tools", "docs", "demo", "examples", "changelog.d", "python/gossamer")
    folders += [ROOT / name for name in others]

    assert [] == [folder for folder in folders if not (folder / "README.md").exists()]
    assert [] == [folder for folder in folders if len((folder / "README.md").read_text().splitlines()) > 20]
