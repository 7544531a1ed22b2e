#!/usr/bin/env python
"""Look into .DAT and .MODEL files, take them apart, put them together, compare them and run them.

    python scripts/model_tool.py info nets/2801_digits.model
    python scripts/model_tool.py extract nets/2801_digits.model parts
    python scripts/model_tool.py build parts again.model
    python scripts/model_tool.py diff nets/2801_digits.model again.model
    python scripts/model_tool.py run nets/2801_digits.model --image 7.png --mode learn --out maps.npz
    python scripts/model_tool.py verify nets/2801_digits.model --device auto

The content tells .DAT and .MODEL apart, not the name. extract writes dat.json and weights.npz, for a .MODEL also
network.json and the layers' data; build reads the same folder, gives the same file, byte for byte, and reads back
what it wrote. What a file does not tell and is concluded (ten-bit codes, planes) is said; --ten_bit overrides it. run
computes the codes in the emulator, without a stick. verify checks the known answer that a .MODEL carries, in the
emulator or on a stick (docs/compare.md); exit status 1 where it is wrong. Formats: docs/dat_format.md and
docs/model_format.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti.chip.wire.registers import MODE_NAMES
from gti.cli import run
from gti.errors import FormatError, UsageError
from gti.files import read_bytes, write_atomic

if TYPE_CHECKING:
    from gti.chip.runtime.known_answer import Part

MAX_FILE_BYTES = 1 << 30
ENGINES = ("auto", "numpy", "numba")


def main() -> int:
    """Parse the command line and run its verb."""
    arguments = parser().parse_args()
    return arguments.verb(arguments)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = result.add_subparsers(required=True, metavar="VERB")

    info = verbs.add_parser("info", help="what is in a file: every layer, its size, bits, shift, gains and memory")
    info.set_defaults(verb=info_verb)
    info.add_argument("file", metavar="FILE")

    extract = verbs.add_parser("extract", help="take a file apart into a new folder")
    extract.set_defaults(verb=extract_verb)
    extract.add_argument("file", metavar="FILE")
    extract.add_argument("folder", metavar="DIR")

    build = verbs.add_parser("build", help="put a folder together again; FILE's suffix decides where both are possible")
    build.set_defaults(verb=build_verb)
    build.add_argument("folder", metavar="DIR")
    build.add_argument("file", metavar="FILE")

    diff = verbs.add_parser("diff", help="name what differs first between two files; exit status 1 when they differ")
    diff.set_defaults(verb=diff_verb)
    diff.add_argument("first", metavar="A")
    diff.add_argument("second", metavar="B")

    run_parser = verbs.add_parser("run", help="compute the codes of an image in the emulator, or on a stick")
    run_parser.set_defaults(verb=run_verb)
    run_parser.add_argument("file", metavar="FILE")
    run_parser.add_argument(
        "--image",
        required=True,
        help="picture (resized, converted to BGR), .npy (uint8 HWC in the chip's channel order) or planar .bin",
    )
    run_parser.add_argument("--mode", choices=MODE_NAMES, default="fc", help="which maps to read out (default: fc)")
    run_parser.add_argument("--out", required=True, metavar="OUT.npz", help="map0, map1, ...: codes uint8 [C, H, W]")
    run_parser.add_argument("--engine", choices=ENGINES, default="auto", help="default: auto")
    run_parser.add_argument("--device", help="compute on a stick: auto | usb | usb:<serial or index> | virtual | ...")
    run_parser.add_argument("--record", metavar="FILE", help="with --device: write every USB transfer to FILE")

    verify = verbs.add_parser("verify", help="check the known answer of a .MODEL; exit status 1 where it is wrong")
    verify.set_defaults(verb=verify_verb)
    verify.add_argument("file", metavar="FILE")
    verify.add_argument(
        "--device",
        default="emulator",
        help="emulator | auto | virtual | usb | usb:<serial or index> (default: emulator)",
    )
    verify.add_argument("--engine", choices=ENGINES, default="auto", help="of the emulator (default: auto)")
    for verb in (info, extract, diff, run_parser):
        verb.add_argument(
            "--ten_bit",
            choices=("auto", "0", "1"),
            default="auto",
            help="whether the last layer gives ten-bit codes, which a file does not always tell (default: auto)",
        )
    return result


def bit_mode(arguments: argparse.Namespace) -> int | None:
    """Return what --ten_bit says, None for auto."""
    return None if arguments.ten_bit == "auto" else int(arguments.ten_bit)


def info_verb(arguments: argparse.Namespace) -> int:
    """Print what is in a file."""
    from gti.chip.formats import describe
    from gti.chip.formats.model_folder import is_container

    data = read_bytes(arguments.file, limit=MAX_FILE_BYTES)
    container = is_container(data, arguments.file)
    lines = (describe.describe_model if container else describe.describe_dat)(data, arguments.file, bit_mode(arguments))
    print("\n".join(lines))
    return 0


def extract_verb(arguments: argparse.Namespace) -> int:
    """Take a file apart."""
    from gti.chip.formats import model_folder

    data = read_bytes(arguments.file, limit=MAX_FILE_BYTES)
    for remark in model_folder.extract(data, arguments.folder, arguments.file, bit_mode(arguments)):
        print(f"note: {remark}", file=sys.stderr)
    for path in sorted(Path(arguments.folder).rglob("*")):
        if path.is_file():
            print(f"{path} {path.stat().st_size} bytes")
    return 0


def build_verb(arguments: argparse.Namespace) -> int:
    """Put a folder together."""
    from gti.chip.formats import model_folder

    data = model_folder.build(arguments.folder, arguments.file)
    write_atomic(arguments.file, data)
    if Path(arguments.file).is_file() and read_bytes(arguments.file, limit=MAX_FILE_BYTES) != data:
        raise FormatError(arguments.file, "does not hold what was written", fix="check the disk and build it again")
    print(f"{arguments.file} {len(data)} bytes")
    return 0


def diff_verb(arguments: argparse.Namespace) -> int:
    """Name the first differences of two files; exit status 1 when there are any."""
    from gti.chip.formats import file_diff
    from gti.chip.formats.model_folder import is_container

    names = (arguments.first, arguments.second)
    first, second = (read_bytes(name, limit=MAX_FILE_BYTES) for name in names)
    kinds = [is_container(data, name) for data, name in ((first, names[0]), (second, names[1]))]
    if kinds[0] != kinds[1]:
        raise UsageError(f"{names[0]} and {names[1]}", "are a .MODEL and a .DAT", fix="compare files of one kind")
    lines = (file_diff.diff_model if kinds[0] else file_diff.diff_dat)(first, second, names, bit_mode(arguments))
    print("\n".join(lines) if lines else "equal")
    return 1 if lines else 0


def run_verb(arguments: argparse.Namespace) -> int:
    """Compute the maps that a read-out mode delivers."""
    from gti.chip.emulator.emulator import Emulator
    from gti.chip.formats import npy
    from gti.chip.formats.model_folder import chip_network
    from gti.chip.host.image import load_image

    data = read_bytes(arguments.file, limit=MAX_FILE_BYTES)
    decoded, guesses = chip_network(data, arguments.file, bit_mode(arguments))
    for guess in guesses:
        print(f"note: {guess}", file=sys.stderr)
    size, _, channels = decoded.network.input_shape
    image = load_image(arguments.image, size, channels)
    if arguments.record is not None and arguments.device is None:
        raise UsageError("--record", "has no stick to record", fix="pass --device")
    if arguments.device is not None:
        refuse_engine(arguments)
        from gti.chip.driver import GtiModel
        from gti.chip.loaded_model import load_model

        loaded = load_model(Path(arguments.file))
        loaded.activation_bit_mode = bit_mode(arguments)
        with GtiModel(loaded, arguments.device, mode=arguments.mode, record=arguments.record) as model:
            print(model.device_description)
            maps = model.layer_outputs(image, arguments.mode)
    else:
        maps = Emulator(decoded.network, decoded.weights, engine=arguments.engine).read_out(image, arguments.mode)
    write_atomic(arguments.out, npy.npz_bytes({f"map{i}": codes for i, codes in enumerate(maps)}))
    for i, codes in enumerate(maps):
        shape = " x ".join(map(str, codes.shape))
        print(f"map{i}: {shape} codes, mean {codes.mean():.3f}, zeros {(codes == 0).mean():.1%}, largest {codes.max()}")
    return 0


def verify_verb(arguments: argparse.Namespace) -> int:
    """Check the known answer of a .MODEL; exit status 1 where a file, the emulator or a stick gives another."""
    from gti.chip.formats import model_file
    from gti.chip.formats.model_folder import is_container
    from gti.chip.runtime import known_answer

    name = arguments.file
    data = read_bytes(name, limit=MAX_FILE_BYTES)
    if not is_container(data, name):
        raise UsageError(name, "is a .DAT, which has no room for a known answer", expected="a .MODEL")
    parts = known_answer.read(model_file.parse(data, name), name)
    failed = False
    if arguments.device == "emulator":
        for part in parts:
            problems, who = known_answer.check_codes(part.answer, part.data, part.name, arguments.engine)
            failed |= report_part(part, problems, who)
    else:
        refuse_engine(arguments)
        from gti.chip.driver import GtiModel
        from gti.chip.loaded_model import load_chips

        for part, loaded in zip(parts, load_chips(Path(name)), strict=True):
            with GtiModel(loaded, arguments.device) as stick:
                problems, who = known_answer.check_stick(part.answer, part.data, stick, part.name)
            failed |= report_part(part, problems, who)
    if failed:
        return 1
    print("the known answer is right, code for code")
    return 0


def refuse_engine(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an engine of the emulator where a stick computes."""
    if arguments.engine != "auto":
        raise UsageError(
            f"--engine {arguments.engine}",
            "chooses how the emulator computes, not a stick",
            received=f"--device {arguments.device}",
            fix="leave out one of the two",
        )


def report_part(part: Part, problems: Sequence[str], who: str) -> bool:
    """Print what was found out about one chip's network; return whether it is wrong."""
    print(f"{part.name}: {part.answer.origin}; checked by {who}")
    if problems:
        print("\n".join(["FAILED", *problems]))
    return bool(problems)


if __name__ == "__main__":
    run(main)
