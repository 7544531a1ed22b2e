"""The command `gti`, in a checkout also `python -m gti`: one verb after it, each a module of gti/commands/."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence

from gti import __version__, cli
from gti.errors import UsageError

# What the verbs do; `gti.commands.<verb>`, with _ for -, has `main(words)`, which returns an exit status or None.
VERBS = {
    "classify": "label image files with a full .MODEL",
    "camera": "label what a camera or film shows",
    "edges": "pictures of the edges of photographs",
    "teach": "learn classes of your own from folders of photographs",
    "features": "features of photographs as arrays, and which photographs are alike",
    "serve": "a page and an API for many clients",
    "doctor": "find out what is wrong with a stick, and what to do about it",
    "report-stick": "pack what doctor --identify found for a bug report",
    "info": "what is in a .DAT or .MODEL: layers, bits, memory",
    "run": "compute the maps of one image in the emulator or on a stick",
    "extract": "take a file apart into a folder",
    "build": "put a folder together, or wrap a .DAT into a .MODEL",
    "verify": "check the known answer that a .MODEL carries",
    "export": "write a network as ONNX that gives the same codes",
    "diff": "name what differs first between two files",
    "trace": "USB traffic: encode, decode, show streams and recordings",
    "udev": "show or install the rules that let every user talk to sticks",
}
FILE_VERBS = ("info", "extract", "build", "diff", "run", "verify", "export")  # those of scripts/model_tool.py
_STATUSES = """exit status:
  0    everything was done
  1    done in part or answered no: images left out, files differ, a check failed
  2    a mistake on the command line, a file or a stick that cannot be used (one sentence says which)
  130  Ctrl-C
  141  the reader of the output left, as in `gti info FILE | head`"""


def usage(verbs: Iterable[str] = VERBS) -> str:
    """Return the help of the command."""
    lines = [f"  {verb:<12} {VERBS[verb]}" for verb in verbs]
    head = "usage: gti VERB ...     (gti VERB --help says more)\n\nThe GTI 2801 without TensorFlow, version "
    return f"{head}{__version__}.\n\n" + "\n".join([*lines, "", _STATUSES])


def module_of(verb: str) -> str:
    """Return the name of the verb's module in gti/commands/."""
    return verb.replace("-", "_")


def main(words: Sequence[str] | None = None, verbs: Iterable[str] = VERBS) -> int | None:
    """Run the verb that `words` begin with, one of `verbs`; default: those of the process. Raises UsageError."""
    verb, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(usage(verbs))
        return 0
    if verb == "--version":
        print(f"gti {__version__}")
        return 0
    if verb not in verbs:
        raise UsageError("gti", "has no such verb", expected=", ".join(verbs), received=verb, fix="see gti --help")
    status: int | None = importlib.import_module(f"gti.commands.{module_of(verb)}").main(rest)
    return status


def start() -> None:
    """Run the command and leave with its exit status."""
    cli.run(main)


if __name__ == "__main__":
    start()
