"""Teach a network on the chip classes of your own, from folders with a few photographs each, without TensorFlow:

    python addon/teach.py nets/2801_vgg16.model photos/ --out my.model      # photos/cat/*.jpg, photos/dog/*.jpg, ...
    python addon/classify.py my.model another.jpg

The chip, or the emulator where there is no stick, computes features of each photograph once; they are kept beside the
new file, so another class takes seconds. Printed are the accuracy on photographs that were held out, what is taken for
what, and which photographs confuse it. Exit status 1 when some photographs could not be used (docs/teach.md).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gti import cli, files
from gti.errors import UsageError, printable


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("backbone", help=".MODEL or .dat whose last layer gives 7x7; host layers in it are replaced")
    flags.add_argument("folder", help="one sub-folder of photographs a class; its name is the label")
    flags.add_argument("--out", required=True, metavar="FILE", help="the .MODEL to write")
    flags.add_argument(
        "--device",
        default="auto",
        help="auto | emulator | usb | usb:<serial or index> | virtual | eusb:<serial or node> (default: auto: a"
        " stick if one is plugged in, else the emulator)",
    )
    flags.add_argument(
        "--unknown",
        type=float,
        default=0.05,
        metavar="SHARE",
        help='share of photographs of the classes that may be answered "unknown"; 0 leaves that answer out'
        " (default: 0.05)",
    )
    flags.add_argument("--features", metavar="FILE", help="where features are kept (default: beside --out)")
    flags.add_argument("--top", type=int, default=5, metavar="N", help="labels in a result (default: 5)")
    return flags


def main() -> int:
    """Parse the command line, learn, write."""
    args = parser().parse_args()
    if args.top < 1:
        raise UsageError("--top", "leaves no label", expected="at least 1", received=args.top)
    cache = args.features or f"{args.out}.features.npz"
    for path in (args.out, cache):
        files.check_writable(path)

    from gti.chip.runtime import teach
    from gti.chip.runtime.features import load_backbone
    from gti.progress import progress_over

    backbone = load_backbone(args.backbone)
    lesson = teach.learn(
        backbone,
        args.folder,
        cache=cache,
        device=args.device,
        unknown=args.unknown,
        progress=lambda items, total: progress_over(items, total, "features", "photo"),
    )
    if lesson.description:
        print(lesson.description, file=sys.stderr)
    for problem in lesson.refused:
        print(f"error: {problem}", file=sys.stderr)
    left_out = f", {len(lesson.refused)} left out" if lesson.refused else ""
    print(f"{len(lesson.photos)} photographs of {len(lesson.names)} classes, {lesson.new} of them new{left_out}")
    for line in teach.report(lesson):
        print(printable(line, 1000))
    data = teach.to_model(lesson, backbone, Path(args.out).stem, args.top)
    files.write_atomic(args.out, data)
    print(f"{args.out}: {len(data):,} bytes")
    return 1 if lesson.refused else 0


if __name__ == "__main__":
    cli.run(main)
