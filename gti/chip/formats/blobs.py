"""Data of host layers inside a .MODEL: fully connected weights and label texts (docs/model_format.md)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gti.errors import ModelFileError

# Lines are kept as Python strings, of about 60 bytes at least.
MAX_LABELS = 1_000_000
MAX_LABEL_BYTES = 4 * 1024 * 1024
_FC_HEADER_BYTES = 8


def encode_fc(weights: np.ndarray, biases: np.ndarray) -> bytes:
    """Return the blob of a fully connected layer y = W x + b: sizes, weights, biases, little-endian float32.

    `weights` [out, in] and `biases` [out], finite; the input is the previous tensor flattened in the order C, H, W.
    Raises ModelFileError for other shapes and for values that are not finite as float32.
    """
    if weights.ndim != 2 or not weights.size or biases.shape != weights.shape[:1]:
        raise ModelFileError(
            "FC layer",
            "weights and biases do not fit together",
            expected="weights [out, in] and biases [out]",
            received=f"{list(weights.shape)} and {list(biases.shape)}",
        )
    with np.errstate(over="ignore"):
        parts = [np.ascontiguousarray(part, dtype="<f4") for part in (weights, biases)]
    _refuse_not_finite(parts[0], parts[1], "FC layer")
    sizes = np.array([weights.shape[1], weights.shape[0]], "<i4")
    return b"".join([sizes.tobytes(), *(part.tobytes() for part in parts)])


def decode_fc(data: bytes | memoryview, name: str = "FC data") -> tuple[np.ndarray, np.ndarray]:
    """Return (weights float32 [out, in], biases float32 [out]) of an FC blob; read-only views of `data`.

    Raises ModelFileError when the sizes disagree with the length, or a value is not finite.
    """
    inputs, outputs = fc_sizes(data, name)
    values = np.frombuffer(data, "<f4", outputs * inputs + outputs, _FC_HEADER_BYTES)
    weights = values[: outputs * inputs].reshape(outputs, inputs)
    biases = values[outputs * inputs :]
    _refuse_not_finite(weights, biases, name)
    return weights, biases


def fc_sizes(data: bytes | memoryview, name: str = "FC data") -> tuple[int, int]:
    """Return (inputs, outputs) of an FC blob after checking them against its length. Raises ModelFileError."""
    if len(data) < _FC_HEADER_BYTES:
        raise ModelFileError(
            name, "is too short", expected="8 bytes of sizes and float32 values", received=f"{len(data)} bytes"
        )
    inputs, outputs = (int(size) for size in np.frombuffer(data, "<i4", 2))
    # Python's integers do not wrap, whatever the header claims.
    need = _FC_HEADER_BYTES + 4 * (inputs * outputs + outputs)
    if inputs < 1 or outputs < 1 or need != len(data):
        raise ModelFileError(
            name,
            f"its sizes ({inputs} inputs, {outputs} outputs) disagree with its length",
            expected=f"{need} bytes" if inputs > 0 and outputs > 0 else "sizes of at least 1",
            received=f"{len(data)} bytes",
            fix="convert the layer again",
        )
    return inputs, outputs


def encode_labels(labels: Sequence[str]) -> bytes:
    """Return the text of one label a line, with escapes for what is not UTF-8 in them.

    Raises ModelFileError for a label that would be read back as another one: it ends a line, or holds a NUL.
    """
    strange = next((label for label in labels if re.search(r"[\n\0]|\r$", label)), None)
    if strange is not None:
        raise ModelFileError("labels", "one of them ends a line", expected="one line each", received=repr(strange))
    return "".join(f"{label}\n" for label in labels).encode("utf-8", "backslashreplace")


def parse_labels(data: bytes | memoryview, name: str = "labels") -> list[str]:
    """Return the labels of a text of one label a line; the index is the line number, empty lines count.

    LF and CRLF end lines alike; a byte order mark is dropped. Raises ModelFileError for text that is not UTF-8, holds
    NULs, or has more than 4 MiB or a million lines.
    """
    if len(data) > MAX_LABEL_BYTES:
        raise ModelFileError(
            name, "is too large", expected=f"at most {MAX_LABEL_BYTES} bytes", received=f"{len(data)} bytes"
        )
    try:
        text = bytes(data).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ModelFileError(name, f"is not UTF-8 text at byte {problem.start}", fix="save it as UTF-8") from None
    if "\0" in text:
        raise ModelFileError(name, "holds a NUL character", expected="text, one label a line")
    count = text.count("\n") + 1
    if count > MAX_LABELS:
        raise ModelFileError(name, "has too many lines", expected=f"at most {MAX_LABELS}", received=count)
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _refuse_not_finite(weights: np.ndarray, biases: np.ndarray, name: str) -> None:
    for what, values in (("weights", weights), ("biases", biases)):
        finite = np.isfinite(values)
        if not finite.all():
            first = np.unravel_index(int(finite.argmin()), finite.shape)
            place = ", ".join(str(int(k)) for k in first)
            raise ModelFileError(
                name,
                f"{finite.size - np.count_nonzero(finite)} of its {what} are not finite, the first at [{place}]",
                expected="finite float32 values",
                received=values[first],
                fix="convert from a sound checkpoint",
            )
