"""Paths between two solutions (straight lines and Bézier curves), and the error barrier on them."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.checks import check_choice
from rigl_tf.walk import recurrent_states


def interpolate(
    model: keras.Model,
    start: Sequence[np.ndarray],
    end: Sequence[np.ndarray],
    evaluate: Callable[[keras.Model], Any],
    coefficients: Sequence[float] | np.ndarray | None = None,
    control_points: Sequence[Sequence[np.ndarray]] = (),
) -> list[Any]:
    """Evaluates a model along the path from one set of weights to another.

    The path is the straight line `(1 - c) * start + c * end`, or with control points a Bézier
    curve, see `bezier`. All floating-point weights are interpolated, including the moving
    statistics of batch normalisation; `evaluate` can estimate these again at each point, see
    `estimate_statistics`. Masks and other weights that are not floating-point numbers keep the
    model's values. The masks are not applied on the path: the path between two sparse solutions
    uses the union of their connections.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 4.3
    - [Frankle et al., 2020](https://arxiv.org/abs/1912.05671), section 2

    Args:
        model: A built `keras.Model`. Its weights are restored at the end. The states of recurrent
            layers are restored after each point, too.
        start: List of arrays as from `model.get_weights()`, the weights at `c = 0`.
        end: List of arrays, the weights at `c = 1`.
        evaluate: Function of the model that returns any value.
        coefficients: List of numbers, the values of `c`. They may be below 0 and above 1. Defaults
            to 30 evenly spaced values from 0 to 1.
        control_points: List of control points, each a list of arrays as `start`, see
            `train_bezier`.

    Returns:
        List of the results of `evaluate`, one for each coefficient.

    Raises:
        ValueError: If weights do not fit the model, or coefficients are not finite numbers; or if
            the model has CSR kernels, and the weights have other active connections than the model.

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
    states = [(state, state.numpy().copy()) for state in recurrent_states(model)]
    results = []
    try:
        for coefficient in coefficients:
            for variable, *arrays in zip(model.weights, *points, strict=True):
                if is_floating(variable):
                    variable.assign(bezier(arrays, float(coefficient)))
            restore(states)
            results.append(evaluate(model))
    finally:
        restore([*own, *states])
    return results


def error_barrier(errors: Sequence[float] | np.ndarray, above: str = "mean") -> float:
    """The height of the barrier between two solutions: the highest error minus that of the ends.

    If both ends are not equally good, their error can be defined in three ways:

    - `"mean"`: the mean of both, as in the paper. If the error only falls along the path, the
      barrier is half of the difference between the ends.
    - `"worse"`: the error of the worse end. Then only errors above both ends are a barrier.
    - `"line"`: at each point, the straight line from the error of one end to that of the other.

    Reference:

    - [Frankle et al., 2020](https://arxiv.org/abs/1912.05671), section 2

    Args:
        errors: List of errors (or losses) along the path, with the two ends first and last. For
            `"line"` the points must be evenly spaced.
        above: String: `"mean"`, `"worse"` or `"line"`.

    Returns:
        Float, at least 0. Frankle et al. call two solutions stable (linearly connected) if the
        barrier by the mean is below 2 %.

    Raises:
        ValueError: If there are fewer than two errors, they are not finite, or `above` is unknown.

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
    """The point of a Bézier curve at `t`. With two points, the curve is the straight line.

    `sum(comb(n, k) * (1 - t) ** (n - k) * t ** k * points[k])`, where `n` is the degree, one less
    than the number of points.

    Args:
        points: List of arrays or tensors of the same shape: the start, the control points, the end.
        t: Number or scalar tensor; 0 is the start and 1 is the end.

    Returns:
        An array or tensor of the same shape.

    Raises:
        ValueError: If there are fewer than two points.

    Example:

    >>> bezier([np.array([0.0, 0.0]), np.array([1.0, 2.0]), np.array([2.0, 0.0])], 0.5)
    array([1., 1.])
    """
    if len(points) < 2:
        raise ValueError(f"There must be two or more `points`. Received: {len(points)}")
    shares = bernstein(len(points) - 1, t)
    return sum(share * point for share, point in zip(shares, points, strict=True))


def bernstein(degree: int, t: Any) -> list[Any]:
    """The Bernstein polynomials at `t`: the weight of each point in a Bézier curve."""
    return [math.comb(degree, k) * (1 - t) ** (degree - k) * t**k for k in range(degree + 1)]


def restore(values: Iterable[tuple[keras.Variable, np.ndarray]]) -> None:
    """Gives variables their values back: pairs `(variable, value)`."""
    for variable, value in values:
        variable.assign(value)


def _are_finite(numbers):
    return numbers.dtype.kind in "iuf" and np.isfinite(numbers).all()


def is_floating(variable: keras.Variable) -> bool:
    return tf.as_dtype(variable.dtype).is_floating


def _numbered(control_points):
    return {f"control_points[{k}]": point for k, point in enumerate(control_points)}


def check_weights(model: keras.Model, name: str, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`weights` as a list of arrays; raises a `ValueError` unless they fit the model."""
    arrays = [np.asarray(array) for array in weights] if isinstance(weights, Iterable) else []
    wanted = [tuple(variable.shape) for variable in model.weights]
    received = [array.shape for array in arrays]
    if received != wanted:
        found = f"{len(received)} arrays"
        if len(received) == len(wanted):
            pairs = zip(received, wanted, strict=True)
            found += next(f", of shape {got} for {want}" for got, want in pairs if got != want)
        raise ValueError(
            f"`{name}` must be weights of this model as from `model.get_weights()`, "
            f"{len(wanted)} arrays. Received: {found}"
        )
    _check_places(model, name, arrays)
    return arrays


def _check_places(model, name, arrays):
    """Raises a `ValueError` if values of CSR kernels belong to other connections than now."""
    given = dict(zip(map(id, model.weights), arrays, strict=True))
    moved = [
        path
        for path, kernel in masks.kernels_of(model).items()
        if kernel.execution == "csr"
        and any(
            not np.array_equal(given[id(places)], places.numpy())
            for places in kernel.mask_variables
            if places.ndim
        )
    ]
    if moved:
        raise ValueError(
            "Weights of CSR kernels can be compared only if their active connections are the same: "
            "use `rigl_tf.with_execution(model, 'masked')` before the weights are taken. Received: "
            f"`{name}` with other active connections than the model in {moved}"
        )
