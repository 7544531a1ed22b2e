"""Teach a network on the chip classes of your own, from folders with a few photographs each, without TensorFlow:

    gti teach nets/2801_vgg16.model photos/ --out my.model      # photos/cat/*.jpg, photos/dog/*.jpg, ...
    gti classify my.model another.jpg

The chip, or the emulator where there is no stick, computes features of each photograph once; they are kept beside the
new file, so another class takes seconds. Printed are the accuracy on photographs that were held out, what is taken for
what, and which photographs confuse it. Exit status 1 when some photographs could not be used (docs/teach.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gti import files
from gti.commands import flags
from gti.errors import UsageError, printable


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("teach", __doc__)
    result.add_argument(
        "backbone",
        type=flags.model_file,
        help=".MODEL or .dat whose last layer gives 7x7; host layers in it are replaced",
    )
    result.add_argument("folder", help="one sub-folder of photographs a class; its name is the label")
    result.add_argument("--out", required=True, metavar="FILE", help="the .MODEL to write")
    result.add_argument(
        "--unknown",
        type=float,
        default=0.05,
        metavar="SHARE",
        help='share of photographs of the classes that may be answered "unknown"; 0 leaves that answer out'
        " (default: 0.05)",
    )
    result.add_argument("--features", metavar="FILE", help="where features are kept (default: beside --out)")
    result.add_argument("--top", type=int, default=5, metavar="N", help="labels in a result (default: 5)")
    flags.add_json(result)
    flags.add_device(result)
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line, learn, write."""
    args = parser().parse_args(words)
    flags.at_least_one("--top", args.top, "leaves no label")
    options = flags.stick_options(args)
    cache = args.features or f"{args.out}.features.npz"
    for path in (args.out, cache):
        files.check_writable(path, args.backbone, *Path(args.folder).glob("*/*"))
    if Path(cache).resolve() == Path(args.out).resolve():
        raise UsageError("--features", "is the file of --out", received=cache, fix="name another file, or leave it out")

    from gti.chip.formats import model_file
    from gti.chip.runtime import teach
    from gti.chip.runtime.features import load_backbone
    from gti.progress import progress_over

    backbone = load_backbone(args.backbone)
    lesson = teach.learn(
        backbone,
        args.folder,
        cache=cache,
        device=args.device,
        **options,
        unknown=args.unknown,
        progress=lambda items, total: progress_over(items, total, "features", "photo"),
    )
    if lesson.description:
        flags.note(lesson.description)
    for problem in lesson.refused:
        flags.note(f"error: {problem}")
    data = teach.to_model(lesson, backbone, model_file.name_of(args.out), args.top)
    files.write_atomic(args.out, data)
    if args.json:
        print(flags.json_line(teach.figures(lesson) | {"file": args.out, "bytes": len(data)}))
        return 1 if lesson.refused else 0
    left_out = f", {len(lesson.refused)} left out" if lesson.refused else ""
    print(f"{len(lesson.photos)} photographs of {len(lesson.names)} classes, {lesson.new} of them new{left_out}")
    for line in teach.report(lesson):
        print(printable(line, 1000))
    print(f"{args.out}: {len(data):,} bytes")
    return 1 if lesson.refused else 0
