"""The pages: lines of at most 100 characters, and no path, link or module that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
WIDTH = 100
# Files that the reader of a page writes.
EXAMPLES = {"gti/model/mynet.py"}
_PATH = re.compile(r"(?<![\w/.])(?:gti|scripts|addon|tests|docs)/[\w./*-]*?\w\.(?:py|md|sh|rules|j2|toml)\b")
_LINK = re.compile(r"\]\(([^)#:]+)\)")
_MODULE = re.compile(r"(?<![\w.-])gti(?:\.\w+)+")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_wrapped(page: Path) -> None:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    assert not [number for number, line in lines if len(line) > WIDTH and not line.startswith("|")]


def absent(text: str, folder: Path) -> Iterator[str]:
    """Yield what a page names and the kit does not have."""
    yield from (path for path in _PATH.findall(text) if path not in EXAMPLES and not any(ROOT.glob(path)))
    yield from (link for link in _LINK.findall(text) if not (folder / link).exists())
    for name in _MODULE.findall(text):
        # The last words may be a class and its method, which stand in the module's text.
        parts = name.split(".")
        while not (place := ROOT.joinpath(*parts)).is_dir() and not place.with_suffix(".py").is_file():
            parts.pop()
        inside = name.split(".")[len(parts) :]
        source = "" if place.is_dir() else place.with_suffix(".py").read_text(encoding="utf-8")
        if not all(re.search(rf"\b{word}\b", source) for word in inside):
            yield name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert not list(absent(page.read_text(encoding="utf-8"), page.parent))


def test_absent_names_are_seen() -> None:
    good = "`gti/errors.py`, [x](README.md), `gti.errors.sentence`, `gti.chip.driver.GtiModel.evaluate`"
    bad = ["gti/chip/nothing.py", "nowhere.md", "gti.errors.nothing", "gti.pool.GtiPool"]
    assert not list(absent(good, ROOT))
    assert list(absent("`{}` [x]({}) `{}` {}".format(*bad), ROOT)) == bad
