"""What a network costs: filter rows, activation memory, arithmetic, USB traffic and the frame rates these allow.

Numbers only, from a `Network` alone: no weights, no TensorFlow. docs/check.md says how each is counted, and how sure
the ceilings are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gti.chip import spec
from gti.chip.network.file_size import TAPS, file_length, row_count, rows_of
from gti.chip.network.memory_plan import Placement, address_plan
from gti.chip.network.types import Convolution, Network
from gti.chip.wire import protocol
from gti.chip.wire.protocol import FT601, Framing, MapSet, ReadOut


@dataclass(frozen=True)
class SublayerBudget:
    """What one sublayer costs for one image; addresses and sizes in memory units of 3136 activation bytes."""

    convolution: Convolution
    macs: int  # multiply-accumulates
    rows: int  # of 192 bytes in the .DAT
    in_address: int
    out_address: int
    in_units: float
    out_units: float


@dataclass(frozen=True)
class Budget:
    """What a network costs: per sublayer, and for the file and the USB traffic as a whole (bytes of the wire)."""

    network: Network
    sublayers: tuple[SublayerBudget, ...]
    rows: int  # filter rows of the file, extra shortcut passes included
    file_bytes: int
    load_words: int
    frame_words: int  # of a frame that is not the first after a load
    result_words: int
    fc_readout: bool  # the result is 7x7, so mode FC reads it out

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the chip for one image."""
        return sum(sublayer.macs for sublayer in self.sublayers)

    @property
    def peak_units(self) -> float:
        """Highest unit of activation memory in use, of `spec.MEMORY_UNITS`."""
        return max(max(s.in_address + s.in_units, s.out_address + s.out_units) for s in self.sublayers)

    def compute_rate(self, tops: float) -> float:
        """Return the frames per second that `tops` * 10**12 operations per second would allow at best."""
        return tops * 1e12 / (self.macs * spec.OPERATIONS_PER_MAC)

    def usb_seconds(self, bytes_per_second: float, word_bytes: int) -> float:
        """Return the seconds that one frame and its result spend on a bus at `bytes_per_second`."""
        return (self.frame_words + self.result_words) * word_bytes / bytes_per_second


@dataclass(frozen=True)
class HostLayer:
    """A fully connected layer on the host: y = W x + b with W [outputs, inputs] float32."""

    name: str
    inputs: int
    outputs: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.inputs * self.outputs

    @property
    def file_bytes(self) -> int:
        """Bytes of its blob in a .MODEL (docs/model_format.md): two counts, weights and biases."""
        return 8 + 4 * self.outputs * (self.inputs + 1)


def budget(network: Network, *, framing: Framing = FT601) -> Budget:
    """Return what `network` costs. It must fit the chip: check it with `gti.chip.network.json_form.check` first."""
    plan = iter(address_plan(network))
    places: list[Placement] = []
    for layer in network.layers:
        # The extra pass of a pooled shortcut has a place in the plan, but no convolution of its own.
        passes = [next(plan) for _ in range(layer.chip_sublayers)]
        places += passes[: layer.sublayer_number]
    sublayers = tuple(
        SublayerBudget(
            convolution=convolution,
            macs=convolution_macs(convolution),
            rows=rows_of(convolution.output_channels, convolution.input_channels, convolution.coef_bits),
            in_address=place.in_address,
            out_address=place.out_address,
            in_units=place.size_in / spec.ADDRESS_UNIT,
            out_units=place.size_out / spec.ADDRESS_UNIT,
        )
        for convolution, place in zip(network.convolutions, places, strict=True)
    )
    rows = row_count(network)
    size, _, channels = network.input_shape
    readout = result(network)
    return Budget(
        network=network,
        sublayers=sublayers,
        rows=rows,
        file_bytes=file_length(rows),
        load_words=protocol.load_words(file_length(rows), framing),
        frame_words=protocol.frame_words(size, channels, framing),
        result_words=readout.length,
        fc_readout=readout.bits == 8,
    )


def convolution_macs(convolution: Convolution) -> int:
    """Return the multiply-accumulates of one sublayer, borders counted like the middle, real input channels only."""
    c = convolution
    return c.size * c.size * TAPS * c.input_channels * c.output_channels


def result(network: Network) -> ReadOut:
    """Return what the stick delivers: the 7x7 result in FC mode, else the last major layer's maps in 5 bits."""
    channels, size, _ = network.output_shape
    last = network.layers[-1]
    position = len(network.layers) - 1, last.sublayer_number - 1
    if size == spec.FC_READOUT_SIZE:
        return ReadOut(8, spec.POOLED_TILE, (MapSet(*position, last.pooling, channels, size),))
    return ReadOut(5, spec.TILE, (MapSet(*position, False, last.output_channels, last.working_size),))


def host_layers(network: Network, units: Sequence[int]) -> tuple[HostLayer, ...]:
    """Return the chain of fully connected layers with `units` outputs each, behind the chip's flattened result."""
    channels, height, width = network.output_shape
    inputs = channels * height * width
    layers = []
    for i, outputs in enumerate(units, 1):
        layers.append(HostLayer(f"fc{i}", inputs, outputs))
        inputs = outputs
    return tuple(layers)
