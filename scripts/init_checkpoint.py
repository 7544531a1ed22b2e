"""A script of the old kit: says which one is in its place (docs/old_kit.md)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, old_kit


def main() -> None:
    old_kit.refuse_script(__file__)


if __name__ == "__main__":
    cli.run(main)
