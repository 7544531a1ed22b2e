"""The nets: which there are, where their files lie, and the Network of their dat.json; nothing here needs TensorFlow.

A net is one JSON file, `nets/<chip>_<net>_dat.json`, and one module, `gti/model/<net>.py` or `<net>.py` beside that
JSON (see `gti.model.base`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gti import names
from gti.chip import spec
from gti.chip.network import json_form
from gti.chip.network.types import Network
from gti.errors import FormatError, NetworkError, UsageError

NETS_DIR = Path(__file__).resolve().parent.parent / "nets"
MODEL_DIR = Path(__file__).resolve().parent / "model"


def own_nets() -> list[str]:
    """Return the names of the kit's own nets, sorted."""
    return sorted(path.stem for path in MODEL_DIR.glob("*.py") if path.stem not in ("__init__", "base", "exact"))


def users_module(net: str, nets_dir: str | Path | None = None) -> Path | None:
    """Return the path of a user's net, `<net>.py` in `nets_dir` (None: nets/ of the kit), or None for one of the kit.

    Raises UsageError for an unknown name.
    """
    if net in own_nets():
        return None
    path = Path(nets_dir or NETS_DIR) / f"{net}.py"
    if not path.is_file():
        raise UsageError(
            f"net {net}",
            "there is no such net",
            expected="one of " + ", ".join(own_nets()) + f", or your own {path}",
            fix="pass --nets_dir where its files are elsewhere; of a new net add them, or import it with"
            " scripts/import_model.py",
        )
    return path


def dat_json(net: str, nets_dir: str | Path | None = None) -> Path:
    """Return the path of the net's dat.json."""
    return Path(nets_dir or NETS_DIR) / f"{names.file_stem(net)}_dat.json"


def model_json(net: str, nets_dir: str | Path | None = None) -> Path:
    """Return the path of the net's model.json."""
    return Path(nets_dir or NETS_DIR) / f"{names.file_stem(net)}_model.json"


def model_file(net: str, nets_dir: str | Path | None = None) -> Path:
    """Return the path of the net's .model, as convert_to_chip.py writes it."""
    return Path(nets_dir or NETS_DIR) / f"{names.file_stem(net)}.model"


def existing(path: Path) -> Path:
    """Return the path of a net's JSON file as it is. Raises FormatError, naming --nets_dir, where no file is."""
    try:
        path.stat()
    except FileNotFoundError:
        raise FormatError(
            str(path),
            "no such file",
            fix="start in the kit's folder, or pass the folder of the net's JSON files as --nets_dir",
        ) from None
    except (OSError, ValueError):
        pass  # whoever reads it says what is wrong
    return path


def load(net: str, *, image_size: int | None = None, nets_dir: str | Path | None = None) -> Network:
    """Return the checked Network of a net, for images of `image_size` (None: as its JSON says).

    Raises FormatError for a missing JSON, UsageError for an unknown net, and as `at_size` does.
    """
    users_module(net, nets_dir)
    network = json_form.load(existing(dat_json(net, nets_dir)))
    return at_size(network, net, image_size)


def at_size(network: Network, net: str, image_size: int | None) -> Network:
    """Return the checked `network` for images of `image_size` (None: its own): every layer scaled, and checked again.

    Raises UsageError for a size that does not scale, NetworkError with every rule of the chip that the (scaled) network
    breaks, for example VGG16 at 448: layers of 448 take 16 output channels at most.
    """
    size = network.layers[0].image_size
    if image_size in (None, size):
        return network
    if image_size not in spec.IMAGE_SIZES:
        raise UsageError(
            f"net {net}",
            "the chip has no such image size",
            expected="one of " + ", ".join(map(str, sorted(spec.IMAGE_SIZES))),
            received=image_size,
            fix=f"leave --image_size at {size}",
        )
    layers = tuple(replace(layer, image_size=layer.image_size * image_size // size) for layer in network.layers)
    network = replace(network, layers=layers)
    json_form.check(network, f"net {net} at {image_size}x{image_size}")
    return network


def check_ten_bit(net: str, network: Network) -> None:
    """Raise UsageError where the last layer of `network` has no ten-bit activation."""
    if not network.convolutions[-1].ten_bit:
        raise UsageError(
            f"net {net}",
            "its dat.json does not ask for ten-bit activation",
            expected='"ActivationBitMode": 1',
            fix="leave --ten_bit_act out, or use the net tenbit",
        )


def check_trainable(net: str, network: Network) -> None:
    """Raise NetworkError where a layer of `network` computes what only the chip knows: no model can be built of it."""
    features = {"resnet_shortcut_start_layers": "shortcuts", "one_coef": "one_coef"}
    used = [
        f"{key} in major {major}"
        for major, layer in enumerate(network.layers, 1)
        for key, attribute in features.items()
        if any(getattr(layer, attribute))
    ]
    if used:
        raise NetworkError(
            f"net {net}",
            "uses " + ", ".join(used) + ", for which the chip's arithmetic is unknown",
            expected="plain 3x3 convolutions",
            fix="leave the keys out",
        )
