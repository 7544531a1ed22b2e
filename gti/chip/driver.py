"""GtiModel: a network on a stick, real or in software. Open, evaluate frames, release.

    with GtiModel("nets/2801_digits.model", device="auto") as model:
        codes = model.evaluate(image)          # image: uint8 [H,W,C], 8-bit pixels in the chip's channel order (BGR)
        print(model.device_description)

Finding and opening sticks is in `usb/devices.py`, recovery in `usb/link.py`; this module knows files, images and
read-out modes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gti.chip.loaded_model import LoadedModel, load_model
from gti.chip.spec import MAX_CODE, MAX_CODE_TEN_BIT
from gti.chip.usb import devices
from gti.chip.usb.checks import ResultChecks
from gti.chip.usb.link import Frame, Link
from gti.chip.usb.transport import Request, Settings, Stick, Transport
from gti.chip.wire import protocol, ten_bit
from gti.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from gti.chip.virtual.memory import ExpectedResults


class GtiModel:
    """One .model or .dat (a file, or loaded already) in one stick; not for use by two threads at a time.

    `device`: auto | usb | usb:<serial or index> | virtual | eusb:<serial or sg node>; auto is a real dongle if one
    answers a frame, else the stick in software, and `device_description` says which and why. `mode`: a read-out mode,
    name or number; default that of the file. `settings`: what is assumed about the stick (docs/device.md).
    `transport`: one that is already made, in place of `device`; `backend`: a pyusb backend in place of libusb.
    `record`: a file for every USB transfer of the session; the device `replay:FILE` plays it back. `software`: whether
    auto may take the stick in software.

    Raises FormatError for the file, NetworkError where its sizes do not chain and nobody knows what a chip computes,
    UsageError for wrong arguments, DeviceError when there is no stick.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | LoadedModel,
        device: str = "auto",
        *,
        mode: str | int | None = None,
        settings: Settings | None = None,
        transport: Transport | None = None,
        backend: Any = None,
        record: str | os.PathLike[str] | None = None,
        software: bool = True,
    ) -> None:
        self._link: Link | None = None
        self._model = path if isinstance(path, LoadedModel) else load_model(Path(path))
        self.mode = protocol.parse_mode(self._model.mode if mode is None else mode)
        self._model.refuse_broken_chain()
        if transport is not None:
            self._stick = Stick(transport, settings or Settings(), transport.description)
            self._link = self._start(self._stick, False)
        else:
            request = Request(settings, backend, record, self._model.device, self._model.upsample_modes)
            self._stick, self._link = devices.connect(device, request, self._start, software=software)
        self.device_description = self._stick.description

    def _start(self, stick: Stick, prove: bool) -> Link:
        """Return the link to a stick, open and loaded; `prove`: that it has a chip, which answers a frame."""
        settings = stick.settings
        if self._model.ten_bit and not settings.ten_bit_layout:
            raise DeviceError(
                self._model.name,
                "has ten-bit activations in its last layer, and how a stick delivers them is unknown",
                fix="use --device virtual, or set ten_bit_layout to halves or pairs to try a layout",
            )
        checks = ResultChecks(self._model.header, settings, self._emulation(settings), stick.description)
        link = Link(stick.transport, self._model.dat, self._model.planes, settings, checks)
        try:
            if prove:  # a bridge of this vendor id need not have a chip behind it; the outcome says what went wrong
                link.fault_level, checks.proving = logging.INFO, True
            link.prepare()
            if prove:
                dark = np.zeros((self._model.planes, self._model.size, self._model.size), np.uint8)
                link.start(link.encode(dark, self.mode))
                link.finish()
                link.fault_level, checks.proving = logging.WARNING, False
        except BaseException:
            link.close()
            raise
        return link

    def _emulation(self, settings: Settings) -> Callable[[Frame], bytes]:
        """Return what computes the chip bytes of a frame; decoder and emulator wait until it is called."""
        twin: list[ExpectedResults] = []
        model = self._model  # not self: what is in a circle waits for the collector, with the stick's lock

        def emulate(frame: Frame) -> bytes:
            from gti.chip.emulator.behaviours import parse
            from gti.chip.virtual.memory import ExpectedResults

            if not twin:
                layout = settings.ten_bit_layout or "halves"
                behaviours = parse(settings.behaviours)
                twin.append(
                    ExpectedResults(
                        model.dat, model.header, model.name, layout, model.upsample_modes, behaviours=behaviours
                    )
                )
            return twin[0].result(frame.planes, frame.mode)

        return emulate

    # Frames

    def evaluate(
        self,
        image: npt.NDArray[np.uint8] | None = None,
        last_relu_cap: float | None = float(MAX_CODE),
        activation_bits: int | None = None,
        *,
        numpy_array: npt.NDArray[np.uint8] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the output of the chip, float32 [1,H,W,C]: codes 0..31 (ten-bit: 0..1023) scaled to 0..last_relu_cap.

        `image`: uint8 [H,W,C] or [1,H,W,C], 8-bit pixels in the chip's channel order. A cap of None is 31, that of
        fused networks. `numpy_array` and `activation_bits` are the old kit's: another name of `image`, and 5 or 10 as
        the network has them. Raises ImageError for other arrays, DeviceError when no result can be had, UsageError when
        the mode delivers several maps and for arguments that contradict the network or each other.
        """
        if (image is None) == (numpy_array is None):
            raise UsageError("evaluate", "takes one image", expected="evaluate(image)", received="both or none")
        bits = 10 if self._model.ten_bit else 5
        if activation_bits not in (None, bits):
            raise UsageError(
                "activation_bits",
                "is not that of the network",
                expected=bits,
                received=activation_bits,
                fix="leave it out",
            )
        image = numpy_array if image is None else image
        if isinstance(image, np.ndarray) and image.ndim == 4 and len(image) == 1:
            image = image[0]
        assert image is not None
        return next(self.evaluate_many([image], float(MAX_CODE) if last_relu_cap is None else last_relu_cap))

    def evaluate_many(
        self, images: Iterable[npt.NDArray[np.uint8]], last_relu_cap: float = float(MAX_CODE)
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Yield `evaluate` of each image in order; the next image is encoded while the chip computes."""
        if len(self._read_out(self.mode).sets) != 1:
            raise UsageError(
                f"mode {self.mode}",
                "delivers the maps of several layers",
                expected="mode fc or single",
                fix="use layer_outputs, or open the model with mode=0",
            )
        top = MAX_CODE_TEN_BIT if self._model.ten_bit else MAX_CODE
        scale = np.float32(last_relu_cap / top)
        for (codes,) in self._outputs(images, self.mode):
            yield codes.transpose(1, 2, 0)[None].astype(np.float32) * scale

    def layer_outputs(self, image: npt.NDArray[np.uint8], mode: str | int = "learn") -> list[npt.NDArray[Any]]:
        """Return the codes of the maps that a read-out mode delivers, uint8 [C,H,W] each, in its order.

        learn: every sublayer before pooling; sublast, lastmajor, single and fc: docs/usb_protocol.md section 7. A
        ten-bit last layer is uint16. Errors as `evaluate`.
        """
        return next(self.layer_outputs_many([image], mode))

    def layer_outputs_many(
        self, images: Iterable[npt.NDArray[np.uint8]], mode: str | int = "learn"
    ) -> Generator[list[npt.NDArray[Any]], None, None]:
        """Yield `layer_outputs` of each image in order; the next image is encoded while the chip computes."""
        return self._outputs(images, protocol.parse_mode(mode))

    def _outputs(
        self, images: Iterable[npt.NDArray[np.uint8]], mode: protocol.Mode
    ) -> Generator[list[npt.NDArray[Any]], None, None]:
        self._read_out(mode)
        link = self._opened()
        started: Frame | None = None
        try:
            for image in images:
                following = link.encode(self._model.to_planes(image), mode)
                data = link.finish() if started is not None else None
                started = None
                link.start(following)
                started = following
                if data is not None:
                    yield self._codes(data, mode)
            if started is not None:
                data, started = link.finish(), None
                yield self._codes(data, mode)
        finally:
            if started is not None:
                link.abandon()

    def _codes(self, data: bytes, mode: protocol.Mode) -> list[npt.NDArray[Any]]:
        read_out = self._read_out(mode)
        maps: list[npt.NDArray[Any]] = list(read_out.unpack(data))
        if read_out.shift:
            maps = [values >> read_out.shift for values in maps]
        if self._model.ten_bit:
            last = len(self._model.header.layers) - 1
            layout = self._stick.settings.ten_bit_layout
            maps = [
                ten_bit.join_codes(values, layout) if one.major == last else values
                for values, one in zip(maps, read_out.sets, strict=True)
            ]
        return maps

    def _read_out(self, mode: protocol.Mode) -> protocol.ReadOut:
        """Return what `mode` delivers, or refuse what this network cannot deliver."""
        upsampled = self._model.upsampled
        last = len(self._model.header.layers) - 1
        if upsampled and (mode != protocol.Mode.FC or last in upsampled):
            raise DeviceError(
                f"{self._model.name}, major {upsampled[0] + 1}",
                "doubles its input, and how a stick delivers the maps of such layers is unknown",
                expected="the FC read-out (mode 0) of a last layer that does not double its input",
                fix="use gti run for the maps, it needs no stick",
            )
        return protocol.read_out(self._model.header, mode)

    # A full model

    def full_inference(self, image: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """Return what a full .MODEL says about `image`, uint8 [H,W,C]: {"result": [{"index", "label", "probability"}]}.

        The chip runs its layers, `host_layers` the others. Raises ModelFileError when the file holds no others.
        """
        return self._model.host_result(image, self.raw_maps)

    def raw_maps(self, image: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
        """Return the maps of the file's own mode as the stick delivers them, uint8 [C,H,W]: FC values are 8-bit."""
        link, read_out = self._opened(), self._read_out(self.mode)
        link.start(link.encode(self._model.to_planes(image), self.mode))
        return read_out.unpack(link.finish())

    # Ending

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return self._model.size, self._model.size, self._model.planes

    @property
    def loaded(self) -> LoadedModel:
        """The file: its header, container and host layers."""
        return self._model

    @property
    def counts(self) -> dict[str, int]:
        """How many frames, loads, faults and recoveries there were."""
        return dict(self._opened().counts)

    def _opened(self) -> Link:
        if self._link is None:
            raise DeviceError(self._model.name, "was released", fix="open the model again")
        return self._link

    def release(self) -> None:
        """Give the stick back; safe to call twice."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._stick.release()

    def __enter__(self) -> GtiModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
