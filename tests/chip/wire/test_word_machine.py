"""The chip's side of the command stream: what the host encodes is what the machine tells, however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gti.chip.wire import protocol, word_machine
from gti.chip.wire.protocol import (
    EUSB,
    FT600,
    FT601,
    Coefficients,
    GlobalRegister,
    Header,
    Image,
    LayerRegisters,
    Mode,
    Reset,
    WordMachine,
    registers,
)

FRAMINGS = [FT601, FT600, EUSB]


def header(size: int, inputs: int = 16, channels: int = 16, sublayers: int = 2, pooling: bool = True) -> Header:
    words = [1, 0x0C21, size | inputs << 8 | channels << 19 | pooling << 30, sublayers << 4, 0x5A]
    return Header.from_words(words + [0] * 18)


def picture(channels: int, size: int, seed: int = 3) -> np.ndarray:
    # No zeros: nothing of the image can be taken for what follows it.
    return np.random.default_rng(seed).integers(1, 256, (channels, size, size), dtype=np.uint8)


def events(machine: WordMachine, stream: bytes) -> list[word_machine.Event]:
    machine.feed(stream)
    machine.end_segment()
    return machine.pop_events()


def loaded(framing: protocol.Framing, network: Header, mode: int, image: np.ndarray) -> tuple[WordMachine, list]:
    machine = WordMachine(framing.word_bytes)
    stream = protocol.encode_load(network.to_bytes() + b"\7\0\1", framing=framing)
    stream += protocol.encode_frame(network, mode, image, first=True, framing=framing)
    return machine, events(machine, stream)


@settings(max_examples=40)
@given(
    framing=st.sampled_from(FRAMINGS),
    mode=st.integers(0, 6),
    size=st.sampled_from([14, 28]),
    channels=st.sampled_from([1, 3, 16]),
    coefficients=st.binary(max_size=600),
    cuts=st.lists(st.integers(1, 20000), min_size=1, max_size=30),
)
def test_what_is_encoded_comes_out_however_it_is_cut(*, framing, mode, size, channels, coefficients, cuts):
    network = header(size)
    images = [picture(channels, size, seed) for seed in (1, 2)]
    stream = protocol.encode_load(network.to_bytes() + coefficients, framing=framing)
    for k, image in enumerate(images):
        stream += protocol.encode_frame(network, mode, image, first=k == 0, framing=framing)

    machine, position, turn = WordMachine(framing.word_bytes), 0, 0
    while position < len(stream):
        step = [*cuts, 20000][turn % (len(cuts) + 1)]
        machine.feed(stream[position : position + step])
        position, turn = position + step, turn + 1
    machine.end_segment()

    reg0, layers = registers(network, mode)
    found = machine.pop_events()
    kinds = [Reset, Coefficients, LayerRegisters, Reset, GlobalRegister, Image, Reset, GlobalRegister, Image]
    assert [type(event) for event in found] == kinds
    assert found[1].data.rstrip(b"\0") == coefficients.rstrip(b"\0")
    assert found[1].data.startswith(coefficients)
    assert found[2].data == layers
    assert found[4].value == reg0
    for event, image in ((found[5], images[0]), (found[8], images[1])):
        assert event.header == Header.from_registers(reg0, layers)
        np.testing.assert_array_equal(event.planes()[:channels], image)
        assert not event.planes()[channels:].any()
        assert event.read_out == protocol.read_out(network, mode) if (mode, size) != (0, 28) else True
    assert (machine.garbage_words, machine.refused_segments) == (0, 0)
    assert machine.pop_events() == []


@pytest.mark.parametrize("framing", FRAMINGS, ids=lambda framing: framing.name)
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (28, 3), (56, 3), (28, 16)])
def test_planes_are_counted_exactly_where_a_plane_is_longer_than_the_filling(framing, size, channels):
    _, found = loaded(framing, header(size), Mode.SINGLE, picture(channels, size))
    assert (found[-1].size, found[-1].channels) == (size, channels)


@pytest.mark.parametrize(("tail", "whole"), [(1023, False), (1024, True), (7 + 1024 + 511, True), (1543, False)])
def test_the_zeros_behind_an_image_are_counted(tail, whole):
    # docs/usb_protocol.md section 10: 1024 zeros, up to 7 of rounding and up to 511 of filling.
    network, image = header(28, inputs=1), picture(1, 28)
    stream = protocol.encode_load(network.to_bytes(), framing=EUSB)
    stream += protocol.encode_frame(network, Mode.SINGLE, image, first=True, framing=EUSB)
    words = np.frombuffer(stream, np.uint8).reshape(-1, EUSB.word_bytes)
    pixels = int(np.flatnonzero(words[:, 0])[-1]) + 1  # the last word that is not zero ends the image
    zeros = np.tile(words[-1:], (tail, 1))
    machine = WordMachine(EUSB.word_bytes)
    found = events(machine, words[:pixels].tobytes() + zeros.tobytes())
    assert isinstance(found[-1], Image) is whole
    assert machine.refused_segments == (0 if whole else 1)


def test_the_input_channels_limit_the_planes_of_small_images():
    # 2 planes: 644 + 400 + 1024 = 2068 words, filled up to 2560: 492 zeros that could be 2 planes more.
    image = picture(2, 14)
    _, open_end = loaded(EUSB, header(14), Mode.SINGLE, image)
    _, limited = loaded(EUSB, header(14, inputs=2), Mode.SINGLE, image)
    assert open_end[-1].channels == 4
    assert limited[-1].channels == 2
    np.testing.assert_array_equal(limited[-1].planes(), image)


@pytest.mark.parametrize("mode", range(7))
def test_the_registers_tell_the_read_out(mode):
    network = header(14, channels=32)
    _, found = loaded(FT601, network, mode, picture(3, 14))
    assert found[-1].read_out == protocol.read_out(network, mode)


def test_a_frame_may_follow_without_anything_in_between():
    # A block need not end with idle words: only the next frame, or a read, ends the image then.
    network, image = header(28), picture(3, 28)
    frame = protocol.encode_frame(network, Mode.SINGLE, image, framing=FT600)
    machine, _ = loaded(FT600, network, Mode.SINGLE, image)
    machine.feed(frame[: (300 + 2360 + 1024) * 2])
    assert not any(isinstance(event, Image) for event in machine.pop_events())
    machine.feed(frame)
    assert isinstance(machine.pop_events()[0], Image)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
def test_an_image_cut_short_is_refused_and_the_next_one_is_whole(kept):
    network, image = header(56), picture(3, 56)
    machine, _ = loaded(FT601, network, Mode.SINGLE, image)
    frame = protocol.encode_frame(network, Mode.SINGLE, image)
    # Cut behind the last pixel at most: the zeros that follow are the proof that the image was whole.
    length = int(len(frame) * kept) // 4 * 4 - 1100 * 4
    found = events(machine, frame[:length])
    assert not any(isinstance(event, Image) for event in found)
    assert machine.refused_segments == 1
    found = events(machine, frame)
    np.testing.assert_array_equal(found[-1].planes(), image)


def test_garbage_is_dropped_and_counted():
    network, image = header(28), picture(3, 28)
    frame = np.frombuffer(protocol.encode_frame(network, Mode.SINGLE, image), np.uint8).reshape(-1, 4)
    noise = np.array([[1, 8, 0, 0], [2, 255, 0, 0], [3, 3, 1, 0], [4, 3, 0, 9]], np.uint8)
    middle = len(frame) // 2
    machine, _ = loaded(FT601, network, Mode.SINGLE, image)
    found = events(machine, np.concatenate([noise, frame[:middle], noise, frame[middle:]]).tobytes())
    assert [type(event) for event in found] == [Reset, GlobalRegister, Image]
    np.testing.assert_array_equal(found[-1].planes(), image)
    assert machine.garbage_words == 8


@settings(max_examples=60)
@given(st.sampled_from([2, 4]), st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_are_survived(width, pieces):
    machine = WordMachine(width)
    for piece in pieces:
        machine.feed(piece)
    machine.end_segment()
    assert all(not isinstance(event, Image | Coefficients) for event in machine.pop_events())


def word_run(opcode: int, data: bytes) -> bytes:
    return b"".join(bytes((value, opcode, 0, 0)) for value in data)


@pytest.mark.parametrize(
    "stream",
    [
        word_run(4, bytes(3)),
        word_run(4, bytes(5)),
        word_run(5, b"\0\4\0\0" + bytes(83)),
        word_run(5, b"\0\3\0\0" + bytes(84)),
        word_run(3, bytes(5000)),
        word_run(5, b"\0\2\0\0" + bytes(84)) + word_run(0, b"\0") + word_run(3, bytes(100)),
        word_run(5, b"\0\4\0\0" + bytes(84)) + word_run(4, bytes(4)) + word_run(3, bytes(5000)),
    ],
    ids=["short reg0", "long reg0", "short registers", "window", "no registers", "short load", "no layers"],
)
def test_segments_without_a_meaning_are_counted(stream):
    machine = WordMachine(4)
    found = events(machine, stream)
    assert machine.refused_segments == 1
    assert not any(isinstance(event, Image | Coefficients) for event in found)


def test_opcodes_no_host_sends_end_a_segment_and_do_nothing():
    machine = WordMachine(4)
    found = events(machine, word_run(4, b"\1\2") + word_run(7, b"\0") + word_run(2, b"\0") + word_run(4, b"\1\2\3\4"))
    assert found == [GlobalRegister(0x04030201)]
    assert machine.refused_segments == 1


def test_a_segment_without_end_is_bounded(monkeypatch):
    monkeypatch.setattr(word_machine, "MAX_SEGMENT_BYTES", 1000)
    machine = WordMachine(2)
    machine.feed(bytes((5, 3)) * 1500)
    assert machine.garbage_words == 500


def test_a_second_load_replaces_the_first():
    network, image = header(14), picture(1, 14)
    machine, _ = loaded(FT601, network, Mode.FC, image)
    found = events(machine, protocol.encode_load(network.to_bytes() + b"\11"))
    assert [type(event) for event in found] == [Reset, Coefficients]
    assert found[1].data[:2] == b"\11\0"


def test_a_window_is_for_one_load():
    window, data = word_run(5, b"\0\2\0\0" + bytes(84)), word_run(0, b"\0") + word_run(3, bytes(40_000))
    machine = WordMachine(4)
    assert [type(event) for event in events(machine, window + data + data)] == [Coefficients]
    assert machine.refused_segments == 1  # an image of nobody knows what
