"""What training minimises: a number for each image, from labels and logits."""

from __future__ import annotations

import tensorflow as tf


def smoothed_cross_entropy(labels: tf.Tensor, logits: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Return float32 [batch]: cross entropy with targets that share `smoothing` among all classes, 0 <= smoothing < 1.

    `(1 - s) * -log p[label] + s * mean(-log p)` over the classes, p = softmax(logits) (Szegedy et al. 2016, section 7).
    `labels` int [batch], `logits` float32 [batch, classes].
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not smoothing:
        return losses
    # mean(-log p) is the logarithm of the sum of exponentials less the mean logit.
    uniform = tf.reduce_logsumexp(logits, axis=1) - tf.reduce_mean(logits, axis=1)
    return (1 - smoothing) * losses + smoothing * uniform


def distillation(logits: tf.Tensor, taught: tf.Tensor, temperature: float) -> tf.Tensor:
    """Return float32 [batch]: how far the softened answers are from the teacher's, `T**2 * KL(q || p)`, T > 0.

    `q = softmax(taught / T)`, `p = softmax(logits / T)`; the factor keeps the gradients as large as those of labels
    (Hinton et al. 2015, section 2, whose cross entropy differs by a constant of the teacher's). No gradient to
    `taught`. Both float32 [batch, classes].
    """
    answers = tf.stop_gradient(tf.nn.log_softmax(taught / temperature))
    own = tf.nn.log_softmax(logits / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(answers) * (answers - own), axis=1)
