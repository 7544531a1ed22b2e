"""The same global batch gives the same losses on one device, on two replicas, and in two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

WORKER = ROOT / "tests" / "support" / "strategy_worker.py"
PROCESSES = 2


def start(folder: Path, replicas: int, tf_config: dict | None = None, net: str = "digits") -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    if tf_config:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), str(replicas), net],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen) -> dict:
    try:
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.slow
def test_losses_do_not_depend_on_the_strategy(tmp_path):
    single = result(start(tmp_path / "single", 1))
    mirrored = result(start(tmp_path / "mirrored", 2))
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(PROCESSES)]}
    workers = [
        start(tmp_path / "workers", 0, {"cluster": cluster, "task": {"type": "worker", "index": i}})
        for i in range(PROCESSES)
    ]
    several = [result(worker) for worker in workers]

    assert [single["replicas"], mirrored["replicas"], several[0]["replicas"]] == [1, 2, 2]
    assert several[0] == several[1]
    for other in (mirrored, several[0]):
        assert other["step"] == single["step"] == 12
        # Float sums in another order: equal to a few parts in a million.
        np.testing.assert_allclose(other["losses"], single["losses"], rtol=2e-5)
    # Only the chief wrote: one set of checkpoints, nothing half-written.
    names = sorted(path.name for path in (tmp_path / "workers" / "ck").iterdir())
    assert [n for n in names if n.endswith(".index")] == [f"digits-2801-qw-qa-epoch-{i}.index" for i in (1, 2, 3)]
    assert not [n for n in names if n.startswith(".saving") or "tempstate" in n]


@pytest.mark.slow
def test_a_resumed_run_on_two_replicas_gives_the_bits_of_an_uninterrupted_one(tmp_path):
    # Batch norm, learned steps, an average, a teacher: statistics that replicas do not share would differ.
    found = result(start(tmp_path, 2, net="cifar"))
    assert found["replicas"] == 2
    assert found["resumed"] == 0
    assert found["apart"] == 0
