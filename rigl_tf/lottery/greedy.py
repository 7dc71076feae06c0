"""Greedy forward selection: which units of a trained layer are enough."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf._types import Loss
from rigl_tf.checks import check_choice, check_integers, check_numbers
from rigl_tf.lottery.imitation import GlobalImitation, LocalImitation
from rigl_tf.lottery.units import Selection, link_of


def select_units(
    model: keras.Model,
    layer: str,
    inputs: Any,
    num_units: int | None = None,
    tolerance: float | None = None,
    imitate: str = "local",
    repetition: bool = True,
    targets: np.ndarray | None = None,
    loss: Loss | None = None,
    score: str = "taylor",
    num_candidates: int | None = None,
    max_steps: int | None = None,
    seed: int = 0,
) -> Selection:
    """Selects units of a layer one after another, so that they do what all of them did.

    A layer of `N` units sends the mean of `N` contributions to the next layer's outputs: that of
    unit `i` is `N` times what goes through it. Selected units send a weighted mean instead, of
    weights `a` that sum to 1. From the best single unit on, each step takes the unit `i` and the
    rate `r` in `[-a[i] / (1 - a[i]), 1]` that lower the discrepancy most, and sets
    `a = (1 - r) * a`, `a[i] += r`. So a step adds a unit, or adjusts the weight of one, or deletes
    it, at the lower end; the discrepancy never rises. It is:

    - `imitate="local"`, the squared norm of the change in the next layer's outputs, before its
      bias and activation: mean over the examples, sum over units and pixels. The best rate of each
      unit has a closed form.
    - `imitate="global"`, the loss of the whole network. A first-order (Taylor) approximation ranks
      the units, at rates of `1 / (n + 1)` with `n` selected ones; the best few, with
      `score="exact"` all, are then evaluated at four rates up and down, and at the lower end.

    Without repetition each step adds another unit at a rate of `1 / (n + 1)`: all weights are
    `1 / n`. The discrepancy may rise for a while; of all units it is that of the layer.

    Unconfirmed: the paper was not at hand in full. The local imitation, its range of rates and
    the idea of the global one are from notes of it; the rates and the exact evaluations of the
    global one, and that it may delete, are our choice. The steps without repetition and the random
    candidates (50 a step there) are those of the public code for the authors' earlier paper, which
    fine-tunes after each layer as well. To select in several layers, do it from the first to the
    last, each time in the model that `keep_units` gave, fine-tuned or not.

    References:

    - [Ye et al., 2020](https://arxiv.org/abs/2010.15969), greedy optimization
    - [Ye et al., 2020](https://arxiv.org/abs/2003.01794), the earlier paper

    Args:
        model: A built Sequential or Functional `keras.Model` without sparse wrappers, a chain or
            not. It is not changed.
        layer: Name of a Dense or Conv2D layer whose outputs go to one other such layer. Between
            them may stand layers that treat each unit alike (activations, pooling, Dropout),
            BatchNormalization, DepthwiseConv2D and Flatten: so the expansions of MobileNetV2 are
            such layers, too.
        inputs: Array of inputs, or a tuple or dictionary of arrays, as the model takes them. The
            global imitation evaluates all at once; the local one needs memory for the square of
            the rows of the next kernel.
        num_units: Integer >= 1, at most the units of the layer. Stops with so many units.
        tolerance: Float >= 0. Stops at this discrepancy. `num_units`, `tolerance` or both.
        imitate: `"local"` or `"global"`.
        repetition: Whether a unit that was selected may be selected again.
        targets: Of the global imitation: array, the targets of `loss`, by default the model's own
            outputs.
        loss: Of the global imitation: a Keras loss, its name, or a function of targets and outputs;
            it is averaged over the examples. Defaults to the squared norm of the difference.
        score: Of the global imitation: `"taylor"` or `"exact"`.
        num_candidates: Integer >= 1: each step considers so many random units at first, and others
            only if none of them lowers the discrepancy. Defaults to all.
        max_steps: Integer >= 1. Defaults to 10 for each unit of the layer.
        seed: Integer >= 0, of the random candidates.

    Returns:
        A `Selection`, for `keep_units`. It stops short of `num_units` and `tolerance` if no step
        lowers the discrepancy, or after `max_steps`.

    Raises:
        ValueError: If an argument is out of its range, the layer is not followed as above, the loss
            does not take the targets, or a discrepancy is not finite.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(20, "relu", name="hidden"),
    ...     keras.layers.Dense(3)])
    >>> inputs = np.random.default_rng(0).normal(size=(50, 4))
    >>> selection = select_units(model, "hidden", inputs, num_units=8)
    >>> len(selection.units), round(float(selection.weights.sum()), 6)
    (8, 1.0)
    >>> selection.discrepancies == sorted(selection.discrepancies, reverse=True)
    True
    """
    check_choice(("local", "global"), imitate=imitate)
    check_choice(("taylor", "exact"), score=score)
    counts = {"num_units": num_units, "num_candidates": num_candidates, "max_steps": max_steps}
    check_integers(1, **{name: n for name, n in counts.items() if n is not None})
    check_integers(0, seed=seed)
    _check_end(num_units, tolerance)
    link = link_of(model, layer)
    inputs = _arrays(inputs)
    _check_size(num_units, layer, link)
    own = keras.ops.convert_to_numpy(link.next_layer.kernel)
    if imitate == "local":
        _check_local(targets, loss)
        objective = LocalImitation(model, link, inputs)
    else:
        _check_outputs(model)
        objective = GlobalImitation(model, link, inputs, targets, loss, score)
    try:
        return _select(
            objective,
            link.num_units,
            lambda units, value: (
                units == num_units or (tolerance is not None and value <= tolerance)
            ),
            repetition,
            num_candidates or link.num_units,
            max_steps or 10 * link.num_units,
            np.random.default_rng(seed),
        )
    finally:
        link.next_layer.kernel.assign(own)


def _select(objective, size, is_enough, repetition, num_candidates, max_steps, generator):
    shares, value = np.zeros(size), np.inf
    discrepancies, num_units = [], []
    for step in range(max_steps):
        fixed_rate = None if repetition and step else 1 / (step + 1)
        candidates = generator.permutation(
            np.arange(size) if repetition else np.flatnonzero(shares == 0)
        )
        for start in range(0, len(candidates), num_candidates):
            some = np.sort(candidates[start : start + num_candidates])
            new_shares, new_value = objective.best(shares, some, fixed_rate)
            _check_finite(new_value)
            # Less is rounding.
            if fixed_rate is not None or new_value < value * (1 - 1e-9):
                break
        else:
            break
        shares, value = new_shares, new_value
        discrepancies.append(value)
        num_units.append(int(np.count_nonzero(shares)))
        if is_enough(num_units[-1], value):
            break
    units = np.flatnonzero(shares)
    return Selection(units, shares[units], discrepancies, num_units, size)


def _check_finite(value):
    if not np.isfinite(value):
        raise ValueError(
            "A discrepancy must be finite, and so must the inputs, the targets and the weights of "
            f"the model. Received: a discrepancy of {value}"
        )


def _check_end(num_units, tolerance):
    if tolerance is not None:
        check_numbers("[0, inf]", tolerance=tolerance)
    if num_units is None and tolerance is None:
        raise ValueError(
            "When to stop must be given: `num_units`, `tolerance` or both. Received: neither"
        )


def _arrays(inputs):
    arrays = tf.nest.map_structure(np.asarray, inputs)
    if isinstance(inputs, list) or any(not each.shape for each in tf.nest.flatten(arrays)):
        raise ValueError(
            "`inputs` must be an array, or a tuple or dictionary of arrays. "
            f"Received: {type(inputs).__name__}"
        )
    if not all(len(each) for each in tf.nest.flatten(arrays)):
        raise ValueError("`inputs` must have one example at least. Received: none")
    return arrays


def _check_size(num_units, layer, link):
    if num_units is not None and num_units > link.num_units:
        raise ValueError(
            "`num_units` must be at most the units of the layer. "
            f"Received: num_units={num_units}, and layer {layer!r} of {link.num_units} units"
        )


def _check_local(targets, loss):
    if targets is not None or loss is not None:
        raise ValueError(
            '`targets` and `loss` are those of the global imitation: `imitate="global"`. '
            "Received: imitate='local'"
        )


def _check_outputs(model):
    if len(model.outputs) != 1:
        raise ValueError(
            "The global imitation needs a model with one output. "
            f"Received: model={model.name!r} with {len(model.outputs)}"
        )
