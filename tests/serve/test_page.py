"""The page in a real browser: a picture goes in, labels or edges come out; nothing is wider than the window."""

from __future__ import annotations

import base64
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import chromium
import numpy as np
import pytest
from full_models import full_model
from PIL import Image

pytest.importorskip("starlette", reason="the extra serve is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from gti.chip.runtime.classifier import Classifier  # noqa: E402
from gti.serve.app import Limits, Server  # noqa: E402
from gti.serve.models import Model, open_model  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium: apt-get install chromium"),
]
SIZES = [(1280, 800), (400, 820)]
# Screenshots are kept where this names a folder.
KEEP = os.environ.get("GTI_SCREENSHOTS")


@contextmanager
def serving(model: Model, token: str = "") -> Iterator[str]:
    """Serve on a free port of this computer; yield the URL."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(Server(model, Limits(token=token)).app(), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def dropped(data: bytes) -> str:
    """JavaScript that drops a file onto the page."""
    text = base64.b64encode(data).decode()
    return f"""(async () => {{
        const bytes = Uint8Array.from(atob("{text}"), c => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "x.png", {{ type: "image/png" }}));
        document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {{ dataTransfer: transfer, bubbles: true, cancelable: true }}));
    }})()"""


def photograph() -> tuple[np.ndarray, bytes]:
    """A picture with shapes and colours, and its PNG."""
    y, x = np.mgrid[0:300, 0:400]
    pixels = np.stack([90 + x // 4, 150 - y // 4, 170 + 0 * x], axis=-1)
    pixels[(x - 260) ** 2 + (y - 110) ** 2 < 55**2] = (250, 205, 90)
    pixels[y > 190 + 25 * np.sin(x / 45.0)] = (40, 105, 85)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return pixels.astype(np.uint8), file.getvalue()


@pytest.mark.parametrize("token", ["", "secret"])
def test_the_page_shows_what_the_classifier_says(tmp_path: Path, token: str):
    path = tmp_path / "pets.model"
    path.write_bytes(full_model())
    pixels, file = photograph()
    with Classifier(path, "virtual") as model:
        wanted = model.classify_one(pixels)
    with serving(open_model(path, ["virtual"]), token) as url:
        page = chromium.Chromium(url)
        try:
            if token:
                page.until("document.getElementById('ask') && document.getElementById('ask').open")
                page.run(
                    "document.getElementById('token').value = 'secret'; document.querySelector('#ask button').click()"
                )
            page.until(
                "document.title === 'pets' && document.getElementById('device').textContent.startsWith('virtual')"
            )
            for width, height in SIZES:
                page.size(width, height)
                assert page.run("document.documentElement.scrollWidth <= innerWidth")
                keep(page, f"empty_{width}")
            page.run(dropped(file))
            page.until("document.querySelectorAll('#answer .row').length")
            names = page.run("[...document.querySelectorAll('#answer .name')].map(one => one.textContent)")
            shares = page.run("[...document.querySelectorAll('#answer .share')].map(one => one.textContent)")
            assert names == [one.text for one in wanted]
            assert shares == [f"{100 * one.probability:.1f} %" for one in wanted]
            widths = page.until(
                "(bars => bars[0] && parseFloat(bars[0].style.width) > 0 && bars.map(one => one.style.width))"
                "([...document.querySelectorAll('#answer i')])"
            )
            assert [float(one[:-1]) for one in widths] == pytest.approx(
                [100 * one.probability for one in wanted], rel=1e-4
            )
            assert "ms" in page.run("document.getElementById('took').textContent")
            page.until("document.getElementById('frames').textContent === '1'")
            for width, height in SIZES:
                page.size(width, height)
                assert page.run("document.documentElement.scrollWidth <= innerWidth")
                keep(page, f"answer_{width}")
            page.run(dropped(b"no picture"))
            assert "read" in page.until("document.querySelector('#answer .bad')?.textContent")
        finally:
            page.close()


class DrawnEdges:
    """Stands in for a network for edges: the picture's rows differ."""

    kind, name, labels, problem = "edges", "edges", (), ""
    devices, counters = ("a stand-in",), {"frames": 0}

    async def compute(self, data: bytes) -> object:
        from gti.serve.models import Answer

        grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.int16)
        steps = np.abs(np.diff(grey, axis=0))[:, 1:] + np.abs(np.diff(grey, axis=1))[1:]
        file = io.BytesIO()
        Image.fromarray((255 - np.minimum(steps * 4, 255)).astype(np.uint8)).save(file, "PNG")
        return Answer([], file.getvalue())

    def release(self) -> None:
        """Nothing is held."""


def test_edges_are_shown_as_a_picture():
    with serving(DrawnEdges()) as url:  # type: ignore[arg-type]
        page = chromium.Chromium(url)
        try:
            page.until("document.title === 'edges'")
            page.run(dropped(photograph()[1]))
            size = page.until(
                "(image => image && image.complete && image.naturalWidth && [image.naturalWidth, image.naturalHeight])"
                "(document.querySelector('#answer img'))"
            )
            assert size == [399, 299]
            for width, height in SIZES:
                page.size(width, height)
                assert page.run("document.documentElement.scrollWidth <= innerWidth")
                keep(page, f"edges_{width}")
        finally:
            page.close()


def keep(page: chromium.Chromium, name: str) -> None:
    if KEEP:
        time.sleep(0.6)  # bars have grown
        page.screenshot(Path(KEEP) / f"{name}.png")
