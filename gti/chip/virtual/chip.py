"""The chip of the sticks in software: words in, computed results out.

`protocol.WordMachine` understands the words; the coefficients become a network through `dat.decode`, the images go
through the emulator, the maps come back packed as words. Time is virtual: the emulator takes as long as it needs, and
whoever reads waits for it without a time-out, except with `chip_time_ms`, where a result is a pattern that is ready
after that time.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import TYPE_CHECKING

import numpy as np

from gti.chip.emulator.behaviours import ASSUMED, Behaviours
from gti.chip.virtual.faults import Fault
from gti.chip.wire import protocol
from gti.errors import DeviceError, GtiError

if TYPE_CHECKING:
    import numpy.typing as npt

    from gti.chip.virtual.memory import SoftwareNetwork

log = logging.getLogger(__name__)

# Parsing pays per call: words are collected and parsed when something is asked of the chip, or when this many wait.
_LUMP = 1 << 20


class VirtualChip:
    """State of one chip: coefficients, registers, the image in work, results that wait."""

    def __init__(
        self,
        framing: protocol.Framing = protocol.FT601,
        *,
        chip_time_ms: float | None = None,
        engine: str = "auto",
        ten_bit_layout: str = "halves",
        upsample_modes: tuple[str, ...] = (),
        behaviours: Behaviours = ASSUMED,
    ) -> None:
        self.behaviours = behaviours
        self._framing = framing
        self._chip_time_ms = chip_time_ms
        self._engine = engine
        self._ten_bit_layout = ten_bit_layout
        self._upsample_modes = upsample_modes  # which no word tells
        self._networks: dict[bytes, SoftwareNetwork] = {}
        self.images = 0  # images taken in since the chip was made
        self._refusal = ""  # why the frame before had no result
        self._last = bytes(64)  # of the result before: what a stale byte is made of
        self.power_cycle()

    def power_cycle(self) -> None:
        """Forget coefficients, registers and results."""
        self._machine = protocol.WordMachine(self._framing.word_bytes)
        self._received: list[bytes] = []
        self._received_bytes = 0
        self._received_at = 0.0
        self._coefficients: bytes | None = None
        self._digest = b""
        self._pending: protocol.Image | None = None
        self._queue = bytearray()
        self._disturbance = ""
        self._extra = 0

    def feed(self, data: bytes) -> None:
        """Take words, cut anywhere."""
        self._received.append(data)
        self._received_bytes += len(data)
        self._received_at = time.monotonic()
        if self._received_bytes >= _LUMP:
            self._parse(keep_rest=True)

    def end_of_stream(self) -> None:
        """The host closed the pipe: half a word will never be completed."""
        self._parse(keep_rest=False)

    def wait(self, timeout_ms: float) -> bool:
        """Return whether a result is there, waiting for the chip at most `timeout_ms` of its own time."""
        self._parse(keep_rest=True)
        self._machine.end_segment()  # nothing need follow an image before it is read
        self._handle_events()
        if self._pending is not None and self._chip_time_ms is not None:
            left = self._received_at + self._chip_time_ms / 1000.0 - time.monotonic()
            if left > 0:
                time.sleep(min(left, timeout_ms / 1000.0))
                if left > timeout_ms / 1000.0:
                    return False
        if self._pending is not None:
            image, self._pending = self._pending, None
            self._finish(image)
        return bool(self._queue)

    def take(self, length: int) -> bytes:
        """Return up to `length` bytes of result words that are there already."""
        answer = bytes(self._queue[:length])
        del self._queue[: len(answer)]
        return answer

    def stale_words(self, length: int) -> bytes:
        """Return `length` bytes such as an earlier result could have left behind."""
        words = protocol.word_stream(self._last, self._framing.word_bytes)
        return (words * (length // len(words) + 1))[:length]

    def disturb(self, fault: Fault) -> None:
        """Apply a fault of the chip: brownout, lost, zeros, ones, extra."""
        if fault.kind == "brownout":
            self.power_cycle()
        elif fault.kind == "extra":
            self._extra = fault.amount
        else:
            self._disturbance = fault.kind
        # A result that is already waiting is hit as well as the next one.
        if self._queue and self._disturbance:
            self._queue[:] = self._disturbed(bytes(self._queue))

    def _parse(self, *, keep_rest: bool) -> None:
        stream = b"".join(self._received)
        whole = len(stream) - len(stream) % self._framing.word_bytes
        self._received = [stream[whole:]] if keep_rest and whole < len(stream) else []
        self._received_bytes = len(stream) - whole if keep_rest else 0
        if not whole:
            return
        self._machine.feed(stream[:whole])
        self._handle_events()

    def _handle_events(self) -> None:
        for event in self._machine.pop_events():
            if isinstance(event, protocol.Reset):
                self._queue.clear()
                self._pending = None
            elif isinstance(event, protocol.Coefficients):
                if len(event.data) < self.behaviours.value("load_length"):
                    continue
                self._coefficients = event.data
                self._digest = hashlib.sha256(event.data).digest()
            elif isinstance(event, protocol.Image):
                self._pending = event
                self.images += 1

    def _finish(self, image: protocol.Image) -> None:
        if self._coefficients is None:
            log.debug("virtual chip: an image came before coefficients")
            return
        try:
            if self._chip_time_ms is not None:
                data = image.read_out.pack(_pattern(image))
            else:
                data = self._network(image.header).result(image)
        except GtiError as error:
            # The chip cannot speak: what it cannot do ends in silence, as on silicon. The log has the reason. What is
            # refused in the same words after everything was sent again is no fault of a transfer: no repetition helps.
            log.error("virtual chip: no result: %s", error)
            if str(error) == self._refusal:
                self._refusal = ""
                raise DeviceError(f"stick in software: no result. {error}") from error
            self._refusal = str(error)
            return
        self._refusal = ""
        self._last = data[:1024] or self._last
        words = protocol.word_stream(data, self._framing.word_bytes)
        self._queue += self._disturbed(words)
        if self.behaviours["end_of_result"] == "padded" and self._queue:
            self._queue += bytes(self.behaviours.value("end_of_result"))
        if self._extra and self._queue:
            self._queue += self.stale_words(self._extra)
            self._extra = 0

    def _disturbed(self, words: bytes) -> bytes:
        kind, self._disturbance = self._disturbance, ""
        return {"zeros": bytes(len(words)), "ones": b"\xff" * len(words), "lost": b""}.get(kind, words)

    def _network(self, header: protocol.Header) -> SoftwareNetwork:
        # Late, because a chip of patterns needs neither decoder nor emulator.
        from gti.chip.virtual.memory import SoftwareNetwork, decode_registers

        assert self._coefficients is not None
        key = self._digest + header.to_bytes()
        if key not in self._networks:
            if len(self._networks) > 3:
                self._networks.clear()
            behaviours = self.behaviours.of_the_chip
            dat = decode_registers(header, self._coefficients, behaviours)
            self._networks[key] = SoftwareNetwork(
                dat, self._engine, self._ten_bit_layout, self._upsample_modes, behaviours=behaviours
            )
        return self._networks[key]


def _pattern(image: protocol.Image) -> list[npt.NDArray[np.uint8]]:
    """Return maps that depend on every byte of the image, for measurements without arithmetic."""
    read_out = image.read_out
    seed = int.from_bytes(hashlib.sha256(image.data).digest()[:4], "little")
    result = []
    for maps in read_out.sets:
        count = maps.channels * maps.size * maps.size
        codes = (np.arange(count, dtype=np.uint32) * np.uint32(seed | 1) >> np.uint32(24)) & np.uint32(31)
        result.append(
            (codes << np.uint32(read_out.shift)).astype(np.uint8).reshape(maps.channels, maps.size, maps.size)
        )
    return result
