"""The distribution of random tickets: the deeper a layer, the lower its density."""

import math
from fractions import Fraction

import keras

from rigl_tf._types import Shapes
from rigl_tf.checks import (
    check_booleans,
    check_choice,
    check_numbers,
    check_shapes,
    check_sparsity,
)

# The density of a layer, up to a factor, by its number counted from the first and the last layer.
_DECAYS = {
    "quadratic": lambda first, last: last**2 + last,
    "linear": lambda first, last: last,
    "cubic": lambda first, last: last**3,
    "ascending": lambda first, last: first**2 + first,
    "uniform": lambda first, last: 1,
}


@keras.saving.register_keras_serializable(package="rigl_tf")
def smart_ratio(
    shapes: Shapes,
    sparsity: float,
    residual: bool,
    linear_density: float | None = 0.3,
    *,
    decay: str = "quadratic",
) -> dict[str, float]:
    """Gives a higher sparsity to deeper convolutions (smart ratio), a fixed one to linear layers.

    In a network of `n` layers, the density of convolution `l = 1 ... n` is proportional to
    `(n - l + 1) ** 2 + (n - l + 1)`. In a network without residual connections it is divided by
    `l ** 2`. Linear layers have the density `linear_density`; their weights count in `sparsity`.

    A layer whose density would exceed 1 is dense. As in the authors' code, the weights that such a
    layer cannot take are passed on to the next convolutions, if the first layer is such a layer,
    until a layer is not filled. Later ones are not passed on, so the model may become sparser than
    `sparsity`. The numbers of weights are those of the code, but computed exactly instead of in
    float32, and a kernel keeps at least one weight.

    `residual` has no default: use `distribution=functools.partial(smart_ratio, residual=True)`.

    Reference:

    - [Su et al., 2020](https://arxiv.org/abs/2009.11094), and their code

    Args:
        shapes: Ordered `{path: shape}` in Keras layout, in the order of the forward pass. Kernels
            with one or two dimensions belong to linear layers, all others to convolutions.
        sparsity: Share of zeros over all kernels, in `[0, 1)`.
        residual: Boolean, whether the network has residual connections (ResNet) or not (VGG).
        linear_density: Share of the weights that each linear layer keeps, in `(0, 1]`. With `None`
            linear layers are treated as convolutions. (This is not in the paper; it is for networks
            without convolutions.)
        decay: `"quadratic"`, or one of the paper's ablations: `"linear"` (`n - l + 1`), `"cubic"`
            (its third power), `"ascending"` (`l ** 2 + l`), or `"uniform"` (the same density for
            all convolutions; `residual` is not used).

    Returns:
        `{path: sparsity}`.

    Raises:
        ValueError: If an argument is out of its range, there is no convolution, or the linear
            layers alone keep as many weights as `sparsity` allows.

    Example:

    >>> shapes = {"conv1": (3, 3, 3, 16), "conv2": (3, 3, 16, 16), "dense": (16, 10)}
    >>> result = smart_ratio(shapes, 0.8, residual=True)
    >>> {path: round(value, 3) for path, value in result.items()}
    {'conv1': 0.667, 'conv2': 0.832, 'dense': 0.7}
    """
    shapes = check_shapes(shapes)
    sparsity = check_sparsity(sparsity)
    _check_arguments(residual, linear_density, decay)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    density = _decimal(linear_density or 0)
    linear = {
        path: int(density * sizes[path])
        for path, shape in shapes.items()
        if linear_density is not None and len(shape) <= 2
    }
    # As in the authors' code; it can differ a little from the sum over the linear layers.
    num_linear = int(density * sum(sizes[path] for path in linear))
    num_active = int(sum(sizes.values()) * (1 - _decimal(sparsity)))
    _check_budget(shapes, linear, num_linear, num_active, sparsity, linear_density)
    raw = _raw_densities(sizes, residual, decay)
    # As in the authors' code, each term is a whole number. (For tiny kernels the sum can be 0.)
    total = sum(int(raw[path] * size) for path, size in sizes.items() if path not in linear)
    scale = Fraction(num_active - num_linear, max(total, 1))
    densities = {path: raw[path] * scale for path in sizes}
    if decay != "uniform":
        _pass_on(densities, sizes, linear)
    kept = {path: int(min(densities[path], 1) * size) for path, size in sizes.items()} | linear
    return {path: _share_of_zeros(size, size - kept[path]) for path, size in sizes.items()}


def _decimal(value):
    """The exact decimal number that is written: in floats, `1 - 0.9` is below 0.1."""
    return Fraction(repr(float(value)))


def _raw_densities(sizes, residual, decay):
    """The densities up to a factor, as exact fractions."""
    count = len(sizes)
    divide = not residual and decay != "uniform"
    return {
        path: Fraction(_DECAYS[decay](first, count - first + 1), first**2 if divide else 1)
        for first, path in enumerate(sizes, start=1)
    }


def _pass_on(densities, sizes, linear):
    """Fills the first layers as the authors' code does; it stops as soon as nothing is left over.

    If the density of the first layer is below 1, nothing is left over at once. So nothing is passed
    on if the density of a later layer is above 1.
    """
    extra = 0
    for path, size in sizes.items():
        if path not in linear:
            if densities[path] >= 1:
                extra += int((densities[path] - 1) * size)
                densities[path] = Fraction(1)
            else:
                room = int((1 - densities[path]) * size)
                densities[path] += Fraction(extra, size) if extra <= room else 1 - densities[path]
                extra -= min(extra, room)
        if extra == 0:
            break


def _share_of_zeros(size, zeros):
    """A share with `floor(share * size) == zeros`, but at least one weight stays active."""
    zeros = min(zeros, size - 1)
    share = zeros / size
    return share if math.floor(share * size) == zeros else math.nextafter(share, 1.0)


def _check_arguments(residual, linear_density, decay):
    check_booleans(residual=residual)
    if linear_density is not None:
        check_numbers("(0, 1]", linear_density=linear_density)
    check_choice(_DECAYS, decay=decay)


def _check_budget(shapes, linear, num_linear, num_active, sparsity, linear_density):
    if len(linear) == len(shapes):
        raise ValueError(
            "`smart_ratio` shares the sparsity out among convolutions: for a network without them "
            f"pass `linear_density=None`. Received: shapes={shapes}"
        )
    if num_linear >= num_active:
        raise ValueError(
            f"The linear layers alone would keep {num_linear} weights, and all layers "
            f"together may keep {num_active}: pass a smaller `linear_density`. "
            f"Received: sparsity={sparsity!r}, linear_density={linear_density!r}"
        )
