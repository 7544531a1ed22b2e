"""GtiModel: a network on a stick, real or in software. Open, evaluate frames, release.

    with GtiModel("nets/2801_digits.model", device="auto") as model:
        codes = model.evaluate(image)          # image: uint8 [H,W,C], 8-bit pixels in the chip's channel order (BGR)
        print(model.device_description)

Everything about USB is in the transports, recovery is in `link.py`; this module knows files, images and read-out modes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gti.chip.loaded_model import LoadedModel, load_model
from gti.chip.spec import MAX_CODE, MAX_CODE_TEN_BIT
from gti.chip.usb import devices
from gti.chip.usb.link import Frame, Link
from gti.chip.usb.lock import DeviceLock
from gti.chip.usb.transport import (
    VIRTUAL_SETTINGS,
    DeviceInfo,
    Selection,
    Settings,
    TransferError,
    Transport,
    parse_device,
)
from gti.chip.wire import protocol, ten_bit
from gti.errors import DeviceError, FormatError, GtiError, UsageError, sentence

if TYPE_CHECKING:
    from gti.chip.usb.trace import RecordingBackend

log = logging.getLogger(__name__)

_FC_SHIFT = 3  # FC read-out: 8-bit values whose low 3 bits are zero (user guide, output scaledown 3)


class GtiModel:
    """One .model or .dat (a file, or loaded already) in one stick; not for use by two threads at a time.

    `device`: auto | usb | usb:<serial or index> | virtual | eusb:<serial or sg node>; auto is a real dongle if one
    answers a frame, else the stick in software, and `device_description` says which and why. `mode`: a read-out mode,
    name or number; default that of the file. `settings`: what is assumed about the stick (docs/device.md).
    `transport`: one that is already made, in place of `device`; `backend`: a pyusb backend in place of libusb.
    `record`: a file for every USB transfer of the session; the device `replay:FILE` plays it back.

    Raises FormatError for the file, UsageError for wrong arguments, DeviceError when there is no stick.
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
    ) -> None:
        self._recorder: RecordingBackend | None = None
        self._lock: DeviceLock | None = None
        self._link: Link | None = None
        self._warned: set[str] = set()
        self._model = path if isinstance(path, LoadedModel) else load_model(Path(path))
        self.mode = protocol.parse_mode(self._model.mode if mode is None else mode)
        self._settings = settings
        self._record = record
        try:
            self._open(device, transport, backend)
        except BaseException:
            self.release()
            raise

    # Opening

    def _open(self, device: str, transport: Transport | None, backend: Any) -> None:
        selection = parse_device(device)
        if transport is not None:
            self._attach(transport, self._settings or Settings(), transport.description)
        elif selection.kind == "replay":
            self._attach_replay(selection.key)
        elif selection.kind == "virtual":
            self._attach_virtual(selection.key, "")
        elif selection.kind == "eusb":
            settings = self._model.eusb_settings(self._settings or Settings())
            backend = self._recorded(backend, device, settings)
            chosen, self._lock = devices.eusb_transport(selection.key, settings, backend)
            self._attach(chosen, settings, chosen.description)
        elif selection.kind == "usb":
            self._attach_usb(devices.find_stick(selection.key or self._model.device_key, backend), backend)
        else:
            self._attach_any(backend)

    def _recorded(self, backend: Any, device: str, settings: Settings) -> Any:
        """Return `backend`, with a recorder around it where one is asked for."""
        if self._record is None:
            return backend
        from gti.chip.usb.trace import RecordingBackend
        from gti.chip.usb.usb_bus import libusb

        session = {"device": device, "settings": asdict(settings)}
        self._recorder = RecordingBackend(libusb() if backend is None else backend, self._record, session)
        return self._recorder

    def _attach_replay(self, path: str) -> None:
        from gti.chip.usb.trace import ReplayBackend

        replay = ReplayBackend(path)
        try:
            settings = Settings(**replay.session["settings"])
            selection = parse_device(replay.session["device"])
        except (KeyError, TypeError, AttributeError, UsageError):
            raise FormatError(sentence(path, "is a recording of another version of the kit")) from None
        kind = "eusb" if selection.kind == "eusb" or selection.key == "eusb" else "usb"
        transport = devices.transport_on(replay, kind, settings, "" if selection.kind == "virtual" else selection.key)
        self._attach(transport, settings, f"replay of {transport.description} from {path}")

    def _attach_any(self, backend: Any) -> None:
        reasons = []
        try:
            sticks = devices.list_sticks(backend)
        except DeviceError as problem:
            log.info("no real stick: %s", problem)
            sticks = []
        for info in sticks:
            try:
                self._attach_usb(info, backend)
                self._probe()
                return
            except DeviceError as problem:
                self.release()
                reasons.append(str(problem))
                log.warning("the stick in software is used, because: %s", problem)
        self._attach_virtual("", "; ".join(reasons))

    def _attach_usb(self, info: DeviceInfo, backend: Any) -> None:
        settings = self._settings or Settings()
        self._lock = devices.lock_for(info)
        key = info.serial or str(info.index)
        if self._record is not None:
            backend = self._recorded(backend, f"usb:{key}", settings)
            info = devices.find_stick(key, backend)  # once more, so that the recording begins with the list
        self._attach(devices.usb_transport(info, settings, backend), settings, info.name)

    def _attach_virtual(self, kind: str, reason: str) -> None:
        settings = self._settings or VIRTUAL_SETTINGS
        description = f"virtual stick (emulator, {devices.emulator_engine()})"
        if reason:
            description += f", because: {reason}"
        transport = devices.virtual_transport(
            Selection("virtual", kind),
            settings,
            lambda backend: self._recorded(backend, f"virtual:{kind or 'ft601'}", settings),
        )
        self._attach(transport, settings, description)

    def _attach(self, transport: Transport, settings: Settings, description: str) -> None:
        if self._model.ten_bit and not settings.ten_bit_layout:
            raise DeviceError(
                sentence(
                    self._model.name,
                    "has ten-bit activations in its last layer, and how a stick delivers them is unknown",
                    fix="use --device virtual, or set ten_bit_layout to halves or pairs to try a layout",
                )
            )
        self.device_description = description
        self._settings_in_use = settings
        self._link = Link(transport, self._model.dat, self._model.planes, settings, self._check)
        try:
            self._link.prepare()
        except BaseException:
            self._link.close()
            self._link = None
            raise

    def _probe(self) -> None:
        # A bridge of this vendor id need not have a chip behind it: only a frame that comes back tells.
        link = self._opened()
        link.start(link.encode(np.zeros((self._model.planes, self._model.size, self._model.size), np.uint8), self.mode))
        link.finish()

    # Frames

    def evaluate(self, image: npt.NDArray[np.uint8], last_relu_cap: float = float(MAX_CODE)) -> npt.NDArray[np.float32]:
        """Return the output of the chip, float32 [1,H,W,C]: codes 0..31 (ten-bit: 0..1023) scaled to 0..last_relu_cap.

        `image`: uint8 [H,W,C], 8-bit pixels in the chip's channel order. Raises ImageError for other arrays,
        DeviceError when no result can be had, UsageError when the mode delivers several maps.
        """
        return next(self.evaluate_many([image], last_relu_cap))

    def evaluate_many(
        self, images: Iterable[npt.NDArray[np.uint8]], last_relu_cap: float = float(MAX_CODE)
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Yield `evaluate` of each image in order; the next image is encoded while the chip computes."""
        if len(self._read_out(self.mode).sets) != 1:
            raise UsageError(
                sentence(
                    f"mode {self.mode}",
                    "delivers the maps of several layers",
                    expected="mode fc or single",
                    fix="use layer_outputs, or open the model with mode=0",
                )
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
        self, images: Iterable[npt.NDArray[np.uint8]], mode: int
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

    def _codes(self, data: bytes, mode: int) -> list[npt.NDArray[Any]]:
        read_out = self._read_out(mode)
        maps: list[npt.NDArray[Any]] = list(read_out.unpack(data))
        if read_out.bits == 8:
            maps = [values >> _FC_SHIFT for values in maps]
        if self._model.ten_bit:
            last = len(self._model.header.layers) - 1
            layout = self._settings_in_use.ten_bit_layout
            maps = [
                ten_bit.join_codes(values, layout) if one.major == last else values
                for values, one in zip(maps, read_out.sets, strict=True)
            ]
        return maps

    def _read_out(self, mode: int) -> protocol.ReadOut:
        """Return what `mode` delivers, or refuse what this network cannot deliver."""
        upsampled = self._model.upsampled
        last = len(self._model.header.layers) - 1
        if upsampled and (mode != protocol.Mode.FC or last in upsampled):
            raise DeviceError(
                sentence(
                    f"{self._model.name}, major {upsampled[0] + 1}",
                    "doubles its input, and how a stick delivers the maps of such layers is unknown",
                    expected="the FC read-out (mode 0) of a last layer that does not double its input",
                    fix="use scripts/model_tool.py run for the maps, it needs no stick",
                )
            )
        return protocol.read_out(self._model.header, mode)

    def _check(self, frame: Frame, data: bytes) -> None:
        """Raise TransferError for a result that no chip with this network can have computed."""
        read_out = protocol.read_out(self._model.header, frame.mode)
        if self._settings_in_use.check_constant and data.count(data[:1]) == len(data):
            self._check_constant(frame, data, read_out)
        low_bits = read_out.bits == 8 and self._settings_in_use.check_low_bits
        if low_bits and any((values & 7).any() for values in read_out.unpack(data)):
            raise TransferError(
                "checking", "the low 3 bits of an FC result are not zero (setting check_low_bits turns this off)"
            )

    def _check_constant(self, frame: Frame, data: bytes, read_out: protocol.ReadOut) -> None:
        try:
            expected = self._model.emulate(frame.planes, frame.mode, self._settings_in_use.ten_bit_layout or "halves")
        except GtiError as problem:
            self._warn(f"every byte of a result is 0x{data[0]:02x}, and the emulator cannot tell whether so: {problem}")
            return
        same = all(
            np.array_equal(ours, theirs)
            for ours, theirs in zip(read_out.unpack(expected), read_out.unpack(data), strict=True)
        )
        if not same:
            raise TransferError(
                "checking", f"every byte of the result is 0x{data[0]:02x}, the emulator computes something else"
            )
        self._warn(f"every value of a result is {data[0]}, and the emulator agrees: is the network dead?")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s: %s", self.device_description, text)

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
            raise DeviceError(sentence(self._model.name, "was released", fix="open the model again"))
        return self._link

    def release(self) -> None:
        """Give the stick back; safe to call twice."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> GtiModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
