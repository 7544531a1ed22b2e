#!/usr/bin/env python
"""Does the base package alone classify images? Builds the wheel, installs it into an empty environment, tries it.

    python scripts/dev/check_install.py nets/2801_digits_full.model seven.npy seven.png

Needs the package index, so it is no part of the tests. It checks that the wheel is pure Python (one file for PCs and
ARM boards), that TensorFlow and Pillow are not installed, that .npy images are answered as here, that pictures are
refused with the way out, and that the extra `images` is that way. Exit status 1 when one of these does not hold.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gti import cli
from gti.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = ("tensorflow", "keras", "PIL")
# Installed distributions, checked from inside the environment.
_FOUND = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
_START = (
    "import time\nt = time.perf_counter()\nimport gti.chip.runtime.classifier\nprint(f'{time.perf_counter() - t:.3f}')"
)


def main() -> int:
    """Build, install, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="full .MODEL, as addon/convert_full.py makes it")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=".npy files and pictures; one of each kind at least")
    flags = parser.parse_args()
    model, images = Path(flags.model).resolve(), [Path(name).resolve() for name in flags.images]
    arrays = [path for path in images if path.suffix == ".npy"]
    pictures = [path for path in images if path not in arrays]
    if not arrays or not pictures:
        raise UsageError("images", "are of one kind", expected="a .npy file and a picture at least")
    with tempfile.TemporaryDirectory() as folder:
        return _check(Path(folder), model, arrays, pictures)


def _check(folder: Path, model: Path, arrays: Sequence[Path], pictures: Sequence[Path]) -> int:
    # From a copy, so that the wheel is made of sources alone and nothing is left behind in the checkout.
    source = folder / "source"
    shutil.copytree(ROOT / "gti", source / "gti", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    _run(python, "-m", "pip", "install", "--quiet", wheel)
    script = folder / "addon" / "classify.py"  # away from this checkout: the installed package has to do
    script.parent.mkdir()
    shutil.copy(ROOT / "addon" / "classify.py", script)

    def classify(*images: Path) -> subprocess.CompletedProcess[str]:
        return _try(python, script, model, *images, "--device", "virtual")

    here = _run(sys.executable, ROOT / "addon" / "classify.py", model, *arrays, *pictures, "--device", "virtual")
    expected = here.stdout.splitlines()[:-1]
    alone, refused = classify(*arrays), classify(*pictures)
    found = _run(python, "-c", _FOUND, *FORBIDDEN).stdout.strip()
    start = _run(python, "-c", _START).stdout.strip()
    _run(python, "-m", "pip", "install", "--quiet", f"{wheel}[images]")
    extended = classify(*arrays, *pictures)
    results = [
        (f"wheel {wheel.name}", wheel.name.endswith("-py3-none-any.whl")),
        (f"of {', '.join(FORBIDDEN)} installed: {found}", found == "[]"),
        (f"import of the runtime: {start} s", True),
        ("arrays are answered as here", alone.stdout.splitlines()[:-1] == expected[: len(arrays)]),
        ("pictures without Pillow are refused with the way out", "extra `images`" in refused.stderr),
        ("pictures with the extra are answered as here", extended.stdout.splitlines()[:-1] == expected),
    ]
    for text, good in results:
        print(("ok    " if good else "FAULT ") + text)
    return 0 if all(good for _, good in results) else 1


def _try(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd="/")


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    result = _try(*command)
    if result.returncode:
        words = " ".join(str(word) for word in command[:6])
        raise UsageError(words, f"failed ({result.stderr.strip()[-300:]})")
    return result


if __name__ == "__main__":
    cli.run(main)
