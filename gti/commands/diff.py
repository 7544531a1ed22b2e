"""Name what differs first between two files of one kind, .DAT or .MODEL; exit status 1 when they differ.

gti diff nets/2801_digits.model again.model
"""

from __future__ import annotations

from collections.abc import Sequence

from gti.commands import flags
from gti.errors import UsageError


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("diff", __doc__)
    result.add_argument("first", type=flags.model_file, metavar="A")
    result.add_argument("second", type=flags.model_file, metavar="B")
    flags.add_ten_bit(result)
    flags.add_json(result)
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Name the first differences of two files."""
    args = parser().parse_args(words)

    from gti.chip.formats import file_diff
    from gti.chip.formats.model_folder import is_container

    names = (args.first, args.second)
    first, second = (flags.read_file(name) for name in names)
    kinds = [is_container(data, name) for data, name in ((first, names[0]), (second, names[1]))]
    if kinds[0] != kinds[1]:
        raise UsageError(f"{names[0]} and {names[1]}", "are a .MODEL and a .DAT", fix="compare files of one kind")
    lines = (file_diff.diff_model if kinds[0] else file_diff.diff_dat)(first, second, names, flags.bit_mode(args))
    if args.json:
        print(flags.json_line({"file": names[0], "other": names[1], "equal": not lines, "differences": lines}))
    else:
        print("\n".join(lines) if lines else "equal")
    return 1 if lines else 0
