"""Lottery tickets: train, prune the smallest weights, rewind, again."""

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
    """Finds a lottery ticket by magnitude pruning, iterative or in one shot.

    The network is trained (level 0); at each level the weakest `prune_fraction` of its active
    connections go, the others are rewound, and it is trained again. Of `n` active connections,
    `floor(prune_fraction * n)` go: a fixed number, whatever the weights. In the end the model is
    the ticket: the masks of the last level, and the weights which that level started from.

    Rewound are all variables of the model but the masks: kernels, biases, the scale, offset and
    moving statistics of normalisations, the states of random seeds. If the model is compiled, the
    optimizer starts at every level as it was when this function was called; an optimizer that
    `train` makes is its own affair (to make one each time is right).

    Reference:

    - [Frankle and Carbin, 2019](https://arxiv.org/abs/1803.03635), to step 0
    - [Frankle et al., 2020](https://arxiv.org/abs/1912.05671), to step k
    - [Renda et al., 2020](https://arxiv.org/abs/2003.02389), of the learning rate

    Args:
        model: A built sparse `keras.Model`, made with `sparsify(model, 0.0)`.
        train: Function `train(model, run)`, see `rigl_tf.lottery.Run`. `run.level` is an integer;
            with `rewind_step > 0` there is `run.rewind`, as in the example. It may return any
            metrics, also what `model.fit` returns.
        levels: Integer >= 1, how many times to prune. Trainings are one more.
        prune_fraction: Share of the active connections that a level prunes, in `(0, 1)`.
        scope: `"global"` ranks the connections of all sparse kernels together, and warns if none of
            a kernel's are left; with `"layerwise"` each kernel loses its own weakest
            `prune_fraction`, and keeps one at least.
        rewind_step: Integer >= 0, in steps (batches) of the first training.
        one_shot: Whether to prune once, to the counts that `levels` prunings have.
        directory: Path, or `None`. Finished levels are kept there: a run that was stopped goes on
            at the first unfinished one, also to more `levels`, and a finished one is never trained
            again. The initial weights are kept too: they count, whatever weights `model` has then.
        rewind: `"weights"`; or `"learning_rate"`, which keeps the trained weights and only starts
            the schedule again, at `rewind_step`.

    Returns:
        List of `Level`, with `number`, `num_active`, `sparsity`, `masks`, `metrics` and `weights`:
        levels 0 to `levels`, or these two if `one_shot`.

    Raises:
        ValueError: If an argument is out of its range, the model has no sparse kernel, the first
            training does not come to `rewind_step` where weights are rewound to it, a training ends
            with weights that are not finite, or `directory` has results of other settings.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> x, y = np.ones((20, 8)), np.zeros((20, 4))
    >>> def train(model, run):
    ...     model.compile(keras.optimizers.SGD(0.1), "mse")
    ...     return model.fit(x, y, verbose=0).history
    >>> [level.num_active for level in find_ticket(model, train, levels=2)]
    [32, 26, 21]

    To weights after 5 steps, where a schedule goes on as well:

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
    restore(model, weights, kernel_masks)
    reset_optimizer()
    return results


def prune(model: keras.Model, prune_fraction: float, scope: str, times: int = 1) -> Masks:
    """Masks that keep the largest weights, with the counts of `times` prunings; see `find_ticket`.

    A kernel without active connections stays without. A global ranking may take all of a kernel:
    a warning names it.

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
    """How many connections `prune` leaves, whatever the weights: in all, or in each kernel."""
    nums = [int(np.count_nonzero(mask)) for mask in masks.get_masks(model).values()]
    if scope == "global":
        nums = [sum(nums)]
    for _ in range(times):
        nums = [number - distributions.num_zeros(number, prune_fraction) for number in nums]
    return nums


def _sparsity(size, num_active):
    """A sparsity that leaves exactly so many, but one at least; half a weight rounds it rightly."""
    return (size - max(num_active, 1) + 0.5) / size


def _run(model, train, number, point, rewind, directory):
    asked = Run(f"level {number}", level=number, rewind=point if point.step else None)
    metrics = train(model, asked)
    where = f"level {number}" if directory is None else f"level {number} in {str(directory)!r}"
    record = {**trained_state(model, where), "metrics": metrics}
    if number == 0 and point.step and rewind == "weights":
        if point.state is None:
            raise ValueError(
                "The first training must come to `rewind_step`, and tell `run.rewind` of its "
                "steps: `model.fit(..., callbacks=[run.rewind])`, or "
                "`run.rewind.record(num_steps)` after each. "
                f"Received: rewind_step={point.step}, steps told of={point.num_steps}"
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
    """A function that sets the optimizer of a compiled model to what it is now."""
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
    """Raises a `ValueError` unless these are what `find_ticket` takes."""
    pruning.check_sparse(model)
    check_integers(1, levels=levels)
    check_integers(0, rewind_step=rewind_step)
    check_numbers("(0, 1)", prune_fraction=prune_fraction)
    check_choice(("global", "layerwise"), scope=scope)
    check_choice(("weights", "learning_rate"), rewind=rewind)
