"""The average of the weights: its formula, that it is what is evaluated and saved, and replicas that agree."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import small_training
from small_training import FAST, restore, run, train_data, val_data

from gti.training import averaging, checkpoint


@pytest.fixture
def make_trainer(tmp_path):
    return partial(small_training.make_trainer, tmp_path)


EMA = replace(FAST, ema=0.9, learning_rate=0.01)


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (1, 2 / 11), (90, 0.9), (91, 0.9), (10**6, 0.9)])
def test_the_decay_rises_to_its_value(step, decay):
    # (1 + t) / (10 + t): 1/10 at the begin, 91/100 from step 90 on is above 0.9.
    assert float(averaging.decay_at(0.9, step)) == pytest.approx(decay, rel=1e-6)


def test_the_average_is_the_formula(make_trainer):
    trainer = make_trainer(EMA, net="cifar")
    expected = {name: value.astype(np.float64) for name, value in trainer.arrays().items()}
    for step in (1, 2, 3):
        trainer.train_epoch(train_data(step).take(1), seed=step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, variable in trainer.variables.items():
            expected[name] = decay * expected[name] + (1 - decay) * variable.numpy()
    found = trainer.arrays()
    assert "cifar/conv1_1/batch_normalization/moving_variance" in found
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        assert name.endswith("biases") or np.any(found[name] != trainer.variables[name].numpy()), name


@pytest.mark.slow
def test_the_average_is_evaluated_and_the_weights_come_back(make_trainer):
    trainer = make_trainer(EMA)
    trainer.train_epoch(train_data(1), seed=1)
    before = {name: variable.numpy() for name, variable in trainer.variables.items()}
    found, averages = trainer.evaluate(val_data()), trainer.arrays()
    for name, variable in trainer.variables.items():
        np.testing.assert_array_equal(variable.numpy(), before[name])
    other = make_trainer(FAST)
    for name, variable in other.variables.items():
        variable.assign(averages[name])
    assert other.evaluate(val_data()) == found


@pytest.mark.slow
def test_a_checkpoint_holds_the_average_and_what_training_goes_on_from(make_trainer, tmp_path):
    trainer = make_trainer(EMA)
    result = run(trainer, tmp_path / "ck")
    arrays, _ = checkpoint.load(result.prefix)
    for name, value in trainer.arrays().items():
        np.testing.assert_array_equal(arrays[name], value)
    again = make_trainer(replace(EMA, seed=9))
    restore(again, result.prefix)
    for name, variable in trainer.variables.items():
        np.testing.assert_array_equal(again.variables[name].numpy(), variable.numpy())
        np.testing.assert_array_equal(again.arrays()[name], arrays[name])
    # What neither keeps an average nor knows of one begins at the average, with a state of its own.
    without = make_trainer(FAST)
    assert not without.restore_optimizer(checkpoint.load_optimizer(result.prefix))


@pytest.mark.slow
def test_an_average_begins_with_the_weights_of_a_checkpoint_that_has_none(make_trainer, tmp_path):
    result = run(make_trainer(FAST), tmp_path / "ck")
    trainer = make_trainer(replace(EMA, seed=9))
    restore(trainer, result.prefix)
    arrays, _ = checkpoint.load(result.prefix)
    for name, value in trainer.arrays().items():
        np.testing.assert_array_equal(value, arrays[name])


def test_no_average_and_its_state_are_as_before(make_trainer):
    trainer = make_trainer(FAST)
    assert trainer.average is None
    assert not [name for name in trainer.optimizer_arrays() if "trained" in name]
