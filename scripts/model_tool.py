#!/usr/bin/env python
"""`gti info`, `extract`, `build`, `diff`, `run`, `verify` and `export`, in a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import __main__, cli


def main() -> int | None:
    """Run one of the verbs about files."""
    return __main__.main(verbs=__main__.FILE_VERBS)


if __name__ == "__main__":
    cli.run(main)
