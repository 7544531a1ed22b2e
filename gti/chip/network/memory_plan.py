"""Where the chip keeps activations: the ping-pong plan of input and output addresses (docs/dat_format.md section 4)."""

from __future__ import annotations

from typing import NamedTuple

from gti.chip import spec
from gti.chip.network.types import Network

BLOCK_BYTES = spec.BLOCK_UNITS * spec.ADDRESS_UNIT
MEMORY_BYTES = spec.MEMORY_UNITS * spec.ADDRESS_UNIT


class Placement(NamedTuple):
    """Where one sublayer reads and writes; addresses in units of 3136 bytes, sizes in bytes (1 per activation)."""

    in_address: int
    out_address: int
    size_in: int
    size_out: int

    @property
    def fits(self) -> bool:
        """Whether input and output lie inside the memory, and the input below the output where that is checked."""
        if self.in_address:
            return self.size_in + self.size_out <= MEMORY_BYTES
        start = self.out_address * spec.ADDRESS_UNIT
        return self.size_in <= start and start + self.size_out <= MEMORY_BYTES


def address_plan(network: Network) -> list[Placement]:
    """Return the placement of every sublayer in network order, extra passes included.

    Placements that do not fit (`Placement.fits`) are returned like the others. Sizes follow `image_size`:
    upsampling and ten-bit outputs do not enter the plan. Source: docs/dat_format.md section 4.
    """
    plan: list[Placement] = []
    address = 0
    size_in = network.layers[0].image_size ** 2 * spec.ENGINES if network.layers else 0
    for major, layer in enumerate(network.layers, 1):
        full = layer.image_size**2 * -(-layer.output_channels // spec.ENGINES) * spec.ENGINES
        for sub in range(1, layer.chip_sublayers + 1):
            size_out = full // 4 if layer.pooling and sub == layer.chip_sublayers else full
            if address:
                out = 0
            elif sub == 1:
                out = spec.BLOCK_UNITS * max(1, -(-size_in // BLOCK_BYTES))
            else:
                out = 2 * spec.BLOCK_UNITS if major == 2 else spec.BLOCK_UNITS
            plan.append(Placement(address, out, size_in, size_out))
            address, size_in = out, size_out
    return plan


def layer_addresses(network: Network) -> list[tuple[int, int]]:
    """Return the (input, output) address of every major layer: those of its first sublayer, as the file stores them.

    `in_address` and `out_address` of a layer override the plan.
    """
    plan = address_plan(network)
    result: list[tuple[int, int]] = []
    first = 0
    for layer in network.layers:
        place = plan[first]
        result.append(
            (
                place.in_address if layer.in_address is None else layer.in_address,
                place.out_address if layer.out_address is None else layer.out_address,
            )
        )
        first += layer.chip_sublayers
    return result
