"""Networks with random integer weights for the emulator's tests; sizes and channels are free of the chip's rules."""

from __future__ import annotations

import numpy as np
from golden import generators

from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network


def layer(size: int, inputs: int, outputs: int, shifts: tuple[int, ...], **options) -> MajorLayer:
    """Return a major layer of len(shifts) sublayers; `options` are fields of MajorLayer."""
    options = {"coef_bits": 3, **options}
    return MajorLayer(
        image_size=size,
        input_channels=inputs,
        output_channels=outputs,
        sublayer_number=len(shifts),
        scaling=shifts,
        **options,
    )


def lively_weights(network: Network, seed: int) -> list[ConvolutionWeights]:
    """Return weights of generator B of the golden cases: activations neither die nor saturate."""
    config = {
        "layer": [
            {
                "coef_bits": major.coef_bits,
                "input_channels": major.input_channels,
                "output_channels": major.output_channels,
                "scaling": major.scaling,
            }
            for major in network.layers
        ]
    }
    return [ConvolutionWeights(*layer_weights) for layer_weights in generators.lively_weights(config, seed)]


def images(network: Network, count: int, seed: int) -> np.ndarray:
    """Return random 8-bit images, uint8 [count, H, W, C]."""
    return np.random.RandomState(seed).randint(0, 256, size=(count, *network.input_shape)).astype(np.uint8)


def reference(
    network: Network, weights: list[ConvolutionWeights], pixels: np.ndarray, upsample_fill: str | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the codes int64 [N, C, H, W] of every sublayer before pooling, and the output, by the formulas.

    In 64-bit integers, without the kit's arithmetic: docs/emulator.md section 1, docs/numerics.md section 6.
    """
    codes = np.minimum((pixels.astype(np.int64) // 4 + 1) // 2, 31)
    found = []
    for conv, (filters, biases, shift) in zip(
        network.convolutions, ((w.filters, w.biases, w.shift) for w in weights), strict=True
    ):
        if conv.upsampled:
            fill = upsample_fill or network.layers[conv.major - 1].upsample_mode
            window = np.ones((2, 2), np.int64) if fill == "repeat" else np.array([[1, 0], [0, 0]])
            codes = np.einsum("nyxc,ab->nyaxbc", codes, window).reshape(
                len(codes), 2 * codes.shape[1], 2 * codes.shape[2], -1
            )
        size = codes.shape[1]
        padded = np.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = np.stack([padded[:, y : y + size, x : x + size] for y in range(3) for x in range(3)], axis=-1)
        taps = filters.astype(np.int64).reshape(len(filters), -1)  # [out, in * 9]
        accumulators = patches.reshape(len(codes), size, size, -1) @ taps.T + biases
        factor, top = (32, 1023) if conv.ten_bit else (1, 31)
        # round half up of accumulator * factor / 2**shift
        codes = np.clip((2 * factor * accumulators + 2**shift) // 2 ** (shift + 1), 0, top)
        found.append(codes.transpose(0, 3, 1, 2))
        if conv.pooled:
            windows = codes.reshape(len(codes), size // 2, 2, size // 2, 2, -1)
            codes = windows[:, :, 0, :, 0] if network.sampling_method == 1 else windows.max(axis=(2, 4))
    return found, codes.transpose(0, 3, 1, 2)
