"""Sanity checks: does a pruning method need the data, the connections and the weights it has?"""

import dataclasses
import functools
import os
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral
from typing import Any

import keras
import numpy as np

from rigl_tf import masks
from rigl_tf.checks import check_choice, check_functions, check_numbers
from rigl_tf.lottery import corruption
from rigl_tf.lottery.jackpot import check_different
from rigl_tf.lottery.levels import Records, restore, shapes_of, state_of, weights_and_masks
from rigl_tf.lottery.run import Run, accuracy_of, check_percent, check_train

CHECKS = (
    "corrupted labels",
    "corrupted pixels and labels",
    "half data",
    "rearranged masks",
    "shuffled weights",
    "random ticket",
)
_TICKET = "ticket"
_REARRANGING = ("rearranged masks", "random ticket")


@dataclasses.dataclass(frozen=True)
class SanityTable:
    """Which sanity checks a pruning method passes. `print` shows a Markdown table.

    Attributes:
        accuracies: `{run: [accuracy in percent for each seed]}`; the first run is `"ticket"`.
        threshold: Number, in percentage points.
    """

    accuracies: dict[str, list[float]]
    threshold: float

    def drop(self, check: str) -> tuple[float, float | None]:
        """By how much the accuracy is lower than that of the ticket with the same seed.

        Args:
            check: String, the name of the check.

        Returns:
            The mean over the seeds, and the standard deviation or `None` if there is one seed.

        Raises:
            ValueError: If this check was not run.
        """
        return _mean_and_spread(self._drops(check))

    def passed(self, check: str) -> bool:
        """Whether the accuracy drops clearly, so that the method passes the check.

        The drop is clear if it is above `threshold` for each seed; or if its mean is above
        `threshold` and above its standard deviation.

        Args:
            check: String, the name of the check.

        Raises:
            ValueError: If this check was not run.
        """
        drops = self._drops(check)
        mean, spread = _mean_and_spread(drops)
        # If a network does not train at all for one seed, the standard deviation may be larger than
        # all drops, even if all of them are clear.
        return min(drops) > self.threshold or mean > max(self.threshold, spread or 0.0)

    def _drops(self, check):
        check_choice([run for run in self.accuracies if run != _TICKET], check=check)
        pairs = zip(self.accuracies[_TICKET], self.accuracies[check], strict=True)
        return [ticket - other for ticket, other in pairs]

    def __str__(self):
        lines = ["| run | accuracy, % | drop, points | check |", "|---|---|---|---|"]
        for run, values in self.accuracies.items():
            cells = [run, _text(*_mean_and_spread(values)), "", ""]
            if run != _TICKET:
                cells[2:] = _text(*self.drop(run)), "passed" if self.passed(run) else "failed"
            lines.append(f"| {' | '.join(cells)} |")
        number = len(self.accuracies[_TICKET])
        rule = f"Passed: the accuracy drops by more than {self.threshold:g} points"
        if number > 1:
            rule += f" for each of {number} seeds, or in the mean and by more than its "
            rule += "standard deviation."
        else:
            rule += ". There is only one seed, so the standard deviation is unknown."
        return "\n".join([*lines, "", rule])


def sanity_check(
    build: Callable[[int], keras.Model],
    prune: Callable[[keras.Model, tuple[np.ndarray, np.ndarray]], Any],
    train: Callable[[keras.Model, Run], float],
    data: Sequence[np.ndarray],
    num_classes: int,
    *,
    checks: Sequence[str] = CHECKS,
    seeds: Sequence[int] = (0, 1, 2),
    threshold: float = 0.5,
    directory: str | os.PathLike[str] | None = None,
) -> SanityTable:
    """Tests whether a pruning method needs the data, the connections and the weights that it has.

    A ticket is found and trained. Then something of it is destroyed, and it is trained again. If
    the accuracy drops clearly, the method passes the check, because it had used this information.
    The checks are:

    - `"corrupted labels"`: the method gets random labels for pruning (not for training).
    - `"corrupted pixels and labels"`: it also gets images with shuffled pixels.
    - `"half data"`: it gets only the first half of the examples.
    - `"rearranged masks"`: the mask of each kernel is permuted.
    - `"shuffled weights"`: the active weights of each kernel are permuted.
    - `"random ticket"`: random masks with the same numbers of connections, and the initial weights.

    The authors find that initial tickets fail (masks of SNIP, GraSP or the lottery ticket, with
    initial weights). Partially trained tickets pass (weights or learning rate rewound to a later
    step). For an initial ticket, `"rearranged masks"` and `"random ticket"` are the same check with
    different random numbers.

    Reference:

    - [Su et al., 2020](https://arxiv.org/abs/2009.11094). The rule for a clear drop, see
      `SanityTable.passed`, is the choice of this library.

    Args:
        build: Function `build(seed) -> model` that returns a new sparse model, made with
            `sparsify(model, 0.0)`. Its initial weights must depend on the seed.
        prune: Function `prune(model, data) -> masks`, the pruning method. It may train the model,
            as in `find_ticket(model, train_on(data), levels=10)[-1].masks`. Training starts from
            the initial weights, unless it returns `(masks, weights)`, with weights as from
            `model.get_weights()`, such as the `masks` and `weights` of a `Level`. Return the
            weights of inactive connections, too, because `"rearranged masks"` selects some of them;
            there is an error if all of them are 0.
        train: Function `train(model, run) -> accuracy` in percent, see `rigl_tf.lottery.Run`. It
            trains with the real data, and should compile the model. `run.name` is the name of a
            check, or `"ticket"`; `run.seed` is the seed.
        data: Pair of arrays `(inputs, labels)` with at least two examples. The labels are integers
            in `[0, num_classes)`, of shape `(number,)` or `(number, 1)`. Only `prune` gets the
            data.
        num_classes: Integer, the number of classes.
        checks: List of the names of the checks to run. For a model with structures
            (`rigl_tf.structures`) leave out `"rearranged masks"` and `"random ticket"`, which do
            not keep them.
        seeds: List of integers >= 0. Each seed has its own initial weights and random choices.
        threshold: Number >= 0, in percentage points.
        directory: Path, or `None`. Accuracies are saved there and not computed again. Use a
            different directory for each pruning method. Tickets are not saved: a continued run
            prunes again for missing results, so `prune` must be deterministic.

    Returns:
        A `SanityTable`.

    Raises:
        ValueError: If an argument is out of its range; a check cannot keep the structures of the
            model; `prune` returns masks that do not fit the model or prune nothing or everything,
            or weights that were masked already; `train` does not return an accuracy in percent; or
            `directory` has results of another model, or of data with other shapes.

    Example:

    >>> x, y = np.random.default_rng(0).normal(size=(60, 8)), np.arange(60) % 3
    >>> def build(seed):
    ...     keras.utils.set_random_seed(seed)
    ...     model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    ...     return rigl_tf.sparsify(model, 0.0)
    >>> def train(model, run):
    ...     model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ...                   metrics=["accuracy"])
    ...     return 100 * model.fit(x, y, verbose=0).history["accuracy"][-1]
    >>> def prune(model, data):
    ...     return rigl_tf.pruning.magnitude_masks(model, 0.5)
    >>> table = sanity_check(
    ...     build, prune, train, (x, y), 3, checks=["corrupted labels"], seeds=[0])
    >>> table.passed("corrupted labels")  # the weights alone decide
    False
    """
    seeds = check_different("seeds", seeds, Integral)
    _check(data, num_classes, checks, threshold)
    check_functions(build=build, prune=prune)
    check_train(train)
    model = build(seeds[0])
    masks.check_masked(model, "`sanity_check`")
    if any(check in _REARRANGING for check in checks):
        remedy = f"pass `checks=` without {' and '.join(map(repr, _REARRANGING))}"
        corruption.check_unstructured(model, "`sanity_check`", remedy)
    settings = {
        "protocol": "sanity_check",
        "num_classes": int(num_classes),
        "shapes": shapes_of(model),
        "data_shapes": [list(np.shape(array)) for array in data],
    }
    records = Records(directory, settings)
    runs = list(dict.fromkeys((_TICKET, *checks)))
    rearranges = "rearranged masks" in runs
    accuracies = {run: [] for run in runs}
    for seed in seeds:
        find = functools.cache(
            functools.partial(_find, build, prune, rearranges, num_classes, data, seed)
        )
        for run in runs:
            compute = functools.partial(_run, build, find, train, run, seed)
            record = records.once(f"{run.replace(' ', '-')}-seed-{seed}", compute)
            accuracies[run].append(record["metrics"])
    return SanityTable(accuracies, threshold)


def _run(build, find, train, run, seed):
    """The accuracy of one run, as a record."""
    is_of_data = run in ("corrupted labels", "corrupted pixels and labels", "half data")
    initial, weights, kernel_masks = find(run if is_of_data else _TICKET)
    if run in _REARRANGING:
        # Two independent draws.
        draw = 2 * seed + (run == "random ticket")
        kernel_masks = corruption.rearrange_masks(dict(enumerate(kernel_masks)), draw).values()
    model = build(seed)
    restore(model, initial if run == "random ticket" else weights, kernel_masks)
    if run == "shuffled weights":
        corruption.shuffle_weights(model, seed)
    accuracy = accuracy_of(train, model, Run(run, seed=seed))
    if run == _TICKET:
        check_percent([accuracy])
    return {"metrics": accuracy}


def _find(build, prune, rearranges, num_classes, data, seed, run):
    """Prunes with (perhaps corrupted) data; returns initial weights, weights and masks."""
    model = build(seed)
    initial = state_of(model)["weights"]
    found = prune(model, _corrupted(run, data, num_classes, seed))
    parts: Any = found if isinstance(found, tuple) else (found,)
    if len(parts) not in (1, 2) or not isinstance(parts[0], Mapping):
        raise ValueError(
            "`prune` must return masks, `{kernel path: mask}`, or a tuple of masks and weights. "
            f"Received: {', '.join(type(part).__name__ for part in parts)}"
        )
    kernel_masks, weights = parts[0], parts[1] if len(parts) > 1 else None
    if weights is None:
        weights = initial
    else:
        weights, own_masks = weights_and_masks(model, weights)
        if rearranges:
            restore(model, weights, [np.ones_like(mask) for mask in own_masks.values()])
            _check_unmasked(model, kernel_masks)
        kernel_masks = {**own_masks, **kernel_masks}
    masks.set_masks(model, kernel_masks)
    kernel_masks = list(masks.get_masks(model).values())
    _check_pruned(kernel_masks)
    return initial, weights, kernel_masks


def _check_pruned(kernel_masks):
    size = sum(mask.size for mask in kernel_masks)
    num_active = sum(int(np.count_nonzero(mask)) for mask in kernel_masks)
    if num_active in (0, size):
        raise ValueError(
            "`prune` must return masks that prune some connections, not none and not all. "
            f"Received: {num_active} of {size} active"
        )


def _check_unmasked(model, kernel_masks):
    kernels = masks.kernels_of(model)
    kernel_masks = masks.check_masks(model, kernel_masks)
    inactive = [kernels[path].numpy()[~mask] for path, mask in kernel_masks.items()]
    if any(values.size for values in inactive) and not any(values.any() for values in inactive):
        raise ValueError(
            "`prune` must return the weights before they were masked, because rearranged masks "
            'select some of them; or leave "rearranged masks" out of `checks`. Received: weights '
            "that are 0 wherever a mask is `False`"
        )


def _corrupted(run, data, num_classes, seed):
    inputs, labels = data
    if run == "half data":
        return corruption.half_dataset(data)
    if run.startswith("corrupted"):
        labels = corruption.corrupt_labels(labels, 1.0, num_classes, seed)
    if "pixels" in run:
        inputs = corruption.shuffle_pixels(inputs, seed)
    return inputs, labels


def _mean_and_spread(values):
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _text(mean, spread):
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _check(data, num_classes, checks, threshold):
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2
    shapes = [tuple(np.shape(array)) for array in data] if is_pair else [()]
    if shapes[0][:1] != shapes[-1][:1] or not shapes[0] or shapes[0][0] < 2:
        raise ValueError(
            "`data` must be a pair of arrays `(inputs, labels)` of one length, 2 or more. "
            f"Received: {type(data).__name__}" + f" of shapes {shapes}" * is_pair
        )
    labels = np.asarray(data[1])
    corruption.corrupt_labels(labels[:0], 1.0, num_classes)
    is_column = labels.shape in ((len(labels),), (len(labels), 1))
    if not is_column or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            "Labels must be in [0, `num_classes`), of shape (number,) or (number, 1). Received: "
            f"shape={labels.shape}, from {labels.min()} to {labels.max()}, "
            f"num_classes={num_classes}"
        )
    is_list = isinstance(checks, Collection) and not isinstance(checks, str)
    if not is_list or not checks or not all(check in CHECKS for check in checks):
        raise ValueError(f"`checks` must be some of {list(CHECKS)}. Received: checks={checks!r}")
    check_numbers("[0, inf)", threshold=threshold)
