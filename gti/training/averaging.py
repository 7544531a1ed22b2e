"""The exponential average of a model's variables over its training steps, with which it is evaluated and saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def decay_at(decay: float, step: Any) -> Any:
    """Return the decay after `step` steps (float32): `min(decay, (1 + step) / (10 + step))`.

    An average that began at random weights forgets them quickly so: the rule of TensorFlow's own average, where it
    knows the number of updates.
    """
    step = tf.cast(step, tf.float32)
    return tf.minimum(tf.constant(decay, tf.float32), (1 + step) / (10 + step))


class Average:
    """An average of `variables`, by name: trained ones and batch-norm statistics alike.

    After every step `a <- a - (1 - d) * (a - v)`, d of `decay_at` (Polyak and Juditsky 1992; exponential: Tarvainen and
    Valpola 2017). Variables of a strategy have averages of the same strategy, updated on each device without traffic.
    """

    def __init__(self, variables: Mapping[str, keras.Variable], decay: float, strategy: tf.distribute.Strategy) -> None:
        self.decay, self._strategy = decay, strategy
        self._variables = dict(variables)
        with strategy.scope():
            self._averages = {
                name: tf.Variable(tf.convert_to_tensor(variable), trainable=False)
                for name, variable in variables.items()
            }

    def update(self, step: Any) -> None:
        """Follow the variables, after `step` steps; part of a graph, in the context of all replicas."""
        share = 1 - decay_at(self.decay, step)

        def follow(average: Any, value: Any, share: Any) -> Any:
            return average.assign_sub(share * (average - value))

        for name, average in self._averages.items():
            self._strategy.extended.update(average, follow, args=(self._variables[name].value, share))

    def of(self, name: str) -> tf.Variable:
        """Return the average of one variable."""
        return self._averages[name]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the variables have their averages for a `with` block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, average in self._averages.items():
            variable = self._variables[name]
            value = tf.identity(tf.convert_to_tensor(variable))
            variable.assign(tf.identity(tf.convert_to_tensor(average)))
            average.assign(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the averages by name."""
        return {name: np.asarray(average) for name, average in self._averages.items()}

    def start_from(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set the averages."""
        for name, average in self._averages.items():
            average.assign(arrays[name])


def agree(variables: Iterable[tf.Variable], strategy: tf.distribute.Strategy) -> None:
    """Set each variable to its mean over the replicas: batch norm leaves every one with statistics of its own."""
    found = list(variables)
    if not found or strategy.num_replicas_in_sync == 1:
        return

    def share() -> None:
        context = tf.distribute.get_replica_context()
        for variable in found:
            own = tf.convert_to_tensor(variable)
            variable.assign(context.all_reduce(tf.distribute.ReduceOp.MEAN, own))

    tf.function(lambda: strategy.run(share), autograph=False)()
