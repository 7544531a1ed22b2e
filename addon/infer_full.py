"""The same as `gti classify --format vendor`, in a checkout: the JSON of the vendor's runtime (docs/runtime.md)."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli
from gti.commands import classify


def main() -> int:
    """Classify, print the vendor's JSON."""
    return classify.main(["--format", "vendor", *sys.argv[1:]])


if __name__ == "__main__":
    cli.run(main)
