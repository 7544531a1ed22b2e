"""gti serve: paths, limits, failing sticks, edges; the command itself."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from full_models import NAMES, full_model
from PIL import Image
from sticks import dat_bytes, tiny_network

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from starlette.testclient import TestClient

from gti.chip.formats.model_file import compose
from gti.chip.host import edge_head
from gti.chip.runtime.classifier import Classifier
from gti.commands import serve
from gti.errors import DeviceError, UsageError
from gti.serve import models
from gti.serve.app import Limits, Server
from gti.serve.models import Answer, open_model

PIXELS = np.random.RandomState(4).randint(0, 256, (30, 40, 3)).astype(np.uint8)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pets.model"
    file.write_bytes(full_model())
    return file


def client(path: Path, **limits: Any) -> TestClient:
    return TestClient(Server(open_model(path, ["emulator"]), Limits(**limits)).app())


def test_every_path_gives_the_classifiers_answer(path: Path):
    with Classifier(path, "emulator") as model:
        wanted = model.classify_one(PIXELS)
    best = wanted[0]
    with client(path) as web:
        for sent in ({"content": png()}, {"files": {"image": ("x.png", png(), "image/png")}}):
            found = web.post("/api/classify", **sent).json()
            assert [(one["index"], one["label"]) for one in found["result"]] == [(w.index, w.text) for w in wanted]
            assert [one["probability"] for one in found["result"]] == [w.probability for w in wanted]
            assert found["ms"] > 0
        form = {"image": ("x.png", png(), "image/png")}
        scene = web.post("/v1/vision/scene", files=form).json()
        assert scene == {"success": True, "label": best.text, "confidence": best.probability}
        custom = web.post("/v1/vision/custom/pets", files=form, data={"min_confidence": "0"}).json()
        assert [one["label"] for one in custom["predictions"]] == [w.text for w in wanted if w.text != "background"]
        assert {(one["x_min"], one["y_min"], one["x_max"], one["y_max"]) for one in custom["predictions"]} == {
            (0, 0, 40, 30)
        }
        none = web.post("/v1/vision/custom/pets", files=form, data={"min_confidence": "1"}).json()
        assert none == {"success": True, "predictions": []}
        assert web.post("/v1/vision/custom/other", files=form).status_code == 404
        assert web.post("/api/edges", content=png()).status_code == 404
        info = web.get("/api/info").json()
        assert (info["name"], info["kind"], info["labels"]) == ("pets", "classify", NAMES)
        state = web.get("/api/state").json()
        assert state["counters"]["frames"] == 5
        assert state["fps"] == pytest.approx(0.5)
        assert state["devices"][0].startswith("emulator")
        assert web.get("/health").json() == {"status": "ok"}
        page = web.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(r"https?://(?!www.w3.org)", page.text)


def test_metrics_are_in_the_text_format(path: Path):
    with client(path) as web:
        web.post("/api/classify", content=png())
        web.post("/api/classify", content=b"no picture")
        text = web.get("/metrics").text
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r'([a-z_]+(?:\{[a-z]+="[^"]*"\})?) (-?[0-9.e+-]+)', line)
            assert match, line
            samples[match[1]] = float(match[2])
    assert samples["gti_up"] == 1
    assert samples["gti_frames_total"] == samples["gti_answer_seconds_count"] == 1
    assert samples['gti_rejected_total{reason="picture"}'] == 1
    assert samples["gti_waiting"] == 0
    typed = set(re.findall(r"^# TYPE (\w+)", text, re.M))
    assert all(any(name.split("{")[0].startswith(one) for one in typed) for name in samples)


def test_what_is_refused(path: Path):
    with client(path, file_bytes=20_000) as web:
        assert web.post("/api/classify", content=b"").status_code == 400
        assert web.post("/api/classify", content=b"GIF89a nonsense").status_code == 400
        assert web.post("/api/classify", files={"other": ("x", png())}).status_code == 400
        assert web.post("/api/classify", content=b"x" * 25_000).status_code == 413
        assert web.post("/api/classify", content=iter([b"x" * 50_000] * 4)).status_code == 413  # of unknown length
        broken = {"content-type": "multipart/form-data; boundary=x"}
        assert web.post("/api/classify", content=b"--y\r\n", headers=broken).status_code == 400
        assert (
            web.post("/api/classify", content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 400
        )
        assert web.get("/api/classify").status_code == 405
        assert web.post("/v1/vision/custom/pets", content=png(), params={}).status_code == 200


def test_the_token(path: Path):
    with client(path, token="secret") as web:
        right, wrong = {"authorization": "Bearer secret"}, {"authorization": "Bearer secreT"}
        assert web.post("/api/classify", content=png(), headers=right).status_code == 200
        for answer in (
            web.post("/api/classify", content=png()),
            web.post("/api/classify", content=png(), headers=wrong),
            web.get("/api/state"),
            web.get("/metrics"),
            web.post("/v1/vision/scene", files={"image": png()}, data={"api_key": "no"}),
        ):
            assert answer.status_code == 401
        assert web.post("/v1/vision/scene", files={"image": png()}, data={"api_key": "secret"}).status_code == 200
        assert web.get("/").status_code == web.get("/health").status_code == 200


class Slow:
    """A model that answers when it is told to, or fails."""

    kind, name, labels = "classify", "slow", ["a"]

    def __init__(self) -> None:
        self.devices, self.counters, self.problem = ["none"], {"frames": 0}, ""
        self.go = asyncio.Event()
        self.released = False

    async def compute(self, data: bytes) -> Answer:
        if data == b"fail":
            self.problem = "stick: was pulled out"
            raise DeviceError(self.problem)
        await self.go.wait()
        return Answer([{"index": 0, "label": "a", "probability": 1.0}])

    def release(self) -> None:
        self.released = True


def test_a_full_queue_and_a_stick_that_is_gone():
    import httpx

    async def scenario() -> None:
        model = Slow()
        app = Server(model, Limits(waiting=3)).app()  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://x")
        async with app.router.lifespan_context(app), client as web:
            asked = [asyncio.create_task(web.post("/api/classify", content=b"x")) for _ in range(3)]
            while (await web.get("/api/state")).json()["waiting"] < 3:
                await asyncio.sleep(0)
            full = await web.post("/api/classify", content=b"x")
            assert (full.status_code, full.headers["retry-after"]) == (503, "1")
            model.go.set()
            assert [one.status_code for one in await asyncio.gather(*asked)] == [200] * 3
            failed = await web.post("/api/classify", content=b"fail")
            assert failed.status_code == 503
            assert "pulled" in failed.json()["error"]
            assert (await web.get("/health")).status_code == 503
            assert (await web.get("/api/state")).json()["waiting"] == 0
        assert model.released

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--queue", "0"], "queue"), (["--max_mb", "0"], "max_mb"), (["--token", ""], "token"), (["--port", "x"], "port")],
)
def test_mistakes_on_the_command_line(path: Path, words: list[str], said: str):
    with pytest.raises(UsageError, match=said):
        serve.main([str(path), *words])


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("pi", False)]
)
def test_loopback(host: str, loopback: bool):
    assert serve.is_loopback(host) is loopback


@pytest.mark.slow
def test_the_command_ends_with_sigterm_and_answers_what_is_in_work(path: Path):
    import socket

    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gti", "serve", str(path), "--device", "emulator", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "emulator" in process.stderr.readline()
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(transport=httpx.HTTPTransport(retries=8), timeout=60) as web:
            assert web.post(f"{url}/api/classify", content=png()).status_code == 200
        taken = subprocess.run([*command], capture_output=True, text=True, check=False)
        assert taken.returncode == 2
        assert "listened" in taken.stderr
        assert "Traceback" not in taken.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


class BothAtOnce:
    """Stands in for EdgeModel: two of them answer only at the same time."""

    meeting = threading.Barrier(2)
    released: ClassVar[list[str]] = []

    def __init__(self, _: Path, device: str, **options: Any) -> None:
        if device == "usb:9":
            raise DeviceError(device, "is not there")
        self.device_description = device

    def load(self, data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
        return np.zeros((4, 4, 3), np.uint8), (4, 4)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        self.meeting.wait(60)  # or BrokenBarrierError
        return np.zeros((4, 4), np.float32)

    def release(self) -> None:
        self.released.append(self.device_description)

    def __enter__(self) -> BothAtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def test_edges_are_computed_by_every_stick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    header = {"name": "e", "layer": [{"operation": "GTICNN", "name": "c", "data file": "c"}], edge_head.KEY: {}}
    (tmp_path / "e.model").write_bytes(compose(json.dumps(header).encode(), {"c": dat_bytes(tiny_network())}))
    monkeypatch.setattr(models, "EdgeModel", BothAtOnce)
    with pytest.raises(DeviceError):
        open_model(tmp_path / "e.model", ["usb:0", "usb:9"])
    assert BothAtOnce.released == ["usb:0"]
    model = open_model(tmp_path / "e.model", ["usb:0", "usb:1"])
    assert model.devices == ["usb:0", "usb:1"]

    async def two() -> list[Answer]:
        return list(await asyncio.gather(model.compute(b"a"), model.compute(b"b")))

    assert all(answer.png.startswith(b"\x89PNG") for answer in asyncio.run(two()))
    assert model.counters["frames"] == 2
    model.release()
    assert BothAtOnce.released == ["usb:0", "usb:0", "usb:1"]
