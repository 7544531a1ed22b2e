"""How weights change: the settings of a run, the schedule of its learning rate, its optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Settings:
    """How to train; defaults of the user guide (sections 7.1.3 and 7.1.7)."""

    num_epochs: int = 10
    learning_rate: float = 1e-4
    schedule: str = "constant"  # or "cosine"
    schedule_span: tuple[float, float] = (0.0, 1.0)  # part of the cosine that this stage takes
    warmup_steps: int = 0  # steps of the stage in which the rate rises from 0
    optimizer: str = "sgd"  # or "adam", "muon"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4  # L2: adds weight_decay / 2 * sum(w**2) to the loss that is minimised
    label_smoothing: float = 0.0  # share of the target that all classes have in common
    distill_weight: float = 0.5  # share of the teacher in what is minimised, where there is a teacher
    distill_temperature: float = 2.0
    compute_dtype: str = "float32"  # or "bfloat16": of the chip's convolutions in training steps
    ema: float = 0.0  # decay of the average of the weights; 0: none
    seed: int = 0
    keep: int = 5  # last checkpoints of the stage
    steps_per_epoch: int | None = None
    log_dir: str | None = None


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The rate at each step: a linear warm-up, then the part `span` of half a cosine, or a constant.

    At step s, counted from `first`: `rate * min((s + 1) / warmup, 1) * (1 + cos(pi p)) / 2`, where p goes from span[0]
    at the end of the warm-up to span[1] after `steps`; it stays there on both sides. (0, 1) is all of it: from `rate`
    to 0 (Loshchilov and Hutter 2017, without restarts; warm-up: Goyal et al. 2017). Stages that share one cosine take
    (0, 0.5), (0.5, 0.9), ... A constant rate has the warm-up alone.
    """

    def __init__(
        self,
        rate: float,
        steps: int,
        *,
        cosine: bool = True,
        warmup: int = 0,
        span: tuple[float, float] = (0.0, 1.0),
        first: int = 0,
    ) -> None:
        self.rate, self.steps, self.cosine, self.warmup = rate, steps, cosine, warmup
        self.span, self.first = span, first

    def __call__(self, step: Any) -> Any:
        done = tf.cast(step, tf.float32) - self.first
        rate = tf.constant(self.rate, tf.float32)
        if self.warmup:
            rate *= tf.clip_by_value((done + 1) / self.warmup, 0.0, 1.0)
        if not self.cosine:
            return rate
        share = tf.clip_by_value((done - self.warmup) / max(self.steps - self.warmup, 1), 0.0, 1.0)
        begin, end = self.span
        return rate * 0.5 * (1 + tf.cos(math.pi * (begin + (end - begin) * share)))

    def get_config(self) -> dict[str, Any]:
        known = ("rate", "steps", "cosine", "warmup", "span", "first")
        return {name: getattr(self, name) for name in known}


# Newton-Schulz iteration of Jordan et al. 2024 (Muon): singular values between 0 and 1 go to about 1 in five rounds.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """Return `matrix` [rows, columns] with its singular values made about equal (0.7 to 1.2), the vectors kept."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if tall else matrix
    x /= tf.norm(x) + 1e-7
    for _ in range(5):
        square = x @ tf.transpose(x)
        x = a * x + (b * square + c * square @ square) @ x
    return tf.transpose(x) if tall else x


class Muon(keras.optimizers.SGD):
    """SGD whose momentum is made orthogonal for filters [height, width, in, out], as a matrix with a column per output.

    `v <- m v + g`, `d = orthogonal(v)` (with Nesterov of `g + m v`), `w <- (w - r |w| d / |d|) / sqrt(1 + r**2)`: the
    rate is the share of the filters' norm that one step changes (You et al. 2017), and a step across leaves the norm as
    it is. Other weights are those of SGD.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if len(variable.shape) != 4:
            super().update_step(gradient, variable, learning_rate)
            return
        slot = self.momentums[self._get_variable_index(variable)]
        filters, rate = keras.ops.convert_to_tensor(variable), tf.cast(learning_rate, tf.float32)
        velocity = self.momentum * keras.ops.convert_to_tensor(slot) + gradient
        moved = gradient + self.momentum * velocity if self.nesterov else velocity
        direction = tf.reshape(orthogonal(tf.reshape(moved, [-1, moved.shape[-1]])), moved.shape)
        step = rate * tf.norm(filters) / (tf.norm(direction) + 1e-7) * direction
        self.assign(slot, velocity)
        self.assign(variable, (filters - step) * tf.math.rsqrt(1 + rate**2))


def make_optimizer(settings: Settings, steps: int, done: int = 0) -> keras.optimizers.Optimizer:
    """Return the optimizer; `steps` is the length of the schedule, of which `done` were taken by earlier runs."""
    rate: Any = settings.learning_rate
    cosine = settings.schedule == "cosine"
    if cosine or settings.warmup_steps:
        rate = Schedule(
            rate, steps, cosine=cosine, warmup=settings.warmup_steps, span=settings.schedule_span, first=-done
        )
    if settings.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    kind = Muon if settings.optimizer == "muon" else keras.optimizers.SGD
    return kind(rate, momentum=settings.momentum, nesterov=settings.nesterov)
