"""Identifying sticks in software: table and beyond it, silence, recordings, profiles."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from still_clock import still

from gti.chip import spec
from gti.chip.emulator.behaviours import parse
from gti.chip.identify import bench, profile, stages
from gti.chip.identify.identify import CERTAIN, NONE, NOT_REACHED, Identity, identify
from gti.chip.usb.transport import Settings
from gti.chip.virtual.bridge import VirtualFt60x
from gti.chip.virtual.bus import VirtualBackend
from gti.chip.virtual.chip import VirtualChip
from gti.chip.virtual.faults import Fault, FaultPlan
from gti.chip.virtual.memory import SoftwareNetwork
from gti.chip.virtual.sticks import virtual_backend
from gti.chip.wire import protocol
from gti.errors import FormatError, UsageError

SMALL = ("units", "rows")  # left out: loads of 50 MB


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    still(monkeypatch)


def examined(device: str, backend: Any = None, record: Path | None = None, left_out: Any = SMALL) -> Identity:
    with ExitStack() as held:
        return identify(bench.connect(device, held, record, backend), left_out=left_out)


def answers(found: Identity) -> dict[str, str]:
    return {one.question: "/".join(one.answers) or one.sure for one in found.findings}


def test_a_recording_leads_to_the_same_profile(tmp_path: Path):
    record = tmp_path / "session.gz"
    device = "virtual:ft600,rounding=floor,saturation=wrap_signed,gpio=high,learn_maps=after,one_coef=all"
    found = examined(device, record=record)
    assert found.behaviours == parse(device.partition(",")[2])
    again = examined(f"replay:{record}")
    assert profile.to_json(again) == profile.to_json(found)


def test_the_profile_sets_driver_and_emulator(tmp_path: Path):
    found = examined("virtual:chunks=512,write_command=needed,settle=long,fc_low_bits=data,ten_bit=pairs,bias=as_code")
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json(found)))
    loaded = profile.load(path)
    assert dict(loaded.settings) == {
        "settle_ms": 1000.0,
        "write_chunk": 512,
        "read_chunk": 512,
        "write_command": True,
        "check_low_bits": False,
        "ten_bit_layout": "pairs",
    }
    settings = loaded.applied(Settings())
    assert (settings.write_chunk, settings.behaviours) == (512, "bias=as_code,fc_low_bits=data,ten_bit=pairs")
    assert (loaded.bridge, loaded.serial) == ("FT601", "VIRTUAL0001")


BAD_PROFILES = [
    "[]",
    '{"format": "another 1"}',
    '{"format": "gti-stick-profile 1", "settings": {"colour": 1}, "behaviours": {}}',
    '{"format": "gti-stick-profile 1", "settings": {"write_chunk": 7}, "behaviours": {}}',
    '{"format": "gti-stick-profile 1", "settings": {"write_chunk": "7"}, "behaviours": {}}',
    '{"format": "gti-stick-profile 1", "settings": {}, "behaviours": {"rounding": "up"}}',
    '{"format": "gti-stick-profile 1", "settings": {}, "behaviours": {"rounding": 1}}',
    '{"format": "gti-stick-profile 1", "settings": {}}',
]


@pytest.mark.parametrize("text", BAD_PROFILES)
def test_bad_profiles_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"profile\.json"):
        profile.load(path)


class OtherChip(VirtualChip):
    """A chip that changes the codes in a way that the table does not have."""

    change: Any = staticmethod(lambda codes: codes)

    def _network(self, header: protocol.Header) -> SoftwareNetwork:
        network = super()._network(header)
        if not hasattr(network, "changed"):
            inner = network._maps
            network._maps = lambda *args: [self.change(codes) for codes in inner(*args)]  # type: ignore[method-assign]
            network.changed = True  # type: ignore[attr-defined]
        return network


def test_what_nothing_explains_is_said_with_the_smallest_case():
    # Codes of 7 come out as 6: no rounding, clipping or pooling does that.
    chip = OtherChip(protocol.FT601)
    chip.change = lambda codes: np.where(codes == 7, 6, codes).astype(codes.dtype)  # type: ignore[method-assign]
    left_out = [stage.name for stage in stages.STAGES if stage.name not in ("sums", "signs", "shortcut")]
    # The known frame has codes of 7 too: it must be let through to come so far.
    known = chip.change
    calls: list[int] = []

    def change(codes: np.ndarray) -> np.ndarray:
        calls.append(1)
        return codes if len(calls) <= 2 else known(codes)

    chip.change = change  # type: ignore[method-assign]
    found = examined("virtual", VirtualBackend([VirtualFt60x(chip)]), left_out=left_out)
    given = answers(found)
    assert {given[name] for name in stages.CORE} == {NONE}
    (failing, *_) = found.failing
    assert failing.stage == "sums"
    text = "\n".join(failing.lines)
    assert "6 came" in text
    # One output, a few pixels.
    assert "1 of 16 outputs" in text
    assert np.count_nonzero(failing.case.planes.any(0)) <= 9


def test_a_question_that_hangs_on_an_unknown_one_is_not_guessed(monkeypatch: pytest.MonkeyPatch):
    # Shortcuts are told by results below zero: what happens to those is unknown when nothing explains the sums.
    monkeypatch.setattr("gti.chip.identify.identify.shrink", lambda failing, *_: failing)

    class Odd(OtherChip):
        def _network(self, header: protocol.Header) -> SoftwareNetwork:
            self.change = (
                (lambda codes: (codes ^ 1).astype(codes.dtype))
                if header.layers[0].image_size == 14 and header.planes == 16 and header.layers[0].sublayers == 1
                else (lambda codes: codes)
            )
            return super()._network(header)

    chip = Odd(protocol.FT601, behaviours=parse("shortcuts=before"))
    left_out = [stage.name for stage in stages.STAGES if stage.name not in ("sums", "shortcut")]
    found = answers(examined("virtual", VirtualBackend([VirtualFt60x(chip)]), left_out=left_out))
    assert found["rounding"] == NONE
    assert found["shortcuts"] in ("before", NOT_REACHED)


def test_a_stick_that_dies_on_the_way_leaves_questions_open():
    backend = VirtualBackend([VirtualFt60x(VirtualChip(protocol.FT601))], [FaultPlan([Fault("read", 40, "gone")])])
    found = examined("virtual", backend)
    given = answers(found)
    assert given["saturation"] == "clip"
    assert given["ten_bit"] == NOT_REACHED
    assert all("no more" in one.why or "left out" in one.why for one in found.findings if one.sure == NOT_REACHED)


def test_a_stick_that_never_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spec, "MIN_FILE_BYTES", 1 << 12)  # whole files, quickly
    backend = VirtualBackend(
        [VirtualFt60x(VirtualChip(protocol.FT601))], [FaultPlan([Fault("read", 0, "timeout", 100_000)])]
    )
    found = examined("virtual", backend)
    assert found.settings is None
    assert {one.sure for one in found.findings} == {NOT_REACHED}
    assert len(found.tried) == 32
    assert all("silent" in text for text in found.tried)
    assert profile.settings_of(found) == {}


@pytest.mark.slow
def test_silence_by_a_fault_is_no_behaviour():
    # The stick computes one_coef; every try of that case is met by time-outs, and later ones are not.
    for start in range(20, 60, 4):
        backend = VirtualBackend(
            [VirtualFt60x(VirtualChip(protocol.FT601, behaviours=parse("one_coef=centre")))],
            [FaultPlan([Fault("read", start, "timeout", 25)])],
        )
        found = examined("virtual", backend)
        assert answers(found)["one_coef"] in ("centre", NOT_REACHED), start


def test_an_eusb_stick_is_not_asked_for_its_pins():
    found = examined("virtual:eusb,rounding=floor")
    given = answers(found)
    assert given["gpio"] == NOT_REACHED
    assert given["load_length"] == "any"
    assert given["rounding"] == "floor/truncate"


def test_every_finding_says_what_it_means():
    for one in examined("virtual:upsample_fill=zero").findings:
        assert one.does
        assert one.sure == CERTAIN or one.why
        assert one.question != "upsample_fill" or one.follows


def test_devices_that_cannot_be_examined():
    with pytest.raises(UsageError):
        examined("auto")


@pytest.mark.parametrize("kind", ["ones", "zeros"])
def test_a_stick_that_answers_one_byte_for_a_while_is_no_new_behaviour(kind: str):
    # 50 openings in a row end with 0xFF, or 0x00, all over: neither a table's answer nor "none of these".
    for start in (1, 4, 9):
        backend = VirtualBackend(
            [VirtualFt60x(VirtualChip(protocol.FT601, behaviours=parse("saturation=below_top")))],
            [FaultPlan([Fault("open", start, kind, 50)])],
        )
        found = answers(examined("virtual", backend))
        assert found["saturation"] in ("below_top", NOT_REACHED)
        assert found["rounding"] in ("half_up/half_away", NOT_REACHED)


def test_an_eusb_stick_that_leaves_for_good():
    backend = virtual_backend("eusb", plans=[FaultPlan([Fault("read", 9, "gone")])])
    found = answers(examined("virtual:eusb", backend))
    assert found["filter_memory"] == NOT_REACHED
    assert NOT_REACHED in (found["ten_bit"], found["pooling"])


def test_bytes_that_follow_results_for_a_while_are_no_padding():
    """The fault begins where bringing up asks how results end, and is over before the last question."""
    played = parse("bias=as_code,gpio=untouched,settle=short")
    backend = virtual_backend(
        "ft600",
        plans=[FaultPlan([Fault("open", 41, "extra", 50, 4096), Fault("session", 5, "lost", 1, 4096)])],
        behaviours=played,
    )
    found = examined("virtual:ft600", backend)
    assert answers(found)["end_of_result"] in ("exact", NOT_REACHED)
    assert all(played[one.question] in one.answers for one in found.findings if one.answers)
