"""Compute the codes of an image, of those layers that a read-out mode delivers, in the emulator or on a stick.

gti run nets/2801_digits.model --image 7.png --mode learn --out maps.npz
gti run nets/2801_digits.model --image 7.png --out maps.npz --device usb
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gti import files
from gti.chip.wire.registers import MODE_NAMES
from gti.commands import flags, pictures
from gti.errors import UsageError


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("run", __doc__)
    result.add_argument("file", type=flags.model_file, metavar="FILE", help=".DAT or .MODEL")
    result.add_argument(
        "--image",
        required=True,
        help="picture (resized, converted to BGR), .npy (uint8 HWC in the chip's channel order), planar .bin, or - for"
        " standard input",
    )
    result.add_argument("--mode", choices=MODE_NAMES, default="fc", help="which maps to read out (default: fc)")
    result.add_argument("--out", required=True, metavar="OUT.npz", help="map0, map1, ...: codes uint8 [C, H, W]")
    flags.add_ten_bit(result)
    flags.add_emulator_or_stick(result)
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Compute the maps that a read-out mode delivers."""
    args = parser().parse_args(words)
    options = flags.options_of_stick_only(args)
    files.check_writable(args.out, args.file, args.image)

    from gti.chip.formats import npy
    from gti.chip.formats.model_folder import chip_network
    from gti.chip.host.image import load_image

    decoded, guesses = chip_network(flags.read_file(args.file), args.file, flags.bit_mode(args))
    for guess in guesses:
        flags.note(f"note: {guess}")
    size, _, channels = decoded.network.input_shape
    with ExitStack() as stack:
        (picture, *more) = pictures.find([args.image], stack)
        if more:
            raise UsageError("--image", "names several images", expected="one", received=1 + len(more))
        image = load_image(picture.path, size, channels)
    if args.device == "emulator":
        from gti.chip.emulator.emulator import Emulator

        maps: list[Any] = list(
            Emulator(
                decoded.network, decoded.weights, engine=args.engine, behaviours=flags.behaviours(options)
            ).read_out(image, args.mode)
        )
    else:
        from gti.chip.driver import GtiModel
        from gti.chip.loaded_model import load_model

        loaded = load_model(Path(args.file))
        loaded.activation_bit_mode = flags.bit_mode(args)
        with GtiModel(loaded, args.device, mode=args.mode, **options) as model:
            flags.note(model.device_description)
            maps = model.layer_outputs(image, args.mode)
    files.write_atomic(args.out, npy.npz_bytes({f"map{i}": codes for i, codes in enumerate(maps)}))
    for i, codes in enumerate(maps):
        mean, zeros, largest = float(codes.mean()), float((codes == 0).mean()), int(codes.max())
        if args.json:
            facts = {"file": picture.name, "map": f"map{i}", "shape": list(codes.shape), "mean": mean}
            print(flags.json_line(facts | {"zeros": zeros, "largest": largest}))
        else:
            shape = " x ".join(map(str, codes.shape))
            print(f"map{i}: {shape} codes, mean {mean:.3f}, zeros {zeros:.1%}, largest {largest}")
    return 0
