"""gti doctor --identify and gti report-stick: table, files, exit status, what is not in a report."""

from __future__ import annotations

import gzip
import json
import logging
import zipfile
from pathlib import Path

import pytest
from still_clock import still

from gti.chip.identify import identify, place, profile, stages
from gti.chip.usb.transport import Settings
from gti.commands import doctor, flags, report_stick
from gti.errors import UsageError

SERIAL = "VIRTUAL0001"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    still(monkeypatch)
    small = tuple(stage for stage in stages.STAGES if stage.name in ("sums", "pooled", "sampled"))
    monkeypatch.setattr(stages, "STAGES", small)


def test_table_profile_recording_report(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert doctor.main(["--identify", "--device", "virtual:rounding=half_even,pooling=average"]) == 1  # few stages
    shown = capsys.readouterr().out
    assert "halves to the even number" in shown
    assert "not reached" in shown
    assert logging.getLogger("gti.chip").level == logging.NOTSET  # a program goes on to hear of faults
    found = json.loads(Path("stick_profile.json").read_text())
    assert found["behaviours"] == {"rounding": "half_even", "pooling": "average"}
    assert report_stick.main([]) == 0
    with zipfile.ZipFile("stick_report.zip") as archive:
        page = archive.read("README.txt").decode()
        packed = json.loads(archive.read("stick_profile.json"))
        session = gzip.decompress(archive.read("session.gz"))
        Path("session.gz").write_bytes(archive.read("session.gz"))
    assert packed == found | {"serial": "0" * len(SERIAL)}
    assert "half_even" in page
    for text in (page.encode(), session, json.dumps(packed).encode()):
        assert SERIAL.encode() not in text
        assert str(tmp_path).encode() not in text
        assert Path.home().name.encode() + b"/" not in text
    # The recording alone leads to the same profile, but for the serial.
    doctor.main(["--identify", "--device", "replay:session.gz", "--out", "again.json"])
    assert json.loads(Path("again.json").read_text()) == packed
    assert not Path("again.session.gz").exists()


def test_json(capsys: pytest.CaptureFixture[str]):
    doctor.main(["--identify", "--device", "virtual", "--json", "--out", "p.json"])
    assert json.loads(capsys.readouterr().out) == json.loads(Path("p.json").read_text())


@pytest.mark.parametrize("words", [["--out", "x"], ["--identify", "--set", "retries=1"], ["--identify"]])
def test_mistakes(words: list[str]):
    with pytest.raises((UsageError, SystemExit, Exception), match=r"out|set|device|USB|libusb"):
        doctor.main([*words, *(["--device", "auto"] if words == ["--identify"] else [])])


def test_a_report_needs_a_profile():
    with pytest.raises(UsageError, match=r"stick_profile.*doctor --identify"):
        report_stick.main([])


def settings_with(*words: str) -> Settings | None:
    parser = flags.Parser("x", "x")
    flags.add_device(parser)
    return flags.settings(parser.parse_args(words))


def test_a_run_that_is_stopped_says_how_to_go_on_and_takes_nothing_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ["--identify", "--device", "virtual"]
    doctor.main(words)
    before = {name: Path(name).read_bytes() for name in ("stick_profile.json", "stick_profile.session.gz")}

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(identify.Examination, "_confirm", stopped)
        with pytest.raises(KeyboardInterrupt):
            doctor.main(words)
    assert {name: Path(name).read_bytes() for name in before} == before
    told = capsys.readouterr().err
    (left,) = Path().glob("*.unfinished.*")
    assert f"recording up to here is {left}" in told
    replayed = f"--identify --device replay:{left} --out stick_profile.json"
    assert replayed in told
    doctor.main(replayed.split())
    assert report_stick.main(["--recording", str(left), "--out", "whole.zip"]) == 0
    assert "breaks off" not in capsys.readouterr().err


def test_a_recording_that_breaks_off_is_packed_with_a_word(capsys: pytest.CaptureFixture[str]):
    doctor.main(["--identify", "--device", "virtual"])
    recording = Path("stick_profile.session.gz")
    recording.write_bytes(recording.read_bytes()[:-500])
    assert report_stick.main([]) == 0
    assert f"{recording} breaks off" in capsys.readouterr().err
    with zipfile.ZipFile("stick_report.zip") as archive:
        assert "breaks off" in archive.read("README.txt").decode()
        assert gzip.decompress(archive.read("session.gz"))


def test_a_profile_of_another_version_is_told(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    value = {"format": profile.FORMAT, "kit": "0.0.1", "settings": {}, "behaviours": {}}
    (tmp_path / "old.json").write_text(json.dumps(value))
    profile.load(tmp_path / "old.json")
    assert "old.json: written by gti 0.0.1" in caplog.text


def test_profiles_reach_driver_and_emulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(place.FOLDER_VARIABLE, str(tmp_path))
    assert settings_with("--device", "usb") is None
    own = place.own_profile()
    own.parent.mkdir()
    value = {"format": profile.FORMAT, "settings": {"write_chunk": 512}, "behaviours": {"rounding": "floor"}}
    own.write_text(json.dumps(value))
    for device in ("usb", "auto", "emulator"):
        settings = settings_with("--device", device)
        assert settings is not None
        assert (settings.write_chunk, settings.behaviours) == (512, "rounding=floor")
        assert flags.behaviours({"settings": settings}).text == "rounding=floor"
    assert settings_with("--device", "virtual") is None
    assert settings_with("--device", "usb", "--profile", "none") is None
    changed = settings_with("--device", "virtual", "--profile", str(own), "--set", "write_chunk=1024")
    assert changed is not None
    assert (changed.write_chunk, changed.behaviours) == (1024, "rounding=floor")
    assert flags.behaviours({"settings": None}).text == ""
