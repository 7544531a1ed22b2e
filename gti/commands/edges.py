"""Edges of photographs, on sticks or without any, and without TensorFlow:

    gti edges nets/2801_edges.model photo.jpg --out edges.png
    gti edges nets/2801_edges.model photos/ --out edges/          # edges/<name>.png of each photograph
    gti edges nets/2801_edges.model --camera 0

The project makes the .MODEL with scripts/make_edges.py (docs/edges.md). Pictures are 8-bit grey, 255 = edge, as large
as the photograph. Exit status 1 when some of the photographs could not be used.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from gti import files
from gti.commands import flags, frames, pictures
from gti.commands.pictures import Picture
from gti.errors import FormatError, ImageError, UsageError, reason

# Pillow's name of the format by the suffix of --out; what has no suffix, a device for example, gets a PNG.
FORMATS = {
    **{"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".gif": "GIF"},
    **{".pgm": "PPM", ".ppm": "PPM", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"},
}
QUALITY = 95  # of JPEG and WEBP: thin lines suffer first

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gti.chip.runtime.edges import EdgeModel


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("edges", __doc__)
    result.add_argument(
        "model", type=flags.model_file, help=".MODEL for edges, as the project's scripts/make_edges.py writes it"
    )
    result.add_argument("images", nargs="*", metavar="IMAGE", help=pictures.HELP)
    result.add_argument(
        "--out",
        metavar="FILE",
        help="the picture to write, in the format of its suffix; for several photographs, a folder",
    )
    result.add_argument("--size", type=int, metavar="N", help="write N x N pixels (default: the photograph's own size)")
    result.add_argument("--invert", action="store_true", help="dark edges on white")
    result.add_argument(
        "--camera", metavar="SOURCE", help="show the edges of what a camera (a number), film or stream shows"
    )
    flags.add_json(result)
    flags.add_device(result)
    return result


def outputs(images: Sequence[Picture], model: str, out: str, *, many: bool) -> list[Path]:
    """Return the picture to write for each photograph.

    Raises UsageError for a suffix of no picture, where two would have the same name, and where one would replace
    `model` or a photograph.
    """
    read: list[str | Path] = [model, *(picture.path for picture in images)]
    if not many:
        files.check_writable(out, *read)
        if Path(out).suffix.lower() not in FORMATS:
            raise UsageError("--out", "is no picture", expected=", ".join(filter(None, FORMATS)), received=out)
        return [Path(out)]
    names = [f"{picture.path.stem}.png" for picture in images]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            "--out", "would get two pictures of one name", received=twice[0], fix="take one folder at a time"
        )
    found = {path.resolve() for path in map(Path, read)}
    lost = next((name for name in names if (Path(out) / name).resolve() in found), None)
    if lost is not None:
        raise UsageError("--out", "would replace what is read", received=lost, fix="name another folder")
    files.make_writable_folder(out)
    return [Path(out) / name for name in names]


def write_picture(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write grey pixels [H,W] in the format of the suffix. Raises UsageError where this Pillow cannot write it."""
    from PIL import Image

    buffer = io.BytesIO()
    try:
        Image.fromarray(pixels).save(buffer, FORMATS[path.suffix.lower()], quality=QUALITY)
    except (KeyError, OSError, ValueError) as problem:  # a Pillow built without the format; a picture too large for it
        raise UsageError("--out", f"cannot be written ({reason(problem)})", received=path, fix="take .png") from None
    files.write_atomic(path, buffer.getvalue())


def show_camera(model: EdgeModel, source: str, *, invert: bool) -> None:
    """Show edges until q or Escape."""
    from gti.chip.host import edge_head

    cv2 = frames.opencv()
    with frames.open_source(cv2, source) as camera, frames.Window(cv2, "edges", needed=True) as window:
        for frame in camera:
            pixels = model.preprocessing.apply(frame, "BGR")
            chance = edge_head.probabilities(model.logits(pixels), frame.shape[:2])
            if not window.show(edge_head.picture(chance, invert=invert)):
                return


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line, compute, write."""
    args = parser().parse_args(words)
    if bool(args.images) == bool(args.camera):
        raise UsageError("gti edges", "needs photographs or --camera", expected="one of the two")
    if args.images and not args.out:
        raise UsageError("--out", "is missing", expected="a file or folder to write")
    if args.size is not None and not 1 <= args.size <= 10_000:
        raise UsageError("--size", "is no size of a picture", expected="1..10000", received=args.size)
    with ExitStack() as stack:
        images = pictures.find(args.images, stack)
        many = len(images) > 1 or any(Path(name).is_dir() for name in args.images)
        targets = outputs(images, args.model, args.out, many=many) if images else []
        return _edges(args, images, targets)


def _edges(args: argparse.Namespace, images: Sequence[Picture], targets: Sequence[Path]) -> int:
    options = flags.stick_options(args)

    from gti.chip.host import edge_head
    from gti.chip.runtime.edges import EdgeModel

    refused = 0
    with EdgeModel(args.model, args.device, **options) as model:
        flags.note(model.device_description)
        if args.camera:
            show_camera(model, args.camera, invert=args.invert)
        for picture, target in zip(images, targets, strict=True):
            try:
                pixels, own = model.load(picture.path)
            except (ImageError, FormatError) as problem:
                refused += 1
                flags.note(f"error: {picture.told(problem)}")
                if args.json:
                    print(flags.json_line({"file": picture.name, "error": picture.told(problem)}), flush=True)
                continue
            chance = edge_head.probabilities(model.logits(pixels), (args.size, args.size) if args.size else own)
            write_picture(target, edge_head.picture(chance, invert=args.invert))
            facts = {"file": picture.name, "edges": str(target), "height": chance.shape[0], "width": chance.shape[1]}
            print(flags.json_line(facts) if args.json else target, flush=True)
    return 1 if refused else 0
