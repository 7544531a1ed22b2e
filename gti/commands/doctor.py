"""Find out what is wrong with a stick, and say what to do about it.

    gti doctor                    # the dongle that is plugged in
    gti doctor --device usb:1     # another one
    gti doctor --device virtual   # the stick in software: checks the kit itself
    gti doctor --identify         # what the stick does where nobody has seen one: docs/identify.md

Each line is one finding. The last one is a frame whose answer is known; only when it comes back right, the exit status
is 0. `--record FILE` writes the session down for a bug report.

--identify brings the stick up, tells which behaviours it has with some small networks, and writes what was found to a
profile, beside it a recording of the session; exit status 1 where a question remained open. `gti report-stick` packs
both for a bug report.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gti.chip.usb import devices, eusb_disks, usb_bus
from gti.chip.usb.devices import parse_device
from gti.chip.usb.lock import DeviceLock
from gti.chip.usb.transport import Settings, select
from gti.commands import flags
from gti.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import numpy as np

_HIGH_SPEED = 3  # pyusb's number for 480 Mbit/s

Finding = tuple[bool, str, str]  # good, what was found, what to do


def known_answer(behaviours: str = "") -> tuple[bytes, np.ndarray, np.ndarray]:
    """Return a small .DAT, an image uint8 [14,14,3] and the codes uint8 [7,7,16] of an emulator with `behaviours`."""
    import numpy as np

    from gti.chip.emulator.behaviours import parse
    from gti.chip.emulator.emulator import Emulator
    from gti.chip.formats import dat
    from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network

    network = Network((MajorLayer(14, 3, 16, 1, 3, (4,), pooling=True),))
    taps = np.arange(16 * 3 * 9).reshape(16, 3, 3, 3)
    filters = np.array([-4, -2, -1, 0, 1, 2, 4])[taps * 5 % 7] * (1 + taps[:, :, :1, :1] // 9 % 3)
    weights = [ConvolutionWeights(filters.astype(np.int16), (np.arange(16, dtype=np.int32) - 4) * 24, 4)]
    image = (np.arange(14 * 14 * 3).reshape(14, 14, 3) * 37 % 256).astype(np.uint8)
    codes = Emulator(network, weights, engine="numpy", behaviours=parse(behaviours)).output(image[None])[0]
    return dat.encode(network, weights), image, codes.transpose(1, 2, 0)


def software() -> Iterator[Finding]:
    """Look for pyusb and libusb."""
    try:
        import usb.core

        yield True, f"pyusb {usb.__version__} is installed", ""
    except ImportError:
        yield False, "pyusb is not installed", "pip install pyusb"
        return
    try:
        usb_bus.libusb()
        yield True, "libusb-1.0 is installed", ""
    except DeviceError as problem:
        yield False, "libusb-1.0 is not installed", str(problem).partition("Fix: ")[2]


def bus(key: str, backend: Any = None) -> Iterator[Finding]:
    """Look for the stick and for what keeps it from being used."""
    import usb.core

    chosen = backend if backend is not None else usb_bus.libusb()
    sticks = devices.list_sticks(chosen)
    if not sticks:
        others = [
            device for device in usb.core.find(find_all=True, backend=chosen) if device.idVendor == usb_bus.FTDI_VENDOR
        ]
        for other in others:
            yield (
                False,
                f"0403:{other.idProduct:04x} has the vendor id of the dongle's bridge, but is another product",
                "plug the GTI dongle in: 0403:601e or 0403:601f",
            )
        if any(True for _ in usb_bus.list_devices(usb_bus.EUSB_IDS, chosen)):
            yield (
                False,
                "a mass-storage device 05e3:0769 is there: an eUSB stick or an ordinary card reader",
                "if it is the stick, name it: --device eusb:<serial or sg node>",
            )
        yield (
            False,
            "no FT600 / FT601 dongle is on the bus",
            "plug it in, try another port and another cable; lsusb shows it",
        )
        return
    for stick in sticks:
        yield True, f"usb:{stick.index} is {stick.name} at USB {stick.location}", ""
    stick = select(sticks, key)
    if stick.problem:
        yield False, f"{stick.name}: {stick.problem}", usb_bus.PERMISSION_FIX
    if stick.kind == "FT601" and 0 < stick.speed <= _HIGH_SPEED:
        yield False, f"{stick.name} runs at USB 2 speed", "it works, slower: use a USB 3 port and cable for full speed"
    try:
        DeviceLock(stick.name).release()
    except DeviceError as problem:
        yield False, str(problem), ""
    found = usb_bus.find_same(stick, chosen)
    if found is not None:
        yield from kernel_drivers(stick.name, found[1])


def kernel_drivers(name: str, device: Any) -> Iterator[Finding]:
    """Look for a kernel driver on the bridge's interfaces."""
    import usb.core
    import usb.util

    try:
        held = [number for number in (0, 1) if device.is_kernel_driver_active(number)]
        if held:
            yield (
                True,
                f"{name}: a kernel driver holds interface {held[0]}; it is detached while the stick is in use",
                "",
            )
    except (usb.core.USBError, NotImplementedError):
        pass  # opening the stick below gives the reason
    finally:
        usb.util.dispose_resources(device)


def frame(device: str, settings: Settings | None, record: str | None, backend: Any = None) -> Iterator[Finding]:
    """Let the stick compute a frame whose answer is known."""
    import numpy as np

    from gti.chip.driver import GtiModel

    # What a profile says of the stick counts here too: its own codes are the right ones.
    data, image, expected = known_answer("" if settings is None else settings.behaviours)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "known_answer.dat"
        path.write_bytes(data)
        try:
            with GtiModel(path, device, settings=settings, record=record, backend=backend) as model:
                codes = model.evaluate(image)[0]
                where = model.device_description
        except DeviceError as problem:
            text, _, fix = str(problem).partition(" Fix: ")
            yield False, text, fix
            return
    wrong = int(np.count_nonzero(codes != expected))
    if wrong:
        yield (
            False,
            f"{where} answered, but {wrong} of {expected.size} codes differ from the emulator",
            "try --set settle_ms=500, then --set eusb_delay_us=50000, then gti doctor --identify; report it with "
            "--record FILE",
        )
    else:
        yield True, f"{where} answered the known frame: all {expected.size} codes are right", ""


def findings(device: str, settings: Settings | None, record: str | None, backend: Any = None) -> Iterator[Finding]:
    """Yield everything that there is to say about `device`; the last one is about the frame."""
    selection = parse_device(device)
    if selection.kind not in ("virtual", "replay"):
        # The kernel carries the commands of an sg node.
        if backend is None and not (selection.kind == "eusb" and eusb_disks.node_path(selection.key)):
            installed = list(software())
            yield from installed
            if not all(good for good, _, _ in installed):
                return
        if selection.kind == "usb":
            problem = False
            for finding in bus(selection.key, backend):
                problem = problem or finding[1].startswith("no FT600")
                yield finding
            if problem:
                return
    yield from frame(device, settings, record, backend)


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("doctor", __doc__)
    result.add_argument("--identify", action="store_true", help="find out what the stick does, and write a profile")
    result.add_argument(
        "--out", metavar="FILE", help="of --identify: where the profile goes (default: stick_profile.json)"
    )
    flags.add_json(result)
    flags.add_device(result, default="usb")
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Parse, look, print."""
    args = parser().parse_args(words)
    if args.device in (devices.AUTO, flags.EMULATOR):
        raise UsageError(f"--device {args.device}", "is no question for a doctor", expected="usb, eusb:... or virtual")
    if args.out and not args.identify:
        raise UsageError("--out", "names a profile, which only --identify writes", fix="add --identify")
    if args.identify:
        from gti.commands import identify_stick

        return identify_stick.run(args)
    settings = flags.settings(args)
    good = False
    for good, found, fix in findings(args.device, settings, flags.record(args)):
        if args.json:
            print(flags.json_line({"good": good, "found": found, "fix": fix}), flush=True)
        else:
            print(("ok    " if good else "FAULT ") + found + (f"\n      -> {fix}" if fix else ""), flush=True)
    return 0 if good else 1
