"""What a network costs, against the files and streams that the other modules really make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from places import NETS

from gti.chip import spec
from gti.chip.formats import dat
from gti.chip.network import budget
from gti.chip.network import json_form as networks
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.chip.wire import protocol


def net(name: str) -> Network:
    return networks.load(NETS / f"2801_{name}_dat.json")


def zero_weights(network: Network) -> list[ConvolutionWeights]:
    return [
        ConvolutionWeights(
            np.zeros((c.output_channels, c.input_channels, 3, 3), np.int16), np.zeros(c.output_channels, np.int32), 0
        )
        for c in network.convolutions
    ]


@pytest.mark.parametrize("name", ["digits", "cifar", "cifar10", "tenbit", "vgg16", "vgg_bn"])
def test_lengths_are_those_of_the_real_file_and_streams(name):
    network = net(name)
    cost = budget.budget(network)
    data = dat.encode(network, zero_weights(network))
    header = protocol.Header.parse(data)
    height, width, channels = network.input_shape
    frame = protocol.encode_frame(header, protocol.Mode.FC, np.zeros((channels, height, width), np.uint8))
    assert cost.file_bytes == len(data)
    assert cost.frame_words * protocol.FT601.word_bytes == len(frame)
    assert cost.load_words * protocol.FT601.word_bytes == len(protocol.encode_load(data))
    if network.activation_bit_mode == 0:  # the register counts ten-bit channels twice
        assert cost.result_words == protocol.read_length(header, protocol.Mode.FC)
    assert cost.fc_readout


def test_vgg16_by_hand():
    cost = budget.budget(net("vgg16"))
    # Simonyan and Zisserman's 15.3 G multiply-accumulates of the convolutions; rows: docs/dat_format.md section 1.
    assert cost.macs == 9 * sum(
        size**2 * inputs * outputs
        for size, inputs, outputs in (
            (224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), (56, 256, 256),
            (56, 256, 256), (28, 256, 512), (28, 512, 512), (28, 512, 512), *[(14, 512, 512)] * 3,
        )
    )  # fmt: skip
    assert cost.rows == 28576
    assert cost.peak_units == spec.MEMORY_UNITS
    # 2.8e12 / (2 * 15.35e9)
    assert cost.compute_rate(2.8) == pytest.approx(91.2, abs=0.05)
    # 151872 + 32768 words of 4 bytes at 400 MB/s
    assert cost.usb_seconds(400e6, 4) == pytest.approx(184640 * 4 / 400e6)


def test_host_layers_follow_the_flattened_result():
    layers = budget.host_layers(net("vgg16"), [4096, 4096, 1001])
    assert [(layer.inputs, layer.outputs) for layer in layers] == [(25088, 4096), (4096, 4096), (4096, 1001)]
    assert layers[0].macs == 25088 * 4096
    assert layers[2].file_bytes == 8 + 4 * (4096 * 1001 + 1001)


def test_the_extra_shortcut_pass_counts_in_the_file_and_not_as_a_sublayer():
    layer = MajorLayer(28, 16, 32, 4, 3, (0,) * 4, pooling=True, shortcuts=(1, 3))
    network = Network((layer, MajorLayer(14, 32, 32, 1, 3, (0,))))
    cost = budget.budget(network)
    plain = budget.budget(replace(network, layers=(replace(layer, shortcuts=()), network.layers[1])))
    assert layer.extra_pass
    assert [s.convolution.name for s in cost.sublayers] == ["conv1_1", "conv1_2", "conv1_3", "conv1_4", "conv2_1"]
    assert cost.rows == plain.rows + 2  # ceil(32 / 16), docs/dat_format.md section 3.3
    assert cost.sublayers[-1].in_units == 14 * 14 * 32 / 3136


def test_without_a_7x7_result_the_maps_before_pooling_are_read():
    cost = budget.budget(Network((MajorLayer(28, 3, 16, 1, 3, (0,), pooling=True),)))
    assert not cost.fc_readout
    assert cost.result_words == 16 * 4 * 128  # four 14x14 tiles of 128 bytes for each channel
