"""Sticks in software: a pyusb backend with virtual devices behind it.

The driver gets a `VirtualBackend` where it would get libusb and cannot tell the difference: the same descriptors,
endpoints, control requests and errors. What a device does with the bytes is in `virtual_bridge.py` (FT60x),
`virtual_storage.py` (mass storage) and `virtual_chip.py` (the chip behind both). A fault plan makes it misbehave.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import usb.backend
import usb.core

from gti.chip.virtual.faults import Fault, FaultPlan

STRING_LANGUAGES, STRING_MANUFACTURER, STRING_PRODUCT, STRING_SERIAL = range(4)
_LANGUAGE = 0x0409
_GET_DESCRIPTOR = 0x06
_STRING_DESCRIPTOR = 3
_BULK, _INTERRUPT = 2, 3

_TEXT = {
    errno.ENODEV: "No such device (it may have been disconnected)",
    errno.EPIPE: "Pipe error",
    errno.EIO: "Input/Output Error",
    errno.EOVERFLOW: "Overflow",
    errno.EBUSY: "Resource busy",
    errno.EACCES: "Access denied (insufficient permissions)",
    errno.ENOENT: "Entity not found",
}
_FAULT_ERRNO = {"io": errno.EIO, "overflow": errno.EOVERFLOW, "busy": errno.EBUSY, "denied": errno.EACCES}


class Endpoint(SimpleNamespace):
    """One endpoint of a virtual interface."""

    address: int
    kind: int


class VirtualDevice(Protocol):
    """What a device behind the backend is and does. `bulk_in` raises TimeoutError when nothing comes in time."""

    vendor: int
    product: int
    serial: str
    manufacturer: str
    name: str
    packet: int
    speed: int
    interfaces: Sequence[tuple[tuple[int, int, int], Sequence[tuple[int, int]]]]  # class triple, (address, type)s

    def control_in(self, request: int, value: int, index: int, length: int) -> bytes | None:
        """Answer a vendor or class request; None stalls."""

    def control_out(self, request: int, value: int, index: int, data: bytes) -> bool:
        """Obey a vendor or class request; False stalls."""

    def phase(self, endpoint: int) -> str:
        """Return which phase of a fault plan a transfer on `endpoint` belongs to."""

    def bulk_out(self, endpoint: int, data: bytes) -> bool:
        """Take bytes; False stalls."""

    def bulk_in(self, endpoint: int, length: int, timeout_ms: int) -> bytes | None:
        """Give at most `length` bytes; None stalls."""

    def closed(self) -> None:
        """The host let go of the device."""

    def power_cycle(self) -> None:
        """Forget everything."""

    def disturb(self, fault: Fault) -> None:
        """Do what a fault of the chip or the pipes says: brownout, lost, stale, extra, zeros, ones."""


class _Slot:
    """A place on the bus: the device, its address, who holds it, what is halted."""

    def __init__(self, device: VirtualDevice, port: int, plan: FaultPlan, kernel_driver: bool) -> None:
        self.device = device
        self.port = port
        self.plan = plan
        self.address = port
        self.present = True
        self.halted: set[int] = set()
        self.claimed: dict[int, int] = {}  # interface -> handle
        self.drivers = set(range(len(device.interfaces))) if kernel_driver else set()

    def leave(self, back: bool) -> None:
        self.device.power_cycle()
        self.halted.clear()
        self.claimed.clear()
        self.present = back
        self.address += 16


class _Handle:
    """An open handle; it dies when the device gets another address."""

    def __init__(self, slot: _Slot) -> None:
        self.slot = slot
        self.address = slot.address


def _error(code: int) -> usb.core.USBError:
    return usb.core.USBError(_TEXT[code], None, code)


def _timeout() -> usb.core.USBTimeoutError:
    return usb.core.USBTimeoutError("Operation timed out", None, errno.ETIMEDOUT)


class VirtualBackend(usb.backend.IBackend):  # type: ignore[misc]  # pyusb has no types
    """The bus: pass it to pyusb, or to the transports, as `backend=`."""

    def __init__(
        self,
        devices: Sequence[VirtualDevice],
        plans: Sequence[FaultPlan] | None = None,
        kernel_driver: bool = False,
    ) -> None:
        super().__init__()
        plans = plans or [FaultPlan() for _ in devices]
        self.slots = [
            _Slot(device, port, plan, kernel_driver)
            for port, (device, plan) in enumerate(zip(devices, plans, strict=True), 1)
        ]

    # Descriptors

    def enumerate_devices(self) -> list[_Slot]:
        """Every device on the bus."""
        return [slot for slot in self.slots if slot.present]

    def get_parent(self, dev: _Slot) -> None:
        """There is no hub."""

    def get_device_descriptor(self, dev: _Slot) -> SimpleNamespace:
        """USB 3.0 section 9.6.1."""
        return SimpleNamespace(
            bLength=18,
            bDescriptorType=1,
            bcdUSB=0x0300 if dev.device.speed > 3 else 0x0200,
            bDeviceClass=0,
            bDeviceSubClass=0,
            bDeviceProtocol=0,
            bMaxPacketSize0=9 if dev.device.speed > 3 else 64,
            idVendor=dev.device.vendor,
            idProduct=dev.device.product,
            bcdDevice=0x0100,
            iManufacturer=STRING_MANUFACTURER,
            iProduct=STRING_PRODUCT,
            iSerialNumber=STRING_SERIAL if dev.device.serial else 0,
            bNumConfigurations=1,
            address=dev.address,
            bus=1,
            port_number=dev.port,
            port_numbers=(dev.port,),
            speed=dev.device.speed,
        )

    def get_configuration_descriptor(self, dev: _Slot, config: int) -> SimpleNamespace:
        """USB 3.0 section 9.6.3."""
        if config:
            raise IndexError("one configuration")
        return SimpleNamespace(
            bLength=9,
            bDescriptorType=2,
            wTotalLength=9 + sum(9 + 7 * len(endpoints) for _, endpoints in dev.device.interfaces),
            bNumInterfaces=len(dev.device.interfaces),
            bConfigurationValue=1,
            iConfiguration=0,
            bmAttributes=0x80,
            bMaxPower=112,
            extra_descriptors=[],
        )

    def get_interface_descriptor(self, dev: _Slot, intf: int, alt: int, config: int) -> SimpleNamespace:
        """USB 3.0 section 9.6.5."""
        if alt or config or intf >= len(dev.device.interfaces):
            raise IndexError("no such interface")
        (kind, sub, protocol), endpoints = dev.device.interfaces[intf]
        return SimpleNamespace(
            bLength=9,
            bDescriptorType=4,
            bInterfaceNumber=intf,
            bAlternateSetting=0,
            bNumEndpoints=len(endpoints),
            bInterfaceClass=kind,
            bInterfaceSubClass=sub,
            bInterfaceProtocol=protocol,
            iInterface=0,
            extra_descriptors=[],
        )

    def get_endpoint_descriptor(self, dev: _Slot, ep: int, intf: int, alt: int, config: int) -> SimpleNamespace:
        """USB 3.0 section 9.6.6."""
        address, kind = dev.device.interfaces[intf][1][ep]
        return SimpleNamespace(
            bLength=7,
            bDescriptorType=5,
            bEndpointAddress=address,
            bmAttributes=kind,
            wMaxPacketSize=dev.device.packet,
            bInterval=9 if kind == _INTERRUPT else 0,
            bRefresh=0,
            bSynchAddress=0,
            extra_descriptors=[],
        )

    # Handles

    def open_device(self, dev: _Slot) -> _Handle:
        """Return a handle."""
        if not dev.present:
            raise _error(errno.ENODEV)
        return _Handle(dev)

    def close_device(self, dev_handle: _Handle) -> None:
        """Let go of everything that the handle holds."""
        slot = dev_handle.slot
        held = [interface for interface, handle in slot.claimed.items() if handle == id(dev_handle)]
        for interface in held:
            del slot.claimed[interface]

    def get_configuration(self, dev_handle: _Handle) -> int:
        """The devices have one configuration, and it is set."""
        self._alive(dev_handle)
        return 1

    def set_configuration(self, dev_handle: _Handle, config_value: int) -> None:
        """Accept the one configuration."""
        if config_value not in (0, 1):
            raise _error(errno.ENOENT)
        self._alive(dev_handle)

    def claim_interface(self, dev_handle: _Handle, intf: int) -> None:
        """Take an interface for a handle; a kernel driver or another handle keeps it from us."""
        slot = self._alive(dev_handle)
        self._fault(slot, "claim", None)
        if intf in slot.drivers or slot.claimed.get(intf, id(dev_handle)) != id(dev_handle):
            raise _error(errno.EBUSY)
        slot.claimed[intf] = id(dev_handle)

    def release_interface(self, dev_handle: _Handle, intf: int) -> None:
        """Give an interface back."""
        slot = self._alive(dev_handle)
        if slot.claimed.pop(intf, None) is not None and not slot.claimed:
            slot.device.closed()

    def is_kernel_driver_active(self, dev_handle: _Handle, intf: int) -> bool:
        """Whether the (pretended) kernel driver holds the interface."""
        slot = self._alive(dev_handle)
        self._fault(slot, "open", None)
        return intf in slot.drivers

    def detach_kernel_driver(self, dev_handle: _Handle, intf: int) -> None:
        """Take the interface from the kernel driver."""
        self._alive(dev_handle).drivers.discard(intf)

    def attach_kernel_driver(self, dev_handle: _Handle, intf: int) -> None:
        """Give the interface back to the kernel driver."""
        slot = self._alive(dev_handle)
        if intf in slot.claimed:
            raise _error(errno.EBUSY)
        slot.drivers.add(intf)

    def clear_halt(self, dev_handle: _Handle, ep: int) -> None:
        """End a stall."""
        self._alive(dev_handle).halted.discard(ep)

    def reset_device(self, dev_handle: _Handle) -> None:
        """Reset the port: the device keeps its address here, but nothing else."""
        slot = self._alive(dev_handle)
        slot.device.power_cycle()
        slot.halted.clear()
        slot.claimed.clear()

    # Transfers

    def ctrl_transfer(  # noqa: PLR0917  (the interface of pyusb)
        self, dev_handle: _Handle, bmRequestType: int, bRequest: int, wValue: int, wIndex: int, data: Any, timeout: int
    ) -> int:
        """Standard string descriptors here, everything else by the device."""
        slot = self._alive(dev_handle)
        if bmRequestType == 0x80 and bRequest == _GET_DESCRIPTOR and wValue >> 8 == _STRING_DESCRIPTOR:
            return _fill(data, self._string(slot.device, wValue & 0xFF))
        fault = self._fault(slot, "control", None)
        if bmRequestType & 0x80:
            answer = slot.device.control_in(bRequest, wValue, wIndex, len(data))
            if answer is None:
                raise _error(errno.EPIPE)
            if fault is not None and fault.kind in ("short", "empty"):
                answer = answer[: fault.amount if fault.kind == "short" else 0]
            return _fill(data, answer)
        if not slot.device.control_out(bRequest, wValue, wIndex, bytes(data)):
            raise _error(errno.EPIPE)
        return len(data)

    def bulk_write(self, dev_handle: _Handle, ep: int, intf: int, data: Any, timeout: int) -> int:
        """Give bytes to the device and return how many it took."""
        slot = self._transfer(dev_handle, ep, intf)
        fault = self._fault(slot, slot.device.phase(ep), ep)
        payload = data.tobytes()
        if fault is not None and fault.kind in ("short", "empty"):
            payload = payload[: fault.amount if fault.kind == "short" else 0]
        if not slot.device.bulk_out(ep, payload):
            slot.halted.add(ep)
            raise _error(errno.EPIPE)
        return len(payload)

    def bulk_read(self, dev_handle: _Handle, ep: int, intf: int, buff: Any, timeout: int) -> int:
        """Fetch bytes from the device into `buff` and return how many came."""
        slot = self._transfer(dev_handle, ep, intf)
        fault = self._fault(slot, slot.device.phase(ep), ep)
        length = len(buff) * buff.itemsize
        if fault is not None and fault.kind == "empty":
            return 0
        if fault is not None and fault.kind == "short":
            length = min(length, max(1, fault.amount))
        try:
            answer = slot.device.bulk_in(ep, length, timeout)
        except TimeoutError:
            raise _timeout() from None
        if answer is None:
            slot.halted.add(ep)
            raise _error(errno.EPIPE)
        return _fill(buff, answer)

    # Helpers

    def _string(self, device: VirtualDevice, index: int) -> bytes:
        if index == STRING_LANGUAGES:
            body = _LANGUAGE.to_bytes(2, "little")
        else:
            texts = {
                STRING_MANUFACTURER: device.manufacturer,
                STRING_PRODUCT: device.name,
                STRING_SERIAL: device.serial,
            }
            if index not in texts:
                raise _error(errno.EPIPE)
            body = texts[index].encode("utf-16-le")
        return bytes([len(body) + 2, _STRING_DESCRIPTOR]) + body

    def _alive(self, handle: _Handle) -> _Slot:
        slot = handle.slot
        if not slot.present or handle.address != slot.address:
            raise _error(errno.ENODEV)
        return slot

    def _transfer(self, handle: _Handle, ep: int, intf: int) -> _Slot:
        slot = self._alive(handle)
        if slot.claimed.get(intf) != id(handle):
            raise _error(errno.EBUSY)
        if ep in slot.halted:
            raise _error(errno.EPIPE)
        return slot

    def _fault(self, slot: _Slot, phase: str, ep: int | None) -> Fault | None:
        """Let the fault of this call happen; return it when the caller has to do its part."""
        fault = slot.plan.next(phase)
        if fault is None:
            return None
        if fault.kind in _FAULT_ERRNO:
            raise _error(_FAULT_ERRNO[fault.kind])
        if fault.kind in ("disconnect", "gone"):
            slot.leave(back=fault.kind == "disconnect")
            raise _error(errno.ENODEV)
        if fault.kind == "timeout":
            raise _timeout()
        if fault.kind == "stall":
            if ep is not None:
                slot.halted.add(ep)
            raise _error(errno.EPIPE)
        if fault.kind in ("short", "empty"):
            return fault
        slot.device.disturb(fault)
        return None


def _fill(buffer: Any, data: bytes) -> int:
    count: int = min(len(data), len(buffer) * buffer.itemsize)
    memoryview(buffer)[:count] = memoryview(data)[:count]
    return count
