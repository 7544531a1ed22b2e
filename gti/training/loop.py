"""The training loop of every stage: one tf.function step, the same on one device, many, and several machines.

An own loop because `model.fit` does not run under MultiWorkerMirroredStrategy with Keras 3 and costs about a tenth
more per step (docs/training.md). Each epoch trains, evaluates, and saves a checkpoint; nothing is written in between,
so a crash, Ctrl-C or a loss that is not a number leaves the last epoch's checkpoint.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gti import __version__
from gti.errors import TrainingError
from gti.layers import WeightsHeld
from gti.model.base import chip_layers, named_variables
from gti.progress import progress_bar
from gti.stage import Stage
from gti.training import checkpoint, checkpoint_folder, tensorboard
from gti.training.averaging import Average, agree
from gti.training.evaluation import Counter, Evaluation, NotFiniteError, batch_sums, float32_convolutions
from gti.training.losses import distillation, smoothed_cross_entropy
from gti.training.metadata import Metadata
from gti.training.optimization import Schedule, Settings, make_optimizer
from gti.training.strategies import is_chief

# Steps between looks at the loss: a GPU runs ahead of Python meanwhile.
GPU_CHECK_STEPS = 20
# Variables under weight decay, by the last part of their name: filters of the chip and weights of fc layers.
DECAYED = ("filters", "weights")
# Weights that the optimizer goes on from, in its state, where the checkpoint's own are their average.
TRAINED = "trained/"


@dataclass(frozen=True)
class Result:
    """What a run ended with."""

    prefix: str  # last checkpoint
    best: str  # checkpoint of the best accuracy
    metadata: Metadata
    history: tuple[tuple[float, Evaluation], ...]  # per epoch: mean training loss, validation


class Trainer:
    """One model with its optimizer under a strategy: steps, evaluation, saving, restoring.

    `steps` is the length of the rate's schedule, of which earlier runs took `done`. A `teacher` of the same images and
    classes takes its share in what is minimised; it is used as in inference, and stays as it is.
    """

    def __init__(
        self,
        model: keras.Model,
        settings: Settings,
        *,
        strategy: tf.distribute.Strategy | None = None,
        steps: int = 0,
        done: int = 0,
        teacher: keras.Model | None = None,
    ) -> None:
        self.model, self.teacher = model, teacher
        self.settings = settings
        self._done = done
        self.strategy = strategy or tf.distribute.get_strategy()
        self.variables = named_variables(model)
        with self.strategy.scope():
            self.optimizer = make_optimizer(settings, steps, done)
            self.optimizer.build(model.trainable_variables)
        self.average = Average(self.variables, settings.ema, self.strategy) if settings.ema else None
        for layer in chip_layers(model):
            layer.training_dtype = tf.as_dtype(settings.compute_dtype)
        self._step = tf.function(self._train_step, reduce_retracing=True, autograph=False)
        self._held = WeightsHeld(chip_layers(model))
        self._counter = Counter(lambda images: model(images, training=False), self.strategy)

    def _train_step(self, iterator: Any) -> tf.Tensor:
        sums = self.strategy.run(self._replica_step, args=next(iterator))
        if self.average:
            self.average.update(self.optimizer.iterations.value)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

    def _replica_step(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        replicas = self.strategy.num_replicas_in_sync
        trained = self.model.trainable_variables
        count = tf.cast(tf.shape(labels)[0], tf.float32)
        if replicas > 1:
            count = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, count)
        taught = self.teacher(images, training=False) if self.teacher else None
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            losses = self._minimised(labels, logits, taught)
            loss = tf.reduce_sum(losses) / count  # the optimizer adds the gradients of all replicas
        # Biases before a batch norm have no part in the loss.
        gradients = tape.gradient(loss, [v.value for v in trained], unconnected_gradients="zero")
        decay = self.settings.weight_decay / replicas
        if decay:
            gradients = [
                g + decay * v.value if v.path.rsplit("/", 1)[-1] in DECAYED else g
                for g, v in zip(gradients, trained, strict=True)
            ]
        with tf.control_dependencies([labels]):  # a step that finds no batch is not counted
            self.optimizer.apply_gradients(zip(gradients, trained, strict=True))
        return batch_sums(labels, logits)

    def _minimised(self, labels: tf.Tensor, logits: tf.Tensor, taught: tf.Tensor | None) -> tf.Tensor:
        settings = self.settings
        losses = smoothed_cross_entropy(labels, logits, settings.label_smoothing)
        if taught is None:
            return losses
        apart = distillation(logits, taught, settings.distill_temperature)
        return (1 - settings.distill_weight) * losses + settings.distill_weight * apart

    def train_epoch(self, dataset: tf.data.Dataset, seed: int, *, progress: str = "") -> tuple[float, float, int]:
        """Train on every batch of `dataset`; return (mean loss, accuracy, steps).

        `seed` starts the random numbers of dropout. Raises TrainingError as soon as the loss is not a number.
        """
        self._seed_dropout(seed)
        batches = int(dataset.cardinality())
        replicas = self.strategy.num_replicas_in_sync
        if replicas > 1:  # no replica may be without images: batch norm has no mean of nothing
            dataset = dataset.filter(lambda images, labels: tf.shape(labels)[0] >= replicas)
        if self.settings.steps_per_epoch:
            dataset = dataset.take(self.settings.steps_per_epoch)
            batches = min(batches, self.settings.steps_per_epoch) if batches > 0 else self.settings.steps_per_epoch
        iterator = iter(self.strategy.experimental_distribute_dataset(dataset))
        every = GPU_CHECK_STEPS if tf.config.list_logical_devices("GPU") else 1
        total, pending, steps = np.zeros(4), None, 0
        with progress_bar(batches, progress) as bar:
            while True:
                try:
                    sums = self._step(iterator)
                except (tf.errors.OutOfRangeError, StopIteration):
                    break
                pending = sums if pending is None else pending + sums
                steps += 1
                if steps % every == 0:
                    total, pending = self._checked(total + pending.numpy()), None
                    bar.set_postfix_str(f"loss {total[0] / total[3]:.4f} accuracy {total[1] / total[3]:.4f}", False)
                bar.update()
            if pending is not None:
                total = self._checked(total + pending.numpy())
        if not steps:
            raise TrainingError(
                "the training data",
                "gives no batch",
                expected=f"at least one batch of {replicas} images or more",
                fix="check the data folder, or use fewer replicas",
            )
        self._agree_on_statistics()
        return total[0] / total[3], total[1] / total[3], steps

    def _agree_on_statistics(self) -> None:
        names = [name for name in self.variables if "/batch_normalization/moving_" in name]
        statistics = [self.variables[name].value for name in names]
        agree(statistics + ([self.average.of(name) for name in names] if self.average else []), self.strategy)

    @staticmethod
    def _checked(total: np.ndarray) -> np.ndarray:
        if not np.isfinite(total[0]):
            raise NotFiniteError("training", "the loss is not a number", fix="lower --learning_rate")
        return total

    def evaluate(self, dataset: tf.data.Dataset, *, progress: str = "") -> Evaluation:
        """Return the figures of the whole data set `dataset`, with the average of the weights where there is one."""
        with float32_convolutions(), self.strategy.scope(), self._averaged(), self._held:
            return self._counter.run(dataset, progress)

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.in_use() if self.average else nullcontext()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the model's variables by name, their averages where there are any."""
        return self.average.arrays() if self.average else self._trained_arrays()

    def _trained_arrays(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(variable) for name, variable in self.variables.items()}

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """Return what training goes on from, by name, beside `arrays`: the optimizer's variables, and where those are
        averages, the weights themselves. The learning rate is a setting, not state."""
        trained = self._trained_arrays() if self.average else {}
        own = {v.name: np.asarray(v) for v in self.optimizer.variables if v.name != "learning_rate"}
        return own | {f"{TRAINED}{name}": value for name, value in trained.items()}

    def restore_optimizer(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Take over the `optimizer_arrays` of a checkpoint, whose `arrays` the model has already.

        Return False, changing nothing, if they do not fit: of another optimizer, or of averages that are not kept now.
        An average that is new begins with the weights as they are.
        """
        own = {v.name: v for v in self.optimizer.variables if v.name != "learning_rate"}
        if self.average and any(name.startswith(TRAINED) for name in arrays):
            own |= {f"{TRAINED}{name}": variable for name, variable in self.variables.items()}
        if own.keys() != arrays.keys() or any(tuple(own[n].shape) != arrays[n].shape for n in own):
            return False
        if self.average:
            self.average.start_from(self._trained_arrays())
        for name, variable in own.items():
            variable.assign(arrays[name])
        schedule = getattr(self.optimizer, "_learning_rate", None)
        if isinstance(schedule, Schedule):  # counts from here
            schedule.first = int(np.asarray(self.optimizer.iterations)) - self._done
        return True

    def _seed_dropout(self, seed: int) -> None:
        # Set by the epoch, so that a resumed run draws what an uninterrupted one would.
        generators = [v for v in self.model.variables if "seed_generator" in v.path]
        for number, variable in enumerate(generators):
            variable.assign(np.array([seed, number], np.uint32))


def epoch_seed(seed: int, epoch: int, stage: Stage = Stage.FLOAT) -> int:
    """Return the seed of an epoch's data order and dropout: a function of all three, so that resuming repeats it.

    Epochs count anew in every stage. With `steps_per_epoch` they would train on the same part of the data each time.
    """
    return zlib.crc32(f"{seed}/{epoch}{stage.suffix}".encode()) & 0x7FFFFFFF


def continued(metadata: Metadata, settings: Settings) -> Metadata:
    """Return where a run begins that goes on from a checkpoint of its own stage."""
    return replace(metadata, optimizer=settings.optimizer, seed=settings.seed, kit_version=__version__)


def fit(
    trainer: Trainer,
    train_data: Callable[[int], tf.data.Dataset],
    val_data: tf.data.Dataset,
    folder: str | os.PathLike[str],
    start: Metadata,
    *,
    report: Callable[[str], None] = lambda line: None,
    record: Callable[[dict[str, Any]], None] = lambda figures: None,
    progress: bool = False,
) -> Result:
    """Train for `settings.num_epochs` epochs from `start`, saving after each.

    `train_data(seed)` returns the batches of one epoch. `start` describes where the run begins: epoch 0 at the begin of
    a stage (a stage that grew out of another checkpoint is evaluated and saved as epoch 0 first), or the epoch that is
    resumed. `record` takes the figures of each epoch by name. Only the chief worker writes. Raises TrainingError for a
    loss that is not a number, CheckpointError when saving fails; earlier checkpoints stay.
    """
    settings = trainer.settings
    chief = is_chief(trainer.strategy)
    saver = _Saver(trainer, Path(folder), start, chief, report)
    metadata = saver.clear(start)
    history: list[tuple[float, Evaluation]] = []
    if start.epoch == 0 and (start.parent or settings.num_epochs == 0):
        validation = trainer.evaluate(val_data, progress="evaluate" if progress and chief else "")
        report(f"epoch 0 ({start.stage.label}, before training): {validation}")
        metadata = saver.save(metadata, validation)
        record(_figures(start.stage, 0, validation))
    last = start.epoch + settings.num_epochs
    for epoch in range(start.epoch + 1, last + 1):
        seed = epoch_seed(settings.seed, epoch, start.stage)
        tf.random.set_seed(seed)  # the global seed takes part in the order of the data
        title = f"epoch {epoch}/{last}" if progress and chief else ""
        try:
            loss, accuracy, steps = trainer.train_epoch(train_data(seed), seed, progress=title)
            validation = trainer.evaluate(val_data, progress=title and "evaluate")
        except NotFiniteError:
            raise _diverged(start.stage.label, epoch, saver.prefix, settings) from None
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError) as problem:
            if trainer.strategy.cluster_resolver is None:
                raise
            raise _lost_worker(epoch, problem.message, folder) from None
        metadata = saver.save(replace(metadata, epoch=epoch, step=metadata.step + steps), validation)
        record(_figures(start.stage, epoch, validation) | {"train_loss": loss, "train_accuracy": accuracy})
        history.append((loss, validation))
        report(f"epoch {epoch}/{last}: training loss {loss:.4f}, accuracy {accuracy:.4f}; validation {validation}")
        if chief and settings.log_dir:
            arrays = trainer.arrays()
            tensorboard.write(
                settings.log_dir,
                epoch,
                {
                    "train/loss": loss,
                    "train/accuracy": accuracy,
                    "validation/loss": validation.loss,
                    "validation/accuracy": validation.accuracy,
                    "learning_rate": float(trainer.optimizer.learning_rate),
                },
                {name: array for name, array in arrays.items() if name.endswith(("filters", "biases", "weights"))},
            )
    return Result(saver.prefix, saver.best, metadata, tuple(history))


def _figures(stage: Stage, epoch: int, validation: Evaluation) -> dict[str, Any]:
    figures = {"loss": float(validation.loss), "accuracy": float(validation.accuracy)}
    return {"stage": stage.label, "epoch": epoch} | figures


def is_better(figures: Evaluation, metadata: Metadata) -> bool:
    """Return whether `figures` are better than the best so far in `metadata`: of equal accuracies the lower loss."""
    if metadata.best_accuracy is None or figures.accuracy != metadata.best_accuracy:
        return metadata.best_accuracy is None or figures.accuracy > metadata.best_accuracy
    return metadata.best_loss is not None and figures.loss < metadata.best_loss


class _Saver:
    """Writes the checkpoints of one run."""

    def __init__(
        self, trainer: Trainer, folder: Path, start: Metadata, chief: bool, report: Callable[[str], None]
    ) -> None:
        self._trainer, self._folder, self._chief, self._report = trainer, folder, chief, report
        self.prefix = self.best = ""

    def clear(self, start: Metadata) -> Metadata:
        """Make room for the names of this run; return `start` with the accuracy that its best/ has to show."""
        if not self._chief:
            return start
        checkpoint_folder.sweep(self._folder, start.net)
        first = start.epoch + 1 if start.epoch else 0
        moved = checkpoint_folder.set_aside(self._folder, start.net, start.stage, first)
        if moved:
            place = self._folder / checkpoint_folder.EARLIER
            them = f"{len(moved)} checkpoint{'s' if len(moved) > 1 else ''}"
            self._report(f"moved {them} of an earlier run to {place}: {', '.join(moved)}")
        # The best one that `start` knows of may be elsewhere by now.
        best = checkpoint_folder.best_accuracy(self._folder, start.net, start.stage)
        loss = checkpoint_folder.best_loss(self._folder, start.net, start.stage)
        return replace(start, best_accuracy=best, best_loss=loss)

    def save(self, metadata: Metadata, validation: Evaluation) -> Metadata:
        """Save the trainer's state as `metadata` with these figures; return the metadata that was written."""
        better = is_better(validation, metadata)
        metadata = replace(
            metadata,
            accuracy=validation.accuracy,
            best_accuracy=validation.accuracy if better else metadata.best_accuracy,
            loss=validation.loss,
            best_loss=validation.loss if better else metadata.best_loss,
        )
        # Every worker takes part in reading variables that are spread over them.
        arrays, state = self._trainer.arrays(), self._trainer.optimizer_arrays()
        name = checkpoint.file_name(metadata.net, metadata.stage, metadata.epoch)
        self.prefix = str(self._folder / name)
        if better:
            self.best = str(self._folder / checkpoint_folder.BEST / name)
        if self._chief:
            checkpoint.save(self.prefix, arrays, metadata, state)
            checkpoint_folder.publish(self.prefix, self._trainer.settings.keep)
            if better:
                checkpoint_folder.publish_best(self.prefix)
        return metadata


def _lost_worker(epoch: int, reason: str, folder: str | os.PathLike[str]) -> TrainingError:
    # The reason comes with the traceback of the graph; this line of it tells which worker it was.
    lines = [line.strip() for line in reason.splitlines()]
    told = next((line for line in lines if line.startswith("/job:worker")), lines[0] if lines else "")
    return TrainingError(
        f"epoch {epoch}",
        f"another worker is gone ({told})",
        expected="all workers of TF_CONFIG",
        fix=f"start all of them again with --resume_from {folder}; see the messages of the one that ended first",
    )


def _diverged(stage: str, epoch: int, prefix: str, settings: Settings) -> TrainingError:
    tries = [f"a lower --learning_rate than {settings.learning_rate:g}"]
    if stage in ("quant_act", "fused"):
        tries.append("caps calibrated again on the quant_w checkpoint")
    if stage == "fused":
        tries.append("a net with batch norm, so that caps stay near each other")
    return TrainingError(
        f"stage {stage}, epoch {epoch}",
        "the loss is not a number",
        expected="a finite loss",
        fix=f"try {', or '.join(tries)}; {f'the last good checkpoint is {prefix}' if prefix else 'none was saved'}",
    )
