"""The .DAT file that the chip is loaded with: 23 header words, filter rows, padding (docs/dat_format.md).

`encode` and `decode` are inverse for everything that a current converter writes, networks whose sizes do not chain
included: what the chip computes of those is the matter of emulator, training and driver. Files of older tools decode
too; their own header words and length, which `Dat` carries, encode them again byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gti import files
from gti.chip import spec
from gti.chip.formats import dat_header, dat_rows
from gti.chip.network.file_size import file_length, groups, row_count, rows_of
from gti.chip.network.memory_plan import layer_addresses
from gti.chip.network.rules import violations_of_file, violations_of_memory
from gti.chip.network.types import Convolution, ConvolutionWeights, Network
from gti.chip.wire import header_words as bits
from gti.errors import DatError, listing, sentence

# 57 convolutions of 1024 x 1024 channels would be 374 MB of rows: nothing legal is larger.
MAX_FILE_BYTES = 512 * 1024 * 1024
# What may follow the rows beyond the padding of current converters: no tool is known to write more.
MAX_SPARE_BYTES = 16 * 1024 * 1024
_MAX_STORED_WEIGHT = 4 * 4095  # a 12-bit step times 4


@dataclass(frozen=True)
class Dat:
    """A decoded .DAT file."""

    network: Network
    weights: tuple[ConvolutionWeights, ...]  # of every convolution, in network order
    header: tuple[int, ...]  # the 23 words as they are
    length: int  # bytes
    tail: bytes  # what follows the rows, without trailing zeros; empty in files of this kit

    @property
    def extra_passes(self) -> tuple[bool, ...]:
        """For each major layer, whether an identity sublayer was added for a shortcut."""
        return tuple(layer.extra_pass for layer in self.network.layers)

    @property
    def rows(self) -> int:
        """Number of 192-byte filter rows."""
        return row_count(self.network)


def max_length(rows: int) -> int:
    """Return the largest length in bytes of a file of `rows` rows: a small folder must not build a huge file."""
    return min(file_length(rows) + MAX_SPARE_BYTES, MAX_FILE_BYTES)


def is_dat(data: bytes | memoryview) -> bool:
    """Return whether `data` begins like a .DAT file."""
    if len(data) < spec.HEADER_BYTES:
        return False
    words = _words(data)
    return words[0] == 1 and 1 <= bits.MAJOR_LAYERS.of(words[bits.GLOBAL]) <= spec.MAX_MAJOR_LAYERS


def encode(
    network: Network,
    weights: Sequence[ConvolutionWeights],
    *,
    header: Sequence[int] | None = None,
    length: int | None = None,
    tail: bytes = b"",
    strict: bool = True,
) -> bytes:
    """Return the .DAT file of `network` with `weights`, one entry for each convolution in network order.

    `header` (23 words), `length` (bytes) and `tail` (bytes after the rows) replace the computed ones, to write a file
    of an older tool again. Raises DatError naming every broken rule and every convolution whose integers the file
    cannot hold; with `strict=False` the bytes of the vendor's converter are written where those are defined.
    """
    _check_network(network, strict)
    _check_weights(network, weights, strict)
    rows = row_count(network)
    end = spec.HEADER_BYTES + spec.ROW_BYTES * rows
    words = dat_header.words_of(network) if header is None else tuple(header)
    size = file_length(rows) if length is None else length
    if len(words) != spec.HEADER_WORDS:
        raise DatError("header", "has the wrong number of words", expected=23, received=len(words))
    if not end + len(tail) <= size <= max_length(rows):
        raise DatError(
            "length",
            "does not fit header, rows and tail",
            expected=f"{end + len(tail)}..{max_length(rows)} bytes",
            received=size,
        )
    buffer = np.zeros(size, np.uint8)
    buffer[: spec.HEADER_BYTES] = np.array(words, "<u4").view(np.uint8)
    buffer[end : end + len(tail)] = np.frombuffer(tail, np.uint8)
    inexact = _pack_rows(network, weights, _rows_of(buffer, end))
    if strict and inexact:
        faults = [fault for conv in inexact for fault in _faults(conv, weights[conv.index])]
        raise DatError(listing("weights", faults))
    return buffer.tobytes()


def decode(data: bytes | memoryview, *, activation_bit_mode: int | None = None, name: str = "") -> Dat:
    """Return network and integer weights of the .DAT file `data`; `name` is the file named in errors.

    Whether the output is ten-bit is recognised as docs/dat_format.md section 5 says; `activation_bit_mode` 0 or 1 says
    it for sure. Raises DatError when the header describes no network of the chip or rows are missing.
    """
    network, words = _read(data, activation_bit_mode, name or ".DAT data")
    end = spec.HEADER_BYTES + spec.ROW_BYTES * row_count(network)
    rows = np.frombuffer(data, "<u4", (end - spec.HEADER_BYTES) // 4, spec.HEADER_BYTES)
    rows = rows.reshape(-1, spec.ENGINES, dat_rows.LINE_WORDS)
    weights = []
    first = 0
    for conv in network.convolutions:
        count = rows_of(conv.output_channels, conv.input_channels, conv.coef_bits)
        filters, biases = dat_rows.unpack(
            rows[first : first + count], conv.output_channels, conv.input_channels, conv.coef_bits
        )
        weights.append(ConvolutionWeights(filters, biases, conv.shift))
        first += count
        layer = network.layers[conv.major - 1]
        if layer.extra_pass and conv.sub == layer.sublayer_number:
            first += groups(layer.output_channels)
    tail = np.frombuffer(data, np.uint8, offset=end)
    used = np.flatnonzero(tail)
    return Dat(
        network=network,
        weights=tuple(weights),
        header=words,
        length=len(data),
        tail=tail[: int(used[-1]) + 1].tobytes() if used.size else b"",
    )


def read_network(data: bytes | memoryview, *, activation_bit_mode: int | None = None, name: str = "") -> Network:
    """Return the network of the .DAT file `data` without decoding its rows; arguments and errors as in `decode`."""
    return _read(data, activation_bit_mode, name or ".DAT data")[0]


def guesses(data: bytes | memoryview, *, activation_bit_mode: int | None = None, name: str = "") -> list[str]:
    """Return a sentence for each thing that `decode` does not know of the file but concludes.

    That input code 0 means three planes is told where the filters speak against it. Arguments and errors as in
    `decode`.
    """
    header = dat_header.parse(read_header(data, name))
    found = []
    if activation_bit_mode is None:
        mode, why = _bit_mode(header, data)
        if why:
            read, channels = ("ten-bit", "half as many channels") if mode else ("5-bit", "as many channels")
            found.append(
                sentence(
                    f"major {len(header.layers)}",
                    f"is guessed to give {read} codes of {channels} as its register counts, because {why}",
                    fix=f"read it with --ten_bit {1 - mode} if that is wrong",
                )
            )
    first = header.layers[0]
    if header.input_code == 0 and first.chip_sublayers:
        network = read_network(data, activation_bit_mode=activation_bit_mode, name=name)
        rows = rows_of(network.layers[0].output_channels, spec.ENGINES, first.coef_bits)
        lines = np.frombuffer(data, "<u4", rows * spec.ROW_BYTES // 4, spec.HEADER_BYTES)
        filters, _ = dat_rows.unpack(
            lines.reshape(-1, spec.ENGINES, dat_rows.LINE_WORDS),
            network.layers[0].output_channels,
            spec.ENGINES,
            first.coef_bits,
        )
        beyond = np.flatnonzero(filters[:, header.first_input_channels :].any(axis=(0, 2, 3)))
        if beyond.size:
            found.append(
                f"major 1: its input code 0, which every count of planes without a code has, is read as "
                f"{header.first_input_channels} planes, although the filters of plane "
                f"{int(beyond[-1]) + header.first_input_channels + 1} are not empty."
            )
    return found


def read_header(data: bytes | memoryview, name: str = "") -> tuple[int, ...]:
    """Return the 23 header words of `data`. Raises DatError when it is no .DAT file."""
    if not is_dat(data):
        raise DatError(
            name or ".DAT data",
            "is not a .DAT file of the 2801",
            expected="92 header bytes that begin with 01 00 00 00 and name 1..6 major layers",
            received=f"{len(data)} bytes that begin with {bytes(data[:8]).hex(' ') or 'nothing'}",
            fix="pass a file written by gti build or by the project's convert_to_chip.py",
        )
    return _words(data)


def load(path: str | os.PathLike[str], *, activation_bit_mode: int | None = None) -> Dat:
    """Return the decoded .DAT file `path`; see `decode`."""
    name = os.fspath(path)
    data = files.read_bytes(path, limit=MAX_FILE_BYTES, error=DatError)
    return decode(data, activation_bit_mode=activation_bit_mode, name=name)


def _words(data: bytes | memoryview) -> tuple[int, ...]:
    return tuple(int(word) for word in np.frombuffer(data, "<u4", spec.HEADER_WORDS))


def _rows_of(buffer: np.ndarray, end: int) -> np.ndarray:
    return buffer[spec.HEADER_BYTES : end].view("<u4").reshape(-1, spec.ENGINES, dat_rows.LINE_WORDS)


def _pack_rows(network: Network, weights: Sequence[ConvolutionWeights], rows: np.ndarray) -> list[Convolution]:
    """Fill `rows` and return the convolutions that they do not hold exactly."""
    inexact = []
    first = 0
    for conv, values in zip(network.convolutions, weights, strict=True):
        count = rows_of(conv.output_channels, conv.input_channels, conv.coef_bits)
        filters = np.asarray(values.filters, np.int16)
        if not dat_rows.pack(filters, np.asarray(values.biases), conv.coef_bits, rows[first : first + count]):
            inexact.append(conv)
        first += count
        layer = network.layers[conv.major - 1]
        if layer.extra_pass and conv.sub == layer.sublayer_number:
            count = groups(layer.output_channels)
            if layer.coef_bits == 3:  # the 1-bit packer turns the identity into zeros [section 3.3]
                rows[first : first + count] = dat_rows.identity_rows(layer.output_channels)
            first += count
    return inexact


def _check_network(network: Network, strict: bool) -> None:
    broken = [v for v in violations_of_file(network) if strict or not v.tolerated]
    if not broken and not strict:
        dropped = next((c for c in network.convolutions if c.input_channels > 16 and c.input_channels % 16), None)
        if dropped:
            raise DatError(
                dropped.path,
                "the format drops some of these input channels",
                expected="a multiple of 16",
                received=dropped.input_channels,
            )
        broken = list(violations_of_memory(network))
    if broken:
        raise DatError(listing("network", broken))


def _check_weights(network: Network, weights: Sequence[ConvolutionWeights], strict: bool) -> None:
    if len(weights) != len(network.convolutions):
        raise DatError(
            "weights",
            "the number of convolutions differs from the network's",
            expected=len(network.convolutions),
            received=len(weights),
            fix="pass filters and biases of every sublayer",
        )
    problems = []
    most = spec.MAX_WEIGHT if strict else _MAX_STORED_WEIGHT
    for conv, values in zip(network.convolutions, weights, strict=True):
        problem = _shape_problem(conv, values)
        if not problem and strict and values.shift != conv.shift:
            problem = sentence(
                conv.path,
                "the shift of the weights differs from scaling in the network",
                expected=conv.shift,
                received=values.shift,
                fix="write the weights' shift into the dat.json",
            )
        if not problem and values.filters.size:
            largest = max(int(values.filters.max()), -int(values.filters.min()))
            if largest > most:
                problem = sentence(
                    conv.path,
                    "an integer weight is too large for the file",
                    expected=f"-{most}..{most}",
                    received=f"magnitude {largest}",
                    fix="use a smaller shift, or normalise the layer's weights",
                )
        if problem:
            problems.append(problem)
    if problems:
        raise DatError(listing("weights", problems))


def _shape_problem(conv: Convolution, values: ConvolutionWeights) -> str:
    expected = (conv.output_channels, conv.input_channels, 3, 3)
    for what, array, shape in (
        ("filters", np.asarray(values.filters), expected),
        ("biases", np.asarray(values.biases), expected[:1]),
    ):
        if array.shape != shape or array.dtype.kind not in "iu":
            return sentence(
                conv.path,
                f"{what} have the wrong shape or type",
                expected=f"integers {list(shape)}",
                received=f"{array.dtype} {list(array.shape)}",
                fix=f"pass integer {what} in the order [out, in, 3, 3]" if what == "filters" else "",
            )
    return ""


def _faults(conv: Convolution, values: ConvolutionWeights) -> list[str]:
    """Return a sentence for each kind of thing in `values` that the file cannot hold, naming the first place."""
    found = []
    off = np.argwhere(dat_rows.off_grid(np.asarray(values.filters), conv.coef_bits))
    if off.size:
        o, i = (int(k) for k in off[0])
        form = "one magnitude with signs" if conv.coef_bits == 1 else "{0, 1, 2, 4} times one step other than 2047"
        found.append(
            sentence(
                conv.path,
                f"{len(off)} of the {conv.coef_bits}-bit kernels have no form in the file, the first is output {o}, "
                f"input {i}",
                expected=form,
                received=np.asarray(values.filters)[o, i].ravel().tolist(),
                fix="quantize the filters first (quantize.integer_filters)",
            )
        )
    limit = 1 << (spec.BIAS_BITS[conv.coef_bits] - 1)
    biases = np.asarray(values.biases)
    wide = np.flatnonzero((biases < -limit) | (biases >= limit))
    if wide.size:
        found.append(
            sentence(
                conv.path,
                f"the bias of output {int(wide[0])} does not fit into {spec.BIAS_BITS[conv.coef_bits]} bits",
                expected=f"{-limit}..{limit - 1}",
                received=int(biases[wide[0]]),
                fix="use a smaller shift, or normalise weights and biases",
            )
        )
    return found


def _read(data: bytes | memoryview, activation_bit_mode: int | None, name: str) -> tuple[Network, tuple[int, ...]]:
    words = read_header(data, name)
    header = dat_header.parse(words)
    hollow = [m for m, layer in enumerate(header.layers, 1) if not layer.chip_sublayers or not layer.output_channels]
    if hollow:
        raise DatError(name, f"major {hollow[0]} has no sublayers or no output channels")
    mode = _bit_mode(header, data)[0] if activation_bit_mode is None else activation_bit_mode
    network, passes = _interpret(header, mode, data)
    problems: list[object] = list(violations_of_file(network))
    problems += _contradictions(header, network, passes)
    if problems:
        raise DatError(listing(name, problems))
    need = spec.HEADER_BYTES + spec.ROW_BYTES * row_count(network)
    if len(data) < need:
        raise DatError(
            name,
            "ends before its last filter row",
            expected=f"at least {need} bytes",
            received=f"{len(data)} bytes",
            fix="copy or convert the file again",
        )
    most = max_length(row_count(network))
    if len(data) > most:
        raise DatError(
            name,
            "goes on far behind its filter rows",
            expected=f"at most {most} bytes",
            received=f"{len(data)} bytes",
        )
    return _without_planned_addresses(network), words


def _interpret(
    header: dat_header.HeaderWords, activation_bit_mode: int, data: bytes | memoryview
) -> tuple[Network, tuple[bool, ...]]:
    """Return the network and, found in the rows, which major layers end with an identity pass [section 3.3]."""
    passes: list[bool] = []
    first = 0
    for i, layer in enumerate(header.layers):
        outputs = layer.output_channels >> (activation_bit_mode == 1 and i == len(header.layers) - 1)
        inputs = header.first_input_channels if i == 0 else layer.input_channels
        again = rows_of(outputs, outputs, layer.coef_bits)
        first += rows_of(outputs, inputs, layer.coef_bits) + again * (layer.chip_sublayers - 2)
        identity = dat_header.may_have_extra_pass(layer) and _holds_identity(data, first, outputs)
        passes.append(identity)
        first += groups(outputs) if identity else again
    return dat_header.network_of(header, passes, activation_bit_mode), tuple(passes)


def _holds_identity(data: bytes | memoryview, row: int, outputs: int) -> bool:
    start = spec.HEADER_BYTES + spec.ROW_BYTES * row
    pattern = dat_rows.identity_rows(outputs).tobytes()
    return bytes(data[start : start + len(pattern)]) == pattern


def _bit_mode(header: dat_header.HeaderWords, data: bytes | memoryview) -> tuple[int, str]:
    """Return the ActivationBitMode that explains the header, whose flag is not stored, and why where it is a guess."""
    last = header.layers[-1]
    allowed = [
        bits.reads_as(header.output_code, last.image_size, last.output_channels, last.pooling, ten_bit)
        for ten_bit in (False, True)
    ]
    if last.chip_sublayers != 1 or not all(allowed):
        return int(last.chip_sublayers == 1 and allowed[1]), ""
    rows = [row_count(_interpret(header, mode, data)[0]) for mode in (0, 1)]
    lengths = [file_length(count) for count in rows]
    if lengths[0] != lengths[1] and len(data) in lengths:
        return lengths.index(len(data)), f"the file is {len(data)} bytes long"
    # Output groups are outermost: the second half of a true 5-bit layer is what follows the rows of a ten-bit one.
    start, stop = (spec.HEADER_BYTES + spec.ROW_BYTES * rows[mode] for mode in (1, 0))
    empty = not np.frombuffer(data, np.uint8)[start:stop].any()
    return int(empty), f"the second half of its {last.output_channels} channels is {'' if empty else 'not '}empty"


def _contradictions(header: dat_header.HeaderWords, network: Network, passes: Sequence[bool]) -> list[str]:
    """Return a sentence for everything that no converter writes like this."""
    found = []
    stored, coded = header.layers[0].input_channels, header.first_input_channels
    rounded = max(spec.ENGINES, 1 << (coded - 1).bit_length()) if coded else 0
    if stored != rounded:
        found.append(
            sentence("major 1", "the channel count differs from the input code", expected=rounded, received=stored)
        )
    for m, (layer, identity) in enumerate(zip(network.layers, passes, strict=True), 1):
        if layer.extra_pass != identity:
            found.append(sentence(f"major {m}", "a shortcut ends in the pooling without its identity pass"))
    return found


def _without_planned_addresses(network: Network) -> Network:
    """Return `network` without those addresses that the plan gives anyway."""
    bare = tuple(replace(layer, in_address=None, out_address=None) for layer in network.layers)
    planned = layer_addresses(replace(network, layers=bare))
    layers = [
        replace(
            layer,
            in_address=None if layer.in_address == plan[0] else layer.in_address,
            out_address=None if layer.out_address == plan[1] else layer.out_address,
        )
        for layer, plan in zip(network.layers, planned, strict=True)
    ]
    return replace(network, layers=tuple(layers))
