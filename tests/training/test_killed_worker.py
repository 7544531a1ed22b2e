"""train.py in two processes: one of them dies, and the run goes on from what the chief saved."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from converted_net import ROOT, make
from test_strategies import free_ports

from gti.stage import Stage
from gti.training import checkpoint, checkpoint_folder
from scripts.dev.kill_test import Started

WAIT_S = 120


class Training(Started):
    """train.py as worker `index` of `cluster`, or alone; `seen`: its second epoch is done."""

    def __init__(self, folder: Path, *flags: object, cluster: dict | None = None, index: int = 0) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"} | {"CUDA_VISIBLE_DEVICES": ""}
        if cluster:
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        common = ("--net", "digits", "--chip", "2801", "--nets_dir", folder, "--data_dir", folder / "data")
        batches = ("--train_batch_size", 4, "--val_batch_size", 4, "--checkpoint_dir", folder / "ck")
        command = [sys.executable, ROOT / "train.py", *common, *batches, *flags]
        super().__init__(command, environment, re.compile(r"epoch 2/.*training loss"))


@pytest.mark.slow
def test_a_killed_worker_leaves_a_run_that_goes_on(tmp_path):
    make(tmp_path, Stage.QUANT_ACT)  # for its network and data
    shutil.copytree(tmp_path / "data" / "val", tmp_path / "data" / "train")
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    chief, other = (Training(tmp_path, "--num_epochs", 100000, cluster=cluster, index=i) for i in range(2))
    try:
        assert chief.seen.wait(WAIT_S)
        assert chief.process.poll() is None, chief.output
        other.process.send_signal(signal.SIGKILL)
        status = chief.finish(60)
    finally:
        for training in (chief, other):
            training.process.kill()
    assert status == 2, chief.output
    assert "another worker is gone (/job:worker/replica:0/task:1)" in chief.output
    assert f"--resume_from {tmp_path / 'ck'}" in chief.output
    assert "epoch" not in other.output  # one of them speaks and writes

    newest = checkpoint_folder.latest(tmp_path / "ck", net="digits")
    epoch = checkpoint.read_metadata(newest).epoch
    assert epoch >= 2
    again = Training(tmp_path, "--num_epochs", 1, "--resume_from", tmp_path / "ck")
    assert again.finish(WAIT_S) == 0, again.output
    assert f"going on after epoch {epoch}, optimizer state resumed" in again.output
    left = [p.name for p in (tmp_path / "ck").iterdir() if p.name.startswith(".saving")]
    assert left == []
