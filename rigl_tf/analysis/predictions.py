"""Compares solutions by their predictions and by their weights."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.analysis.connectivity import check_weights
from rigl_tf.checks import check_booleans, check_numbers


def disagreement(logits_a: np.ndarray, logits_b: np.ndarray) -> float:
    """The share of examples that two networks classify differently.

    Reference:

    - [Evci et al., 2022](https://arxiv.org/abs/2010.03533), table 2; Fort et al., 2019

    Args:
        logits_a: Array of shape `(examples, classes)`, the logits or probabilities of one network.
        logits_b: Array of the same shape, of the other network on the same examples.

    Returns:
        Float in `[0, 1]`.

    Raises:
        ValueError: If the shapes differ or are not those of logits, or logits are NaN or infinite.
            (For some classes they may be `-inf`.)

    Example:

    >>> disagreement(np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[0.0, 9.0], [0.1, 0.2]]))
    0.5
    """
    a, b = _check_logits([logits_a, logits_b])
    return float(np.mean(a.argmax(axis=1) != b.argmax(axis=1)))


def ensemble_accuracy(
    logits: Sequence[np.ndarray], labels: np.ndarray, from_logits: bool = True
) -> float:
    """The accuracy of the mean prediction of several networks.

    The probabilities are averaged. An ensemble of similar networks is hardly better than one.

    Reference:

    - [Evci et al., 2022](https://arxiv.org/abs/2010.03533), table 2, with five networks

    Args:
        logits: List of arrays of shape `(examples, classes)`, one for each network.
        labels: Integer array of shape `(examples,)` or `(examples, 1)`.
        from_logits: Boolean, `False` if `logits` are probabilities.

    Returns:
        Float in `[0, 1]`.

    Raises:
        ValueError: If there is no network, shapes differ or are not those of logits and labels,
            logits are NaN or infinite, or labels are not numbers of classes. (For some classes
            logits may be `-inf`.)

    Example:

    >>> logits = [np.array([[0.0, 1.0]]), np.array([[3.0, 0.0]])]
    >>> ensemble_accuracy(logits, np.array([0]))
    1.0
    """
    check_booleans(from_logits=from_logits)
    arrays = _check_logits(logits)
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    num_examples, num_classes = arrays[0].shape
    if labels.shape != (num_examples,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be {num_examples} integers, one for each example. "
            f"Received: shape={labels.shape}, dtype={labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"`labels` must be in [0, {num_classes}), the number of classes. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    if from_logits:
        arrays = [tf.nn.softmax(tf.constant(each, tf.float64)).numpy() for each in arrays]
    return float(np.mean(np.mean(arrays, axis=0).argmax(axis=1) == labels))


def _check_logits(logits):
    shapes = [np.shape(each) for each in logits]
    is_known = shapes and len(set(shapes)) == 1 and len(shapes[0]) == 2
    if not is_known or shapes[0][0] < 1 or shapes[0][1] < 2:
        raise ValueError(
            "Logits must be arrays of the same shape `(examples, classes)`, with two classes or "
            f"more, of one network at least. Received: shapes={shapes}"
        )
    arrays = [np.asarray(each) for each in logits]
    is_broken = [
        bool((np.isnan(each) | np.isposinf(each)).any() or np.isneginf(each).all(axis=1).any())
        for each in arrays
    ]
    if any(is_broken):
        raise ValueError(
            "Logits must not be infinite or NaN. Received: infinite or NaN logits of the networks "
            f"{[index for index, broken in enumerate(is_broken) if broken]}"
        )
    return arrays


class SolutionDistance(NamedTuple):
    """The distance of two solutions, on the connections that both have.

    Attributes:
        l2: Float, the L2 norm of the difference.
        cosine: Float in `[-1, 1]`, the cosine similarity.
        angle: Float in `[0, 2]`, `2 * angle / pi`: 0 in the same direction, 1 orthogonal, 2
            opposite.
    """

    l2: float
    cosine: float
    angle: float


def solution_distance(
    model: keras.Model, start: Sequence[np.ndarray], end: Sequence[np.ndarray]
) -> SolutionDistance:
    """The distance of two solutions of a sparse model.

    It is computed over all sparse kernels together, on the connections that are active in both
    solutions. The masks are taken from the given weights, not from the model.

    Reference:

    - [Maene et al., 2021](https://arxiv.org/abs/2106.06955), the distance of two tickets
    - [Evci et al., 2022](https://arxiv.org/abs/2010.03533), section 4.2

    Args:
        model: A built sparse `keras.Model`.
        start: List of arrays as from `model.get_weights()`, one solution.
        end: List of arrays, the other solution.

    Returns:
        A `SolutionDistance`, a named triple of `l2`, `cosine` and `angle`.

    Raises:
        ValueError: If the model has no sparse kernel or CSR kernels, weights do not fit the model,
            or one solution is zero on all common connections, so that there is no angle.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> start = model.get_weights()
    >>> opposite = [array if array.dtype == bool else -array for array in start]
    >>> round(solution_distance(model, start, opposite).angle, 4)
    2.0
    """
    kernels = _masked_kernels(model, "`solution_distance`")
    first, second = (
        dict(zip(map(id, model.weights), check_weights(model, name, weights), strict=True))
        for name, weights in (("start", start), ("end", end))
    )
    a, b = [], []
    for kernel in kernels:
        mask_id = id(masks.mask_of(kernel))
        common = first[mask_id].astype(bool) & second[mask_id].astype(bool)
        a.append(first[id(kernel)][common])
        b.append(second[id(kernel)][common])
    a, b = np.concatenate(a).astype("float64"), np.concatenate(b).astype("float64")
    norms = np.linalg.norm(a), np.linalg.norm(b)
    if not all(0 < norm < math.inf for norm in norms):
        raise ValueError(
            "Two solutions must have common connections, on which both have a finite norm above "
            f"0. Received: norms {norms} on {len(a)} common connections"
        )
    cosine = float(np.clip(a @ b / (norms[0] * norms[1]), -1, 1))
    return SolutionDistance(float(np.linalg.norm(a - b)), cosine, 2 * math.acos(cosine) / math.pi)


def repel(
    model: keras.Model, solutions: Sequence[Sequence[np.ndarray]], weight: float = 2.0
) -> None:
    """Adds a loss to a model that repels training from known solutions, or attracts it to them.

    The loss is `weight / len(solutions) * sum(cos(kernels, solution) ** 2)`, with the cosine over
    all sparse kernels together, on the active connections of the model. It is a regularisation loss
    of the model, so `fit` adds it to any other loss. It is not saved with the model.

    Reference:

    - [Maene et al., 2021](https://arxiv.org/abs/2106.06955), its loss `J_r`: a ticket that is
      repelled loses accuracy if it relies on the region that it was found in

    Args:
        model: A built sparse `keras.Model`. It is changed in place; compile it afterwards.
        solutions: List of solutions, each a list of arrays as from `model.get_weights()`. They
            replace the solutions of earlier calls; an empty list removes the loss.
        weight: Finite number. The paper repels with 2 and attracts with -1.

    Raises:
        ValueError: If the model has no sparse kernel or CSR kernels, `weight` is not a finite
            number, or solutions are not finite or do not fit the model.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> repel(model, [model.get_weights()])
    >>> round(float(model.losses[0]), 4)
    2.0
    """
    # Keras computes the losses of trainable weights only.
    first, *others = sorted(_masked_kernels(model, "`repel`"), key=lambda k: not k.trainable)
    check_numbers("(-inf, inf)", weight=weight)
    indices = {id(variable): index for index, variable in enumerate(model.weights)}
    known = [
        [arrays[indices[id(kernel)]] for kernel in (first, *others)]
        for arrays in (
            check_weights(model, f"solutions[{k}]", weights) for k, weights in enumerate(solutions)
        )
    ]
    for index, arrays in enumerate(known):
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError(
                f"Solutions must be finite. Received: NaN or inf in solutions[{index}]"
            )
    for kernel in (first, *others):  # in an earlier call, another kernel may have been the first
        if isinstance(kernel.regularizer, _Repellent):
            kernel.regularizer = kernel.regularizer.regularizer
    if known:
        first.regularizer = _Repellent(others, known, weight, first.regularizer)


class _Repellent(keras.regularizers.Regularizer):
    """The loss of `repel`, as the regularizer of one of the sparse kernels.

    Args:
        others: The other sparse kernels.
        solutions: List of lists of arrays: one for this kernel, then one for each other kernel.
        weight: Number.
        regularizer: The kernel's own, or `None`.
    """

    def __init__(self, others, solutions, weight, regularizer):
        self.others = others
        self.solutions = [[tf.constant(a, tf.float32) for a in arrays] for arrays in solutions]
        self.weight = weight
        self.regularizer = regularizer

    def __call__(self, kernel):
        kernels = [kernel, *self.others]
        values = [tf.cast(tf.convert_to_tensor(each), tf.float32) for each in kernels]
        loss = tf.add_n([_squared_cosine(values, kernels, each) for each in self.solutions])
        loss *= self.weight / len(self.solutions)
        if tf.as_dtype(kernel.dtype) == tf.float64:  # Keras adds it to losses that are float64, too
            loss = tf.cast(loss, "float64")
        return loss if self.regularizer is None else loss + self.regularizer(kernel)


def _squared_cosine(values, kernels, solution):
    """The squared cosine of values and a solution on active connections; 0 if one is zero there."""
    masked = [
        masks.masked(array, masks.mask_of(kernel))
        for array, kernel in zip(solution, kernels, strict=True)
    ]
    product = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(values, masked, strict=True)])
    squares = [tf.add_n([tf.reduce_sum(a * a) for a in arrays]) for arrays in (values, masked)]
    return tf.math.divide_no_nan(product**2, squares[0] * squares[1])


def _masked_kernels(model, caller):
    kernels = masks.check_sparse(model, caller)
    masks.check_masked(model, caller)
    return [kernel.variable for kernel in kernels.values()]
