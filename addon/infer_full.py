"""The same as `gti classify --format vendor`, in a checkout: the JSON of the vendor's runtime (docs/runtime.md)."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import arguments, cli
from gti.commands import classify

OLD_FLAGS = {
    "--model": "pass the file without a flag: infer_full.py MODEL IMAGE...",
    "--data_dir": "pass images or folders of them: infer_full.py MODEL IMAGE...",
    "--data_size": "pass as many images as are wanted",
    "--image_size": "leave it out: the .MODEL knows it",
}


def main() -> int:
    """Classify, print the vendor's JSON."""
    arguments.refuse_old(sys.argv[1:], OLD_FLAGS)
    return classify.main(["--format", "vendor", *sys.argv[1:]])


if __name__ == "__main__":
    cli.run(main)
