"""Take a .DAT or .MODEL apart into a new folder; gti build puts it together again, byte for byte.

    gti extract nets/2801_digits.model parts

Writes dat.json and weights.npz, for a .MODEL also network.json and the layers' data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gti.commands import flags


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("extract", __doc__)
    result.add_argument("file", type=flags.model_file, metavar="FILE", help=".DAT or .MODEL")
    result.add_argument("folder", metavar="DIR", help="new or empty folder")
    flags.add_ten_bit(result)
    flags.add_json(result)
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Take a file apart."""
    args = parser().parse_args(words)

    from gti.chip.formats import model_folder

    for remark in model_folder.extract(flags.read_file(args.file), args.folder, args.file, flags.bit_mode(args)):
        flags.note(f"note: {remark}")
    for path in sorted(Path(args.folder).rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            print(flags.json_line({"file": str(path), "bytes": size}) if args.json else f"{path} {size} bytes")
    return 0
