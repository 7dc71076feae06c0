"""Masks from scores, once: before training (SNIP, GraSP) or after it (magnitude).

Each function returns masks, `{kernel path: boolean array}`, for `rigl_tf.set_masks`; it changes
nothing.
"""

from numbers import Real

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import distributions, masks, selection


def magnitude_masks(model, sparsity, distribution=None):
    """Keeps the connections with the largest weights.

    Args:
        model: A built sparse `keras.Model`; made with `sparsify(model, 0.0)` if it is to be pruned
            from dense. Inactive connections stay inactive where there are enough active ones.
        sparsity: Share of zeros over all sparse kernels, in `[0, 1)`.
        distribution: How the kernels share the sparsity, see `rigl_tf.sparsify`; `None` ranks the
            connections of all kernels together.

    Returns:
        `{kernel path: mask}`, with exact counts; of equal scores those with the lower index stay.

    Raises:
        ValueError: If an argument is out of its range, or the model has no sparse kernel.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> rigl_tf.set_masks(model, magnitude_masks(model, sparsity=0.75))
    >>> int(np.count_nonzero(model.layers[0].layer.kernel))
    8
    """
    scores = {path: tf.abs(kernel) for path, kernel in _sparse_kernels(model).items()}
    return _select(model, scores, sparsity, distribution)


def random_masks(model, sparsity, distribution="erk", seed=0):
    """Keeps connections at random.

    Args:
        model, sparsity, distribution: See `magnitude_masks`.
        seed: Integer. The masks are a function of it, of each kernel's index and of its shape.

    Returns:
        `{kernel path: mask}`, with exact counts.

    Raises:
        ValueError: See `magnitude_masks`.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> [int(mask.sum()) for mask in random_masks(model, sparsity=0.75, seed=3).values()]
    [8]
    """
    scores = {
        path: tf.random.stateless_uniform(kernel.shape, (seed, index), dtype=tf.float64)
        for index, (path, kernel) in enumerate(_sparse_kernels(model).items())
    }
    return _select(model, scores, sparsity, distribution)


def snip_masks(model, data, sparsity, loss, distribution=None):
    """Keeps the connections whose removal would change the loss most: SNIP.

    The score of a connection is `|gradient * weight|`, the gradient that of the mean loss over
    `data`, at the weights as they are (usually the initial ones).

    Reference:

    - [Lee et al., 2019](https://arxiv.org/abs/1810.02340), equation 4: all kernels together
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134): with a given distribution

    Args:
        model, sparsity, distribution: See `magnitude_masks`.
        data: A pair `(inputs, targets)`, or an iterable of such batches, of equal sizes.
        loss: A Keras loss, its name, or a function of targets and outputs.

    Returns:
        `{kernel path: mask}`, with exact counts.

    Raises:
        ValueError: See `magnitude_masks`; if `data` is empty, or the scores are not finite.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> batch = np.ones((2, 8), "float32"), np.zeros((2, 4), "float32")
    >>> masks = snip_masks(model, batch, sparsity=0.75, loss="mse")
    """
    kernels = _sparse_kernels(model)
    gradients = _gradients(model, kernels, _batches(data), loss)
    scores = {path: tf.abs(gradients[path] * kernel) for path, kernel in kernels.items()}
    return _select(model, _check_finite(scores), sparsity, distribution)


def grasp_masks(model, data, sparsity, loss, distribution=None, temperature=200.0):
    """Keeps the connections whose removal would reduce the gradient flow most: GraSP.

    The score of a connection is `weight * (H g)`, with `g` the gradient and `H` the Hessian of the
    loss at the weights as they are; the highest are kept (the paper removes the highest of
    `-weight * (H g)`).

    Reference:

    - [Wang et al., 2020](https://arxiv.org/abs/2002.07376), equations 7 and 8

    Args:
        model, data, sparsity, loss, distribution: See `snip_masks`.
        temperature: Number > 0. The outputs of the model, its logits, are divided by it, as in the
            authors' code.

    Returns:
        `{kernel path: mask}`, with exact counts.

    Raises:
        ValueError: See `snip_masks`.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> batch = np.ones((2, 8), "float32"), np.array([0, 3])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> masks = grasp_masks(model, batch, sparsity=0.75, loss=loss)
    """
    if not isinstance(temperature, Real) or not temperature > 0:
        raise ValueError(
            f"`temperature` must be a number > 0. Received: temperature={temperature!r}"
        )
    kernels = _sparse_kernels(model)
    batches = _batches(data)
    first = _gradients(model, kernels, batches, loss, temperature)
    # The gradient of `g_0 . g`, with `g_0` held fixed, is `H g_0`.
    products = _gradients(model, kernels, batches, loss, temperature, along=first)
    scores = {path: kernel * products[path] for path, kernel in kernels.items()}
    return _select(model, _check_finite(scores), sparsity, distribution)


def _sparse_kernels(model):
    kernels = masks.sparse_kernels(model)
    if not kernels:
        raise ValueError(
            "Masks can be made for a sparse model: make one with `rigl_tf.sparsify(model, 0.0)`. "
            f"Received: model={model.name!r}, without sparse kernels"
        )
    # Of a kernel with a copy on each replica, the first.
    return {
        path: masks.strategy_of(kernel).experimental_local_results(kernel.value)[0]
        for path, kernel in kernels.items()
    }


def _batches(data):
    is_pair = isinstance(data, tuple) and len(data) == 2
    batches = [data] if is_pair else list(data)
    if not batches:
        raise ValueError("`data` must have a batch at least. Received: none")
    return batches


def _gradients(model, kernels, batches, loss, temperature=1.0, along=None):
    """Gradients of the mean loss; with `along`, of their product with these gradients."""
    loss = keras.losses.get(loss)

    def one(inputs, targets):
        values = list(kernels.values())
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                outputs = model(inputs, training=True) / temperature
                mean_loss = tf.reduce_mean(loss(targets, outputs))
            gradients = tape.gradient(mean_loss, values)
            if along is None:
                return gradients
            product = tf.add_n(
                [tf.reduce_sum(along[path] * g) for path, g in zip(kernels, gradients, strict=True)]
            )
        return outer.gradient(product, values)

    state = [variable.numpy() for variable in model.non_trainable_variables]
    sums = None
    for inputs, targets in batches:
        found = one(inputs, targets)
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    # Batch statistics and seeds are as before.
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)
    return {path: total / len(batches) for path, total in zip(kernels, sums, strict=True)}


def _check_finite(scores):
    bad = [path for path, score in scores.items() if not np.isfinite(score).all()]
    if bad:
        raise ValueError(f"The scores must be finite. Received: NaN or inf in {bad}")
    return scores


def _select(model, scores, sparsity, distribution):
    """Masks of the highest scores of active connections, in each kernel or in all together."""
    sparsity = distributions.check_sparsity(sparsity)
    lowest = float("-inf")
    scores = {
        path: tf.where(masks.mask_of(kernel).value, scores[path], lowest)
        for path, kernel in masks.sparse_kernels(model).items()
    }
    if distribution is None:
        flat = tf.concat([tf.reshape(score, [-1]) for score in scores.values()], axis=0)
        size = flat.shape[0]
        chosen = selection.top_k_mask(flat, size - distributions.num_zeros(size, sparsity)).numpy()
        ends = np.cumsum([score.shape.num_elements() for score in scores.values()])[:-1]
        parts = np.split(chosen, ends)
        return {
            path: part.reshape(score.shape)
            for (path, score), part in zip(scores.items(), parts, strict=True)
        }
    shapes = {path: tuple(score.shape) for path, score in scores.items()}
    shares = distributions.allocate(distribution, shapes, sparsity)
    result = {}
    for path, score in scores.items():
        size = score.shape.num_elements()
        num_active = size - distributions.num_zeros(size, shares[path])
        result[path] = selection.top_k_mask(score, num_active).numpy()
    return result
