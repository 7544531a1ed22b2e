"""Checkpoint and network -> integer layers -> .DAT -> .MODEL (user guide section 6.5).

The integers come from `gti.quantize`, the functions that training used, so the file holds what was trained.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gti import files, fusion
from gti.chip import spec
from gti.chip.formats import dat, model_file, splitting
from gti.chip.host import preprocessing
from gti.chip.host.preprocessing import Preprocessing
from gti.chip.network.types import Convolution, ConvolutionWeights, Network
from gti.chip.runtime import known_answer
from gti.chip.wire import registers
from gti.errors import FormatError, QuantizationError, sentence
from gti.stage import MEAN

log = logging.getLogger(__name__)

# Filters lose this many bits, or more, to the biases' range before it is called an imbalance (user guide section 5.2).
IMBALANCE_BITS = 3
# Activation ranges beyond these are "extreme" (user guide section 5.3 names both numbers).
LARGEST_USUAL_CAP = 1e3
SMALLEST_USUAL_CAP = 1e-6


@dataclass(frozen=True)
class Conversion:
    """What goes to the chip: the network with its shifts, its integer weights, and what a user should know."""

    network: Network
    weights: tuple[ConvolutionWeights, ...]
    warnings: tuple[str, ...]

    def dat(self) -> bytes:
        """Return the .DAT file."""
        return dat.encode(self.network, self.weights)

    def known_answer(self, data: bytes, stage: str = "", parent: str = "") -> dict[str, Any]:
        """Return what a .MODEL with the .DAT `data` carries to be checked by; see `gti.chip.runtime.known_answer`."""
        return known_answer.make(self.network, self.weights, data, stage=stage, parent=parent).to_entry()


def convert(network: Network, arrays: Mapping[str, np.ndarray], *, net: str, filter_step: str = MEAN) -> Conversion:
    """Return the integers of a trained network; `arrays` as `fusion.fuse_chip` takes them, fused or not.

    `filter_step` is the rule of 3-bit filters that they were trained with.
    Raises QuantizationError naming every layer whose values do not fit the chip, with the remedy.
    """
    fused = fusion.fuse_chip(network, arrays, net=net)
    problems, warnings = [], []
    weights = []
    for convolution in network.convolutions:
        scope = f"{net}/{convolution.name}"
        filters, biases = fused[f"{scope}/filters"], fused[f"{scope}/biases"]
        ranges = _Ranges.of(convolution, filters, biases)
        problem = ranges.problem()
        if problem:
            problems.append(problem)
            continue
        layer = integer_layer(convolution, filters, biases, filter_step)
        ranges.log(layer.shift)
        weights.append(layer)
        warnings += ranges.warnings(layer, float(arrays[f"{scope}/relu_cap"]))
    if problems:
        raise QuantizationError("\n".join(problems))
    return Conversion(with_shifts(network, [layer.shift for layer in weights]), tuple(weights), tuple(warnings))


def integer_layer(
    convolution: Convolution, filters: np.ndarray, biases: np.ndarray, filter_step: str = MEAN
) -> ConvolutionWeights:
    """Return the chip's integers of one sublayer from float32 filters [3, 3, in, out] and biases [out], both fused."""
    from gti import quantize

    filter_integers, bias_integers, shift = quantize.integer_filters(
        filters, biases, convolution.coef_bits, filter_step
    )
    in_chip_order = filter_integers.numpy().astype(np.int16).transpose(3, 2, 0, 1)  # HWIO -> [out, in, 3, 3]
    return ConvolutionWeights(np.ascontiguousarray(in_chip_order), bias_integers.numpy().astype(np.int32), int(shift))


def with_shifts(network: Network, shifts: Sequence[int]) -> Network:
    """Return the network with the shift of every sublayer set."""
    remaining = iter(shifts)
    layers = tuple(
        replace(layer, scaling=tuple(next(remaining) for _ in range(layer.sublayer_number))) for layer in network.layers
    )
    return replace(network, layers=layers)


@dataclass(frozen=True)
class _Ranges:
    """How large the fused weights and biases of one sublayer are, and which shift each would allow alone."""

    convolution: Convolution
    weight: float
    bias: float
    weight_shift: int
    bias_shift: int

    @classmethod
    def of(cls, convolution: Convolution, filters: np.ndarray, biases: np.ndarray) -> _Ranges:
        from gti import quantize

        # `fuse_chip` has refused what is not a number. The shift of an array is that of its largest magnitude.
        weight, bias = (np.float32(max(values.max(), -values.min())) for values in (filters, biases))
        return cls(
            convolution,
            float(weight),
            float(bias),
            int(quantize.range_shift(weight, quantize.weight_limit(convolution.coef_bits))),
            int(quantize.range_shift(bias, quantize.bias_limit(convolution.coef_bits))),
        )

    def problem(self) -> str:
        """Return the sentence that says why the sublayer cannot be converted, or ""."""
        from gti import quantize

        for name, symbol, largest, limit in (
            ("weights", "W", self.weight, quantize.weight_limit(self.convolution.coef_bits)),
            ("biases", "B", self.bias, quantize.bias_limit(self.convolution.coef_bits)),
        ):
            if largest > limit:
                return sentence(
                    self.convolution.path,
                    f"{name} do not fit the chip",
                    expected=f"max|{symbol}| of {limit} at most",
                    received=f"{largest:.6g}",
                    fix="normalise the layer (batch norm or weight decay), fuse and fine-tune",
                )
        return ""

    def warnings(self, layer: ConvolutionWeights, cap: float) -> list[str]:
        """Return what a user should know about a sublayer that can be converted."""
        result = []
        lost = self.weight_shift - layer.shift
        if lost >= IMBALANCE_BITS:
            result.append(
                f"biases are much larger than weights (max|B| {self.bias:.4g}, max|W| {self.weight:.4g}), so the "
                f"filters lose {lost} bits. Train with --clip_bias, or fuse and fine-tune."
            )
        if not layer.filters.any():
            result.append(
                f"every filter becomes 0 on the chip (max|W| {self.weight:.4g}). Train with --clip_bias or batch norm, "
                "or fuse and fine-tune."
            )
        elif self.bias and not layer.biases.any():
            result.append(
                f"every bias becomes 0 on the chip (max|B| {self.bias:.4g} at shift {layer.shift}). Fuse and fine-tune."
            )
        if not SMALLEST_USUAL_CAP < cap < LARGEST_USUAL_CAP:
            result.append(
                f"its activation range of {cap:.4g} is extreme. Train with batch norm, then fuse and fine-tune."
            )
        return [f"{self.convolution.path}: {warning}" for warning in result]

    def log(self, shift: int) -> None:
        """Log the figures that the user guide asks for, section 5.2."""
        log.debug(
            "%s: max|W| %.6g, max|B| %.6g, gain of W %d, gain of B %d, shift %d",
            self.convolution.path,
            self.weight,
            self.bias,
            2**self.weight_shift,
            2**self.bias_shift,
            shift,
        )


def write_files(
    conversion: Conversion,
    *,
    net: str,
    chip: str,
    nets_dir: str | Path,
    output_dir: str | Path,
    stage: str = "",
    parent: str = "",
    num_chips: int | None = None,
    preparation: Preprocessing | None = None,
) -> tuple[Path, ...]:
    """Write `<chip>_<net>.dat`, `.model` and the updated JSON pair to `output_dir`; return the paths of the first two.

    For several chips in a row (`num_chips`; None: "ChipNumber" of the JSON) there is a `<chip>_<net>_chip<n>.dat` of
    each in place of the first, and all are in the .model, whose path is the last that is returned.

    The JSON templates come from `nets_dir`; "scaling" and the image sizes of the first, "data file" of the chip's layer
    and the sizes in the second are set, everything else in them is kept. The .MODEL carries a known answer, which names
    the `stage` and the digest `parent` of the checkpoint, and the `preparation` of images. Each file is replaced as a
    whole, after all of them could be made. Raises FormatError for templates that cannot serve, UsageError where the
    folder cannot be written or so many chips cannot share the network, and NetworkError when a part of it breaks a rule
    of the chip.
    """
    stem = f"{chip}_{net}"
    model_json, on_chip = read_templates(conversion.network, net=net, chip=chip, nets_dir=nets_dir)
    network_json = files.read_json(Path(nets_dir) / f"{stem}_dat.json")
    for entry, layer in zip(network_json["layer"], conversion.network.layers, strict=True):
        entry["scaling"], entry["image_size"] = list(layer.scaling), layer.image_size
    chips = num_chips or splitting.chip_number(conversion.network)
    if num_chips:
        network_json["model"][0]["ChipNumber"] = num_chips
    parts = splitting.split(conversion.network, conversion.weights, chips)
    names = [f"{stem}.dat"] if chips == 1 else [f"{stem}_chip{number}.dat" for number in range(1, chips + 1)]
    data = dict(zip(names, (part.dat() for part in parts), strict=True))
    on_chip["data file"] = names[-1]
    entries = [*splitting.insert_inner_layers(model_json, on_chip, parts, names), on_chip]
    model_json_bytes = files.json_bytes(model_json)
    for entry, part, name in zip(entries, parts, names, strict=True):
        answer = known_answer.make(part.network, part.weights, data[name], stage=stage, parent=parent)
        entry[known_answer.KEY] = answer.to_entry()
    if preparation is not None:
        model_json[preprocessing.KEY] = preparation.entry()
    model_bytes = model_file.compose(files.json_bytes(model_json), data)
    output = Path(output_dir)
    for name, dat_bytes in data.items():
        files.write_atomic(output / name, dat_bytes)
    model_path = output / f"{stem}.model"
    files.write_atomic(model_path, model_bytes)
    files.write_json(output / f"{stem}_dat.json", network_json)
    files.write_atomic(output / f"{stem}_model.json", model_json_bytes)
    return (*(output / name for name in names), model_path)


def preparation(network: Network, data_dir: str | os.PathLike[str]) -> Preprocessing:
    """Return how images become the input of `network`: the pipeline of the data set in `data_dir` (train/, val/).

    Raises DataError for a `pipeline.json` that is none.
    """
    from gti.data_utils import read_pipeline

    first = network.layers[0]
    fraction = read_pipeline(Path(data_dir) / "val").crop_fraction
    if not Path(data_dir).is_dir():
        log.warning(
            "%s: no such data set, so images are taken to be cropped to %g (see --data_dir)", data_dir, fraction
        )
    return Preprocessing(first.image_size, first.input_channels, "BGR", fraction)


def read_templates(
    network: Network, *, net: str, chip: str, nets_dir: str | Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (model JSON of a net for one chip, its chip layer), with the sizes that they have for `network`.

    Raises FormatError where there is not one GTICNN layer, or its mode is none of the chip's.
    """
    path = Path(nets_dir) / f"{chip}_{net}_model.json"
    model_json = files.read_json(path)
    splitting.remove_inner_layers(model_json)
    on_chip = chip_layer(model_json, str(path))
    # Another image size scales every map by the same factor.
    made_for = files.read_json(Path(nets_dir) / f"{chip}_{net}_dat.json")["layer"][0]["image_size"]
    for entry in model_json["layer"]:
        for key in ("output width", "output height"):
            if entry.get("operation") in {"IMAGEREADER", "GTICNN"} and isinstance(entry.get(key), int):
                entry[key] = entry[key] * network.layers[0].image_size // made_for
    return model_json, on_chip


def fc_readout_problem(network: Network, net: str) -> str:
    """Return the sentence that says why host layers cannot follow `network` on a stick, or ""."""
    _, height, width = network.output_shape
    if height == width == spec.FC_READOUT_SIZE:
        return ""
    return sentence(
        f"net {net}",
        "has a result that the chip does not hand to host layers",
        expected=f"{spec.FC_READOUT_SIZE}x{spec.FC_READOUT_SIZE} after the last layer",
        received=f"{height}x{width}",
        fix="choose another --image_size or pooling; scripts/model_tool.py run --mode reads the maps of such a network",
    )


def chip_layer(model_json: Any, name: str) -> dict[str, Any]:
    """Return the one GTICNN layer of a model JSON; `name` is its file.

    Raises FormatError where there is not one, or where its mode is none of the chip's.
    """
    layers = model_json.get("layer") if isinstance(model_json, dict) else None
    found = [
        layer
        for layer in (layers if isinstance(layers, list) else [])
        if isinstance(layer, dict) and layer.get("operation") == "GTICNN"
    ]
    if len(found) != 1:
        raise FormatError(
            sentence(
                name,
                "does not name the chip's part",
                expected="one GTICNN layer",
                received=len(found),
                fix="leave one layer with that operation in the file",
            )
        )
    mode = found[0].get("mode", 0)
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= registers.LARGEST_MODE:
        raise FormatError(
            sentence(
                f"{name}, layer {found[0].get('name')}",
                "has an unknown mode",
                expected=f"a number 0..{registers.LARGEST_MODE}",
                received=mode,
                fix="write 0, which reads the result of the last layer",
            )
        )
    return found[0]


def debug_conversion() -> bool:
    """Return whether the user asked for the figures of every layer (environment variable of user guide section 5.2)."""
    return os.environ.get("GTI_DEBUG_CONVERSION", "").lower() in ("true", "1")
