"""The known answer of a .MODEL: what its network makes of one image that everybody can compute again.

The GTICNN layer of the header carries it under the key "known answer" (docs/compare.md): the seed of the image, SHA-256
digests of the .DAT, of every sublayer's codes and of the output, and where the network comes from. A file, an
emulator or a stick can be checked with it, without training data, checkpoint or TensorFlow.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gti import __version__
from gti.chip import spec
from gti.chip.emulator import arithmetic
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat
from gti.chip.network.types import Convolution, ConvolutionWeights, Network
from gti.chip.runtime import coverage
from gti.errors import DatError, ModelFileError, NetworkError, sentence

if TYPE_CHECKING:
    from gti.chip.formats.model_file import ModelFile
    from gti.chip.runtime.contract import LayeredModel

KEY = "known answer"
SEED = "known answer 1"
# Where that image leaves more than this share of kernels uncovered, others join it, at most so many: each of them
# covers some more. Larger networks keep to one image, as conversion is to take no longer than a second.
GOAL = 0.99
MOST_IMAGES = 192
MOST_KERNELS = 50_000
_BLOCK = hashlib.sha256().digest_size
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_TEXT = 200
_VARIANT = re.compile(r"[^,]*(?P<hard>, black and white)?(?:, blocks of (?P<block>[1-9][0-9]{0,2}))?")
_MAX_SUBLAYERS = spec.MAX_SUBLAYERS * spec.MAX_MAJOR_LAYERS


@dataclass(frozen=True)
class Images:
    """What the network makes of some images: digests over the codes of all of them, in their order."""

    seeds: tuple[str, ...]
    sublayers: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class KnownAnswer:
    """One known answer; digests are 64 hex digits of SHA-256."""

    seed: str  # of the image
    dat: str  # digest of the .DAT
    sublayers: tuple[str, ...]  # digest of the codes of each, before pooling; none where they cannot be computed
    output: str  # digest of the codes after the last pooling; "" like `sublayers`
    activation_bit_mode: int  # 1 = ten-bit output
    upsample_modes: tuple[str, ...]  # of the major layers; no bit of the .DAT holds them
    kit_version: str
    stage: str  # of the checkpoint: quant_act or fused, "" where unknown
    parent: str  # digest of the checkpoint (`gti.training.checkpoint.digest`), "" where unknown
    more: Images | None = None  # further images, so that more kernels are covered

    @property
    def images(self) -> list[Images]:
        """The first image, and the others together."""
        first = Images((self.seed,), self.sublayers, self.output)
        return [first] if self.more is None else [first, self.more]

    @property
    def seeds(self) -> list[str]:
        """Of all images."""
        return [seed for images in self.images for seed in images.seeds]

    @property
    def origin(self) -> str:
        """Where the file comes from, in words."""
        words = [self.stage and f"stage {self.stage}", self.parent and f"checkpoint {self.parent}"]
        return ", ".join([*filter(None, words), f"kit {self.kit_version}"])

    def to_entry(self) -> dict[str, Any]:
        """Return the JSON object."""
        more = self.more
        others = (
            {}
            if more is None
            else {"more": {"seeds": list(more.seeds), "sublayers": list(more.sublayers), "output": more.output}}
        )
        return others | {
            "seed": self.seed,
            "dat": self.dat,
            "sublayers": list(self.sublayers),
            "output": self.output,
            "activation bit mode": self.activation_bit_mode,
            "upsample modes": list(self.upsample_modes),
            "kit version": self.kit_version,
            "stage": self.stage,
            "parent checkpoint": self.parent,
        }


def known_image(seed: str, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the image of `seed`, uint8 of `shape` (height, width, channels).

    Its bytes in the order [H,W,C] are the blocks SHA-256(seed as UTF-8, then the block's number as 8 bytes, most
    significant first), numbers from 0: random-looking, and the same in every language and for all time. A seed that
    ends with ", blocks of n" gives the bytes of an n-th of the size, each n times in both directions; one with
    ", black and white" makes 255 of bytes from 128 on, 0 of the others.
    """
    variant = _VARIANT.fullmatch(seed)
    if variant and variant["block"]:
        height, width, channels = shape
        block = int(variant["block"])
        coarse = _bytes(seed, (-(-height // block), -(-width // block), channels))
        image = coarse.repeat(block, 0)[:height].repeat(block, 1)[:, :width]
    else:
        image = _bytes(seed, shape)
    return image if not (variant and variant["hard"]) else np.where(image > 127, 255, 0).astype(np.uint8)


def _bytes(seed: str, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    count = int(np.prod(shape))
    start = hashlib.sha256(seed.encode())
    stream = bytearray()
    for number in range(-(-count // _BLOCK)):
        block = start.copy()
        block.update(number.to_bytes(8, "big"))
        stream += block.digest()
    return np.frombuffer(bytes(stream[:count]), np.uint8).reshape(shape)


def digest_of_codes(codes: npt.NDArray[Any]) -> str:
    """Return the digest of codes [C,H,W]: their bytes in this order, two a code (low byte first) with ten bits."""
    return _digest([codes])


def make(
    network: Network, weights: Sequence[ConvolutionWeights], data: bytes, *, stage: str = "", parent: str = ""
) -> KnownAnswer:
    """Return the known answer of the .DAT `data`, which holds `network` with `weights`.

    Networks whose arithmetic is unknown (shortcuts) get the digest of the file alone.
    """
    first = Images((SEED,), (), "")
    more = None
    try:
        emulator = Emulator(network, weights)
    except NetworkError:
        pass
    else:
        seeds = _chosen(emulator, weights)
        first = _digests(emulator, seeds[:1])
        more = _digests(emulator, seeds[1:]) if seeds[1:] else None
    return KnownAnswer(
        seed=SEED,
        dat=hashlib.sha256(data).hexdigest(),
        sublayers=first.sublayers,
        output=first.output,
        activation_bit_mode=network.activation_bit_mode,
        upsample_modes=tuple(layer.upsample_mode for layer in network.layers),
        kit_version=__version__,
        stage=stage,
        parent=parent,
        more=more,
    )


def coverage_of(answer: KnownAnswer, data: bytes, name: str, engine: str = "auto") -> tuple[int, int]:
    """Return (kernels of the .DAT `data` that the images cover, all kernels), `gti.chip.runtime.coverage` says how.

    Raises DatError, and NetworkError where the chip's arithmetic is unknown.
    """
    decoded = decoded_as(answer, data, name)
    emulator = Emulator(decoded.network, decoded.weights, engine=engine)
    unseen = coverage.all_unseen(decoded.network)
    for seed in answer.seeds:
        coverage.cover(emulator, decoded.weights, known_image(seed, decoded.network.input_shape), unseen)
    every = sum(one.size for one in unseen)
    return every - sum(int(one.sum()) for one in unseen), every


def _chosen(emulator: Emulator, weights: Sequence[ConvolutionWeights]) -> list[str]:
    """Return the seeds of images that together cover `GOAL` of the kernels, or what `MOST_IMAGES` cover."""
    unseen = coverage.all_unseen(emulator.network)
    seeds = [SEED]
    if sum(one.size for one in unseen) > MOST_KERNELS:
        return seeds
    coverage.cover(emulator, weights, known_image(SEED, emulator.network.input_shape), unseen)
    for number in range(2, MOST_IMAGES + 1):
        before = coverage.share(unseen)
        if before >= GOAL:
            break
        # Small blocks move many sums, black and white move them far.
        hard = ", black and white" if number % 2 else ""
        block = (2, 3, 1, 5, 8, 14, 28)[number // 2 % 7]
        seed = f"known answer {number}{hard}" + (f", blocks of {block}" if block > 1 else "")
        coverage.cover(emulator, weights, known_image(seed, emulator.network.input_shape), unseen)
        if coverage.share(unseen) > before:
            seeds.append(seed)
    return seeds


class Part(NamedTuple):
    """The network of one chip in a container; `name` is for messages."""

    name: str
    answer: KnownAnswer
    data: bytes  # the .DAT


def read(model: ModelFile, name: str) -> list[Part]:
    """Return the known answer of each chip of a container, in the order of the GTICNN layers; one for most files.

    Raises ModelFileError where there is none, or it is not in the form of `KnownAnswer.to_entry`.
    """
    layers = [layer for layer in model.layers if layer.operation == "GTICNN" and layer.blob is not None]
    if not layers:
        raise ModelFileError(name, "holds no network for the chip", expected="a GTICNN layer with data")
    parts = []
    for number, layer in enumerate(layers, 1):
        path = name if len(layers) == 1 else f"{name}, chip {number}"
        if KEY not in layer.entry:
            fix = "convert the checkpoint again with the project's convert_to_chip.py, which writes one"
            raise ModelFileError(path, f'carries no "{KEY}"', fix=fix)
        parts.append(Part(path, _parse(layer.entry[KEY], path), bytes(layer.blob or b"")))
    return parts


def check_file(answer: KnownAnswer, data: bytes, name: str) -> list[str]:
    """Return a sentence where the .DAT `data` is not the one that was converted."""
    found = hashlib.sha256(data).hexdigest()
    if found == answer.dat:
        return []
    return [
        sentence(
            name,
            "its network data are not those that were converted",
            expected=f"SHA-256 {answer.dat[:16]}...",
            received=f"{found[:16]}...",
            fix="copy or convert the file again",
        )
    ]


def check_codes(answer: KnownAnswer, data: bytes, name: str, engine: str = "auto") -> tuple[list[str], str]:
    """Run the .DAT `data` on the emulator; return (sentences of what is wrong, who computed it).

    The first sentence names the first sublayer whose codes are wrong; data that change no code of the known image
    (a dead channel, padding) are told by their digest.
    """
    if not answer.sublayers:
        return check_file(answer, data, name), "the file's digest alone (the chip's arithmetic is unknown here)"
    try:
        emulator = emulator_of(answer, data, name, engine)
    except (DatError, NetworkError) as problem:
        return [*check_file(answer, data, name), str(problem)], "no emulator"
    network = emulator.network
    problems = _same_sublayers(answer, network, name)
    if not problems:
        for expected in answer.images:
            problems = problems or _wrong(expected, network.convolutions, _digests(emulator, expected.seeds))
    changed = check_file(answer, data, name)
    if changed and not problems:
        problems.append(f"{name}: every code of the known image is right, but:")
    return problems + changed, f"emulator ({emulator.engine})"


def check_stick(answer: KnownAnswer, data: bytes, stick: LayeredModel, name: str) -> tuple[list[str], str]:
    """Run the known image on a stick that holds the .DAT `data`; return as `check_codes` does.

    Every sublayer comes through the read-out LEARN, a 7x7 output through FC; layers that double their input can be
    read out through FC alone. Raises DeviceError.
    """
    who = stick.device_description
    changed = check_file(answer, data, name)
    if not answer.sublayers:
        return changed, f"{who}, by the file's digest alone (the chip's arithmetic is unknown here)"
    network = dat.read_network(data, activation_bit_mode=answer.activation_bit_mode, name=name)
    problems = _same_sublayers(answer, network, name)
    if problems:
        return problems + changed, who
    doubled = any(layer.upsample_enable for layer in network.layers)
    if doubled:
        who += ", the output alone (maps of layers that double their input cannot be read out)"
    for expected in answer.images:
        maps: list[Sequence[npt.NDArray[Any]]] = []
        outputs: list[npt.NDArray[Any]] = []
        for seed in expected.seeds:
            image = known_image(seed, network.input_shape)
            maps += [] if doubled else [stick.layer_outputs(image, "learn")]
            if doubled or network.output_shape[1] == spec.FC_READOUT_SIZE:
                outputs.append(stick.layer_outputs(image, "fc")[0])
        found = Images(
            expected.seeds, tuple(map(_digest, zip(*maps, strict=True))), _digest(outputs) if outputs else ""
        )
        problems = problems or _wrong(expected, network.convolutions, found)
    if problems and not changed:
        problems.append(f"{name}: the file is intact, so it is the stick ({who}) that computes something else.")
    return problems + changed, who


def emulator_of(answer: KnownAnswer, data: bytes, name: str, engine: str = "auto") -> Emulator:
    """Return the emulator of `decoded_as`. Raises DatError, and NetworkError where the chip's arithmetic is unknown."""
    decoded = decoded_as(answer, data, name)
    return Emulator(decoded.network, decoded.weights, engine=engine)


def decoded_as(answer: KnownAnswer, data: bytes, name: str) -> dat.Dat:
    """Return network and integers of the .DAT `data`; ten-bit output and fill of upsampling are as the answer says.

    Raises DatError.
    """
    decoded = dat.decode(data, activation_bit_mode=answer.activation_bit_mode, name=name)
    layers = decoded.network.layers
    if len(layers) == len(answer.upsample_modes):
        layers = tuple(
            replace(layer, upsample_mode=mode) for layer, mode in zip(layers, answer.upsample_modes, strict=True)
        )
    return replace(decoded, network=replace(decoded.network, layers=layers))


def _digests(emulator: Emulator, seeds: Sequence[str]) -> Images:
    maps: list[list[npt.NDArray[Any]]] = []
    outputs = []
    for seed in seeds:
        image = known_image(seed, emulator.network.input_shape)
        maps.append([codes[0] for _, codes in emulator.sublayers(image[None])])
        result = maps[-1][-1].transpose(1, 2, 0)[None]
        if emulator.network.convolutions[-1].pooled:
            result = arithmetic.pool(result, emulator.network.sampling_method)
        outputs.append(result[0].transpose(2, 0, 1))
    return Images(tuple(seeds), tuple(map(_digest, zip(*maps, strict=True))), _digest(outputs))


def _digest(maps: Iterable[npt.NDArray[Any]]) -> str:
    """Return the digest of some maps in a row; of one map it is `digest_of_codes`."""
    total = hashlib.sha256()
    for codes in maps:
        total.update(np.ascontiguousarray(codes, "<u2" if codes.dtype.itemsize > 1 else np.uint8).data)
    return total.hexdigest()


def _same_sublayers(answer: KnownAnswer, network: Network, name: str) -> list[str]:
    if len(answer.sublayers) == len(network.convolutions):
        return []
    return [
        sentence(
            name,
            "has another number of sublayers than its known answer",
            expected=len(answer.sublayers),
            received=len(network.convolutions),
        )
    ]


def _wrong(answer: Images, convolutions: Sequence[Convolution], found: Images) -> list[str]:
    """Return a sentence for the first wrong sublayer, or else for a wrong output; those found may be empty."""
    output = found.output
    wrong = [
        c for c, ours, theirs in zip(convolutions, answer.sublayers, found.sublayers, strict=False) if ours != theirs
    ]
    if wrong:
        first = wrong[0]
        text = sentence(
            first.path,
            "is the first sublayer whose codes of the known image are wrong",
            expected=f"SHA-256 {answer.sublayers[first.index][:16]}...",
            received=f"{found.sublayers[first.index][:16]}...",
        )
        return [f"{text} {len(wrong)} of {len(convolutions)} sublayers are wrong."]
    if output and output != answer.output:
        return [
            sentence(
                "output",
                "its codes of the known image are wrong, after the pooling of the last layer",
                expected=f"SHA-256 {answer.output[:16]}...",
                received=f"{output[:16]}...",
            )
        ]
    return []


def _parse(value: object, name: str) -> KnownAnswer:
    def refuse(key: str, expected: str) -> ModelFileError:
        return ModelFileError(
            sentence(f"{name}, {KEY}", f'"{key}" is wrong', expected=expected, fix="convert the checkpoint again")
        )

    if not isinstance(value, Mapping):
        raise refuse(KEY, "a JSON object")

    def text(key: str) -> str:
        found = value.get(key)
        if not isinstance(found, str) or len(found) > _MAX_TEXT or not found.isprintable():
            raise refuse(key, f"a text of at most {_MAX_TEXT} characters")
        return found

    def digest(key: str, found: object) -> str:
        if not isinstance(found, str) or not _DIGEST.fullmatch(found):
            raise refuse(key, "64 hex digits")
        return found

    def further() -> Images | None:
        if "more" not in value:
            return None
        more = value["more"] if isinstance(value["more"], Mapping) else {}
        seeds, maps = more.get("seeds"), more.get("sublayers")
        if (
            not isinstance(seeds, list)
            or not isinstance(maps, list)
            or not 0 < len(seeds) <= MOST_IMAGES
            or not all(isinstance(seed, str) and len(seed) <= _MAX_TEXT for seed in seeds)
        ):
            raise refuse("more", f"at most {MOST_IMAGES} seeds, a digest for each sublayer and one for the output")
        if not isinstance(sublayers, list) or len(maps) != len(sublayers):
            raise refuse("more", "as many sublayers as of the first image")
        return Images(tuple(seeds), tuple(digest("more", one) for one in maps), digest("more", more.get("output")))

    sublayers, modes, bits = value.get("sublayers"), value.get("upsample modes"), value.get("activation bit mode")
    if not isinstance(sublayers, list) or len(sublayers) > _MAX_SUBLAYERS:
        raise refuse("sublayers", "a digest for each sublayer")
    if (
        not isinstance(modes, list)
        or len(modes) > spec.MAX_MAJOR_LAYERS
        or not {*map(str, modes)} <= set(spec.UPSAMPLE_MODES)
    ):
        raise refuse("upsample modes", '"repeat" or "zero" for each major layer')
    if isinstance(bits, bool) or bits not in (0, 1):
        raise refuse("activation bit mode", "0 or 1")
    return KnownAnswer(
        seed=text("seed"),
        dat=digest("dat", value.get("dat")),
        sublayers=tuple(digest("sublayers", found) for found in sublayers),
        output=digest("output", value.get("output")) if sublayers else "",
        activation_bit_mode=int(bits),
        upsample_modes=tuple(map(str, modes)),
        kit_version=text("kit version"),
        stage=text("stage"),
        parent=text("parent checkpoint"),
        more=further(),
    )
