"""The four stages of a model (float -> quant_w -> quant_act -> fused) and which flags fit which checkpoint.

The order is the workflow of the user guide, section 6. Every script asks here, so that nobody trains or evaluates
the wrong weights unknowingly.
"""

from __future__ import annotations

from enum import IntEnum

from gti.errors import CheckpointError, UsageError

# Rules for the step of a 3-bit kernel (docs/numerics.md section 3).
MEAN, MSE, LEARNED = FILTER_STEPS = ("mean", "mse", "learned")


class Stage(IntEnum):
    """How much of the chip's arithmetic a model imitates; a later stage includes the earlier ones."""

    FLOAT = 0
    QUANT_W = 1  # filters and biases as the chip holds them
    QUANT_ACT = 2  # activations too, below calibrated caps
    FUSED = 3  # batch norm and caps folded into filters and biases

    @property
    def label(self) -> str:
        """Name in checkpoints and reports: float, quant_w, quant_act, fused."""
        return self.name.lower()

    @property
    def suffix(self) -> str:
        """Part of a checkpoint's file name: "", "-qw", "-qw-qa" or "-qw-qa-fs"."""
        return "".join(("-qw", "-qa", "-fs")[: int(self)])

    @property
    def flags(self) -> str:
        """The flags that name this stage, for messages."""
        return " ".join(("--quant_w", "--quant_act", "--fuse")[: int(self)]) or "no quantization flag"

    @classmethod
    def from_label(cls, label: str) -> Stage:
        """Return the stage of that name; ValueError where there is none."""
        try:
            return cls[label.upper()]
        except KeyError:
            raise ValueError(f"no stage is called {label!r}") from None


def from_flags(quant_w: bool, quant_act: bool, fuse: bool) -> Stage:
    """Return the stage that the flags name. Raises UsageError for a flag without the ones it builds on."""
    if quant_act and not quant_w:
        raise UsageError(
            "--quant_act",
            "quantized activations need quantized weights",
            expected="--quant_w --quant_act",
            received="--quant_act alone",
            fix="add --quant_w",
        )
    if fuse and not (quant_w and quant_act):
        raise UsageError(
            "--fuse",
            "fusion needs quantized weights and activations",
            expected="--quant_w --quant_act --fuse",
            received=" ".join((["--quant_w"] if quant_w else []) + ["--fuse"]),
            fix="add the missing flags",
        )
    return Stage(int(quant_w) + int(quant_act) + int(fuse))


def trainable_from(wanted: Stage) -> tuple[Stage, ...]:
    """Return the stages a checkpoint may have for training in stage `wanted`, the nearest first.

    A stage is entered from the one before it, or goes on from itself.
    """
    return (wanted,) if wanted is Stage.FLOAT else (wanted, Stage(wanted - 1))


def check_train(found: Stage | None, wanted: Stage, prefix: str) -> None:
    """Raise CheckpointError unless a checkpoint of stage `found` can be trained in stage `wanted`.

    `found` None is a checkpoint without metadata (the old TF 1 kit): the flags are believed.
    """
    if found is None or found in trainable_from(wanted):
        return
    fitting = [stage for stage in Stage if found in trainable_from(stage)]
    raise _mismatch(prefix, found, wanted, fitting, "train it")


def check_eval(found: Stage | None, wanted: Stage, prefix: str) -> str:
    """Check the flags for evaluating a checkpoint; return a note to print, or "".

    The flags must include the checkpoint's own stage; more quantization on top is a view of what would happen without
    fine-tuning. --fuse fits fused checkpoints and only those. Raises CheckpointError.
    """
    if found is None:
        return f"{prefix} carries no stage (a checkpoint of the old kit): the flags are believed"
    fitting = [Stage.FUSED] if found is Stage.FUSED else [s for s in Stage if found <= s < Stage.FUSED]
    if wanted not in fitting:
        raise _mismatch(prefix, found, wanted, fitting, "evaluate it")
    if wanted != found:
        return f"{prefix} is a {found.label} checkpoint: evaluated as {wanted.label} without fine-tuning"
    return ""


def check_calibrate(found: Stage | None, quant_w: bool, prefix: str) -> None:
    """Raise CheckpointError unless caps can be calibrated on a checkpoint of stage `found` with this --quant_w."""
    wanted = Stage.QUANT_W if quant_w else Stage.FLOAT
    if found is None or found <= wanted:
        return
    if found is Stage.QUANT_W:
        raise _mismatch(prefix, found, wanted, [Stage.QUANT_W], "calibrate it")
    raise CheckpointError(
        prefix,
        f"is a {found.label} checkpoint, whose activations are capped already",
        expected="a float or quant_w checkpoint",
        fix="calibrate on the checkpoint before --quant_act",
    )


def converted(fuse: bool) -> Stage:
    """Return the stage that is converted with this --fuse."""
    return Stage.FUSED if fuse else Stage.QUANT_ACT


def check_convert(found: Stage | None, fuse: bool, prefix: str) -> None:
    """Raise CheckpointError unless a checkpoint of stage `found` can be converted with this --fuse.

    A quant_act checkpoint is folded on its way to the chip; a fused one was folded before it was fine-tuned.
    """
    if found is None:
        return
    if found < Stage.QUANT_ACT:
        raise CheckpointError(
            prefix,
            "has no quantized activations yet, which the chip needs",
            expected="a quant_act or fused checkpoint",
            received=f"a {found.label} one",
            fix="train with --quant_w --quant_act after set_relu_caps.py",
        )
    if fuse != (found is Stage.FUSED):
        raise CheckpointError(
            prefix,
            f"is a {found.label} checkpoint",
            expected="--fuse" if found is Stage.FUSED else "no --fuse",
            received="--fuse" if fuse else "no --fuse",
            fix="add --fuse" if found is Stage.FUSED else "leave out --fuse",
        )


def check_infer(found: Stage | None, prefix: str) -> Stage:
    """Return the stage to restore a converted checkpoint of stage `found` in. Raises CheckpointError."""
    if found is None:
        return Stage.QUANT_ACT
    if found < Stage.QUANT_ACT:
        raise CheckpointError(
            prefix,
            "was never converted for the chip",
            expected="a checkpoint of stage quant_act or fused",
            received=found.label,
            fix="pass the checkpoint that convert_to_chip.py was given",
        )
    return found


def check_teacher(found: Stage | None, prefix: str) -> None:
    """Raise CheckpointError unless a checkpoint of stage `found` can teach: a float one."""
    if found not in (None, Stage.FLOAT):
        raise CheckpointError(
            prefix,
            f"is a {found.label} checkpoint",
            expected="a float checkpoint, whose answers nothing has rounded",
            fix="pass the float checkpoint that training began with",
        )


def check_ptq(found: Stage | None, prefix: str) -> None:
    """Raise CheckpointError unless a checkpoint of stage `found` can be quantized without training: a float one."""
    if found not in (None, Stage.FLOAT):
        raise CheckpointError(
            prefix,
            "is quantized already",
            expected="a float checkpoint",
            received=f"a {found.label} one",
            fix="pass the float checkpoint that it was made of, or convert this one",
        )


def _mismatch(prefix: str, found: Stage, wanted: Stage, fitting: list[Stage], doing: str) -> CheckpointError:
    return CheckpointError(
        prefix,
        f"is a {found.label} checkpoint",
        expected=" or ".join(stage.flags for stage in fitting),
        received=wanted.flags,
        fix=f"{doing} with the flags that fit, or pass another checkpoint",
    )
