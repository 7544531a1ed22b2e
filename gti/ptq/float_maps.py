"""What the float network has: its maps, sublayer by sublayer, and the caps that 5 bits want for them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from gti.chip.network.types import Convolution, Network
from gti.layers import pooled, upsampled

IMAGES_TOGETHER = 4
# Values of a channel that its cap is chosen from, and caps that are tried, as shares of the largest of them.
VALUES = 40_000
SHARES = np.linspace(0.3, 1.0, 15)
# A channel that is small on all pictures seen may be larger on others: its cap is at least this share of the largest.
SMALLEST_CAP = 1 / 16


def forward(
    maps: np.ndarray,
    filters: np.ndarray,
    biases: np.ndarray,
    *,
    convolution: Convolution,
    network: Network,
    picks: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return (sums at `picks` [positions, out], maps behind ReLU and pooling [N,H,W,out]) of a sublayer in float32.

    `maps`: its input [N,H,W,in]; `picks`: image, row and column of each position of its output before pooling.
    """
    fill = network.layers[convolution.major - 1].upsample_mode if convolution.upsampled else None

    def compute(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        sums = tf.nn.bias_add(tf.nn.conv2d(upsampled(x, fill), filters, strides=1, padding="SAME"), biases)
        result = tf.nn.relu(sums)
        return sums, pooled(result, network.sampling_method) if convolution.pooled else result

    images, rows, columns = picks
    at_picks = np.empty((len(images), filters.shape[3]), np.float32)
    result: np.ndarray | None = None
    for first in range(0, len(maps), IMAGES_TOGETHER):
        sums, after = (t.numpy() for t in compute(tf.constant(maps[first : first + IMAGES_TOGETHER], tf.float32)))
        if result is None:
            result = np.empty((len(maps), *after.shape[1:]), np.float32)
        result[first : first + len(after)] = after
        here = (images >= first) & (images < first + len(after))
        at_picks[here] = sums[images[here] - first, rows[here], columns[here]]
    assert result is not None
    return at_picks, result


def best_caps(maps: np.ndarray, top_code: int, *, one: bool) -> np.ndarray:
    """Return the cap of each channel [C], float64, that leaves the least squared error of codes for `maps` [N,H,W,C].

    `one`: the same for all channels. A map that is 0 throughout has the cap 1.
    """
    values = maps.reshape(-1, maps.shape[3])
    values = values[:: max(1, len(values) // VALUES)]
    largest = np.full(values.shape[1], values.max(), np.float64) if one else values.max(axis=0).astype(np.float64)
    if not largest.max() > 0:
        return np.ones(values.shape[1])
    largest = np.maximum(largest, largest.max() * SMALLEST_CAP)
    caps, least = largest, np.full(len(largest), np.inf)
    for share in SHARES if not one else np.linspace(0.1, 1.0, 37):
        trial = largest * share
        unit = (trial / top_code).astype(np.float32)
        error = np.sum(
            (np.clip(np.floor(values / unit + 0.5), 0, top_code) * unit - values) ** 2, axis=0, dtype=np.float64
        )
        error = np.full(len(largest), error.sum()) if one else np.asarray(error)
        caps, least = np.where(error < least, trial, caps), np.minimum(error, least)
    return np.maximum(caps, caps.max() * SMALLEST_CAP)
