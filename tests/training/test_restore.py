"""From a checkpoint and flags to a model: caps from the right place, fusion on the way, and what does not fit."""

from __future__ import annotations

import re
from argparse import Namespace
from dataclasses import replace

import converted_net
import keras
import numpy as np
import pytest
import small_nets
from PIL import Image

from gti import files, nets, quantize
from gti.data.folders import check_same_classes
from gti.errors import CheckpointError, DataError, FormatError, UsageError
from gti.model import base
from gti.stage import Stage
from gti.training import checkpoint, restore
from gti.training.metadata import Metadata

NETWORK = small_nets.small_network((14, 3, 16, 1, 3, False), (14, 16, 32, 1, 1, True))
CLASSES = 4
META = Metadata("digits", "2801", Stage.FLOAT, epoch=1, step=9, classes=CLASSES, image_size=14)
CAPS = small_nets.some_caps(NETWORK)


@pytest.fixture
def args(tmp_path):
    nets = tmp_path / "nets"
    nets.mkdir()
    small_nets.write_json(NETWORK, nets)
    return Namespace(
        net="digits",
        nets_dir=str(nets),
        settings_file=str(tmp_path / "caps.json"),
        image_size=None,
        classes=None,
        ten_bit_act=False,
    )


def saved(folder, stage, seed=0, classes=CLASSES, **options):
    """Save a random checkpoint of a stage; return its prefix and arrays."""
    nets = folder / f"nets_{stage.label}_{seed}_{classes}"
    nets.mkdir()
    if stage >= Stage.QUANT_ACT:
        options["caps"] = CAPS
    model = small_nets.build(
        NETWORK,
        nets,
        classes=classes,
        quant_w=stage >= Stage.QUANT_W,
        quant_act=stage >= Stage.QUANT_ACT,
        fuse=stage is Stage.FUSED,
        **options,
    )
    arrays = small_nets.randomise(model, seed, scale=0.3)
    prefix = folder / checkpoint.file_name("digits", stage, seed)
    checkpoint.save(prefix, arrays, replace(META, stage=stage, epoch=seed, classes=classes))
    return prefix, arrays


def opened(path, **options):
    return restore.open_checkpoint(path, net="digits", **options)


def built(args, stage, source, classes, **options):
    network = nets.load(args.net, nets_dir=args.nets_dir)
    places = {"settings_file": args.settings_file, "nets_dir": args.nets_dir}
    places["filter_step"] = getattr(args, "filter_step", None)
    return restore.build_model(args.net, network, stage, source, classes, **places, **options)


def origin(args, source):
    return restore.origin_of_caps(args.net, NETWORK, args.stage, source, args.settings_file)


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_comes_back_as_it_was(tmp_path, args, stage):
    prefix, arrays = saved(tmp_path, stage)
    source = opened(prefix)
    assert source.stage is stage
    model = built(args, stage, source, CLASSES)
    restored = small_nets.values(model)
    assert restored.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(restored[name], value)


def test_quant_act_takes_its_caps_from_the_settings_file_and_keeps_them(tmp_path, args):
    source = opened(saved(tmp_path, Stage.QUANT_W)[0])
    with pytest.raises(UsageError, match=r"set_relu_caps\.py --net digits"):
        built(args, Stage.QUANT_ACT, source, CLASSES)
    files.write_json(args.settings_file, {"relu_caps": {name: 2 * cap for name, cap in CAPS.items()}})
    model = built(args, Stage.QUANT_ACT, source, CLASSES)
    values = small_nets.values(model)
    assert {name: float(values[name]) for name in CAPS} == {name: 2 * cap for name, cap in CAPS.items()}
    # A checkpoint that was trained with caps has its own: the settings file may be of another run by now.
    later = opened(saved(tmp_path, Stage.QUANT_ACT)[0])
    values = small_nets.values(built(args, Stage.QUANT_ACT, later, CLASSES))
    assert {name: float(values[name]) for name in CAPS} == CAPS


@pytest.mark.parametrize(
    ("trained", "asked", "used"),
    [
        (None, None, "mean"),  # the old kit's checkpoints carry no metadata
        ("", None, "mean"),  # and earlier ones of this kit no rule
        ("mse", None, "mse"),
        ("mse", "mse", "mse"),
        ("mse", "mean", "mean"),
        ("", "mse", "mse"),
        ("float", None, "mean"),
        ("float", "mse", "mse"),
    ],
)
def test_filters_have_the_step_that_they_were_trained_with(tmp_path, args, trained, asked, used):
    prefix, arrays = saved(tmp_path, Stage.FLOAT if trained == "float" else Stage.FUSED)
    source = opened(prefix)
    metadata = source.metadata
    if trained != "float":
        metadata = None if trained is None else replace(metadata, filter_step=trained)
    source = replace(source, metadata=metadata)
    args.filter_step = asked
    warned = asked is not None and trained != "float" and asked != (trained or "mean")
    assert bool(restore.change_of_filter_step(asked, source)) is warned
    stage = Stage.QUANT_W if trained == "float" else Stage.FUSED
    model = built(args, stage, source, CLASSES)
    for layer in base.chip_layers(model):
        assert layer.filter_step == used
        filters, biases = (arrays[f"digits/{layer.name}/{part}"] for part in ("filters", "biases"))
        shift = quantize.layer_shift(filters, biases, layer.coef_bits)
        expected = quantize.quantize_filters(filters, shift, layer.coef_bits, used)
        np.testing.assert_array_equal(layer.effective_weights()[0].numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("stages", "file", "outcome"),
    [
        ((Stage.QUANT_W, Stage.QUANT_W), "other", ""),
        ((Stage.QUANT_W, Stage.QUANT_ACT), "other", "caps from FILE"),
        ((Stage.QUANT_ACT, Stage.QUANT_ACT), None, "caps from PREFIX"),
        ((Stage.QUANT_ACT, Stage.FUSED), "same", "caps from PREFIX"),
        ((Stage.QUANT_ACT, Stage.QUANT_ACT), "other", "its caps are not used: PREFIX has its own"),
        ((Stage.QUANT_ACT, Stage.QUANT_ACT), "absent", "no such file"),
        ((Stage.FUSED, Stage.FUSED), None, ""),
        ((Stage.FUSED, Stage.FUSED), "same", "those of PREFIX are folded into its weights"),
        ((Stage.FUSED, Stage.FUSED), "absent", "no such file"),
    ],
)
def test_the_origin_of_the_caps_is_told_and_a_settings_file_never_ignored(tmp_path, args, stages, file, outcome):
    found, args.stage = stages
    source = opened(saved(tmp_path, found)[0])
    if file is None:
        args.settings_file = None
    elif file != "absent":
        factor = 1 if file == "same" else 2
        files.write_json(args.settings_file, {"relu_caps": {name: factor * cap for name, cap in CAPS.items()}})
    outcome = outcome.replace("PREFIX", source.prefix).replace("FILE", str(args.settings_file))
    if outcome.startswith("caps") or not outcome:
        assert origin(args, source) == outcome
    else:
        with pytest.raises((UsageError, FormatError), match=re.escape(outcome)):
            origin(args, source)


def test_restoring_draws_no_random_numbers_and_shares_no_memory_with_the_source(tmp_path, args, monkeypatch):
    source = opened(saved(tmp_path, Stage.QUANT_W)[0])
    before = {name: array.copy() for name, array in source.arrays.items()}
    drawn = []
    initializer = keras.initializers.TruncatedNormal
    monkeypatch.setattr(initializer, "__call__", lambda *args, **options: drawn.append(1) or np.zeros(args[1]))
    model = built(args, Stage.QUANT_W, source, CLASSES)
    assert not drawn
    built(args, Stage.FLOAT, None, CLASSES)
    assert len(drawn) == len(NETWORK.convolutions) + 1  # fresh ones do
    for variable in model.trainable_variables:
        variable.assign_add(np.ones(variable.shape, np.float32))
    for name, array in before.items():
        np.testing.assert_array_equal(source.arrays[name], array)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_fusing_on_the_way_keeps_the_result(tmp_path, args, monkeypatch, batch_norm):
    from gti.model import digits

    monkeypatch.setattr(digits, "BATCH_NORM", batch_norm)
    source = opened(saved(tmp_path, Stage.QUANT_ACT)[0])
    images = small_nets.images(NETWORK, 6, seed=1)
    # Quantized weights differ once scales are folded in; without weight quantization the results are equal.
    before = built(args, Stage.QUANT_ACT, source, CLASSES)
    after = built(args, Stage.FUSED, source, CLASSES)
    for model in (before, after):
        for convolution in NETWORK.convolutions:
            model.get_layer(convolution.name).quantize_w = False
    assert not any("batch_normalization" in name for name in small_nets.values(after))
    first, second = before(images, training=False).numpy(), after(images, training=False).numpy()
    # Sums in another order may round a few activations to the next code.
    scale = np.abs(first).max()
    assert np.median(np.abs(first - second)) < 1e-5 * scale
    np.testing.assert_allclose(first, second, atol=0.05 * scale)


def test_a_checkpoint_of_the_old_kit_without_metadata_fits_any_stage(tmp_path, args):
    _, arrays = saved(tmp_path, Stage.QUANT_ACT)
    source = restore.Source("old", {**arrays, "global_step": np.int64(3)}, None)
    for stage in Stage:
        assert built(args, stage, source, CLASSES).net == "digits"


def test_a_folder_yields_the_preferred_stage_first(tmp_path):
    for stage in (Stage.QUANT_W, Stage.FLOAT):
        saved(tmp_path, stage)
    assert opened(tmp_path).stage is Stage.QUANT_W  # the later stage, whichever was written last
    assert opened(tmp_path, preferred=Stage.QUANT_W).stage is Stage.QUANT_W
    assert opened(tmp_path, preferred=Stage.FUSED).stage is Stage.QUANT_W
    with pytest.raises(CheckpointError, match="expected digits-2801, fused, received digits-2801-epoch-0"):
        opened(tmp_path, stages=(Stage.FUSED,))


def test_another_number_of_classes_is_listed_variable_by_variable(tmp_path, args):
    source = opened(saved(tmp_path, Stage.FLOAT, classes=7)[0])
    with pytest.raises(CheckpointError) as error:
        built(args, Stage.FLOAT, source, CLASSES)
    assert "digits/fc/weights has shape [1568, 7], the net's is [1568, 4]" in str(error.value)
    assert "digits/fc/biases has shape [7], the net's is [4]" in str(error.value)


MAJORS = ((14, 3, 16, 1, 3, False), (14, 16, 32, 1, 1, True))


@pytest.mark.parametrize(
    ("layers", "options", "was", "now"),
    [
        (MAJORS, {}, "", ""),
        (MAJORS, {"sampling_method": 1}, "SamplingMethod 0", "SamplingMethod 1"),
        (MAJORS, {"activation_bit_mode": 1}, "ActivationBitMode 0", "ActivationBitMode 1"),
        (
            ((14, 3, 16, 1, 1, False), MAJORS[1]),
            {},
            "major 1: coef_bits 3, pooling off, upsampling off",
            "major 1: coef_bits 1, pooling off, upsampling off",
        ),
        (
            (MAJORS[0], (14, 16, 32, 1, 1, False)),
            {},
            "major 2: coef_bits 1, pooling on, upsampling off",
            "major 2: coef_bits 1, pooling off, upsampling off",
        ),
        (MAJORS[:1], {}, "major 2: coef_bits 1, pooling on, upsampling off", "1 major layers"),
    ],
)
def test_another_network_under_the_same_name_is_noticed(layers, options, was, now):
    source = restore.Source("a", {}, replace(META, stage=Stage.QUANT_ACT, network=restore.traits(NETWORK)))
    network = small_nets.small_network(*layers, **options)
    change = restore.change_of_network(source, network)
    told = f"a: was trained for another dat.json of the net; expected {was}, received {now}. Fix: put the values back"
    assert change.startswith(told) if was else not change
    for silent in (None, restore.Source("a", {}, None), restore.Source("a", {}, META)):  # as of earlier versions
        assert restore.change_of_network(silent, network) == ""


def test_a_changed_network_is_refused_except_where_its_weights_are_trained(tmp_path, args):
    source = opened(saved(tmp_path, Stage.QUANT_W)[0])
    source = replace(source, metadata=replace(source.metadata, network=restore.traits(NETWORK)))
    built(args, Stage.QUANT_W, source, CLASSES)
    small_nets.write_json(replace(NETWORK, sampling_method=1), tmp_path / "nets")
    with pytest.raises(CheckpointError, match="--quant_w"):
        built(args, Stage.QUANT_W, source, CLASSES)
    built(args, Stage.QUANT_W, source, CLASSES, to_train=True)
    with pytest.raises(CheckpointError, match=r"another dat\.json"):
        built(args, Stage.QUANT_ACT, source, CLASSES, to_train=True)


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("convert_to_chip.py", ("--output_dir", "OUT")),
        ("addon/convert_full.py", ("--labels_file", "LABELS", "--output_dir", "OUT")),
        ("chip_infer.py", ("--val_data_dir", "DATA")),
        ("eval.py", ("--quant_w", "--quant_act", "--val_data_dir", "DATA")),
    ],
)
def test_scripts_refuse_another_network(tmp_path, script, flags):
    net = converted_net.make(tmp_path, Stage.QUANT_ACT)
    arrays, metadata = checkpoint.load(net.checkpoint)
    prefix = tmp_path / "digits-2801-qw-qa-epoch-2"
    converted_net.run_script("convert_to_chip.py", *net.flags)
    other = replace(converted_net.NETWORK, sampling_method=1)
    checkpoint.save(prefix, arrays, replace(metadata, network=restore.traits(other)))
    places = {"OUT": tmp_path, "LABELS": tmp_path / "data" / "labels.txt", "DATA": tmp_path / "data" / "val"}
    flags = [places.get(flag, flag) for flag in flags]
    common = (*converted_net.COMMON, "--nets_dir", tmp_path, "--checkpoint", prefix)
    with pytest.raises(CheckpointError, match="expected SamplingMethod 1, received SamplingMethod 0"):
        converted_net.run_script(script, *common, *flags)


def test_scales_and_sizes_are_no_change_of_the_network():
    layers = tuple(replace(layer, scaling=(5,), image_size=28) for layer in NETWORK.layers)
    assert restore.traits(replace(NETWORK, layers=layers)) == restore.traits(NETWORK)


def test_class_folders_that_are_numbered_otherwise_than_those_of_training_are_refused(tmp_path, args):
    for place in ("train/ant", "train/bee", "val/bee"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (14, 14)).save(tmp_path / place / "1.png")
    for folders in (("train", "val"), ("val",)):
        with pytest.raises(DataError, match=r"numbers its classes otherwise than .*received no ant"):
            check_same_classes(*(tmp_path / folder for folder in folders))


def test_classes_come_from_the_checkpoint_the_flag_or_the_label_file(tmp_path):
    source = restore.Source("a", {}, META)
    assert restore.number_of_classes(None, source) == CLASSES
    assert restore.number_of_classes(9, None) == 9
    with pytest.raises(CheckpointError, match="expected --classes 4, received --classes 9"):
        restore.number_of_classes(9, source)
    (tmp_path / "flowers" / "train").mkdir(parents=True)
    with pytest.raises(UsageError, match="--classes"):
        restore.number_of_classes(None, None, tmp_path / "flowers" / "train")
    (tmp_path / "flowers_labels.txt").write_text("1 rose\n2 tulip\n")
    assert restore.number_of_classes(None, None, tmp_path / "flowers" / "train") == 3
