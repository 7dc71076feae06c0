"""Paths between two solutions: the straight line, Bézier curves, and the barrier on the way."""

import math
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.checks import check_integers
from rigl_tf.masks import MaskConstraint, check_masks, masked, sparse_kernels
from rigl_tf.objective import mean_loss


def interpolate(model, start, end, evaluate, coefficients=None, control_points=()):
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
    own = model.get_weights()
    results = []
    try:
        for coefficient in coefficients:
            for variable, *arrays in zip(model.weights, *points, strict=True):
                if _is_floating(variable):
                    variable.assign(bezier(arrays, float(coefficient)))
            results.append(evaluate(model))
    finally:
        model.set_weights(own)
    return results


def error_barrier(errors):
    """The height of the barrier between two solutions: the highest error less that of the ends.

    Reference:

    - [Frankle et al., 2020](https://arxiv.org/abs/1912.05671), section 2

    Args:
        errors: Errors (or losses) along the path, those of the two ends first and last.

    Returns:
        Float, `max(errors)` minus the mean of the first and the last. At least 0; Frankle et al.
        call two solutions stable (linearly connected) below 2 % of error.

    Raises:
        ValueError: If there are fewer than two errors, or they are not finite numbers.

    Example:

    >>> error_barrier([0.25, 0.75, 0.5])
    0.375
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
    return float(values.max() - (values[0] + values[-1]) / 2)


def bezier(points, t):
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
    shares = _shares(len(points) - 1, t)
    return sum(share * point for share, point in zip(shares, points, strict=True))


def train_bezier(
    model,
    start,
    end,
    data,
    loss,
    optimizer,
    steps,
    degree=2,
    masks=None,
    seed=0,
    jit_compile=True,
):
    """Finds the Bézier curve between two solutions along which the loss is low.

    Minimises the loss at a random point of the curve, `t` uniform in `[0, 1)`, a new one for each
    batch. The ends stay; the control points between them are trained from the straight line on.
    Only trainable weights leave the line: moving statistics stay on it (the model trains on those
    of the batch), so estimate them anew in the `evaluate` of `interpolate`.

    Reference:

    - [Garipov et al., 2018](https://arxiv.org/abs/1802.10026), section 3
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 4.3

    Args:
        model: A built `keras.Model`. Its variables are afterwards what they were before.
        start: List of arrays as from `model.get_weights()`, the weights at `t = 0`.
        end: The same, at `t = 1`.
        data: `tf.data.Dataset` of batches `(inputs, targets)`. It is repeated.
        loss: A Keras loss, its name, or a function of targets and outputs; it is averaged over the
            examples. The model's own losses, such as its weight decay, are left out.
        optimizer: A new `keras.optimizers.Optimizer`, or its name.
        steps: Integer > 0, the number of batches to train on.
        degree: Integer > 1: 2 for one control point, 3 for two, and so on.
        masks: `{kernel path: mask}` as from `rigl_tf.get_masks`: where the control points may
            differ from zero. For the union of two sparse solutions take the union of their masks.
            Kernels without an entry are dense on the way; `None`: all are.
        seed: Integer. The values of `t` are a function of it and of the step.
        jit_compile: Whether XLA compiles a step.

    Returns:
        List of `degree - 1` control points, each a list of arrays as `start`: the
        `control_points` of `interpolate`.

    Raises:
        ValueError: If an argument is out of its range, `data` is no data set or empty, weights or
            masks are not those of such a model, or it is called within the scope of a
            `tf.distribute.Strategy`.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> start, end = model.get_weights(), [-weight for weight in model.get_weights()]
    >>> data = tf.data.Dataset.from_tensors((np.ones((4, 2)), np.zeros((4, 1))))
    >>> points = train_bezier(model, start, end, data, "mse", keras.optimizers.SGD(0.1), steps=10)
    >>> losses = interpolate(
    ...     model, start, end, lambda m: float(tf.norm(m(np.ones((4, 2))))), control_points=points)
    """
    start = check_weights(model, "start", start)
    end = check_weights(model, "end", end)
    if tf.distribute.in_cross_replica_context():
        raise ValueError(
            "`train_bezier` trains on one device. Received: a call within the scope of "
            f"{type(tf.distribute.get_strategy()).__name__}"
        )
    if not isinstance(data, tf.data.Dataset):
        raise ValueError(f"`data` must be a `tf.data.Dataset` of batches. Received: {type(data)}")
    check_integers(1, steps=steps)
    check_integers(2, degree=degree)
    check_integers(seed=seed)
    _check_elements(data)
    masks = check_masks(model, masks or {})
    by_id = {id(kernel): masks.get(path) for path, kernel in sparse_kernels(model).items()}
    trainable = {id(variable) for variable in model.trainable_variables}
    inner = [_line(model, start, end, k / degree) for k in range(1, degree)]
    curves = [
        _Curve(variable, points, by_id.get(id(variable)))
        for variable, *points in zip(model.weights, start, *inner, end, strict=True)
        if id(variable) in trainable
    ]
    own = [(variable, variable.numpy().copy()) for variable in model.variables]
    try:
        _train(model, curves, data, loss, optimizer, steps, seed, jit_compile)
    finally:
        for variable, value in own:
            variable.assign(value)
    controls = {id(curve.variable): curve.controls for curve in curves}
    return [
        [
            controls[id(variable)][k].numpy() if id(variable) in controls else array
            for variable, array in zip(model.weights, point, strict=True)
        ]
        for k, point in enumerate(inner)
    ]


class _Curve:
    """The curve of one weight: `points` are tensors at its ends, variables between them."""

    def __init__(self, variable, points, mask):
        self.variable = variable
        self.mask = None if mask is None else tf.constant(mask)
        self.controls = [keras.Variable(self.masked(p), dtype=variable.dtype) for p in points[1:-1]]
        if mask is not None:
            for control in self.controls:
                control.constraint = MaskConstraint(self.mask)
        first, last = (tf.constant(point, variable.dtype) for point in (points[0], points[-1]))
        self.points = [first, *self.controls, last]

    def masked(self, values):
        return values if self.mask is None else masked(values, self.mask)


def _train(model, curves, data, loss, optimizer, steps, seed, jit_compile):
    """Moves the control points of the curves. The weights of the model are left anywhere."""
    loss = mean_loss(loss)
    optimizer = keras.optimizers.get(optimizer)
    controls = [control for curve in curves for control in curve.controls]
    optimizer.build(controls)

    @tf.function(jit_compile=jit_compile)
    def step(t, inputs, targets):
        for curve in curves:
            curve.variable.assign(bezier(curve.points, tf.cast(t, curve.variable.dtype)))
        with tf.GradientTape() as tape:
            value = loss(targets, model(inputs, training=True))
        gradients = tape.gradient(
            value, [curve.variable.value for curve in curves], unconnected_gradients="zero"
        )
        moves = []
        for curve, gradient in zip(curves, gradients, strict=True):
            gradient = curve.masked(gradient)
            shares = _shares(len(curve.points) - 1, tf.cast(t, gradient.dtype))
            moves += [share * gradient for share in shares[1:-1]]  # dB(t) / d(control point)
        optimizer.apply(moves, controls)

    @tf.function
    def run():
        index = 0
        for inputs, targets in data.repeat().take(steps):
            # Not in `step`: XLA draws other numbers.
            step(tf.random.stateless_uniform([], (seed, index)), inputs, targets)
            index += 1
        return index

    num_steps = int(run())
    if num_steps < steps:
        raise ValueError("`data` must have a batch at least. Received: none")


def _shares(degree, t):
    """The Bernstein polynomials at `t`: the share of each point in a Bézier curve."""
    return [math.comb(degree, k) * (1 - t) ** (degree - k) * t**k for k in range(degree + 1)]


def _line(model, start, end, t):
    """Weights on the straight line; those that are no floating-point numbers are the start's."""
    return [
        bezier([first, last], t) if _is_floating(variable) else first
        for variable, first, last in zip(model.weights, start, end, strict=True)
    ]


def _check_elements(data):
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            f"`data` must be batches that are pairs `(inputs, targets)`. Received: {spec}"
        )


def _are_finite(numbers):
    return numbers.dtype.kind in "iuf" and np.isfinite(numbers).all()


def _is_floating(variable):
    return tf.as_dtype(variable.dtype).is_floating


def _numbered(control_points):
    return {f"control_points[{k}]": point for k, point in enumerate(control_points)}


def check_weights(model, name, weights):
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
