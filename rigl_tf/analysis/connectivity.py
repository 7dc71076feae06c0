"""Paths between two solutions: straight lines, Bézier curves, and the barrier on the way."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.checks import check_choice


def interpolate(
    model: keras.Model,
    start: Sequence[np.ndarray],
    end: Sequence[np.ndarray],
    evaluate: Callable[[keras.Model], Any],
    coefficients: Sequence[float] | np.ndarray | None = None,
    control_points: Sequence[Sequence[np.ndarray]] = (),
) -> list[Any]:
    """Evaluates a model along the path from one set of weights to another.

    The path is the straight line `(1 - c) * start + c * end`; with control points it is the Bézier
    curve, see `bezier`. All floating-point weights are interpolated, the moving statistics of
    batch normalisation too: to have them estimated anew, let `evaluate` do it. Masks and other
    weights that are no floating-point numbers stay the model's own. They cut nothing off: what
    either end (or a control point) has active is active on the way, so that the path between two
    sparse solutions runs through the union of their connections.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 4.3
    - [Frankle et al., 2020](https://arxiv.org/abs/1912.05671), section 2

    Args:
        model: A built `keras.Model`. Its weights are afterwards what they were before, whatever
            `evaluate` does.
        start: List of arrays as from `model.get_weights()`, the weights at `c = 0`.
        end: The same, at `c = 1`.
        evaluate: Function of the model. What it returns is in the result.
        coefficients: The values of `c`; below 0 and above 1 the path goes on. Defaults to 30 even
            ones from 0 to 1.
        control_points: List of such lists of arrays as `start`, as from `train_bezier`.

    Returns:
        A list of what `evaluate` returned at each coefficient.

    Raises:
        ValueError: If weights are not those of such a model, or coefficients are no finite numbers.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> start, end = [np.array([[1.0], [0.0]])], [np.array([[0.0], [1.0]])]
    >>> interpolate(model, start, end, lambda model: model.get_weights()[0].tolist(), [0, 0.25])
    [[[1.0], [0.0]], [[0.75], [0.25]]]
    """
    points = {"start": start, **_numbered(control_points), "end": end}
    points = [check_weights(model, name, weights) for name, weights in points.items()]
    coefficients = np.asarray(np.linspace(0, 1, 30) if coefficients is None else coefficients)
    if coefficients.ndim != 1 or not _are_finite(coefficients):
        raise ValueError(
            f"`coefficients` must be a list of finite numbers. Received: {coefficients.tolist()}"
        )
    if not callable(evaluate):
        raise ValueError(f"`evaluate` must be a function of the model. Received: {evaluate!r}")
    own = [(variable, variable.numpy().copy()) for variable in model.weights]
    results = []
    try:
        for coefficient in coefficients:
            for variable, *arrays in zip(model.weights, *points, strict=True):
                if is_floating(variable):
                    variable.assign(bezier(arrays, float(coefficient)))
            results.append(evaluate(model))
    finally:
        for variable, value in own:
            variable.assign(value)
    return results


def error_barrier(errors: Sequence[float] | np.ndarray, above: str = "mean") -> float:
    """The height of the barrier between two solutions: the highest error less that of the ends.

    Two ends are seldom equally good, and then it matters what counts as their error:

    - `"mean"`: the mean of both, as in the paper. If the error falls all the way, the barrier is
      half of what it falls by;
    - `"worse"`: that of the worse end. A barrier is then what is above both;
    - `"line"`: the straight line from one end's error to the other's, at the same place.

    Reference:

    - [Frankle et al., 2020](https://arxiv.org/abs/1912.05671), section 2

    Args:
        errors: Errors (or losses) along the path, those of the two ends first and last; for
            `"line"` at even distances.
        above: `"mean"`, `"worse"` or `"line"`.

    Returns:
        Float, at least 0. Frankle et al. call two solutions stable (linearly connected) below 2 %
        of error, by the mean.

    Raises:
        ValueError: If there are fewer than two errors, they are not finite numbers, or `above` is
            something else.

    Example:

    >>> error_barrier([0.25, 0.75, 0.5])
    0.375
    >>> error_barrier([0.25, 0.75, 0.5], above="worse")
    0.25
    >>> error_barrier([0.5, 0.75, 0.75, 1.25], above="line")  # the line is 0.5, 0.75, 1, 1.25
    0.0
    """
    try:
        values = np.asarray(errors, dtype=float)
    except (TypeError, ValueError):
        values = np.array(math.nan)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
            "`errors` must be two or more finite numbers, those of the ends first and last. "
            f"Received: errors={errors}"
        )
    check_choice(("mean", "worse", "line"), above=above)
    ends = values[0], values[-1]
    if above == "line":
        return float(np.max(values - np.linspace(*ends, len(values))))
    return float(values.max() - (sum(ends) / 2 if above == "mean" else max(ends)))


def bezier(points: Sequence[Any], t: float | tf.Tensor) -> Any:
    """The point of a Bézier curve at `t`; of two points it is the straight line.

    `sum(comb(n, k) * (1 - t) ** (n - k) * t ** k * points[k])`, where `n` is the degree, one less
    than the number of points.

    Args:
        points: Arrays or tensors of one shape: the start, the control points, the end.
        t: Number or scalar tensor; 0 is the start and 1 the end.

    Returns:
        An array or tensor of the same shape.

    Raises:
        ValueError: If there are fewer than two points.

    Example:

    >>> bezier([np.array([0.0, 0.0]), np.array([1.0, 2.0]), np.array([2.0, 0.0])], 0.5)
    array([1., 1.])
    """
    if len(points) < 2:
        raise ValueError(f"`points` must be two or more. Received: {len(points)}")
    shares = bernstein(len(points) - 1, t)
    return sum(share * point for share, point in zip(shares, points, strict=True))


def bernstein(degree: int, t: Any) -> list[Any]:
    """The Bernstein polynomials at `t`: the share of each point in a Bézier curve."""
    return [math.comb(degree, k) * (1 - t) ** (degree - k) * t**k for k in range(degree + 1)]


def _are_finite(numbers):
    return numbers.dtype.kind in "iuf" and np.isfinite(numbers).all()


def is_floating(variable: keras.Variable) -> bool:
    return tf.as_dtype(variable.dtype).is_floating


def _numbered(control_points):
    return {f"control_points[{k}]": point for k, point in enumerate(control_points)}


def check_weights(model: keras.Model, name: str, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arrays of `weights`, which must have the shapes of the model's."""
    arrays = [np.asarray(array) for array in weights] if isinstance(weights, Iterable) else []
    wanted = [tuple(variable.shape) for variable in model.weights]
    received = [array.shape for array in arrays]
    if received != wanted:
        pairs = zip(received, wanted, strict=False)
        first = next((f"{got} for {want}" for got, want in pairs if got != want), "another number")
        raise ValueError(
            f"`{name}` must be the weights of such a model as from `model.get_weights()`, "
            f"{len(wanted)} arrays. Received: {len(received)} arrays, of shape {first}"
        )
    return arrays
