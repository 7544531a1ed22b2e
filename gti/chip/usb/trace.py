"""Sessions with a stick, recorded to a file and replayed from it: a bug report carries its stick.

A recorder wraps a pyusb backend and writes down every call with its answer; a replay is a backend that expects the same
calls and gives the same answers. The file is gzip'd text, one JSON object a line: first what the session was, then the
calls. It holds the images that were sent.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from gti import files
from gti.chip.usb import devices
from gti.chip.usb.transport import Request, Settings, Stick
from gti.errors import DeviceError, FormatError, UsageError, printable

FORM = "replay:FILE"
FORMAT = "gti-usb-trace 1"
MAX_FILE_BYTES = 1 << 30
_GZIP = b"\x1f\x8b"
MAX_LINE_BYTES = 1 << 24  # a transfer of the kit has 1 MiB at most, 1.4 MiB as text
# The interface of pyusb's backends.
_METHODS = frozenset(
    [
        "enumerate_devices",
        "get_parent",
        "get_device_descriptor",
        "get_configuration_descriptor",
        "get_interface_descriptor",
        "get_endpoint_descriptor",
        "open_device",
        "close_device",
        "set_configuration",
        "get_configuration",
        "set_interface_altsetting",
        "claim_interface",
        "release_interface",
        "bulk_write",
        "bulk_read",
        "intr_write",
        "intr_read",
        "iso_write",
        "iso_read",
        "ctrl_transfer",
        "clear_halt",
        "reset_device",
        "is_kernel_driver_active",
        "detach_kernel_driver",
        "attach_kernel_driver",
    ]
)
# Fields of USB descriptors are named for their type: bLength, wTotalLength, idVendor, bcdUSB, bmAttributes, iProduct.
_FIELD = re.compile(r"(b|w|i|bm|id|bcd)[A-Z]\w*")
_WRITES = ("bulk_write", "intr_write", "iso_write")
_READS = ("bulk_read", "intr_read", "iso_read")
_FAREWELLS = ("release_interface", "close_device", "attach_kernel_driver")
_TIMED = (*_WRITES, *_READS, "ctrl_transfer")  # their last argument is a time-out, and the one before it a buffer


def _is_read(name: str, args: tuple[Any, ...]) -> bool:
    return name in _READS or (name == "ctrl_transfer" and bool(args[1] & 0x80))


def _described(value: Any) -> dict[str, Any]:
    """Return the numbers of a descriptor, whatever class it is of."""
    names = [name for name in dir(value) if _FIELD.fullmatch(name)]
    names += ["address", "bus", "port_number", "port_numbers", "speed"]
    found = {name: getattr(value, name, None) for name in names}
    return {name: list(one) if isinstance(one, (tuple, list)) else one for name, one in found.items()}


class RecordingBackend:
    """A pyusb backend that passes every call on to `inner` and writes it down; `session` describes what is recorded."""

    def __init__(self, inner: Any, path: str | os.PathLike[str], session: dict[str, Any]) -> None:
        self._inner = inner
        self._names: dict[int, tuple[str, Any]] = {}  # by identity; the object is kept, so that its id stays its own
        self._path = os.fspath(path)
        check_target(path)
        self._raw = files.open_stream(path)
        packed = gzip.GzipFile(fileobj=self._raw, mode="wb", compresslevel=3)
        self._file = io.TextIOWrapper(packed, encoding="ascii")
        self._write({"format": FORMAT, **session})

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS:
            raise AttributeError(name)
        return functools.partial(self._call, name)

    def _call(self, name: str, *args: Any) -> Any:
        entry: dict[str, Any] = {
            "call": name,
            "args": [arg if isinstance(arg, (int, str)) else self._named(arg) for arg in _plain(name, args)],
        }
        try:
            result = getattr(self._inner, name)(*args)
            if name == "enumerate_devices":
                result = list(result)
        except Exception as error:
            entry["error"] = [type(error).__name__, getattr(error, "errno", None), str(error)]
            raise
        else:
            entry["result"] = self._answer(name, args, result)
        finally:
            self._write(entry)
        return result

    def _answer(self, name: str, args: tuple[Any, ...], result: Any) -> Any:
        if name == "enumerate_devices":
            return [self._named(device) for device in result]
        if name.endswith("_descriptor"):
            return _described(result)
        if _is_read(name, args):
            return base64.b64encode(bytes(args[-2][:result])).decode()
        return result if result is None or isinstance(result, int) else self._named(result)

    def _named(self, value: Any) -> str:
        return self._names.setdefault(id(value), (f"#{len(self._names)}", value))[0]

    def _write(self, entry: dict[str, Any]) -> None:
        if not self._raw.closed:
            with self._naming_file():
                self._file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        """Finish the file; calls after this are passed on only. Raises UsageError where the disk refuses."""
        if not self._raw.closed:
            with self._naming_file(), self._raw:
                self._file.close()

    @contextlib.contextmanager
    def _naming_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise files.not_written(self._path, problem) from problem


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise UsageError where a recording cannot be written to `path`, or would cost the user a file that is none."""
    files.check_writable(path)
    if os.path.isfile(path):
        with open(path, "rb") as file:
            start = file.read(len(_GZIP))
        if start not in (b"", _GZIP):
            raise UsageError(
                os.fspath(path), "is no recording, and would be overwritten by one", fix="name another file to --record"
            )


def recorded(
    inner: Any, path: str | os.PathLike[str], device: str, settings: Settings, held: contextlib.ExitStack
) -> RecordingBackend:
    """Return a recorder around `inner` (None: libusb) for a session with `device`; `held` closes its file."""
    from gti.chip.usb.usb_bus import libusb

    session = {"device": device, "settings": asdict(settings)}
    backend = RecordingBackend(libusb() if inner is None else inner, path, session)
    held.callback(backend.close)
    return backend


def takes(key: str) -> bool:
    """A recording has to be named."""
    if not key:
        raise UsageError("--device replay", "names no recording", expected="replay:FILE")
    return True


def open_stick(key: str, request: Request) -> Stick:
    """Return the stick of the recording `key`; its settings are those of the recorded session."""
    replay = ReplayBackend(key)
    try:
        settings = Settings(**replay.session["settings"])
        selection = devices.parse_device(replay.session["device"])
    except (KeyError, TypeError, AttributeError, UsageError):
        raise FormatError(key, "is a recording of another version of the kit") from None
    kind = "eusb" if selection.kind == "eusb" or selection.key.partition(",")[0] == "eusb" else "usb"
    transport = devices.transport_on(replay, kind, settings, "" if selection.kind == "virtual" else selection.key)
    return Stick(transport, settings, f"replay of {transport.description} from {key}")


def read(path: str | os.PathLike[str], broken_end: Callable[[], None] = lambda: None) -> Iterator[dict[str, Any]]:
    """Yield the lines of a recording, the description of the session first; a broken end is left out.

    `broken_end` is called behind the last line where there is one. Lines are unpacked one at a time, so that a small
    file cannot fill the memory. Raises FormatError when the file is no recording or a line is damaged.
    """
    name = os.fspath(path)
    number = 0
    try:
        for number, line in enumerate(_unpacked(files.read_bytes(path, limit=MAX_FILE_BYTES), broken_end), 1):
            entry = json.loads(line)
            if not isinstance(entry, dict) or (entry.get("format") != FORMAT if number == 1 else not _is_sound(entry)):
                raise ValueError
            yield entry
    except (ValueError, RecursionError):  # of these two kinds are all errors of zlib, UTF-8 and JSON here
        if number > 1:
            raise FormatError(name, f"call {number - 1} of the recording is damaged") from None
        number = 0
    if not number:
        raise FormatError(name, "is no recording of a USB session", expected=f"gzip'd text, {FORMAT}")


def _unpacked(raw: bytes, broken_end: Callable[[], None]) -> Iterator[bytes]:
    # A process that was killed leaves half a line and no end of the gzip data: both are left out.
    packed = zlib.decompressobj(wbits=31)
    rest, text = raw, b""
    while rest and not packed.eof:
        try:
            text += packed.decompress(rest, MAX_LINE_BYTES)
        except zlib.error:
            raise ValueError from None
        rest = packed.unconsumed_tail
        *lines, text = text.split(b"\n")
        yield from lines
        if len(text) > MAX_LINE_BYTES:
            raise ValueError
    if text or not packed.eof:
        broken_end()


def _is_sound(entry: dict[str, Any]) -> bool:
    """Return whether a line has the form that a recorder writes: the driver takes its answers like those of a bus."""
    name, args, error, result = (entry.get(key) for key in ("call", "args", "error", "result"))
    if not isinstance(name, str) or name not in _METHODS or not isinstance(args, list):
        return False
    if "error" in entry:
        kinds = (str, int | None, str)
        return isinstance(error, list) and len(error) == 3 and all(map(isinstance, error, kinds))
    if name == "enumerate_devices":
        return isinstance(result, list) and all(isinstance(device, str) for device in result)
    if name.endswith("_descriptor"):
        return isinstance(result, dict) and all(_is_number_or_list(value) for value in result.values())
    if name in _READS or (name == "ctrl_transfer" and isinstance(result, str)):
        return isinstance(result, str)
    return result is None or isinstance(result, (int, str))


def _is_number_or_list(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, int) for item in value)
    return value is None or isinstance(value, int)


class ReplayBackend:
    """A pyusb backend that plays a recording back; raises DeviceError where the caller does something else."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = os.fspath(path)
        self._lines = read(path)
        self.session = next(self._lines)
        self._next = next(self._lines, None)
        self._position = 0
        self._lost = False  # after a difference, nothing is known any more but how to say goodbye

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS:
            raise AttributeError(name)
        return functools.partial(self._call, name)

    def _call(self, name: str, *args: Any) -> Any:
        made = _plain(name, args)
        if self._lost and name in _FAREWELLS:
            return None
        entry = self._next or {}
        if entry.get("call") != name or entry.get("args") != made:
            self._lost = True
            wanted = _in_words(entry["call"], entry["args"], made) if entry else "the end"
            call = _in_words(name, made, entry.get("args", []))
            raise DeviceError(
                self._name,
                f"the session differs from the recording at call {self._position + 1}",
                expected=wanted,
                received=call,
                fix="replay it with the model, images and version of the kit that it was recorded with",
            )
        self._position += 1
        self._next = next(self._lines, None)
        if "error" in entry:
            raise _error(*entry["error"])
        return self._result(name, args, entry.get("result"))

    def _result(self, name: str, args: tuple[Any, ...], result: Any) -> Any:
        try:
            if name.endswith("_descriptor"):
                ports = result.get("port_numbers")
                return SimpleNamespace(
                    **{**result, "port_numbers": tuple(ports) if ports else None}, extra_descriptors=[]
                )
            if _is_read(name, args):
                data = base64.b64decode(result, validate=True)
                memoryview(args[-2]).cast("B")[: len(data)] = data
                return len(data)
        except (AttributeError, TypeError, ValueError):
            raise FormatError(self._name, f"call {self._position} of the recording is damaged") from None
        return result


def _plain(name: str, args: tuple[Any, ...]) -> list[Any]:
    """Return the arguments of a call: of a buffer its bytes as text, or its length where it is filled; no time."""
    if name not in _TIMED:
        return list(args)
    buffer = args[-2]
    return [*args[:-2], len(buffer) if _is_read(name, args) else base64.b64encode(bytes(buffer)).decode()]


def _in_words(name: str, args: list[Any], others: list[Any]) -> str:
    """Return a call for people; of data, the first byte that differs from that of a call with `others`."""
    data, other = _sent(name, args), _sent(name, others)
    if data is None or other is None:
        return f"{name} {args}"[:80]
    place = next((i for i, (one, another) in enumerate(zip(data, other, strict=False)) if one != another), None)
    if place is None:
        return f"{name} {args[:-1]} of {len(data)} bytes"
    return f"{name} {args[:-1]} of {len(data)} bytes, byte {place} is {data[place]:#04x}"


def _sent(name: str, args: list[Any]) -> bytes | None:
    if name not in _TIMED or not args or not isinstance(args[-1], str):
        return None
    try:
        return base64.b64decode(args[-1], validate=True)
    except ValueError:
        return None


def _error(kind: str, code: int | None, text: str) -> Exception:
    import usb.core

    text = printable(text, 1000)
    kinds = {"USBTimeoutError": usb.core.USBTimeoutError, "USBError": usb.core.USBError}
    if kind in kinds:
        error: Exception = kinds[kind](text, None, code)
        return error
    return {"IndexError": IndexError, "NotImplementedError": NotImplementedError}.get(kind, DeviceError)(text)
