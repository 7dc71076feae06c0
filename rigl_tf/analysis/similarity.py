"""Measures how similar two sets of weights are, by their largest weights."""

import dataclasses
import math
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import masks, selection, walk
from rigl_tf.checks import check_numbers
from rigl_tf.layers import eligibility


@dataclasses.dataclass(frozen=True)
class WeightCorrelation:
    """The correlation of two networks' weights. `print` shows a Markdown table.

    Attributes:
        layers: `{kernel path: float}`, the share of the largest weights of each kernel that are the
            largest in both networks.
        total: Float, the same share over all kernels together.
        chance: Float, the average of `total` for unrelated networks. It is `p`, except for rounding
            of counts.
        tolerance: Number, the largest distance from `chance` that still counts as weak.
    """

    layers: dict[str, float]
    total: float
    chance: float
    tolerance: float

    @property
    def verdict(self) -> str:
        """`"weak"` if `total` is near `chance`, else `"positive"` or `"negative"`."""
        if abs(self.total - self.chance) <= self.tolerance:
            return "weak"
        return "positive" if self.total > self.chance else "negative"

    def __str__(self):
        rows = [f"| {path} | {value:.4f} |" for path, value in self.layers.items()]
        total = f"| all kernels: {self.verdict}, chance {self.chance:.4f} | {self.total:.4f} |"
        return "\n".join(["| kernel | correlation |", "|---|---|", *rows, total])


def weight_correlation(
    a: keras.layers.Layer | Mapping[str, np.ndarray],
    b: keras.layers.Layer | Mapping[str, np.ndarray],
    p: float = 0.2,
    *,
    masks_a: Mapping[str, np.ndarray] | None = None,
    masks_b: Mapping[str, np.ndarray] | None = None,
    tolerance: float = 0.01,
) -> WeightCorrelation:
    """The share of the largest weights that two networks have in common.

    `R_p = sum(|T(a) & T(b)|) / sum(|T|)` over the kernels. Here `T` is the set of positions of the
    largest weights of a kernel: the share `p` of its `N` weights, `round(p * N)` and at least one.
    `N` is the number of all weights of the kernel. If both networks are sparse with the same masks,
    it is the number of active weights. Only active weights are ranked; among equal magnitudes, the
    lower index comes first.

    Reference:

    - [Liu et al., 2021](https://arxiv.org/abs/2102.11068), section 3. They call 0.204 at `p = 0.2`
      weak, but do not say what is positive; `tolerance` is the choice of this library.

    Args:
        a: A built `keras.Model`, or its kernels as `{path: array}`, see `get_kernels`.
        b: A model or kernels with the same shapes. Kernels are compared in their order.
        p: Number in `(0, 1)`. If only one of the networks is sparse, it must be below the share of
            active weights of each kernel.
        masks_a: `{path: mask}`, the active weights of `a`, for sparse kernels. Defaults to the
            masks of a model, or to the weights of arrays that are not zero.
        masks_b: The same for `b`.
        tolerance: Number >= 0, see `WeightCorrelation`. For small kernels, random differences can
            be larger.

    Returns:
        A `WeightCorrelation`, with `layers`, `total`, `chance` and `verdict`.

    Raises:
        ValueError: If an argument is out of its range, the kernels have different shapes or are not
            finite, both networks are sparse with different masks, or `p` is larger than the share
            of active weights.

    Example:

    >>> before = {"kernel": np.array([5.0, 4.0, 3.0, 2.0, 1.0])}
    >>> after = {"kernel": np.array([5.0, 1.0, -6.0, 2.0, 1.0])}
    >>> result = weight_correlation(before, after, p=0.4)
    >>> result.total, result.verdict
    (0.5, 'positive')
    """
    check_numbers("(0, 1)", p=p)
    check_numbers("[0, inf]", tolerance=tolerance)
    kernels_a, left_a = _kernels_and_masks("a", a, masks_a)
    kernels_b, left_b = _kernels_and_masks("b", b, masks_b)
    _check_shapes(kernels_a, kernels_b)
    common, sizes, counts = {}, {}, {}
    for path, other in zip(kernels_a, kernels_b, strict=True):
        sizes[path] = _num_ranked(path, left_a[path], left_b[other])
        counts[path] = max(1, round(p * sizes[path]))
        tops = [
            _largest(path, kernel, left, counts[path], sizes[path])
            for kernel, left in (
                (kernels_a[path], left_a[path]),
                (kernels_b[other], left_b[other]),
            )
        ]
        common[path] = int(np.count_nonzero(tops[0] & tops[1]))
    num = sum(counts.values())
    return WeightCorrelation(
        layers={path: common[path] / counts[path] for path in common},
        total=sum(common.values()) / num,
        chance=math.fsum(counts[path] ** 2 / sizes[path] for path in counts) / num,
        tolerance=tolerance,
    )


def get_kernels(model: keras.layers.Layer) -> dict[str, np.ndarray]:
    """Returns copies of the kernels of a model, for example to compare them with later values.

    Args:
        model: A built `keras.Model` or layer, dense or sparse.

    Returns:
        `{path: array}` of all weights that `rigl_tf.sparsify` would make sparse, in their order.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> [kernel.shape for kernel in get_kernels(model).values()]
    [(8, 4)]
    """
    return {path: np.array(kernel.numpy()) for path, kernel in _kernels(model).items()}


def _kernels(model):
    """`{path: kernel}`, where a kernel is a `SparseKernel`, or the variable of a dense one."""
    return masks.by_path(
        masks.kernel_of(weight) or weight
        for weight, around in walk.layers_of_weights(model)
        if masks.kernel_of(weight) or eligibility.dense_reason(around[-1], weight) is None
    )


def _kernels_and_masks(name, network, kernel_masks):
    """The kernels of a network, and for each of them which weights are active."""
    if isinstance(network, keras.layers.Layer):
        kernels = get_kernels(network)
        left = {path: np.ones(kernel.shape, bool) for path, kernel in kernels.items()}
        by_id = {id(kernel): path for path, kernel in _kernels(network).items()}
        for kernel in masks.kernels_of(network).values():
            left[by_id[id(kernel)]] = kernel.mask
    elif isinstance(network, Mapping):
        kernels = {path: np.asarray(kernel) for path, kernel in network.items()}
        left = {path: kernel != 0 for path, kernel in kernels.items()}
    else:
        raise ValueError(
            f"`{name}` must be a `keras.Model` or its kernels, `{{path: array}}`. "
            f"Received: {type(network).__name__}"
        )
    if not kernels:
        raise ValueError(f"`{name}` must have at least one kernel. Received: none")
    kernel_masks = {} if kernel_masks is None else kernel_masks
    if not isinstance(kernel_masks, Mapping):
        raise ValueError(
            f"`masks_{name}` must be a dictionary `{{path: mask}}`. "
            f"Received: {type(kernel_masks).__name__}"
        )
    for path, mask in kernel_masks.items():
        if path not in kernels or np.shape(mask) != kernels[path].shape:
            shapes = {path: kernel.shape for path, kernel in kernels.items()}
            raise ValueError(
                f"`masks_{name}` must be masks of the kernels {shapes}. "
                f"Received: {path!r} of shape {np.shape(mask)}"
            )
        if not np.isin(mask, (0, 1)).all():
            raise ValueError(
                f"`masks_{name}` must contain booleans, or the numbers 0 and 1. "
                f"Received: other values for {path!r}"
            )
        left[path] = np.asarray(mask, dtype=bool)
    broken = [path for path, kernel in kernels.items() if not np.isfinite(kernel).all()]
    if broken:
        raise ValueError(
            f"The kernels of `{name}` must be finite. Received: NaN or inf in {broken}"
        )
    return kernels, left


def _num_ranked(path, left_a, left_b):
    """The number of weights that `p` is a share of."""
    if left_a.all() or left_b.all():
        return left_a.size
    if not np.array_equal(left_a, left_b):
        raise ValueError(
            "Two sparse networks must have the same masks, or one of them must be dense. "
            f"Received: {path!r}, where the masks differ in {np.count_nonzero(left_a != left_b)} "
            "places"
        )
    return int(np.count_nonzero(left_a))


def _largest(path, kernel, left, count, size):
    num_left = int(np.count_nonzero(left))
    if not num_left or (num_left < size and count >= num_left):
        raise ValueError(
            "To compare a sparse network with a dense one, `p` must be below the share of active "
            f"weights in each kernel. Received: {path!r} with {num_left} of {left.size} active, "
            f"and the {count} largest were requested"
        )
    scores = tf.abs(tf.cast(kernel, tf.float32) if kernel.dtype != np.float64 else kernel)
    return selection.keep(left, scores, count).numpy()


def _check_shapes(kernels_a, kernels_b):
    shapes_a = [kernel.shape for kernel in kernels_a.values()]
    shapes_b = [kernel.shape for kernel in kernels_b.values()]
    if shapes_a != shapes_b:
        raise ValueError(
            "The kernels of `a` and `b` must have the same shapes in the same order. "
            f"Received: {shapes_a} and {shapes_b}"
        )
