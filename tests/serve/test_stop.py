"""The end of `gti serve`: who is being answered gets his answer, nobody else is let in, the sticks are given back."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from places import ROOT

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

CLIENTS = 5
LONG_S = 60.0  # what hangs, hangs for ever
# A model that answers when the file "go" is there.
PROGRAM = """
import asyncio, sys
from pathlib import Path
from gti import cli
from gti.commands import serve
from gti.serve import models

class Slow:
    kind, name, labels, devices, problem, counters = "classify", "slow", ["a"], ["none"], "", {}
    async def compute(self, data):
        Path(f"working_{data.decode()}").touch()
        while not Path("go").exists():
            await asyncio.sleep(0.01)
        return models.Answer([{"index": 0, "label": data.decode(), "probability": 1.0}])
    def release(self):
        Path("released").touch()

models.open_model = lambda *_: Slow()
cli.run(lambda: serve.main(["slow.model", "--port", sys.argv[1]]))
"""


def until(condition) -> None:
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_those_in_work_are_answered(tmp_path: Path, sent: signal.Signals):
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    found: dict[str, tuple[int, bytes]] = {}

    def ask(name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG_S)
        connection.request("POST", "/api/classify", name.encode())
        answer = connection.getresponse()
        found[name] = answer.status, answer.read()

    clients = [threading.Thread(target=ask, args=(str(number),), daemon=True) for number in range(CLIENTS)]
    try:
        until(lambda: listens(port))
        for client in clients:
            client.start()
        until(lambda: len(list(tmp_path.glob("working_*"))) == CLIENTS)
        process.send_signal(sent)
        until(lambda: not listens(port))
        assert not (tmp_path / "released").exists()
        (tmp_path / "go").touch()
        for client in clients:
            client.join(LONG_S)
        process.wait(LONG_S)
    finally:
        process.kill()
        _, errors = process.communicate()
    assert {name: status for name, (status, _) in found.items()} == {str(n): 200 for n in range(CLIENTS)}
    assert all(name.encode() in body for name, (_, body) in found.items())
    assert (tmp_path / "released").exists()
    assert "Traceback" not in errors
    assert process.returncode in ((0, -sent) if sent == signal.SIGTERM else (0, 130)), errors
