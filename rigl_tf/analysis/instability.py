"""Instability analysis: whether two trainings from the same state end linearly connected."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf._types import Masks
from rigl_tf.analysis.connectivity import check_weights, error_barrier, interpolate, restore
from rigl_tf.checks import check_functions, check_integers, check_numbers
from rigl_tf.masks import set_masks
from rigl_tf.objective import check_ends
from rigl_tf.walk import all_layers, recurrent_states


@dataclasses.dataclass(frozen=True, eq=False)
class Instability:
    """How sensitive a network is to the noise of training, from one step on.

    Attributes:
        step: Integer, the step at which both trainings began.
        coefficients: List of floats, the points where errors were measured: 0 is the first solution
            and 1 the second.
        errors: List of floats, the results of `evaluate` at these points.
        barrier: Float, the instability: the highest error minus the mean of the two ends.
        is_stable: Boolean, whether the barrier is lower than the threshold.
        solutions: Pair of the two solutions, each a list of arrays as from `model.get_weights()`.
    """

    step: int
    coefficients: list[float]
    errors: list[float]
    barrier: float
    is_stable: bool
    solutions: tuple[list[np.ndarray], ...] = dataclasses.field(repr=False)


def instability(
    model: keras.Model,
    train: Callable[..., Any],
    evaluate: Callable[[keras.Model], float],
    step: int = 0,
    threshold: float = 0.02,
    masks: Masks | None = None,
    data_seeds: tuple[Any, Any] = (0, 1),
    num_points: int = 30,
) -> Instability:
    """Trains twice from the same state with different data orders, and measures the barrier.

    Both trainings start with the same variables of the model (weights, moving statistics, states of
    random seeds and of recurrent layers, masks) and, if the model is compiled, of its optimizer.
    The network is stable at this step if the error barrier on the line between the two solutions is
    lower than the threshold.

    The paper compares 3 data orders for each of 3 initialisations. A subnetwork found by
    `rigl_tf.lottery.find_ticket` becomes stable earlier than the dense network, or never; where it
    is stable, it reaches the accuracy of the dense network. Larger batches or a warm-up, such as
    `rigl_tf.schedules.WarmUp`, make training stable earlier; choose them in `train`.

    The moving statistics of batch normalisation are interpolated like weights, but between the ends
    these are not the statistics of the network. To estimate them again at each point, call
    `estimate_statistics` in `evaluate`. (What the paper does is not confirmed.)

    Reference:

    - [Frankle et al., 2020](https://arxiv.org/abs/1912.05671), section 2

    Args:
        model: A built `keras.Model` with the weights of step `step`. Its variables, and those of
            its optimizer if it is compiled, are restored at the end.
        train: Function `train(model, data_seed, from_step) -> None` that trains the model in place,
            from this step of the schedule to the end, with the data order of the seed. If it
            compiles the model, it must do so in each call; otherwise the second training would
            continue with the optimizer of the first.
        evaluate: Function `evaluate(model) -> error`, where the error is the share of test examples
            in the wrong class, a number from 0 to 1.
        step: Integer >= 0, passed to `train`.
        threshold: Float >= 0, in the unit of the errors.
        masks: `{kernel path: mask}`, for example those of a ticket, which are set before each
            training, see `rigl_tf.set_masks`. Defaults to the current masks of the model.
        data_seeds: Pair of different seeds.
        num_points: Integer >= 2, the number of evenly spaced points on the line.

    Returns:
        An `Instability`, with `errors`, `barrier` and `is_stable`.

    Raises:
        ValueError: If an argument is out of its range, masks do not fit the model, a training ends
            with weights that are not finite, errors are not finite numbers, or a training moves
            active connections of CSR kernels.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((2,)), keras.layers.Dense(8), keras.layers.BatchNormalization(),
    ...     keras.layers.ReLU(), keras.layers.Dense(2)])
    >>> x = np.random.default_rng(0).normal(size=(64, 2))
    >>> y = (x[:, 0] > x[:, 1]).astype(int)
    >>> order = tf.data.Dataset.from_tensor_slices((x, y))
    >>> def train(model, data_seed, from_step):
    ...     schedule = keras.optimizers.schedules.PiecewiseConstantDecay([20], [0.1, 0.01])
    ...     optimizer = keras.optimizers.SGD(rigl_tf.schedules.WarmUp(schedule, 10))
    ...     optimizer.iterations.assign(from_step)
    ...     model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    ...     batches = order.shuffle(64, seed=data_seed).batch(32).repeat().take(30 - from_step)
    ...     model.fit(batches, shuffle=False, verbose=0)
    >>> def evaluate(model):
    ...     estimate_statistics(model, order.batch(32))
    ...     return 1 - np.mean(np.argmax(model(x), axis=1) == y)
    >>> result = instability(model, train, evaluate, num_points=5)
    >>> len(result.errors), result.barrier >= 0
    (5, True)
    """
    _check(model, step, threshold, data_seeds, num_points)
    check_functions(train=train, evaluate=evaluate)
    before = _state(model)
    try:
        if masks is not None:
            set_masks(model, masks)
        start, weights = _state(model), model.get_weights()
        solutions = []
        for seed in data_seeds:
            restore(start)
            train(model, seed, step)
            solutions.append(_finite_weights(model, seed))
            if len(solutions) == 1:  # check these before the second training
                check_weights(model, "the weights before training", weights)
                _check_error(evaluate(model))
        coefficients = np.linspace(0, 1, num_points).tolist()
        errors = interpolate(model, solutions[0], solutions[1], evaluate, coefficients)
    finally:
        restore(before)
    barrier = error_barrier(errors)
    errors = [float(error) for error in errors]
    return Instability(
        int(step), coefficients, errors, barrier, barrier < threshold, tuple(solutions)
    )


def estimate_statistics(model: keras.Model, data: Iterable[Any]) -> None:
    """Estimates the moving statistics of batch normalisation again, for the current weights.

    They become the mean over the batches of the statistics that are computed in training. If a
    layer is called several times for a batch, its last calls count more. Nothing else in the model
    changes. As in training, layers that are not trainable keep their statistics.

    Args:
        model: A built `keras.Model`. Without BatchNormalization nothing happens.
        data: Iterable of batches of training data, each `inputs` or `(inputs, targets)`, for
            example a finite `tf.data.Dataset`. Batches should be as large as in training.

    Raises:
        ValueError: If `data` is empty, endless, or not an iterable of batches.

    Example:

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> estimate_statistics(model, [np.array([[1.0], [3.0]]), np.array([[6.0], [6.0]])])
    >>> [float(array[0]) for array in model.get_weights()[2:]]  # means 2, 6; variances 1, 0
    [4.0, 0.5]
    """
    if isinstance(data, (tuple, np.ndarray, tf.Tensor)):
        raise ValueError(
            "`data` must be an iterable of batches; put a single batch into a list. "
            f"Received: {type(data).__name__}"
        )
    check_ends(data)
    normalisations = [
        layer
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not normalisations:
        return
    momenta = [layer.momentum for layer in normalisations]
    moving = {
        id(each) for layer in normalisations for each in (layer.moving_mean, layer.moving_variance)
    }
    others = [each for each in _variables(model) if id(each) not in moving]
    others = [(each, each.numpy().copy()) for each in others]
    num_batches = 0
    runs_eagerly = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)  # a trace would keep the momentum of its first call
    try:
        for batch in data:
            for layer in normalisations:
                # With this momentum, each batch has the same share in the end.
                layer.momentum = num_batches / (num_batches + 1)
            model(batch[0] if isinstance(batch, tuple) else batch, training=True)
            num_batches += 1
    finally:
        tf.config.run_functions_eagerly(runs_eagerly)
        for layer, momentum in zip(normalisations, momenta, strict=True):
            layer.momentum = momentum
        restore(others)
    if not num_batches:
        raise ValueError("`data` must have at least one batch. Received: none")


def _finite_weights(model, seed):
    weights = model.get_weights()
    if not all(np.isfinite(w).all() for w in weights if w.dtype.kind not in "OSU"):
        raise ValueError(
            "A training must end with finite weights. "
            f"Received: NaN or inf after the training with data_seed={seed!r}"
        )
    return weights


def _state(model):
    """The variables of a model and of its optimizer, and their values."""
    variables = _variables(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        if not optimizer.built:
            with model.distribute_strategy.scope():
                optimizer.build(model.trainable_variables)
        variables += optimizer.variables
    return [(variable, variable.numpy().copy()) for variable in variables]


def _variables(model):
    return [*model.variables, *recurrent_states(model)]


def _check_error(error):
    value = np.asarray(error)  # a tensor is a number, too
    if value.shape or value.dtype.kind not in "iuf" or not np.isfinite(value):
        raise ValueError(f"`evaluate` must return a finite number. Received: {error!r}")


def _check(model, step, threshold, data_seeds, num_points):
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"`model` must be a built `keras.Model`. Received: model={model!r}")
    check_integers(0, step=step)
    check_integers(2, num_points=num_points)
    check_numbers("[0, inf]", threshold=threshold)
    is_pair = hasattr(data_seeds, "__len__") and len(data_seeds) == 2
    if not is_pair or data_seeds[0] == data_seeds[1]:
        raise ValueError(
            "`data_seeds` must be two different seeds, for two data orders. "
            f"Received: data_seeds={data_seeds!r}"
        )
