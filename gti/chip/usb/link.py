"""Frames to the chip and results back, over any transport, with recovery.

Every fault leaves the transport closed. The frame in work is then repeated from the beginning: open, load the
coefficients, send the registers and the image again. So no byte of an earlier frame can reach a later result, whatever
happened in between. The number of repetitions is bounded (`Settings.retries`); each is counted and logged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gti.chip.usb.transport import Settings, TransferError, Transport
from gti.chip.wire import protocol
from gti.errors import DeviceError

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One image on its way: planes uint8 [C,H,W], the read-out mode, the words of a frame after the first."""

    planes: npt.NDArray[np.uint8]
    mode: protocol.Mode
    block: bytes


class Link:
    """A chip with one .DAT behind a transport. One frame at a time: start it, finish it.

    `check(frame, data)` may look at the chip bytes of a result and raise TransferError when they cannot be true.
    """

    def __init__(
        self,
        transport: Transport,
        dat: bytes,
        channels: int,
        settings: Settings,
        check: Callable[[Frame, bytes], None] = lambda frame, data: None,
    ) -> None:
        self.transport = transport
        self.counts: Counter[str] = Counter()  # frames, loads, faults, recovered
        self.fault_level = logging.WARNING  # of what the log says about attempts
        self._dat = dat
        self._header = protocol.Header.parse(dat)
        self._channels = channels
        self._settings = settings
        self._check = check
        self._encoders: dict[protocol.Mode, protocol.FrameEncoder] = {}
        self._load: bytes | None = None
        self._loaded = False
        self._mode: protocol.Mode | None = None  # whose registers the chip has
        self._frame: Frame | None = None  # in work
        self._sent = False
        self._fault: TransferError | None = None

    def encode(self, planes: npt.NDArray[np.uint8], mode: protocol.Mode) -> Frame:
        """Lay an image, uint8 [C,H,W], out for the wire; may be done while the chip works on another one."""
        return Frame(planes, mode, self._encoder(mode).encode(planes))

    def _encoder(self, mode: protocol.Mode) -> protocol.FrameEncoder:
        if mode not in self._encoders:
            self._encoders[mode] = protocol.FrameEncoder(
                self._header, mode, self._channels, framing=self.transport.framing
            )
        return self._encoders[mode]

    def start(self, frame: Frame) -> None:
        """Send a frame. A fault is kept for `finish`, which repeats the frame."""
        if self._frame is not None:
            raise DeviceError(
                self.transport.description,
                "is still working on another frame",
                fix="finish or close the iterator of evaluate_many first, and use one GtiModel per thread",
            )
        self._frame, self._fault = frame, None
        try:
            self._send(frame)
            self._sent = True
        except TransferError as fault:
            self._fault = fault
            self._note(fault)
        except BaseException:
            self.abandon()
            raise

    def finish(self) -> bytes:
        """Return the chip bytes of the frame that was started. Raises DeviceError when it cannot be had."""
        frame = self._frame
        if frame is None:
            raise DeviceError(self.transport.description, "has no frame in work", fix="start one first")
        try:
            data = self._finish(frame)
        except BaseException:
            self.abandon()
            raise
        self._frame, self._sent = None, False
        self.counts["frames"] += 1
        return data

    def abandon(self) -> None:
        """Forget the frame in work; the next one starts with a new opening."""
        self._frame, self._sent = None, False
        self._close()

    def prepare(self) -> None:
        """Open the stick and load the coefficients. Raises DeviceError when that cannot be done."""
        try:
            self._repeat(self.load)
        except BaseException:
            self.abandon()
            raise

    def _finish(self, frame: Frame) -> bytes:
        def attempt() -> bytes:
            if not self._sent:
                self._send(frame)
                self._sent = True
            return self._receive(frame)

        return self._repeat(attempt)

    def _repeat(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, tried again after each fault, `Settings.retries` times."""
        fault, self._fault = self._fault, None  # one kept by `start` was the first attempt
        attempts = self._settings.retries + 1
        for number in range(1, attempts + 1):
            if fault is None or number > 1:
                try:
                    result = attempt()
                except TransferError as problem:
                    fault = problem
                    self._note(problem)
                else:
                    if number > 1:
                        self.counts["recovered"] += 1
                        log.log(self.fault_level, "%s: recovered in attempt %d", self.transport.description, number)
                    return result
            log.log(
                self.fault_level, "%s: %s; attempt %d of %d failed", self.transport.description, fault, number, attempts
            )
        raise DeviceError(
            self.transport.description,
            f"{attempts} attempts failed, the last one while {fault}",
            fix="unplug the stick, wait a second and plug it in again; gti doctor looks for the cause",
        ) from fault

    def _note(self, fault: TransferError) -> None:
        self.counts["faults"] += 1
        self.counts[f"fault: {fault.phase}"] += 1
        self._sent = False
        self._close()

    def _close(self) -> None:
        self._loaded, self._mode = False, None
        self.transport.close()

    def _send(self, frame: Frame) -> None:
        first = frame.mode != self._mode
        if not self._loaded or (first and self._mode is not None and self._settings.reload_on_mode_change):
            self.load()
        self.transport.start_frame()
        self.transport.write(
            self._encoder(frame.mode).encode(frame.planes, first=True) if first else frame.block, "sending"
        )
        self._mode = frame.mode

    def load(self) -> None:
        """Open the stick where it is not and load the coefficients. Raises DeviceError or TransferError."""
        if not self._loaded:
            self.transport.open()
        if self._load is None:
            self._load = protocol.encode_load(self._dat, framing=self.transport.framing)
        self._mode = None
        self.transport.write(self._load, "loading")
        self._loaded = True
        self.counts["loads"] += 1

    def _receive(self, frame: Frame) -> bytes:
        data = self._read(frame)
        if self._settings.compare_twice:
            self.transport.start_frame()
            self.transport.write(frame.block, "sending")
            if self._read(frame) != data:
                raise TransferError("comparing", "two results of one frame differ")
        self._check(frame, data)
        return data

    def _read(self, frame: Frame) -> bytes:
        framing = self.transport.framing
        words = self.transport.read(protocol.read_length(self._header, frame.mode) * framing.word_bytes)
        return protocol.strip_words(words, framing.word_bytes)

    def close(self) -> None:
        """Give the stick back."""
        self.abandon()
