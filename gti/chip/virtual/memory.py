"""The network in a chip's memory: registers and coefficients become a `Dat` again, and answer images.

The host replaces some bits of the header before it sends them (docs/usb_protocol.md section 6); the decoder of files
wants them as a converter writes them.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np

from gti.chip import spec
from gti.chip.emulator.behaviours import ASSUMED, Behaviours
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat as dat_file
from gti.chip.formats import upsampling
from gti.chip.network.types import ConvolutionWeights
from gti.chip.wire import header_words as bits
from gti.chip.wire import protocol
from gti.chip.wire.ten_bit import split_codes
from gti.errors import DatError, ImageError

_D_WORDS = 3  # major layers that have a word D


def decode_registers(header: protocol.Header, coefficients: bytes, behaviours: Behaviours = ASSUMED) -> dat_file.Dat:
    """Return the network that `header`, registers as sent, and `coefficients`, bytes from 92 on, stand for.

    A chip of other `behaviours` may forget rows, and understand layers that no converter writes usably.
    Raises DatError where the decoder of files does.
    """
    if behaviours.value("filter_memory"):
        kept = behaviours.value("filter_memory") * spec.ROW_BYTES
        coefficients = coefficients[:kept].ljust(len(coefficients), b"\0")
    depthwise = [bool(bits.D_DEPTH.of(header.words[bits.LATE + i])) for i in range(len(header.layers[:_D_WORDS]))]
    if behaviours["depthwise"] == "refused" or not any(depthwise):
        return _decode_registers(header, coefficients)
    words = list(header.words)
    for i in range(len(depthwise)):
        words[bits.LATE + i] &= ~bits.D_DEPTH.mask
    dat = _decode_registers(protocol.Header.from_words(words), coefficients)
    layers = list(dat.network.layers)
    for i in (i for i, one in enumerate(depthwise) if one):
        layers[i] = replace(layers[i], extra={"depth_enable": True})
    return replace(dat, network=replace(dat.network, layers=tuple(layers)))


def _decode_registers(header: protocol.Header, coefficients: bytes) -> dat_file.Dat:
    # SINGLE hides the pooling of the last layer, and then five bits pooled look like ten bits unpooled; where the
    # header leaves it open, the filters tell.
    last = header.layers[-1]
    poolings = (True,) if last.pooling else (False, True)
    fits = {ten: [pooled for pooled in poolings if header.last_reads_as(bool(ten), pooled)] for ten in (0, 1)}
    if not fits[1]:
        return _decode(header, fits[0], 0, coefficients)
    if not fits[0]:
        return _decode(header, fits[1], 1, coefficients)
    try:
        dat = _decode(header, fits[0], 0, coefficients)
    except DatError:
        return _decode(header, fits[1], 1, coefficients)  # rows are missing: they are those of half the channels
    return _decode(header, fits[1], 1, coefficients) if _second_half_empty(dat.weights[-1]) else dat


def _decode(header: protocol.Header, poolings: list[bool], ten_bit: int, coefficients: bytes) -> dat_file.Dat:
    pooled = poolings[0] if poolings else header.layers[-1].pooling
    return dat_file.decode(_as_file(header, pooled, coefficients), activation_bit_mode=ten_bit)


def _second_half_empty(weights: ConvolutionWeights) -> bool:
    half = len(weights.biases) // 2
    return not (weights.filters[half:].any() or weights.biases[half:].any())


def _as_file(header: protocol.Header, pooled: bool, coefficients: bytes) -> bytes:
    words = list(header.words)
    last = 2 + 3 * (len(header.layers) - 1)
    words[bits.GLOBAL] &= ~bits.MODE_BITS
    if not (words[22] == bits.OLD_MARKER and not words[20] and not words[21]):
        words[bits.GLOBAL] |= bits.FORMAT.put(bits.CURRENT_FORMAT)
    for first in range(2, last + 1, 3):
        words[first] &= ~bits.LEARNING.mask
    if pooled:
        words[last] |= bits.POOLING.mask
        if header.layers[-1].image_size == spec.TILE:
            words[bits.GLOBAL] |= bits.FC.mask
    return struct.pack(f"<{len(words)}I", *words) + coefficients


class SoftwareNetwork:
    """A decoded network with its emulator."""

    def __init__(
        self,
        dat: dat_file.Dat,
        engine: str,
        ten_bit_layout: str,
        upsample_modes: tuple[str, ...] = (),
        *,
        behaviours: Behaviours = ASSUMED,
    ) -> None:
        network = upsampling.applied(dat.network, upsample_modes)
        self._emulator = Emulator(network, dat.weights, engine=engine, behaviours=behaviours)
        self._behaviours = behaviours
        other = behaviours["ten_bit"] != ASSUMED["ten_bit"]
        self._ten_bit_layout = behaviours.value("ten_bit") if other else ten_bit_layout
        self._numbers = {(conv.major - 1, conv.sub - 1): conv.index for conv in dat.network.convolutions}

    def result(self, image: protocol.Image) -> bytes:
        """Return the chip bytes that answer `image`. Raises GtiError for what the chip cannot do."""
        read_out = image.read_out
        _, _, channels = self._emulator.network.input_shape
        if image.channels < channels:
            raise ImageError("image", "has too few planes", expected=channels, received=image.channels)
        # Zeros behind a small image can pass for planes: the network knows how many there are.
        pixels = np.ascontiguousarray(image.planes()[:channels].transpose(1, 2, 0))[None]
        return read_out.pack([self._on_wire(codes, read_out) for codes in self._maps(pixels, read_out, image.header)])

    def _maps(self, pixels: np.ndarray, read_out: protocol.ReadOut, header: protocol.Header) -> list[np.ndarray]:
        if all(maps.pooled for maps in read_out.sets):
            return [self._emulator.output(pixels)[0]] * len(read_out.sets)
        question = _question(header)
        wanted = []
        for maps in read_out.sets:
            if (maps.major, maps.sublayer) not in self._numbers:
                raise DatError(f"major {maps.major + 1}", "has no such sublayer", received=maps.sublayer + 1)
            wanted.append(self._numbers[maps.major, maps.sublayer])
        computed = {}
        for conv, codes in self._emulator.sublayers(pixels):
            if conv.index in wanted:
                computed[conv.index] = self._emulator.as_delivered(conv, codes[0], question)
        return [computed[index] for index in wanted]

    def _on_wire(self, codes: np.ndarray, read_out: protocol.ReadOut) -> np.ndarray:
        if codes.dtype == np.uint16:
            codes = split_codes(codes, self._ten_bit_layout)
        values = codes << read_out.shift
        if read_out.shift and self._behaviours["fc_low_bits"] == "data":
            values |= codes >> 2  # the code's own high bits: some data
        return np.ascontiguousarray(values)


def _question(header: protocol.Header) -> str | None:
    """Return the question about the maps of pooled layers that the registers concern, None for the output alone."""
    if bits.LAST_LAYER_OUT.of(header.reg0):
        return "sublast_maps"
    return "learn_maps" if any(layer.learning for layer in header.layers) else None


class ExpectedResults:
    """What a chip that was loaded with the file `dat` must answer; `name`: of the file, for messages."""

    def __init__(
        self,
        dat: bytes,
        header: protocol.Header,
        name: str,
        ten_bit_layout: str,
        upsample_modes: tuple[str, ...] = (),
        *,
        behaviours: Behaviours = ASSUMED,
    ) -> None:
        self._dat = dat
        self._behaviours = behaviours
        self._header = header
        self._name = name
        self._ten_bit_layout = ten_bit_layout
        self._upsample_modes = upsample_modes
        self._network: SoftwareNetwork | None = None

    def result(self, planes: np.ndarray, mode: protocol.Mode) -> bytes:
        """Return the chip bytes that answer planes, uint8 [C,H,W], in `mode`; GtiError where nobody can tell."""
        header = protocol.Header.from_registers(*protocol.registers(self._header, mode), self._name)
        if self._network is None:
            dat = decode_registers(self._header, self._dat[spec.HEADER_BYTES :], self._behaviours)
            self._network = SoftwareNetwork(
                dat, "auto", self._ten_bit_layout, self._upsample_modes, behaviours=self._behaviours
            )
        channels, size, _ = planes.shape
        return self._network.result(protocol.Image(header, size, channels, protocol.image_tiles(planes)))
