"""HED's weights file: what is read, stated anew from its arrays; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hed_files
import numpy as np
import pytest
from hed_files import convolved

from gti.errors import FormatError, NetworkError, UsageError
from gti.importing import hed


def test_the_network_is_as_large_as_the_file_says(tmp_path: Path):
    found = hed.read(hed_files.write(tmp_path / "w.h5"), (3, 1))
    shapes = [(c.size, c.input_channels, c.output_channels, c.coef_bits) for c in found.network.convolutions]
    assert shapes == [(28, 3, 16, 3), (28, 16, 16, 3), (14, 16, 32, 1)]
    assert found.network.output_shape == (32, 7, 7)
    assert [layer.coef_bits for layer in hed.read(tmp_path / "w.h5").network.layers] == [3, 3]


def test_the_mean_is_folded_into_the_first_sublayer(tmp_path: Path):
    """Inside the frame, codes through the folded filters = pixels of 8 times the codes, less the mean."""
    arrays = hed_files.arrays()
    found = hed.read(hed_files.write(tmp_path / "w.h5", arrays))
    codes = np.random.default_rng(1).integers(0, 32, (28, 28, 3)).astype(np.float64)
    group = "block1/layers/conv2d/vars"
    expected = convolved(8 * codes - [103.939, 116.779, 123.68], arrays[f"{group}/0"], arrays[f"{group}/1"])
    inside = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(convolved(codes, *found.filters[0])[inside], expected[inside], atol=1e-3)
    np.testing.assert_array_equal(found.filters[2][0], arrays["block2/layers/conv2d/vars/0"])


def test_side_outputs_hold_the_fusing_layer(tmp_path: Path):
    arrays = hed_files.arrays()
    found = hed.read(hed_files.write(tmp_path / "w.h5", arrays))
    maps = [np.random.default_rng(2).uniform(0, 50, channels) for channels in hed_files.CHANNELS]
    sides = [m @ arrays[f"dsn{b}/vars/0"][0, 0, :, 0] + arrays[f"dsn{b}/vars/1"][0] for b, m in enumerate(maps, 1)]
    expected = 0.6 * sides[0] + 0.4 * sides[1] + 0.05
    ours = sum(float(m @ side) for m, side in zip(maps, found.sides, strict=True)) + found.bias
    assert ours == pytest.approx(expected, abs=1e-5)


def changed(name: str, value: Any) -> dict[str, np.ndarray]:
    arrays = hed_files.arrays()
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value(arrays[name])
    return arrays


FIRST = "block1/layers/conv2d/vars/0"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (FIRST, None, ["block1/layers/conv2d", "missing"]),
        ("dsn2/vars/1", None, ["dsn2", "missing"]),
        ("fuse/vars/0", None, ["fuse", "missing"]),
        (FIRST, lambda a: a[:, :, :2], ["conv2d", "shape"]),
        (FIRST, lambda a: a[:1], ["conv2d", "shape"]),
        ("dsn1/vars/0", lambda a: a[0], ["dsn1", "shape"]),
        ("dsn1/vars/0", lambda a: a[:, :, :7], ["dsn1", "shape"]),
        ("fuse/vars/0", lambda a: np.ones((1, 1, 3, 1)), ["fuse", "shape"]),
        (FIRST, lambda a: a * np.nan, ["conv2d", "finite"]),
        ("fuse/vars/1", lambda a: a + np.inf, ["fuse", "finite"]),
        (FIRST, lambda a: a.astype(int), ["conv2d", "missing"]),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str, value: Any, words: list[str]):
    path = hed_files.write(tmp_path / "w.h5", changed(name, value))
    with pytest.raises(FormatError) as caught:
        hed.read(path)
    assert all(word in str(caught.value) for word in ["w.h5", *words]), str(caught.value)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path):
    arrays = hed_files.arrays()
    del arrays["dsn1/vars/0"], arrays["fuse/vars/0"]
    with pytest.raises(FormatError, match=r"(?s)dsn1.*fuse"):
        hed.read(hed_files.write(tmp_path / "w.h5", arrays))


@pytest.mark.parametrize(
    ("data", "word"), [(b"", "HDF5"), (b"hello", "HDF5"), (hed_files.weights_file(hed_files.arrays())[:3000], "w.h5")]
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes, word: str):
    (tmp_path / "w.h5").write_bytes(data)
    with pytest.raises(FormatError, match=word):
        hed.read(tmp_path / "w.h5")
    with pytest.raises(FormatError, match="no such file"):
        hed.read(tmp_path / "none.h5")


@pytest.mark.slow
def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path):
    """Zeros, then ones, over 96 bytes of the file's structure, at one place after the other."""
    good = hed_files.weights_file(hed_files.arrays())
    refused = 0
    for at in range(0, min(len(good), 8192), 96):
        for byte in (b"\0", b"\xff"):
            (tmp_path / "w.h5").write_bytes(good[:at] + byte * 96 + good[at + 96 :])
            try:
                hed.read(tmp_path / "w.h5")
            except FormatError:
                refused += 1
    assert refused > 10


def test_links_out_of_the_file_are_not_followed(tmp_path: Path):
    hed_files.write(tmp_path / "other.h5")
    path = hed_files.write(tmp_path / "w.h5", changed(FIRST, None))
    with h5py.File(path, "a") as file:
        file[FIRST] = h5py.ExternalLink(str(tmp_path / "other.h5"), FIRST)
    with pytest.raises(FormatError, match="missing"):
        hed.read(path)


def test_what_the_chip_cannot_hold_is_refused(tmp_path: Path):
    path = hed_files.write(tmp_path / "w.h5")
    with pytest.raises(UsageError, match="coef_bits"):
        hed.read(path, (3, 3, 3))
    with pytest.raises(NetworkError, match="coef_bits"):
        hed.read(path, (3, 2))
