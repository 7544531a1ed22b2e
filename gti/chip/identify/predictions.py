"""What a stick of given behaviours answers to a case, and whether an answer agrees with that."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gti.chip import spec
from gti.chip.emulator import arithmetic
from gti.chip.emulator.behaviours import Behaviours
from gti.chip.formats.dat import Dat
from gti.chip.identify.cases import TEMPLATES, Case, Key, case
from gti.chip.virtual.memory import SoftwareNetwork, decode_registers
from gti.chip.wire import protocol
from gti.errors import GtiError

Answer = list[npt.NDArray[np.uint8]] | None  # raw values [C,H,W] of each map; None: no result came
_OF_THE_DECODER = ("filter_memory", "depthwise")
_LOW = (1 << spec.FC_SHIFT) - 1


class Prediction(NamedTuple):
    """What must come."""

    answer: Answer
    undefined: bool  # anything may come in place of no result
    any_low_bits: bool  # of FC values; not all of them are zero

    def agrees(self, answer: Answer) -> bool:
        """Return whether `answer` is one that was predicted."""
        if self.answer is None:
            return self.undefined or answer is None
        if answer is None:
            return False
        if not self.any_low_bits:
            return all(np.array_equal(one, other) for one, other in zip(self.answer, answer, strict=True))
        same = all(
            np.array_equal(one >> spec.FC_SHIFT, other >> spec.FC_SHIFT)
            for one, other in zip(self.answer, answer, strict=True)
        )
        return same and any((values & _LOW).any() for values in answer)


def read_out(one: Case) -> protocol.ReadOut:
    """Return which maps a stick delivers of a case."""
    return protocol.read_out(protocol.Header.parse(one.dat), one.mode)


def predict(one: Case, behaviours: Behaviours) -> Prediction:
    """Return what a stick with `behaviours` must answer to any case."""
    header = protocol.Header.parse(one.dat)
    registers = protocol.Header.from_registers(*protocol.registers(header, one.mode))
    channels, size, _ = one.planes.shape
    image = protocol.Image(registers, size, channels, protocol.image_tiles(one.planes))
    try:
        dat = _decoded(one.dat, registers, behaviours.of(_OF_THE_DECODER))
        data = SoftwareNetwork(dat, "auto", "halves", behaviours=behaviours).result(image)
    except GtiError:
        return Prediction(None, TEMPLATES[one.key.template].undefined, False)
    low_bits = read_out(one).shift > 0 and behaviours["fc_low_bits"] == "data"
    return Prediction(read_out(one).unpack(data), False, low_bits)


def predicted(key: Key, behaviours: Behaviours) -> Prediction:
    """Return `predict` of the case of `key`, remembered."""
    return _predicted(key, behaviours.of(TEMPLATES[key.template].questions))


@functools.lru_cache(maxsize=1 << 14)
def _predicted(key: Key, behaviours: Behaviours) -> Prediction:
    return _of_sums(_sums_of(key), behaviours) if key.template in _SUMS else predict(case(key), behaviours)


def any_agrees(one: Case, left: Sequence[Behaviours], answer: Answer) -> bool:
    """Return whether a stick of one of the behaviours `left` must or may give `answer` to any case."""
    if one.key.template not in _SUMS:
        return any(predict(one, behaviours).agrees(answer) for behaviours in left)
    sums = _sums(one)
    return any(_of_sums(sums, behaviours).agrees(answer) for behaviours in left)


# Of one layer, read as it is, with hundreds of combinations: its sums are the same for all of them.
_SUMS = ("sums", "wide_sums")
_Sums = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]  # [H, W, out] without biases, biases, shift


def _of_sums(of: _Sums, behaviours: Behaviours) -> Prediction:
    sums, biases, shift = of
    codes = arithmetic.alternative_codes(sums, biases, shift, False, behaviours)
    return Prediction([np.ascontiguousarray(codes.transpose(2, 0, 1))], False, False)


@functools.lru_cache(maxsize=64)
def _sums_of(key: Key) -> _Sums:
    return _sums(case(key))


def _sums(one: Case) -> _Sums:
    (layer,) = one.net.weights
    codes = arithmetic.five_bit(one.planes).astype(np.int64)
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    sums = np.einsum("ihwyx,oiyx->hwo", windows, layer.filters.astype(np.int64))
    return sums, layer.biases.astype(np.int64), layer.shift


@functools.lru_cache(maxsize=8)
def _decoded(data: bytes, registers: protocol.Header, behaviours: Behaviours) -> Dat:
    return decode_registers(registers, data[spec.HEADER_BYTES :], behaviours)
