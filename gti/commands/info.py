"""What is in a .DAT or .MODEL: every layer, its size, bits, shift, gains and memory.

    gti info nets/2801_digits.model

The content tells .DAT and .MODEL apart, not the name. What a file does not tell and is concluded (ten-bit codes,
planes) is said; --ten_bit overrides it. Formats: docs/dat_format.md and docs/model_format.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from gti.commands import flags


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("info", __doc__)
    result.add_argument("file", type=flags.model_file, metavar="FILE", help=".DAT or .MODEL")
    flags.add_ten_bit(result)
    flags.add_json(result)
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Print what is in a file."""
    args = parser().parse_args(words)

    from gti.chip.formats import describe
    from gti.chip.formats.model_folder import is_container

    data = flags.read_file(args.file)
    container = is_container(data, args.file)
    lines = (describe.describe_model if container else describe.describe_dat)(data, args.file, flags.bit_mode(args))
    if args.json:
        print(flags.json_line({"file": args.file, "kind": ".MODEL" if container else ".DAT", "lines": lines}))
    else:
        print("\n".join(lines))
    return 0
