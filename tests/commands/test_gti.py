"""The command `gti`: every verb is found, light and documented; udev's rules can match."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from gti import __main__, __version__
from gti.commands import udev
from gti.errors import UsageError

HEAVY = {"numpy", "numba", "usb", "PIL", "cv2", "tensorflow", "tqdm"}
LAUNCHERS = {
    "addon/camera.py": "camera",
    "addon/classify.py": "classify",
    "addon/edges.py": "edges",
    "addon/infer_full.py": "classify",
    "addon/teach.py": "teach",
    "scripts/doctor.py": "doctor",
    "scripts/model_tool.py info": "info",
    "scripts/usb_trace.py": "trace",
}


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_there_is_a_module_for_each_verb_and_a_verb_for_each_module():
    helpers = {"flags", "frames", "identify_stick", "pictures"}
    modules = {path.stem for path in (ROOT / "gti" / "commands").glob("[!_]*.py")} - helpers
    assert modules == set(map(__main__.module_of, __main__.VERBS))


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]):
    assert __main__.main([]) == 0
    shown = capsys.readouterr().out
    assert [verb for verb in __main__.VERBS if f"\n  {verb} " not in shown] == []
    assert __main__.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gti {__version__}\n"
    with pytest.raises(UsageError, match="verb"):
        __main__.main(["clasify"])


def test_every_help_imports_nothing_heavy():
    code = (
        "import contextlib, io, sys\n"
        "from gti.__main__ import VERBS, main\n"
        "for verb in VERBS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):\n"
        "        main([verb, '--help'])\n"
        "    assert shown.getvalue().startswith(f'usage: gti {verb} '), verb\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = call("-c", code)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_mistakes_leave_with_2_and_one_sentence():
    done = call("-m", "gti", "info", "none.dat")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: none.dat")
    assert done.stderr.count("\n") == 1
    done = call("-m", "gti", "classify")
    assert done.returncode == 2
    assert "gti classify --help" in done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_of_a_checkout(launcher: str):
    done = call(*launcher.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: gti {LAUNCHERS[launcher]} ")


# udev(7): fields of a rule, separated by commas: key, operator, value in quotes; which operators compare.
FIELD = re.compile(r'(?P<key>[A-Z]+)(?P<attribute>\{[^}]+\})?(?P<operator>==|!=|=|\+=|-=|:=)"(?P<value>[^"]*)"')
OF_PARENTS = {"KERNELS", "SUBSYSTEMS", "DRIVERS", "ATTRS", "TAGS"}
KEYS = OF_PARENTS | {"SUBSYSTEM", "KERNEL", "ATTR", "ENV", "MODE", "TAG"}


def parsed_rules() -> list[list[dict[str, str]]]:
    lines = [line for line in udev.rules().splitlines() if line and not line.startswith("#")]
    rules = []
    for line in lines:
        fields = [FIELD.fullmatch(field.strip()) for field in line.split(", ")]
        assert all(fields), line
        rules.append([field.groupdict() for field in fields if field])
    return rules


def run_rules(subsystem: str, own: dict[str, str], parents: list[dict[str, str]], **env: str) -> dict[str, str]:
    """Return what the rules assign to a device, as udev(7) says: one parent must match all ATTRS of a rule."""
    assigned: dict[str, str] = {}
    for rule in parsed_rules():
        known = env | {key[4:-1]: value for key, value in assigned.items() if key.startswith("ENV")}
        compared = [field for field in rule if field["operator"] == "=="]
        wanted = {field["attribute"][1:-1]: field["value"] for field in compared if field["key"] == "ATTRS"}
        good = all(
            {
                "SUBSYSTEM": lambda f: subsystem in f["value"].split("|"),
                "ATTR": lambda f: own.get(f["attribute"][1:-1]) == f["value"],
                "ENV": lambda f, known=known: known.get(f["attribute"][1:-1]) == f["value"],
                "ATTRS": lambda f: True,
            }[field["key"]](field)
            for field in compared
        )
        chain = [own, *parents]
        if good and (not wanted or any(wanted.items() <= device.items() for device in chain)):
            assigned |= {f["key"] + (f["attribute"] or ""): f["value"] for f in rule if f["operator"] != "=="}
    return assigned


SCSI = {"vendor": "Generic ", "model": "MassStorageClass"}
EUSB = {"idVendor": "05e3", "idProduct": "0769"}
DEVICES = [
    # (subsystem, attributes of its own, of its parents, environment, what the rules assign)
    ("usb", {"idVendor": "0403", "idProduct": "601f"}, [], {"DEVTYPE": "usb_device"}, {"MODE": "0666"}),
    ("usb", {"idVendor": "0403", "idProduct": "601e"}, [], {"DEVTYPE": "usb_device"}, {"MODE": "0666"}),
    ("usb", {"idVendor": "0403", "idProduct": "6001"}, [], {"DEVTYPE": "usb_device"}, {}),
    ("usb", EUSB, [], {"DEVTYPE": "usb_device"}, {}),
    ("scsi_generic", {}, [SCSI, EUSB], {}, {"MODE": "0666"}),
    ("block", {}, [SCSI, EUSB], {}, {"ENV{UDISKS_IGNORE}": "1"}),
    ("scsi_generic", {}, [SCSI | {"model": "SD Card Reader"}, EUSB], {}, {}),
    ("scsi_generic", {}, [SCSI, EUSB | {"idProduct": "0751"}], {}, {}),
]


@pytest.mark.parametrize(("subsystem", "own", "parents", "env", "expected"), DEVICES)
def test_the_rules_match_what_they_mean(
    subsystem: str, own: dict[str, str], parents: list[dict[str, str]], env: dict[str, str], expected: dict[str, str]
):
    found = run_rules(subsystem, own, parents, **env)
    assert {key: found.get(key) for key in ("MODE", "ENV{UDISKS_IGNORE}") if key in found} == expected


def test_the_rules_use_keys_that_udev_knows():
    assert {field["key"] for rule in parsed_rules() for field in rule} <= KEYS


def test_installing_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert udev.main(["--print"]) == 0
    assert capsys.readouterr().out == udev.rules()
    words = ["--install", "--folder", str(tmp_path)]
    assert udev.main(words) == 0
    assert (tmp_path / udev.NAME).read_text() == udev.rules()
    assert (tmp_path / udev.NAME).stat().st_mode & 0o777 == 0o644
    assert udev.main(words) == 0
    assert "already" in capsys.readouterr().out

    def refuse(*_: object, **__: object) -> None:
        raise UsageError("x", "cannot be written")

    (tmp_path / udev.NAME).unlink()
    monkeypatch.setattr("gti.files.write_atomic", refuse)
    assert udev.main(words) == 1
    assert "sudo" in capsys.readouterr().out
    assert not (tmp_path / udev.NAME).exists()
    with pytest.raises(UsageError, match="no folder"):
        udev.main(["--install", "--folder", str(tmp_path / "none")])
