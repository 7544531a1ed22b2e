"""Captured USB sessions (wire.json, eusb.json): their networks, images and read data, made again from seeds."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parent
# A folder with the vendor's sample file gnet32_coef_512.dat, too large to be carried here.
SAMPLES = "GTI_SAMPLES"


def stream(tag: str, length: int) -> bytes:
    """Return the first `length` bytes of sha256("tag:0") | sha256("tag:1") | ..."""
    blocks = (hashlib.sha256(f"{tag}:{k}".encode()).digest() for k in range(-(-length // 32)))
    return b"".join(blocks)[:length]


def cases(name: str) -> list[dict[str, Any]]:
    """Return the cases of wire.json or eusb.json."""
    return json.loads((FOLDER / name).read_text())["cases"]


def network(case: dict[str, Any]) -> bytes:
    """Return the .DAT of a case; skips the test when it is a file that is not here."""
    if isinstance(case["dat"], str):
        return bytes.fromhex(case["dat"])
    path = Path(os.environ.get(SAMPLES, "samples")) / case["dat"]["name"]
    if not path.is_file():
        pytest.skip(f"{path.name} is not here; {SAMPLES} names the folder that has it")
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == case["dat"]["sha256"]
    return data


def image(case: dict[str, Any], frame: int) -> np.ndarray:
    """Return the image of a frame, uint8 [C,H,W]."""
    shape = (case["image"]["c"], case["image"]["h"], case["image"]["w"])
    data = stream(f"img:{case['image']['seed']}:{frame}", int(np.prod(shape)))
    return np.frombuffer(data, np.uint8).reshape(shape)


def raw_result(case: dict[str, Any], frame: int) -> bytes:
    """Return the bytes that the substitute for the stick answered to a frame."""
    size = case["frames"][frame]["read"]
    tag = f"rd:{case['read_seed']}:{frame}"
    if case["framing"] == "EUSB":
        return stream(tag, size)
    width = 4 if case["framing"] == "FT601" else 2
    return np.frombuffer(stream(tag, size // width), np.uint8).astype(f"<u{width}").tobytes()
