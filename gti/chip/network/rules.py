"""Every rule of the chip for a network, each with its own name (docs/dat_format.md section 6).

A rule is a generator of violations with the fields that it reads, so that a layer with one unreadable field is
still held against all rules that do not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gti.chip import spec
from gti.chip.network.memory_plan import MEMORY_BYTES, address_plan
from gti.chip.network.types import MajorLayer, Network
from gti.errors import sentence

# Hostile files may list a million layers: what lies this far beyond the limit is not looked at one by one.
MAX_EXAMINED = 16
_ODD_STARTS, _START_ODD = "odd starts (1, 3, 5, ...)", "start shortcuts at odd sublayers"


@dataclass(frozen=True)
class Violation:
    """One broken rule; `str()` is its sentence."""

    layer: str  # "major 3 / sub 2 (conv3_2)", "major 3", "network", or "model" for the key of that name
    rule: str  # for example "image-size"
    problem: str
    expected: object = None
    received: object = None
    fix: str = ""
    # A file of such a network is defined: the vendor's converter would write it (docs/dat_format.md section 6).
    tolerated: bool = False
    # A file holds such a network and reads back as it was: only what the chip computes of it is unknown.
    computed: bool = False

    def __str__(self) -> str:
        return sentence(self.layer, self.problem, expected=self.expected, received=self.received, fix=self.fix)


class _Finding(NamedTuple):
    """What a check says of its layer, or of the sublayer `sub` (1-based) in it; the rule adds name and place."""

    problem: str
    expected: object
    received: object
    fix: str
    sub: int = 0


class _Place(NamedTuple):
    """Where a check looks."""

    layer: MajorLayer
    before: MajorLayer | None  # None for the first layer
    major: int  # 1-based

    @property
    def late(self) -> bool:
        return self.major >= spec.FIRST_LATE_MAJOR_LAYER


_Check = Callable[[_Place], Iterator[_Finding]]


@dataclass(frozen=True)
class LayerRule:
    """A rule about one major layer, and the fields it reads of that layer and of the one before."""

    name: str
    fields: frozenset[str]
    previous: frozenset[str]
    tolerated: bool
    computed: bool
    check: _Check

    def broken(self, layers: Sequence[MajorLayer], i: int) -> Iterator[Violation]:
        """Yield what breaks the rule in layer `i` (0-based)."""
        for problem, expected, received, fix, sub in self.check(_Place(layers[i], layers[i - 1] if i else None, i + 1)):
            layer = sub_path(i + 1, sub) if sub else major_path(i + 1)
            yield Violation(layer, self.name, problem, expected, received, fix, self.tolerated, self.computed)


LAYER_RULES: list[LayerRule] = []


def _layer_rule(
    name: str, *fields: str, previous: tuple[str, ...] = (), tolerated: bool = False, computed: bool = False
) -> Callable[[_Check], _Check]:
    def register(function: _Check) -> _Check:
        LAYER_RULES.append(LayerRule(name, frozenset(fields), frozenset(previous), tolerated, computed, function))
        return function

    return register


def major_path(major: int) -> str:
    """Return the name of a major layer (1-based) in messages."""
    return f"major {major}"


def sub_path(major: int, sub: int) -> str:
    """Return the name of a sublayer (both 1-based) in messages; equal to `Convolution.path`."""
    return f"major {major} / sub {sub} (conv{major}_{sub})"


def _one_of(values: Sequence[object]) -> str:
    return "one of " + ", ".join(str(v) for v in values)


def _nearest(value: int, legal: Sequence[int]) -> str:
    return f"the nearest legal value is {min(legal, key=lambda v: (abs(v - value), v))}"


def padded_up(channels: int, legal: Sequence[int] = spec.OUTPUT_CHANNELS) -> int:
    """Return the next count of the chip, up to which channels of zeros are added; the largest where there is none."""
    return min((count for count in legal if count >= channels), default=max(legal))


def _padded(channels: int, legal: Sequence[int]) -> str:
    return f"the nearest legal value is {padded_up(channels, legal)}; pad missing channels with zero filters"


@_layer_rule("image-size", "image_size")
def _image_size(at: _Place) -> Iterator[_Finding]:
    size, legal = at.layer.image_size, spec.IMAGE_SIZES
    if size not in legal:
        yield _Finding("image_size is not a size of the chip", _one_of(legal), size, _nearest(size, legal))


@_layer_rule("size-448-first", "image_size", computed=True)
def _size_448_first(at: _Place) -> Iterator[_Finding]:
    if at.before and at.layer.image_size == 448:
        problem = "image_size 448 is possible in the first major layer only"
        yield _Finding(problem, "at most 224", 448, "pool or leave out the upsampling before this layer")


@_layer_rule("upsample-size", "image_size", "upsample_enable", computed=True)
def _upsample_size(at: _Place) -> Iterator[_Finding]:
    size = at.layer.image_size
    if at.layer.upsample_enable and size >= 448:
        expected = "image_size at most 224 (before doubling)"
        yield _Finding(
            "upsampling would go beyond the chip's largest size", expected, size, "leave out upsample_enable"
        )


@_layer_rule("upsample-mode", "upsample_mode")
def _upsample_mode(at: _Place) -> Iterator[_Finding]:
    mode = at.layer.upsample_mode
    if mode not in spec.UPSAMPLE_MODES:
        yield _Finding("upsample_mode is unknown", _one_of(spec.UPSAMPLE_MODES), mode, "use repeat")


@_layer_rule("size-chain", "image_size", previous=("image_size", "pooling", "upsample_enable"), computed=True)
def _size_chain(at: _Place) -> Iterator[_Finding]:
    size = at.layer.image_size
    if at.before and size != (delivered := at.before.output_size):
        fix = f"change pooling or upsample_enable of major {at.major - 1}"
        if delivered in spec.IMAGE_SIZES:
            fix = f"set image_size to {delivered}, or {fix}"
        yield _Finding("image_size is not what the major layer before delivers", delivered, size, fix)


@_layer_rule("first-input-channels", "input_channels", tolerated=True)
def _first_input_channels(at: _Place) -> Iterator[_Finding]:
    count, legal = at.layer.input_channels, spec.FIRST_INPUT_CHANNELS
    if not at.before and count not in legal:
        problem = "input_channels of the first layer is not a count that the chip's input takes"
        yield _Finding(problem, _one_of(legal), count, _padded(count, legal))


@_layer_rule("channel-chain", "input_channels", previous=("output_channels",), tolerated=True)
def _channel_chain(at: _Place) -> Iterator[_Finding]:
    count = at.layer.input_channels
    if at.before and count != (delivered := at.before.output_channels):
        problem = "input_channels differs from output_channels of the major layer before"
        yield _Finding(problem, delivered, count, f"set input_channels to {delivered}")


@_layer_rule("output-channels", "output_channels", tolerated=True)
def _output_channels(at: _Place) -> Iterator[_Finding]:
    count, legal = at.layer.output_channels, spec.OUTPUT_CHANNELS
    if count not in legal:
        yield _Finding("output_channels is not a count of the chip", _one_of(legal), count, _padded(count, legal))


@_layer_rule("sublayer-number", "sublayer_number", "pooling", "shortcuts")
def _sublayer_number(at: _Place) -> Iterator[_Finding]:
    layer = at.layer
    most = spec.MAX_SUBLAYERS_LATE if at.late else spec.MAX_SUBLAYERS
    if not 1 <= layer.chip_sublayers <= most:
        expected = f"1..{most}" + (" from major layer 4 on" if at.late else "")
        counted = f"{layer.sublayer_number} and the extra shortcut pass" if layer.extra_pass else layer.sublayer_number
        fix = "split the major layer, or use fewer sublayers"
        yield _Finding("sublayer_number is out of range", expected, counted, fix)


@_layer_rule("coef-bits", "coef_bits")
def _coef_bits(at: _Place) -> Iterator[_Finding]:
    bits = at.layer.coef_bits
    if bits not in spec.COEF_BITS:
        fix = "use 3 for the first layers and 1 for wide ones"
        yield _Finding("coef_bits is not a width of this chip", "1 or 3", bits, fix)


@_layer_rule("scaling-length", "scaling", "sublayer_number")
def _scaling_length(at: _Place) -> Iterator[_Finding]:
    expected, received = f"{at.layer.sublayer_number} values", f"{len(at.layer.scaling)} values"
    if received != expected:
        fix = "list one shift for each sublayer (zeros in a template)"
        yield _Finding("scaling does not hold one shift for each sublayer", expected, received, fix)


@_layer_rule("shift-range", "scaling", tolerated=True)
def _shift_range(at: _Place) -> Iterator[_Finding]:
    for sub, shift in enumerate(at.layer.scaling[:MAX_EXAMINED], 1):
        if not 0 <= shift <= spec.MAX_SHIFT_STORED:
            fix = "convert the layer again; training uses 0..12"
            yield _Finding("the shift in scaling is out of range", f"0..{spec.MAX_SHIFT_STORED}", shift, fix, sub)


@_layer_rule("one-coef-length", "one_coef", "sublayer_number", tolerated=True)
def _one_coef_length(at: _Place) -> Iterator[_Finding]:
    expected, received = f"{at.layer.sublayer_number} values", f"{len(at.layer.one_coef)} values"
    if at.layer.one_coef and received != expected:
        fix = "list 0 (3x3) or 1 (1x1) for each sublayer, or leave one_coef out"
        yield _Finding("one_coef does not hold one flag for each sublayer", expected, received, fix)


@_layer_rule("one-coef-values", "one_coef", tolerated=True)
def _one_coef_values(at: _Place) -> Iterator[_Finding]:
    for sub, flag in enumerate(at.layer.one_coef[:MAX_EXAMINED], 1):
        if flag not in (0, 1):
            fix = "use 0 for a 3x3 convolution"
            yield _Finding("one_coef holds an unknown flag", "0 (3x3) or 1 (1x1)", flag, fix, sub)


@_layer_rule("late-one-coef", "one_coef", tolerated=True)
def _late_one_coef(at: _Place) -> Iterator[_Finding]:
    if at.late and any(at.layer.one_coef):
        problem = "one_coef is lost from major layer 4 on, as the file has no place for it"
        fix = "use a 3x3 convolution with a filled centre, or move the layer to major 1..3"
        yield _Finding(problem, "no one_coef, or zeros", list(at.layer.one_coef[:MAX_EXAMINED]), fix)


@_layer_rule("late-shortcuts", "shortcuts", tolerated=True)
def _late_shortcuts(at: _Place) -> Iterator[_Finding]:
    starts = list(at.layer.shortcuts[:MAX_EXAMINED])
    if at.late and starts:
        problem = "resnet_shortcut_start_layers is lost from major layer 4 on, as the file has no place for it"
        yield _Finding(problem, "no shortcuts", starts, "use shortcuts in major 1..3 only")


@_layer_rule("shortcut-range", "shortcuts", "sublayer_number")
def _shortcut_range(at: _Place) -> Iterator[_Finding]:
    count = at.layer.sublayer_number
    for start in at.layer.shortcuts[:MAX_EXAMINED]:
        if not 1 <= start < count:
            expected = f"1..{count - 1}" if count > 1 else "at least 2 sublayers"
            fix = "start it at a sublayer before the last"
            yield _Finding("a shortcut starts outside the major layer", expected, start, fix)


def _even_starts(layer: MajorLayer, *, mixed: bool) -> list[int]:
    """Return the even shortcut starts where odd ones stand beside them (`mixed`) or do not, else none."""
    starts = layer.shortcuts[:MAX_EXAMINED]
    even = [start for start in starts if start % 2 == 0]
    return even if (len(even) < len(starts)) is mixed else []


@_layer_rule("shortcut-mixed", "shortcuts")
def _shortcut_mixed(at: _Place) -> Iterator[_Finding]:
    if even := _even_starts(at.layer, mixed=True):
        yield _Finding("odd and even shortcut starts are mixed", _ODD_STARTS, even, _START_ODD)


@_layer_rule("shortcut-even", "shortcuts", tolerated=True)
def _shortcut_even(at: _Place) -> Iterator[_Finding]:
    if even := _even_starts(at.layer, mixed=False):
        yield _Finding("even shortcut starts are stored like odd ones", _ODD_STARTS, even, _START_ODD)


@_layer_rule("shortcut-order", "shortcuts")
def _shortcut_order(at: _Place) -> Iterator[_Finding]:
    starts = list(at.layer.shortcuts[:MAX_EXAMINED])
    if starts != (ordered := sorted(set(starts))):
        problem = "resnet_shortcut_start_layers is unsorted or repeats a start"
        yield _Finding(problem, "rising starts, each once", starts, f"write {ordered}")


@_layer_rule("shortcut-identity", "shortcuts", "pooling", "sublayer_number", "coef_bits", tolerated=True)
def _shortcut_identity(at: _Place) -> Iterator[_Finding]:
    if at.layer.extra_pass and at.layer.coef_bits == 1:
        problem = "a shortcut into the pooling needs an identity pass, which 1-bit coefficients cannot hold"
        yield _Finding(problem, "coef_bits 3", 1, "use coef_bits 3, or end the last shortcut one sublayer earlier")


@_layer_rule("depth-enable", "depth_enable")
def _depth_enable(at: _Place) -> Iterator[_Finding]:
    if at.layer.extra.get("depth_enable"):
        problem = "depthwise convolutions have no usable form in the file"
        yield _Finding(problem, "depth_enable false", "true", "use full 3x3 convolutions")


@_layer_rule("address-range", "in_address", "out_address")
def _address_range(at: _Place) -> Iterator[_Finding]:
    for key, address in (("in_addr", at.layer.in_address), ("out_addr", at.layer.out_address)):
        if address is not None and not 0 <= address < spec.MEMORY_UNITS:
            problem = f"{key} lies outside the activation memory"
            yield _Finding(problem, f"0..{spec.MEMORY_UNITS - 1}", address, f"leave {key} out: the plan chooses it")


def violations_of_layers(layers: Sequence[MajorLayer], unread: Sequence[frozenset[str]] = ()) -> list[Violation]:
    """Return what breaks the rules of single layers and of neighbours, in the order of the network.

    `unread` holds, for each layer, the fields whose values are unknown; rules that need one of them are left out.
    """
    nothing: frozenset[str] = frozenset()
    found: list[Violation] = []
    for i in range(min(len(layers), MAX_EXAMINED)):
        here = unread[i] if unread else nothing
        before = unread[i - 1] if unread and i else nothing
        for rule in LAYER_RULES:
            if not (rule.fields & here or rule.previous & before):
                found.extend(rule.broken(layers, i))
    return found


def violations_of_model(network: Network) -> Iterator[Violation]:
    """Yield what breaks the rules of the network as a whole, the activation memory excepted."""
    count, most = len(network.layers), spec.MAX_MAJOR_LAYERS
    if not 1 <= count <= most:
        problem, fix = "the number of major layers is out of range", "join layers of one size into one major layer"
        yield Violation("network", "major-layers", problem, f"1..{most}", count, fix)
    if (chip := network.chip_type) != spec.CHIP_TYPE:
        problem, fix = "ChipType is another chip", "this kit writes files for the 2801"
        yield Violation("model", "chip-type", problem, spec.CHIP_TYPE, chip, fix, tolerated=True)
    if (method := network.sampling_method) not in (0, 1):
        problem, expected = "SamplingMethod is unknown", "0 (max pooling) or 1 (top-left pixel)"
        yield Violation("model", "sampling-method", problem, expected, method, "use 0", tolerated=True)
    if (mode := network.activation_bit_mode) not in (0, 1):
        problem, expected = "ActivationBitMode is not supported", "0 (5 bit) or 1 (ten-bit output)"
        yield Violation("model", "activation-bit-mode", problem, expected, mode, "use 0")
    examined = network.layers[:MAX_EXAMINED]
    if any(layer.learning for layer in examined) and any(layer.last_layer_out for layer in examined):
        problem, fix = "learning and last_layer_out are both used", "set one of them to false in all layers"
        yield Violation("network", "mixed-outputs", problem, "one kind of intermediate output", "both", fix)


def violations_of_ten_bit(network: Network) -> Iterator[Violation]:
    """Yield what a ten-bit output forbids in the last major layer."""
    if network.activation_bit_mode != 1 or not network.layers:
        return
    last, path = network.layers[-1], major_path(len(network.layers))
    if (count := last.sublayer_number) != 1:
        problem = "a ten-bit output needs a last major layer of one sublayer"
        fix = "put the last sublayer into a major layer of its own"
        yield Violation(path, "ten-bit-sublayers", problem, 1, count, fix)
    if (channels := last.output_channels) > 512:
        problem = "a ten-bit output counts its channels twice, beyond what the register holds"
        expected, fix = "at most 512 output_channels", "use 512 output channels"
        yield Violation(path, "ten-bit-channels", problem, expected, channels, fix, tolerated=True)


def violations_of_memory(network: Network) -> Iterator[Violation]:
    """Yield the first sublayer that overflows the activation memory; the network must be legal otherwise."""
    paths = [
        (sub_path(m, min(s, layer.sublayer_number)), layer)
        for m, layer in enumerate(network.layers, 1)
        for s in range(1, layer.chip_sublayers + 1)
    ]
    for (path, layer), place in zip(paths, address_plan(network), strict=True):
        if not place.fits:
            problem = "the activations do not fit in the chip's memory"
            expected = f"at most {MEMORY_BYTES} bytes, in blocks of 224 x 224 x 16"
            found_in = f"{place.size_in} bytes in (address {place.in_address})"
            found_out = f"{place.size_out} bytes out (address {place.out_address})"
            fix = f"use fewer than {layer.output_channels} output channels, a smaller image, or pool earlier"
            yield Violation(path, "activation-memory", problem, expected, f"{found_in} and {found_out}", fix)
            return


def violations(network: Network) -> list[Violation]:
    """Return every broken rule of `network`, in the order of the network; empty when it runs on the chip."""
    found = [
        *violations_of_model(network),
        *violations_of_layers(network.layers),
        *violations_of_ten_bit(network),
    ]
    return found or list(violations_of_memory(network))


def violations_of_file(network: Network) -> list[Violation]:
    """Return what a .DAT cannot hold of `network`: every broken rule but those about what the chip computes."""
    found = [v for v in violations(network) if not v.computed]
    return found or list(violations_of_memory(network))


def uncomputable(network: Network) -> list[Violation]:
    """Return the broken rules of what the chip computes, in a network that a file holds."""
    return [v for v in violations_of_layers(network.layers) if v.computed]
