"""Label files: their forms, what is refused or told, where they lie."""

from __future__ import annotations

import pytest

from gti.data.labels import find_labels, labels_text, read_labels
from gti.errors import DataError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0 background\n1 cat\n2 dog\n", ["background", "cat", "dog"]),
        ("1 cat\r\n2 big dog\r\n", ["background", "cat", "big dog"]),
        ("2 dog\n1 cat\n", ["background", "cat", "dog"]),
        ("cat\n\n dog \n", ["background", "cat", "dog"]),
        ("background\ncat\n", ["background", "cat"]),
        ("\ufeffcat\nchat à poil\n", ["background", "cat", "chat à poil"]),
        ("3 stooges\nqueen\n", ["background", "3 stooges", "queen"]),
        ("background\n1 cent\n2 euro\n", ["background", "1 cent", "2 euro"]),
        ("1.5 volt\n9 volt\n", ["background", "1.5 volt", "9 volt"]),
    ],
)
def test_label_files(tmp_path, text, names):
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode())
    assert read_labels(path) == names
    path.write_text(labels_text(names), encoding="utf-8")
    assert read_labels(path) == names


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "labels"),
        (b"\xff\xfe", "UTF-8"),
        (b"cat\ncat\n", "stands twice"),
        (b"1 cat\n1 dog\n", "stands twice"),
        (b"1 cat\n2 cat\n", "stands twice"),
        (b"1 cat\n3 dog\n", "no line for label 2"),
        (b"0,background\n1,cat\n", "numbered"),
        (b"1. cat\n2. dog\n", "numbered"),
        (b"1) cat\n2) dog\n", "numbered"),
        (b"0|background\n1 cat\n", "numbered"),
        (b"id,name\n0,background\n1,cat\n", "numbered"),
        (b'{"0": "background", "1": "cat"}\n', "is JSON"),
        (b'["background",\n "cat"]\n', "is JSON"),
        (b'item {\n  id: 1\n  name: "cat"\n}\n', "protocol buffers"),
        ("a\u0085b\n".encode(), r"U\+0085 in line 1"),
        ("a\nb\u2028c\n".encode(), r"U\+2028 in line 2"),
        (b"a\x0cb\n", r"U\+000C"),
        (b"a\x0bb\n", r"U\+000B"),
        (b"a\0b\n", r"U\+0000"),
        (b"1 background\n2 cat\n", "background stands twice"),  # 0 is the background
        (b"cat\nbackground\n", "background stands twice"),
        (b"0 background\n1 crane\n2 crane\n", "crane stands twice"),
    ],
)
def test_bad_label_files(tmp_path, data, part):
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=part):
        read_labels(path)


@pytest.mark.parametrize(
    ("text", "form", "names"),
    [
        ("1 cent\n2 euro\n", "names", ["background", "1 cent", "2 euro"]),
        ("1 cent\n2 euro\n", "numbered", ["background", "cent", "euro"]),
        ("0,background\n1,cat\n", "numbered", ["background", "cat"]),
        ("1. cat\n2) dog\n", "numbered", ["background", "cat", "dog"]),
        ("0,background\n1,cat\n", "names", ["background", "0,background", "1,cat"]),
    ],
)
def test_form_of_label_files_that_is_stated(tmp_path, text, form, names):
    path = tmp_path / "labels.txt"
    path.write_text(text)
    assert read_labels(path, form) == names


def test_numbers_that_could_be_names_are_told(tmp_path, caplog):
    path = tmp_path / "labels.txt"
    path.write_text("1 cent\n2 euro\n")
    assert read_labels(path) == ["background", "cent", "euro"]
    assert read_labels(path) == ["background", "cent", "euro"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "--labels_format" in caplog.text
    (tmp_path / "sure.txt").write_text("0 background\n1 cent\n")
    read_labels(tmp_path / "sure.txt")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("first", "told"), [("Background", True), ("__background__", True), ("backgrounds", False)])
def test_names_that_are_nearly_the_background_are_told(tmp_path, caplog, first, told):
    (tmp_path / "labels.txt").write_text(f"{first}\ncat\n")
    assert read_labels(tmp_path / "labels.txt") == ["background", first, "cat"]
    assert (f"{first} is read as the class 1" in caplog.text) == told


def test_missing_label_file(tmp_path):
    with pytest.raises(DataError, match="file"):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize("place", ["set/set_labels.txt", "set/labels.txt", "set_labels.txt"])
def test_places_of_label_files(tmp_path, place):
    (tmp_path / "set" / "train").mkdir(parents=True)
    assert find_labels(tmp_path / "set" / "train") is None
    (tmp_path / place).write_text("cat\n")
    assert find_labels(tmp_path / "set" / "train") == tmp_path / place
