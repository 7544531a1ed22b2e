"""Edges of photographs, on sticks or without any, and without TensorFlow:

    python addon/edges.py nets/2801_edges.model photo.jpg --out edges.png
    python addon/edges.py nets/2801_edges.model photos/ --out edges/          # edges/<name>.png of each photograph
    python addon/edges.py nets/2801_edges.model --camera 0

scripts/make_edges.py makes the .MODEL (docs/edges.md). Pictures are 8-bit grey, 255 = edge, as large as the photograph.
Exit status 1 when some of the photographs could not be used.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gti import cli, files
from gti.chip.host.image_search import find_images
from gti.errors import FormatError, ImageError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gti.chip.runtime.edges import EdgeModel


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("model", help=".MODEL of scripts/make_edges.py")
    flags.add_argument("images", nargs="*", metavar="IMAGE", help="image file, or folder of them")
    flags.add_argument("--out", metavar="FILE", help="the picture to write; for several photographs, a folder")
    flags.add_argument("--size", type=int, metavar="N", help="write N x N pixels (default: the photograph's own size)")
    flags.add_argument("--invert", action="store_true", help="dark edges on white")
    flags.add_argument(
        "--camera", metavar="SOURCE", help="show the edges of what a camera (a number), film or stream shows"
    )
    flags.add_argument(
        "--device",
        default="auto",
        help="auto | emulator | usb | usb:<serial or index> | virtual | eusb:<serial or node> (default: auto: a"
        " stick if one is plugged in, else the emulator)",
    )
    return flags


def outputs(images: Sequence[Path], out: str, *, many: bool) -> list[Path]:
    """Return the picture to write for each photograph. Raises UsageError where two would have the same name."""
    if not many:
        files.check_writable(out)
        return [Path(out)]
    names = [f"{path.stem}.png" for path in images]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            "--out", "would get two pictures of one name", received=twice[0], fix="take one folder at a time"
        )
    files.make_writable_folder(out)
    return [Path(out) / name for name in names]


def write_picture(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write grey pixels [H,W] as a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    files.write_atomic(path, buffer.getvalue())


def show_camera(model: EdgeModel, source: str, *, invert: bool) -> None:
    """Show edges until q or Escape."""
    from addon.camera import Camera, opencv
    from gti.chip.host import edge_head

    cv2 = opencv()
    camera = Camera(cv2, source, None)
    try:
        for pixels in camera.images(model.preprocessing):
            frame = camera.shown.popleft()
            chance = edge_head.probabilities(model.logits(pixels), frame.shape[:2])
            cv2.imshow("edges", edge_head.picture(chance, invert=invert))
            camera.ended = cv2.waitKey(1) & 0xFF in (27, ord("q"))
    finally:
        camera.close()
        cv2.destroyAllWindows()


def main() -> int:
    """Parse the command line, compute, write."""
    args = parser().parse_args()
    if bool(args.images) == bool(args.camera):
        raise UsageError("edges.py", "needs photographs or --camera", expected="one of the two")
    if args.images and not args.out:
        raise UsageError("--out", "is missing", expected="a file or folder to write")
    if args.size is not None and not 1 <= args.size <= 10_000:
        raise UsageError("--size", "is no size of a picture", expected="1..10000", received=args.size)
    images = find_images(args.images)
    many = len(images) > 1 or any(Path(name).is_dir() for name in args.images)
    targets = outputs(images, args.out, many=many) if images else []

    from gti.chip.host import edge_head
    from gti.chip.runtime.edges import EdgeModel

    refused = 0
    with EdgeModel(args.model, args.device) as model:
        print(model.device_description, file=sys.stderr)
        if args.camera:
            show_camera(model, args.camera, invert=args.invert)
        for path, target in zip(images, targets, strict=True):
            try:
                pixels, own = model.load(path)
            except (ImageError, FormatError) as problem:
                refused += 1
                print(f"error: {problem}", file=sys.stderr)
                continue
            chance = edge_head.probabilities(model.logits(pixels), (args.size, args.size) if args.size else own)
            write_picture(target, edge_head.picture(chance, invert=args.invert))
            print(target)
    return 1 if refused else 0


if __name__ == "__main__":
    cli.run(main)
