"""Finds lottery tickets: train, prune the smallest weights, rewind, and repeat."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from rigl_tf import distributions, masks, pruning
from rigl_tf._types import Masks
from rigl_tf.checks import check_booleans, check_choice, check_integers, check_numbers
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

    Of kernels with a structure (`rigl_tf.structures`), whole units are removed, such as blocks: of
    `n` active units, exactly `floor(prune_fraction * n)`. A unit counts as one, whatever its size.
    With `ConstantFanIn` the units are connections; then each output that is used keeps the same
    number of those that are left to its kernel, rounded down, and at least one. A structure that
    sets the sparsity, such as `NM`, is refused.

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
            `prune_fraction` of its own connections, and keeps at least one. Of units in a global
            ranking, the mean sizes of their weights are compared (`Block(pooling="max")`: the
            largest sizes).
        rewind_step: Integer >= 0, in steps (batches) of the first training.
        one_shot: Boolean, whether to prune only once, to the number of connections after `levels`
            prunings. (With `ConstantFanIn` and a global ranking, or with units of different sizes,
            the numbers may differ a little, because they depend on the weights.)
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
            kernels, whose number of connections cannot change, or a structure that sets the
            sparsity; weights must be rewound to `rewind_step`, but the first training does not
            reach it; a training ends with weights that are not finite; or `directory` has results
            of other settings.

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
    check_booleans(one_shot=one_shot)
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
    found = next(itertools.islice(prunings(model, prune_fraction, scope), times, None))
    if scope == "global":
        pruning.warn_of_emptied(masks.get_masks(model), found)
    return found


def prunings(model: keras.Model, prune_fraction: float, scope: str) -> Iterator[Masks]:
    """Yields the masks of a model, then those after one pruning, after two, and so on."""
    kernels, kernel_masks = masks.kernels_of(model), masks.get_masks(model)
    units = {path: kernel.units for path, kernel in kernels.items()}
    scores = {path: np.abs(kernel.numpy()) for path, kernel in kernels.items()}
    while True:
        yield kernel_masks
        if scope == "global":
            nums = _nums_together(units, kernel_masks, scores, prune_fraction)
        else:
            nums = [int(units[path].num_active(mask)) for path, mask in kernel_masks.items()]
            nums = [_num_left(num, prune_fraction) for num in nums]
        kernel_masks = {
            path: units[path].keep(mask, scores[path], num).numpy()
            for (path, mask), num in zip(kernel_masks.items(), nums, strict=True)
        }


def _nums_together(units, kernel_masks, scores, prune_fraction):
    """How many units of each kernel are left if the units of all kernels are ranked together."""
    ranked = []
    for path, mask in kernel_masks.items():
        of_weights = np.asarray(units[path].spread(scores[path]))[mask].astype("float64")
        # All weights of a unit have its score.
        ranked.append(np.sort(of_weights)[:: units[path].unit_size])
    owners = np.repeat(np.arange(len(ranked)), [each.size for each in ranked])
    # Of equal scores, those of the first kernel stay.
    best = np.argsort(-np.concatenate(ranked), kind="stable")
    return np.bincount(owners[best[: _num_left(best.size, prune_fraction)]], minlength=len(ranked))


def _num_left(num, prune_fraction):
    return num - distributions.num_zeros(num, prune_fraction)


def sparsity_of(kernel_masks: Masks) -> float:
    """The share of zeros over all masks together."""
    size = sum(mask.size for mask in kernel_masks.values())
    return (size - _num_active(kernel_masks)) / size


def _num_active(kernel_masks):
    return sum(int(np.count_nonzero(mask)) for mask in kernel_masks.values())


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
    return Level(
        number,
        num_active=_num_active(kernel_masks),
        sparsity=sparsity_of(kernel_masks),
        masks=kernel_masks,
        metrics=record["metrics"],
        weights=weights_of(model, weights),
    )


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


def check_sparsity_is_free(model, caller):
    """Raises a `ValueError` if the structure of a kernel sets its sparsity, such as `NM`."""
    fixed = {
        path: str(kernel.units.structure)
        for path, kernel in masks.kernels_of(model).items()
        if kernel.units.structure is not None and kernel.units.structure.sparsity
    }
    if fixed:
        raise ValueError(
            f"{caller} prunes step by step, so no structure may set the sparsity of a kernel: use "
            "another structure, or prune once with `rigl_tf.pruning.magnitude_masks`. "
            f"Received: {fixed}"
        )


def check_arguments(model, levels, prune_fraction, scope, rewind_step, rewind="weights"):
    """Raises a `ValueError` unless these are arguments for `find_ticket`."""
    masks.check_sparse(model, "The search for a ticket", "`rigl_tf.sparsify(model, 0.0)`")
    masks.check_masked(model, "The search for a ticket")
    check_sparsity_is_free(model, "The search for a ticket")
    check_integers(1, levels=levels)
    check_integers(0, rewind_step=rewind_step)
    check_numbers("(0, 1)", prune_fraction=prune_fraction)
    check_choice(("global", "layerwise"), scope=scope)
    check_choice(("weights", "learning_rate"), rewind=rewind)
