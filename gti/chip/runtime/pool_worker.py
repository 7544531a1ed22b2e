"""The process of one stick in a `GtiPool`: `python -m gti.chip.runtime.pool_worker <descriptor of its socket>`."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from gti.chip.driver import GtiModel
from gti.chip.usb.devices import parse_device
from gti.chip.usb.transport import VIRTUAL_SETTINGS, Settings
from gti.chip.virtual.sticks import virtual_transport
from gti.errors import GtiError


def open_model(path: str, device: str, options: dict[str, Any]) -> GtiModel:
    """Open the stick that the pool asks for."""
    settings = Settings(**options["settings"]) if options["settings"] else None
    selection = parse_device(device)
    if selection.kind == "virtual" and options["chip"]:
        chosen = settings or VIRTUAL_SETTINGS
        transport = virtual_transport(selection.key, chosen, **options["chip"])
        return GtiModel(path, transport=transport, settings=chosen, mode=options["mode"])
    return GtiModel(path, device, settings=settings, mode=options["mode"])


def receive(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    """Pass everything on, and None at the end. Always ready to receive, so that neither side waits for the other."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            messages.put(connection.recv())
    messages.put(None)


def main(connection: Connection) -> None:
    """Open the stick, answer images until the pool goes away."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=receive, args=(connection, messages), daemon=True).start()
    path, device, options = messages.get()
    try:
        with open_model(path, device, options) as model:
            connection.send(("ready", model.device_description))
            while (message := messages.get()) is not None:
                connection.send(("result", model.evaluate(*message)))
    except GtiError as error:
        connection.send(("failed", str(error)))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        main(Connection(int(sys.argv[1])))
