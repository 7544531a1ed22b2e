"""The training loop: what a step computes, that runs repeat and resume, and what is left when one fails."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import small_nets
import small_training
import tensorflow as tf
from small_training import CLASSES, FAST, NETWORK, START, examples, run, train_data, val_data

from gti import quantize
from gti.errors import CheckpointError, TrainingError, UsageError
from gti.model.base import chip_layers
from gti.stage import Stage
from gti.training import checkpoint, checkpoint_folder, strategies
from gti.training import loop as training
from gti.training.evaluation import batch_sums, evaluate
from gti.training.loop import fit
from gti.training.optimization import Settings


@pytest.fixture
def make_trainer(tmp_path):
    return partial(small_training.make_trainer, tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".index") for path in folder.glob("*.index"))


@pytest.mark.slow
def test_it_learns_and_keeps_the_last_and_the_best(make_trainer, tmp_path):
    lines = []
    trainer = make_trainer(replace(FAST, num_epochs=6, keep=2, learning_rate=3e-3))
    result = fit(trainer, train_data, val_data(), tmp_path / "ck", START, report=lines.append)
    losses = [loss for loss, _ in result.history]
    assert losses[-1] < losses[0] / 2
    assert result.metadata.best_accuracy == max(e.accuracy for _, e in result.history)
    assert result.metadata.best_accuracy > 0.8
    assert (result.metadata.epoch, result.metadata.step) == (6, 18)
    assert names(tmp_path / "ck") == ["digits-2801-epoch-5", "digits-2801-epoch-6"]
    # The highest accuracy; among equals the lowest loss.
    best = 1 + max(range(6), key=lambda i: (result.history[i][1].accuracy, -result.history[i][1].loss))
    assert names(tmp_path / "ck" / "best") == [f"digits-2801-epoch-{best}"]
    assert [line.split(":")[0] for line in lines] == [f"epoch {i}/6" for i in range(1, 7)]
    # What was saved gives the accuracy that was reported.
    arrays, metadata = checkpoint.load(result.best)
    for name, variable in trainer.variables.items():
        variable.assign(arrays[name])
    assert trainer.evaluate(val_data()).accuracy == metadata.accuracy == metadata.best_accuracy


@pytest.mark.slow
def test_evaluation_within_an_epoch_quantizes_filters_once(make_trainer, monkeypatch):
    calls = []
    quantized = quantize.quantize_filters
    monkeypatch.setattr(quantize, "quantize_filters", lambda *args: calls.append(1) or quantized(*args))
    trainer = make_trainer(quant_w=True)
    for number in (1, 2):
        trainer.train_epoch(train_data(number), number)
        calls.clear()
        found = trainer.evaluate(val_data())  # three batches
        assert len(calls) == len(NETWORK.convolutions)
        assert found == evaluate(trainer.model, val_data())  # as its filters are now


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(make_trainer, tmp_path):
    results = []
    for number in range(2):
        trainer = make_trainer()
        run(trainer, tmp_path / str(number))
        results.append(trainer.arrays())
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_run_equals_an_uninterrupted_one(make_trainer, tmp_path, optimizer):
    settings = replace(FAST, optimizer=optimizer)
    whole = make_trainer(settings)
    run(whole, tmp_path / "whole", num_epochs=3)

    first = make_trainer(settings)
    result = run(first, tmp_path / "parts", num_epochs=2)
    second = make_trainer(replace(settings, seed=99))  # other initial weights, which must not matter
    arrays, metadata = checkpoint.load(result.prefix)
    for name, variable in second.variables.items():
        variable.assign(arrays[name])
    assert second.restore_optimizer(checkpoint.load_optimizer(result.prefix))
    result = run(second, tmp_path / "parts", start=metadata, num_epochs=1, seed=settings.seed)
    assert Path(result.prefix).name == "digits-2801-epoch-3"
    for name, value in whole.arrays().items():
        np.testing.assert_array_equal(value, second.arrays()[name])


def test_optimizer_state_of_another_optimizer_is_not_taken(make_trainer):
    trainer = make_trainer()
    other = make_trainer(replace(FAST, optimizer="sgd")).optimizer_arrays()
    before = trainer.optimizer_arrays()
    assert not trainer.restore_optimizer(other)
    assert not trainer.restore_optimizer({})
    for name, value in trainer.optimizer_arrays().items():
        np.testing.assert_array_equal(value, before[name])


def test_one_step_of_sgd_is_the_formula(make_trainer):
    # w - rate * (d loss / d w + decay * w) from a tape over the mean cross entropy; no decay on biases.
    settings = Settings(learning_rate=0.01, momentum=0.9, weight_decay=0.1)
    trainer = make_trainer(settings)
    images, labels = examples(16)
    before = trainer.arrays()
    with tf.GradientTape() as tape:
        logits = trainer.model(images, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    named = trainer.variables
    gradients = dict(zip(named, tape.gradient(loss, [v.value for v in named.values()]), strict=True))
    data = tf.data.Dataset.from_tensors((images, labels))
    mean_loss, _, steps = trainer.train_epoch(data, seed=0)
    assert steps == 1
    assert mean_loss == pytest.approx(float(loss), rel=1e-5)
    for name, value in trainer.arrays().items():
        decay = 0.1 * before[name] if name.endswith(("filters", "weights")) else 0
        np.testing.assert_allclose(value, before[name] - 0.01 * (gradients[name] + decay), rtol=1e-4, atol=1e-7)


def test_a_small_last_batch_counts_its_own_images(make_trainer):
    # The mean over a batch of 4 is over 4 images, however large the others were.
    settings = Settings(learning_rate=0.01, momentum=0.0, weight_decay=0.0)
    images, labels = examples(4)
    results = []
    for size in (4, 64):
        trainer = make_trainer(settings)
        trainer.train_epoch(tf.data.Dataset.from_tensor_slices((images, labels)).batch(size), seed=0)
        results.append(trainer.arrays())
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name])


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(replace(FAST, optimizer="sgd", num_epochs=1))
    good = run(trainer, tmp_path / "ck")
    trainer.optimizer.learning_rate.assign(1e30)
    with pytest.raises(TrainingError) as error:
        fit(trainer, train_data, val_data(), tmp_path / "ck", good.metadata)
    text = str(error.value)
    assert "number" in text
    assert "a lower --learning_rate" in text
    assert names(tmp_path / "ck") == ["digits-2801-epoch-1"]
    assert checkpoint.is_sound(good.prefix)
    assert not list((tmp_path / "ck").glob(".saving*"))


def test_weights_that_overflow_at_the_end_of_an_epoch_are_not_saved(make_trainer, tmp_path):
    trainer = make_trainer(replace(FAST, num_epochs=1))
    trainer.variables["digits/fc/biases"].assign(np.full(CLASSES, np.nan))
    with pytest.raises(CheckpointError, match="finite"):
        checkpoint.save(tmp_path / "a", trainer.arrays(), START)
    assert names(tmp_path) == []


def test_interrupting_between_saves_leaves_the_last_epoch(make_trainer, tmp_path):
    trainer = make_trainer(replace(FAST, num_epochs=3))

    def interrupted(seed):
        if checkpoint_folder.latest(tmp_path / "ck", net="digits"):
            raise KeyboardInterrupt
        return train_data(seed)

    with pytest.raises(KeyboardInterrupt):
        fit(trainer, interrupted, val_data(), tmp_path / "ck", START)
    prefix = checkpoint_folder.latest(tmp_path / "ck", net="digits")
    assert prefix is not None
    assert prefix.endswith("epoch-1")


def test_a_stage_that_begins_is_evaluated_and_saved_first(make_trainer, tmp_path):
    trainer = make_trainer(replace(FAST, num_epochs=0), quant_w=True)
    start = replace(START, stage=Stage.QUANT_W, parent="0123456789abcdef")
    result = fit(trainer, train_data, val_data(), tmp_path, start)
    assert Path(result.prefix).name == "digits-2801-qw-epoch-0"
    assert result.metadata.accuracy == trainer.evaluate(val_data()).accuracy
    assert checkpoint.read_metadata(result.best) == result.metadata


@pytest.mark.slow
def test_an_earlier_run_under_the_same_names_is_set_aside(make_trainer, tmp_path):
    run(make_trainer(), tmp_path)
    lines = []
    fit(make_trainer(), train_data, val_data(), tmp_path, START, report=lines.append)
    assert names(tmp_path) == ["digits-2801-epoch-1", "digits-2801-epoch-2"]
    assert names(tmp_path / "earlier") == ["digits-2801-epoch-1", "digits-2801-epoch-2"]
    assert lines[0].startswith("moved 2 checkpoints of an earlier run to ")
    fit(make_trainer(), train_data, val_data(), tmp_path, replace(START, epoch=1), report=lines.append)
    assert [line for line in lines if line.startswith("moved 1 checkpoint of an earlier run to ")]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["same", "new"])
def test_a_run_from_an_earlier_epoch_has_a_best_one(make_trainer, tmp_path, folder):
    trainer = make_trainer(replace(FAST, num_epochs=3))
    run(trainer, tmp_path / "same")
    metadata = checkpoint.read_metadata(tmp_path / "same" / "digits-2801-epoch-1")
    # Whatever the first run reached: no epoch of the second one is better than what its start knows of.
    result = run(trainer, tmp_path / folder, start=replace(metadata, best_accuracy=1.0), num_epochs=1)
    (best,) = names(tmp_path / folder / "best")
    written = checkpoint.read_metadata(tmp_path / folder / "best" / best)
    assert written.accuracy == result.metadata.best_accuracy <= 1.0
    kept = [checkpoint.read_metadata(tmp_path / folder / name).accuracy for name in names(tmp_path / folder)]
    assert written.accuracy == max(kept)


@pytest.mark.slow
def test_quantized_stages_train(make_trainer, tmp_path):
    caps = small_nets.some_caps(NETWORK)
    options = {"quant_w": True, "quant_act": True, "caps": caps, "train_caps": True, "clip_bias": True}
    trainer = make_trainer(replace(FAST, num_epochs=4, learning_rate=3e-3), **options)
    start = replace(START, stage=Stage.QUANT_ACT)
    result = fit(trainer, train_data, val_data(), tmp_path, start)
    assert result.history[-1][0] < result.history[0][0]
    arrays = trainer.arrays()
    assert arrays["digits/conv1_1/relu_cap"] != np.float32(caps["digits/conv1_1/relu_cap"])
    assert np.max(np.abs(arrays["digits/conv1_1/biases"])) <= np.max(np.abs(arrays["digits/conv1_1/filters"]))


def test_steps_per_epoch_ends_an_epoch_early(make_trainer):
    assert make_trainer(replace(FAST, steps_per_epoch=2)).train_epoch(train_data(0), seed=0)[2] == 2


def test_the_optimizer_counts_the_batches_there_are(make_trainer):
    # The look for a batch beyond the last one is no step: Adam's corrections and every schedule count them.
    trainer = make_trainer()
    for epoch in (1, 2):
        trainer.train_epoch(train_data(epoch), seed=epoch)
        assert int(trainer.optimizer.iterations) == 3 * epoch


def test_data_without_a_batch_is_refused(make_trainer):
    with pytest.raises(TrainingError, match="gives"):
        make_trainer().train_epoch(train_data(0).take(0), seed=0)


def test_epoch_seeds_differ_by_epoch_and_seed():
    seeds = {training.epoch_seed(seed, epoch, stage) for seed in range(5) for epoch in range(50) for stage in Stage}
    assert len(seeds) == 5 * 50 * 4
    assert training.epoch_seed(1, 2) == training.epoch_seed(1, 2)


@pytest.mark.slow
def test_scalars_and_histograms_for_tensorboard_are_written(make_trainer, tmp_path):
    trainer = make_trainer()
    run(trainer, tmp_path / "ck", log_dir=str(tmp_path / "log"))
    events = [
        (event.step, value.tag)
        for path in sorted((tmp_path / "log").iterdir())
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    tags = ["train/loss", "train/accuracy", "validation/loss", "validation/accuracy", "learning_rate"]
    tags += [name for name in trainer.arrays() if name.endswith(("/filters", "/biases", "/weights"))]
    assert "digits/conv1_1/filters" in tags
    assert events == [(epoch, tag) for epoch in (1, 2) for tag in tags]


# ---- evaluation


def test_every_image_counts_once(make_trainer):
    model = make_trainer().model
    images, labels = examples(21, seed=1)
    found = evaluate(model, val_data(21))  # batches of 8, 8 and 5
    logits = model(images, training=False).numpy().astype(np.float64)
    order = np.argsort(-logits, axis=1, kind="stable")
    log_softmax = logits - np.log(np.sum(np.exp(logits - logits.max(1, keepdims=True)), 1, keepdims=True))
    log_softmax -= logits.max(1, keepdims=True)
    assert found.count == 21
    assert found.accuracy == pytest.approx(np.mean(order[:, 0] == labels))
    assert found.top5 == 1.0  # four classes
    assert found.loss == pytest.approx(-np.mean(log_softmax[np.arange(21), labels]), rel=1e-4)


def test_answers_are_counted_by_label(make_trainer):
    model = make_trainer().model
    images, labels = examples(21, seed=1)
    found = evaluate(model, val_data(21), classes=CLASSES)
    answers = model(images, training=False).numpy().argmax(axis=1)
    expected = np.zeros((CLASSES, CLASSES), int)
    np.add.at(expected, (labels, answers), 1)
    assert found.answers == tuple(map(tuple, expected.tolist()))
    assert np.trace(expected) == round(found.accuracy * 21)
    assert evaluate(model, val_data(21)).answers == ()


def test_every_epoch_is_recorded(make_trainer, tmp_path):
    rows = []
    start = replace(START, parent="0123456789abcdef")
    result = fit(make_trainer(replace(FAST, num_epochs=1)), train_data, val_data(), tmp_path, start, record=rows.append)
    (loss, validation), *_ = result.history
    assert [(row["stage"], row["epoch"]) for row in rows] == [("float", 0), ("float", 1)]
    assert "train_loss" not in rows[0]
    assert (rows[1]["train_loss"], rows[1]["loss"], rows[1]["accuracy"]) == (loss, validation.loss, validation.accuracy)


def test_weights_are_those_of_the_moment(make_trainer):
    model = make_trainer(quant_w=True).model
    first = evaluate(model, val_data(21))
    for layer in chip_layers(model):
        layer.filters.assign(layer.filters * 0.5)
    assert evaluate(model, val_data(21)).loss != first.loss


def test_top_5_of_many_classes_and_ties():
    logits = np.zeros((3, 10), np.float32)
    logits[0, 5:] = 1.0  # label 2 is sixth at best: five are above
    logits[1, 6:] = 1.0  # label 0 comes first of the ties: fifth
    logits[2, 9] = 2.0  # label 9 is first
    assert batch_sums(tf.constant([2, 0, 9]), tf.constant(logits)).numpy()[1:].tolist() == [1.0, 2.0, 3.0]


def test_a_stand_in_for_the_forward_pass_is_used(make_trainer):
    def always_first(images):
        return tf.one_hot(tf.zeros(tf.shape(images)[0], tf.int32), 4)

    found = evaluate(make_trainer().model, val_data(), forward=always_first)
    labels = examples(21, seed=1)[1]
    assert found.accuracy == pytest.approx(np.mean(labels == 0))


# ---- strategies


def test_more_gpus_than_there_are_is_refused():
    with pytest.raises(UsageError, match="received 64"):
        strategies.make_strategy(64)


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": {}}', '"x"'])
def test_a_tf_config_that_is_no_cluster_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match="TF_CONFIG"):
        strategies.make_strategy()


def test_one_worker_needs_no_strategy(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}')
    strategy = strategies.make_strategy()
    assert strategy.num_replicas_in_sync == 1
    assert strategies.is_chief(strategy)
