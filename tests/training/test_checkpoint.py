"""Checkpoints: round trip, damage, names that do not fit, and what a folder keeps."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from gti.errors import CheckpointError, printable
from gti.stage import Stage
from gti.training import checkpoint, checkpoint_folder
from gti.training.metadata import Metadata

META = Metadata(net="tiny", chip="2801", stage=Stage.FLOAT, epoch=1, step=7, classes=3, image_size=14, accuracy=0.5)
SHAPES = {"tiny/conv1_1/filters": (3, 3, 3, 16), "tiny/conv1_1/biases": (16,), "tiny/fc/weights": (16, 3)}


def some_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def write(folder: Path, epoch: int, stage: Stage = Stage.FLOAT, seed: int = 0) -> Path:
    prefix = folder / checkpoint.file_name("tiny", stage, epoch)
    checkpoint.save(prefix, some_arrays(seed), replace(META, stage=stage, epoch=epoch))
    return prefix


def names(folder: Path) -> set[str]:
    return {path.name.removesuffix(".index") for path in folder.glob("*.index")}


def find(folder: Path, *stages: Stage) -> str | None:
    return checkpoint_folder.latest(folder, net="tiny", stages=stages or tuple(Stage))


def test_round_trip_keeps_arrays_metadata_and_optimizer(tmp_path):
    slots = {"learning_rate": np.float32(0.1), "filters_momentum": np.ones((3, 3), np.float32)}
    checkpoint.save(tmp_path / "a", some_arrays(), META, slots)
    arrays, metadata = checkpoint.load(tmp_path / "a")
    assert metadata == META
    assert checkpoint.read_metadata(tmp_path / "a") == META
    assert arrays.keys() == SHAPES.keys()
    for name, value in some_arrays().items():
        np.testing.assert_array_equal(arrays[name], value)
    loaded = checkpoint.load_optimizer(tmp_path / "a")
    assert loaded.keys() == slots.keys()
    np.testing.assert_array_equal(loaded["filters_momentum"], slots["filters_momentum"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.data-00000-of-00001", "a.index"]


def test_tensorflow_reads_the_names_of_the_guide(tmp_path):
    checkpoint.save(tmp_path / "a", some_arrays(), META)
    reader = tf.train.load_checkpoint(str(tmp_path / "a"))
    np.testing.assert_array_equal(reader.get_tensor("tiny/fc/weights"), some_arrays()["tiny/fc/weights"])


def test_a_checkpoint_of_the_tf1_saver_loads_without_metadata(tmp_path):
    graph = tf.Graph()
    with graph.as_default():
        filters = tf.compat.v1.get_variable("tiny/conv1_1/filters", initializer=some_arrays()["tiny/conv1_1/filters"])
        tf.compat.v1.get_variable("tiny/conv1_1/filters/Momentum", initializer=np.zeros((2, 2), np.float32))
        tf.compat.v1.get_variable("global_step", initializer=np.int64(4))
        saver = tf.compat.v1.train.Saver()
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            saver.save(session, str(tmp_path / "old"))
    arrays, metadata = checkpoint.load(tmp_path / "old")
    assert metadata is None
    assert filters.shape == SHAPES["tiny/conv1_1/filters"]
    selected = checkpoint.select(arrays, {"tiny/conv1_1/filters": SHAPES["tiny/conv1_1/filters"]}, "old")
    np.testing.assert_array_equal(selected["tiny/conv1_1/filters"], some_arrays()["tiny/conv1_1/filters"])


def test_a_prefix_is_never_overwritten(tmp_path):
    prefix = write(tmp_path, 1)
    with pytest.raises(CheckpointError, match="already"):
        checkpoint.save(prefix, some_arrays(1), META)
    np.testing.assert_array_equal(checkpoint.load(prefix)[0]["tiny/fc/weights"], some_arrays()["tiny/fc/weights"])


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    arrays = {**some_arrays(), "tiny/conv1_1/biases": np.full(16, np.nan, np.float32)}
    with pytest.raises(CheckpointError, match="tiny/conv1_1/biases"):
        checkpoint.save(tmp_path / "a", arrays, META)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_damage_is_noticed(tmp_path, part, damage):
    prefix = write(tmp_path, 1)
    path = Path(f"{prefix}.{part}")
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 3] ^= 0x10
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert not checkpoint.is_sound(prefix)
    with pytest.raises(CheckpointError, match="tiny-2801-epoch-1"):
        checkpoint.load(prefix)


def test_any_flipped_byte_of_an_index_is_refused_or_harmless(tmp_path):
    prefix = write(tmp_path, 1)
    index = Path(f"{prefix}.index")
    good = index.read_bytes()
    random = np.random.default_rng(5)
    for position in random.integers(0, len(good), 60):
        data = bytearray(good)
        data[position] ^= 1 << random.integers(0, 8)
        index.write_bytes(data)
        try:
            arrays, _ = checkpoint.load(prefix)
        except CheckpointError:
            continue
        for name, value in arrays.items():
            np.testing.assert_array_equal(value, some_arrays()[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "quantized"}, "stage"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": True}, "epoch"),
        ({"classes": "3"}, "classes"),
        ({"accuracy": 7}, "accuracy"),
        ({"net": None}, "net"),
        ({"network": "SamplingMethod 0"}, "network is wrong; expected a list of texts"),
        ({"network": [0]}, "network"),
    ],
)
def test_wrong_metadata_is_refused(change, message):
    text = json.dumps({**json.loads(META.to_json()), **change}).encode()
    with pytest.raises(CheckpointError, match=message):
        Metadata.from_json(text, "a")


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"net": "a"}', b"\xff", b'{"net": 1, "net": 2}'])
def test_metadata_that_is_no_description_is_refused(text):
    with pytest.raises(CheckpointError):
        Metadata.from_json(text, "a")


def test_unknown_keys_of_a_later_version_are_left_alone():
    text = json.dumps({**json.loads(META.to_json()), "later": [1]}).encode()
    assert Metadata.from_json(text, "a") == META


def test_every_variable_that_differs_is_listed():
    arrays = {**some_arrays(), "tiny/extra": np.zeros(2), "global_step": np.int64(1), "tiny/fc/weights/Adam_1": 0}
    arrays["tiny/conv1_1/biases"] = np.zeros(32, np.float32)
    del arrays["tiny/fc/weights"]
    with pytest.raises(CheckpointError) as error:
        checkpoint.select(arrays, SHAPES, "some/prefix")
    text = str(error.value)
    assert "some/prefix" in text
    assert "3 variables differ" in text
    assert "tiny/conv1_1/biases has shape [32], the net's is [16]" in text
    assert "tiny/fc/weights is missing" in text
    assert "tiny/extra is no variable of the net" in text
    assert "global_step" not in text


def test_optional_variables_may_be_absent_and_scalars_may_have_one_element():
    shapes = {**SHAPES, "tiny/conv1_1/relu_cap": (), "tiny/conv1_2/relu_cap": ()}
    arrays = {**some_arrays(), "tiny/conv1_1/relu_cap": np.array([3.0])}
    selected = checkpoint.select(arrays, shapes, "a", optional={"tiny/conv1_2/relu_cap"})
    assert selected["tiny/conv1_1/relu_cap"].shape == ()
    assert "tiny/conv1_2/relu_cap" not in selected


def test_another_net_is_named():
    with pytest.raises(CheckpointError, match="received tiny for"):
        checkpoint.check_net(META, "digits", "a")


def test_the_network_of_a_checkpoint_comes_back(tmp_path):
    metadata = replace(META, network=("SamplingMethod 0", "major 1: coef_bits 3"))
    checkpoint.save(tmp_path / "a", some_arrays(), metadata)
    assert checkpoint.read_metadata(tmp_path / "a") == metadata


def test_names_carry_the_stage():
    expected = {
        Stage.FLOAT: "vgg16-2801-epoch-3",
        Stage.QUANT_W: "vgg16-2801-qw-epoch-3",
        Stage.QUANT_ACT: "vgg16-2801-qw-qa-epoch-3",
        Stage.FUSED: "vgg16-2801-qw-qa-fs-epoch-3",
    }
    assert {s: checkpoint.file_name("vgg16", s, 3) for s in Stage} == expected


# ---- folders


def test_a_folder_keeps_the_last_ones_of_each_stage(tmp_path):
    for stage in (Stage.FLOAT, Stage.QUANT_W):
        for epoch in range(1, 13):
            checkpoint_folder.publish(write(tmp_path, epoch, stage), keep=2)
    # Numbers are compared as numbers: epoch 12 is later than epoch 9.
    assert names(tmp_path) == {
        "tiny-2801-epoch-11",
        "tiny-2801-epoch-12",
        "tiny-2801-qw-epoch-11",
        "tiny-2801-qw-epoch-12",
    }
    assert find(tmp_path) == str(tmp_path / "tiny-2801-qw-epoch-12")
    assert find(tmp_path, Stage.FLOAT) == str(tmp_path / "tiny-2801-epoch-12")
    assert find(tmp_path, Stage.FUSED) is None
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "tiny-2801-qw-epoch-12")


def test_the_newest_sound_one_is_taken(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint_folder.publish(write(tmp_path, epoch), keep=5)
    Path(tmp_path, "tiny-2801-epoch-3.data-00000-of-00001").write_bytes(b"short")
    assert find(tmp_path) == str(tmp_path / "tiny-2801-epoch-2")
    Path(tmp_path, "checkpoint").write_text("garbage \x00 \n" + 'model_checkpoint_path: "../../etc/x"\n')
    assert find(tmp_path) == str(tmp_path / "tiny-2801-epoch-2")


def test_resolve_takes_prefix_index_and_folder(tmp_path):
    prefix = write(tmp_path, 4)
    for given in (prefix, f"{prefix}.index", tmp_path):
        assert checkpoint_folder.resolve(given, net="tiny") == str(prefix)
    with pytest.raises(CheckpointError, match="expected other-2801"):
        checkpoint_folder.resolve(tmp_path, net="other")
    with pytest.raises(CheckpointError, match="checkpoint"):
        checkpoint_folder.resolve(tmp_path / "none", net="tiny")


def test_what_is_skipped_is_told_with_the_reason(tmp_path, caplog):
    good, cut, folder = (write(tmp_path, epoch) for epoch in (1, 2, 3))
    Path(f"{cut}.index").write_bytes(b"short")
    data = Path(f"{folder}.data-00000-of-00001")
    data.unlink()
    data.mkdir()  # as unreadable as a file without permission, also for root
    assert checkpoint_folder.resolve(tmp_path, net="tiny", preferred=Stage.FLOAT) == str(good)
    second, first = sorted(caplog.messages)  # epoch 2 and epoch 3
    assert first.startswith(f"skipped {folder}: cannot be read (Is a directory). Fix: check the permissions")
    assert second.startswith(f"skipped {cut}: is damaged (")
    checkpoint_folder.delete(good)
    with pytest.raises(CheckpointError) as error:
        checkpoint_folder.resolve(tmp_path, net="tiny")
    text = str(error.value)
    assert text.startswith(f"{tmp_path}, tiny-2801, float or quant_w or quant_act or fused: 2 things to correct:")
    assert f"{folder}: cannot be read (Is a directory)" in text
    assert f"{cut}: is damaged (" in text


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(CheckpointError, match="permissions"):
        checkpoint_folder.resolve(tmp_path, net="tiny")


@pytest.mark.parametrize("name", ["t[1]", "a*", "what?", "back\\slash", "caf\udce9"])  # the last is not UTF-8
def test_a_folder_of_any_name_can_be_written_and_read(tmp_path, monkeypatch, name):
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(links))
    prefix = write(tmp_path / name, 1)
    checkpoint_folder.publish(prefix, keep=1)
    checkpoint_folder.publish_best(prefix)
    assert find(tmp_path / name) == str(prefix)
    arrays, metadata = checkpoint.load(checkpoint_folder.resolve(tmp_path / name / "best", net="tiny"))
    assert metadata == META
    np.testing.assert_array_equal(arrays["tiny/fc/weights"], some_arrays()["tiny/fc/weights"])
    assert not list(links.iterdir())
    Path(f"{prefix}.index").write_bytes(b"short")
    assert checkpoint.damage(prefix).startswith(f"{printable(str(prefix))}: is damaged")


def test_best_holds_one_of_each_stage_and_survives_its_original(tmp_path):
    for epoch in (1, 2):
        prefix = write(tmp_path, epoch)
        assert checkpoint_folder.publish_best(prefix) == str(tmp_path / "best" / prefix.name)
        checkpoint_folder.delete(prefix)
    checkpoint_folder.publish_best(write(tmp_path, 1, Stage.QUANT_W))
    assert names(tmp_path / "best") == {"tiny-2801-epoch-2", "tiny-2801-qw-epoch-1"}
    assert checkpoint.is_sound(tmp_path / "best" / "tiny-2801-epoch-2")


def test_an_earlier_run_is_set_aside_and_nothing_else(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint_folder.publish(write(tmp_path, epoch), keep=5)
    checkpoint_folder.publish_best(tmp_path / "tiny-2801-epoch-2")
    checkpoint_folder.publish(write(tmp_path, 1, Stage.QUANT_W), keep=5)
    moved = checkpoint_folder.set_aside(tmp_path, "tiny", Stage.FLOAT, from_epoch=2)
    assert moved == ["tiny-2801-epoch-2", "tiny-2801-epoch-3"]
    assert names(tmp_path) == {"tiny-2801-epoch-1", "tiny-2801-qw-epoch-1"}
    assert names(tmp_path / "earlier") == {"tiny-2801-epoch-2", "tiny-2801-epoch-3"}
    assert names(tmp_path / "best") == set()
    assert all(checkpoint.is_sound(tmp_path / "earlier" / name) for name in moved)
    assert find(tmp_path, Stage.FLOAT) == str(tmp_path / "tiny-2801-epoch-1")


@pytest.mark.parametrize(
    ("accuracies", "best", "expected"),
    [
        ({0: 0.2, 1: 0.6, 2: 0.4}, None, (1, 0.6)),
        ({0: 0.2, 1: None}, None, (0, 0.2)),  # nothing is known of epoch 1
        ({0: 0.2, 1: 0.6}, 0, (0, 0.2)),  # best/ has one already
        ({}, None, None),
    ],
)
def test_best_without_a_stage_gets_the_best_one_that_is_left(tmp_path, accuracies, best, expected):
    for epoch, accuracy in accuracies.items():
        prefix = tmp_path / checkpoint.file_name("tiny", Stage.FLOAT, epoch)
        checkpoint.save(prefix, some_arrays(), replace(META, epoch=epoch, accuracy=accuracy))
        if epoch == best:
            checkpoint_folder.publish_best(prefix)
    later = checkpoint_folder.publish_best(write(tmp_path, 7, Stage.QUANT_W))
    found = checkpoint_folder.best_accuracy(tmp_path, "tiny", Stage.FLOAT)
    assert found == (expected[1] if expected else None)
    left = {f"tiny-2801-epoch-{expected[0]}"} if expected else set()
    assert names(tmp_path / "best") == {Path(later).name} | left
    if expected and best is None:  # what is the best again is the newest: the next command starts from it
        assert find(tmp_path / "best") == str(tmp_path / "best" / f"tiny-2801-epoch-{expected[0]}")


def test_leftovers_of_a_killed_run_are_swept(tmp_path):
    prefix = write(tmp_path, 1)
    (tmp_path / ".saving-tiny-2801-epoch-2-x").mkdir()
    (tmp_path / ".saving-tiny-2801-epoch-2-x" / "data").write_bytes(b"half")
    (tmp_path / "tiny-2801-epoch-2.data-00000-of-00001.tempstate123").write_bytes(b"half")
    (tmp_path / "tiny-2801-epoch-3.data-00000-of-00001").write_bytes(b"orphan")
    (tmp_path / "other-2801-epoch-3.data-00000-of-00001").write_bytes(b"of another run")
    checkpoint_folder.sweep(tmp_path, "tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "other-2801-epoch-3.data-00000-of-00001",
        f"{prefix.name}.data-00000-of-00001",
        f"{prefix.name}.index",
    ]


WRITER = textwrap.dedent("""
    import sys
    import numpy as np
    from gti.training import checkpoint, checkpoint_folder
    from gti.training.metadata import Metadata
    from gti.stage import Stage
    folder, start = sys.argv[1], int(sys.argv[2])
    value = np.zeros((512, 1024), np.float32)
    print("ready", flush=True)
    for epoch in range(start, 10**6):
        meta = Metadata("tiny", "2801", Stage.FLOAT, epoch, epoch, 3, 14)
        prefix = f"{folder}/" + checkpoint.file_name("tiny", Stage.FLOAT, epoch)
        checkpoint.save(prefix, {"tiny/a": value + epoch}, meta)
        checkpoint_folder.publish(prefix, keep=2)
        checkpoint_folder.publish_best(prefix)
    """)


@pytest.mark.slow
def test_kill_during_saving_leaves_a_sound_checkpoint(tmp_path):
    random = np.random.default_rng(3)
    reached = 0
    for _ in range(3):
        checkpoint_folder.sweep(tmp_path, "tiny")
        checkpoint_folder.set_aside(tmp_path, "tiny", Stage.FLOAT, reached + 1)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(reached + 1)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 60
        while find(tmp_path) in (None, str(tmp_path / f"tiny-2801-epoch-{reached}")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        prefix = find(tmp_path)
        assert prefix is not None
        arrays, metadata = checkpoint.load(prefix)
        assert metadata is not None
        assert metadata.epoch > reached
        assert np.all(arrays["tiny/a"] == metadata.epoch)
        reached = metadata.epoch
    checkpoint_folder.sweep(tmp_path, "tiny")
    assert not list(tmp_path.glob(".saving*"))


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    prefix = write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # writing beyond it fails as on a full disk
    try:
        with pytest.raises(CheckpointError, match="written"):
            write(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.is_sound(prefix)
    assert names(tmp_path) == {prefix.name}
    assert len(list(tmp_path.iterdir())) == 2


def test_one_variable_differs():
    arrays = {**some_arrays(), "tiny/extra": np.zeros(2)}
    with pytest.raises(CheckpointError, match="1 variable differs: tiny/extra is no variable of the net"):
        checkpoint.select(arrays, SHAPES, "some/prefix")


def chosen(folder: Path) -> str:
    return Path(checkpoint_folder.resolve(folder, net="tiny")).name


@pytest.mark.parametrize("backwards", [False, True])
def test_times_of_files_decide_nothing(tmp_path, backwards):
    # The float network was trained again after quant_w: it is the newest, in best/ too.
    for epoch, stage in ((1, Stage.FLOAT), (3, Stage.QUANT_W), (2, Stage.FLOAT)):
        prefix = write(tmp_path, epoch, stage)
        checkpoint_folder.publish(prefix, keep=5)
        checkpoint_folder.publish_best(prefix)
    for number, path in enumerate(sorted(tmp_path.rglob("*.*"))):
        when = number if backwards else 10**9 - number
        os.utime(path, (when, when))
    shutil.copytree(tmp_path, tmp_path / "copy", copy_function=shutil.copyfile)
    for home in (tmp_path, tmp_path / "best", tmp_path / "copy", tmp_path / "copy" / "best"):
        assert chosen(home) == "tiny-2801-epoch-2"


@pytest.mark.parametrize("state", ["", 'model_checkpoint_path: "tiny-2801-epoch-1"\n'], ids=["none", "an older one"])
def test_what_grew_out_of_another_is_newer(tmp_path, state):
    # As `rsync --update` leaves it where the clock went back: newer checkpoints beside a state file of before.
    digests = {}
    steps = (
        ("", Stage.FLOAT, 1),
        ("", Stage.FLOAT, 2),
        (Stage.FLOAT, Stage.QUANT_W, 0),
        (Stage.FLOAT, Stage.QUANT_W, 1),
    )
    for origin, stage, epoch in steps:
        prefix = tmp_path / checkpoint.file_name("tiny", stage, epoch)
        metadata = replace(META, stage=stage, epoch=epoch, parent=digests.get(origin, ""))
        checkpoint.save(prefix, some_arrays(epoch), metadata)
        digests[stage] = checkpoint.digest(prefix)
    (tmp_path / "checkpoint").write_text(state)
    assert chosen(tmp_path) == "tiny-2801-qw-epoch-1"
    assert Path(find(tmp_path, Stage.FLOAT)).name == "tiny-2801-epoch-2"


def test_the_parent_decides_between_stages(tmp_path):
    first = write(tmp_path, 1)
    child = tmp_path / checkpoint.file_name("tiny", Stage.QUANT_W, 1)
    metadata = replace(META, stage=Stage.QUANT_W, parent=checkpoint.digest(first))
    checkpoint.save(child, some_arrays(5), metadata)
    for prefix in (child, first):
        checkpoint_folder.publish(prefix, keep=5)
    assert chosen(tmp_path) == child.name  # though the state file has the parent last
    checkpoint_folder.publish(write(tmp_path, 2, seed=2), keep=5)
    assert chosen(tmp_path) == "tiny-2801-epoch-2"  # trained on after the child was: the state file tells


def test_without_a_state_file_stage_and_epoch_decide(tmp_path):
    for epoch, stage in ((12, Stage.FLOAT), (3, Stage.QUANT_W), (9, Stage.FLOAT)):
        write(tmp_path, epoch, stage)
    assert chosen(tmp_path) == "tiny-2801-qw-epoch-3"
    assert Path(find(tmp_path, Stage.FLOAT)).name == "tiny-2801-epoch-12"


def test_a_link_in_place_of_data_is_followed_and_a_fifo_refused(tmp_path):
    data = "tiny-2801-epoch-1.data-00000-of-00001"
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck" / data).symlink_to(tmp_path / "elsewhere")
    prefix = write(tmp_path / "ck", 1)
    assert (tmp_path / "ck" / data).is_symlink()
    assert checkpoint.is_sound(prefix)
    os.mkfifo(tmp_path / "ck" / data.replace("-1.", "-2."))
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(tmp_path / "ck", 2)
    assert not checkpoint.index_path(tmp_path / "ck" / "tiny-2801-epoch-2").exists()
