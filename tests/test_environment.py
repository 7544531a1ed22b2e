"""What surrounds the kit changes no code: options of Python, missing homes, caches, streams, variables of libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from places import ROOT

ON_A_STICK = """
import hashlib, sys, tempfile
from pathlib import Path
from gti import cli

def main():
    from sticks import dat_bytes, images, small_network
    from gti.chip.driver import GtiModel
    network = small_network()
    path = Path(tempfile.mkdtemp()) / "a.dat"
    path.write_bytes(dat_bytes(network))
    with GtiModel(path, "virtual") as model:
        codes = [model.evaluate(image).tobytes() for image in images(network, 2)]
    Path(sys.argv[1]).write_text(hashlib.sha256(b"".join(codes)).hexdigest())

cli.run(main)
"""
IN_KERAS = """
import hashlib, sys, tempfile
from pathlib import Path
from gti.quiet import import_tensorflow
import_tensorflow()
import small_nets
network = small_nets.small_network(*small_nets.TWO_MAJORS)
options = {"quant_w": True, "quant_act": True, "fuse": True}
model = small_nets.build(network, Path(tempfile.mkdtemp()), **options)
small_nets.randomise(model, seed=1)
logits = model(small_nets.images(network, 2, 3), training=False).numpy()
Path(sys.argv[1]).write_text(hashlib.sha256(logits.round(3).tobytes()).hexdigest())
"""


def digest(code: str, where, options=(), streams=None, **changes: str | None) -> tuple[str, str]:
    """Run `code` in another environment; return what it found, and its stderr."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support")))}
    for name, value in changes.items():
        environment.pop(name, None)
        environment |= {} if value is None else {name: value}
    words = [sys.executable, *options, "-c", code, str(where)]
    if streams:
        words = ["sh", "-c", f'"$0" "$@" {streams}', *words]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return where.read_text(), done.stderr


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return digest(ON_A_STICK, tmp_path_factory.mktemp("here") / "digest")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        {"options": ("-O",)},
        {"options": ("-OO",)},
        {"options": ("-W", "error")},
        {"streams": "<&-"},
        {"streams": ">&- 2>&-"},
        {"HOME": None, "XDG_CONFIG_HOME": None, "XDG_RUNTIME_DIR": None},
        {"HOME": "/proc/none"},
        {"NUMBA_CACHE_DIR": "/proc/none"},
        {"NUMBA_NUM_THREADS": "several"},
        {"NUMBA_OPT": "much"},
        {"LC_ALL": "tr_TR.UTF-8"},
        {"PYTHONHASHSEED": "0"},
    ],
    ids=str,
)
def test_the_codes_of_a_stick_in_software(case, expected, tmp_path):
    assert digest(ON_A_STICK, tmp_path / "digest", **case)[0] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        {"TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit"},
        {"TF_USE_LEGACY_KERAS": "1"},
        {"options": ("-O",)},
        {"CUDA_VISIBLE_DEVICES": "none of them"},
    ],
    ids=str,
)
def test_the_logits_of_a_fused_model(case, tmp_path):
    assert digest(IN_KERAS, tmp_path / "found", **case)[0] == digest(IN_KERAS, tmp_path / "expected")[0]
