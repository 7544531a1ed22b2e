"""NumPy's `.npy` and `.npz` files, read without trust: no pickle, sizes checked before anything is allocated."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping

import numpy as np

from gti.errors import FormatError

MAX_HEADER_BYTES = 64 * 1024
# Compressed members may unpack to this, so that a small file cannot fill the memory; they are held twice for a while.
_FREE_BYTES = 28 * 1024 * 1024
_MAX_RATIO = 4
_MAX_MEMBERS = 4096
_CENTRAL_ENTRY = b"PK\x01\x02"  # begins each entry of a zip's directory
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack without a bound


def read_layout(data: bytes, name: str) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Return (shape, dtype, whether in Fortran order, offset of the values) of the `.npy` file `data`.

    Raises FormatError when it is none.
    """
    stream = io.BytesIO(data[: MAX_HEADER_BYTES + 16])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy and Python have opinions on the text of odd headers
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream, max_header_size=MAX_HEADER_BYTES)
    except Exception as problem:  # a hostile header fails in many ways
        # What follows ": <" is a Python object's address.
        reason = str(problem).split("\n")[0].partition(": <")[0][:120] or type(problem).__name__
        raise FormatError(name, f"is not a .npy file ({reason})", fix="write it with numpy.save") from None
    return tuple(shape), dtype, fortran, stream.tell()


def parse_npy(data: bytes, name: str) -> np.ndarray:
    """Return the array of the `.npy` file `data`, in C order. Raises FormatError."""
    shape, dtype, fortran, offset = read_layout(data, name)
    count = 1
    for length in shape:
        count *= int(length)
    if dtype.hasobject or dtype.itemsize == 0:
        raise FormatError(name, "holds Python objects", expected="numbers", received=dtype)
    if min(shape, default=1) < 0 or count * dtype.itemsize != len(data) - offset:
        raise FormatError(
            name,
            "has the wrong length",
            expected=f"{count * dtype.itemsize} bytes for {dtype} {list(shape)}",
            received=f"{len(data) - offset} bytes",
        )
    values = np.frombuffer(data, dtype, offset=offset)
    return np.array(values.reshape(shape, order="F" if fortran else "C"), order="C")


def parse_npz(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Return the arrays of the `.npz` file `data`. Raises FormatError."""
    # Counted before zipfile makes an object of each.
    if data.count(_CENTRAL_ENTRY) > _MAX_MEMBERS:
        raise FormatError(name, "holds too many arrays", expected=f"at most {_MAX_MEMBERS}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            limit = _FREE_BYTES + _MAX_RATIO * len(data)
            total = sum(member.file_size for member in members)
            if total > limit:
                raise FormatError(
                    name, "unpacks to too much", expected=f"at most {limit} bytes", received=f"{total} bytes"
                )
            result: dict[str, np.ndarray] = {}
            for member in members:
                key = member.filename.removesuffix(".npy")
                if key in result:
                    raise FormatError(name, f"holds two arrays of the name {key!a}", fix="keep one of them")
                if member.compress_type not in _METHODS:
                    raise FormatError(
                        name, f"array {key!a} is packed in an unusual way", fix="write it with numpy.savez"
                    )
                with archive.open(member) as file:
                    # The size in the directory may be a lie: never read beyond it.
                    content = file.read(member.file_size + 1)
                result[key] = parse_npy(content, f"{name}, array {key!a}")
            return result
    except FormatError:
        raise
    except Exception as problem:  # a damaged archive fails in many ways
        reason = str(problem).split("\n")[0][:120] or type(problem).__name__
        raise FormatError(name, f"is not a .npz file ({reason})", fix="write it with numpy.savez") from None


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return `arrays` as an uncompressed `.npz` file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
