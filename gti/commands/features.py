"""Features of photographs: what the last layer of a network on the chip answers, for programs of your own.

    gti features gnet32.dat photos/ --out f.npz                 # one row of averages for each photograph
    gti features gnet32.dat photos/ --out f.npz --mode learn --whole
    gti features gnet32.dat photos/ --similar 3

The .npz holds `files` (names) and `features`, float32 [photographs, channels]: each channel averaged over its
positions, codes 0..31; modes with the maps of several layers put the channels of one behind those of another. --whole
keeps the maps as they are: map0, map1, ..., uint8 [photographs, channels, height, width]. --similar prints the nearest
neighbours of each photograph: cosine of the features, 1 = alike, after their mean over all photographs is taken away.
A .DAT does not say how pictures are prepared, `gti build` adds that. Exit status 1 when some photographs could not be
used; they are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gti import files
from gti.chip.wire.registers import MODE_NAMES
from gti.commands import flags, pictures
from gti.commands.pictures import Picture
from gti.errors import FormatError, ImageError, UsageError, printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("features", __doc__)
    result.add_argument(
        "model", type=flags.model_file, help=".DAT or .MODEL of a network on the chip; host layers are not used"
    )
    result.add_argument("images", nargs="+", metavar="IMAGE", help=pictures.HELP)
    result.add_argument("--mode", choices=MODE_NAMES, default="fc", help="which maps to read out (default: fc)")
    result.add_argument("--out", metavar="FILE.npz", help="the arrays to write")
    result.add_argument("--whole", action="store_true", help="write maps in place of averages")
    result.add_argument("--similar", type=int, nargs="?", const=5, metavar="N", help="print N neighbours (default: 5)")
    flags.add_json(result)
    flags.add_device(result)
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line, compute, write."""
    args = parser().parse_args(words)
    flags.at_least_one("--similar", args.similar, "prints nothing")
    if args.out is None and args.similar is None and not args.json:
        raise UsageError("gti features", "has nothing to do", fix="pass --out, --similar or --json")
    if args.out is not None:
        files.check_writable(args.out, args.model)
    with ExitStack() as stack:
        images = pictures.find(args.images, stack)
        if args.out is not None:
            files.check_writable(args.out, *(image.path for image in images))
        return _features(args, images)


def _features(args: argparse.Namespace, images: Sequence[Picture]) -> int:
    options = flags.stick_options(args)

    import numpy as np

    from gti.chip.formats import npy
    from gti.chip.runtime.feature_maps import FeatureMaps
    from gti.progress import progress_over

    refused: list[tuple[Picture, str]] = []
    used: list[Picture] = []

    def pixels() -> Iterator[npt.NDArray[np.uint8]]:
        for image in images:
            try:
                loaded = model.load(image.path)
            except (ImageError, FormatError) as problem:
                refused.append((image, image.told(problem)))
                continue
            used.append(image)
            yield loaded

    rows: list[npt.NDArray[np.float32]] = []
    whole: list[list[npt.NDArray[Any]]] = []
    with FeatureMaps(args.model, args.device, args.mode, **options) as model:
        flags.note(model.device_description)
        if not model.has_contract:
            flags.note("note: the file does not say how pictures are prepared; whole pictures are resized (gti build)")
        for maps in progress_over(model.maps(pixels()), len(images), "features", "photo"):
            rows.append(model.averages(maps))
            if args.whole:
                whole.append(maps)
    for _, text in refused:
        flags.note(f"error: {text}")
    if not rows:
        raise ImageError("images", "none of them could be used", received=len(images))
    values = np.stack(rows)
    names = [image.name for image in used]
    if args.out is not None:
        arrays: dict[str, Any] = {"files": np.array(names)}
        if args.whole:
            arrays |= {f"map{i}": np.stack(maps) for i, maps in enumerate(zip(*whole, strict=True))}
        else:
            arrays["features"] = values
        files.write_atomic(args.out, npy.npz_bytes(arrays))
        left_out = f", {len(refused)} left out" if refused else ""
        flags.note(f"{args.out}: {len(names)} photographs, {values.shape[1]} features{left_out}")
    _print(args, names, values, refused)
    return 1 if refused else 0


def _print(
    args: argparse.Namespace, names: Sequence[str], values: npt.NDArray[np.float32], refused: Sequence[Any]
) -> None:
    from gti.chip.runtime import feature_maps

    alike = feature_maps.neighbours(values, args.similar) if args.similar else [[] for _ in names]
    for name, row, near in zip(names, values, alike, strict=True):
        if args.json:
            facts: dict[str, Any] = {"file": name}
            if args.similar:
                facts["similar"] = [{"file": names[other], "cosine": round(cosine, 6)} for other, cosine in near]
            else:
                facts["features"] = [round(float(value), 6) for value in row]
            print(flags.json_line(facts))
        elif args.similar:
            texts = ", ".join(f"{printable(names[other])} {cosine:.3f}" for other, cosine in near)
            print(f"{printable(name)}: {texts}")
    if args.json:
        for image, text in refused:
            print(flags.json_line({"file": image.name, "error": text}))
