"""Every rule of the chip for a network, each with its own name (docs/dat_format.md section 6).

A rule is a generator of violations with the fields that it reads, so that a layer with one unreadable field is
still held against all rules that do not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gti.chip import spec
from gti.chip.network.memory_plan import MEMORY_BYTES, address_plan
from gti.chip.network.types import MajorLayer, Network
from gti.errors import sentence

# Hostile files may list a million layers: what lies this far beyond the limit is not looked at one by one.
MAX_EXAMINED = 16
_ODD_STARTS = "odd starts (1, 3, 5, ...)"


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


_Finding = tuple[str, str, object, object, str]  # layer, problem, expected, received, fix: the rule's name is added
_Check = Callable[[Sequence[MajorLayer], int], Iterator[_Finding]]


@dataclass(frozen=True)
class LayerRule:
    """A rule about major layer `i`, and the fields it reads of that layer and of the one before."""

    name: str
    fields: frozenset[str]
    previous: frozenset[str]
    tolerated: bool
    computed: bool
    check: _Check

    def broken(self, layers: Sequence[MajorLayer], i: int) -> Iterator[Violation]:
        """Yield what breaks the rule in layer `i` (0-based)."""
        for layer, problem, expected, received, fix in self.check(layers, i):
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
def _image_size(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    size = layers[i].image_size
    if size not in spec.IMAGE_SIZES:
        yield (
            major_path(i + 1),
            "image_size is not a size of the chip",
            _one_of(spec.IMAGE_SIZES),
            size,
            _nearest(size, spec.IMAGE_SIZES),
        )


@_layer_rule("size-448-first", "image_size", computed=True)
def _size_448_first(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if i > 0 and layers[i].image_size == 448:
        yield (
            major_path(i + 1),
            "image_size 448 is possible in the first major layer only",
            "at most 224",
            448,
            "pool or leave out the upsampling before this layer",
        )


@_layer_rule("upsample-size", "image_size", "upsample_enable", computed=True)
def _upsample_size(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if layers[i].upsample_enable and layers[i].image_size >= 448:
        yield (
            major_path(i + 1),
            "upsampling would go beyond the chip's largest size",
            "image_size at most 224 (before doubling)",
            layers[i].image_size,
            "leave out upsample_enable",
        )


@_layer_rule("upsample-mode", "upsample_mode")
def _upsample_mode(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if layers[i].upsample_mode not in spec.UPSAMPLE_MODES:
        yield (
            major_path(i + 1),
            "upsample_mode is unknown",
            _one_of(spec.UPSAMPLE_MODES),
            layers[i].upsample_mode,
            "use repeat",
        )


@_layer_rule("size-chain", "image_size", previous=("image_size", "pooling", "upsample_enable"), computed=True)
def _size_chain(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if i > 0 and layers[i].image_size != layers[i - 1].output_size:
        yield (
            major_path(i + 1),
            "image_size is not what the major layer before delivers",
            layers[i - 1].output_size,
            layers[i].image_size,
            f"set image_size to {layers[i - 1].output_size}, or change pooling or upsample_enable of major {i}"
            if layers[i - 1].output_size in spec.IMAGE_SIZES
            else f"change pooling or upsample_enable of major {i}",
        )


@_layer_rule("first-input-channels", "input_channels", tolerated=True)
def _first_input_channels(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    count = layers[i].input_channels
    if i == 0 and count not in spec.FIRST_INPUT_CHANNELS:
        yield (
            major_path(1),
            "input_channels of the first layer is not a count that the chip's input takes",
            _one_of(spec.FIRST_INPUT_CHANNELS),
            count,
            _padded(count, spec.FIRST_INPUT_CHANNELS),
        )


@_layer_rule("channel-chain", "input_channels", previous=("output_channels",), tolerated=True)
def _channel_chain(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if i > 0 and layers[i].input_channels != layers[i - 1].output_channels:
        yield (
            major_path(i + 1),
            "input_channels differs from output_channels of the major layer before",
            layers[i - 1].output_channels,
            layers[i].input_channels,
            f"set input_channels to {layers[i - 1].output_channels}",
        )


@_layer_rule("output-channels", "output_channels", tolerated=True)
def _output_channels(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    count = layers[i].output_channels
    if count not in spec.OUTPUT_CHANNELS:
        yield (
            major_path(i + 1),
            "output_channels is not a count of the chip",
            _one_of(spec.OUTPUT_CHANNELS),
            count,
            _padded(count, spec.OUTPUT_CHANNELS),
        )


def _most_sublayers(major: int) -> int:
    return spec.MAX_SUBLAYERS_LATE if major >= spec.FIRST_LATE_MAJOR_LAYER else spec.MAX_SUBLAYERS


@_layer_rule("sublayer-number", "sublayer_number", "pooling", "shortcuts")
def _sublayer_number(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    layer = layers[i]
    most = _most_sublayers(i + 1)
    if not 1 <= layer.chip_sublayers <= most:
        counted = f"{layer.sublayer_number} and the extra shortcut pass" if layer.extra_pass else layer.sublayer_number
        yield (
            major_path(i + 1),
            "sublayer_number is out of range",
            f"1..{most}" + (" from major layer 4 on" if most == spec.MAX_SUBLAYERS_LATE else ""),
            counted,
            "split the major layer, or use fewer sublayers",
        )


@_layer_rule("coef-bits", "coef_bits")
def _coef_bits(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if layers[i].coef_bits not in spec.COEF_BITS:
        yield (
            major_path(i + 1),
            "coef_bits is not a width of this chip",
            "1 or 3",
            layers[i].coef_bits,
            "use 3 for the first layers and 1 for wide ones",
        )


@_layer_rule("scaling-length", "scaling", "sublayer_number")
def _scaling_length(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if len(layers[i].scaling) != layers[i].sublayer_number:
        yield (
            major_path(i + 1),
            "scaling does not hold one shift for each sublayer",
            f"{layers[i].sublayer_number} values",
            f"{len(layers[i].scaling)} values",
            "list one shift for each sublayer (zeros in a template)",
        )


@_layer_rule("shift-range", "scaling", tolerated=True)
def _shift_range(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    for sub, shift in enumerate(layers[i].scaling[:MAX_EXAMINED], 1):
        if not 0 <= shift <= spec.MAX_SHIFT_STORED:
            yield (
                sub_path(i + 1, sub),
                "the shift in scaling is out of range",
                f"0..{spec.MAX_SHIFT_STORED}",
                shift,
                "convert the layer again; training uses 0..12",
            )


@_layer_rule("one-coef-length", "one_coef", "sublayer_number", tolerated=True)
def _one_coef_length(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    flags = layers[i].one_coef
    if flags and len(flags) != layers[i].sublayer_number:
        yield (
            major_path(i + 1),
            "one_coef does not hold one flag for each sublayer",
            f"{layers[i].sublayer_number} values",
            f"{len(flags)} values",
            "list 0 (3x3) or 1 (1x1) for each sublayer, or leave one_coef out",
        )


@_layer_rule("one-coef-values", "one_coef", tolerated=True)
def _one_coef_values(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    for sub, flag in enumerate(layers[i].one_coef[:MAX_EXAMINED], 1):
        if flag not in (0, 1):
            yield (
                sub_path(i + 1, sub),
                "one_coef holds an unknown flag",
                "0 (3x3) or 1 (1x1)",
                flag,
                "use 0 for a 3x3 convolution",
            )


@_layer_rule("late-one-coef", "one_coef", tolerated=True)
def _late_one_coef(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if i + 1 >= spec.FIRST_LATE_MAJOR_LAYER and any(layers[i].one_coef):
        yield (
            major_path(i + 1),
            "one_coef is lost from major layer 4 on, as the file has no place for it",
            "no one_coef, or zeros",
            list(layers[i].one_coef[:MAX_EXAMINED]),
            "use a 3x3 convolution with a filled centre, or move the layer to major 1..3",
        )


@_layer_rule("late-shortcuts", "shortcuts", tolerated=True)
def _late_shortcuts(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if i + 1 >= spec.FIRST_LATE_MAJOR_LAYER and layers[i].shortcuts:
        yield (
            major_path(i + 1),
            "resnet_shortcut_start_layers is lost from major layer 4 on, as the file has no place for it",
            "no shortcuts",
            list(layers[i].shortcuts[:MAX_EXAMINED]),
            "use shortcuts in major 1..3 only",
        )


@_layer_rule("shortcut-range", "shortcuts", "sublayer_number")
def _shortcut_range(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    for start in layers[i].shortcuts[:MAX_EXAMINED]:
        if not 1 <= start < layers[i].sublayer_number:
            yield (
                major_path(i + 1),
                "a shortcut starts outside the major layer",
                f"1..{layers[i].sublayer_number - 1}" if layers[i].sublayer_number > 1 else "at least 2 sublayers",
                start,
                "start it at a sublayer before the last",
            )


def _even_starts(layer: MajorLayer) -> tuple[list[int], bool]:
    """Return the even shortcut starts, and whether there are odd ones beside them."""
    starts = layer.shortcuts[:MAX_EXAMINED]
    even = [start for start in starts if start % 2 == 0]
    return even, len(even) < len(starts)


@_layer_rule("shortcut-mixed", "shortcuts")
def _shortcut_mixed(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    even, mixed = _even_starts(layers[i])
    if even and mixed:
        yield (
            major_path(i + 1),
            "odd and even shortcut starts are mixed",
            _ODD_STARTS,
            even,
            "start shortcuts at odd sublayers",
        )


@_layer_rule("shortcut-even", "shortcuts", tolerated=True)
def _shortcut_even(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    even, mixed = _even_starts(layers[i])
    if even and not mixed:
        yield (
            major_path(i + 1),
            "even shortcut starts are stored like odd ones",
            _ODD_STARTS,
            even,
            "start shortcuts at odd sublayers",
        )


@_layer_rule("shortcut-order", "shortcuts")
def _shortcut_order(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    starts = list(layers[i].shortcuts[:MAX_EXAMINED])
    if starts != sorted(set(starts)):
        yield (
            major_path(i + 1),
            "resnet_shortcut_start_layers is unsorted or repeats a start",
            "rising starts, each once",
            starts,
            f"write {sorted(set(starts))}",
        )


@_layer_rule("shortcut-identity", "shortcuts", "pooling", "sublayer_number", "coef_bits", tolerated=True)
def _shortcut_identity(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if layers[i].extra_pass and layers[i].coef_bits == 1:
        yield (
            major_path(i + 1),
            "a shortcut into the pooling needs an identity pass, which 1-bit coefficients cannot hold",
            "coef_bits 3",
            1,
            "use coef_bits 3, or end the last shortcut one sublayer earlier",
        )


@_layer_rule("depth-enable", "depth_enable")
def _depth_enable(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    if layers[i].extra.get("depth_enable"):
        yield (
            major_path(i + 1),
            "depthwise convolutions have no usable form in the file",
            "depth_enable false",
            "true",
            "use full 3x3 convolutions",
        )


@_layer_rule("address-range", "in_address", "out_address")
def _address_range(layers: Sequence[MajorLayer], i: int) -> Iterator[_Finding]:
    for key, address in (("in_addr", layers[i].in_address), ("out_addr", layers[i].out_address)):
        if address is not None and not 0 <= address < spec.MEMORY_UNITS:
            yield (
                major_path(i + 1),
                f"{key} lies outside the activation memory",
                f"0..{spec.MEMORY_UNITS - 1}",
                address,
                f"leave {key} out: the plan chooses it",
            )


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
    count = len(network.layers)
    if not 1 <= count <= spec.MAX_MAJOR_LAYERS:
        yield Violation(
            "network",
            "major-layers",
            "the number of major layers is out of range",
            f"1..{spec.MAX_MAJOR_LAYERS}",
            count,
            "join layers of one size into one major layer",
        )
    if network.chip_type != spec.CHIP_TYPE:
        yield Violation(
            "model",
            "chip-type",
            "ChipType is another chip",
            spec.CHIP_TYPE,
            network.chip_type,
            "this kit writes files for the 2801",
            tolerated=True,
        )
    if network.sampling_method not in (0, 1):
        yield Violation(
            "model",
            "sampling-method",
            "SamplingMethod is unknown",
            "0 (max pooling) or 1 (top-left pixel)",
            network.sampling_method,
            "use 0",
            tolerated=True,
        )
    if network.activation_bit_mode not in (0, 1):
        yield Violation(
            "model",
            "activation-bit-mode",
            "ActivationBitMode is not supported",
            "0 (5 bit) or 1 (ten-bit output)",
            network.activation_bit_mode,
            "use 0",
        )
    examined = network.layers[:MAX_EXAMINED]
    if any(layer.learning for layer in examined) and any(layer.last_layer_out for layer in examined):
        yield Violation(
            "network",
            "mixed-outputs",
            "learning and last_layer_out are both used",
            "one kind of intermediate output",
            "both",
            "set one of them to false in all layers",
        )


def violations_of_ten_bit(network: Network) -> Iterator[Violation]:
    """Yield what a ten-bit output forbids in the last major layer."""
    if network.activation_bit_mode != 1 or not network.layers:
        return
    last = network.layers[-1]
    if last.sublayer_number != 1:
        yield Violation(
            major_path(len(network.layers)),
            "ten-bit-sublayers",
            "a ten-bit output needs a last major layer of one sublayer",
            1,
            last.sublayer_number,
            "put the last sublayer into a major layer of its own",
        )
    if last.output_channels > 512:
        yield Violation(
            major_path(len(network.layers)),
            "ten-bit-channels",
            "a ten-bit output counts its channels twice, beyond what the register holds",
            "at most 512 output_channels",
            last.output_channels,
            "use 512 output channels",
            tolerated=True,
        )


def violations_of_memory(network: Network) -> Iterator[Violation]:
    """Yield the first sublayer that overflows the activation memory; the network must be legal otherwise."""
    paths = [
        (sub_path(m, min(s, layer.sublayer_number)), layer)
        for m, layer in enumerate(network.layers, 1)
        for s in range(1, layer.chip_sublayers + 1)
    ]
    for (path, layer), place in zip(paths, address_plan(network), strict=True):
        if not place.fits:
            yield Violation(
                path,
                "activation-memory",
                "the activations do not fit in the chip's memory",
                f"at most {MEMORY_BYTES} bytes, in blocks of 224 x 224 x 16",
                f"{place.size_in} bytes in (address {place.in_address}) and {place.size_out} bytes out (address "
                f"{place.out_address})",
                f"use fewer than {layer.output_channels} output channels, a smaller image, or pool earlier",
            )
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
