"""USB traffic of a stick without the stick: what is sent, what comes back, and what a recorded stream means.

    gti trace encode --model nets/2801_digits.model --image 7.npy --mode fc --out trace
    gti trace show trace/load.bin trace/frame0.bin
    gti trace show session.gz
    gti trace decode --model nets/2801_digits.model --mode fc --read result.bin --out tensor.npy

encode writes load.bin, frame0.bin, frame1.bin, ...: the bytes in the order sent, to pipe 0x02 of the FT60x bridge or in
WRITE(10) commands after the opening sequence of an eUSB stick. decode turns the bytes read for one frame into the flat
tensor. Formats: docs/usb_protocol.md and docs/eusb_protocol.md.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gti.commands import flags
from gti.errors import FormatError, ImageError, UsageError
from gti.files import read_bytes, write_atomic

if TYPE_CHECKING:
    import numpy as np

    from gti.chip.loaded_model import LoadedModel
    from gti.chip.wire.protocol import Framing, Mode, WordMachine

MAX_FILE_BYTES = 1 << 30
FTDI_CHUNK = 2048
EUSB_BLOCK = 512
# Blocks per command, by the speed file of the USB device (docs/eusb_protocol.md, section 3).
EUSB_BLOCKS = {True: 128, False: 2048}
GZIP = b"\x1f\x8b"  # a recording; a stream of words has an opcode there


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line and run its verb."""
    arguments = parser().parse_args(words)
    arguments.verb(arguments)


class _Verb(flags.Parser):
    """The parser of a verb of the verb; argparse names it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog.removeprefix("gti "), "")


def parser() -> flags.Parser:
    """Return the parser of the command line."""
    result = flags.Parser("trace", __doc__)
    verbs = result.add_subparsers(
        required=True,
        metavar="{encode,decode,show}",
        parser_class=_Verb,
    )

    encode = verbs.add_parser("encode", help="write the bytes that load a network and send images")
    encode.set_defaults(verb=encode_verb)
    _add_stick(encode)
    encode.add_argument(
        "--image", action="append", required=True, metavar="FILE", help=".npy (uint8 HWC) or picture; one per frame"
    )
    encode.add_argument("--speed", default="480", help="eusb: USB speed in Mbit/s, 480 or 5000 (default 480)")
    encode.add_argument("--out", required=True, metavar="DIR", help="folder for load.bin, frame0.bin, ...")

    decode = verbs.add_parser("decode", help="turn the bytes read for one frame into the tensor")
    decode.set_defaults(verb=decode_verb)
    _add_stick(decode)
    decode.add_argument("--read", required=True, metavar="FILE", help="bytes read from the stick, whole words")
    decode.add_argument("--scaledown", type=int, help="right shift of each value (default: of the .model, else 0)")
    decode.add_argument("--type", choices=("float", "byte"), help="of the tensor (default: of the .model, else float)")
    decode.add_argument("--out", required=True, metavar="FILE", help=".npy to write: flat, maps in read-out order")

    show = verbs.add_parser("show", help="list streams by segment (several files are one session), and recordings")
    show.set_defaults(verb=show_verb)
    show.add_argument("file", nargs="+", help="stream of words, such as load.bin frame0.bin, or what --record wrote")
    show.add_argument("--pid", type=product_id, help="601f (4-byte words) or 601e (2-byte words); default: found out")
    return result


def _add_stick(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", type=flags.model_file, required=True, metavar="FILE", help=".model or bare .dat")
    verb.add_argument("--mode", help="fc, learn, single, sublast, lastmajor or 0-6 (default: of the .model, else fc)")
    verb.add_argument("--transport", choices=("ftdi", "eusb"), default="ftdi", help="kind of stick (default ftdi)")
    verb.add_argument(
        "--pid", type=product_id, default=0x601F, help="ftdi: USB product id, 601f or 601e (default 601f)"
    )


def product_id(text: str) -> int:
    """Return the USB product id written in hexadecimal."""
    return int(text, 16)


def encode_verb(arguments: argparse.Namespace) -> None:
    """Write load.bin and one frame<k>.bin for each image."""
    from gti.chip.loaded_model import load_model
    from gti.chip.wire.protocol import FrameEncoder, encode_load

    model = load_model(Path(arguments.model))
    mode, framing = _mode(arguments, model), _framing(arguments)
    images = [_planes(path, model) for path in arguments.image]
    encoders = {len(image): FrameEncoder(model.header, mode, len(image), framing=framing) for image in images}
    blocks = {"load.bin": encode_load(model.dat, framing=framing)}
    for k, image in enumerate(images):
        blocks[f"frame{k}.bin"] = encoders[len(image)].encode(image, first=k == 0)

    folder = Path(arguments.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(str(folder), f"cannot be made ({problem.strerror})", fix="choose another folder") from None
    chunk = FTDI_CHUNK
    if arguments.transport == "eusb":
        chunk = EUSB_BLOCK * EUSB_BLOCKS[arguments.speed.startswith("480")]
    for name, data in blocks.items():
        write_atomic(folder / name, data)
        print(f"{folder / name}: {len(data)} bytes, {-(-len(data) // chunk)} writes of at most {chunk}")


def decode_verb(arguments: argparse.Namespace) -> None:
    """Write the tensor of one frame's result."""
    import numpy as np

    from gti.chip.loaded_model import load_model
    from gti.chip.wire.protocol import read_out, strip_words, tensor

    model = load_model(Path(arguments.model))
    selection, settings = read_out(model.header, _mode(arguments, model)), _settings(model)
    width = _framing(arguments).word_bytes
    raw = read_bytes(arguments.read, limit=MAX_FILE_BYTES)
    if len(raw) != selection.length * width:
        raise FormatError(
            arguments.read,
            "is not the result of one frame",
            expected=f"{selection.length} words of {width} bytes",
            received=f"{len(raw)} bytes",
            fix="check --mode, --pid and --transport",
        )
    scaledown = arguments.scaledown
    if scaledown is None:
        scaledown = settings.get("output scaledown", 0)
    if not isinstance(scaledown, int):
        raise FormatError(arguments.model, "has no usable output scaledown", expected="an integer")
    kind = arguments.type or settings.get("output type")
    values = tensor(selection.unpack(strip_words(raw, width)), scaledown, kind)
    file = io.BytesIO()
    np.save(file, values)
    write_atomic(arguments.out, file.getvalue())
    for maps in selection.sets:
        place = "after pooling" if maps.pooled else "before pooling"
        print(f"major {maps.major + 1} / sub {maps.sublayer + 1}: {maps.channels} x {maps.size} x {maps.size} {place}")
    print(f"{arguments.out}: {values.size} values, {values.dtype}")


def show_verb(arguments: argparse.Namespace) -> None:
    """List written streams, one after another, as one session, and recordings."""
    from gti.chip.usb import trace
    from gti.chip.usb.stream_listing import listing, session
    from gti.chip.wire.protocol import WordMachine
    from gti.chip.wire.words import word_width

    machine: WordMachine | None = None
    for path in arguments.file:
        stream = read_bytes(path, limit=MAX_FILE_BYTES)
        if stream.startswith(GZIP):
            print(f"{path}: recording")
            cut = f"note: {path}: the recording breaks off here: its end is missing"
            for line in session(trace.read(path, partial(print, cut, file=sys.stderr)), path):
                print(line)
            continue
        width = word_width(stream) if arguments.pid is None else 4 if arguments.pid == 0x601F else 2
        if width is None:
            raise FormatError(
                path,
                "is no stream of words",
                expected="words [data][opcode 0-7], or [data][opcode 0-7][0][0]",
                received=f"{len(stream)} bytes that are neither",
                fix="pass a file that encode wrote, or tell the width with --pid",
            )
        if machine is None or machine.word_bytes != width:
            machine = WordMachine(width)
        print(f"{path}: {len(stream)} bytes, {width}-byte words")
        for line in listing(stream, machine):
            print(line)


def _settings(model: LoadedModel) -> dict[str, Any]:
    # What a .model says about the tensor; a bare .dat says nothing.
    for layer in model.container.layers if model.container else ():
        if layer.operation.upper() == "GTICNN" and layer.blob is not None:
            return layer.entry
    return {}


def _mode(arguments: argparse.Namespace, model: LoadedModel) -> Mode:
    from gti.chip.wire.protocol import parse_mode

    return parse_mode(model.mode if arguments.mode is None else arguments.mode)


def _framing(arguments: argparse.Namespace) -> Framing:
    from gti.chip.wire.protocol import EUSB, FT600, FT601

    if arguments.transport == "eusb":
        return EUSB
    return FT601 if arguments.pid == 0x601F else FT600


def _planes(path: str, model: LoadedModel) -> np.ndarray:
    from gti.chip.wire.tiles import check_image

    if Path(path).suffix == ".npy":
        # As many planes as the array has: the header of a foreign file need not say how many its host sent.
        image = _load_npy(path)
    else:
        from gti.chip.host.image import load_image

        image = load_image(path, model.size, model.planes)
    if image.ndim != 3:
        raise ImageError(path, "is no image", expected="uint8 [H,W,C]", received=f"{image.dtype} {image.shape}")
    planes = image.transpose(2, 0, 1)
    check_image(planes, model.size)
    return planes


def _load_npy(path: str) -> np.ndarray:
    from gti.chip.formats.npy import parse_npy

    data = read_bytes(path, limit=MAX_FILE_BYTES, error=FormatError)
    try:
        return parse_npy(data, path)
    except FormatError:
        expected = "uint8 [H,W,C] saved with numpy.save"
        raise ImageError(path, "is no .npy file of one array", expected=expected) from None
