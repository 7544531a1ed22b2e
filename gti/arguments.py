"""Command lines: a parser whose mistakes are sentences, and the types of its arguments; imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from gti.errors import UsageError

_NET = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to every flag that has one to speak of."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or isinstance(action.default, bool):
            return action.help or ""
        return super()._get_help_string(action) or ""


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError instead of leaving the process, and accepts no abbreviated flags."""

    def __init__(self, description: str, epilog: str = "") -> None:
        super().__init__(
            description=description,
            epilog=epilog or None,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def old(self, flag: str, today: str, *, takes: bool = True) -> None:
        """Add a flag of the old kit, hidden: giving it ends in one sentence that names what is `today` in its place."""

        class Refusal(argparse.Action):
            def __call__(self, *_: object) -> NoReturn:
                raise UsageError(flag, "is a flag of the old kit", fix=f"{today} (docs/old_kit.md)")

        self.add_argument(
            flag, action=Refusal, nargs="?" if takes else 0, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )

    def alias(self, flag: str, today: str) -> None:
        """Let a flag of the old kit be the flag `today`, hidden."""
        action = next(action for action in self._actions if today in action.option_strings)
        again: dict[str, Any] = {"dest": action.dest, "type": action.type, "default": argparse.SUPPRESS}
        self.add_argument(flag, help=argparse.SUPPRESS, **again)

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.prog, message, fix=f"see {self.prog} --help")


def refuse_old(words: Sequence[str], today: Mapping[str, str]) -> None:
    """Raise UsageError for a flag of the old kit in `words`; `today`: flag -> what is in its place."""
    for word in words:
        flag = word.partition("=")[0]
        if flag in today:
            raise UsageError(flag, "is a flag of the old kit", fix=f"{today[flag]} (docs/old_kit.md)")


def others_named(args: argparse.Namespace, but: str) -> list[str]:
    """Return all texts of a command line but the flag `but`: whatever file they name is not to be written over."""
    values = [value for name, value in vars(args).items() if name != but]
    texts = [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]
    return [one.removeprefix("replay:") for one in texts if isinstance(one, str) and one]


def count(least: int) -> Callable[[str], int]:
    """Return an argument type: whole numbers from `least`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, received {text!r}")
        return value

    return convert


def number(least: float, most: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """Return an argument type: finite numbers `least` <= x <= `most`, without `least` itself where `above`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not least <= value <= most or (above and value == least):
            limit = f"above {least:g}" if above else f"of at least {least:g}"
            limit += "" if math.isinf(most) else f" and at most {most:g}"
            raise argparse.ArgumentTypeError(f"expected a number {limit}, received {text!r}")
        return value

    return convert


def path(text: str) -> str:
    """Return a path as it is, and refuse an empty one, such as an unset shell variable gives; an argument type."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a path, received {text!r} (an unset shell variable?)")
    return text


def net_name(text: str) -> str:
    """Return the name of a net as it is; an argument type."""
    if not _NET.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected a name of letters, digits and _, received {text!r}")
    return text
