"""What the driver knows of a .model or bare .dat before it talks to a stick: chip blob, mode, shape of images.

Only the header of the .DAT is looked at, so that a stick gets every file as it is; the emulator decodes it when asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gti.chip.wire import protocol
from gti.chip.wire.image_arrays import check_image_array
from gti.errors import FormatError, ModelFileError, NetworkError
from gti.files import is_whole, read_bytes

if TYPE_CHECKING:
    from gti.chip.formats.model_file import ModelFile
    from gti.chip.host.host_layers import HostLayers
    from gti.chip.host.preprocessing import Preprocessing

_MAX_FILE_BYTES = 2**30  # of gti/chip/formats/model_file.py, whose import waits for a container


@dataclass
class LoadedModel:
    """One network for the chip and what its container says about using it."""

    name: str  # of the file, for messages
    dat: bytes
    header: protocol.Header
    mode: int = 0
    device: dict[str, Any] = field(default_factory=dict)  # the "device" object of the GTICNN layer
    container: ModelFile | None = None  # where the file is one
    upsample_modes: tuple[str, ...] = ()  # of the major layers, where the container tells
    activation_bit_mode: int | None = None  # 1 = ten-bit, 0 = not, None: as the decoder concludes
    _host: HostLayers | None = None  # once they are needed

    @property
    def size(self) -> int:
        """Height = width of the image."""
        return self.header.layers[0].image_size

    @property
    def planes(self) -> int:
        """Number of planes of the image."""
        return self.header.planes

    @property
    def upsampled(self) -> tuple[int, ...]:
        """Indices of the major layers that double their input."""
        return self.header.upsampled

    @cached_property
    def ten_bit(self) -> bool:
        """Whether the last layer has ten-bit activations: its register then counts every channel twice."""
        if self.activation_bit_mode is not None:
            return self.activation_bit_mode == 1
        if not self.header.last_reads_as(ten_bit=True):
            return False
        from gti.chip.formats import dat

        try:
            return dat.read_network(self.dat).activation_bit_mode == 1
        except FormatError:
            return False

    def refuse_broken_chain(self) -> None:
        """Raise NetworkError where a major layer does not get images of its size: a file holds that all the same."""
        broken = self.header.broken_chain()
        if broken:
            i, size = broken
            raise NetworkError(
                f"{self.name}, major {i + 1}",
                "its image size is not what the major layer before delivers, and what a chip computes then is unknown",
                expected=size,
                received=self.header.layers[i].image_size,
                fix="correct image_size, pooling or upsample_enable in the dat.json and convert it again",
            )

    def to_planes(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return `image`, uint8 [H,W,C], as planes [C,H,W]; raises ImageError that says what is wrong with it."""
        check_image_array(image, self.planes, self.size)
        return image.transpose(2, 0, 1)

    def host_layers(self) -> HostLayers:
        """Return the host layers of the file. Raises ModelFileError when it holds none."""
        if self._host is None:
            from gti.chip.host import unknown
            from gti.chip.host.host_layers import HostLayers

            container = self.full_container()
            self._host = HostLayers(container.layers, self.name, unknown.from_header(container.header, self.name))
        return self._host

    def preprocessing(self) -> Preprocessing:
        """Return what must happen to a picture first, as `preprocessing.contract` says; errors as `host_layers`."""
        from gti.chip.host.preprocessing import contract

        order = self.host_layers().input_order
        return contract(self.full_container().header, self.name, self.size, self.planes, order)

    def full_container(self) -> ModelFile:
        """Return the container that holds host layers too. Raises ModelFileError for the chip's layers alone."""
        if self.container is None:
            raise ModelFileError(
                self.name,
                "holds the layers of the chip alone",
                expected="a full .model with host layers and labels",
                fix="make one with addon/convert_full.py of the project or with gti teach, or use evaluate",
            )
        return self.container

    def host_result(
        self, image: npt.NDArray[np.uint8], chip: Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[np.uint8]]]
    ) -> dict[str, Any]:
        """Return the result of the whole model; `chip`: image -> maps as the stick delivers them.

        Raises ModelFileError when the file holds no host layers.
        """
        return self.host_layers().run(image, chip).result


def load_model(path: Path) -> LoadedModel:
    """Return the network of a .model (its one GTICNN layer) or of a bare .dat; the content tells which it is.

    Raises FormatError (ModelFileError, DatError) for anything else, and for a network on several chips.
    """
    parts = load_chips(path)
    if len(parts) > 1:
        raise ModelFileError(
            str(path),
            "holds a network for several chips in a row",
            expected="one GTICNN layer",
            received=len(parts),
            fix="open it with gti.chip.runtime.chain.open_model",
        )
    return parts[0]


def load_chips(path: Path) -> list[LoadedModel]:
    """Return the networks of a .model, one for each GTICNN layer in their order, or that of a bare .dat.

    Raises FormatError as `load_model`.
    """
    data = read_bytes(path, limit=_MAX_FILE_BYTES)
    name = str(path)
    if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _from_container(data, name)
    return [LoadedModel(name, data, protocol.Header.parse(data, name))]


def _from_container(data: bytes, name: str) -> list[LoadedModel]:
    from gti.chip.formats import model_file, upsampling

    container = model_file.parse(data, name)
    chips = [layer for layer in container.layers if layer.operation == "GTICNN"]
    if not chips or any(chip.blob is None for chip in chips):
        raise ModelFileError(
            name, "holds no network for the chip", expected="a GTICNN layer with data", fix="convert it again"
        )
    result = []
    for number, chip in enumerate(chips, 1):
        mode, device = chip.entry.get("mode", 0), chip.entry.get("device")
        if not is_whole(mode):
            raise ModelFileError(name, "has a mode that is no number", expected="0..6", received=mode)
        dat = bytes(chip.blob or b"")
        layer = f"{name}, layer GTICNN" + (f" of chip {number}" if len(chips) > 1 else "")
        header = protocol.Header.parse(dat, layer)
        wishes, modes = device if isinstance(device, dict) else {}, upsampling.modes_in(chip.entry)
        result.append(LoadedModel(name, dat, header, mode, wishes, container, modes))
    return result
