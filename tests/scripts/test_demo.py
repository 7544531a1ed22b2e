"""The whole pipeline, from images to classes over the USB path: scripts/demo.py with few epochs and images."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys

import pytest
from converted_net import ROOT, run_script

from gti.errors import UsageError

IMAGES = 20
# 28x28x32 twice, 14x14x64 twice: every sublayer of nets/2801_digits_dat.json before pooling.
CODES_PER_IMAGE = 2 * 28 * 28 * 32 + 2 * 14 * 14 * 64


@pytest.fixture
def demo(monkeypatch):
    """scripts/demo.py as a module whose commands run in this process, which has TensorFlow already."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    module.commands = []

    def run(*words, **options):
        module.commands.append(words[0])
        run_script(*words)

    monkeypatch.setattr(module, "run", run)
    return module


@pytest.mark.slow
def test_all_stages_end_in_equal_codes(demo, monkeypatch, tmp_path, capsys):
    flags = ["--work_dir", tmp_path, "--epochs", 3, 1, 1, 1, "--images", IMAGES, "--device", "virtual"]
    monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, flags)])
    status = demo.main()
    report = json.loads((tmp_path / "reports" / "demo.json").read_text())
    stages = ("float", "quant_w", "quant_act", "fused", "chip")
    assert set(report) == {*stages, "device", "codes_compared", "codes_equal", "seconds"}
    assert report["codes_compared"] == report["codes_equal"] == IMAGES * CODES_PER_IMAGE
    assert report["chip"] == report["fused"]  # the same codes and the same host layers
    assert report["float"] > 0.8  # of 0.1 for guessing, after three epochs
    assert report["device"].startswith("virtual stick")
    assert (status == 0) == (report["chip"] >= report["float"] - 0.01)
    assert demo.commands == [
        "scripts/make_digits.py",
        "train.py",  # float
        "eval.py",
        "train.py",  # quant_w
        "eval.py",
        "set_relu_caps.py",
        "train.py",  # quant_act
        "eval.py",
        "train.py",  # fused
        "eval.py",
        "convert_to_chip.py",
        "chip_infer.py",
        "scripts/compare.py",
    ]
    shown = capsys.readouterr().out
    assert demo.table(report) in shown
    page = (tmp_path / "reports" / "demo" / "index.html").read_text()
    parts = ("stages", "activations", "weights", "sensitivity", "compare", "memory")
    assert all(f'id="{part}"' in page for part in parts)
    assert f"{report['codes_equal']:,} of {report['codes_compared']:,} codes equal" in shown


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0, "codes equal")),
        ({"chip": 0.97}, (0, "codes equal")),
        ({"chip": 0.969}, (1, "FAILED: the chip loses more than 0.01")),
        ({"codes_equal": 99}, (1, "FAILED: 1 of 100 codes differ")),
        ({"codes_compared": 0, "codes_equal": 0}, (1, "FAILED: 0 of 0")),
    ],
)
def test_exit_status(demo, monkeypatch, tmp_path, changes, expected):
    # Only the judgement: training and comparison are given.
    figures = {"float": 0.98, "quant_w": 0.98, "quant_act": 0.98, "fused": 0.98, "chip": 0.98}
    figures |= {"codes_compared": 100, "codes_equal": 100} | changes
    monkeypatch.setattr(demo, "run", lambda *words, **options: None)
    monkeypatch.setattr(demo, "train", lambda where, args: {stage: figures[stage] for stage in demo.STAGES})
    monkeypatch.setattr(demo, "accuracy", lambda path: figures["chip"])
    compared = (figures["codes_compared"], figures["codes_equal"], "virtual stick")
    monkeypatch.setattr(demo, "compare_codes", lambda *arguments: compared)
    monkeypatch.setattr(demo, "finish_report", lambda checkpoint, where, report: where.page / "index.html")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--work_dir", str(tmp_path)])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert demo.main() == expected[0]
    assert expected[1] in printed.getvalue()
    assert json.loads((tmp_path / "reports" / "demo.json").read_text())["codes_equal"] == figures["codes_equal"]


def test_a_command_that_fails_stops_the_demo():
    spec = importlib.util.spec_from_file_location("demo_alone", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_alone"] = module
    try:
        spec.loader.exec_module(module)
        with pytest.raises(UsageError, match=r"train\.py: "):
            module.run("train.py", "--no_such_flag")
    finally:
        del sys.modules["demo_alone"]
