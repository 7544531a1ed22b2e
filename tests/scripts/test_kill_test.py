"""The kill test notices what it looks for, and passes on the kit itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from gti.stage import Stage
from gti.training import checkpoint, checkpoint_folder
from gti.training.metadata import Metadata


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts" / "dev"))
    try:
        import kill_test
    finally:
        sys.path.remove(str(ROOT / "scripts" / "dev"))
    return kill_test


def save(folder, epoch):
    """Save and publish a checkpoint; return its prefix."""
    prefix = folder / checkpoint.file_name("digits", Stage.FLOAT, epoch)
    arrays = {"digits/conv1_1/filters": np.full((3, 3, 3, 64), epoch, np.float32)}
    checkpoint.save(prefix, arrays, Metadata("digits", "2801", Stage.FLOAT, epoch, epoch, 11, 28))
    checkpoint_folder.publish(prefix, keep=3)
    return prefix


def test_sound_folder(script, tmp_path):
    counts = script.Counts()
    assert script.sound(tmp_path, counts) is None
    for epoch in (1, 2):
        save(tmp_path, epoch)
    assert script.sound(tmp_path, counts) == 2
    assert counts.failures == 0


def test_damaged_checkpoint_is_counted(script, tmp_path):
    counts = script.Counts()
    save(tmp_path, 1)
    data = Path(f"{save(tmp_path, 2)}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-100])
    assert script.sound(tmp_path, counts) == 1
    assert counts.unsound_checkpoints == counts.failures == 1


class FakeRun:
    """A training that prints what it is told."""

    lines = ()

    def __init__(self, folder, data, resume, epochs):
        import threading

        self.seen = threading.Event()
        self.seen.set()
        self.output = "\n".join(self.lines)

    def kill(self):
        pass

    def number(self, pattern):
        found = pattern.findall(self.output)
        return int(found[-1]) if found else None


@pytest.mark.parametrize(
    "case",  # lines that training prints, epoch before, what is counted
    [
        (["going on after epoch 2, optimizer state resumed", "epoch 3/9: training loss 1"], 2, {"lost_epochs": 1}),
        (["going on after epoch 1, optimizer state resumed", "epoch 2/9: training loss 1"], 2, {"not_resumed": 1}),
        (["epoch 1/9: training loss 1"], 2, {"not_resumed": 1}),
        ([], 2, {"not_resumed": 1}),
        (["going on after epoch 1, optimizer state resumed", "epoch 2/9: training loss 1"], 1, {}),
    ],
)
def test_what_must_not_happen_is_counted(script, tmp_path, monkeypatch, case):
    lines, before, expected = case
    for epoch in (1, 2):
        save(tmp_path, epoch)
    monkeypatch.setattr(script, "Run", type("Told", (FakeRun,), {"lines": lines}))
    counts = script.Counts()
    script.trial(tmp_path, tmp_path, counts, before, when="training", delay=0.0)
    failures = {n: getattr(counts, n) for n in ("unsound_checkpoints", "lost_epochs", "not_resumed")}
    assert {n: v for n, v in failures.items() if v} == expected


@pytest.mark.slow
def test_two_kills(tmp_path):
    report = tmp_path / "counts.json"
    command = [
        sys.executable,
        str(ROOT / "scripts" / "dev" / "kill_test.py"),
        "--trials",
        "2",
        "--starting",
        "0",
        "--saving",
        "1",
    ]
    done = subprocess.run(
        [*command, "--window", "1", "--json", str(report)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(report.read_text())
    assert (counts["trials"], counts["started_anew"], counts["resumed"]) == (2, 1, 1)
    assert counts["epochs"] >= 2
