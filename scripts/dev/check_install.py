#!/usr/bin/env python
"""Does an installed wheel do what the documentation says? Builds it, installs it into an empty environment, tries it.

    python scripts/dev/check_install.py nets/2801_digits_full.model
    python scripts/dev/check_install.py nets/2801_digits_full.model --python python3.12 --opencv

MODEL: a full .MODEL, as the demo makes it. Needs the package index, so it is no part of the tests. Everything runs
outside the checkout, in this order: the wheel alone (arrays are answered, pictures refused with the way out), with the
extra `images` (every verb), with `import` and `serve`, without numba, with --opencv also with OpenCV. What libusb
changes is checked on the side that this computer is on. The answers are those of the checkout. The source distribution
is built, its wheel compared, its own tests of the command run. Exit status 1 when something does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gti import cli
from gti.__main__ import VERBS, module_of
from gti.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = ("tensorflow", "keras", "PIL")
# Packaged beside the modules: the wheel must hold them.
DATA = ("gti/py.typed", "gti/commands/51-gti.rules", "gti/report/template.html.j2")
_FOUND = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
_LEFT_OUT = (".git", ".venv", "__pycache__", "build", "dist", "*.egg-info", "checkpoints", "runs", ".*_cache")
HELP_SECONDS = 0.3  # of the processor, whatever else computes (Windows counts none of a child)
SERVER_S = 60.0


class Result(NamedTuple):
    """One thing that was looked at."""

    text: str
    good: bool
    more: str = ""  # what was seen instead


class Try(NamedTuple):
    """A command of the installed kit, and what has to come of it."""

    words: tuple[str, ...]
    status: int = 0
    out: str = ""  # words of standard output
    err: str = ""  # and of standard error
    stdin: str = ""  # a file


def files(folder: Path) -> None:
    """Make what the commands read: pictures, arrays, a folder for gti teach, a film."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(1)
    for number in range(6):
        for name, colour in {"red": (210, 40, 20), "blue": (20, 30, 220)}.items():
            pixels = np.clip(np.array(colour) + random.integers(-25, 26, (60, 80, 3)), 0, 255).astype(np.uint8)
            path = folder / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            Image.fromarray(pixels).save(folder / f"film_{number:02d}.png")
    Image.fromarray(pixels).save(folder / "picture.jpg", quality=95)
    np.save(folder / "array.npy", random.integers(0, 256, (28, 28, 3)).astype(np.uint8))


def edges_model(model: Path) -> bytes:
    """Return a .MODEL for edges of the chip's layer of `model`; what it finds is no edges."""
    import numpy as np

    from gti.chip.formats.model_file import compose
    from gti.chip.host import edge_head, preprocessing
    from gti.chip.loaded_model import load_model

    loaded = load_model(model)
    weights = tuple(np.full(layer.output_channels, 0.01) for layer in loaded.header.layers)
    chip = {"operation": "GTICNN", "name": "chip", "data file": "chip", "mode": 3, "device": {"chip": "2801"}}
    header = {
        "name": "edges",
        "layer": [chip],
        preprocessing.KEY: loaded.preprocessing().entry(),
        edge_head.KEY: edge_head.EdgeHead(weights, 2.0).entry(),
    }
    return compose(json.dumps(header).encode(), {"chip": bytes(loaded.dat)})


def bare(model: str) -> Iterator[Try]:
    """Yield what the wheel alone does: arrays, but no pictures."""
    yield Try(("classify", model, "array.npy", "--device", "emulator"), out="array.npy: ")
    yield Try(("classify", "zoo:cifar", "array.npy", "--device", "emulator"), out="array.npy: ")
    yield Try(("verify", "zoo:cifar"), out="is right, code for code")
    yield Try(("classify", model, "picture.jpg", "--device", "emulator"), 1, err="gti-mdk[images]")
    yield Try(("camera", model), 2, err="opencv-python")
    yield Try(("run", model, "--image", "array.npy", "--out", "maps.npz"), out="map0: ")


def verbs(model: str) -> Iterator[Try]:
    """Yield every verb as docs/runtime.md describes it."""
    libusb = ctypes.util.find_library("usb-1.0")
    why = "no stick is plugged in" if libusb else "libusb"
    yield Try((), out="gti VERB")
    yield Try(("classify", model, "picture.jpg", "photos"), out="13 images in", err=why)
    yield Try(("classify", model, "picture.jpg", "--device", "virtual"), out="picture.jpg: ")
    yield Try(("classify", model, "-", "--json"), out='{"file": "-"', stdin="picture.jpg")
    yield Try(("classify", model, "picture.jpg", "--format", "vendor"), out='{"result":[{"index":')
    yield Try(("classify", model, "picture.jpg", "--device", "usb"), 2, err="USB" if libusb else "libusb-1.0")
    yield Try(("classify", "none.model", "picture.jpg"), 2, err="none.model")
    yield Try(("teach", model, "photos", "--out", "mine.model"), out="held-out accuracy 1.000")
    yield Try(("classify", "mine.model", "photos/red/0.png"), out="red 0.")
    yield Try(("features", model, "photos", "--out", "f.npz", "--similar", "2"), out="photos/red/0.png: ")
    yield Try(("edges", model, "picture.jpg", "--out", "e.png"), 2, err="holds no network for edges")
    yield Try(("edges", "edges.model", "picture.jpg", "--out", "e.jpg"), out="e.jpg")
    yield Try(("edges", "edges.model", "photos/red", "--out", "drawn", "--device", "virtual"), out="5.png")
    yield Try(("doctor", "--device", "virtual"), out="codes are right")
    yield Try(("doctor", "--identify", "--device", "virtual"), out="saturation")
    yield Try(("report-stick",), out="profile and recording")
    yield Try(("info", model), out="2 major layers")
    yield Try(("run", model, "--image", "picture.jpg", "--mode", "learn", "--out", "maps.npz"), out="map1: ")
    yield Try(("extract", model, "parts"), out="network.json")
    yield Try(("build", "parts", "again.model"), out="again.model ")
    yield Try(("diff", model, "again.model"), out="equal")
    yield Try(("diff", model, "mine.model"), 1)
    yield Try(("build", "parts", "chip.dat"), out="chip.dat ")
    yield Try(("build", "chip.dat", "wrapped.model", "--crop", "0.875"), out="wrapped.model ")
    yield Try(("verify", "wrapped.model", "--device", "virtual"), out="right, code for code")
    yield Try(("trace", "encode", "--model", model, "--image", "array.npy", "--out", "t"), out="load.bin")
    yield Try(("trace", "show", "t/load.bin", "t/frame0.bin"), out="frame0.bin")
    yield Try(("export", model, "net.onnx"), 2, err="gti-mdk[import]")  # their extras are not installed
    yield Try(("serve", model), 2, err="gti-mdk[serve]")
    yield Try(("udev", "--print"), out='ATTR{idVendor}=="0403"')
    yield Try(("udev", "--install", "--folder", "."), out="51-gti.rules written")


def extras(model: str) -> Iterator[Try]:
    """Yield what the extras `import` and `serve` add, but for the server itself."""
    yield Try(("export", model, "net.onnx"), out=" operators")
    yield Try(("serve", "none.model"), 2, err="none.model")


def served(gti: Path, folder: Path, model: str) -> Iterator[Result]:
    """Yield whether a server answers as `gti classify` does, and ends when it is told to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    wanted = _run(gti, "classify", model, "picture.jpg", "--device", "emulator", "--json", cwd=folder)
    label = json.loads(wanted.stdout)["result"][0]["label"]
    process = subprocess.Popen(
        [gti, "serve", model, "--device", "emulator", "--port", str(port)],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    found = page = b""
    try:
        end = time.monotonic() + SERVER_S
        while process.poll() is None and time.monotonic() < end and not page:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                    page = answer.read()
            except OSError:
                time.sleep(0.1)
        with contextlib.suppress(OSError):
            data = (folder / "picture.jpg").read_bytes()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/classify", data) as answer:
                found = answer.read()
        process.terminate()
        process.wait(SERVER_S)
    finally:
        process.kill()
        errors = process.communicate()[1]
    yield Result(f"extras: gti serve {model}: the page, {len(page):,} bytes", b"<html" in page, errors[-900:])
    yield Result(f"extras: its answer is {label}, as that of gti classify", f'"{label}"'.encode() in found, str(found))
    good = process.returncode in (0, -signal.SIGTERM) and "Traceback" not in errors
    yield Result("extras: gti serve ends at SIGTERM", good, f"{process.returncode} {errors[-900:]}")


def film(model: str) -> Iterator[Try]:
    """Yield what OpenCV adds."""
    yield Try(("camera", model, "--source", "film_%02d.png", "--no_window"), out=" fps")
    yield Try(("camera", model, "--source", "film_%02d.png", "--json", "--frames", "2"), out='"file": "film_%02d.png"')


def tried(gti: Path, folder: Path, tries: Iterator[Try], stage: str) -> Iterator[Result]:
    """Yield how each command went."""
    seen = set()
    for one in tries:
        source = folder / one.stdin if one.stdin else None
        with open(source or os.devnull, "rb") as stdin:
            done = _try(gti, *one.words, cwd=folder, stdin=stdin)
        good = done.returncode == one.status and one.out in done.stdout and one.err in done.stderr
        good &= "Traceback" not in done.stderr
        seen.add(one.words[0] if one.words else "")
        came = f"{done.returncode} {done.stdout} {done.stderr}"[-900:]
        yield Result(f"{stage}: gti {' '.join(one.words)}", good, came)
    if stage == "images":
        missing = set(VERBS) - seen - {"camera"}
        yield Result(f"{stage}: every verb was tried", not missing, str(missing))


def helps(gti: Path, folder: Path) -> Result:
    """Return whether the help of every verb comes in time."""
    seconds = {}
    for verb in VERBS:
        before = os.times()
        _run(gti, verb, "--help", cwd=folder)
        after = os.times()
        seconds[verb] = after.children_user + after.children_system - before.children_user - before.children_system
    slowest = max(seconds, key=seconds.__getitem__)
    told = f"--help of every verb: at most {seconds[slowest]:.2f} s of the processor (gti {slowest})"
    return Result(told, seconds[slowest] < HELP_SECONDS)


def package(folder: Path, python: str) -> Iterator[Result]:
    """Build wheel and source distribution of a copy of the checkout in `folder`/dist; look into them."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    (source / "checkpoints").mkdir()
    shutil.copy(ROOT / "checkpoints" / "README.md", source / "checkpoints")
    dist = folder / "dist"
    _run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", dist, source)
    backend = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    _run(sys.executable, "-c", backend, dist, cwd=source)
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    yield Result(f"{wheel.name}, {wheel.stat().st_size:,} bytes", wheel.name.endswith("-py3-none-any.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in (*DATA, *(f"gti/commands/{module_of(verb)}.py" for verb in VERBS)) if name not in names]
    yield Result("the wheel holds modules of all verbs, rules, page and py.typed", not missing, str(missing))
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    again = folder / "again"
    _run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", again, unpacked)
    same = zipfile.ZipFile(next(again.glob("*.whl"))).namelist()
    told = f"{archive.name}, {archive.stat().st_size:,} bytes, builds the same wheel"
    yield Result(told, sorted(same) == sorted(names), str(set(same) ^ set(names)))
    own = "tests/commands/test_gti.py"
    tests = _try(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", own, cwd=unpacked)
    yield Result(f"the source distribution tests itself ({own})", not tests.returncode, tests.stdout[-900:])


def results(folder: Path, model: Path, python: str, *, opencv: bool) -> Iterator[Result]:
    """Build, install and try, stage by stage."""
    home = folder / "home"
    home.mkdir()
    files(home)
    shutil.copy(model, home / "full.model")
    (home / "edges.model").write_bytes(edges_model(model))
    yield from package(folder, python)
    (wheel,) = (folder / "dist").glob("*.whl")
    _run(python, "-m", "venv", folder / "venv")
    place = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    inside, gti = place / "python", place / "gti"

    def pip(*words: object) -> None:
        _run(inside, "-m", "pip", *words[:1], "--quiet", *words[1:])

    pip("install", wheel)
    version = _run(inside, "-V").stdout.strip()
    found = _run(inside, "-c", _FOUND, *FORBIDDEN, cwd=home).stdout.strip()
    yield Result(f"{version}; of {', '.join(FORBIDDEN)} installed: {found}", found == "[]")
    yield helps(gti, home)
    yield from tried(gti, home, bare("full.model"), "wheel alone")
    pip("install", f"{wheel}[images]")
    yield from tried(gti, home, verbs("full.model"), "images")
    words = ("classify", "full.model", "picture.jpg", "array.npy", "photos", "--device", "emulator", "--json")
    checkout = _run(sys.executable, "-m", "gti", *words, cwd=home, here=True)
    here = [json.loads(line) for line in checkout.stdout.splitlines()]

    def equal(stage: str) -> Result:
        lines = [json.loads(line) for line in _run(gti, *words, cwd=home).stdout.splitlines()]
        close = [
            len(one["result"]) == len(two["result"])
            and all(
                a["label"] == b["label"] and abs(a["probability"] - b["probability"]) < 1e-5
                for a, b in zip(one["result"], two["result"], strict=True)
            )
            for one, two in zip(here, lines, strict=True)
        ]
        return Result(f"{stage}: {len(lines)} answers are those of the checkout", len(lines) == 14 and all(close))

    yield equal("images")
    if opencv:
        pip("install", "opencv-python-headless")
        yield from tried(gti, home, film("full.model"), "OpenCV")
    pip("install", f"{wheel}[images,import,serve]")
    yield from tried(gti, home, extras("full.model"), "extras")
    yield from served(gti, home, "full.model")
    pip("uninstall", "--yes", "numba", "llvmlite")
    yield from tried(gti, home, bare_of_numba("full.model"), "without numba")
    yield equal("without numba")


def bare_of_numba(model: str) -> Iterator[Try]:
    """Yield what must go on where numba cannot be had."""
    yield Try(("classify", model, "picture.jpg", "--device", "emulator"), out="picture.jpg: ", err="NumPy")
    yield Try(("doctor", "--device", "virtual"), out="codes are right")
    yield Try(("verify", "wrapped.model"), out="right, code for code")


def main() -> int:
    """Look at everything, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="full .MODEL of 28x28 pictures, as the demo makes it")
    parser.add_argument("--python", default=sys.executable, help="the Python to install into (default: this one)")
    parser.add_argument("--opencv", action="store_true", help="OpenCV too")
    flags = parser.parse_args()
    model = Path(flags.model).resolve()
    if not model.is_file():
        raise UsageError(flags.model, "is no file", expected="a full .MODEL")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for text, good, more in results(Path(folder), model, flags.python, opencv=flags.opencv):
            print(("ok    " if good else "FAULT ") + text, flush=True)
            if not good:
                wrong += 1
                print("      " + more.strip().replace("\n", "\n      "))
    return 1 if wrong else 0


def _try(
    *command: object, cwd: Path | str = "/", here: bool = False, stdin: Any = None
) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(ROOT)} if here else {}
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | paths
    words: Sequence[str] = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=clean, stdin=stdin)


def _run(*command: object, cwd: Path | str = "/", here: bool = False) -> subprocess.CompletedProcess[str]:
    result = _try(*command, cwd=cwd, here=here)
    if result.returncode:
        words = " ".join(str(word) for word in command[:6])
        raise UsageError(words, f"failed ({result.stderr.strip()[-300:]})")
    return result


if __name__ == "__main__":
    cli.run(main)
