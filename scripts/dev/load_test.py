#!/usr/bin/env python
"""Many clients at one server for a while, the stick pulled out and put back in between; no answer may be wrong:

    python scripts/dev/load_test.py                              # 200 clients, a minute
    python scripts/dev/load_test.py --clients 20 --seconds 5

The stick is in software. Clients send pictures over loopback, each its own, and ask again where they get 503. Exit
status 1 where an answer was wrong, the stick's absence went unnoticed, answers did not come back with it, or memory or
descriptors grew once all clients had been there.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gti import arguments
from gti.cli import run
from gti.errors import UsageError
from scripts.dev.soak import IMAGES, memory_and_descriptors, model_bytes

MEMORY_MARGIN_BYTES = 24 << 20
# Parts of the time: everybody has been there; the stick is gone; it is back.
WARM, GONE, BACK = 0.3, 0.5, 0.6


def pictures() -> list[bytes]:
    """Return PNG files, of which each gives another answer."""
    import numpy as np
    from PIL import Image

    found = []
    for pixels in np.random.RandomState(3).randint(0, 256, (IMAGES, 20, 24, 3)).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        found.append(file.getvalue())
    return found


async def client(port: int, sent: bytes, wanted: Any, end: float, found: Counter[str]) -> None:
    """Ask until `end`, on one connection as long as it lasts."""
    head = f"POST /api/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sent)}\r\n\r\n".encode()
    pause = random.Random(sent)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < end:
        writer.write(head + sent)
        status = int((await reader.readline()).split()[1])
        length = 0
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        body = json.loads(await reader.readexactly(length))
        found[str(status)] += 1
        if status == 200:
            found["wrong"] += body["result"] != wanted
            found["after"] += time.monotonic() > end - 1
        else:
            found["gone"] += "pictures wait" not in body["error"]
            await asyncio.sleep(0.05 + 0.1 * pause.random())
    writer.close()


async def load(port: int, clients: int, seconds: float, slot: Any, answers: list[Any]) -> dict[str, Any]:
    """Run the clients, and pull the stick out in between."""
    found: Counter[str] = Counter()
    files = pictures()
    started = time.monotonic()
    marks: list[tuple[int, int]] = []

    async def at(part: float) -> None:
        await asyncio.sleep(max(0.0, started + part * seconds - time.monotonic()))

    async def stick() -> None:
        await at(WARM)
        marks.append(memory_and_descriptors())
        await at(GONE)
        slot.leave(back=False)
        await at(BACK)
        slot.present = True
        await at(0.97)
        marks.append(memory_and_descriptors())

    ends = started + seconds
    asking = [client(port, files[n % IMAGES], answers[n % IMAGES], ends, found) for n in range(clients)]
    await asyncio.gather(stick(), *asking)
    (early, early_files), (late, late_files) = marks
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": found["200"],
        "wrong": found["wrong"],
        "503 for a full queue": found["503"] - found["gone"],
        "503 for the stick": found["gone"],
        "answers in the last second": found["after"],
        "other": {key: n for key, n in found.items() if key.isdecimal() and key not in ("200", "503")},
        "memory grown": late - early,
        "descriptors grown": late_files - early_files,
    }


def passed(report: dict[str, Any]) -> bool:
    """Return whether all was well."""
    good = report["answers in the last second"] > 0 and report["503 for the stick"] > 0
    flat = report["memory grown"] <= MEMORY_MARGIN_BYTES and report["descriptors grown"] <= 0
    return good and flat and not report["wrong"] and not report["other"]


def measure(clients: int, seconds: float) -> dict[str, Any]:
    """Start a server in a thread of this process, send clients."""
    import uvicorn

    from gti.chip.runtime.classifier import Classifier
    from gti.serve.app import Server
    from gti.serve.models import Labels

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load.model"
        path.write_bytes(model_bytes())
        with Classifier(path, "virtual") as alone:
            labels = [alone.classify_one(picture) for picture in pictures()]
        model = Classifier(path, "virtual")
    answers = [[{"index": w.index, "label": w.text, "probability": w.probability} for w in one] for one in labels]
    slot = model._sticks._stick.transport._backend.slots[0]  # type: ignore[union-attr]
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(Server(Labels("load", model)).app(), log_level="error", backlog=max(2048, clients))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        return asyncio.run(load(listening.getsockname()[1], clients, seconds, slot, answers))
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print the report as JSON."""
    parser = arguments.Parser(__doc__ or "")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args(words)
    if args.clients < 1 or args.seconds < 3:
        raise UsageError("load_test.py", "has nothing to do", expected="--clients of at least 1, --seconds of 3")
    import logging

    logging.getLogger("gti.chip.usb.link").setLevel(logging.ERROR)  # faults are meant to be
    report = measure(args.clients, args.seconds)
    print(json.dumps(report, indent=1))
    return 0 if passed(report) else 1


if __name__ == "__main__":
    run(main)
