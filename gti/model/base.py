"""Keras models of the nets: the chip part is built from the Network alone, the host part by `gti/model/<net>.py`.

A net is one JSON file, `nets/<chip>_<net>_dat.json`, and one module, here or as `<net>.py` beside that JSON, with

    BATCH_NORM: bool                      batch norm after each convolution while training
    host_layers(x, *, classes) -> logits  what the host computes from the chip's result [batch, height, width, channels]
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np

from gti import names, nets, quantize
from gti.caps import check_complete, settings_file
from gti.caps import load as load_caps
from gti.chip import spec
from gti.chip.network.types import Network
from gti.errors import GtiError, UsageError
from gti.layers import ChipConv2D, ChipPooling, HostDense
from gti.stage import LEARNED, MEAN

# Images in codes 0..31 are about 16 times larger than normalised ones. The first filters start smaller by the square
# root of that, which shares the excess evenly between the activations behind them and their own gradients.
FIRST_INPUT_SCALE = 4.0


def net_module(net: str, nets_dir: str | Path | None = None) -> ModuleType:
    """Return the module of a net: `gti.model.<net>`, or `<net>.py` in `nets_dir` (None: nets/ of the kit), which runs.

    Raises UsageError for an unknown name, and for a module that cannot be run or lacks a part of a net.
    """
    path = nets.users_module(net, nets_dir)
    home = path or nets.MODEL_DIR / f"{net}.py"
    with _own_words(home):
        module = importlib.import_module(f"gti.model.{net}") if path is None else _users_module(net, path)
    if not isinstance(getattr(module, "BATCH_NORM", None), bool) or not callable(getattr(module, "host_layers", None)):
        raise UsageError(
            str(home),
            "is not the module of a net",
            expected="BATCH_NORM = True or False, and host_layers(x, *, classes)",
            fix="see gti/model/digits.py for an example",
        )
    return module


def _users_module(net: str, path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"gti_users_net_{net}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.path.append(str(path.parent))  # modules beside it are found, and hide none
    try:
        found.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@contextmanager
def _own_words(path: Path) -> Iterator[None]:
    # A mistake in a net's module is the user's, wherever the module lies: one sentence with its line.
    try:
        yield
    except (Exception, SystemExit) as problem:
        lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == str(path)]
        line = problem.lineno if isinstance(problem, SyntaxError) else (lines or [None])[-1]
        where = f"{path}, line {line}" if line else str(path)
        if isinstance(problem, GtiError):
            raise UsageError(f"{where}: {problem}") from problem
        words = str(problem).strip().splitlines() or [""]
        raise UsageError(
            where, f"cannot be run ({type(problem).__name__}: {words[0]})", fix="mend the module"
        ) from problem


def _host_part(module: ModuleType, x: Any, net: str, classes: int) -> Any:
    """Return the logits of the module's host part, checked. Raises UsageError for a host part that cannot serve."""
    path = Path(module.__file__ or net)
    with _own_words(path):
        logits = module.host_layers(x, classes=classes)
        made = keras.Model(x, logits, name=f"{net}_host")
    name = f"{path}, host_layers"
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[1] != classes:
        fix = "end with HostDense(classes)" + (", after ChipFlatten or global pooling" if len(shape) != 2 else "")
        raise UsageError(
            name, "returns another shape than logits", expected=[None, classes], received=list(shape), fix=fix
        )
    for layer in made.layers:
        activation = getattr(getattr(layer, "activation", None), "__name__", getattr(layer, "activation", None))
        if isinstance(layer, keras.layers.Softmax) or activation == "softmax":
            raise UsageError(
                f"{name}, layer {layer.name}",
                "computes softmax, which training and the .MODEL add themselves",
                expected="logits",
                fix="leave softmax out",
            )
    weighted = [layer for layer in made.layers if layer.weights]
    others = [layer for layer in weighted if isinstance(layer, keras.layers.Dense)]
    others += [layer for layer in weighted[:1] if not isinstance(layer, HostDense) and layer not in others]
    if others:
        raise UsageError(
            f"{name}, layer {others[0].name}",
            "has weights that fusion and conversion do not know",
            expected="HostDense of gti.layers",
            received=type(others[0]).__name__,
            fix="write HostDense(units, activation) in its place",
        )
    return logits


def build(
    net: str,
    *,
    classes: int,
    network: Network | None = None,
    image_size: int | None = None,
    quant_w: bool = False,
    quant_act: bool = False,
    fuse: bool = False,
    ten_bit_act: bool = False,
    caps: Mapping[str, float] | None = None,
    train_caps: bool = False,
    train_steps: bool = False,
    clip_bias: bool = False,
    filter_step: str = MEAN,
    nets_dir: str | Path | None = None,
) -> keras.Model:
    """Return the Keras model of a net in one of its stages; `.network` is its Network, `.net` its name.

    Input: float32 [batch, height, width, channels], codes 0..31 in the chip's channel order. Output: logits
    [batch, classes]. `network` is the net's, where it has been read already; None reads its dat.json, for images of
    `image_size`. `caps` (variable name -> cap) are start values for `quant_act`; None reads the settings file of
    the net. A fused model has no batch norm, and its caps are constants. `filter_step`: rule of 3-bit filters.

    Raises UsageError, NetworkError, QuantizationError (missing caps).
    """
    module = net_module(net, nets_dir)
    if network is None:
        network = nets.load(net, image_size=image_size, nets_dir=nets_dir)
    if classes < 1:
        raise UsageError(f"net {net}", "needs classes", expected="1 or more", received=classes)
    if ten_bit_act:
        nets.check_ten_bit(net, network)
    nets.check_trainable(net, network)
    start_caps = _start_caps(net, network, caps) if quant_act and not fuse else {}
    inputs = keras.Input(shape=network.input_shape, name="image")
    x = inputs
    for convolution in network.convolutions:
        layer = network.layers[convolution.major - 1]
        x = ChipConv2D(
            convolution.output_channels,
            convolution.coef_bits,
            filter_step=filter_step,
            batch_norm=module.BATCH_NORM and not fuse,
            quantize_w=quant_w,
            quantize_act=quant_act,
            relu_cap=spec.FUSED_CAP[convolution.ten_bit] if fuse else start_caps.get(names.cap(net, convolution.name)),
            fixed_cap=fuse,
            train_caps=train_caps,
            train_steps=train_steps,
            clip_bias=clip_bias,
            max_code=spec.TOP_CODE[convolution.ten_bit],
            upsample=layer.upsample_mode if convolution.upsampled else None,
            input_scale=1.0 if convolution.index else FIRST_INPUT_SCALE,
            name=convolution.name,
        )(x)
        if convolution.pooled:
            x = ChipPooling(network.sampling_method, name=f"pool{convolution.major}")(x)
    logits = _host_part(module, x, net, classes)
    with _own_words(Path(module.__file__ or net)):  # a host layer may have the name of one on the chip
        model = keras.Model(inputs, logits, name=net)
    model.network = network
    model.net = net
    return model


def _start_caps(net: str, network: Network, caps: Mapping[str, float] | None) -> Mapping[str, float]:
    source = "the given caps"
    if caps is None:
        path = settings_file(net)
        source = str(path)
        caps = load_caps(path, net) if path.exists() else {}
    check_complete(caps, net, network, source)
    return caps


def chip_layers(model: keras.Model) -> list[ChipConv2D]:
    """Return the sublayers of a model in network order."""
    return [model.get_layer(convolution.name) for convolution in model.network.convolutions]


def chip_output(model: keras.Model) -> Any:
    """Return the symbolic result of the chip part, after the last pooling: [batch, height, width, channels]."""
    last = model.network.convolutions[-1]
    return model.get_layer(f"pool{last.major}" if last.pooled else last.name).output


def host_model(model: keras.Model) -> keras.Model:
    """Return the host part: result of the chip -> logits. Shares the variables of `model`."""
    return keras.Model(chip_output(model), model.output, name=f"{model.net}_host")


def named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the variables of a model by their names in checkpoints.

    For example `vgg16/conv1_1/filters`, `.../biases`, `.../relu_cap`, `.../batch_normalization/gamma`,
    `vgg16/fc6/weights`. Seeds of dropout are no part of it.
    """
    return {
        f"{model.net}/{variable.path}": variable
        for variable in model.variables
        if not re.search(r"seed_generator", variable.path)
    }


def with_steps(arrays: Mapping[str, np.ndarray], net: str, network: Network, filter_step: str) -> dict[str, np.ndarray]:
    """Return a checkpoint's variables for a model with the rule `filter_step`.

    Learned steps that it lacks are those that learning begins with; those of another rule are left out.
    """
    steps = {names.variable(net, c.name, names.FILTER_STEPS): c for c in network.convolutions}
    result = {name: array for name, array in arrays.items() if name not in steps}
    if filter_step == LEARNED:
        for name, convolution in steps.items():
            filters = names.variable(net, convolution.name, "filters")
            if convolution.coef_bits == 3 and filters in arrays:
                result[name] = arrays[name] if name in arrays else quantize.starting_steps(arrays[filters]).numpy()
    return result


def last_relu_cap_name(model: keras.Model) -> str:
    """Return the variable name of the cap whose codes leave the chip, for example `vgg16/conv5_3/relu_cap`."""
    return names.cap(model.net, model.network.convolutions[-1].name)
