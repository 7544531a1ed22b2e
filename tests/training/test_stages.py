"""Which flags fit which checkpoint: every pair of stages."""

from __future__ import annotations

import pytest

from gti import stage
from gti.errors import CheckpointError, UsageError
from gti.stage import Stage

FLOAT, QW, QA, FUSED = Stage


def refused(check, *arguments) -> str:
    try:
        check(*arguments)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("found", Stage)
@pytest.mark.parametrize("wanted", Stage)
def test_training_goes_on_or_one_stage_further(found, wanted):
    # User guide 6: "these steps must be performed in order"; a stage may also be trained on.
    fits = {(FLOAT, FLOAT), (FLOAT, QW), (QW, QW), (QW, QA), (QA, QA), (QA, FUSED), (FUSED, FUSED)}
    assert (refused(stage.check_train, found, wanted, "a") == "") == ((found, wanted) in fits)
    assert (found in stage.trainable_from(wanted)) == ((found, wanted) in fits)


@pytest.mark.parametrize("found", Stage)
@pytest.mark.parametrize("wanted", Stage)
def test_evaluation_includes_the_checkpoints_own_quantization(found, wanted):
    fits = {(FLOAT, FLOAT), (FLOAT, QW), (FLOAT, QA), (QW, QW), (QW, QA), (QA, QA), (FUSED, FUSED)}
    assert (refused(stage.check_eval, found, wanted, "a") == "") == ((found, wanted) in fits)


def test_evaluation_with_more_quantization_is_noted():
    assert stage.check_eval(QW, QW, "a") == ""
    assert stage.check_eval(FLOAT, QA, "a") == "a is a float checkpoint: evaluated as quant_act without fine-tuning"
    assert "the flags are believed" in stage.check_eval(None, QA, "a")


@pytest.mark.parametrize(
    ("found", "quant_w", "fits"),
    [(FLOAT, False, True), (FLOAT, True, True), (QW, True, True), (QW, False, False), (QA, True, False)],
)
def test_calibration_needs_a_checkpoint_without_caps(found, quant_w, fits):
    assert (refused(stage.check_calibrate, found, quant_w, "a") == "") == fits


@pytest.mark.parametrize(
    ("found", "fuse", "message"),
    [
        (FLOAT, False, "activations"),
        (QW, False, "activations"),
        (QA, False, ""),
        (QA, True, "expected no --fuse, received --fuse"),
        (FUSED, True, ""),
        (FUSED, False, "expected --fuse, received no --fuse"),
    ],
)
def test_conversion_needs_quantized_activations(found, fuse, message):
    text = refused(stage.check_convert, found, fuse, "a")
    assert (message in text) if message else text == ""


def test_the_error_says_which_flags_fit():
    text = refused(stage.check_train, QA, FLOAT, "checkpoints/x")
    assert text.startswith("checkpoints/x: is a quant_act checkpoint; expected --quant_w --quant_act or ")
    assert "--quant_w --quant_act --fuse, received no quantization flag" in text


def test_a_checkpoint_of_the_old_kit_fits_any_flags():
    for wanted in Stage:
        assert refused(stage.check_train, None, wanted, "a") == ""


def test_a_teacher_is_float():
    for found in (None, *Stage):
        assert (refused(stage.check_teacher, found, "a") == "") == (found in (None, FLOAT))


def test_flags_without_those_below_are_refused():
    with pytest.raises(UsageError):
        stage.from_flags(False, True, False)
    with pytest.raises(UsageError):
        stage.from_flags(True, False, True)


def test_labels_and_suffixes():
    assert [s.label for s in Stage] == ["float", "quant_w", "quant_act", "fused"]
    assert [s.suffix for s in Stage] == ["", "-qw", "-qw-qa", "-qw-qa-fs"]
    assert [Stage.from_label(s.label) for s in Stage] == list(Stage)
    with pytest.raises(ValueError, match="stage"):
        Stage.from_label("half")
