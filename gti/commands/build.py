"""Put a folder of gti extract together, or wrap a bare .DAT into a .MODEL.

    gti build parts again.model
    gti build gnet32.dat gnet32.model --crop 0.875

The folder gives the same file, byte for byte; FILE's suffix decides where both kinds are possible. Folders of the
vendor's tools (X.json, X.model.0, X.model.1, ...) are taken too. A wrapped .DAT says how pictures are prepared
(docs/runtime.md) and carries an answer that gti verify checks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gti import files
from gti.commands import flags
from gti.errors import FormatError, UsageError


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("build", __doc__)
    result.add_argument("source", metavar="DIR_OR_DAT", help="folder of gti extract, or a .DAT to wrap")
    result.add_argument("file", metavar="FILE", help="what to write")
    flags.add_json(result)
    group = result.add_argument_group("wrapping a .DAT")
    group.add_argument(
        "--crop",
        type=float,
        metavar="SHARE",
        help="side of the square cut out of the middle, as a share of the shorter side (default: the whole picture)",
    )
    group.add_argument("--mode", help="read-out mode in the file: fc, learn, single, sublast, lastmajor (default: fc)")
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Put together, or wrap."""
    args = parser().parse_args(words)
    wraps = Path(args.source).is_file()
    given = [f"--{name}" for name in ("crop", "mode") if getattr(args, name) is not None]
    if given and not wraps:
        raise UsageError(", ".join(given), "wraps a .DAT", expected="a .DAT file", received=args.source)
    if Path(args.source).is_dir():
        files.check_writable(args.file, *Path(args.source).iterdir())
    data = _wrapped(args) if wraps else _built(args)
    files.write_atomic(args.file, data)
    if Path(args.file).is_file() and flags.read_file(args.file) != data:
        raise FormatError(args.file, "does not hold what was written", fix="check the disk and build it again")
    facts = {"file": args.file, "bytes": len(data)}
    print(flags.json_line(facts) if args.json else f"{args.file} {len(data)} bytes")
    return 0


def _built(args: argparse.Namespace) -> bytes:
    from gti.chip.formats import model_folder

    return model_folder.build(args.source, args.file)


def _wrapped(args: argparse.Namespace) -> bytes:
    if args.crop is not None and not 0 < args.crop <= 1:
        raise UsageError("--crop", "is no share of the shorter side", expected="above 0, at most 1", received=args.crop)
    if Path(args.file).suffix.lower() != ".model":
        raise UsageError("FILE", "is no .MODEL, which a .DAT is wrapped into", expected="*.model", received=args.file)
    files.check_writable(args.file, args.source)

    from gti.chip.formats import model_file
    from gti.chip.runtime import wrapping

    data = flags.read_file(args.source)
    name = model_file.name_of(args.file)
    return wrapping.wrap(data, name, args.source, crop=args.crop, mode=args.mode or "fc")
