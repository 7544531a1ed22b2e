"""The known answer of a .MODEL: the image, the digests, and what a damaged file or a wrong stick is told."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sticks import lively_weights, open_model, small_network

from gti.chip.driver import GtiModel
from gti.chip.emulator import arithmetic
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat, model_file
from gti.chip.network import file_size
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.chip.runtime import known_answer
from gti.chip.runtime.known_answer import KEY, KnownAnswer
from gti.errors import ModelFileError, UsageError
from scripts import model_tool

NETWORK = small_network()
WEIGHTS = lively_weights(NETWORK, 1)
LENGTH = 92 + 192 * file_size.row_count(NETWORK)
DAT = dat.encode(NETWORK, WEIGHTS, length=LENGTH)
ANSWER = known_answer.make(NETWORK, WEIGHTS, DAT, stage="fused", parent="0123456789abcdef")
WHO = "emulator (numpy)"


def container(data: bytes = DAT, entry: Any = None, **layer: Any) -> bytes:
    chip = {"operation": "GTICNN", "data file": "x.dat", KEY: entry or ANSWER.to_entry(), **layer}
    return model_file.compose(json.dumps({"name": "small", "layer": [chip]}).encode(), {"x.dat": data})


def check(data: bytes, answer: KnownAnswer = ANSWER) -> list[str]:
    return known_answer.check_codes(answer, data, "x.model", "numpy")[0]


def test_image_is_the_documented_stream() -> None:
    # docs/compare.md: block n is SHA-256(seed, n as 8 bytes, most significant first); bytes in the order [H,W,C].
    image = known_answer.known_image("known answer 1", (5, 5, 3))
    blocks = [hashlib.sha256(b"known answer 1" + bytes([0] * 7 + [n])).digest() for n in range(3)]
    assert image.tobytes() == b"".join(blocks)[:75]
    assert (image.shape, image.dtype) == ((5, 5, 3), np.uint8)


def test_image_stays_the_same_for_all_time() -> None:
    # Files in the field hold digests of it: this number must never change.
    image = known_answer.known_image(known_answer.SEED, (28, 28, 3))
    assert hashlib.sha256(image.tobytes()).hexdigest() == (
        "b404805b07c87a41c07fce7e5af53064de4975d93d9d83aa7bb72132e6a0b279"
    )


def test_digests_are_those_of_the_codes() -> None:
    image = known_answer.known_image(ANSWER.seed, NETWORK.input_shape)
    maps = Emulator(NETWORK, WEIGHTS, engine="numpy").read_out(image, "learn")
    assert ANSWER.sublayers == tuple(hashlib.sha256(codes.tobytes()).hexdigest() for codes in maps)
    assert len({*ANSWER.sublayers}) == 3
    output = arithmetic.pool(maps[-1].transpose(1, 2, 0)[None], 0)[0].transpose(2, 0, 1)
    assert ANSWER.output == hashlib.sha256(output.tobytes()).hexdigest()
    assert ANSWER.dat == hashlib.sha256(DAT).hexdigest()


def test_ten_bit_codes_are_two_bytes_low_byte_first() -> None:
    codes = np.array([[[258, 3]]], np.uint16)
    assert known_answer.digest_of_codes(codes) == hashlib.sha256(bytes([2, 1, 3, 0])).hexdigest()


def test_entry_goes_through_a_container() -> None:
    [(name, answer, data)] = known_answer.read(model_file.parse(container()), "x.model")
    assert (name, answer, data) == ("x.model", ANSWER, DAT)
    assert answer.origin == "stage fused, checkpoint 0123456789abcdef, kit 0.1.0"
    assert check(data) == []


def one_layer(**changes: Any) -> Network:
    options = {"coef_bits": 3, "scaling": (6,), "pooling": True, **changes}
    return Network((MajorLayer(28, 3, 16, 1, **options), MajorLayer(14, 16, 32, 1, 1, (5,), pooling=True)))


@pytest.mark.parametrize(
    "network",
    [
        Network((MajorLayer(14, 3, 16, 2, 3, (6, 6)), MajorLayer(14, 16, 32, 1, 1, (5,))), activation_bit_mode=1),
        Network(
            (
                MajorLayer(14, 3, 16, 1, 3, (6,)),
                MajorLayer(14, 16, 16, 1, 1, (5,), upsample_enable=True, upsample_mode="zero", pooling=True),
            )
        ),
        replace(one_layer(), sampling_method=1),
    ],
    ids=["ten bits", "zero fill", "top left"],
)
def test_what_a_dat_does_not_hold(network: Network) -> None:
    # Neither the fill nor ten bits stand in the file for sure: the known answer brings them along.
    weights = lively_weights(network, 4)
    data = dat.encode(network, weights)
    answer = known_answer.make(network, weights, data)
    assert answer.output
    assert check(data, answer) == []


def test_network_of_unknown_arithmetic_has_the_digest_of_its_file() -> None:
    layer = MajorLayer(14, 3, 16, 3, 3, (6, 6, 6), pooling=True, shortcuts=(2,))
    network = Network((layer,))
    answer = known_answer.make(network, lively_weights(network, 1), DAT)
    assert (answer.sublayers, answer.output) == ((), "")
    [part] = known_answer.read(model_file.parse(container(entry=answer.to_entry())), "x.model")
    assert part.answer == answer
    assert check(DAT, answer) == []
    assert "converted" in check(DAT[:-1] + b"\1", answer)[0]


@settings(max_examples=settings.default.max_examples * 3 // 5)
@given(st.data())
def test_any_flipped_bit_of_the_rows_is_found(data: st.DataObject) -> None:
    place = data.draw(st.integers(92, LENGTH - 1))
    bit = data.draw(st.integers(0, 7))
    broken = bytearray(DAT)
    broken[place] ^= 1 << bit
    problems = check(bytes(broken), replace(ANSWER, more=None))
    assert any("converted" in problem for problem in problems)
    network = dat.decode(bytes(broken))
    changed = [
        conv.path
        for conv, ours, theirs in zip(NETWORK.convolutions, network.weights, WEIGHTS, strict=True)
        if (ours.filters != theirs.filters).any() or (ours.biases != theirs.biases).any()
    ]
    # One bit of a row belongs to one sublayer; if it changes codes at all, that sublayer's are the first.
    assert problems[0].split(": ")[0] in ("x.model", *changed)
    assert len(changed) <= 1


def test_first_wrong_sublayer_is_named() -> None:
    weights = list(WEIGHTS)
    filters = weights[1].filters.copy()
    filters[3] = -filters[3]
    weights[1] = ConvolutionWeights(filters, weights[1].biases, weights[1].shift)
    problems = check(dat.encode(NETWORK, weights, length=LENGTH))
    assert problems[0].startswith(
        "major 1 / sub 2 (conv1_2): is the first sublayer whose codes of the known image are wrong; expected SHA-256 "
    )
    assert problems[0].endswith("2 of 3 sublayers are wrong.")


def test_bytes_without_effect_are_told_by_the_digest() -> None:
    longer = dat.encode(NETWORK, WEIGHTS, length=LENGTH + 10, tail=b"\1")
    problems = check(longer)
    assert problems[0] == "x.model: every code of the known image is right, but:"
    assert "converted" in problems[1]


def test_header_that_names_no_network() -> None:
    broken = b"\1\0\0\0" + bytes(88) + DAT[92:]
    problems = check(broken)
    assert "converted" in problems[0]
    assert ".DAT" in problems[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dat": "12"}, '"dat" is wrong; expected 64 hex digits'),
        ({"sublayers": "x"}, '"sublayers" is wrong'),
        ({"sublayers": ["g" * 64]}, '"sublayers" is wrong; expected 64 hex digits'),
        ({"sublayers": ["0" * 64] * 1000}, '"sublayers" is wrong'),
        ({"seed": 7}, '"seed" is wrong'),
        ({"seed": "a\x1b[31m"}, '"seed" is wrong'),
        ({"stage": "x" * 1000}, '"stage" is wrong'),
        ({"activation bit mode": True}, '"activation bit mode" is wrong; expected 0 or 1'),
        ({"upsample modes": ["mirror"]}, '"upsample modes" is wrong'),
        ({"more": 7}, '"more" is wrong'),
        ({"more": {"seeds": ["x"], "sublayers": [], "output": "0" * 64}}, '"more" is wrong'),
        ({"parent checkpoint": None}, '"parent checkpoint" is wrong'),
    ],
)
def test_entries_of_another_form(changes: dict[str, Any], words: str) -> None:
    model = model_file.parse(container(entry={**ANSWER.to_entry(), **changes}))
    with pytest.raises(ModelFileError) as caught:
        known_answer.read(model, "x.model")
    assert words in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_files_without_one() -> None:
    empty = model_file.compose(b'{"layer": [{"operation": "SOFTMAX"}]}', {})
    with pytest.raises(ModelFileError, match="network"):
        known_answer.read(model_file.parse(empty), "x.model")
    other = model_file.compose(b'{"layer": [{"operation": "GTICNN", "data file": "x"}]}', {"x": DAT})
    with pytest.raises(ModelFileError, match='carries no "known answer"'):
        known_answer.read(model_file.parse(other), "x.model")


class OtherStick:
    """A stick in software whose maps can be changed on their way."""

    device_description = "other stick"

    def __init__(self, stick: GtiModel, spoil: dict[str, int]) -> None:
        self._stick = stick
        self._spoil = spoil

    def layer_outputs(self, image: np.ndarray, mode: str) -> list[np.ndarray]:
        maps = [codes.copy() for codes in self._stick.layer_outputs(image, mode)]
        if mode in self._spoil:
            maps[self._spoil[mode]][0, 0, 0] ^= 1
        return maps


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({}, ()),
        ({"learn": 2}, ("major 2 / sub 1 (conv2_1): is the first sublayer", "1 of 3 sublayers are wrong")),
        ({"learn": 0}, ("major 1 / sub 1 (conv1_1): is the first sublayer", "1 of 3 sublayers are wrong")),
        ({"fc": 0}, ("output: its codes of the known image are wrong, after the pooling of the last layer",)),
    ],
)
def test_sticks(spoil: dict[str, int], words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(container())
    _, model = open_model(path)
    with model:
        stick: Any = OtherStick(model, spoil)
        problems, who = known_answer.check_stick(ANSWER, DAT, stick, "x.model")
    assert who == "other stick"
    assert all(word in problems[0] for word in words)
    expected = ["x.model: the file is intact, so it is the stick (other stick) that computes something else."]
    assert problems[1:] == expected * bool(words)


def test_stick_with_doubled_layers_shows_its_output_alone(tmp_path: Path) -> None:
    network = Network(
        (
            MajorLayer(14, 3, 16, 1, 3, (6,), upsample_enable=True, pooling=True),
            MajorLayer(14, 16, 16, 1, 1, (5,), pooling=True),
        )
    )
    weights = lively_weights(network, 2)
    data = dat.encode(network, weights)
    answer = known_answer.make(network, weights, data)
    path = tmp_path / "x.model"
    path.write_bytes(container(data, answer.to_entry()))
    _, model = open_model(path)
    with model:
        problems, who = known_answer.check_stick(answer, data, model, "x.model")
        assert problems == []
        assert "the output alone" in who
        wrong = replace(answer, output="0" * 64)
        assert known_answer.check_stick(wrong, data, model, "x.model")[0][0].startswith("output: its codes")


def verify(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["model_tool.py", "verify", *map(str, arguments)])
    return model_tool.main()


@pytest.mark.parametrize("device", [(), ("--device", "virtual")])
def test_verb(
    device: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(container())
    assert verify(monkeypatch, path, *device) == 0
    out = capsys.readouterr().out
    assert "stage fused, checkpoint 0123456789abcdef, kit 0.1.0; checked by " in out
    assert ("known images show the loss of at least" in out) is not bool(device)
    assert out.endswith("the known answer is right, code for code\n")
    broken = bytearray(DAT)
    broken[92 + 2] ^= 0x10
    path.write_bytes(container(bytes(broken)))
    assert verify(monkeypatch, path, *device) == 1
    assert "FAILED\nmajor 1 / sub 1 (conv1_1): " in capsys.readouterr().out


def test_verb_refuses_a_dat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(DAT)
    with pytest.raises(UsageError, match=r"\.DAT"):
        verify(monkeypatch, path)


@pytest.mark.parametrize("device", [(), ("--device", "virtual")])
def test_verb_checks_every_chip(
    device: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chip = {"operation": "GTICNN", KEY: ANSWER.to_entry()}
    layers = [chip | {"name": str(number), "data file": f"{number}.dat"} for number in (1, 2)]
    broken = bytearray(DAT)
    broken[92 + 2] ^= 0x10
    path = tmp_path / "x.model"
    for second, status in ((DAT, 0), (bytes(broken), 1)):
        path.write_bytes(model_file.compose(json.dumps({"layer": layers}).encode(), {"1.dat": DAT, "2.dat": second}))
        assert verify(monkeypatch, path, *device) == status
    out = capsys.readouterr().out
    assert f"{path}, chip 2: stage fused" in out
    assert out.count("FAILED") == 1
