"""pyusb, with what both USB transports need around it: finding, taking and giving back a device, faults in words.

`backend` is a pyusb backend object; None is libusb. The sticks in software are backends too. pyusb is imported when
something is done, not when this module is: start-up time counts.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from gti.chip.usb.transport import DeviceInfo, RefusedError, StallError, TimeoutSlice, TransferError
from gti.errors import DeviceError, sentence

log = logging.getLogger(__name__)

FTDI_VENDOR = 0x0403
FT600_PRODUCT = 0x601E
FT601_PRODUCT = 0x601F
EUSB_VENDOR = 0x05E3
EUSB_PRODUCT = 0x0769
KINDS = {
    (FTDI_VENDOR, FT601_PRODUCT): "FT601",
    (FTDI_VENDOR, FT600_PRODUCT): "FT600",
    (EUSB_VENDOR, EUSB_PRODUCT): "eUSB",
}
FTDI_IDS = ((FTDI_VENDOR, FT601_PRODUCT), (FTDI_VENDOR, FT600_PRODUCT))
EUSB_IDS = ((EUSB_VENDOR, EUSB_PRODUCT),)

_REASONS = {
    errno.ENODEV: "the stick left the bus",
    errno.ENOENT: "the stick left the bus",
    errno.EPIPE: "the stick refused the transfer (stall)",
    errno.EIO: "an I/O error on the bus",
    errno.EOVERFLOW: "the stick sent more than was asked",
    errno.ETIMEDOUT: "a time-out on the bus",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EBUSY: "another program or driver holds the stick",
    errno.ENOMEM: "the computer has no memory left for USB transfers",
}
PERMISSION_FIX = "install the udev rules with `gti udev --install`, then plug the stick in again"


def reason(error: OSError) -> str:
    """Return what a USBError means, in words."""
    known = _REASONS.get(error.errno or 0)
    text = error.strerror or str(error)
    return known if known else f"USB error: {text}"


def libusb() -> Any:
    """Return pyusb's backend for libusb. Raises DeviceError when the library is not installed."""
    import usb.backend.libusb1

    backend = usb.backend.libusb1.get_backend()
    if backend is None:
        raise DeviceError(
            "USB",
            "the library libusb-1.0 is not installed",
            fix="install it (Debian, Raspberry Pi OS: apt install libusb-1.0-0; macOS: brew install libusb), or use"
            " --device virtual",
        )
    return backend


def _found(ids: Sequence[tuple[int, int]], backend: Any) -> Iterator[Any]:
    import usb.core

    for device in usb.core.find(find_all=True, backend=backend if backend is not None else libusb()):
        if (device.idVendor, device.idProduct) in ids:
            yield device


def _location(device: Any) -> str:
    ports = device.port_numbers or (device.port_number or 0,)
    return f"{device.bus}-" + ".".join(str(port) for port in ports)


def _info(index: int, device: Any) -> DeviceInfo:
    import usb.core

    serial, problem = "", ""
    try:
        serial = (device.serial_number or "").strip("\0 ")
    except usb.core.USBError as error:
        problem = reason(error)
    except (ValueError, UnicodeDecodeError):
        # pyusb raises ValueError when the language table cannot be read, most often for lack of permission.
        problem = "its strings cannot be read"
    finally:
        usb.util.dispose_resources(device)
    return DeviceInfo(
        index=index,
        kind=KINDS[(device.idVendor, device.idProduct)],
        vendor=device.idVendor,
        product=device.idProduct,
        serial=serial,
        location=_location(device),
        address=device.address or 0,
        speed=device.speed or 0,
        problem=problem,
    )


def list_devices(ids: Sequence[tuple[int, int]], backend: Any = None) -> list[DeviceInfo]:
    """Return the devices with one of `ids` (vendor, product), in the order of the bus.

    Raises DeviceError when libusb is missing or fails.
    """
    return [info for info, _ in _pairs(ids, backend)]


def _pairs(ids: Sequence[tuple[int, int]], backend: Any) -> list[tuple[DeviceInfo, Any]]:
    import usb.core

    try:
        return [(_info(index, device), device) for index, device in enumerate(_found(ids, backend))]
    except usb.core.USBError as error:
        raise DeviceError("USB", f"the bus cannot be listed: {reason(error)}") from error


def find_same(wanted: DeviceInfo, backend: Any) -> tuple[DeviceInfo, Any] | None:
    """Return the device that `wanted` was, which may have another address by now; None while it is away.

    The serial decides; a stick without one is known by its place on the bus.
    """
    for info, device in _pairs([(wanted.vendor, wanted.product)], backend):
        if info.serial == wanted.serial if wanted.serial else info.location == wanted.location:
            return info, device
    return None


def _transfer_error(phase: str, error: OSError) -> TransferError:
    kind = StallError if error.errno == errno.EPIPE else TransferError
    return kind(phase, reason(error))


class Handle:
    """An opened device: claimed interfaces, bulk and control transfers with time-outs, faults as TransferError."""

    def __init__(self, info: DeviceInfo, device: Any, interfaces: Sequence[int]) -> None:
        """Take the interfaces, detaching a kernel driver where one holds them.

        Raises DeviceError for what trying again does not mend (permission, in use), otherwise TransferError.
        """
        import usb.core
        import usb.util

        self.info = info
        self._device = device
        self._timeout_error = usb.core.USBTimeoutError
        self._usb_error = usb.core.USBError
        self._dispose = usb.util.dispose_resources
        self._detached: list[int] = []
        try:
            self._configure()
            for interface in interfaces:
                self._detach(interface)
                usb.util.claim_interface(device, interface)
        except usb.core.USBError as error:
            self.close()
            raise self._opening_error(error) from error

    def _configure(self) -> None:
        try:
            self._device.get_active_configuration()
        except self._usb_error as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.ENODEV):
                raise
            self._device.set_configuration()

    def _detach(self, interface: int) -> None:
        try:
            if self._device.is_kernel_driver_active(interface):
                self._device.detach_kernel_driver(interface)
                self._detached.append(interface)
                log.info("%s: kernel driver detached from interface %d", self.info.name, interface)
        except NotImplementedError:
            pass  # only Linux has kernel drivers to detach
        except self._usb_error as error:
            if error.errno != errno.ENOSYS:
                raise

    def _opening_error(self, error: OSError) -> DeviceError:
        if error.errno in (errno.EACCES, errno.EPERM):
            return RefusedError(sentence(self.info.name, "permission denied", fix=PERMISSION_FIX))
        if error.errno == errno.EBUSY:
            return RefusedError(
                sentence(
                    self.info.name,
                    "another program or driver holds it",
                    fix="end the other program, or choose another stick with --device usb:<serial>",
                )
            )
        return TransferError("opening", reason(error))

    def bulk_endpoints(self, interface: int) -> tuple[int, int, int]:
        """Return the bulk OUT and IN endpoint of an interface, and the packet size of the latter."""
        import usb.util

        addresses: dict[int, int] = {}
        packet = 512
        for endpoint in self._device.get_active_configuration()[(interface, 0)]:
            if usb.util.endpoint_type(endpoint.bmAttributes) == usb.util.ENDPOINT_TYPE_BULK:
                direction = usb.util.endpoint_direction(endpoint.bEndpointAddress)
                addresses.setdefault(direction, endpoint.bEndpointAddress)
                packet = endpoint.wMaxPacketSize
        if len(addresses) != 2:
            raise DeviceError(
                self.info.name, "has no pair of bulk endpoints", fix="name another device, this is no stick"
            )
        return addresses[usb.util.ENDPOINT_OUT], addresses[usb.util.ENDPOINT_IN], packet

    def write(self, endpoint: int, data: Any, timeout_ms: int, phase: str) -> int:
        """Write to a bulk endpoint and return how many bytes went; TimeoutSlice when none did in time."""
        # pyusb would turn anything but an array into one byte by byte.
        payload = array.array("B")
        payload.frombytes(data)
        try:
            return int(self._device.write(endpoint, payload, timeout_ms))
        except self._timeout_error:
            raise TimeoutSlice from None
        except self._usb_error as error:
            raise _transfer_error(phase, error) from error

    def read(self, endpoint: int, buffer: array.array[int], timeout_ms: int, phase: str) -> int:
        """Read from a bulk endpoint into `buffer`, return how many bytes came; TimeoutSlice when none did in time."""
        try:
            return int(self._device.read(endpoint, buffer, timeout_ms))
        except self._timeout_error:
            raise TimeoutSlice from None
        except self._usb_error as error:
            raise _transfer_error(phase, error) from error

    def control_in(self, request: tuple[int, int, int, int], length: int, timeout_ms: int, phase: str) -> bytes:
        """Return the answer to the control request (type, request, value, index); it may be shorter than `length`."""
        try:
            return bytes(self._device.ctrl_transfer(*request, length, timeout_ms))
        except self._usb_error as error:
            raise TransferError(phase, reason(error)) from error

    def control_out(self, request: tuple[int, int, int, int], data: bytes, timeout_ms: int, phase: str) -> None:
        """Send the control request (type, request, value, index) with `data`."""
        try:
            self._device.ctrl_transfer(*request, data, timeout_ms)
        except self._usb_error as error:
            raise TransferError(phase, reason(error)) from error

    def clear_halt(self, endpoint: int, phase: str) -> None:
        """End the stalled state of an endpoint."""
        try:
            self._device.clear_halt(endpoint)
        except self._usb_error as error:
            raise TransferError(phase, reason(error)) from error

    def reset(self) -> None:
        """Reset the port; the handle is useless afterwards."""
        with contextlib.suppress(self._usb_error):
            self._device.reset()

    def close(self) -> None:
        """Give back interfaces and kernel drivers; never raises for a device that is gone."""
        with contextlib.suppress(self._usb_error):
            self._dispose(self._device)
        for interface in self._detached:
            with contextlib.suppress(self._usb_error, NotImplementedError):
                self._device.attach_kernel_driver(interface)
                self._dispose(self._device)
        self._detached.clear()
