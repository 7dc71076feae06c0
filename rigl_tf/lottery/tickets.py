"""Finds lottery tickets: train, prune the smallest weights, rewind, and repeat."""

import functools
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from rigl_tf import distributions, masks, pruning
from rigl_tf._types import Masks
from rigl_tf.checks import check_choice, check_integers, check_numbers
from rigl_tf.lottery.levels import (
    Level,
    Records,
    restore,
    shapes_of,
    state_of,
    trained_state,
    weights_of,
)
from rigl_tf.lottery.run import RewindPoint, Run, check_train


def find_ticket(
    model: keras.Model,
    train: Callable[[keras.Model, Run], Any],
    levels: int,
    prune_fraction: float = 0.2,
    scope: str = "global",
    rewind_step: int = 0,
    one_shot: bool = False,
    directory: str | os.PathLike[str] | None = None,
    rewind: str = "weights",
) -> list[Level]:
    """Finds a lottery ticket by magnitude pruning, iteratively or in one shot.

    The network is trained (level 0). At each further level, the weakest active connections are
    removed, the others are rewound to their earlier values, and the network is trained again. Of
    `n` active connections, exactly `floor(prune_fraction * n)` are removed. At the end the model is
    the ticket: it has the masks of the last level, and the weights from which that level started.
    If `train` moves connections, as `rigl_tf.RigL` does, the masks of a level are those after its
    training.

    All variables of the model are rewound, except the masks: kernels, biases, scale, offset and
    moving statistics of normalisations, states of random seeds and of recurrent layers. If the
    model is compiled, the optimizer starts every level in the state that it had when this function
    was called. If `train` creates an optimizer, it should create a new one in each call.

    Reference:

    - [Frankle and Carbin, 2019](https://arxiv.org/abs/1803.03635): rewinding to step 0
    - [Frankle et al., 2020](https://arxiv.org/abs/1912.05671): rewinding to step k
    - [Renda et al., 2020](https://arxiv.org/abs/2003.02389): rewinding of the learning rate

    Args:
        model: A built sparse `keras.Model`, made with `sparsify(model, 0.0)`.
        train: Function `train(model, run)`, see `rigl_tf.lottery.Run`. `run.level` is the level.
            With `rewind_step > 0` it must use `run.rewind`, as in the example. It may return any
            metrics, also the result of `model.fit`.
        levels: Integer >= 1, how many times to prune. There is one training more.
        prune_fraction: Share of the active connections that a level removes, in `(0, 1)`.
        scope: String. `"global"` ranks the connections of all sparse kernels together, and warns if
            a kernel loses all of its connections. With `"layerwise"` each kernel loses the share
            `prune_fraction` of its own connections, and keeps at least one.
        rewind_step: Integer >= 0, in steps (batches) of the first training.
        one_shot: Boolean, whether to prune only once, to the number of connections after `levels`
            prunings.
        directory: Path, or `None`. Finished levels are saved there and not trained again, so a
            stopped run continues at the first unfinished level. `levels` may be larger in a later
            run. The initial weights are saved, too, and are used instead of the model's weights.
        rewind: String. `"weights"`, or `"learning_rate"`: this keeps the trained weights and only
            starts the schedule again at `rewind_step`.

    Returns:
        List of `Level`, with `number`, `num_active`, `sparsity`, `masks`, `metrics` and `weights`:
        the levels 0 to `levels`, or only these two with `one_shot`.

    Raises:
        ValueError: If an argument is out of its range; the model has no sparse kernel, or CSR
            kernels, whose number of connections cannot change; weights must be rewound to
            `rewind_step`, but the first training does not reach it; a training ends with weights
            that are not finite; or `directory` has results of other settings.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> x, y = np.ones((20, 8)), np.zeros((20, 4))
    >>> def train(model, run):
    ...     model.compile(keras.optimizers.SGD(0.1), "mse")
    ...     return model.fit(x, y, verbose=0).history
    >>> [level.num_active for level in find_ticket(model, train, levels=2)]
    [32, 26, 21]

    Rewinding to the weights after 5 steps, where the learning rate schedule continues as well:

    >>> def train(model, run):
    ...     start = run.rewind.start_step
    ...     schedule = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=20)
    ...     optimizer = keras.optimizers.SGD(schedule)
    ...     optimizer.iterations.assign(start)
    ...     model.compile(optimizer, "mse")
    ...     where = {"epochs": 4, "initial_epoch": start // 5, "callbacks": [run.rewind]}
    ...     model.fit(x, y, batch_size=4, verbose=0, **where)
    >>> ticket = find_ticket(model, train, levels=2, rewind_step=5)[-1]
    """
    check_arguments(model, levels, prune_fraction, scope, rewind_step, rewind)
    check_train(train)
    settings = {
        "prune_fraction": float(prune_fraction),
        "scope": scope,
        "rewind": rewind,
        "rewind_step": int(rewind_step),
        "one_shot": bool(one_shot),
        "shapes": shapes_of(model),
    }
    records = Records(directory, settings)
    start = records.once("start", functools.partial(state_of, model))
    reset_optimizer = optimizer_reset(model)
    take = functools.partial(state_of, model) if rewind == "weights" else None
    weights = rewound = start["weights"]
    kernel_masks, last, results = start["masks"], None, []
    for number in (0, levels) if one_shot else range(levels + 1):
        if last is not None:
            restore(model, last["weights"], last["masks"])
            times = number if one_shot else 1
            kernel_masks = prune(model, prune_fraction, scope, times).values()
            weights = rewound if rewind == "weights" else last["weights"]
        restore(model, weights, kernel_masks)
        reset_optimizer()
        point = RewindPoint(rewind_step, rewind_step if number else 0, take)
        run = functools.partial(_run, model, train, number, point, rewind, directory)
        last = records.once(f"level-{number:03d}", run)
        rewound = last.get("rewound", rewound)
        results.append(_level(model, number, last, weights))
    restore(model, weights, results[-1].masks.values())
    reset_optimizer()
    return results


def prune(model: keras.Model, prune_fraction: float, scope: str, times: int = 1) -> Masks:
    """Masks that keep the largest weights after `times` prunings; see `find_ticket`.

    A global ranking may remove all connections of a kernel; a warning names such kernels.

    Example:

    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> [int(mask.sum()) for mask in prune(model, 0.2, "global", times=3).values()]
    [52]
    """
    kernel_masks = masks.get_masks(model)
    nums = nums_left(model, prune_fraction, scope, times)
    if scope == "global":
        size = sum(mask.size for mask in kernel_masks.values())
        found = pruning.magnitude_masks(model, _sparsity(size, *nums))
    else:
        shares = {
            path: _sparsity(mask.size, num_left)
            for (path, mask), num_left in zip(kernel_masks.items(), nums, strict=True)
        }
        found = pruning.magnitude_masks(model, 0.0, lambda shapes, sparsity: shares)
    return {path: mask & kernel_masks[path] for path, mask in found.items()}


def nums_left(model, prune_fraction, scope, times=1):
    """The numbers of connections that `prune` keeps, in all kernels together or in each kernel."""
    nums = [int(np.count_nonzero(mask)) for mask in masks.get_masks(model).values()]
    if scope == "global":
        nums = [sum(nums)]
    for _ in range(times):
        nums = [number - distributions.num_zeros(number, prune_fraction) for number in nums]
    return nums


def _sparsity(size, num_active):
    """A sparsity that keeps exactly `num_active` weights, at least one (0.5 for right rounding)."""
    return (size - max(num_active, 1) + 0.5) / size


def _run(model, train, number, point, rewind, directory):
    asked = Run(f"level {number}", level=number, rewind=point if point.step else None)
    metrics = train(model, asked)
    where = f"level {number}" if directory is None else f"level {number} in {str(directory)!r}"
    record = {**trained_state(model, where), "metrics": metrics}
    if number == 0 and point.step and rewind == "weights":
        if point.state is None:
            raise ValueError(
                "The first training must reach `rewind_step`, and `run.rewind` must see its "
                "steps: `model.fit(..., callbacks=[run.rewind])`, or "
                "`run.rewind.record(num_steps)` after each step. "
                f"Received: rewind_step={point.step}, steps seen={point.num_steps}"
            )
        record["rewound"] = point.state["weights"]
    return record


def _level(model, number, record, weights):
    kernel_masks = dict(zip(masks.kernels_of(model), record["masks"], strict=True))
    num_active = sum(int(np.count_nonzero(mask)) for mask in kernel_masks.values())
    size = sum(mask.size for mask in kernel_masks.values())
    sparsity = (size - num_active) / size
    metrics = record["metrics"]
    return Level(number, num_active, sparsity, kernel_masks, metrics, weights_of(model, weights))


def optimizer_reset(model):
    """A function that resets the optimizer of a compiled model to its current state."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return lambda: None
    if not optimizer.built:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)
    values = [variable.numpy() for variable in optimizer.variables]

    def reset():
        for variable, value in zip(optimizer.variables, values, strict=True):
            variable.assign(value)

    return reset


def check_arguments(model, levels, prune_fraction, scope, rewind_step, rewind="weights"):
    """Raises a `ValueError` unless these are arguments for `find_ticket`."""
    masks.check_sparse(model, "The search for a ticket", "`rigl_tf.sparsify(model, 0.0)`")
    masks.check_masked(model, "The search for a ticket")
    check_integers(1, levels=levels)
    check_integers(0, rewind_step=rewind_step)
    check_numbers("(0, 1)", prune_fraction=prune_fraction)
    check_choice(("global", "layerwise"), scope=scope)
    check_choice(("weights", "learning_rate"), rewind=rewind)
