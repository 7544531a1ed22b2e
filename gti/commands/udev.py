"""Rules for Linux's udev that let every user talk to GTI sticks, without sudo.

    gti udev --print
    gti udev --install

--install writes them to /etc/udev/rules.d and lets udev read them. Writing there takes root's rights: without them
nothing is written, and the commands for sudo are printed (exit status 1). Plug the stick in again afterwards.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from gti import files
from gti.commands import flags
from gti.errors import UsageError

NAME = "51-gti.rules"
FOLDER = "/etc/udev/rules.d"


def rules() -> str:
    """Return the text of the rules."""
    return (resources.files("gti.commands") / NAME).read_text(encoding="utf-8")


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("udev", __doc__)
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("--print", action="store_true", help="print the rules")
    what.add_argument("--install", action="store_true", help="write the rules")
    result.add_argument("--folder", default=FOLDER, metavar="DIR", help=f"where they are written (default: {FOLDER})")
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Print or install."""
    args = parser().parse_args(words)
    text = rules()
    if args.print:
        print(text, end="")
        return 0
    folder = Path(args.folder)
    if not folder.is_dir():
        raise UsageError(
            str(folder), "is no folder", expected="a Linux with udev", fix="print the rules: gti udev --print"
        )
    target = folder / NAME
    if target.is_file() and target.read_bytes() == text.encode():
        print(f"{target} holds these rules already")
        return 0
    try:
        files.write_atomic(target, text.encode())
        target.chmod(0o644)
    except (UsageError, OSError):
        print(f"{folder} is not open to you, nothing was written. Run:")
        print(f"  gti udev --print | sudo tee {target} > /dev/null && sudo udevadm control --reload")
        return 1
    print(f"{target} written")
    if args.folder == FOLDER and shutil.which("udevadm"):
        done = subprocess.run(["udevadm", "control", "--reload"], capture_output=True, text=True, check=False)
        print("udev has read it" if done.returncode == 0 else f"udev says: {done.stderr.strip()}")
    print("plug the stick in again")
    return 0
