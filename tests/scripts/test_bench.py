"""The benchmark harness: its statistics, result files and tables, and tiny runs. Times are not judged."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT

sys.path.append(str(ROOT))

from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat
from gti.errors import FormatError, UsageError
from scripts import bench
from scripts.benchmarks import emulator, figures, measure, networks, peers, usb
from scripts.benchmarks.figures import Figure, Scale
from scripts.benchmarks.measure import Paired, Sample, Spread, Worker

TINY = Scale(
    rounds=1,
    step_rounds=1,
    min_seconds=0.0,
    net="digits",
    batch=2,
    small_batch=2,
    arrays=3,
    growth=False,
    large_training=False,
    calibration_batches=1,
    stick_seconds=0.1,
)


def counting_side(numbers: list[int]):
    return {"sum": lambda: sum(numbers), "fail": lambda: numbers[len(numbers)]}


def test_worker_runs_actions_in_its_own_process():
    with Worker(counting_side, [1, 2, 3]) as worker:
        assert worker.value("sum") == 6
        sample = worker.run("sum", repeat=3)
        assert sample.wall > 0
        assert sample.cpu >= 0
        assert worker.peak_megabytes() > 1


def test_worker_tells_why_a_side_failed():
    with pytest.raises(RuntimeError, match="IndexError"), Worker(counting_side, [1]) as worker:
        worker.run("fail")


def rounds(*pairs: tuple[float, float], foreign: float) -> list[tuple[Sample, Sample]]:
    # CPU time is ten times the clock, so that the basis shows.
    return [tuple(Sample(wall, 10 * wall, foreign) for wall in pair) for pair in pairs]


QUIET, CONTENDED = ((2, 1), (3, 1), (8, 2)), ((90, 1),)


def test_contended_rounds_do_not_count():
    found = measure.evaluated(rounds(*QUIET, foreign=0.0), rounds(*CONTENDED, foreign=0.5), 3)
    assert found.ratio == Spread(3, 2, 4)  # 2/1, 3/1 and 8/2
    assert (found.basis, found.subject, found.rounds, found.rejected) == ("wall", Spread(3, 2, 8), 3, 1)


@pytest.mark.parametrize(("clock", "basis", "median"), [(False, "cpu", 55), (True, "wall", 5.5)])
def test_all_rounds_count_where_too_few_are_quiet(clock, basis, median):
    found = measure.evaluated(rounds(*QUIET, foreign=0.0), rounds(*CONTENDED, foreign=0.5), 4, clock)
    assert found.ratio == Spread(3.5, 2, 90)
    assert (found.basis, found.subject.median, found.rounds, found.rejected) == (basis, median, 4, 0)


def test_a_round_is_contended_above_the_limit():
    alone, disturbed = Sample(1, 1, measure.FOREIGN_SHARE), Sample(1, 1, measure.FOREIGN_SHARE + 0.01)
    assert not measure.is_contended((alone, Sample(1, 1)))
    assert measure.is_contended((alone, disturbed))


PAIR = Paired(Spread(1, 1, 1), Spread(2, 2, 2), Spread(0.5, 0.4, 0.8), 5, 1, "wall", 0.01)


@pytest.mark.parametrize(
    ("kind", "goal", "value", "verdict"),
    [
        ("speed", 2.0, 2.0, "met"),  # the yardstick takes 1 / 0.5 times as long
        ("speed", 2.5, 2.0, "missed by 20%: a reason"),
        ("cost", 0.5, 0.5, "met"),
        ("cost", 0.4, 0.5, "missed by 25%: a reason"),
        ("cost", 0.498, 0.5, "missed by 0.4%: a reason"),
        ("seconds", 0.8, 1.0, "missed by 25%: a reason"),
        ("seconds", None, 1.0, ""),
    ],
)
def test_verdicts(kind, goal, value, verdict):
    figure = figures.compared("usb", "a figure", kind, PAIR, "another", goal=goal, remark="a reason")
    assert figure.value.median == value
    assert figure.verdict == verdict


def test_speed_keeps_the_order_of_its_range():
    assert figures.compared("usb", "a", "speed", PAIR, "b").value == Spread(2.0, 1.25, 2.5)


def test_result_files_come_back_and_become_tables(tmp_path):
    found = [
        figures.compared("emulator", "fast", "speed", PAIR, "slow", goal=2.0),
        Figure("usb", "memory", "megabytes", Spread(500, 500, 500), 450.0),
    ]
    path = tmp_path / "out.json"
    path.write_text(json.dumps(figures.to_json(found, figures.about(False, ["emulator"], 1.0))))
    assert figures.from_json(json.loads(path.read_text())) == found
    lines = bench.table(str(path)).splitlines()
    assert "| fast | 2.00 x (1.25 x..2.50 x) | 1 s | slow, 2 s | >= 2.00 x | met | 5 (1 rejected) |" in lines
    assert "| memory | 500 MB (500 MB..500 MB) |  |  | <= 450 MB | missed by 11% |  |" in lines
    assert lines.index("### emulator") < lines.index("### usb")


def test_a_document_is_refilled(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    assert bench.refilled(str(path), "new") == "before\n<!-- bench -->\nnew\n<!-- /bench -->\nafter\n"
    path.write_text("before")
    with pytest.raises(FormatError, match="place"):
        bench.refilled(str(path), "new")


def test_another_file_has_no_table(tmp_path):
    path = tmp_path / "out.json"
    path.write_text('{"figures": [1]}')
    with pytest.raises(FormatError, match=r"out\.json"):
        bench.table(str(path))


@pytest.mark.parametrize(
    ("value", "words"), [(1.5, "1.5 s"), (0.25, "250 ms"), (4.2e-5, "42 us"), (1234.0, "1234 s"), (0.9999, "1000 ms")]
)
def test_seconds(value, words):
    assert figures.seconds(value) == words


def test_benchmark_weights_are_what_the_chip_holds():
    network = networks.six_convolutions()
    weights = networks.random_weights(network)
    back = dat.decode(dat.encode(network, weights))
    for one, other in zip(weights, back.weights, strict=True):
        np.testing.assert_array_equal(one.filters, other.filters)


@pytest.mark.parametrize(
    "network",
    [
        networks.of_net("vgg16"),
        networks.of_net("digits"),
        networks.six_convolutions(),
        networks.one_convolution(28, 16, 16),
        networks.one_convolution(28, 512, 512),
    ],
    ids=["vgg16", "digits", "six", "16 -> 16", "512 -> 512"],
)
def test_every_layer_of_a_benchmark_network_is_alive(network):
    """A yardstick with information: activations neither die nor saturate on the way."""
    emulator = Emulator(network, networks.random_weights(network))
    for conv, codes in emulator.sublayers(networks.random_images(network, 1)):
        assert len(np.unique(codes)) >= 20, conv.path
        assert np.mean(codes == 31) < 0.2, conv.path


@pytest.mark.slow
def test_usb_part_on_tiny_sizes():
    found = list(usb.measure(TINY))
    names = [figure.name.split()[0] for figure in found]
    assert names == ["encode", "crop", "crop", "4", "six", "digits", "digits", "start"]
    assert all(figure.value.low <= figure.value.median <= figure.value.high for figure in found)
    assert all(figure.rounds >= TINY.rounds for figure in found)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["qat", "calibration", "pipeline", "conversion"])
def test_parts_with_tensorflow_on_tiny_sizes(part):
    found = list(bench.part(part)(TINY))
    assert found
    assert all(figure.part == part and figure.value.low > 0 for figure in found)


def test_unknown_parts_are_refused():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/bench.py"), "emulators"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "emulators" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_growth_figure_is_measured_twice():
    channels, sizes = emulator.single_convolutions()
    assert not channels.keys() & sizes.keys()


@pytest.mark.parametrize(
    ("words", "missing", "text"),
    [
        (["--into", "README.md"], "", "--into: has no tables to put there. Fix: pass --table JSON with it."),
        (["emulator"], "numba", "numba: is not installed. Fix: pip install numba."),
        (["usb", "qat"], "tensorflow", 'tensorflow: is not installed. Fix: pip install ".[train]".'),
    ],
)
def test_what_cannot_be_measured_is_said_first(words, missing, text, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.py", *words])
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured"))
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError) as caught:
        bench.main()
    assert str(caught.value) == text


CASES = {"digits 28, batch 2": (networks.of_net("digits"), 2)}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [(name, side) for name, _, side in peers.PEERS])
def test_peers_run_the_same_shapes(name, side):
    if (name, side) not in peers.installed():
        pytest.skip(f"{name}: not installed")
    network, batch = CASES["digits 28, batch 2"]
    with Worker(side, CASES) as worker:
        (result,) = worker.value("digits 28, batch 2")
    assert np.prod(result.shape) == batch * np.prod(network.output_shape)
    assert result.dtype == np.uint8
    assert len(np.unique(result)) > 5


def test_peers_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert all("OpenVINO" not in name for name, _ in peers.installed())
