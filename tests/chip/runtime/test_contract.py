"""Everything used like a model meets the contract, in its signatures and in what it answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sticks import dat_bytes, images, lively_weights
from test_chain import NETWORK, WEIGHTS, model_bytes

from gti.chip.driver import GtiModel
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import splitting
from gti.chip.runtime.chain import ChipChain
from gti.chip.runtime.contract import ChipModel, LayeredModel
from gti.chip.runtime.engine_model import EngineModel
from gti.chip.runtime.pool import GtiPool
from gti.errors import ImageError, UsageError

ALL = {
    GtiModel: lambda one, two: GtiModel(one, "virtual"),
    ChipChain: lambda one, two: ChipChain(two, "virtual"),
    GtiPool: lambda one, two: GtiPool(one, ["virtual", "virtual:eusb"]),
    EngineModel: lambda one, two: EngineModel(one),
}
LAYERED = (GtiModel, ChipChain, EngineModel)


def _is_property(owner: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(owner, name), property)


def members(contract: type) -> set[str]:
    """Return the names of methods and properties; of the special ones, those of a context manager."""
    names = {name for name in dir(contract) if not name.startswith("_") or name in ("__enter__", "__exit__")}
    return {name for name in names if callable(getattr(contract, name)) or _is_property(contract, name)}


CASES = [(ChipModel, kind) for kind in ALL] + [(LayeredModel, kind) for kind in LAYERED]


@pytest.mark.parametrize(("contract", "kind"), CASES)
def test_methods_take_what_the_contract_says(contract: type, kind: type):
    names = members(contract)
    assert names >= {"evaluate", "evaluate_many", "release", "device_description", "input_shape", "__exit__"}
    for name in names:
        if _is_property(contract, name):
            continue  # looked at on an open model below
        wanted, found = (
            list(inspect.signature(getattr(owner, name)).parameters.values()) for owner in (contract, kind)
        )
        common, more = found[: len(wanted)], found[len(wanted) :]
        assert [(p.name, p.kind) for p in common] == [(p.name, p.kind) for p in wanted], name
        for ours, theirs in zip(common, wanted, strict=True):  # what the contract leaves out may be left out
            assert theirs.default in (inspect.Parameter.empty, ours.default), f"{name}, {ours.name}"
        # The old kit's arguments of GtiModel.evaluate, for example.
        assert all(p.default is not inspect.Parameter.empty for p in more), name


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("contract")
    one, two = folder / "one.dat", folder / "two.model"
    one.write_bytes(dat_bytes(NETWORK, 3))
    two.write_bytes(model_bytes(splitting.cut(NETWORK, WEIGHTS, (1, 3))))
    return one, two


# A pool starts processes, which takes seconds.
KINDS = [pytest.param(kind, marks=pytest.mark.slow) if kind is GtiPool else kind for kind in ALL]


@pytest.mark.parametrize("kind", KINDS)
def test_all_answer_alike(kind: type, files: tuple[Path, Path]):
    pictures = images(NETWORK, 3)
    expected = Emulator(NETWORK, lively_weights(NETWORK, 3)).output(pictures).transpose(0, 2, 3, 1) * np.float32(0.5)
    make: Callable[[Path, Path], ChipModel] = ALL[kind]
    with make(*files) as model:
        assert isinstance(model.device_description, str)
        assert len(model.device_description) > 10
        assert model.input_shape == (56, 56, 3)
        np.testing.assert_array_equal(model.evaluate(pictures[0], 15.5)[0], expected[0])
        found = list(model.evaluate_many(iter(pictures), last_relu_cap=15.5))
        assert {(one.shape, one.dtype) for one in found} == {((1, *expected.shape[1:]), np.dtype(np.float32))}
        np.testing.assert_array_equal(np.concatenate(found), expected)
        with pytest.raises(ImageError):
            model.evaluate(pictures[0][:14])
    model.release()  # once more


@pytest.mark.parametrize("kind", LAYERED)
def test_layers_are_shown_alike(kind: type, files: tuple[Path, Path]):
    image = images(NETWORK, 1)[0]
    emulator = Emulator(NETWORK, lively_weights(NETWORK, 3))
    with ALL[kind](*files) as model:
        for mode in ("learn", "single", "sublast", "lastmajor", "fc"):
            for ours, theirs in zip(model.layer_outputs(image, mode), emulator.read_out(image, mode), strict=True):
                np.testing.assert_array_equal(ours, theirs)
        with pytest.raises(UsageError):
            model.layer_outputs(image, "everything")
