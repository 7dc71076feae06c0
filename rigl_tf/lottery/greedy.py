"""Greedy forward selection: selects the units of a trained layer that are enough."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf._types import Loss
from rigl_tf.checks import check_booleans, check_choice, check_integers, check_numbers
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
    """Selects units of a layer one by one, so that a few units replace all units of the layer.

    The contributions of the `N` units of a layer to the next layer are seen as a mean: the
    contribution of unit `i` is `N` times its part of the next layer's outputs. The selected units
    form a weighted mean instead, with weights `a` whose sum is 1. The first step selects the best
    single unit. Each further step takes the unit `i` and the rate `r` in
    `[-a[i] / (1 - a[i]), 1]` that lower the discrepancy most, and sets `a = (1 - r) * a`, then
    `a[i] += r`. So a step adds a unit, changes the weight of a unit, or (at the lowest rate)
    removes a unit. The discrepancy never rises. It is one of these:

    - `imitate="local"`: the squared norm of the change of the next layer's outputs, before bias and
      activation; the mean over the examples, the sum over units and pixels. The best rate of each
      unit is given by a formula.
    - `imitate="global"`: the loss of the whole network. A first-order (Taylor) approximation ranks
      the units at the rate `1 / (n + 1)`, where `n` units are selected. The best few of them (with
      `score="exact"`, all units) are evaluated at four rates up and down, and at the lowest rate.

    With `repetition=False`, each step adds a new unit at the rate `1 / (n + 1)`, so all weights are
    `1 / n`. The discrepancy may rise for a while.

    Not confirmed by the paper, which was not available in full: the rates and exact evaluations of
    the global imitation, and that it may remove units. The steps without repetition and the random
    candidates (50 in each step) follow the public code of the authors' earlier paper, which also
    fine-tunes after each layer. To select units in several layers, go from the first layer to the
    last, each time with the model that `keep_units` has returned, fine-tuned or not.

    References:

    - [Ye et al., 2020](https://arxiv.org/abs/2010.15969), greedy optimization
    - [Ye et al., 2020](https://arxiv.org/abs/2003.01794), the earlier paper

    Args:
        model: A built Sequential or Functional `keras.Model` without sparse wrappers. It is not
            changed.
        layer: String, the name of a Dense or Conv2D layer whose outputs go to one other Dense or
            Conv2D layer. Between them there may be layers that treat each unit in the same way
            (activations, pooling, Dropout), BatchNormalization, DepthwiseConv2D and Flatten. So it
            also works for the expansions of MobileNetV2.
        inputs: Array, or a tuple or dictionary of arrays, as the model takes them. The global
            imitation evaluates all of them at once. The local imitation needs memory for a square
            matrix with as many rows as the next kernel.
        num_units: Integer >= 1, at most the number of units of the layer: selection stops with this
            number of units. `num_units`, `tolerance` or both must be given.
        tolerance: Float >= 0: selection stops at this discrepancy.
        imitate: String: `"local"` or `"global"`.
        repetition: Boolean, whether a unit may be selected several times.
        targets: Array, the targets of `loss`, for the global imitation. Defaults to the outputs of
            the model.
        loss: A Keras loss, its name, or a function of targets and outputs, for the global
            imitation. It is averaged over the examples. Defaults to the squared norm of the
            difference.
        score: String, for the global imitation: `"taylor"` or `"exact"`.
        num_candidates: Integer >= 1, the number of random units that each step tries first. It
            tries others only if none of these lowers the discrepancy. Defaults to all units.
        max_steps: Integer >= 1. Defaults to 10 steps for each unit of the layer.
        seed: Integer >= 0, for the random candidates.

    Returns:
        A `Selection`, for `keep_units`. It may stop before `num_units` and `tolerance` are reached:
        if no step lowers the discrepancy, or after `max_steps`.

    Raises:
        ValueError: If an argument is out of its range, other layers follow the layer, the loss does
            not take the targets, or a discrepancy is not finite.

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
    check_booleans(repetition=repetition)
    _check_end(num_units, tolerance)
    link = link_of(model, layer)
    inputs = _arrays(inputs)
    _check_size(num_units, layer, link)
    own = keras.ops.convert_to_numpy(link.next_layer.kernel)
    if imitate == "local":
        _check_local(targets, loss, score)
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
            # A smaller difference is rounding.
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
            "`num_units`, `tolerance` or both must say when to stop. Received: neither"
        )


def _arrays(inputs):
    arrays = tf.nest.map_structure(np.asarray, inputs)
    if isinstance(inputs, list) or any(not each.shape for each in tf.nest.flatten(arrays)):
        raise ValueError(
            "`inputs` must be an array, or a tuple or dictionary of arrays. "
            f"Received: {type(inputs).__name__}"
        )
    if not all(len(each) for each in tf.nest.flatten(arrays)):
        raise ValueError("`inputs` must have at least one example. Received: none")
    return arrays


def _check_size(num_units, layer, link):
    if num_units is not None and num_units > link.num_units:
        raise ValueError(
            "`num_units` must be at most the units of the layer. "
            f"Received: num_units={num_units}, and layer {layer!r} of {link.num_units} units"
        )


def _check_local(targets, loss, score):
    if targets is not None or loss is not None or score != "taylor":
        raise ValueError(
            "`targets`, `loss` and `score` can be used only for the global imitation, "
            "`imitate=\"global\"`. Received: imitate='local'"
        )


def _check_outputs(model):
    if len(model.outputs) != 1:
        raise ValueError(
            "The global imitation needs a model with one output. "
            f"Received: model={model.name!r} with {len(model.outputs)}"
        )
