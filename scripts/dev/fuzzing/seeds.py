"""Small good files of every kind that the kit reads, made from fixed numbers: where fuzzing starts."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from gti import files
from gti.chip.formats import dat, model_file, npy
from gti.chip.formats.blobs import encode_fc
from gti.chip.host import edge_head, unknown
from gti.chip.host.preprocessing import Preprocessing
from gti.chip.network import file_size
from gti.chip.network import json_form as network
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.chip.runtime.known_answer import KnownAnswer
from gti.chip.usb.trace import FORMAT as TRACE_FORMAT

SIZE = 32  # of pictures


def networks() -> dict[str, Network]:
    """Return small networks that use every field of the header."""
    return {
        "tiny": Network((MajorLayer(14, 16, 16, 1, 3, (4,)),)),
        "rgb": Network((MajorLayer(28, 3, 16, 2, 3, (4, 5), pooling=True), MajorLayer(14, 16, 32, 1, 1, (6,)))),
        "shortcut": Network(
            (MajorLayer(28, 1, 16, 3, 3, (3, 4, 5), pooling=True, shortcuts=(1,), one_coef=(0, 1, 0)),),
            sampling_method=1,
        ),
        "learning": Network((MajorLayer(56, 3, 16, 1, 1, (2,), pooling=True, learning=True),)),
        "ten_bit": Network(
            (MajorLayer(28, 3, 16, 1, 3, (4,), pooling=True), MajorLayer(14, 16, 16, 1, 3, (4,))),
            activation_bit_mode=1,
        ),
        "upsampled": Network(
            (MajorLayer(14, 4, 16, 1, 3, (1,), upsample_enable=True), MajorLayer(28, 16, 16, 1, 1, (1,)))
        ),
    }


def weights(net: Network, seed: int = 0) -> list[ConvolutionWeights]:
    """Return integer weights that the file holds exactly."""
    random = np.random.RandomState(seed)
    result = []
    for conv in net.convolutions:
        levels = [-1, 1] if conv.coef_bits == 1 else [-4, -2, -1, 0, 1, 2, 4]
        signs = random.choice(levels, (conv.output_channels, conv.input_channels, 3, 3))
        gains = random.randint(1, 512, (conv.output_channels, conv.input_channels, 1, 1))
        biases = random.randint(-2000, 2000, conv.output_channels)
        result.append(ConvolutionWeights((signs * gains).astype(np.int16), biases.astype(np.int32), conv.shift))
    return result


def dat_file(net: Network, *, padded: bool = False) -> bytes:
    """Return a .DAT file; unless `padded`, without the zeros behind its rows, which readers do not need."""
    data = dat.encode(net, weights(net))
    return data if padded else data[: 92 + 192 * file_size.row_count(net)]


def dat_json(net: Network) -> bytes:
    return files.json_bytes(network.to_json(net))


def full_model(net: Network) -> tuple[bytes, dict[str, bytes]]:
    """Return network.json and the data files of a model with layers of all kinds."""
    channels, height, width = net.output_shape
    random = np.random.RandomState(1)
    inputs = channels * height * width
    data = {
        "chip.dat": dat_file(net),
        "fc.bin": encode_fc(random.randn(4, inputs).astype(np.float32), random.randn(4).astype(np.float32)),
        "labels.txt": b"background\ncat\nd\xc3\xb6g\nbird\n",
    }
    size, _, planes = net.input_shape
    value: dict[str, Any] = {
        "name": "seed",
        "preprocessing": Preprocessing(size, planes, "BGR", 0.875).entry() if size in (224, 28) else None,
        "layer": [
            {"name": "reader", "operation": "IMAGEREADER", "output width": size, "output height": size,
             "output channels": planes, "input format": "CS_BGR24_PLANAR", "output format": "CS_BGR24_PLANAR"},
            {"name": "cnn", "operation": "GTICNN", "mode": 0, "device": {"name": "USB_FTDI_0001", "emmc delay": 10},
             "known answer": _known_answer(len(net.convolutions)).to_entry(), "data file": "chip.dat",
             "output scaledown": 3, "output type": "float"},
            {"name": "fc", "operation": "FC", "activation": "relu", "data file": "fc.bin", "output channels": 4},
            {"name": "softmax", "operation": "SOFTMAX", "data file": None, "output channels": 4},
            {"name": "label", "operation": "LABEL", "data file": "labels.txt", "output channels": 2},
        ],
    }  # fmt: skip
    return (json.dumps(value, indent=2) + "\n").encode(), data


def _known_answer(sublayers: int) -> KnownAnswer:
    digest = "0123456789abcdef" * 4
    return KnownAnswer("seed", digest, (digest,) * sublayers, digest, 0, ("repeat",), "0.1.0", "fused", "")


def model(net: Network) -> bytes:
    text, data = full_model(net)
    return model_file.compose(text, data)


def header() -> bytes:
    """Return the keys of a header that add to the host's part."""
    rule = unknown.Unknown(np.eye(2, 3), 0.5)
    head = edge_head.EdgeHead((np.ones(2), np.ones(3)), -0.5)
    return json.dumps({unknown.KEY: rule.entry(), edge_head.KEY: head.entry()}).encode()


def hed_weights() -> bytes:
    """Return a weights file like HED's, of one block."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, shape in (("block1/layers/conv2d", (3, 3, 3, 16)), ("dsn1", (1, 1, 16, 1)), ("fuse", (1, 1, 1, 1))):
            file[f"{name}/vars/0"] = np.ones(shape, np.float32)
            file[f"{name}/vars/1"] = np.ones(shape[-1:], np.float32)
    return buffer.getvalue()


def recording() -> bytes:
    """Return a recording of a few calls of every form."""
    data = base64.b64encode(bytes(range(64))).decode()
    descriptor = {
        "bLength": 18,
        "idVendor": 0x0403,
        "idProduct": 0x601F,
        "bus": 1,
        "address": 2,
        "port_numbers": [1, 2],
    }
    lines: list[dict[str, Any]] = [
        {"format": TRACE_FORMAT, "device": "usb", "settings": {}},
        {"call": "enumerate_devices", "args": [], "result": ["#0"]},
        {"call": "get_device_descriptor", "args": ["#0"], "result": descriptor},
        {"call": "open_device", "args": ["#0"], "result": "#1"},
        {"call": "claim_interface", "args": ["#1", 0], "result": None},
        {"call": "bulk_write", "args": ["#1", 2, 0, data], "result": 64},
        {"call": "bulk_read", "args": ["#1", 130, 0, 64], "result": data},
        {"call": "bulk_read", "args": ["#1", 130, 0, 64], "error": ["USBTimeoutError", 110, "timed out"]},
        {"call": "close_device", "args": ["#1"], "result": None},
    ]
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), 1, mtime=0)


def pictures() -> dict[str, bytes]:
    """Return one picture in every format that is read, by the ending of its name."""
    from PIL import Image

    pixels = np.random.RandomState(2).randint(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    result = {"bin": pixels.transpose(2, 0, 1).tobytes()}
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    result["npy"] = buffer.getvalue()
    for suffix in ("png", "jpg", "bmp", "ppm", "gif", "tiff", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(pixels[: SIZE // 2, : SIZE // 2]).save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
        result[suffix] = buffer.getvalue()
    return result


def keras_archive() -> bytes:
    """Return a .keras file of an architecture alone, in the JSON that Keras writes."""

    def layer(kind: str, name: str, module: str = "keras.layers", **config: Any) -> dict[str, Any]:
        return {"module": module, "class_name": kind, "config": {"name": name, **config}, "registered_name": None}

    layers = [
        layer("InputLayer", "input", batch_shape=[None, 28, 28, 3], dtype="float32", sparse=False),
        layer("Conv2D", "conv1", filters=16, kernel_size=[3, 3], strides=[1, 1], padding="same", activation="relu"),
        layer("MaxPooling2D", "pool1", pool_size=[2, 2], strides=[2, 2], padding="valid"),
        layer("Conv2D", "conv2", filters=32, kernel_size=[3, 3], strides=[1, 1], padding="same", activation="relu"),
        layer("Flatten", "flatten"),
        layer("Dense", "dense", units=10, activation="softmax"),
    ]
    value = {"module": "keras", "class_name": "Sequential", "config": {"name": "net", "layers": layers}}
    return archive({"config.json": json.dumps(value).encode()})


def keras_hdf5() -> bytes:
    """Return a .h5 file of the same architecture with arrays of zeros."""
    import h5py

    with zipfile.ZipFile(io.BytesIO(keras_archive())) as opened:
        config = opened.read("config.json").decode()
    shapes = {"conv1": (3, 3, 3, 16), "conv2": (3, 3, 16, 32), "dense": (7 * 7 * 64 * 2, 10)}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["model_config"] = config
        for name, shape in shapes.items():
            file[f"model_weights/{name}/{name}/kernel"] = np.zeros(shape, np.float32)
            file[f"model_weights/{name}/{name}/bias"] = np.zeros(shape[-1:], np.float32)
    return buffer.getvalue()


def onnx_models() -> list[bytes]:
    """Return .onnx files in the shapes that PyTorch and Keras export."""
    from scripts.dev import sample_models

    vgg = _vgg()
    graphs = (sample_models.torch_style(vgg), sample_models.keras_style(vgg, rescaling=(0.1, [1.0, 2.0, 3.0])))
    return [graph.SerializeToString() for graph in graphs]


def torch_models() -> list[bytes]:
    """Return a .pth file in torchvision's naming."""
    from scripts.dev import sample_models

    return [sample_models.torch_zip(sample_models.state_dict(_vgg()))]


def safetensors_models() -> list[bytes]:
    """Return a .safetensors file in torchvision's naming."""
    import safetensors.numpy

    from scripts.dev import sample_models

    return [safetensors.numpy.save(sample_models.state_dict(_vgg()))]


def _vgg() -> Any:
    from scripts.dev import sample_models

    return sample_models.Vgg(blocks=((4,), (4,)), batch_norm=True, hidden=0)


def archive(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive, the same in every run."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as result:
        for name, content in members.items():
            result.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def metadata() -> bytes:
    value = {
        "net": "digits", "chip": "2801", "stage": "fused", "epoch": 3, "step": 100, "classes": 11, "image_size": 28,
        "ten_bit": False, "accuracy": 0.5, "best_accuracy": None, "optimizer": "adam", "seed": 1,
        "parent": "0123456789abcdef", "kit_version": "0.1.0",
    }  # fmt: skip
    return json.dumps(value).encode()


def caps() -> bytes:
    return files.json_bytes(
        {"relu_caps": {f"digits/conv1_{sub}/relu_cap": 1.5 * sub for sub in (1, 2, 3)}, "images": 9}
    )


def archives() -> dict[str, bytes]:
    """Return weights.npz and rows.npz as extract writes them."""
    values = weights(networks()["rgb"])
    arrays = {f"w{i}": one.filters for i, one in enumerate(values)} | {
        f"b{i}": one.biases for i, one in enumerate(values)
    }
    rows = np.zeros((2, 192), np.uint8)
    return {
        "weights": npy.npz_bytes({**arrays, "shifts": np.array([one.shift for one in values], np.int32)}),
        "rows": npy.npz_bytes({"index": np.arange(2), "wanted": rows, "computed": rows}),
    }
