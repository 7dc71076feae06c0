"""The Hessian of the loss with respect to the weights of a sparse network, and its spectrum."""

import functools
import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import masks
from rigl_tf._types import Data, Loss
from rigl_tf.checks import check_booleans, check_integers, check_seed
from rigl_tf.objective import batches, mean_loss, mean_over, on_a_replica, untouched_state
from rigl_tf.second_derivatives import exact_moments, times_hessian


class SpectralDensity(NamedTuple):
    """An estimate of a spectrum: eigenvalues, and the share of the spectrum that each represents.

    Attributes:
        values: Array in ascending order. The first and the last value are good estimates of the
            extreme eigenvalues.
        weights: Array of the same length, not negative, with the sum 1. Each value represents all
            eigenvalues near it. So the signs of many tiny eigenvalues are not known from it.
    """

    values: np.ndarray
    weights: np.ndarray


def hessian(model: keras.Model, data: Data, loss: Loss, max_size: int = 6000) -> np.ndarray:
    """The Hessian of the mean loss with respect to the active connections and dense weights.

    There is a row for each trainable weight, in their order, but in sparse kernels only for active
    connections. A row costs as much as two or three gradients. To include inactive connections,
    make them active with `rigl_tf.set_masks` first; they start at zero. The network computes as in
    inference, so that the loss is the same in each call. Regularisation losses are not used.

    Reference:

    - [Evci et al., 2022](https://arxiv.org/abs/2010.03533), section 4

    Args:
        model: A built `keras.Model`, sparse or dense.
        data: A pair `(inputs, targets)` or a triple `(inputs, targets, sample_weight)`; or an
            iterable of such batches, which is kept in memory, so its length must be known.
        loss: A Keras loss, its name, or a function of targets and outputs. It is averaged over the
            examples, each with its weight if there are weights, as in `model.fit`. It gets targets
            and outputs in float32, as there. For a model with several outputs it must be a function
            of all targets and all outputs, which it gets as they are.
        max_size: Integer >= 1, the largest allowed number of rows.

    Returns:
        A symmetric float64 array of shape `(n, n)`.

    Raises:
        ValueError: If the model is too large or has CSR kernels; `data` is empty, endless, of
            unknown length or not made of such batches; `loss` is not a loss; or TensorFlow has no
            second derivative of an operation.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> hessian(model, (np.array([[1.0, 2.0]]), np.array([[0.5]])), "mse")
    array([[2., 4.],
           [4., 8.]])
    """
    check_integers(1, max_size=max_size)
    second = _Hessian(model, data, loss)
    if second.size > max_size:
        raise ValueError(
            f"The Hessian of a model with more than `max_size={max_size}` active weights is too "
            "large: use `rigl_tf.analysis.hessian_density`, or a larger `max_size`. "
            f"Received: model={model.name!r} with {second.size}"
        )
    matrix = np.empty((second.size, second.size))
    for index in range(second.size):
        matrix[index] = second.times(np.eye(1, second.size, index)[0])
    matrix += matrix.T.copy()  # float32 products are not quite symmetric
    matrix /= 2
    return matrix


def hessian_eigenvalues(
    model: keras.Model, data: Data, loss: Loss, dense_spectrum: bool = False, max_size: int = 6000
) -> np.ndarray:
    """The exact eigenvalues of `hessian`.

    Args:
        model: A built `keras.Model`, sparse or dense.
        data: See `hessian`.
        loss: See `hessian`.
        dense_spectrum: Boolean, whether inactive connections count, too. As in the authors' code,
            their rows and columns are zero, so each adds an eigenvalue 0.
        max_size: Integer >= 1, the largest allowed number of rows.

    Returns:
        Array of the eigenvalues in ascending order.

    Raises:
        ValueError: As `hessian`.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> values = hessian_eigenvalues(model, (np.array([[1.0, 2.0]]), np.array([[0.5]])), "mse")
    >>> float(values[-1])
    10.0
    """
    check_booleans(dense_spectrum=dense_spectrum)
    values = np.linalg.eigvalsh(hessian(model, data, loss, max_size))
    if dense_spectrum:
        num_weights = sum(math.prod(weight.shape) for weight in model.trainable_variables)
        values = np.sort(np.concatenate([values, np.zeros(num_weights - len(values))]))
    return values


def hessian_density(
    model: keras.Model,
    data: Data,
    loss: Loss,
    num_steps: int = 80,
    num_probes: int = 1,
    seed: int = 0,
) -> SpectralDensity:
    """Estimates the spectrum of `hessian` for large models, by stochastic Lanczos quadrature.

    Each step multiplies the Hessian with a vector, which costs as much as two or three gradients.
    Each vector is orthogonalised against all vectors before it. `num_steps` vectors are kept in
    memory.

    Reference:

    - [Ghorbani et al., 2019](https://arxiv.org/abs/1901.10159), algorithms 1 and 2

    Args:
        model: A built `keras.Model`, sparse or dense.
        data: See `hessian`.
        loss: See `hessian`.
        num_steps: Integer >= 1. Some dozens of steps are enough for the extreme eigenvalues. With
            as many steps as there are different eigenvalues, all of them are found.
        num_probes: Integer >= 1, the number of random start vectors. An average over more vectors
            has less noise.
        seed: Integer. The random vectors depend on it.

    Returns:
        A `SpectralDensity`, a named pair of `values` and `weights`.

    Raises:
        ValueError: If an argument is out of its range; `loss` is not a loss; or `data` is empty,
            endless, of unknown length or not made of such batches.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> density = hessian_density(model, (np.array([[1.0, 2.0]]), np.array([[0.5]])), "mse")
    >>> round(float(density.values[-1]), 4)
    10.0
    """
    check_integers(1, num_steps=num_steps, num_probes=num_probes)
    check_seed(seed)
    second = _Hessian(model, data, loss)
    values, weights = [], []
    for probe in range(num_probes):
        start = tf.random.stateless_normal([second.size], (seed, probe), dtype=tf.float64)
        tridiagonal = _lanczos(second.times, start.numpy(), min(num_steps, second.size))
        found, vectors = np.linalg.eigh(tridiagonal)
        values.append(found)
        weights.append(vectors[0] ** 2 / num_probes)
    values, weights = np.concatenate(values), np.concatenate(weights)
    order = np.argsort(values, kind="stable")
    return SpectralDensity(values[order], weights[order])


def _lanczos(times, start, num_steps):
    """The tridiagonal form of a symmetric matrix in the Krylov space of `start`."""
    basis = np.zeros((num_steps, len(start)))
    diagonal, beside = [], []
    vector = start / np.linalg.norm(start)
    for step in range(num_steps):
        basis[step] = vector
        following = times(vector)
        scale = np.linalg.norm(following)
        diagonal.append(float(vector @ following))
        for _ in range(2):  # after one pass, the remaining error would grow
            following -= basis[: step + 1].T @ (basis[: step + 1] @ following)
        length = np.linalg.norm(following)
        if step == num_steps - 1 or length <= 1e-5 * max(scale, np.abs(diagonal).max()):
            break  # Only float32 rounding errors are left: the Krylov space is complete.
        beside.append(length)
        vector = following / length
    return np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


class _Hessian:
    """Products with the Hessian of the mean loss of one model on one set of data."""

    def __init__(self, model, data, loss):
        masks.check_masked(model, "A Hessian")
        self._model = model
        self._data = batches(data)
        self._mean_loss = mean_loss(loss)
        self._weights = model.trainable_variables
        # They are arguments of the product, because constants would be copied into its graph.
        self._active = [_active_indices(weight) for weight in self._weights]
        self.size = sum(
            math.prod(weight.shape) if active is None else len(active)
            for weight, active in zip(self._weights, self._active, strict=True)
        )
        if not self.size:
            raise ValueError(
                "A Hessian needs a built model with trainable weights. "
                f"Received: model={model.name!r}, without"
            )
        self._product = tf.function(
            functools.partial(on_a_replica, self._product_of_batch), autograph=False
        )

    def times(self, vector):
        """The product with a vector, in float64."""
        vector = tf.constant(vector, tf.float32)

        def of_batch(*batch):
            return [self._product(*batch, self._active, vector).numpy().astype("float64")]

        # (Recurrent layers may change their states in inference, too.)
        with untouched_state(self._model), exact_moments():
            (product,) = mean_over(self._data, of_batch)
        if not np.isfinite(product).all():
            raise ValueError(
                "The Hessian must be finite. "
                f"Received: model={self._model.name!r}, whose second derivatives are NaN or inf"
            )
        return product

    def _product_of_batch(self, inputs, targets, sample_weight, active, vector):
        values = [weight.value for weight in self._weights]
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                outputs = self._model(inputs, training=False)
                loss = self._mean_loss(targets, outputs, sample_weight)
            gradients = tape.gradient(loss, values, unconnected_gradients="zero")
            flat = _flat(gradients, active)
        return _flat(times_hessian(outer, [flat], values, [vector]), active)


def _flat(tensors, active):
    """The entries of tensors that belong to active or dense weights, in one vector."""
    parts = [tf.reshape(tensor, [-1]) for tensor in tensors]
    parts = [
        part if indices is None else tf.gather(part, indices)
        for part, indices in zip(parts, active, strict=True)
    ]
    return tf.concat([tf.cast(part, tf.float32) for part in parts], axis=0)


def _active_indices(weight):
    """The flat indices of the active connections of a sparse kernel; `None` for other weights."""
    mask = masks.mask_of(weight)
    return None if mask is None else tf.constant(np.flatnonzero(mask.numpy()))
