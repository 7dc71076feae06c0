"""Pruning in one step: masks from scores, before training (SNIP, GraSP) or after it (magnitude).

Each function returns masks, `{kernel path: boolean array}`, for `rigl_tf.set_masks`; it does not
change the model. The numbers of active connections are exact; of kernels with a structure, they are
those of whole units, with `ConstantFanIn` the same number for each output. If all kernels are
ranked together, as in the papers, they are rounded down to these, and a kernel may lose all of its
connections, so that no signal passes its layer. A warning names such kernels.
"""

import math
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import distributions, masks, selection, structures
from rigl_tf._types import Data, Distribution, Loss, Masks
from rigl_tf.checks import check_numbers, check_seed
from rigl_tf.objective import batches, mean_loss, mean_over, read_batches, untouched_state
from rigl_tf.second_derivatives import exact_moments, times_hessian


def magnitude_masks(
    model: keras.Model, sparsity: float, distribution: Distribution | None = None
) -> Masks:
    """Keeps the connections with the largest weights.

    Args:
        model: A built sparse `keras.Model`. To prune a dense model, make it sparse with
            `sparsify(model, 0.0)` first. Inactive connections stay inactive, as long as there are
            enough active ones.
        sparsity: Share of zeros over all sparse kernels, in `[0, 1)`. (With `"uniform"` it is the
            share in each kernel but the first, which stays dense.)
        distribution: How the kernels share the sparsity, see `rigl_tf.sparsify`. Then each kernel
            keeps at least one connection. With `None` the connections of all kernels are ranked
            together, with a warning if a kernel loses all of its connections.

    Returns:
        `{kernel path: mask}` with exact numbers of active connections, in whole units of kernels
        with a structure. Among equal scores, those with the lower index stay.

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
    kernels, values = _kernels(model), _kernel_values(model)
    scores = {path: tf.abs(kernels[path].dense(value)) for path, value in values.items()}
    return _select(model, scores, sparsity, distribution)


def random_masks(
    model: keras.Model, sparsity: float, distribution: Distribution | None = "erk", seed: int = 0
) -> Masks:
    """Keeps connections at random.

    Args:
        model: A built sparse `keras.Model`, see `magnitude_masks`.
        sparsity: Share of zeros over all sparse kernels, in `[0, 1)`. (With `"uniform"` it is the
            share in each kernel but the first, which stays dense.)
        distribution: How the kernels share the sparsity, see `magnitude_masks`.
        seed: Integer. The masks depend on it, on the index of each kernel and on its shape.

    Returns:
        `{kernel path: mask}` with exact numbers of active connections.

    Raises:
        ValueError: If an argument is out of its range, or the model has no sparse kernel.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> [int(mask.sum()) for mask in random_masks(model, sparsity=0.75, seed=3).values()]
    [8]
    """
    check_seed(seed)
    scores = {
        path: tf.random.stateless_uniform(kernel.shape, (seed, index), dtype=tf.float64)
        for index, (path, kernel) in enumerate(_kernels(model).items())
    }
    return _select(model, scores, sparsity, distribution)


def snip_masks(
    model: keras.Model,
    data: Data,
    sparsity: float,
    loss: Loss,
    distribution: Distribution | None = None,
) -> Masks:
    """Keeps the connections whose removal would change the loss most (SNIP).

    The score of a connection is `|gradient * weight|`, where the gradient is that of the mean loss
    over `data` at the current weights, usually the initial ones.

    Reference:

    - [Lee et al., 2019](https://arxiv.org/abs/1810.02340), equation 4: all kernels together
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134): with a given distribution

    Args:
        model: A built sparse `keras.Model`, see `magnitude_masks`.
        data: A pair `(inputs, targets)` or a triple `(inputs, targets, sample_weight)`; or an
            iterable of such batches, which is read once.
        sparsity: Share of zeros over all sparse kernels, in `[0, 1)`. (With `"uniform"` it is the
            share in each kernel but the first, which stays dense.)
        loss: A Keras loss, its name, or a function of targets and outputs. It is averaged over the
            examples, each with its weight if there are weights, as in `model.fit`. It gets targets
            and outputs in float32, as there. For a model with several outputs it must be a function
            of all targets and all outputs, which it gets as they are.
        distribution: How the kernels share the sparsity, see `magnitude_masks`.

    Returns:
        `{kernel path: mask}` with exact numbers of active connections.

    Raises:
        ValueError: If an argument is out of its range; `data` is empty, endless or not made of such
            batches; the model has no sparse kernel; or the scores are not finite, or all 0.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> batch = np.ones((2, 8), "float32"), np.zeros((2, 4), "float32")
    >>> masks = snip_masks(model, batch, sparsity=0.75, loss="mse")
    """
    kernels, values = _kernels(model), _kernel_values(model)
    gradients = _gradients(model, values, read_batches(data), loss)
    scores = {
        path: kernels[path].dense(tf.abs(gradients[path] * value)) for path, value in values.items()
    }
    return _select(model, _check_not_all_zero(scores), sparsity, distribution)


def grasp_masks(
    model: keras.Model,
    data: Data,
    sparsity: float,
    loss: Loss,
    distribution: Distribution | None = None,
    temperature: float = 200.0,
) -> Masks:
    """Keeps the connections whose removal would reduce the gradient flow most (GraSP).

    The score of a connection is `weight * (H g)`, where `g` is the gradient and `H` the Hessian of
    the loss at the current weights. The connections with the highest scores are kept. (The paper
    removes those with the highest `-weight * (H g)`, which is the same.)

    Reference:

    - [Wang et al., 2020](https://arxiv.org/abs/2002.07376), equations 7 and 8

    Args:
        model: A built sparse `keras.Model`, see `magnitude_masks`.
        data: As in `snip_masks`. It is read twice, so it is kept in memory; its number of batches
            must be known.
        sparsity: Share of zeros over all sparse kernels, in `[0, 1)`. (With `"uniform"` it is the
            share in each kernel but the first, which stays dense.)
        loss: As in `snip_masks`.
        distribution: How the kernels share the sparsity, see `magnitude_masks`.
        temperature: Number > 0. The outputs of the model, its logits, are divided by it, as in the
            authors' code.

    Returns:
        `{kernel path: mask}` with exact numbers of active connections.

    Raises:
        ValueError: As `snip_masks`; or if the number of batches is unknown, the model has CSR
            kernels, or TensorFlow has no second derivative of an operation.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> batch = np.ones((2, 8), "float32"), np.array([0, 3])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> masks = grasp_masks(model, batch, sparsity=0.75, loss=loss)
    """
    check_numbers("(0, inf)", temperature=temperature)
    kernels = _kernel_values(model)
    masks.check_masked(model, "`grasp_masks`")
    data = batches(data)
    first = _gradients(model, kernels, data, loss, temperature)
    products = _gradients(model, kernels, data, loss, temperature, along=first)
    scores = {path: kernel * products[path] for path, kernel in kernels.items()}
    return _select(model, _check_not_all_zero(scores), sparsity, distribution)


def _kernels(model):
    return masks.check_sparse(model, "Pruning", "`rigl_tf.sparsify(model, 0.0)`")


def _kernel_values(model):
    # If there is a copy of a kernel on each replica, the first copy.
    return {
        path: masks.strategy_of(variable).experimental_local_results(variable.value)[0]
        for path, variable in ((path, kernel.variable) for path, kernel in _kernels(model).items())
    }


def _gradients(model, kernels, data, loss, temperature=1.0, along=None):
    """Gradients of the mean loss, or with `along` the products of its Hessian with `along`.

    The loss is multiplied by a power of 2 near the temperature, because small gradients become 0 in
    float16. This changes neither the digits nor the order of the scores.
    """
    loss = mean_loss(loss)
    values = list(kernels.values())
    scale = 2.0 ** round(math.log2(temperature))
    # A layer, because it passes on the masks of timesteps.
    cool = keras.layers.Activation(_divided_by(temperature), autocast=False)

    def of_batch(inputs, targets, sample_weight):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                outputs = tf.nest.map_structure(cool, model(inputs, training=True))
                value = scale * loss(targets, outputs, sample_weight)
            gradients = tape.gradient(value, values, unconnected_gradients="zero")
            gradients = [tf.convert_to_tensor(each) for each in gradients]
        if along is None:
            return gradients
        products = times_hessian(outer, gradients, values, [*along.values()])
        return [tf.convert_to_tensor(each) for each in products]

    if along is not None and not model.run_eagerly:
        # In a graph, operations without second derivative can be found.
        of_batch = tf.function(of_batch, autograph=False, reduce_retracing=True)
    with untouched_state(model), exact_moments():
        return dict(zip(kernels, mean_over(data, of_batch), strict=True))


def _divided_by(temperature):
    """A function that divides outputs of floating point; an output of classes has no gradient."""
    return lambda outputs: outputs / temperature if outputs.dtype.is_floating else outputs


def _check_not_all_zero(scores):
    if not any(tf.reduce_any(score != 0) for score in scores.values()):
        raise ValueError(
            "The scores must not all be 0. They are if the loss has no (second) derivative, or one "
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
            "The scores must be finite, and so must the weights, the data and the loss. They are "
            f"not after a training that diverged. Received: NaN or inf in {bad}"
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
        warn_of_emptied(active, result)
        return result
    shares = structures.allocate(distribution or "uniform", units, sparsity)
    return {
        path: units[path].top(score, int(units[path].count(shares[path]))).numpy()
        for path, score in scores.items()
    }


def _are_fixed(units):
    """Whether the structures set the number of active connections of all kernels."""
    return all(each.structure is not None and each.structure.sparsity for each in units.values())


def warn_of_emptied(before: Masks, after: Masks) -> None:
    """Warns, with the line of the user's code, if kernels have lost all of their connections."""
    emptied = [path for path, mask in after.items() if before[path].any() and not mask.any()]
    if not emptied:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "rigl_tf":
        level, frame = level + 1, frame.f_back
    warnings.warn(
        "All kernels were ranked together, and some kernels have no connection left, so no signal "
        'passes their layers. With a `distribution` (or `scope="layerwise"` for a lottery ticket) '
        f"each kernel keeps some. Received: none in {emptied}",
        stacklevel=level,
    )
