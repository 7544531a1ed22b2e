"""The same as `gti camera`, in a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli
from gti.commands import camera

if __name__ == "__main__":
    cli.run(camera.main)
