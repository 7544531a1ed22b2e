"""Flags that mean the same in every verb, and the stick that they ask for."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gti import arguments, files
from gti.errors import IS_CHECKOUT, UsageError

if TYPE_CHECKING:
    from gti.chip.emulator.behaviours import Behaviours
    from gti.chip.identify.profile import Profile
    from gti.chip.usb.transport import Settings

EMULATOR = "emulator"
ENGINES = ("auto", "numpy", "numba")
_MAX_FILE_BYTES = 1 << 30
ZOO = "zoo:"  # begins the name of a network that the kit brings along
_ZOO_FOLDER = Path(__file__).resolve().parents[1] / "zoo"
DEVICE = (
    "auto (a stick that answers, else the emulator) | emulator | usb | usb:<serial or index> | eusb:<serial or node>"
    " | virtual (the emulator behind the whole USB path) | replay:FILE"
)


class Parser(arguments.Parser):
    """The parser of a verb; `text`: the module's docstring, shown as it stands."""

    def __init__(self, verb: str, text: str | None) -> None:
        super().__init__(text or "")
        self.prog = f"gti {verb}"
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        if not IS_CHECKOUT and text and ("docs/" in text or "scripts/" in text):
            self.epilog = "docs/ and scripts/ are folders of the project's sources; they are not installed."


def model_file(text: str) -> str:
    """Return the path of a .MODEL or .DAT given as a path, or as zoo:NAME. Raises UsageError for a name of none."""
    if not text.startswith(ZOO):
        return text
    there = {path.stem.removeprefix("2801_"): path for path in sorted(_ZOO_FOLDER.glob("*.model"))}
    name = text.removeprefix(ZOO)
    if name not in there:
        raise UsageError(text, "names no network of the kit", expected=" or ".join(ZOO + name for name in there))
    return str(there[name])


def add_device(parser: argparse.ArgumentParser, *, default: str = "auto", more: str = "") -> None:
    """Add --device, --set and --record; `more`: a sentence for the help of --device."""
    stick = parser.add_argument_group("what computes")
    stick.add_argument("--device", default=default, help=f"{DEVICE}{more} (default: {default})")
    stick.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of docs/device.md; may be repeated"
    )
    stick.add_argument("--record", metavar="FILE", help="write every USB transfer to FILE")
    stick.add_argument(
        "--profile",
        metavar="FILE",
        help="what `gti doctor --identify` found out about the stick; none: not even that in ~/.config/gti",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line, in place of text")


def settings(args: argparse.Namespace) -> Settings | None:
    """Return the settings of --profile and --set, None without any. Raises UsageError, and FormatError for a profile.

    A profile in the user's configuration counts where a real stick may answer, and for the emulator, which then
    computes what that stick does.
    """
    profile = _profile(args)
    if not args.set and profile is None:
        return None
    from gti.chip.usb.transport import VIRTUAL_SETTINGS, Settings, parse_settings

    base = VIRTUAL_SETTINGS if args.device.startswith("virtual") else Settings()
    if profile is not None:
        base = profile.applied(base)
        note(f"profile {profile.name}: {profile.bridge} {profile.behaviours.text}".rstrip())
    pairs: dict[str, str] = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError("--set", "is not understood", expected="NAME=VALUE", received=text)
        pairs[name.strip()] = value
    return parse_settings(pairs, base)


def _profile(args: argparse.Namespace) -> Profile | None:
    if args.profile == "none" or (not args.profile and args.device.startswith(("virtual", "replay"))):
        return None
    from gti.chip.identify import place

    path = args.profile or place.own_profile()
    if not args.profile and not path.exists():
        return None
    from gti.chip.identify import profile

    return profile.load(path)


def behaviours(options: dict[str, Any]) -> Behaviours:
    """Return the behaviours that settings of `stick_options` give the emulator."""
    from gti.chip.emulator.behaviours import ASSUMED, parse

    return ASSUMED if options["settings"] is None else parse(options["settings"].behaviours)


def stick_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return --set and --record as keyword arguments of what opens sticks. Raises UsageError."""
    return {"settings": settings(args), "record": record(args)}


def record(args: argparse.Namespace) -> str | None:
    """Return the file of --record. Raises UsageError where another flag names it too."""
    if args.record is not None:
        files.check_writable(args.record, *arguments.others_named(args, "record"))
    return args.record


def devices(text: str) -> list[str]:
    """Return the parts of a --device that names several; behaviours of a stick in software have commas of their own."""
    return re.split(r",(?!\w+=)", text)


def at_least_one(name: str, value: int | None, problem: str) -> None:
    """Raise UsageError for a number below 1."""
    if value is not None and value < 1:
        raise UsageError(name, problem, expected="at least 1", received=value)


def note(text: str) -> None:
    """Tell the user something that is no result."""
    print(text, file=sys.stderr, flush=True)


def json_line(value: Any) -> str:
    """Return `value` as one line of JSON that a terminal may be shown: nothing in it is a control character."""
    import json

    return for_terminals(json.dumps(value, ensure_ascii=False))


def for_terminals(text: str) -> str:
    """Return JSON `text` with the characters that a terminal may obey as \\u escapes: labels come from the file."""
    import json

    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def add_emulator_or_stick(parser: argparse.ArgumentParser) -> None:
    """Add --json, --device with the emulator as default, and --engine."""
    add_json(parser)
    add_device(parser, default=EMULATOR)
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="of the emulator (default: auto)")


def add_ten_bit(parser: argparse.ArgumentParser) -> None:
    """Add --ten_bit."""
    parser.add_argument(
        "--ten_bit",
        choices=("auto", "0", "1"),
        default="auto",
        help="whether the last layer gives ten-bit codes, which a file does not always tell (default: auto)",
    )


def bit_mode(args: argparse.Namespace) -> int | None:
    """Return what --ten_bit says, None for auto."""
    return None if args.ten_bit == "auto" else int(args.ten_bit)


def options_of_stick_only(args: argparse.Namespace) -> dict[str, Any]:
    """Return `stick_options`. Raises UsageError for a flag of the emulator where a stick computes, and the reverse."""
    if args.device == EMULATOR:
        for name in ("record", "set"):
            if getattr(args, name):
                raise UsageError(f"--{name}", "has no stick to concern", fix="pass --device")
    elif args.engine != "auto":
        raise UsageError(
            f"--engine {args.engine}",
            "chooses how the emulator computes, not a stick",
            received=f"--device {args.device}",
            fix="leave out one of the two",
        )
    return stick_options(args)


def read_file(path: str) -> bytes:
    """Return the bytes of a .DAT or .MODEL. Raises FormatError."""
    return files.read_bytes(path, limit=_MAX_FILE_BYTES)
