"""How layers fill when they double their input: no bit of a .DAT tells, so the header of a .MODEL does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gti.chip import spec
from gti.chip.network.types import Network

KEY = "upsample modes"  # of a GTICNN entry: "repeat" or "zero" for each major layer of its network
_ANSWER = "known answer"  # an object of the same entry that has the key too
_PLAIN = spec.UPSAMPLE_MODES[0]


def lost(network: Network) -> str:
    """Return a note on what a .DAT of `network` does not tell, or ""."""
    majors = [m for m, layer in enumerate(network.layers, 1) if layer.upsample_enable and layer.upsample_mode != _PLAIN]
    if not majors:
        return ""
    return (
        f"upsample_mode {network.layers[majors[0] - 1].upsample_mode} of major {', '.join(map(str, majors))} is lost in"
        f" the .DAT, which has no place for it; the header of a .MODEL keeps it"
    )


def put(network: Network, entry: dict[str, Any]) -> None:
    """Write the modes of `network` into its GTICNN `entry`, where a .DAT loses them."""
    entry.pop(KEY, None)
    if lost(network):
        entry[KEY] = [layer.upsample_mode for layer in network.layers]


def modes_in(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modes that a GTICNN `entry` holds; () where it holds none, or none that can be."""
    answer = entry.get(_ANSWER)
    value = entry.get(KEY, answer.get(KEY) if isinstance(answer, dict) else None)
    if not isinstance(value, list) or not all(mode in spec.UPSAMPLE_MODES for mode in value):
        return ()
    return tuple(value)


def applied(network: Network, modes: tuple[str, ...]) -> Network:
    """Return `network`, read from a .DAT, with `modes` where there is one for each major layer."""
    if len(modes) != len(network.layers):
        return network
    layers = (
        replace(layer, upsample_mode=mode) if layer.upsample_enable else layer
        for layer, mode in zip(network.layers, modes, strict=True)
    )
    return replace(network, layers=tuple(layers))
