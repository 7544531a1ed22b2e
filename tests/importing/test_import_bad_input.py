"""What cannot be imported: one sentence, exit status 2, nothing written, and no TensorFlow where the file tells."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import keras
import numpy as np
import onnx
import pytest
import safetensors.numpy
from converted_net import run_script
from onnx import TensorProto, helper
from places import ROOT

from gti.errors import CheckpointError, FormatError, GtiError, NetworkError, UsageError
from gti.importing import model_files as readers
from gti.importing import onnx_files, torch_files
from scripts.dev import sample_models as model_files
from scripts.dev.sample_models import Storage, Torch, Vgg

FLAGS = ("--net", "mine", "--chip", "2801", "--input", "rgb")


def refused(tmp_path, path, error=GtiError, *flags) -> str:
    """Return the sentence of an import that is refused; nothing may be left of it."""
    folder = tmp_path / "out"
    with pytest.raises(error) as caught:
        run_script("scripts/import_model.py", path, *FLAGS, "--nets_dir", folder, "--checkpoint_dir", folder, *flags)
    assert not folder.exists() or not list(folder.iterdir())
    return str(caught.value)


def changed(change) -> onnx.ModelProto:
    model = model_files.torch_style(Vgg())
    change(model)
    return model


def external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def looped(model):
    body = helper.make_graph([], "body", [], [])
    node = helper.make_node("Loop", ["", ""], ["looped"], "the_loop", body=body)
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = "looped"


def sized(*dims):
    def change(model):
        shape = model.graph.input[0].type.tensor_type.shape
        for dim, size in zip(shape.dim, dims, strict=True):
            dim.Clear()
            if size is not None:
                dim.dim_value = size

    return change


def huge(model):
    model.graph.initializer[0].dims[:] = [2**40, 3, 3, 3]


def short(model):
    model.graph.initializer[0].raw_data = b"\0" * 8


def not_a_number(model):
    array = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    array[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, model.graph.initializer[0].name))


def another_shape(model):
    model.graph.initializer[2].dims[:] = [16, 18, 3, 3]
    model.graph.initializer[2].raw_data = b"\0" * (16 * 18 * 9 * 4)


def late(model):
    first = model.graph.node[0]
    copy = onnx.NodeProto()
    copy.CopyFrom(first)
    del model.graph.node[0]
    model.graph.node.append(copy)


def opset(version):
    def change(model):
        model.opset_import[0].version = version

    return change


def quantized(model):
    node = helper.make_node("QuantizeLinear", ["image", "scale"], ["q"], "quantize")
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = "q"


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (external, FormatError, "another file"),
        (looped, NetworkError, "the_loop"),
        (sized(None, 3, None, None), NetworkError, "open"),
        (sized(1, 3, 28, 56), NetworkError, "square"),
        (sized(1, 3, 30, 30), NetworkError, "--image_size 28"),
        (huge, GtiError, ""),
        (short, FormatError, "cannot be read"),
        (not_a_number, CheckpointError, "no numbers"),
        (another_shape, FormatError, "another shape"),
        (late, FormatError, "order"),
        (opset(99), FormatError, "opset 99"),
        (opset(3), FormatError, "opset 3"),
        (quantized, NetworkError, "quantize"),
        (lambda model: model.graph.ClearField("node"), FormatError, "node"),
    ],
)
def test_onnx(tmp_path, change, error, word):
    assert word in refused(tmp_path, model_files.write(changed(change), tmp_path), error)


def test_an_open_image_size_is_given(tmp_path):
    path = model_files.write(changed(sized(None, 3, None, None)), tmp_path)
    folder = tmp_path / "out"
    flags = ("--nets_dir", folder, "--checkpoint_dir", folder, "--image_size", "28")
    run_script("scripts/import_model.py", path, *FLAGS, *flags)
    assert (folder / "2801_mine_dat.json").is_file()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not protobuf at all",
        b"\x3a\xff\xff\xff\xff\x7f",  # a graph of 32 GB
        b"\x3a\x0a" + b"\x0a\x80" * 5,  # a node that ends behind the graph
        b"\xff" * 100,
    ],
)
def test_what_is_no_onnx(tmp_path, data):
    (tmp_path / "x.onnx").write_bytes(data)
    assert "x.onnx" in refused(tmp_path, tmp_path / "x.onnx", FormatError)


@pytest.mark.slow
def test_a_bomb_of_empty_messages_is_not_unpacked(tmp_path, monkeypatch):
    nodes = b"\x0a\x00" * (onnx_files.MAX_STRUCTURE_BYTES // 2 + 1)  # two bytes in the file, hundreds in memory
    length = []
    size = len(nodes)
    while size:
        length.append(size & 127 | (128 if size > 127 else 0))
        size >>= 7
    (tmp_path / "x.onnx").write_bytes(b"\x3a" + bytes(length) + nodes)
    monkeypatch.setattr(onnx, "load_model_from_string", None)
    assert "besides arrays" in refused(tmp_path, tmp_path / "x.onnx", FormatError)


def test_weights_of_another_net(tmp_path):
    folder = tmp_path / "out"
    path = model_files.write(model_files.torch_style(Vgg()), tmp_path)
    run_script("scripts/import_model.py", path, *FLAGS, "--nets_dir", folder, "--checkpoint_dir", folder)
    other = model_files.write(model_files.torch_style(Vgg(blocks=((16, 16), (64,)))), tmp_path)
    flags = ("--nets_dir", folder, "--checkpoint_dir", tmp_path / "second")
    with pytest.raises(CheckpointError, match=r"another network.*16 -> 32.*16 -> 64"):
        run_script("scripts/import_model.py", other, *FLAGS, *flags)
    with pytest.raises(UsageError, match="--coef_bits"):
        run_script("scripts/import_model.py", path, *FLAGS, *flags, "--coef_bits", "1")
    assert not list((tmp_path / "second").iterdir())


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--coef_bits", "3,3,1"), "1 or 2 numbers"),
        (("--coef_bits", "2"), "1 or 3"),
        (("--input", "codes", "--mean", "1", "2", "3"), "no --mean"),
        (("--std", "0", "1", "1"), "expected a number"),
        (("--image_size", "224"), "--image_size 28"),
    ],
)
def test_flags(tmp_path, flags, word):
    assert word in refused(tmp_path, model_files.write(model_files.torch_style(Vgg()), tmp_path), GtiError, *flags)


def test_a_failed_checkpoint_leaves_no_net(tmp_path, monkeypatch):
    from gti.training import checkpoint

    def full(*_, **__):
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(checkpoint, "save", full)
    path = model_files.write(model_files.torch_style(Vgg()), tmp_path)
    assert "full" in refused(tmp_path, path, CheckpointError)


# PyTorch


def trap(tmp_path):
    return Torch("posix.system", f"touch {tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (trap, "posix.system"),
        (lambda _: Torch("torch.nn.modules.conv.Conv2d"), "torch.nn.modules.conv.Conv2d"),
        (lambda _: {"a": 3}, "state"),
        (lambda _: [1, 2], "state"),
        (lambda _: {"a": rebuilt(Storage(0, "FloatStorage", 4), 0, (2**39,), (0,))}, "storage"),
        (lambda _: {"a": rebuilt(Storage(0, "FloatStorage", 4), 0, (4,), (-1,))}, "impossible"),
        (lambda _: {"a": rebuilt(Storage(0, "FloatStorage", 4), 0, (1,) * 99, (1,) * 99)}, "strides"),
        (lambda _: {"features.0.weight": rebuilt(Storage(0, "FloatStorage", 4), 0, (4,), (1,))}, "no network"),
    ],
)
def test_pickles(tmp_path, value, word):
    (tmp_path / "x.pth").write_bytes(model_files.torch_archive(value(tmp_path), {}))
    assert word in refused(tmp_path, tmp_path / "x.pth", FormatError)
    assert not (tmp_path / "run").exists()


class Changed:
    """In a pickle: a value whose attributes are set after it was made."""

    def __init__(self, value: object, attributes: dict[str, object]) -> None:
        self.value, self.attributes = value, attributes


def pickled(value: object) -> bytes:
    """Return an archive of `value`, with the opcodes that set attributes where it holds a Changed."""

    class Pickler(model_files.TorchPickler):
        def save(self, item, *rest, **options):
            if not isinstance(item, Changed):
                return super().save(item, *rest, **options)
            super().save(item.value)
            super().save(item.attributes)
            self.write(pickle.BUILD)
            return None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    return zipped(stream.getvalue())


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return file.getvalue()


def test_a_tensor_is_not_changed_after_it_was_checked(tmp_path):
    """Steps beyond the storage would read memory of the process."""
    tensor = rebuilt(Storage(0, "FloatStorage", 4), 0, (4,), (1,))
    (tmp_path / "x.pth").write_bytes(pickled({"a": Changed(tensor, {"strides": (2**33,)})}))
    with pytest.raises(FormatError, match=r"no \.pth"):
        torch_files.read(tmp_path / "x.pth")


DEEP = b")" + b"\x85" * 10**6  # a million tuples, each in the next
READ_ALL = """
import sys
from gti.errors import FormatError
from gti.importing import torch_files
for name in sys.argv[1:]:
    try:
        torch_files.read(name)
    except FormatError as error:
        print(error)
"""


@pytest.mark.slow
def test_nothing_deep_is_hashed(tmp_path):
    """Python hashes nested tuples by recursion that ends the process: its own process, for where the guard is gone."""
    pickles = {
        "plain": DEEP,
        "setitem": b"}" + DEEP + b"K\x01s",
        "setitems": b"}(" + DEEP + b"K\x01u",
        "dict": b"(" + DEEP + b"K\x01d",
        "set": b"\x8f(" + DEEP + b"\x90",
        "frozenset": b"(" + DEEP + b"\x91",
        "shared": b"})" + b"2\x86" * 60 + b"K\x01s",  # 2**60 parts
        "number": b"}\x8b" + struct.pack("<I", 5000) + b"\x01" * 5000 + b"K\x01s",  # more digits than are printed
    }
    for name, body in pickles.items():
        (tmp_path / f"{name}.pth").write_bytes(zipped(b"\x80\x02" + body + b"."))
    words = [sys.executable, "-c", READ_ALL, *(f"{name}.pth" for name in pickles)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(".pth: ")[0] for line in lines] == list(pickles)
    words = ["state dictionary", *["key"] * 3, *["set"] * 2, *["key"] * 2]
    assert all(word in line for word, line in zip(words, lines, strict=True)), lines


@pytest.mark.parametrize("kind", ["nothing", "O", "V4", "c8"])
def test_storages_of_a_kind_that_pytorch_lacks(tmp_path, kind):
    storage = Storage(0, "FloatStorage", 4)
    storage.id = ("storage", kind, "0", "cpu", 4)
    data = model_files.torch_archive({"a": rebuilt(storage, 0, (4,), (1,))}, {})
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(FormatError, match="unknown kind"):
        torch_files.read(tmp_path / "x.pth")


def test_a_number_in_a_pickle_asks_for_no_memory(tmp_path):
    """The 2**26th place of a memo: a list of all of them is 1 GiB."""
    resource = pytest.importorskip("resource")
    (tmp_path / "x.pth").write_bytes(zipped(b"\x80\x02}r" + struct.pack("<I", 2**26) + b"."))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match="state dictionary"):
        torch_files.read(tmp_path / "x.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


@pytest.mark.parametrize(
    ("name", "shape"),
    [("features.1.weight", (16,)), ("classifier.1.weight", (5,)), ("features.0.weight", (0, 3, 3, 3))],
)
def test_arrays_of_layers_that_are_not_known(tmp_path, name, shape):
    """A PReLU or a group norm left out would give another result; no kernel is no network."""
    arrays = {"features.0.weight": np.zeros((16, 3, 3, 3), np.float32),
              "classifier.0.weight": np.zeros((5, 784), np.float32), name: np.zeros(shape, np.float32)}  # fmt: skip
    (tmp_path / "x.safetensors").write_bytes(safetensors.numpy.save(arrays))
    word = "output_channels" if 0 in shape else name.rpartition(".")[0]
    assert word in refused(tmp_path, tmp_path / "x.safetensors", GtiError)


def rebuilt(*arguments):
    return Torch("torch._utils._rebuild_tensor_v2", *arguments, False, {})


def test_the_old_kind_is_refused_with_the_way_out(tmp_path):
    # What torch.save wrote before version 1.6: a magic number of PyTorch, pickled.
    (tmp_path / "old.pth").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
    assert "torch.save(torch.load" in refused(tmp_path, tmp_path / "old.pth", FormatError)


def test_storages_of_another_length(tmp_path):
    data = model_files.torch_zip(model_files.state_dict(Vgg()))
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as out, zipfile.ZipFile(__import__("io").BytesIO(data)) as good:
        for info in good.infolist():
            out.writestr(info.filename, good.read(info)[: 8 if info.filename.endswith("/0") else None])
    assert "cannot be read" in refused(tmp_path, tmp_path / "x.pth", FormatError)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 9) + b'{"a": 3}'],
)
def test_what_is_no_safetensors(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    assert "x.safetensors" in refused(tmp_path, tmp_path / "x.safetensors", FormatError)


def test_other_names_are_no_network(tmp_path):
    arrays = {"layer1.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32)}
    (tmp_path / "x.safetensors").write_bytes(safetensors.numpy.save(arrays))
    assert "layer1.0.conv1.weight" in refused(tmp_path, tmp_path / "x.safetensors", FormatError)


def test_tensors_are_views_of_their_storage(tmp_path):
    """Transposed, shifted and half-precision tensors are read as PyTorch reads them."""
    storage = np.arange(12, dtype=np.float32)
    state = {
        "turned": rebuilt(Storage(0, "FloatStorage", 12), 0, (3, 4), (1, 3)),
        "shifted": rebuilt(Storage(0, "FloatStorage", 12), 2, (2, 2), (4, 1)),
        "half": rebuilt(Storage(1, "HalfStorage", 2), 0, (2,), (1,)),
        "brain": rebuilt(Storage(2, "BFloat16Storage", 2), 0, (2,), (1,)),
    }
    half = np.float16([1.5, -2.0])
    brain = (np.float32([1.5, -2.0]).view(np.uint32) >> 16).astype(np.uint16)
    members = {f"archive/data/{i}": a.tobytes() for i, a in enumerate((storage, half, brain))}
    (tmp_path / "x.pth").write_bytes(model_files.torch_archive(state, members))
    found = {name: weight.read() for name, weight in torch_files.read(tmp_path / "x.pth").items()}
    np.testing.assert_array_equal(found["turned"], storage.reshape(4, 3).T)
    np.testing.assert_array_equal(found["shifted"], [[2, 3], [6, 7]])
    np.testing.assert_array_equal(found["half"], [1.5, -2])
    np.testing.assert_array_equal(found["brain"], [1.5, -2])


# All kinds


@pytest.mark.parametrize("suffix", sorted(readers.READERS))
@pytest.mark.parametrize("kind", ["missing", "folder", "text"])
def test_no_such_file_and_folders(tmp_path, suffix, kind):
    path = tmp_path / f"x{suffix}"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("a text\n" * 100)
    assert path.name in refused(tmp_path, path, (FormatError, UsageError))


def test_mobilenet_is_named_by_kind_and_summed_up(tmp_path):
    layers = keras.layers
    x = image = keras.Input((28, 28, 3))
    x = layers.ReLU(6)(layers.BatchNormalization()(layers.Conv2D(16, 3, strides=2, padding="same")(x)))
    for number in range(9):
        y = layers.Conv2D(32, 1, name=f"expand_{number}")(x)
        y = layers.ReLU(6)(layers.DepthwiseConv2D(3, padding="same", name=f"depthwise_{number}")(y))
        x = layers.Add(name=f"add_{number}")([x, layers.Conv2D(16, 1, name=f"project_{number}")(y)])
    keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x))).save(tmp_path / "mobile.keras")
    text = refused(tmp_path, tmp_path / "mobile.keras", NetworkError)
    assert all(f"depthwise_{n}" in text and f"add_{n}" in text for n in range(9))
    assert len(text.splitlines()) <= 10
    assert "depthwise convolutions, branches" in text.splitlines()[-1]
    assert "VGG-like" in text.splitlines()[-1]


def test_a_refusal_needs_no_tensorflow(tmp_path):
    path = model_files.write(changed(external), tmp_path)
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('tensorflow' in sys.modules or 'keras' in sys.modules)\n"
    )
    words = ["-c", code, ROOT / "scripts" / "import_model.py", path, *FLAGS, "--nets_dir", tmp_path / "out",
             "--checkpoint_dir", tmp_path / "out"]  # fmt: skip
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "False")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_script_ends_as_it_should(tmp_path):
    model = keras.Sequential([keras.Input((14, 14, 3)), keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
                              keras.layers.MaxPooling2D(), keras.layers.Flatten(), keras.layers.Dense(3)])  # fmt: skip
    model.save(tmp_path / "model.keras")
    words = [ROOT / "scripts" / "import_model.py", tmp_path / "model.keras", *FLAGS, "--nets_dir", tmp_path,
             "--checkpoint_dir", tmp_path]  # fmt: skip
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.py").is_file()
