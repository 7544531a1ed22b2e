"""Reading and writing files safely: bounded JSON, atomic writes, names inside a folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from gti.errors import FormatError, UsageError, reason, sentence

# A dat.json of six major layers has 4 KB, a header of a thousand layers 200 KB; a list of empty lists takes 21 times
# its text in memory.
MAX_JSON_BYTES = 1024 * 1024
MAX_JSON_DEPTH = 64


def read_bytes(path: str | os.PathLike[str], *, limit: int, error: type[FormatError] = FormatError) -> bytes:
    """Return the content of the regular file `path`, at most `limit` bytes.

    Raises `error` when the file is missing, is not a regular file, or is larger than `limit`.
    """
    name = os.fspath(path)
    descriptor, info = _open_regular(name, error)
    with os.fdopen(descriptor, "rb") as file:
        if info.st_size > limit:
            raise error(name, "is too large", expected=f"at most {limit} bytes", received=f"{info.st_size} bytes")
        data = file.read(info.st_size + 1)
    if len(data) > info.st_size:
        raise error(name, "grew while it was read", expected=f"{info.st_size} bytes")
    return data


def check_readable(path: str | os.PathLike[str], *, error: type[FormatError] = FormatError) -> None:
    """Raise `error` where `path` is no regular file that can be opened: told before the work, not after it."""
    os.close(_open_regular(os.fspath(path), error)[0])


def _open_regular(name: str, error: type[FormatError]) -> tuple[int, os.stat_result]:
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise error(name, "no such file", fix="check the path") from None
    except (OSError, ValueError) as problem:
        raise error(name, f"cannot be opened ({reason(problem)})", fix="check the path and its permissions") from None
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)  # os.fdopen would refuse a folder in its own words
        raise error(name, "is not a regular file", expected="a file", fix="pass a file's path")
    return descriptor, info


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` so that the old content survives any failure.

    A temporary file beside it is written, flushed to the disk and renamed. A link is followed; a device or a FIFO is
    written to as it is. Raises UsageError where the folder is missing or the disk refuses.
    """
    target = Path(path)
    temporary = ""
    try:
        if _is_stream(path):
            _write_stream(path, data)
            return
        target = Path(os.path.realpath(path))
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~umask()
        os.chmod(temporary, mode)
        move(temporary, target)
        temporary = ""
    except OSError as problem:
        raise not_written(os.fspath(path), problem) from problem
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def move(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Move the finished file `source` to `path`: a link is followed, and only a regular file is ever replaced.

    Raises OSError.
    """
    target = refuse_special(path)
    try:
        os.replace(source, target)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        beside = f"{target}.moving"  # a link into another file system
        shutil.copyfile(source, beside)
        os.replace(beside, target)
        os.unlink(source)


def refuse_special(path: str | os.PathLike[str]) -> str:
    """Return where `path` leads, links followed. Raises OSError where that is there and is no regular file."""
    target = os.path.realpath(path)
    if os.path.lexists(target) and not os.path.isfile(target):
        number = errno.EISDIR if os.path.isdir(target) else errno.EEXIST
        raise OSError(number, os.strerror(number) if number == errno.EISDIR else "is no regular file", target)
    return target


def _is_stream(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is to be written where it is: a device, a FIFO, a stream of this process."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        return not stat.S_ISDIR(mode)
    names = (os.path.abspath(path), os.path.realpath(path))
    return any(name.startswith(("/dev/fd/", "/dev/std", "/proc/")) for name in names)


def _write_stream(path: str | os.PathLike[str], data: bytes) -> None:
    # Without O_NONBLOCK a FIFO would be waited for that nobody reads.
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    with os.fdopen(os.open(path, flags), "wb", buffering=0) as file:
        os.set_blocking(file.fileno(), True)
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]


def open_stream(path: str | os.PathLike[str]) -> BinaryIO:
    """Return `path` opened to be written as things happen, such as a recording: it is no whole file until it is closed.

    A link is followed; a device or a FIFO is written to as it is. Raises UsageError where that is impossible, also for
    a FIFO that nobody reads.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "wb")
    except OSError as problem:
        raise not_written(os.fspath(path), problem) from problem
    os.set_blocking(file.fileno(), True)
    return file


def check_writable(path: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Raise UsageError where `write_atomic` could not write the file `path`: told before the work, not after it.

    Nor may it be one of `inputs`, the files that the work reads: a slip would cost the user a photograph or a network.
    """
    target = Path(path)
    if any(os.path.exists(one) and target.exists() and os.path.samefile(target, one) for one in inputs):
        raise UsageError(
            str(target), "is read for this work and would be overwritten", fix="name another file to write"
        )
    if target.is_dir():
        raise UsageError(str(target), "is a folder", expected="a file to write", fix="pass a file's path")
    try:
        stream = _is_stream(path)
    except OSError as problem:
        raise not_written(str(target), problem) from problem
    if not stream:
        _try_to_write(Path(os.path.realpath(path)).parent, str(target))
    elif not os.access(path, os.W_OK):
        raise not_written(str(target), PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def make_writable_folder(folder: str | os.PathLike[str]) -> None:
    """Create `folder`, or what it links to, where it is missing; raise UsageError where that, or writing, fails."""
    try:
        os.makedirs(os.path.realpath(folder), exist_ok=True)  # also where a link leads that leads nowhere yet
    except OSError as problem:
        raise UsageError(
            str(folder),
            f"cannot be made a folder ({problem.strerror})",
            fix="pass a folder that can be written, or a path where one can be created",
        ) from problem
    _try_to_write(Path(folder), str(folder))


def _try_to_write(folder: Path, name: str) -> None:
    try:
        with tempfile.NamedTemporaryFile(prefix=".try-", dir=folder):
            pass
    except OSError as problem:
        raise not_written(name, problem) from problem


def not_written(name: str, problem: OSError) -> UsageError:
    """Return what to say of a file that could not be written."""
    return UsageError(
        name,
        f"cannot be written ({problem.strerror})",
        fix="check that the folder exists, is writable and has space",
    )


def umask() -> int:
    """Return the mask of permission bits that new files of this process lack."""
    # The only way to read the mask is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON text with a final newline, atomically."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return `value` as indented JSON text with a final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: str | os.PathLike[str], *, error: type[FormatError] = FormatError) -> Any:
    """Return the JSON value in file `path`; see `parse_json` for what is refused."""
    return parse_json(read_bytes(path, limit=MAX_JSON_BYTES, error=error), os.fspath(path), error=error)


def parse_json(data: bytes, name: str, *, error: type[FormatError] = FormatError) -> Any:
    """Return the JSON value of UTF-8 `data`; `name` is the file named in errors.

    Refused with `error`: more than `MAX_JSON_BYTES`, text that is not UTF-8 or not JSON, duplicate keys, NaN and
    Infinity, numbers beyond double range, integers of more than 40 digits, nesting deeper than 64 levels.
    """
    if len(data) > MAX_JSON_BYTES:
        raise error(name, "is too large", expected=f"at most {MAX_JSON_BYTES} bytes", received=f"{len(data)} bytes")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise error(name, f"the key {json.dumps(twice[:80])} stands twice in one object", fix="keep one of them")
        return result

    def constant(text: str) -> float:
        raise error(name, "holds a number that is none", expected="finite numbers", received=text)

    def real(text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise error(name, "holds a number beyond double range", received=text[:40])
        return value

    def integer(text: str) -> int:
        if len(text) > 40:
            raise error(name, "holds an integer of too many digits", received=text[:40] + "...")
        return int(text)

    deep = sentence(name, "is nested too deeply", expected=f"at most {MAX_JSON_DEPTH} levels")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=real,
            parse_int=integer,
        )
    except UnicodeDecodeError as problem:
        raise error(name, f"is not UTF-8 text at byte {problem.start}", fix="save it as UTF-8") from None
    except json.JSONDecodeError as problem:
        raise error(
            name,
            f"is not JSON: {problem.msg.removesuffix(' at')} at line {problem.lineno}, column {problem.colno}",
            fix="correct the text there",
        ) from None
    except RecursionError:
        raise error(deep) from None
    if _is_deep(value):
        raise error(deep)
    return value


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value of a JSON file is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value of a JSON file is a number; true and false are none."""
    return isinstance(value, float) or is_whole(value)


def _is_deep(value: Any) -> bool:
    """Return whether lists and objects of `value` are nested beyond `MAX_JSON_DEPTH`."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_JSON_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
    return bool(level)


def inside(folder: str | os.PathLike[str], name: str, *, error: type[FormatError] = FormatError) -> Path:
    """Return the path of the file `name` inside `folder`; names come from files and are not trusted.

    Raises `error` for absolute names, `..`, drive letters, control characters, and links that lead anywhere else.
    """
    base = Path(folder).resolve()
    bad = (
        not name
        or len(name) > 255
        or not name.isprintable()
        or name.startswith(("/", "\\", "~"))
        or ":" in name
        or "\\" in name
        or any(part in ("", ".", "..") for part in name.split("/"))
    )
    if not bad:
        path = base / name
        if not path.is_symlink() and path.resolve().is_relative_to(base):
            return path
    raise error(
        f"file name {json.dumps(name[:80])}",
        f"leads outside the folder {folder}",
        expected="a plain file name inside it",
    )
