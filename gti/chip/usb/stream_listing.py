"""What bytes on the wire mean, line by line: streams of words, and recorded sessions with such streams in them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gti.chip.usb import ft60x, scsi_bulk, usb_bus
from gti.chip.usb.eusb import READ_10, STREAM_ADDRESS, WRITE_10
from gti.chip.wire import protocol
from gti.chip.wire.protocol import Opcode, WordMachine
from gti.chip.wire.words import runs
from gti.errors import FormatError, GtiError, printable

SHOWN_BYTES = 8
_WORD_BYTES = {usb_bus.FT601_PRODUCT: 4, usb_bus.FT600_PRODUCT: 2, usb_bus.EUSB_PRODUCT: 4}
_SESSION_COMMANDS = {ft60x.COMMAND_ABORT: "abort", ft60x.COMMAND_TRANSFER: "transfer", ft60x.COMMAND_FLUSH: "flush"}
# Calls that say nothing about the session: pyusb asks for descriptors before every transfer.
_SILENT = ("get_parent", "get_configuration", "set_configuration", "get_device_descriptor", "enumerate_devices")
_GET_DESCRIPTOR = 0x06
_MOST_WORDS = 1 << 28  # bytes put together; no host sends as many in one piece


def listing(stream: bytes, machine: WordMachine) -> Iterator[str]:
    """Yield a line for each segment of `stream` and for what it asks the chip for; `machine` is the session so far."""
    width = machine.word_bytes
    garbage = machine.garbage_words
    yield f"{'word':>10} {'words':>9}  {'opcode':<18} first data bytes"
    words = np.frombuffer(stream, np.uint8, len(stream) // width * width).reshape(-1, width)
    for opcode, first, last in runs(words[:, 1]):
        name = Opcode(opcode).name if opcode < len(Opcode) else f"unknown 0x{opcode:02x}"
        data = words[first : min(last, first + SHOWN_BYTES), 0].tobytes().hex(" ") if opcode else ""
        refused = machine.refused_segments
        machine.feed(words[first:last].tobytes())
        machine.end_segment()
        yield f"{first:>10} {last - first:>9}  {name:<18} {data}".rstrip()
        for event in machine.pop_events():
            yield f"{'':>20}  = {describe(event)}"
        if machine.refused_segments > refused:
            yield f"{'':>20}  = refused: not complete, or registers are missing in this session"
    if machine.garbage_words > garbage:
        yield f"{machine.garbage_words - garbage} words no host sends"
    if len(stream) % width:
        yield f"{len(stream) % width} bytes after the last whole word"


def describe(event: object) -> str:
    """Return one line about an event of the word machine."""
    match event:
        case protocol.Reset():
            return "reset: waiting results are dropped"
        case protocol.Coefficients(data=data):
            return f"coefficients: {len(data.rstrip(bytes(1)))} bytes up to the last that is not zero"
        case protocol.LayerRegisters():
            return "layer registers"
        case protocol.GlobalRegister(value=value):
            return f"global register 0x{value:08x}"
        case protocol.Image(size=size, channels=channels):
            return f"image {channels} x {size} x {size}; result {_describe_result(event)}"
    return type(event).__name__


def _describe_result(image: Any) -> str:
    try:
        result = image.read_out
    except GtiError as problem:
        return f"impossible ({problem})"
    maps = ", ".join(f"{s.channels}x{s.size}x{s.size}" for s in result.sets)
    return f"{result.length} bytes: {maps}, {result.bits} bits a value"


def session(entries: Iterable[Mapping[str, Any]], name: str) -> Iterator[str]:
    """Yield the lines of a recorded session: `entries` as `trace.read` yields them, of the file `name`.

    Writes of words are put together and listed by segment; reads are put together and counted; faults stand where they
    happened, with the number of the call. Raises FormatError for a damaged entry.
    """
    lines = _Session()
    for number, entry in enumerate(entries):
        if not number:
            yield f"session with device {printable(str(entry.get('device')))}"
            continue
        try:
            yield from lines.take(number, entry)
        except (KeyError, IndexError, TypeError, ValueError):
            raise FormatError(name, f"call {number} of the recording is damaged") from None
    yield from lines.settle()


class _Session:
    """What has been seen of a session: words and reads that are still to be listed."""

    def __init__(self) -> None:
        self._machine: WordMachine | None = None
        self._width = 4
        self._first_write = 0
        self._written = bytearray()
        self._writes = 0
        self._read_bytes = self._reads = self._first_read = 0
        self._command = b""  # the SCSI command whose data follow
        self._bulk_only = False

    def take(self, number: int, entry: Mapping[str, Any]) -> Iterator[str]:
        """Yield the lines that call `number` completes."""
        call, arguments = entry["call"], entry["args"]
        if "error" in entry and not call.endswith("_descriptor"):
            yield from self.settle()
            kind, _, text = entry["error"]
            yield f"call {number}: {call}: {printable(f'{kind} {text}')}"
        elif call == "bulk_write":
            data = base64.b64decode(arguments[3], validate=True)[: entry["result"]]
            yield from self._write(number, arguments[1], data)
        elif call == "bulk_read":
            data = base64.b64decode(entry["result"], validate=True)
            yield from self._read(number, data)
        elif call == "get_device_descriptor":
            yield from self._device(number, entry["result"])
        elif call == "ctrl_transfer":
            if arguments[2] != _GET_DESCRIPTOR:
                yield from self.settle()
                yield (
                    f"call {number}: control request {arguments[1]:02x} {arguments[2]:02x}, value {arguments[3]:#06x}"
                    + (f", index {arguments[4]:#06x}")
                )
        elif call not in _SILENT and not call.endswith("_descriptor"):
            yield from self.settle()
            numbers = " ".join(str(value) for value in arguments if isinstance(value, int))
            yield f"call {number}: {call} {numbers}".rstrip()

    def _device(self, number: int, descriptor: Mapping[str, Any]) -> Iterator[str]:
        vendor, product = descriptor["idVendor"], descriptor["idProduct"]
        if (vendor, product) in usb_bus.KINDS:
            self._bulk_only = product == usb_bus.EUSB_PRODUCT
            self._width = _WORD_BYTES[product]
            yield from self.settle()
            kind = usb_bus.KINDS[vendor, product]
            yield f"call {number}: {kind} {vendor:04x}:{product:04x}, speed {descriptor['speed']}"

    def _write(self, number: int, endpoint: int, data: bytes) -> Iterator[str]:
        if self._bulk_only:
            if data[:4] == b"USBC" and len(data) == scsi_bulk.COMMAND_BLOCK.size:
                yield from self._scsi(number, data)
                return
            words = self._is_stream(WRITE_10)
        elif endpoint == ft60x.EP_SESSION and len(data) == ft60x.SESSION.size:
            _, pipe, command, *_ = ft60x.SESSION.unpack(data)
            if command != ft60x.COMMAND_TRANSFER:
                yield from self.settle()
                text = _SESSION_COMMANDS.get(command, f"command {command}")
                yield f"call {number}: session command: {text} pipe {pipe:#04x}"
            return
        else:
            words = endpoint == ft60x.EP_OUT
        if not words:
            yield from self.settle()
            yield f"call {number}: {len(data)} bytes written: {data[:SHOWN_BYTES].hex(' ')}"
            return
        if self._reads:
            yield from self.settle()
        self._first_write = self._first_write if self._writes else number
        self._written += data
        self._writes += 1
        if len(self._written) > _MOST_WORDS:
            yield from self.settle()

    def _scsi(self, number: int, block: bytes) -> Iterator[str]:
        *_, length, cdb = scsi_bulk.COMMAND_BLOCK.unpack(block)
        self._command = cdb[:length]
        if not (self._is_stream(WRITE_10) or self._is_stream(READ_10)):
            yield from self.settle()
            yield f"call {number}: SCSI command {self._command.hex(' ')}"

    def _is_stream(self, operation: int) -> bool:
        address = int.from_bytes(self._command[2:6], "big")
        return self._command[:1] == bytes([operation]) and address == STREAM_ADDRESS

    def _read(self, number: int, data: bytes) -> Iterator[str]:
        if self._bulk_only and data[:4] == b"USBS" and len(data) == scsi_bulk.STATUS_BLOCK.size:
            _, _, residue, status = scsi_bulk.STATUS_BLOCK.unpack(data)
            if residue or status:
                yield from self.settle()
                yield f"call {number}: status {status}, {residue} bytes did not move"
            return
        if self._writes:
            yield from self.settle()
        self._first_read = self._first_read if self._reads else number
        self._read_bytes += len(data)
        self._reads += 1

    def settle(self) -> Iterator[str]:
        """Yield the lines of the words and reads so far."""
        if self._writes:
            yield f"call {self._first_write}: {len(self._written)} bytes of words in {self._writes} writes"
            if self._machine is None or self._machine.word_bytes != self._width:
                self._machine = WordMachine(self._width)
            stream, self._written, self._writes = bytes(self._written), bytearray(), 0
            yield from listing(stream, self._machine)
        if self._reads:
            yield f"call {self._first_read}: {self._read_bytes} bytes in {self._reads} reads"
            self._read_bytes = self._reads = 0
