"""Measure the USB path without silicon: cost of a frame on the host, frames per second of 1 and of N sticks.

    python scripts/bench_usb.py                    # 224x224x3 image, 512x7x7 FC result
    python scripts/bench_usb.py --sticks 4 --chip_ms 20 --image_size 56

The sticks are in software and answer a pattern after --chip_ms, so that nothing but the USB path is measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti.chip import protocol, spec
from gti.chip.pool import GtiPool
from gti.cli import run
from gti.errors import UsageError, sentence

SIZES = (14, 28, 56, 112, 224)


def synthetic_dat(size: int, outputs: int = 512) -> bytes:
    """Return a .DAT whose header leads from an image of `size` to outputs x 7 x 7; the coefficients are zeros."""
    layers = []
    inputs = 16
    while size >= 14:
        channels = outputs if size == 14 else 16
        layers.append([size | inputs << 8 | channels << 19 | 1 << 30, 1 << 4 | 1 << 30, 0])
        size, inputs = size // 2, channels
    words = [1, len(layers) << 5 | 0x0C01, *(word for layer in layers for word in layer)]
    words += [0] * (spec.HEADER_BYTES // 4 - len(words))
    return np.array(words, "<u4").tobytes() + bytes(192 * 64)


def host_cost(dat: bytes, size: int, rounds: int) -> tuple[float, float]:
    """Return the medians, in ms, of encoding a frame and of decoding an FC result."""
    header = protocol.Header.parse(dat)
    encoder = protocol.FrameEncoder(header, protocol.Mode.FC, 3)
    read_out = protocol.read_out(header, protocol.Mode.FC)
    image = np.random.RandomState(1).randint(0, 256, (size, size, 3)).astype(np.uint8)
    raw = bytes(read_out.length * 4)
    encode, decode = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        encoder.encode(image.transpose(2, 0, 1))
        middle = time.perf_counter()
        (codes,) = read_out.unpack(protocol.strip_words(raw, 4))
        (codes >> 3).transpose(1, 2, 0)[None].astype(np.float32)
        encode.append(middle - start)
        decode.append(time.perf_counter() - middle)
    return statistics.median(encode) * 1000, statistics.median(decode) * 1000


def rate(path: Path, sticks: int, chip_ms: float, size: int, seconds: float) -> float:
    """Return frames per second of a pool."""
    images = np.random.RandomState(2).randint(0, 256, (8, size, size, 3)).astype(np.uint8)
    frames = max(8, int(seconds * sticks * 1000 / max(chip_ms, 1.0)))
    with GtiPool(path, ["virtual"] * sticks, chip_time_ms=chip_ms) as pool:
        list(pool.evaluate_many(images))
        start = time.perf_counter()
        count = sum(1 for _ in pool.evaluate_many(images[k % 8] for k in range(frames)))
        return count / (time.perf_counter() - start)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sticks", type=int, default=4, help="sticks of the larger pool (default: %(default)s)")
    parser.add_argument(
        "--chip_ms", type=float, default=20.0, help="time of a frame on the chip (default: %(default)s)"
    )
    parser.add_argument("--image_size", type=int, default=224, help="14 to 224 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)")
    flags = parser.parse_args()
    if flags.image_size not in SIZES or flags.sticks < 1 or flags.chip_ms < 0 or flags.seconds <= 0:
        raise UsageError(sentence("flags", "are out of range", expected=f"image_size in {SIZES}, the others positive"))
    size = flags.image_size
    dat = synthetic_dat(size)
    encode, decode = host_cost(dat, size, 200)
    print(f"host, {size}x{size}x3: encode {encode:.3f} ms + decode {decode:.3f} ms = {encode + decode:.3f} ms a frame")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.dat"
        path.write_bytes(dat)
        one = rate(path, 1, flags.chip_ms, size, flags.seconds)
        print(f"1 stick, chip {flags.chip_ms:g} ms: {one:.1f} frames/s")
        if flags.sticks > 1:
            many = rate(path, flags.sticks, flags.chip_ms, size, flags.seconds)
            print(f"{flags.sticks} sticks: {many:.1f} frames/s, {many / one:.2f} times as many")


if __name__ == "__main__":
    run(main)
