"""Lottery tickets: train, prune the smallest weights, rewind, again."""

import functools
from numbers import Real

import keras
import numpy as np

from rigl_tf import distributions, masks, pruning
from rigl_tf.checks import check_choice, check_functions, check_integers
from rigl_tf.lottery.levels import (
    Level,
    Records,
    restore,
    shapes_of,
    state_of,
    trained_state,
    weights_of,
)


class RewindPoint(keras.callbacks.Callback):
    """Where later trainings start: `find_ticket` gives it to `train` if `rewind_step` is not 0.

    In the first training it takes the weights after `step` steps, if they are to be rewound, and it
    is among the callbacks of `model.fit`, or a custom loop calls `record` after each step.

    Attributes:
        step: Integer, the step to rewind to.
        start_step: Integer, the step that this training starts from: 0 in the first, `step` after
            it.
        num_steps: Integer, the steps that this training was seen to do.
    """

    def __init__(self, step, start_step, take):
        super().__init__()
        self.step = step
        self.start_step = start_step
        self.state = None
        self._take = take  # `None` if no weights are rewound
        self._num_before = 0
        self.num_steps = 0

    def record(self, num_steps):
        """Tells that the first training has done `num_steps` steps by now."""
        self.num_steps = num_steps
        if self._take is None or self.start_step or self.state is not None:
            return
        if num_steps == self.step:
            self.state = self._take()
        elif num_steps > self.step:
            raise ValueError(
                "The first training must stop over at `rewind_step`; with `steps_per_execution`, "
                "choose a multiple of it. Received: rewind_step="
                f"{self.step}, steps done={num_steps}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._num_before = self.num_steps

    def on_train_batch_end(self, batch, logs=None):
        self.record(self._num_before + batch + 1)


def find_ticket(
    model,
    train,
    levels,
    prune_fraction=0.2,
    scope="global",
    rewind_step=0,
    one_shot=False,
    directory=None,
    rewind="weights",
):
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
        train: Function `train(model, level) -> metrics` that trains the model to the end in place;
            `level` is an integer, the metrics are numbers, in lists or dictionaries, or what
            `model.fit` returns. With
            `rewind_step > 0` it is `train(model, level, rewind)`: hand `rewind` to
            `model.fit(..., callbacks=[rewind])`, or call `rewind.record(num_steps)` after each step
            of your own loop; begin at `rewind.start_step`, as in the example.
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
    >>> def train(model, level):
    ...     model.compile(keras.optimizers.SGD(0.1), "mse")
    ...     return model.fit(x, y, verbose=0).history
    >>> [level.num_active for level in find_ticket(model, train, levels=2)]
    [32, 26, 21]

    To weights after 5 steps, where a schedule goes on as well:

    >>> def train(model, level, rewind):
    ...     schedule = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=20)
    ...     optimizer = keras.optimizers.SGD(schedule)
    ...     optimizer.iterations.assign(rewind.start_step)
    ...     model.compile(optimizer, "mse")
    ...     epoch = rewind.start_step // 5
    ...     model.fit(x, y, 4, epochs=4, initial_epoch=epoch, callbacks=[rewind], verbose=0)
    >>> ticket = find_ticket(model, train, levels=2, rewind_step=5)[-1]
    """
    check_arguments(model, levels, prune_fraction, scope, rewind_step, rewind)
    check_functions(train=train)
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


def prune(model, prune_fraction, scope, times=1):
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
    metrics = train(model, number, point) if point.step else train(model, number)
    where = f"level {number}" if directory is None else f"level {number} in {str(directory)!r}"
    record = {**trained_state(model, where), "metrics": metrics}
    if number == 0 and point.step and rewind == "weights":
        if point.state is None:
            raise ValueError(
                "The first training must come to `rewind_step`, and tell `rewind` of its steps: "
                "`model.fit(..., callbacks=[rewind])`, or `rewind.record(num_steps)` after each. "
                f"Received: rewind_step={point.step}, steps told of={point.num_steps}"
            )
        record["rewound"] = point.state["weights"]
    return record


def _level(model, number, record, weights):
    kernel_masks = dict(zip(masks.sparse_kernels(model), record["masks"], strict=True))
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
    if not isinstance(prune_fraction, Real) or not 0 < prune_fraction < 1:
        raise ValueError(
            "`prune_fraction` must be a number between 0 and 1. "
            f"Received: prune_fraction={prune_fraction!r}"
        )
    check_choice(("global", "layerwise"), scope=scope)
    check_choice(("weights", "learning_rate"), rewind=rewind)
