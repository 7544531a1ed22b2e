"""The JSON pair of a new network: `<chip>_<net>_dat.json` for the chip, `<chip>_<net>_model.json` for the container."""

from __future__ import annotations

from typing import Any

from gti.chip.network import json_form as networks
from gti.chip.network.rules import Violation, violations
from gti.chip.network.types import Network
from gti.chip.spec import FC_READOUT_SIZE, FC_SHIFT
from gti.chip.wire.registers import Mode
from gti.errors import NetworkError
from gti.importing import advice
from gti.importing.architecture import Architecture


def problems(architecture: Architecture) -> list[Violation]:
    """Return everything that keeps a model from the chip: its layers first, then the chip's rules."""
    return [*architecture.problems, *violations(architecture.network)]


def templates(architecture: Architecture, *, net: str, chip: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the (dat.json, model.json) values of `architecture` for the files of `net`; shifts are 0 until conversion.

    Raises NetworkError that lists all the reasons, where the chip cannot run it.
    """
    found = problems(architecture)
    if found:
        raise NetworkError(advice.text(f"model {architecture.name}", found), violations=found)
    return networks.to_json(architecture.network), model_json(architecture.network, net=net, chip=chip)


def model_json(network: Network, *, net: str, chip: str) -> dict[str, Any]:
    """Return the model.json of a network: image reader and chip, for the host layers of `gti/model/<net>.py`."""
    height, width, channels = network.input_shape
    output_channels, output_height, output_width = network.output_shape
    fc = output_height == FC_READOUT_SIZE
    if not fc:
        # The maps before the last pooling, as the chip sends them in the other modes.
        output_height = output_width = network.layers[-1].working_size
    return {
        "name": net,
        "layer": [
            {
                "name": "reader",
                "operation": "IMAGEREADER",
                "data file": None,
                "data offset": None,
                "input format": "CS_BGR24_PLANAR",
                "output format": "CS_BGR24_PLANAR",
                "output width": width,
                "output height": height,
                "output channels": channels,
            },
            {
                "name": "chip",
                "operation": "GTICNN",
                "data file": f"{chip}_{net}.dat",
                "data offset": 0,
                "device": {"chip": chip, "name": None, "type": 0, "emmc delay": 12000},
                "mode": int(Mode.FC if fc else Mode.SINGLE),
                "output scaledown": FC_SHIFT if fc else 0,
                "output width": output_width,
                "output height": output_height,
                "output channels": output_channels,
            },
        ],
    }
