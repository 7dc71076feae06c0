"""Trains a Bézier curve between two solutions, so that the loss along it is low."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from rigl_tf._types import Loss, Masks
from rigl_tf.analysis.connectivity import bernstein, bezier, check_weights, is_floating, restore
from rigl_tf.checks import check_booleans, check_integers, check_seed
from rigl_tf.masks import check_masked, check_masks, kernels_of, masked
from rigl_tf.objective import mean_loss
from rigl_tf.walk import recurrent_states


def train_bezier(
    model: keras.Model,
    start: Sequence[np.ndarray],
    end: Sequence[np.ndarray],
    data: tf.data.Dataset,
    loss: Loss,
    optimizer: keras.optimizers.Optimizer | str,
    steps: int,
    degree: int = 2,
    masks: Masks | None = None,
    seed: int = 0,
    jit_compile: bool = True,
) -> list[list[np.ndarray]]:
    """Finds a Bézier curve between two solutions, so that the loss along it is low.

    For each batch, the loss is minimised at a random point of the curve, with `t` uniform in
    `[0, 1)`. The ends are fixed. The control points start on the straight line and are trained.
    Only trainable weights leave the line. Moving statistics stay on it, because training uses the
    statistics of each batch; so estimate them again in the `evaluate` of `interpolate`.

    Reference:

    - [Garipov et al., 2018](https://arxiv.org/abs/1802.10026), section 3
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 4.3

    Args:
        model: A built `keras.Model`. Its variables are restored at the end.
        start: List of arrays as from `model.get_weights()`, the weights at `t = 0`.
        end: List of arrays, the weights at `t = 1`.
        data: `tf.data.Dataset` of batches `(inputs, targets)`. It is repeated.
        loss: A Keras loss, its name, or a function of targets and outputs. It is averaged over the
            examples. The model's own losses, such as weight decay, are not used.
        optimizer: A new `keras.optimizers.Optimizer`, or its name.
        steps: Integer >= 1, the number of batches to train on.
        degree: Integer >= 2: 2 for one control point, 3 for two, and so on.
        masks: `{kernel path: mask}` as from `rigl_tf.get_masks`: control points can differ from
            zero only where the masks are `True`. For two sparse solutions, use the union of their
            masks. Kernels without an entry are dense along the path; with `None`, all are.
        seed: Integer. The values of `t` depend on it and on the step.
        jit_compile: Boolean, whether a step is compiled by XLA.

    Returns:
        List of `degree - 1` control points, each a list of arrays as `start`, for the argument
        `control_points` of `interpolate`.

    Raises:
        ValueError: If an argument is out of its range, `data` is not a data set or is empty,
            weights or masks do not fit the model, the model has CSR kernels, or the function is
            called within the scope of a `tf.distribute.Strategy`.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> start, end = model.get_weights(), [-weight for weight in model.get_weights()]
    >>> data = tf.data.Dataset.from_tensors((np.ones((4, 2)), np.zeros((4, 1))))
    >>> points = train_bezier(model, start, end, data, "mse", keras.optimizers.SGD(0.1), steps=10)
    >>> losses = rigl_tf.analysis.interpolate(
    ...     model, start, end, lambda m: float(tf.norm(m(np.ones((4, 2))))), control_points=points)
    """
    check_masked(model, "`train_bezier`")
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
    check_booleans(jit_compile=jit_compile)
    check_integers(2, degree=degree)
    check_seed(seed)
    _check_elements(data)
    masks = check_masks(model, masks or {})
    by_id = {id(kernel.variable): masks.get(path) for path, kernel in kernels_of(model).items()}
    trainable = {id(variable) for variable in model.trainable_variables}
    inner = [_line(model, start, end, k / degree) for k in range(1, degree)]
    curves = [
        _Curve(variable, points, by_id.get(id(variable)))
        for variable, *points in zip(model.weights, start, *inner, end, strict=True)
        if id(variable) in trainable
    ]
    own = [*model.variables, *recurrent_states(model)]
    own = [(variable, variable.numpy().copy()) for variable in own]
    try:
        _train(model, curves, data, loss, optimizer, steps, seed, jit_compile)
    finally:
        restore(own)
    controls = {id(curve.variable): curve.controls for curve in curves}
    return [
        [
            controls[id(variable)][k].numpy() if id(variable) in controls else array
            for variable, array in zip(model.weights, point, strict=True)
        ]
        for k, point in enumerate(inner)
    ]


class _Curve:
    """The curve of one weight: `points` are tensors at the ends, and variables between them."""

    def __init__(self, variable, points, mask):
        self.variable = variable
        self.mask = None if mask is None else tf.constant(mask)
        self.controls = [keras.Variable(self.masked(p), dtype=variable.dtype) for p in points[1:-1]]
        if mask is not None:
            for control in self.controls:
                control.constraint = self.masked
        first, last = (tf.constant(point, variable.dtype) for point in (points[0], points[-1]))
        self.points = [first, *self.controls, last]

    def masked(self, values):
        return values if self.mask is None else masked(values, self.mask)


def _train(model, curves, data, loss, optimizer, steps, seed, jit_compile):
    """Trains the control points of the curves. This changes the weights of the model, too."""
    loss = mean_loss(loss)
    optimizer = keras.optimizers.get(optimizer)
    if optimizer.built:
        raise ValueError(
            f"`optimizer` must be new. Received: optimizer={optimizer.name!r}, which was used"
        )
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
            shares = bernstein(len(curve.points) - 1, tf.cast(t, gradient.dtype))
            moves += [share * gradient for share in shares[1:-1]]  # dB(t) / d(control point)
        optimizer.apply(moves, controls)

    @tf.function
    def run():
        index = 0
        for inputs, targets in data.repeat().take(steps):
            # Not in `step`, where XLA would draw different numbers.
            step(tf.random.stateless_uniform([], (seed, index)), inputs, targets)
            index += 1
        return index

    num_steps = int(run())
    if num_steps < steps:
        raise ValueError("`data` must have at least one batch. Received: none")


def _line(model, start, end, t):
    """Weights on the straight line; those that are not floating-point numbers are the start's."""
    return [
        bezier([first, last], t) if is_floating(variable) else first
        for variable, first, last in zip(model.weights, start, end, strict=True)
    ]


def _check_elements(data):
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            f"`data` must be batches that are pairs `(inputs, targets)`. Received: {spec}"
        )
