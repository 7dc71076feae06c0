"""Corrupted data, masks and weights for the sanity checks; random and hybrid tickets."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from rigl_tf import distributions, pruning
from rigl_tf._types import Masks
from rigl_tf.checks import check_integers, check_numbers
from rigl_tf.masks import as_booleans, check_sparse, kernels_of


def corrupt_labels(
    labels: np.ndarray, probability: float, num_classes: int, seed: int = 0
) -> np.ndarray:
    """Replaces labels by random labels.

    Reference:

    - [Su et al., 2020](https://arxiv.org/abs/2009.11094), with a probability of 1

    Args:
        labels: Array of integers in `[0, num_classes)`.
        probability: Number in `[0, 1]`, the probability that a label is replaced. The new label is
            any class with equal probability, also the old one.
        num_classes: Integer >= 1. The dtype of the labels must be able to hold `num_classes - 1`.
        seed: Integer >= 0. The result depends on it.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> corrupt_labels(np.array([2, 2, 2, 2]), 0.0, num_classes=3)
    array([2, 2, 2, 2])
    >>> corrupt_labels(np.array([2, 2, 2, 2]), 1.0, num_classes=3).shape
    (4,)
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`labels` must be integers. Received: dtype={labels.dtype}")
    check_numbers("[0, 1]", probability=probability)
    check_integers(1, num_classes=num_classes)
    if num_classes - 1 > np.iinfo(labels.dtype).max:
        raise ValueError(
            "The dtype of `labels` must hold all classes. "
            f"Received: dtype={labels.dtype}, num_classes={num_classes}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            "`labels` must be in [0, `num_classes`). "
            f"Received: from {labels.min()} to {labels.max()}, num_classes={num_classes}"
        )
    is_table = labels.size and labels.ndim > 1 and labels.shape[-1] == num_classes > 1
    if is_table and labels.max() == 1 and (labels.sum(axis=-1) == 1).all():
        raise ValueError(
            f"`labels` must be integers, not one-hot. Received: shape={labels.shape}, "
            f"num_classes={num_classes}"
        )
    check_integers(0, seed=seed)
    rng = np.random.default_rng(seed)
    chosen = rng.random(labels.shape) < probability
    drawn = rng.integers(num_classes, size=labels.shape)
    return np.where(chosen, drawn, labels).astype(labels.dtype)


def shuffle_pixels(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Permutes the entries of each image, including channels, in a different way for each image.

    Reference:

    - [Su et al., 2020](https://arxiv.org/abs/2009.11094), always together with random labels

    Args:
        images: Array of shape `(number, ...)`.
        seed: Integer >= 0. The permutations depend on it.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> sorted(shuffle_pixels(np.arange(6).reshape(1, 2, 3)).ravel().tolist())
    [0, 1, 2, 3, 4, 5]
    """
    images = np.asarray(images)
    if images.ndim < 2:
        raise ValueError(
            f"`images` must have the shape `(number, ...)`. Received: shape={images.shape}"
        )
    check_integers(0, seed=seed)
    rows = images.reshape(len(images), -1)
    return np.random.default_rng(seed).permuted(rows, axis=1).reshape(images.shape)


def half_dataset(data: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Returns the first half of the examples.

    Args:
        data: Tuple or list of arrays of the same length, such as `(inputs, labels)`.

    Returns:
        Tuple of arrays of length `floor(length / 2)`.

    Raises:
        ValueError: If `data` is something else.

    Example:

    >>> half_dataset((np.array([10, 20, 30, 40]), np.array([1, 2, 3, 4])))
    (array([10, 20]), array([1, 2]))
    """
    arrays = [np.asarray(array) for array in data] if isinstance(data, (tuple, list)) else []
    lengths = {array.shape[:1] for array in arrays}
    if len(lengths) != 1 or () in lengths:
        received = [array.shape for array in arrays] or type(data).__name__
        raise ValueError(
            "`data` must be a tuple of arrays of one length, such as `(inputs, labels)`. "
            f"Received: {received}"
        )
    return tuple(array[: len(array) // 2] for array in arrays)


def rearrange_masks(masks: Mapping[Any, np.ndarray], seed: int = 0) -> Masks:
    """Permutes each mask, so only the number of active connections of each kernel is kept.

    This gives a random ticket with the same counts as the given one. Structures
    (`rigl_tf.structures`) are not kept.

    Reference:

    - [Su et al., 2020](https://arxiv.org/abs/2009.11094), layerwise rearranging

    Args:
        masks: `{kernel path: mask}` as from `rigl_tf.get_masks`.
        seed: Integer >= 0. The permutations depend on it and on the index of the mask.

    Returns:
        New masks, for `rigl_tf.set_masks`.

    Raises:
        ValueError: If masks are not masks, or `seed` is out of its range.

    Example:

    >>> mask = rearrange_masks({"kernel": np.array([[True, False], [False, False]])})["kernel"]
    >>> mask.shape, int(mask.sum())
    ((2, 2), 1)
    """
    check_integers(0, seed=seed)
    return {
        path: _permuted(mask.ravel(), seed, index).reshape(mask.shape)
        for index, (path, mask) in enumerate(as_booleans(masks).items())
    }


def check_unstructured(model: keras.Model, caller: str, remedy: str) -> None:
    """Raises a `ValueError` if kernels have structures, which `rearrange_masks` does not keep.

    Args:
        model: A sparse `keras.Model`.
        caller: String, the beginning of the error message.
        remedy: String, what to do instead.
    """
    found = {
        path: str(kernel.units.structure)
        for path, kernel in kernels_of(model).items()
        if kernel.units.structure is not None
    }
    if found:
        raise ValueError(
            f"{caller} cannot rearrange the masks of kernels with a structure: {remedy}. "
            f"Received: {found}"
        )


def shuffle_weights(model: keras.Model, seed: int = 0) -> None:
    """Permutes the active weights of each sparse kernel among themselves, in place.

    Masks, biases and dense weights stay as they are.

    Reference:

    - [Su et al., 2020](https://arxiv.org/abs/2009.11094), layerwise weight shuffling

    Args:
        model: A built sparse `keras.Model`.
        seed: Integer >= 0. The permutations depend on it and on the index of the kernel.

    Raises:
        ValueError: If the model has no sparse kernel, or the seed is out of its range.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.75)
    >>> shuffle_weights(model, seed=1)
    """
    kernels = check_sparse(model, "`shuffle_weights`")
    check_integers(0, seed=seed)
    for index, kernel in enumerate(kernels.values()):
        values, active = np.array(kernel.numpy()), kernel.mask
        values[active] = _permuted(values[active], seed, index)
        kernel.assign(values)


def random_ticket(
    model: keras.Model,
    sparsity: float,
    residual: bool,
    linear_density: float | None = 0.3,
    seed: int = 0,
) -> Masks:
    """Returns random masks with the numbers of active connections of the smart ratio.

    Nothing is learned for them.

    Reference:

    - [Su et al., 2020](https://arxiv.org/abs/2009.11094), random tickets

    Args:
        model: A built sparse `keras.Model`, made with `sparsify(model, 0.0)`.
        sparsity: Share of zeros, see `rigl_tf.distributions.smart_ratio`. For random masks with
            other counts, use `rigl_tf.pruning.random_masks`.
        residual: Boolean, whether the network has residual connections.
        linear_density: Share of the weights that each linear layer keeps, see
            `rigl_tf.distributions.smart_ratio`.
        seed: Integer. See `rigl_tf.pruning.random_masks`.

    Returns:
        `{kernel path: mask}`, for `rigl_tf.set_masks`.

    Example:

    >>> layers = [keras.layers.Conv2D(16, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    >>> model = keras.Sequential([keras.Input((3, 3, 1)), *layers])
    >>> ticket = random_ticket(rigl_tf.sparsify(model, 0.0), 0.8, residual=False)
    >>> [int(mask.sum()) for mask in ticket.values()]
    [26, 9]
    """
    distribution = _smart(residual, linear_density)
    return pruning.random_masks(model, sparsity, distribution, seed)


def hybrid_ticket(
    model: keras.Model, sparsity: float, residual: bool, linear_density: float | None = 0.3
) -> Masks:
    """Returns masks of the largest weights, with the numbers of connections of the smart ratio.

    Reference:

    - [Su et al., 2020](https://arxiv.org/abs/2009.11094), hybrid tickets: the weights stay, and
      the learning rate is rewound

    Args:
        model: A built and trained sparse `keras.Model`.
        sparsity: Share of zeros, see `rigl_tf.distributions.smart_ratio`.
        residual: Boolean, whether the network has residual connections.
        linear_density: Share of the weights that each linear layer keeps, see
            `rigl_tf.distributions.smart_ratio`.

    Returns:
        `{kernel path: mask}`, for `rigl_tf.set_masks`.

    Example:

    >>> layers = [keras.layers.Conv2D(16, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    >>> model = keras.Sequential([keras.Input((3, 3, 1)), *layers])
    >>> ticket = hybrid_ticket(rigl_tf.sparsify(model, 0.0), 0.8, residual=False)
    >>> [int(mask.sum()) for mask in ticket.values()]
    [26, 9]
    """
    return pruning.magnitude_masks(model, sparsity, _smart(residual, linear_density))


def _permuted(values, seed, index):
    return np.random.default_rng((seed, index)).permutation(values)


def _smart(residual, linear_density):
    return functools.partial(
        distributions.smart_ratio, residual=residual, linear_density=linear_density
    )
