"""ChipChain: a network on several sticks in a row, each with its part of it; used like a `GtiModel`.

    with open_model("nets/2801_vgg16.model", device="virtual") as model:
        codes = model.evaluate(image)

The parts are the GTICNN layers of one .MODEL, in their order. While one stick computes an image, the one before it has
the next image already.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.driver import GtiModel
from gti.chip.formats.splitting import next_image
from gti.chip.loaded_model import LoadedModel, load_chips
from gti.chip.spec import MAX_CODE
from gti.chip.usb import devices
from gti.chip.usb.devices import parse_device
from gti.chip.usb.transport import Settings, Transport
from gti.chip.wire import protocol
from gti.chip.wire.protocol import Mode
from gti.chip.wire.registers import OF_EVERY_CHIP
from gti.errors import DeviceError, ModelFileError, UsageError

Image = npt.NDArray[np.uint8]


class ChipChain:
    """Several sticks in a row; not for use by two threads at a time.

    `device`: auto | virtual | usb | usb:<key>,<key>,... | eusb:<key>,<key>,...; a name without keys takes the sticks in
    the order of the bus, auto takes sticks in software when there are not enough. `mode` and `settings` as `GtiModel`;
    `mode` is that of the last chip. `transports`: already made ones, in place of `device`.

    Raises FormatError for the file, UsageError for wrong arguments, DeviceError when a stick is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        *,
        mode: str | int | None = None,
        settings: Settings | None = None,
        transports: Sequence[Transport] | None = None,
    ) -> None:
        self._parts = load_chips(Path(path))
        _check_joints(self._parts)
        self.mode = protocol.parse_mode(self._parts[-1].mode if mode is None else mode)
        self._chips: list[GtiModel] = []
        self._host: Any = None
        self._reason = ""  # why there is no real stick
        try:
            if transports is not None:
                for part, transport in zip(self._parts, transports, strict=True):
                    self._chips.append(GtiModel(part, mode=self._mode_of(part), settings=settings, transport=transport))
            else:
                self._open(device, settings)
        except BaseException:
            self.release()
            raise

    def _open(self, device: str, settings: Settings | None) -> None:
        names, reason = chain_devices(device, len(self._parts))
        try:
            self._attach(names, settings)
        except DeviceError as problem:
            if parse_device(device).kind != "auto" or names[0] == "virtual":
                raise
            self.release()
            reason = str(problem)
            self._attach(["virtual"] * len(self._parts), settings)
        self._reason = reason

    def _attach(self, names: Sequence[str], settings: Settings | None) -> None:
        for part, name in zip(self._parts, names, strict=True):
            self._chips.append(GtiModel(part, name, mode=self._mode_of(part), settings=settings))

    def _mode_of(self, part: LoadedModel) -> Mode:
        return self.mode if part is self._parts[-1] else _handing_on(part)

    # Frames

    def evaluate(self, image: Image, last_relu_cap: float = float(MAX_CODE)) -> npt.NDArray[np.float32]:
        """Return the output of the last chip for one image; see `GtiModel.evaluate`."""
        with closing(self.evaluate_many([image], last_relu_cap)) as results:
            return next(results)

    def evaluate_many(
        self, images: Iterable[Image], last_relu_cap: float = float(MAX_CODE)
    ) -> Generator[npt.NDArray[np.float32], None, None]:
        """Yield `evaluate` of each image in order; all chips are at work at the same time."""
        with ExitStack() as stack:
            yield from self._chips[-1].evaluate_many(self._up_to_last(images, stack), last_relu_cap)

    def layer_outputs(self, image: Image, mode: str | int = "learn") -> list[npt.NDArray[Any]]:
        """Return the maps that a read-out mode of the whole network delivers; see `GtiModel.layer_outputs`.

        learn and sublast: those of every chip, in order. lastmajor, single and fc concern the last chip.
        """
        number = protocol.parse_mode(mode)
        result: list[npt.NDArray[Any]] = []
        for part, chip in zip(self._parts[:-1], self._chips[:-1], strict=True):
            # Those of every chip end with the last sublayer of the part, before its pooling.
            chosen = number if number in OF_EVERY_CHIP else _handing_on(part)
            maps = chip.layer_outputs(image, chosen)
            result += maps if number in OF_EVERY_CHIP else []
            image = _following(maps[-1], part, chosen)
        return result + self._chips[-1].layer_outputs(image, number)

    def raw_maps(self, image: Image) -> list[Image]:
        """Return the maps of the last chip's mode as the stick delivers them; see `GtiModel.raw_maps`."""
        with ExitStack() as stack:
            return self._chips[-1].raw_maps(next(iter(self._up_to_last([image], stack))))

    def full_inference(self, image: Image) -> dict[str, Any]:
        """Return what a full .MODEL says about `image`; see `GtiModel.full_inference`."""
        if self._host is None:
            from gti.chip.host.host_layers import HostLayers

            layers = self._parts[0].full_container().layers
            chips = [index for index, layer in enumerate(layers) if layer.operation == "GTICNN"]
            rest = [layer for index, layer in enumerate(layers) if index not in chips[:-1]]
            self._host = HostLayers(rest, self._parts[0].name)
        result: dict[str, Any] = self._host.run(image, self.raw_maps).result
        return result

    def _up_to_last(self, images: Iterable[Image], stack: ExitStack) -> Iterable[Image]:
        for part, chip in zip(self._parts[:-1], self._chips[:-1], strict=True):
            images = stack.enter_context(closing(_passed_on(chip, part, images)))
        return images

    # Ending

    @property
    def device_description(self) -> str:
        """The sticks in their order."""
        text = f"{len(self._chips)} chips: " + ", then ".join(chip.device_description for chip in self._chips)
        return text + (f", because: {self._reason}" if self._reason else "")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return self._chips[0].input_shape

    @property
    def counts(self) -> dict[str, int]:
        """How many frames, loads, faults and recoveries there were, on all sticks together."""
        total: dict[str, int] = {}
        for chip in self._chips:
            for name, number in chip.counts.items():
                total[name] = total.get(name, 0) + number
        return total

    def release(self) -> None:
        """Give all sticks back; twice is no mistake."""
        while self._chips:
            self._chips.pop().release()

    def __enter__(self) -> ChipChain:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def open_model(
    path: str | os.PathLike[str],
    device: str = "auto",
    *,
    mode: str | int | None = None,
    settings: Settings | None = None,
    record: str | os.PathLike[str] | None = None,
) -> GtiModel | ChipChain:
    """Open a .model or .dat on as many sticks as it has parts; errors as `GtiModel` and `ChipChain`.

    `record`: a file for every USB transfer, of a network on one stick.
    """
    parts = load_chips(Path(path))
    if len(parts) == 1:
        return GtiModel(parts[0], device, mode=mode, settings=settings, record=record)
    if record is not None:
        raise UsageError("--record", "writes the session of one stick", received=f"{len(parts)} in a row")
    return ChipChain(path, device, mode=mode, settings=settings)


def chain_devices(device: str, count: int) -> tuple[list[str], str]:
    """Return a `--device` text for each of `count` sticks in a row, and why there is no real one ("" if there is).

    Raises UsageError for a text that names another number of sticks, DeviceError when too few are plugged in.
    """
    selection = parse_device(device)
    if selection.kind == "virtual":
        return [device] * count, ""
    if selection.kind == "replay":
        raise UsageError("--device replay", "plays one stick back", expected=f"{count} sticks")
    if selection.key:
        keys = selection.key.split(",")
        if len(keys) != count or len(set(keys)) != count or not all(keys):
            raise UsageError(
                f"--device {device}",
                "names another number of sticks than the file has parts",
                expected=f"{selection.kind}: and {count} different keys with commas between them",
                received=f"{len(set(keys))} keys",
            )
        return [f"{selection.kind}:{key}" for key in keys], ""
    try:
        sticks = devices.list_sticks()
    except DeviceError:
        if selection.kind != "auto":
            raise
        sticks = []
    if len(sticks) >= count:
        return [f"usb:{stick.serial or stick.index}" for stick in sticks[:count]], ""
    if selection.kind == "auto":
        return ["virtual"] * count, f"{len(sticks)} of {count} sticks are plugged in" if sticks else ""
    raise DeviceError(
        "USB",
        "too few sticks are plugged in",
        expected=f"{count}, one for each part of the network",
        received=len(sticks),
        fix="plug in the others, or use --device virtual",
    )


def _passed_on(chip: GtiModel, part: LoadedModel, images: Iterable[Image]) -> Generator[Image, None, None]:
    mode = _handing_on(part)
    results = chip.layer_outputs_many(images, mode)
    with closing(results):
        for (codes,) in results:
            yield _following(codes, part, mode)


def _handing_on(part: LoadedModel) -> Mode:
    """Return the mode in which a chip delivers the input of the next: pooled by itself, where the file selects that."""
    if part.header.layers[-1].pooling:
        own = protocol.read_out(part.header, Mode.FILE_5)
        if own.bits == 5 and all(maps.pooled for maps in own.sets):
            return Mode.FILE_5
    return Mode.SINGLE


def _following(codes: npt.NDArray[np.uint8], part: LoadedModel, mode: Mode) -> Image:
    pooled = part.header.layers[-1].pooling and mode != Mode.FILE_5
    return next_image(codes, pooled, part.header.takes_top_left)


def _check_joints(parts: Sequence[LoadedModel]) -> None:
    for number, (part, following) in enumerate(itertools.pairwise(parts), 1):
        last = part.header.layers[-1]
        size = last.image_size * 2 if len(part.header.layers) - 1 in part.upsampled else last.image_size
        delivered = (size // 2 if last.pooling else size, last.output_channels)
        if delivered != (following.size, following.planes):
            raise ModelFileError(
                parts[0].name,
                f"chips {number} and {number + 1} do not fit together",
                expected=f"an input of {delivered[0]}x{delivered[0]}x{delivered[1]}",
                received=f"{following.size}x{following.size}x{following.planes}",
                fix="convert the network again",
            )
