"""Checks of results: what no chip with this network can have computed does not pass."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from gti.chip.usb.link import Frame
from gti.chip.usb.transport import Settings, TransferError
from gti.chip.wire import protocol
from gti.errors import GtiError

log = logging.getLogger(__name__)


class ResultChecks:
    """The checks that `settings` ask for, of results of the network `header`; a `Link` calls it with each.

    `emulate`: frame -> the chip bytes that the emulator answers, GtiError where it cannot. `description`: of the stick.
    """

    def __init__(
        self, header: protocol.Header, settings: Settings, emulate: Callable[[Frame], bytes], description: str
    ) -> None:
        self._header = header
        self._settings = settings
        self._emulate = emulate
        self._description = description
        self._warned: set[str] = set()
        self.proving = False  # a frame that only shows that there is a chip: dark, and its result is thrown away

    def __call__(self, frame: Frame, data: bytes) -> None:
        """Raise TransferError for a result `data`, chip bytes, that cannot be true."""
        read_out = protocol.read_out(self._header, frame.mode)
        if self._settings.check_constant and not self.proving and data.count(data[:1]) == len(data):
            self._check_constant(frame, data, read_out)
        low = (1 << read_out.shift) - 1
        if low and self._settings.check_low_bits and any((values & low).any() for values in read_out.unpack(data)):
            raise TransferError(
                "checking", "the low 3 bits of an FC result are not zero (setting check_low_bits turns this off)"
            )

    def _check_constant(self, frame: Frame, data: bytes, read_out: protocol.ReadOut) -> None:
        try:
            expected = self._emulate(frame)
        except GtiError as problem:
            self._warn(f"every byte of a result is 0x{data[0]:02x}, and the emulator cannot tell whether so: {problem}")
            return
        same = all(
            np.array_equal(ours, theirs)
            for ours, theirs in zip(read_out.unpack(expected), read_out.unpack(data), strict=True)
        )
        if not same:
            raise TransferError(
                "checking", f"every byte of the result is 0x{data[0]:02x}, the emulator computes something else"
            )
        self._warn(f"every value of a result is {data[0]}, and the emulator agrees: is the network dead?")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s: %s", self._description, text)
