"""Small networks and images whose results tell behaviours of a stick apart.

A case is made from two seeds by a template; which seeds are taken is the matter of `search.py`. All but "sums" are
quiet: whatever the chip's rounding, saturation, accumulator or place of the bias, every sum of theirs gives the same
code (shift 0, or no rest to round; results within 0..30 and sums within 16 bits). So they tell their questions alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gti.chip import spec
from gti.chip.formats import dat, dat_header
from gti.chip.network import file_size
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.chip.wire import header_words as bits
from gti.chip.wire.registers import Mode

Filters = npt.NDArray[np.int16]  # [out, in, 3, 3]
Codes = npt.NDArray[np.uint8]  # [C, H, W], 0..31


class Net(NamedTuple):
    """What one load brings to the chip."""

    network: Network
    weights: tuple[ConvolutionWeights, ...]
    depthwise: bool = False  # the bit that no converter writes usably


class Key(NamedTuple):
    """What a case is made from."""

    template: str
    net: int  # seed of the weights
    image: int  # seed of the image
    mode: str


class Template(NamedTuple):
    """How nets and images of one kind are drawn, and what their results depend on."""

    net: Callable[[np.random.RandomState], Net]
    image: Callable[[np.random.RandomState, Network], Codes]
    modes: tuple[str, ...]
    questions: tuple[str, ...]
    undefined: bool = False  # a chip that refuses the network may as well answer anything


class Case(NamedTuple):
    """A network as a file without padding, an image, a read-out mode."""

    key: Key
    net: Net
    dat: bytes
    planes: Codes  # 8-bit pixels uint8 [C, H, W]
    mode: Mode


def _draw(*words: object) -> np.random.RandomState:
    # Streams of RandomState never change.
    text = " ".join(map(str, words)).encode()
    return np.random.RandomState(np.frombuffer(text.ljust(-(-len(text) // 4) * 4), "<u4"))


@functools.lru_cache(maxsize=64)
def net_of(template: str, seed: int) -> tuple[Net, bytes]:
    """Return a net and its .DAT without padding."""
    return of_net(TEMPLATES[template].net(_draw(template, "net", seed)))


def of_net(net: Net) -> tuple[Net, bytes]:
    """Return `net` and its .DAT without padding."""
    length = spec.HEADER_BYTES + spec.ROW_BYTES * file_size.row_count(net.network)
    words = list(dat_header.words_of(net.network))
    words[bits.LATE] |= bits.D_DEPTH.put(net.depthwise)
    return net, dat.encode(net.network, net.weights, header=words, length=length)


@functools.lru_cache(maxsize=64)
def case(key: Key) -> Case:
    """Return the case of a key."""
    net, data = net_of(key.template, key.net)
    codes = TEMPLATES[key.template].image(_draw(key.template, "image", key.image), net.network)
    return Case(key, net, data, pixels(codes), Mode[key.mode.upper()])


def pixels(codes: Codes) -> Codes:
    """Return 8-bit pixels of which the chip makes `codes`."""
    return (codes << 3).astype(np.uint8)


# Weights


def _plain(filters: Filters, shift: int = 0, biases: npt.NDArray[np.int32] | None = None) -> ConvolutionWeights:
    none = np.zeros(len(filters), np.int32)
    return ConvolutionWeights(filters.astype(np.int16), none if biases is None else biases, shift)


def _wires(random: np.random.RandomState, outputs: int, inputs: int, weight: int = 1) -> Filters:
    """Return filters whose outputs are one input channel each, all of them where there are enough outputs."""
    filters = np.zeros((outputs, inputs, 3, 3), np.int16)
    order = np.resize(random.permutation(inputs), outputs)
    filters[np.arange(outputs), random.permutation(order), 1, 1] = weight
    return filters


def _sums(random: np.random.RandomState) -> Net:
    """Draw one layer of 3-bit filters whose outputs have sums of very different size."""
    inputs, outputs = (3, 16)[random.randint(2)], 16
    levels = np.array([-4, -2, -1, 0, 1, 2, 4])[random.randint(0, 7, (outputs, inputs, 3, 3))]
    size = 2.0 ** random.uniform(0, 9, outputs)
    steps = 1 + (random.uniform(0, 1, (outputs, inputs)) * (size[:, None] - 1)).astype(np.int64)
    # Some outputs add up one sign only, the last ones as far as the format goes.
    one_sign = random.uniform(size=outputs) < 0.4
    levels = np.where(one_sign[:, None, None, None], np.abs(levels), levels)
    levels[-4:], steps[-4:] = 4, 511
    levels[-1] = -4
    shift = int(random.randint(0, 16))
    biases = (random.uniform(-1, 1, outputs) * 2.0 ** random.uniform(0, 17, outputs)).astype(np.int32)
    network = Network((MajorLayer(14, inputs, outputs, 1, 3, (shift,)),))
    filters = (levels * np.minimum(steps, 511)[:, :, None, None]).astype(np.int16)
    return Net(network, (_plain(filters, shift, biases),))


def _wide_sums(random: np.random.RandomState) -> Net:
    """Draw one layer whose sums show, at the largest shift, what 20 bits hold; with some as far as the format goes."""
    steps = random.randint(25, 60, 16)
    steps[-4:] = 511
    filters = np.broadcast_to(4 * steps[:, None, None, None], (16, 16, 3, 3)).astype(np.int16)
    biases = random.randint(-300, 100, 16).astype(np.int32)
    return Net(Network((MajorLayer(14, 16, 16, 1, 3, (15,)),)), (_plain(filters, 15, biases),))


def _signs(random: np.random.RandomState) -> Net:
    """Draw one layer of 1-bit filters, one input channel an output, around a bias of 15."""
    filters = np.zeros((16, 16, 3, 3), np.int16)
    filters[np.arange(16), random.permutation(16)] = random.choice([-1, 1], (16, 3, 3))
    network = Network((MajorLayer(14, 16, 16, 1, 1, (0,)),))
    return Net(network, (_plain(filters, 0, np.full(16, 15, np.int32)),))


def _one_layer(random: np.random.RandomState, pooling: bool, sampling_method: int = 0) -> Net:
    network = Network((MajorLayer(14, 3, 16, 1, 3, (0,), pooling=pooling),), sampling_method=sampling_method)
    return Net(network, (_plain(_wires(random, 16, 3)),))


def _three_maps(random: np.random.RandomState) -> Net:
    network = Network(
        (MajorLayer(28, 3, 16, 1, 3, (0,), pooling=True), MajorLayer(14, 16, 32, 2, 3, (0, 0), pooling=True))
    )
    shapes = ((16, 3), (32, 16), (32, 32))
    return Net(network, tuple(_plain(_wires(random, *shape)) for shape in shapes))


def _one_coef(random: np.random.RandomState) -> Net:
    filters = np.zeros((16, 3, 3, 3), np.int16)
    filters[np.arange(16), random.randint(0, 3, 16)] = np.array([0, 1, 2, 4])[random.randint(0, 4, (16, 3, 3))]
    network = Network((MajorLayer(14, 3, 16, 1, 3, (0,), one_coef=(1,)),))
    return Net(network, (_plain(filters),))


def _depthwise(random: np.random.RandomState) -> Net:
    network = Network((MajorLayer(14, 3, 16, 2, 3, (0, 0)),))
    mixing = np.zeros((16, 16, 3, 3), np.int16)
    mixing[:, :, 1, 1] = random.randint(0, 2, (16, 16))
    mixing[np.arange(16), np.arange(16), 1, 1] = random.randint(1, 3, 16)
    return Net(network, (_plain(_wires(random, 16, 3)), _plain(mixing)), depthwise=True)


def _shortcut(random: np.random.RandomState) -> Net:
    network = Network((MajorLayer(14, 16, 16, 2, 3, (0, 0), shortcuts=(1,)),))
    signs = random.choice([-1, 1], (16, 1, 1, 1)).astype(np.int16)
    return Net(network, (_plain(_wires(random, 16, 16)), _plain(_wires(random, 16, 16) * signs)))


def _doubling(random: np.random.RandomState, written_size: int) -> Net:
    first = MajorLayer(14, 3, 16, 1, 3, (0,)) if written_size == 14 else MajorLayer(28, 3, 16, 1, 3, (0,), pooling=True)
    network = Network(
        (
            first,
            MajorLayer(written_size, 16, 16, 1, 3, (0,), pooling=True, upsample_enable=True),
            MajorLayer(14, 16, 16, 1, 3, (0,), pooling=True),
        )
    )
    # A neighbour is added, so that what lies between the pixels is seen.
    beside = _wires(random, 16, 16)
    for output, kernel in enumerate(beside[:, :, 1, 1]):
        y, x = ((0, 1), (1, 0), (1, 2), (2, 1))[random.randint(4)]
        beside[output, :, y, x] = kernel
    return Net(network, (_plain(_wires(random, 16, 3)), _plain(beside), _plain(_wires(random, 16, 16))))


def _ten_bit(random: np.random.RandomState) -> Net:
    network = Network((MajorLayer(14, 3, 16, 1, 3, (5,)),), activation_bit_mode=1)
    filters = _wires(random, 16, 3) * random.randint(1, 33, (16, 1, 1, 1))
    return Net(network, (_plain(filters, 5),))


def _rows(random: np.random.RandomState) -> Net:
    """Draw 66,048 rows, the last of which still matter to the last sublayer."""
    network = Network((MajorLayer(14, 3, 1024, 3, 3, (0, 0, 0)),))
    shapes = ((1024, 3), (1024, 1024), (1024, 1024))
    return Net(network, tuple(_plain(_wires(random, *shape)) for shape in shapes))


def _units(random: np.random.RandomState) -> Net:
    """Draw a layer that fills the activation memory to the last unit, and one that shows a channel of each group."""
    network = Network((MajorLayer(224, 3, 64, 1, 3, (0,)), MajorLayer(224, 64, 16, 1, 3, (0,), pooling=True)))
    shows = np.zeros((16, 64, 3, 3), np.int16)
    shows[np.arange(16), 4 * np.arange(16) + random.randint(0, 4, 16), 1, 1] = 1
    return Net(network, (_plain(_wires(random, 64, 3)), _plain(shows)))


# Images


def _dark_frame(codes: npt.NDArray[np.integer]) -> Codes:
    # Wide enough to stay dark when larger images are pooled to 14: what lies around a map is a question of its own.
    width = codes.shape[1] // 14
    framed = np.zeros(codes.shape, np.uint8)
    framed[:, width:-width, width:-width] = codes[:, width:-width, width:-width]
    return framed


def _shape(network: Network) -> tuple[int, int, int]:
    height, width, channels = network.input_shape
    return channels, height, width


def _up_to(top: int) -> Callable[[np.random.RandomState, Network], Codes]:
    return lambda random, network: _dark_frame(random.randint(0, top + 1, _shape(network)))


def _bright_part(random: np.random.RandomState, network: Network) -> Codes:
    """Draw random codes above, the largest one below."""
    codes = random.randint(0, 32, _shape(network)) * (random.uniform(size=_shape(network)) < random.uniform(0.05, 1))
    codes[:, random.randint(6, 12) :] = 31
    return _dark_frame(codes)


def _up_to_the_edge(random: np.random.RandomState, network: Network) -> Codes:
    codes: Codes = random.randint(0, 2, _shape(network)).astype(np.uint8)
    return codes


def _impulses(random: np.random.RandomState, network: Network) -> Codes:
    """Draw pixels that lie three apart, so that no window sees two."""
    codes = np.zeros(_shape(network), np.uint8)
    codes[:, 2::3, 2::3] = random.randint(1, 8, codes[:, 2::3, 2::3].shape)
    return _dark_frame(codes)


_CORE = ("rounding", "saturation", "accumulator", "bias")
TEMPLATES = {
    "known": Template(lambda random: _one_layer(random, False), _up_to(30), ("single",), ()),
    "sums": Template(_sums, _bright_part, ("single",), _CORE),
    "wide_sums": Template(_wide_sums, _bright_part, ("single",), _CORE),
    "signs": Template(_signs, _up_to_the_edge, ("single",), ("borders", "one_bit_sign")),
    "pooled": Template(lambda random: _one_layer(random, True), _up_to(30), ("fc",), ("pooling", "fc_low_bits")),
    "sampled": Template(lambda random: _one_layer(random, True, 1), _up_to(30), ("fc",), ("sampling", "fc_low_bits")),
    "maps": Template(
        _three_maps, _up_to(30), ("learn", "sublast", "lastmajor"), ("pooling", "learn_maps", "sublast_maps")
    ),
    "one_coef": Template(_one_coef, _impulses, ("single",), ("one_coef",)),
    "depthwise": Template(_depthwise, _up_to(1), ("single",), ("depthwise",)),
    "shortcut": Template(_shortcut, _up_to(15), ("single",), ("saturation", "shortcuts")),
    "doubled": Template(
        lambda random: _doubling(random, 14),
        _up_to(15),
        ("fc",),
        ("pooling", "fc_low_bits", "upsample_size", "upsample_fill"),
        undefined=True,
    ),
    "doubled_after": Template(
        lambda random: _doubling(random, 28),
        _up_to(15),
        ("fc",),
        ("pooling", "fc_low_bits", "upsample_size", "upsample_fill"),
        undefined=True,
    ),
    "ten_bit": Template(_ten_bit, _up_to(31), ("single",), ("ten_bit",)),
    "rows": Template(_rows, _up_to(30), ("learn",), ("filter_memory",)),
    "units": Template(_units, _up_to(30), ("single",), ("activation_memory",)),
}
