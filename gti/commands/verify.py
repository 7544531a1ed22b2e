"""Check the known answer that a .MODEL carries, in the emulator or on a stick; exit status 1 where it is wrong.

    gti verify nets/2801_digits.model --device auto

What an answer is and how it is made: docs/compare.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gti.commands import flags
from gti.errors import UsageError

if TYPE_CHECKING:
    from gti.chip.runtime.known_answer import Part


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("verify", __doc__)
    result.add_argument("file", type=flags.model_file, metavar="FILE", help=".MODEL")
    flags.add_emulator_or_stick(result)
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Check the known answer of every part of a file."""
    args = parser().parse_args(words)
    options = flags.options_of_stick_only(args)

    from gti.chip.formats import model_file
    from gti.chip.formats.model_folder import is_container
    from gti.chip.runtime import known_answer

    data = flags.read_file(args.file)
    if not is_container(data, args.file):
        raise UsageError(
            args.file, "is a .DAT, which has no room for a known answer", expected="a .MODEL", fix="wrap it: gti build"
        )
    parts = known_answer.read(model_file.parse(data, args.file), args.file)
    failed = False
    for part, problems, who in _checked(args, parts, options):
        failed |= bool(problems)
        covered = {} if problems or args.device != "emulator" else _coverage(part, args.engine)
        if args.json:
            facts = {"file": args.file, "part": part.name, "origin": part.answer.origin, "checked by": who}
            print(flags.json_line(facts | covered | {"right": not problems, "problems": list(problems)}), flush=True)
            continue
        print(f"{part.name}: {part.answer.origin}; checked by {who}", flush=True)
        if problems:
            print("\n".join(["FAILED", *problems]))
        if covered:
            print(
                f"{covered['known images']} known images show the loss of at least {covered['covered']} of"
                f" {covered['kernels']} kernels ({covered['covered'] / covered['kernels']:.1%})"
            )
    if not failed and not args.json:
        print("the known answer is right, code for code")
    return 1 if failed else 0


def _coverage(part: Part, engine: str) -> dict[str, int]:
    """Return how many kernels the known images cover; nothing where the chip's arithmetic is unknown."""
    from gti.chip.runtime import known_answer

    if not part.answer.sublayers:
        return {}
    seen, every = known_answer.coverage_of(part.answer, part.data, part.name, engine)
    return {"known images": len(part.answer.seeds), "covered": seen, "kernels": every}


def _checked(
    args: argparse.Namespace, parts: Sequence[Part], options: dict[str, object]
) -> Iterator[tuple[Part, Sequence[str], str]]:
    """Yield each part, what is wrong with it, and what checked it."""
    from gti.chip.runtime import known_answer

    if args.device == "emulator":
        for part in parts:
            yield (part, *known_answer.check_codes(part.answer, part.data, part.name, args.engine))
        return
    from gti.chip.driver import GtiModel
    from gti.chip.loaded_model import load_chips

    for part, loaded in zip(parts, load_chips(Path(args.file)), strict=True):
        with GtiModel(loaded, args.device, **options) as stick:  # type: ignore[arg-type]
            yield (part, *known_answer.check_stick(part.answer, part.data, stick, part.name))
