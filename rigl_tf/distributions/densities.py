"""The distributions that are given by a formula, and the choice of a distribution by name."""

import collections
import math
from collections.abc import Callable, Mapping

import keras

from rigl_tf._types import Distribution, Shapes
from rigl_tf.checks import (
    LARGEST_SPARSITY,
    check_booleans,
    check_integers,
    check_numbers,
    check_shapes,
    check_sparsity,
)
from rigl_tf.distributions import published


def num_zeros(size: int, sparsity: float) -> int:
    """The number of zeros among `size` weights: `floor(sparsity * size)`.

    For `size >= 1` it is below `size`, so at least one weight stays active.

    Args:
        size: Integer >= 0, the number of weights of a kernel.
        sparsity: Share of zeros, in `[0, 1)`.

    Returns:
        Integer.

    Raises:
        ValueError: If `size` or `sparsity` is out of its range.

    Example:

    >>> num_zeros(1000, 0.9)
    900
    >>> num_zeros(100, 0.29)  # in floats 0.29 * 100 = 28.999999999999996
    28
    """
    check_integers(0, size=size)
    return math.floor(check_sparsity(sparsity) * int(size))


@keras.saving.register_keras_serializable(package="rigl_tf")
def uniform(
    shapes: Shapes,
    sparsity: float,
    *,
    dense_first: bool = True,
    custom: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Gives every kernel the same sparsity, except the first one, which stays dense.

    As in the paper, the other kernels do not get a higher sparsity to compensate for the dense one.
    So the sparsity of the whole model is a little below `sparsity`.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 3, "Uniform"

    Args:
        shapes: Ordered `{path: shape}` in Keras layout.
        sparsity: Share of zeros of each kernel, in `[0, 1)`.
        dense_first: Boolean, whether the first kernel stays dense. A single kernel always becomes
            sparse.
        custom: `None`, or `{path: sparsity}` for kernels with their own sparsity, in `[0, 1)`. It
            goes before `dense_first`.

    Returns:
        `{path: sparsity}`.

    Raises:
        ValueError: If an argument is out of its range or `custom` has an unknown path.

    Example:

    >>> uniform({"conv": (3, 3, 3, 16), "dense": (16, 10)}, 0.8)
    {'conv': 0.0, 'dense': 0.8}
    """
    shapes = check_shapes(shapes)
    check_booleans(dense_first=dense_first)
    result = dict.fromkeys(shapes, check_sparsity(sparsity))
    if dense_first and len(shapes) > 1:
        result[next(iter(shapes))] = 0.0
    return result | _checked_custom(custom, shapes)


@keras.saving.register_keras_serializable(package="rigl_tf")
def erdos_renyi(
    shapes: Shapes, sparsity: float, *, custom: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Gives a higher sparsity to kernels with more inputs and outputs (Erdős-Rényi, ER).

    The density of a kernel is `epsilon * (n_in + n_out) / (n_in * n_out)`, where `n_in` and `n_out`
    are the last two dimensions of its shape; the height and width of a convolution are not used.
    For kernels with two dimensions it equals `erk`, which explains `epsilon`.

    Reference:

    - [Mocanu et al., 2018](https://arxiv.org/abs/1707.04780), Erdős-Rényi topology
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 3, "Erdős-Rényi"

    Args:
        shapes: Ordered `{path: shape}` in Keras layout. For a kernel with one dimension, the
            fraction is 1.
        sparsity: Share of zeros over all kernels that are not in `custom`, in `[0, 1)`.
        custom: `None`, or `{path: sparsity}` for kernels with their own sparsity, as in `erk`.

    Returns:
        `{path: sparsity}`.

    Raises:
        ValueError: If an argument is out of its range or `custom` has an unknown path.

    Example:

    >>> result = erdos_renyi({"conv": (3, 3, 16, 32), "dense": (32, 10)}, 0.8)
    >>> {path: round(value, 3) for path, value in result.items()}
    {'conv': 0.805, 'dense': 0.727}
    """
    shapes = check_shapes(shapes)
    ratios = {path: _ratio(shape[-2:], 1.0) for path, shape in shapes.items()}
    return _share_out(shapes, sparsity, ratios, _checked_custom(custom, shapes))


@keras.saving.register_keras_serializable(package="rigl_tf")
def erk(
    shapes: Shapes,
    sparsity: float,
    *,
    power: float = 1.0,
    custom: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Gives a higher sparsity to larger kernels (Erdős-Rényi-Kernel, ERK).

    The density of a kernel is `epsilon * (sum(shape) / prod(shape)) ** power`. `epsilon` is chosen
    so that all kernels together have the share `sparsity` of zeros. If this density exceeds 1, the
    kernel is dense and the others become sparser. Because of rounding to whole weights, a kernel
    may have one active weight more.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 3, "ERK"

    Args:
        shapes: Ordered `{path: shape}` in Keras layout.
        sparsity: Share of zeros over all kernels that are not in `custom`, in `[0, 1)`.
        power: Finite real number >= 0. With 0 all kernels have the same sparsity; the paper uses 1.
        custom: `None`, or `{path: sparsity}` for kernels with their own sparsity, in `[0, 1)`. They
            do not count in `sparsity`, which all other kernels reach together.

    Returns:
        `{path: sparsity}`.

    Raises:
        ValueError: If an argument is out of its range, `custom` has an unknown path, or `power` is
            so large that the densities cannot be written as floats.

    Example:

    >>> lenet = {"fc1": (784, 300), "fc2": (300, 100), "fc3": (100, 10)}
    >>> {path: round(value, 4) for path, value in erk(lenet, 0.9).items()}
    {'fc1': 0.9204, 'fc2': 0.7698, 'fc3': 0.0}
    """
    shapes = check_shapes(shapes)
    ratios = {path: _ratio(shape, power) for path, shape in shapes.items()}
    return _share_out(shapes, sparsity, ratios, _checked_custom(custom, shapes))


@keras.saving.register_keras_serializable(package="rigl_tf")
def str_resnet50(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Gives the kernels of ResNet-50 the sparsities that STR learned on ImageNet.

    There are sixteen lists, each for one overall sparsity; other sparsities are not possible. Each
    kernel has its own sparsity, also the first and the last one. Kernels with the same shape are
    taken in their order. In the first block, the shortcut has the same shape as the last
    convolution, and must come after it.

    Reference:

    - [Kusupati et al., 2020](https://arxiv.org/abs/2002.03231), Soft Threshold Reparameterization

    Args:
        shapes: Ordered `{path: shape}` in Keras layout: the 54 kernels of ResNet-50 for ImageNet.
        sparsity: One of 0.7955, 0.8127, 0.877, 0.9023, 0.9055, 0.948, 0.9503, 0.9515, 0.9611,
            0.9653, 0.9778, 0.9805, 0.9822, 0.9879, 0.9898, 0.991. It is the published share of
            zeros over all kernels; the share by the list differs by less than 0.0001.

    Returns:
        `{path: sparsity}`.

    Raises:
        ValueError: If `sparsity` is not one of these, or `shapes` are not those of ResNet-50.
    """
    shapes = check_shapes(shapes)
    if check_sparsity(sparsity) not in published.LISTS:
        raise ValueError(
            f"STR's lists have an overall `sparsity` of {list(published.LISTS)}. "
            f"Received: sparsity={sparsity!r}"
        )
    missing: collections.Counter[tuple[int, ...]] = collections.Counter(published.SHAPES)
    missing.subtract(shapes.values())
    if any(missing.values()):
        difference = {shape: -count for shape, count in missing.items() if count}
        raise ValueError(
            f"STR's lists are for the {len(published.SHAPES)} kernels of ResNet-50 on ImageNet. "
            f"Received: {len(shapes)} kernels, more (or fewer, if negative): {difference}"
        )
    values = collections.defaultdict(list)
    for shape, value in zip(published.SHAPES, published.LISTS[float(sparsity)], strict=True):
        values[shape].append(value)
    return {path: values[shape].pop(0) for path, shape in shapes.items()}


_BY_NAME = {
    "uniform": uniform,
    "erdos_renyi": erdos_renyi,
    "erk": erk,
    "str_resnet50": str_resnet50,
}


def get(identifier: Distribution) -> Callable[..., Mapping[str, float]]:
    """Returns the distribution with a name.

    Args:
        identifier: `"uniform"`, `"erdos_renyi"`, `"erk"` or `"str_resnet50"`, or a callable, which
            is returned itself.

    Returns:
        A callable `fn(shapes, sparsity) -> {path: sparsity}`.

    Raises:
        ValueError: If `identifier` is neither one of these names nor callable.
    """
    if isinstance(identifier, str) and identifier in _BY_NAME:
        return _BY_NAME[identifier]
    if callable(identifier):
        return identifier
    raise ValueError(
        f"A distribution must be one of {list(_BY_NAME)} or a callable `fn(shapes, sparsity)`. "
        f"Received: identifier={identifier!r}"
    )


def allocate(identifier: Distribution, shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Calls a distribution, and checks its result.

    Args:
        identifier: The name of a distribution, or a callable, see `get`.
        shapes: Ordered `{path: shape}` in Keras layout.
        sparsity: Share of zeros over all kernels, in `[0, 1)`.

    Returns:
        `{path: sparsity}` with Python floats, in the order of `shapes`.

    Raises:
        ValueError: If an argument is out of its range; or if the result is not a mapping, lacks a
            path, has an unknown path, or has a value that is not a number in `[0, 1)`.

    Example:

    >>> allocate(lambda shapes, sparsity: dict.fromkeys(shapes, sparsity), {"a": (4, 4)}, 0.5)
    {'a': 0.5}
    """
    shapes = check_shapes(shapes)
    result = get(identifier)(dict(shapes), check_sparsity(sparsity))
    result = _checked_by_path("The result of a distribution", result, shapes)
    missing = [path for path in shapes if path not in result]
    if missing:
        rule = "The result of a distribution must have a sparsity for every kernel."
        raise ValueError(f"{rule} Received: {list(result)}, without {missing}")
    return result


def _ratio(shape, power):
    """`(sum / prod) ** power`, with a `ValueError` near the limits of floats."""
    check_numbers("[0, inf)", power=power)
    ratio = sum(shape) / math.prod(shape)
    if abs(math.log10(ratio)) * power > 200:
        raise ValueError(f"`power` is too large for the shape {shape}. Received: power={power!r}")
    return ratio ** float(power)


def _share_out(shapes, sparsity, ratios, custom):
    """Solves `sum(min(1, epsilon * ratio) * size) = budget` for `epsilon`.

    In each pass, the kernels with the largest ratio become dense, until no density exceeds 1. The
    rest of the budget stays positive, because the other kernels have a part of it.
    """
    sparsity = check_sparsity(sparsity)
    sizes = {path: math.prod(shape) for path, shape in shapes.items() if path not in custom}
    zeros = sum(num_zeros(size, sparsity) for size in sizes.values())
    budget = sum(sizes.values()) - zeros
    result = dict.fromkeys(shapes, 0.0) | custom
    # Without a zero, all kernels are dense. (Rounding of `epsilon` could make the loop fail then.)
    rest = list(sizes) if zeros else []
    while rest:
        divisor = 0.0  # not `sum`, whose rounding changed with Python 3.12
        for path in rest:
            divisor += ratios[path] * sizes[path]
        epsilon = budget / divisor
        largest = max(ratios[path] for path in rest)
        if epsilon * largest <= 1:
            sparse = {path: min(1.0 - epsilon * ratios[path], LARGEST_SPARSITY) for path in rest}
            return result | sparse
        budget -= sum(sizes[path] for path in rest if ratios[path] == largest)
        rest = [path for path in rest if ratios[path] != largest]
    return result


def _checked_custom(custom, shapes):
    return {} if custom is None else _checked_by_path("`custom`", custom, shapes)


def _checked_by_path(name, values, shapes):
    """`values` in the order of `shapes`, without unknown paths, each a float in `[0, 1)`."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} must map paths to sparsities. Received: {values!r}")
    unknown = [path for path in values if path not in shapes]
    if unknown:
        raise ValueError(f"{name} must only name kernels of {list(shapes)}. Received: {unknown}")
    return {path: check_sparsity(values[path], repr(path)) for path in shapes if path in values}
