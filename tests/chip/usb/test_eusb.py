"""The mass-storage transport: captured sessions over SG_IO and Bulk-Only Transport, and what it refuses to touch."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden import captures
from sticks import dat_bytes, images, lively_weights, stick, tiny_network

from gti.chip.driver import GtiModel
from gti.chip.emulator.emulator import Emulator
from gti.chip.usb import devices, eusb, eusb_disks, eusb_sticks, ft60x, scsi_sg, usb_bus
from gti.chip.usb.eusb_disks import SgNode
from gti.chip.usb.link import Link
from gti.chip.usb.scsi_bulk import COMMAND_BLOCK, BulkChannel
from gti.chip.usb.transport import VIRTUAL_SETTINGS, Settings, TransferError
from gti.chip.virtual.bus import VirtualBackend
from gti.chip.virtual.chip import VirtualChip
from gti.chip.virtual.faults import FaultPlan
from gti.chip.virtual.sticks import virtual_backend
from gti.chip.virtual.storage import VirtualStorage
from gti.chip.wire.protocol import EUSB
from gti.errors import DeviceError

_NODE_FILE = tempfile.NamedTemporaryFile()  # noqa: SIM115  # its own: nodes are locked
NODE = SgNode(_NODE_FILE.name, "0001", "480", "1-2", ())
# docs/eusb_protocol.md section 3; INQUIRY is ours, the runtime of the sticks sends none.
OPENING = [
    ("120000002400", 0),
    ("e502c1000200", 2),
    ("e502c1000200", 2),
    ("f3000000000000030000", 0),
    ("2a000000200000000100", 512),
]


@pytest.fixture(autouse=True, scope="module")
def _collecting_is_quick() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what is there already is not looked through again before every test
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nobody_has_the_node(_collecting_is_quick: None) -> None:
    gc.collect()  # tracebacks of the test before keep its channel


class Kernel:
    """Stands in for ioctl SG_IO with a virtual bridge behind it; writes commands down as (cdb, bytes out)."""

    def __init__(self, **chip: Any) -> None:
        self.storage = VirtualStorage(VirtualChip(EUSB, **chip))
        self.commands: list[tuple[str, bytes]] = []
        self.headers: list[dict[str, int]] = []
        self.failing: dict[str, dict[str, int]] = {}  # by hex of the first CDB byte: fields of the answer

    def __call__(self, descriptor: int, request: int, header: scsi_sg.SgHeader) -> None:
        assert request == 0x2285
        cdb = ctypes.string_at(header.cmdp, header.cmd_len)
        out = header.dxfer_direction == -2
        data = ctypes.string_at(header.dxferp, header.dxfer_len) if header.dxfer_len and out else b""
        self.commands.append((cdb.hex(), data))
        self.headers.append({"timeout": header.timeout, "mx_sb_len": header.mx_sb_len, "flags": header.flags})
        failure = self.failing.get(cdb[:1].hex())
        if failure is not None:
            if "errno" in failure:
                raise OSError(failure["errno"], "test")
            for name, value in failure.items():
                setattr(header, name, value)
            return
        block = COMMAND_BLOCK.pack(b"USBC", 1, header.dxfer_len, 0 if out else 0x80, 0, len(cdb), cdb)
        assert self.storage.bulk_out(2, block)
        if data:
            assert self.storage.bulk_out(2, data)
        elif header.dxfer_len:
            answer = self.storage.bulk_in(0x81, header.dxfer_len, 1000) or b""
            ctypes.memmove(header.dxferp, answer, len(answer))
        self.storage.bulk_in(0x81, 13, 1000)

    def taken(self) -> list[tuple[str, bytes]]:
        commands, self.commands = self.commands, []
        return commands


def sg_stick(settings: Settings = VIRTUAL_SETTINGS, **chip: Any) -> tuple[Kernel, eusb.Eusb, list[float]]:
    kernel, pauses = Kernel(**chip), []
    channel = scsi_sg.SgChannel(NODE, settings, kernel)
    return kernel, eusb.Eusb(channel, settings, pauses.append), pauses


def test_opening_over_sg_io():
    kernel, transport, pauses = sg_stick()
    transport.open()
    commands = kernel.taken()
    assert [(cdb, len(data)) for cdb, data in commands] == OPENING
    assert [data.hex() for _, data in commands[1:3]] == ["1c62", "5c22"]
    assert not any(commands[4][1])
    assert pauses[0] == 0.001
    assert {"timeout": 7000, "mx_sb_len": 64, "flags": 0} in kernel.headers


@pytest.mark.parametrize("case", captures.cases("eusb.json"), ids=lambda case: case["name"])
@pytest.mark.parametrize("path", ["sg", "bot"])
def test_captured_sessions(case: dict[str, Any], path: str):
    dat = captures.network(case)
    written: list[bytes] = []
    if path == "sg":
        kernel, transport, _ = sg_stick(chip_time_ms=0)
        storage = kernel.storage
    else:
        backend, transport = stick("eusb", chip_time_ms=0)
        storage = backend.slots[0].device
    feed = storage.chip.feed
    storage.chip.feed = lambda data: (written.append(data), feed(data))[1]
    link = Link(transport, dat, case["image"]["c"], VIRTUAL_SETTINGS)
    link.prepare()
    assert written.pop(0) == bytes(512)  # of the opening sequence
    assert hashlib.sha256(b"".join(written)).hexdigest() == case["load"]
    for number, frame in enumerate(case["frames"]):
        written.clear()
        link.start(link.encode(captures.image(case, number), case["mode"]))
        assert hashlib.sha256(b"".join(written)).hexdigest() == frame["write"]
        assert len(link.finish()) * 4 == frame["read"]
    assert not storage.written  # no block but the stream's was ever written


@pytest.mark.parametrize(("speed", "blocks"), [("480", [128, 128, 8]), ("5000", [264])])
def test_blocks_of_a_command(speed: str, blocks: list[int]):
    kernel = Kernel()
    channel = scsi_sg.SgChannel(SgNode(_NODE_FILE.name, "", speed, "1-2", ()), VIRTUAL_SETTINGS, kernel)
    transport = eusb.Eusb(channel, VIRTUAL_SETTINGS)
    transport.open()
    kernel.taken()
    transport.write(bytes(264 * 512), "loading")
    assert [cdb for cdb, _ in kernel.taken()] == [f"2a0000002000{0:02x}{count:04x}00" for count in blocks]


def test_pause_before_the_first_read_of_a_frame_only():
    network = tiny_network()
    _, transport, pauses = sg_stick(VIRTUAL_SETTINGS.changed(eusb_delay_us=12000.0), chip_time_ms=0)
    link = Link(transport, dat_bytes(network), 1, VIRTUAL_SETTINGS)
    link.prepare()
    pauses.clear()
    for image in images(network, 2):
        link.start(link.encode(image.transpose(2, 0, 1), 0))
        link.finish()
    assert len(pauses) == 2
    assert all(0.0 < pause <= 0.012 for pause in pauses)


FAILURES = [
    # (fields that the kernel answers to a WRITE(10), words of the error)
    ({"status": 2}, "0x2"),
    ({"host_status": 3}, "0x3"),
    ({"resid": 512}, "512 of 4096"),
    ({"errno": 5}, "refused"),
]


@pytest.mark.parametrize(("answer", "words"), FAILURES)
def test_failed_commands(answer: dict[str, int], words: str):
    kernel, transport, _ = sg_stick()
    transport.open()
    kernel.taken()
    kernel.failing["2a"] = answer
    with pytest.raises(TransferError, match=words):
        transport.write(bytes(4096), "loading")
    # The bridge's reset follows a failure.
    assert [cdb for cdb, _ in kernel.taken()][-1] == "e6000000000000000000"


def test_status_can_be_ignored():
    settings = VIRTUAL_SETTINGS.changed(eusb_check_status=False)
    kernel, transport, _ = sg_stick(settings)
    transport.open()
    kernel.failing["2a"] = {"status": 2, "resid": 512}
    transport.write(bytes(2048), "loading")


def backend_with(storage: VirtualStorage, **options: Any) -> VirtualBackend:
    return VirtualBackend([storage], [FaultPlan()], **options)


def bulk_stick(storage: VirtualStorage, in_use: Any = lambda location: "", **options: Any) -> tuple[Any, eusb.Eusb]:
    backend = backend_with(storage, **options)
    found = usb_bus.list_devices(usb_bus.EUSB_IDS, backend)[0]
    return backend, eusb.Eusb(BulkChannel(found, VIRTUAL_SETTINGS, backend, in_use), VIRTUAL_SETTINGS)


def test_a_card_reader_is_left_alone():
    storage = VirtualStorage(VirtualChip(EUSB), product_name="STORAGE DEVICE")
    _, transport = bulk_stick(storage)
    fed: list[bytes] = []
    storage.chip.feed = fed.append
    with pytest.raises(DeviceError, match="'STORAGE DEVICE'"):
        transport.open()
    assert not fed
    assert not storage.written


def test_a_mounted_disk_is_left_alone_and_keeps_its_driver():
    storage = VirtualStorage(VirtualChip(EUSB))
    backend, transport = bulk_stick(storage, lambda location: "sdb1 is mounted at /media/card", kernel_driver=True)
    with pytest.raises(DeviceError, match="sdb1 is mounted at /media/card"):
        transport.open()
    assert backend.slots[0].drivers == {0}
    assert not storage.written


def test_kernel_driver_is_detached_and_given_back():
    backend, transport = bulk_stick(VirtualStorage(VirtualChip(EUSB)), kernel_driver=True)
    transport.open()
    assert backend.slots[0].drivers == set()
    transport.close()
    assert backend.slots[0].drivers == {0}


def test_eusb_is_never_chosen_without_its_name(monkeypatch: pytest.MonkeyPatch):
    backend = backend_with(VirtualStorage(VirtualChip(EUSB)))
    assert devices.list_sticks(backend) == []
    with pytest.raises(DeviceError, match="plugged"):
        ft60x.find_stick("", backend)


def sysfs(root: Path) -> Path:
    """A tree as Linux shows it: sg0 is a stick with one partition, sg1 a disk of another make."""
    for number, (vendor, disk) in enumerate([("05e3", "sdb"), ("0bda", "sdc")]):
        usb = root / "devices" / "usb1" / f"1-{number + 2}"
        scsi = usb / f"1-{number + 2}:1.0" / "host6" / "target6:0:0" / "6:0:0:0"
        node = scsi / "scsi_generic" / f"sg{number}"
        node.mkdir(parents=True)
        (scsi / "block" / disk / f"{disk}1").mkdir(parents=True)
        (node / "device").symlink_to(scsi)
        for name, text in {
            "bcdDevice": "0100",
            "idVendor": vendor,
            "idProduct": "0769",
            "speed": "480",
            "serial": f"00{number}",
        }.items():
            (usb / name).write_text(text + "\n")
        links = root / "class" / "scsi_generic"
        links.mkdir(parents=True, exist_ok=True)
        (links / f"sg{number}").symlink_to(node)
        by_location = root / "bus" / "usb" / "devices"
        by_location.mkdir(parents=True, exist_ok=True)
        (by_location / f"1-{number + 2}").symlink_to(usb)
        for minor, name in enumerate((disk, f"{disk}1")):
            block = root / "class" / "block" / name
            (block / "holders").mkdir(parents=True)
            (block / "dev").write_text(f"8:{16 * (number + 1) + minor}\n")
    return root


def test_nodes_are_found_in_sysfs(tmp_path: Path):
    root = sysfs(tmp_path)
    assert eusb_disks.list_nodes(root) == [SgNode("/dev/sg0", "000", "480", "1-2", ("sdb", "sdb1"))]
    assert eusb_disks.blocks_of_usb("1-2", root) == ("sdb", "sdb1")
    assert eusb_disks.list_nodes(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("mounts", "swaps", "holder", "found"),
    [
        ("36 35 8:17 / /media/card rw - vfat /dev/sdb1 rw", "", "", "sdb1 is mounted at /media/card"),
        ("36 35 8:16 / /mnt rw - ext4 /dev/sdb rw", "", "", "sdb is mounted at /mnt"),
        ("36 35 8:33 / /media/other rw - vfat /dev/sdc1 rw", "", "", ""),
        ("", "/dev/sdb1 partition 100 0 -2", "", "sdb1 is swap space"),
        ("", "", "dm-0", "sdb1 is held by dm-0"),
        ("", "", "", ""),
    ],
)
def test_disk_in_use(tmp_path: Path, mounts: str, swaps: str, holder: str, found: str):
    root, proc = sysfs(tmp_path / "sys"), tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "mountinfo").write_text(mounts + "\n")
    (proc / "swaps").write_text("Filename Type Size Used Priority\n" + swaps + "\n")
    if holder:
        (root / "class" / "block" / "sdb1" / "holders" / holder).mkdir()
    assert eusb_disks.disk_in_use(("sdb", "sdb1"), root, proc) == found


def test_unknown_stick_is_named_with_those_that_are_there():
    backend = virtual_backend("eusb")
    with pytest.raises(DeviceError, match=r"eusb:77.*VIRTUAL0001"):
        eusb_sticks.find_transport("77", Settings(), backend)
    transport, lock = eusb_sticks.find_transport("VIRTUAL0001", Settings(), backend)
    lock.release()
    assert transport.description == "eUSB serial VIRTUAL0001"


@pytest.mark.parametrize(
    ("key", "path"),
    [("/dev/sg9", "/dev/sg9"), ("sg9", "/dev/sg9"), ("sg", ""), ("sg9x", ""), ("/dev/sda", ""), ("7", "")],
)
def test_names_of_nodes(key: str, path: str):
    assert eusb_disks.node_path(key) == path


def test_a_node_is_looked_for_without_libusb(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(usb_bus, "libusb", lambda: pytest.fail("libusb was asked for"))
    with pytest.raises(DeviceError, match="/dev/sg99"):
        eusb_sticks.find_transport("/dev/sg99", Settings())


def test_the_driver_opens_a_named_stick_and_frees_a_refused_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GTI_LOCK_DIR", str(tmp_path))
    monkeypatch.setattr(eusb_disks, "blocks_of_usb", lambda location: ())
    network = tiny_network()
    path = tmp_path / "tiny.dat"
    path.write_bytes(dat_bytes(network))
    settings = VIRTUAL_SETTINGS
    reader = VirtualStorage(VirtualChip(EUSB), "7", product_name="STORAGE DEVICE")
    for _ in range(2):  # the second time, the lock of the first must not stand in the way
        with pytest.raises(DeviceError, match="GTI"):
            GtiModel(path, "eusb:7", backend=backend_with(reader), settings=settings)
    backend = backend_with(VirtualStorage(VirtualChip(EUSB), "7"))
    image = images(network, 1)[0]
    with GtiModel(path, "eusb:7", backend=backend, settings=settings) as model:
        expected = Emulator(network, lively_weights(network, 1)).output(image[None])[0]
        assert (model.evaluate(image)[0].transpose(2, 0, 1) == expected).all()
        assert model.device_description == "eUSB serial 7"


def test_sense_in_words():
    assert eusb.sense_text(bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0])) == "sense key 5, code 20/00"
    assert eusb.sense_text(b"") == "no sense data"
