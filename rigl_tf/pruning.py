"""Masks from scores, once: before training (SNIP, GraSP) or after it (magnitude).

Each function returns masks, `{kernel path: boolean array}`, for `rigl_tf.set_masks`; it changes
nothing. Counts are exact. Where all kernels are ranked together, as in the papers, a kernel may
lose all of its connections, and nothing comes through its layer any more: a warning names it.
"""

import math
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import distributions, masks, selection, structures
from rigl_tf._types import Data, Distribution, Loss, Masks
from rigl_tf.checks import check_integers, check_numbers
from rigl_tf.objective import batches, mean_loss, mean_over, read_batches, untouched_state


def magnitude_masks(
    model: keras.Model, sparsity: float, distribution: Distribution | None = None
) -> Masks:
    """Keeps the connections with the largest weights.

    Args:
        model: A built sparse `keras.Model`; made with `sparsify(model, 0.0)` if it is to be pruned
            from dense. Inactive connections stay inactive where there are enough active ones.
        sparsity: Share of zeros over all sparse kernels, in `[0, 1)`.
        distribution: How the kernels share the sparsity, see `rigl_tf.sparsify`: each keeps one
            connection at least. `None` ranks the connections of all kernels together, and warns if
            none of a kernel's are left.

    Returns:
        `{kernel path: mask}`, with exact counts; of equal scores those with the lower index stay.

    Raises:
        ValueError: If an argument is out of its range, the model has no sparse kernel, or an active
            weight is not finite.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> rigl_tf.set_masks(model, magnitude_masks(model, sparsity=0.75))
    >>> int(np.count_nonzero(model.layers[0].layer.kernel))
    8
    """
    scores = {path: tf.abs(kernel) for path, kernel in _kernel_values(model).items()}
    return _select(model, scores, sparsity, distribution)


def random_masks(
    model: keras.Model, sparsity: float, distribution: Distribution | None = "erk", seed: int = 0
) -> Masks:
    """Keeps connections at random.

    Args:
        model, sparsity, distribution: See `magnitude_masks`.
        seed: Integer. The masks are a function of it, of each kernel's index and of its shape.

    Returns:
        `{kernel path: mask}`, with exact counts.

    Raises:
        ValueError: If an argument is out of its range, or the model has no sparse kernel.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> [int(mask.sum()) for mask in random_masks(model, sparsity=0.75, seed=3).values()]
    [8]
    """
    check_integers(seed=seed)
    scores = {
        path: tf.random.stateless_uniform(kernel.shape, (seed, index), dtype=tf.float64)
        for index, (path, kernel) in enumerate(_kernel_values(model).items())
    }
    return _select(model, scores, sparsity, distribution)


def snip_masks(
    model: keras.Model,
    data: Data,
    sparsity: float,
    loss: Loss,
    distribution: Distribution | None = None,
) -> Masks:
    """Keeps the connections whose removal would change the loss most: SNIP.

    The score of a connection is `|gradient * weight|`, the gradient that of the mean loss over
    `data`, at the weights as they are (usually the initial ones).

    Reference:

    - [Lee et al., 2019](https://arxiv.org/abs/1810.02340), equation 4: all kernels together
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134): with a given distribution

    Args:
        model, sparsity, distribution: See `magnitude_masks`.
        data: A pair `(inputs, targets)` or triple `(inputs, targets, sample_weight)`, or an
            iterable of such batches, which are read once, one after another.
        loss: A Keras loss, its name, or a function of targets and outputs; it is averaged over the
            examples: each counts with its weight, if it has one, as in `model.fit`. Of a model
            with several outputs, a function of all of them.

    Returns:
        `{kernel path: mask}`, with exact counts.

    Raises:
        ValueError: If an argument is out of its range, `data` is empty, endless or holds no such
            batches, the model has no sparse kernel, or the scores are not finite, or all 0.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> batch = np.ones((2, 8), "float32"), np.zeros((2, 4), "float32")
    >>> masks = snip_masks(model, batch, sparsity=0.75, loss="mse")
    """
    kernels = _kernel_values(model)
    gradients = _gradients(model, kernels, read_batches(data), loss)
    scores = {path: tf.abs(gradients[path] * kernel) for path, kernel in kernels.items()}
    return _select(model, _check_not_all_zero(scores), sparsity, distribution)


def grasp_masks(
    model: keras.Model,
    data: Data,
    sparsity: float,
    loss: Loss,
    distribution: Distribution | None = None,
    temperature: float = 200.0,
) -> Masks:
    """Keeps the connections whose removal would reduce the gradient flow most: GraSP.

    The score of a connection is `weight * (H g)`, with `g` the gradient and `H` the Hessian of the
    loss at the weights as they are; the highest are kept (the paper removes the highest of
    `-weight * (H g)`).

    Reference:

    - [Wang et al., 2020](https://arxiv.org/abs/2002.07376), equations 7 and 8

    Args:
        model, data, sparsity, loss, distribution: See `snip_masks`. The data is read twice, so it
            is kept in memory: the number of batches must be known.
        temperature: Number > 0. The outputs of the model, its logits, are divided by it, as in the
            authors' code.

    Returns:
        `{kernel path: mask}`, with exact counts.

    Raises:
        ValueError: See `snip_masks`. If the number of batches is not known.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> batch = np.ones((2, 8), "float32"), np.array([0, 3])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> masks = grasp_masks(model, batch, sparsity=0.75, loss=loss)
    """
    check_numbers("(0, inf)", temperature=temperature)
    kernels = _kernel_values(model)
    data = batches(data)
    first = _gradients(model, kernels, data, loss, temperature)
    products = _gradients(model, kernels, data, loss, temperature, along=first)
    scores = {path: kernel * products[path] for path, kernel in kernels.items()}
    return _select(model, _check_not_all_zero(scores), sparsity, distribution)


def check_sparse(model: keras.layers.Layer) -> dict[str, masks.SparseKernel]:
    """The sparse kernels of a model, `{path: kernel}`; a `ValueError` if there is none."""
    is_model = isinstance(model, keras.layers.Layer)
    kernels = masks.kernels_of(model) if is_model else {}
    if not kernels:
        raise ValueError(
            "Pruning needs a built sparse model: make one with `rigl_tf.sparsify(model, 0.0)`. "
            f"Received: model={model.name if is_model else model!r}, without sparse kernels"
        )
    return kernels


def _kernel_values(model):
    # Of a kernel with a copy on each replica, the first.
    return {
        path: masks.strategy_of(variable).experimental_local_results(variable.value)[0]
        for path, variable in (
            (path, kernel.variable) for path, kernel in check_sparse(model).items()
        )
    }


def _gradients(model, kernels, data, loss, temperature=1.0, along=None):
    """Gradients of the mean loss; with `along`, the products of its Hessian with that.

    A power of 2 makes up for the temperature, as small gradients are 0 in float16. It changes no
    digit, and not the order of the scores.
    """
    loss = mean_loss(loss)
    values = list(kernels.values())
    scale = 2.0 ** round(math.log2(temperature))
    # A layer, as it hands on the masks of timesteps.
    cool = keras.layers.Activation(lambda outputs: outputs / temperature, autocast=False)

    def of_batch(inputs, targets, sample_weight):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                outputs = tf.nest.map_structure(cool, model(inputs, training=True))
                value = scale * loss(targets, outputs, sample_weight)
            gradients = tape.gradient(value, values, unconnected_gradients="zero")
            gradients = [tf.convert_to_tensor(each) for each in gradients]
        if along is None:
            return gradients
        # The gradient of `along . gradients`, with `along` held fixed.
        products = outer.gradient(
            gradients,
            values,
            output_gradients=[*along.values()],
            unconnected_gradients="zero",
        )
        return [tf.convert_to_tensor(each) for each in products]

    with untouched_state(model):
        return dict(zip(kernels, mean_over(data, of_batch), strict=True))


def _check_not_all_zero(scores):
    if not any(tf.reduce_any(score != 0) for score in scores.values()):
        raise ValueError(
            "Not all scores may be 0, as they are if the loss has no (second) derivative, or one "
            "that is too small for float16. Received: 0 for every connection"
        )
    return scores


def _select(model, scores, sparsity, distribution):
    """Masks of the highest scores of active connections, in each kernel or in all together."""
    sparsity = distributions.check_sparsity(sparsity)
    active = masks.get_masks(model)
    bad = [
        path
        for path, score in scores.items()
        if not tf.reduce_all(tf.math.is_finite(score) | ~active[path])
    ]
    if bad:
        raise ValueError(
            "The scores must be finite, and so must the weights, the data and the loss; after a "
            f"training that diverged, they are not. Received: NaN or inf in {bad}"
        )
    lowest = float("-inf")
    scores = {path: tf.where(active[path], score, lowest) for path, score in scores.items()}
    units = {path: kernel.units for path, kernel in masks.kernels_of(model).items()}
    if distribution is None and not _are_fixed(units):
        dtype = keras.backend.result_type(*[score.dtype.name for score in scores.values()])
        spread = {path: units[path].spread(score) for path, score in scores.items()}
        flat = [tf.reshape(tf.cast(score, dtype), [-1]) for score in spread.values()]
        flat = tf.concat(flat, axis=0)
        size = flat.shape[0]
        chosen = selection.top_k_mask(flat, size - distributions.num_zeros(size, sparsity)).numpy()
        ends = np.cumsum([score.shape.num_elements() for score in scores.values()])[:-1]
        parts = np.split(chosen, ends)
        result = {
            path: part.reshape(score.shape)
            for (path, score), part in zip(scores.items(), parts, strict=True)
        }
        result = {
            path: mask
            if units[path].structure is None
            else units[path].top(scores[path], mask.sum() // units[path].unit_size).numpy()
            for path, mask in result.items()
        }
        _warn_of_emptied(active, result)
        return result
    shares = structures.allocate(distribution or "uniform", units, sparsity)
    return {
        path: units[path].top(score, int(units[path].count(shares[path]))).numpy()
        for path, score in scores.items()
    }


def _are_fixed(units):
    """Whether the structures say how many connections each kernel has."""
    return all(each.structure is not None and each.structure.sparsity for each in units.values())


def _warn_of_emptied(before, after):
    """Warns, at the line of the user, of kernels that have lost all of their connections."""
    emptied = [path for path, mask in after.items() if before[path].any() and not mask.any()]
    if not emptied:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "rigl_tf":
        level, frame = level + 1, frame.f_back
    warnings.warn(
        "Ranked together with the others, no connection is left in some kernels, and nothing comes "
        'through their layers any more; a `distribution`, or `scope="layerwise"` of a lottery '
        f"ticket, leaves some in each. Received: none in {emptied}",
        stacklevel=level,
    )
