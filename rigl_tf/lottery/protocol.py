"""The jackpot protocol: trains a ticket and its rivals, judges them, writes a report."""

import functools
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np

from rigl_tf import masks
from rigl_tf.checks import check_choice, check_functions
from rigl_tf.lottery.corruption import rearrange_masks
from rigl_tf.lottery.jackpot import check_different, check_thresholds, decide
from rigl_tf.lottery.levels import Level, Records, read, replace_file, restore, shapes_of, state_of
from rigl_tf.lottery.report import has_residual, report
from rigl_tf.lottery.run import RewindPoint, Run, accuracy_of, check_percent, check_train
from rigl_tf.lottery.tickets import (
    check_arguments,
    find_ticket,
    nums_left,
    optimizer_reset,
    prune,
)

_OTHER_START = 1_000_000  # added to the seed, for other initial weights
_KINDS = ("LT-IMP", "LT-OMP", "RR-IMP", "RR-OMP")


def jackpot_protocol(
    build: Callable[[int], keras.Model],
    train: Callable[[keras.Model, Run], float],
    small_dense: Callable[[float, int], keras.Model],
    learning_rates: Sequence[float],
    directory: str | os.PathLike[str],
    *,
    levels: int = 10,
    prune_fraction: float = 0.2,
    scope: str = "global",
    seeds: Sequence[int] = (0, 1, 2),
    rewind_step: int = 0,
    judged_levels: Sequence[int] | None = None,
    residual: bool | None = None,
    large_dataset: bool = False,
    similar: float = 0.5,
    clear: float = 0.5,
    min_sparsity: float = 0.6,
) -> list[dict[str, Any]]:
    """Trains all that a verdict needs, judges each sparsity, and writes the report.

    At each learning rate and with each seed these are trained: the dense network; tickets from the
    initial weights, by iterative (LT-IMP) and by one-shot pruning (LT-OMP); the same masks with
    other initial weights (RR-IMP, RR-OMP); and a narrower dense network (small dense). With
    `rewind_step` there are also tickets whose weights are rewound to that step. These take no part
    in the verdict, as they do not start from the initialisation. For `n` levels of which `j` are
    judged that is `n + 1 + 4j` trainings, or `2n + 2 + 4j`.

    Reference:

    - [Ma et al., 2021](https://arxiv.org/abs/2107.00166), sections 2 and 3

    Args:
        build: Function `build(seed)`, the built sparse model made with `sparsify(model, 0.0)`;
            another seed gives other initial weights. Reinitialised networks have those of
            `build(seed + 1_000_000)`.
        train: Function `train(model, run) -> accuracy` in percent, see `rigl_tf.lottery.Run`. It
            compiles the model, with `run.learning_rate`. The names are `"dense"` and those above;
            with `rewind_step` it is `"rewinding"`, too, with `run.rewind`.
        small_dense: Function `small_dense(width, seed)`, the built dense network with that share of
            its units in each hidden layer, `width` in `(0, 1)`. Taken is the widest with at most
            as many trainable parameters as the ticket; frozen ones count on neither side.
        learning_rates: List of the learning rates to compare.
        directory: Path. Every training is kept there and never done again; `report.md` is written
            in the end.
        levels, prune_fraction, scope, rewind_step: See `find_ticket`.
        seeds: Integers >= 0. With one there is no spread, and the report says so. More of them can
            be trained later, in the same directory.
        judged_levels: Levels to judge, integers. Defaults to all that have `min_sparsity` or more.
        residual: Whether the network has residual connections. `None` looks for additions, and
            cannot tell for subclassed models and layers.
        large_dataset: Whether the data is of the kind of Tiny-ImageNet and ImageNet: the paper's
            guideline is another then.
        similar, clear, min_sparsity: See `judge_ticket`.

    Returns:
        A dictionary for each judged level, in a list: `"level"`, `"sparsity"`, `"verdicts"`
        (`{"IMP": Verdict, "OMP": Verdict}`), `"accuracies"` (`{kind: {learning rate: [one for each
        seed]}}`), and `"num_parameters"` of the ticket and the small dense network, a pair.

    Raises:
        ValueError: If an argument is out of its range, no level is sparse enough to be judged,
            `build` does not heed its seed, `train` returns no accuracy in percent, or `directory`
            has results of other settings.

    Example:

    >>> import tempfile
    >>> x, y = np.eye(4)[np.arange(40) % 4], np.arange(40) % 4
    >>> def small_dense(width, seed):
    ...     keras.utils.set_random_seed(seed)
    ...     hidden = keras.layers.Dense(max(1, int(20 * width)), "relu")
    ...     return keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(4)])
    >>> def build(seed):
    ...     return rigl_tf.sparsify(small_dense(1.0, seed), 0.0)
    >>> def train(model, run):
    ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ...     model.compile(keras.optimizers.SGD(run.learning_rate), loss, metrics=["accuracy"])
    ...     model.fit(x, y, verbose=0)
    ...     return 100 * model.evaluate(x, y, verbose=0)[1]
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     rows = jackpot_protocol(
    ...         build, train, small_dense, [0.1], directory, levels=1, prune_fraction=0.8, seeds=[0]
    ...     )
    >>> [(row["sparsity"], sorted(row["verdicts"])) for row in rows]
    [(0.8, ['IMP', 'OMP'])]
    """
    check_functions(build=build, small_dense=small_dense)
    check_train(train)
    learning_rates = check_different("learning_rates", learning_rates, Real)
    seeds = check_different("seeds", seeds, Integral)
    check_thresholds(similar, clear, min_sparsity)
    _check_directory_and_residual(directory, residual)
    directory = pathlib.Path(directory).expanduser()
    model = build(seeds[0])
    check_arguments(model, levels, prune_fraction, scope, rewind_step)
    _small_network(small_dense, 0.5, seeds[0])  # before anything is trained
    pruning = {"prune_fraction": float(prune_fraction), "scope": scope}
    sparsities = _judged(model, levels, pruning, judged_levels, min_sparsity)
    pruning["levels"] = levels
    width = functools.cache(functools.partial(_width_of, small_dense, seeds[0]))
    train_small = functools.partial(_small, small_dense, width)
    table = {}
    for rate in learning_rates:
        for seed in seeds:
            dense = table.get(("dense", 0), {}).values()
            contest = Contest(
                build,
                train,
                directory / f"rate-{rate}-seed-{seed}",
                **pruning,
                seed=seed,
                other_seed=seed + _OTHER_START,
                learning_rate=rate,
                known=[accuracy for of_rate in dense for accuracy in of_rate],
            )
            for kind, level, value in _outcomes(contest, sparsities, train_small, rewind_step):
                table.setdefault((kind, level), {}).setdefault(rate, []).append(value)
    thresholds = {"similar": similar, "clear": clear, "min_sparsity": min_sparsity}
    rows = [_judge(table, level, sparsity, thresholds) for level, sparsity in sparsities.items()]
    facts = {
        "name": model.name,
        "size": sum(mask.size for mask in masks.get_masks(model).values()),
        "residual": has_residual(model) if residual is None else residual,
        "large_dataset": large_dataset,
        "seeds": seeds,
        "pruning": pruning,
        "rewind_step": rewind_step,
        "thresholds": thresholds,
    }
    text = report(rows, facts).encode()
    replace_file(directory / "report.md", lambda file: file.write(text))
    return rows


class Contest:
    """A ticket and its rivals, of one seed. Each is trained when it is asked for, and only once.

    Args:
        build, train: See `jackpot_protocol`.
        directory: Path. Every training is kept there.
        levels, prune_fraction, scope: See `find_ticket`. All levels of pruning are trained at once.
        seed: Integer, of the initial weights; `train` gets it, too.
        other_seed: Integer, of the other initial weights.
        learning_rate: Number for `train`, or `None`.
        known: Accuracies of dense networks trained before, in percent.

    Attributes:
        seed: Integer, as given.
        model: The sparse model; what it holds changes with every training.
        levels: List of `Level`, the dense network and the tickets by iterative pruning.

    Example:

    >>> import tempfile
    >>> def build(seed):
    ...     keras.utils.set_random_seed(seed)
    ...     dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    ...     return rigl_tf.sparsify(dense, 0.0)
    >>> def train(model, run):
    ...     print(run, int(sum(mask.sum() for mask in rigl_tf.get_masks(model).values())))
    ...     return 90.0
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     contest = Contest(build, train, directory, levels=1, prune_fraction=0.5)
    ...     contest.accuracy("random", level=1)
    dense, seed 0 32
    LT-IMP, seed 0 16
    random, seed 0 16
    90.0
    """

    def __init__(
        self,
        build: Callable[[int], keras.Model],
        train: Callable[[keras.Model, Run], float],
        directory: str | os.PathLike[str],
        levels: int,
        prune_fraction: float,
        scope: str = "global",
        *,
        seed: int = 0,
        other_seed: int = _OTHER_START,
        learning_rate: float | None = None,
        known: Sequence[float] = (),
    ) -> None:
        self._build, self._train, self._known = build, train, known
        self.seed, self._other_seed, self._learning_rate = seed, other_seed, learning_rate
        self._directory = pathlib.Path(directory)
        self._pruning = {"prune_fraction": prune_fraction, "scope": scope}
        self.model = build(seed)
        path = self._directory / "lt-imp"
        self.levels = find_ticket(
            self.model, self._train_level, levels, directory=path, **self._pruning
        )
        self._start, self._dense = read(path / "start.npz"), read(path / "level-000.npz")
        settings = {**self._pruning, "levels": None, "shapes": shapes_of(self.model)}
        self._records = Records(self._directory / "others", settings)

    def accuracy(self, kind: str, level: int) -> float:
        """The test accuracy in percent.

        Args:
            kind: `"LT-IMP"` or `"LT-OMP"`, a ticket by iterative or one-shot pruning, of level 0
                the dense network; `"RR-IMP"` or `"RR-OMP"`, the same masks with other initial
                weights; `"random"`, the initial weights with the ticket's connections permuted
                within each kernel.
            level: Integer, how many times to prune.
        """
        check_choice((*_KINDS, "random"), kind=kind)
        if kind == "LT-IMP":
            return self.levels[level].metrics
        weights = self._other_weights if kind.startswith("RR") else self._start["weights"]
        kernel_masks = self._masks(kind, level)
        compute = functools.partial(self._train_masked, kind, level, weights, kernel_masks)
        return self.once(kind, level, compute)

    def once(self, kind: str, level: int, compute: Callable[[], Any]) -> Any:
        """What `compute()` returns, kept under this name and level."""
        name = f"{kind.lower().replace(' ', '-')}-{level:03d}"
        return self._records.once(name, lambda: {"metrics": compute()})["metrics"]

    def train(
        self, model: keras.Model, kind: str, level: int, rewind: RewindPoint | None = None
    ) -> float:
        """Trains a model as the others are, and returns its accuracy."""
        run = Run(kind, level, self.seed, self._learning_rate, rewind)
        return accuracy_of(self._train, model, run)

    def num_parameters(self, level: int) -> int:
        """The trainable parameters of the ticket that are not masked out."""
        return _num_parameters(self.model, self._masks("LT-OMP", level))

    def rewinding(self, levels: int, rewind_step: int) -> list[Level]:
        """As `levels`, of tickets whose weights are rewound to a step."""
        restore(self.model, self._start["weights"], self._start["masks"])

        def train(model, run):
            return self.train(model, "rewinding", run.level, run.rewind)

        return find_ticket(
            self.model,
            train,
            levels,
            directory=self._directory / "rewinding",
            rewind_step=rewind_step,
            **self._pruning,
        )

    def _train_level(self, model, run):
        accuracy = self.train(model, "LT-IMP" if run.level else "dense", run.level)
        if run.level == 0:
            # Before it is kept. At chance less than 1 % is right: others may be above that.
            check_percent([accuracy, *self._known])
        return accuracy

    def _train_masked(self, kind, level, weights, kernel_masks):
        restore(self.model, weights, kernel_masks)
        reset_optimizer = optimizer_reset(self.model)
        accuracy = self.train(self.model, kind, level)
        reset_optimizer()
        return accuracy

    def _masks(self, kind, level):
        if kind.endswith("OMP"):
            restore(self.model, self._dense["weights"], self._dense["masks"])
            return list(prune(self.model, **self._pruning, times=level).values())
        found = self.levels[level].masks
        return list((rearrange_masks(found, self.seed) if kind == "random" else found).values())

    @functools.cached_property
    def _other_weights(self):
        model = self._build(self._other_seed)
        weights, kernels = state_of(model)["weights"], _kernels(model)
        restore(model, self._start["weights"], self._start["masks"])
        # Other variables differ in any case: Dropout keeps the state of its random seed.
        if all(np.array_equal(a, b) for a, b in zip(kernels, _kernels(model), strict=True)):
            raise ValueError(
                "`build` must give other initial weights for another seed. "
                f"Received: the same for seeds {self.seed} and {self._other_seed}"
            )
        return weights


def _kernels(model):
    return [np.array(kernel.numpy()) for kernel in masks.kernels_of(model).values()]


def _outcomes(contest, judged, train_small, rewind_step):
    """What was seen, as triples `(kind, level, accuracy)`.

    Among them is the size of the ticket and of the small network, as `"num_parameters"`.

    Args:
        contest: A `Contest`.
        judged: The levels to judge, integers.
        train_small: Function of the contest, the level and a size that returns the accuracy of the
            small network, and its size.
        rewind_step: Integer.
    """
    yield "dense", 0, contest.accuracy("LT-IMP", 0)
    for level in judged:
        for kind in _KINDS:
            yield kind, level, contest.accuracy(kind, level)
        size = contest.num_parameters(level)
        compute = functools.partial(train_small, contest, level, size)
        small = contest.once("small dense", level, compute)
        yield "small dense", level, small["accuracy"]
        yield "num_parameters", level, (size, small["num_parameters"])
    if rewind_step:
        found = contest.rewinding(len(contest.levels) - 1, rewind_step)
        for level in judged:
            yield "rewinding", level, found[level].metrics


def _small(small_dense, width_of, contest, level, num_parameters):
    model = _small_network(small_dense, width_of(num_parameters), contest.seed)
    size = _num_parameters(model)
    return {"accuracy": contest.train(model, "small dense", level), "num_parameters": size}


def _small_network(small_dense, width, seed):
    """The small dense network; one that is not built would count as one without parameters."""
    model = small_dense(width, seed)
    if not isinstance(model, keras.Model) or not model.built or not model.trainable_weights:
        raise ValueError(
            "`small_dense` must return a built `keras.Model` with trainable weights, such as one "
            f"that begins with a `keras.Input`. Received: {model!r} for a width of {width:g}"
        )
    return model


def _width_of(small_dense, seed, num_parameters):
    """The largest width with at most so many parameters, by bisection; else one near 0."""
    low, high = 0.0, 1.0
    for _ in range(12):
        width = (low + high) / 2
        if _num_parameters(_small_network(small_dense, width, seed)) <= num_parameters:
            low = width
        else:
            high = width
    return low or high


def _num_parameters(model, kernel_masks=()):
    """The trainable parameters that are not masked out."""
    sizes = {id(weight): math.prod(weight.shape) for weight in model.trainable_weights}
    for kernel, mask in zip(masks.kernels_of(model).values(), kernel_masks, strict=False):
        if id(kernel.variable) in sizes:
            sizes[id(kernel.variable)] = int(np.count_nonzero(mask))
    return int(sum(sizes.values()))


def _judged(model, levels, pruning, judged_levels, min_sparsity):
    """The levels to judge and their sparsities, which do not depend on the weights."""
    size = sum(mask.size for mask in masks.get_masks(model).values())
    sparsities = {
        level: (size - sum(nums_left(model, **pruning, times=level))) / size
        for level in range(1, levels + 1)
    }
    if judged_levels is None:
        judged_levels = [level for level, value in sparsities.items() if value >= min_sparsity]
    else:
        judged_levels = check_different("judged_levels", judged_levels, Integral)
    if not judged_levels or not set(judged_levels) <= set(sparsities):
        raise ValueError(
            f"`judged_levels` must be among 1 to {levels}, one at least; by default those with "
            f"`min_sparsity` are. Received: judged_levels={judged_levels}, min_sparsity="
            f"{min_sparsity}, the highest sparsity is {max(sparsities.values(), default=0):.3g}"
        )
    return {level: sparsities[level] for level in judged_levels}


def _judge(table, level, sparsity, thresholds):
    kinds = ("LT-IMP", "LT-OMP", "RR-IMP", "RR-OMP", "small dense", "rewinding")
    accuracies = {"dense": table["dense", 0]}
    accuracies |= {kind: table[kind, level] for kind in kinds if (kind, level) in table}
    means = {
        kind: {rate: float(np.mean(values)) for rate, values in of_rate.items()}
        for kind, of_rate in accuracies.items()
    }
    small = max(means["small dense"].values())
    verdicts = {}
    for way in ("IMP", "OMP"):
        three = [means[kind] for kind in ("dense", f"LT-{way}", f"RR-{way}")]
        results = {rate: tuple(kind[rate] for kind in three) for rate in three[0]}
        verdicts[way] = decide(results, sparsity, small, **thresholds)
    sizes = next(iter(table["num_parameters", level].values()))[0]
    return {
        "level": level,
        "sparsity": sparsity,
        "verdicts": verdicts,
        "accuracies": accuracies,
        "num_parameters": sizes,
    }


def _check_directory_and_residual(directory, residual):
    if not isinstance(directory, (str, os.PathLike)):
        raise ValueError(f"`directory` must be a path. Received: directory={directory!r}")
    if not isinstance(residual, (bool, np.bool_, type(None))):
        raise ValueError(
            f"`residual` must be `True`, `False` or `None`. Received: residual={residual!r}"
        )
