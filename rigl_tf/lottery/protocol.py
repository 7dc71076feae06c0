"""The jackpot protocol: trains a ticket and the networks to compare, and writes a report."""

import functools
import itertools
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np

from rigl_tf import masks
from rigl_tf.checks import check_booleans, check_choice, check_functions, check_integers
from rigl_tf.lottery.corruption import check_unstructured, rearrange_masks
from rigl_tf.lottery.jackpot import check_different, check_thresholds, decide
from rigl_tf.lottery.levels import Level, Records, read, replace_file, restore, shapes_of, state_of
from rigl_tf.lottery.report import has_residual, report
from rigl_tf.lottery.run import RewindPoint, Run, accuracy_of, check_percent, check_train
from rigl_tf.lottery.tickets import (
    check_arguments,
    find_ticket,
    optimizer_reset,
    prune,
    prunings,
    sparsity_of,
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
    """Trains all networks for a verdict, judges each sparsity, and writes a report.

    For each learning rate and seed, these networks are trained: the dense network; tickets with the
    initial weights, by iterative pruning (LT-IMP) and by one-shot pruning (LT-OMP); the same masks
    with other initial weights (RR-IMP, RR-OMP); and a narrower dense network (small dense). With
    `rewind_step` there are also tickets whose weights are rewound to that step. They do not start
    from the initialisation, so they do not count in the verdict. For `n` levels, `j` of which are
    judged, there are `n + 1 + 4j` trainings, or `2n + 2 + 4j` with rewinding.

    Reference:

    - [Ma et al., 2021](https://arxiv.org/abs/2107.00166), sections 2 and 3

    Args:
        build: Function `build(seed)` that returns a built sparse model, made with
            `sparsify(model, 0.0)`. Different seeds must give different initial weights.
            Reinitialised networks have the weights of `build(seed + 1_000_000)`.
        train: Function `train(model, run) -> accuracy` in percent, see `rigl_tf.lottery.Run`. It
            compiles the model with `run.learning_rate`. `run.name` is `"dense"` or one of the names
            above; with `rewind_step` also `"rewinding"`, and then `run.rewind` is given.
        small_dense: Function `small_dense(width, seed)` that returns a built dense network with the
            share `width`, in `(0, 1)`, of the units of each hidden layer. The widest network with
            at most as many trainable parameters as the ticket is used. Frozen parameters do not
            count.
        learning_rates: List of the learning rates to compare.
        directory: Path. All results are saved there, so no training is repeated. At the end,
            `report.md` is written there.
        levels: Integer >= 1, how many times to prune, see `find_ticket`.
        prune_fraction: Share of the active connections that a level removes, in `(0, 1)`.
        scope: `"global"` or `"layerwise"`, see `find_ticket`.
        rewind_step: Integer >= 0, see `find_ticket`.
        seeds: List of integers >= 0. With one seed there is no standard deviation, and the report
            says so. More seeds can be added later, with the same directory.
        judged_levels: List of the levels to judge, integers. Defaults to all levels with a sparsity
            of at least `min_sparsity`, found by pruning the first weights before any training.
        residual: Boolean, whether the network has residual connections. With `None`, additions in
            the model are looked for; this does not work for subclassed models and layers.
        large_dataset: Boolean, whether the data set is as large as Tiny-ImageNet or ImageNet. The
            paper's guideline differs for such data sets.
        similar: Number >= 0, in percentage points, see `judge_ticket`.
        clear: Number >= 0, in percentage points, see `judge_ticket`.
        min_sparsity: Number in `[0, 1)`, see `judge_ticket`.

    Returns:
        List with a dictionary for each judged level: `"level"`, `"sparsity"`, `"verdicts"`
        (`{"IMP": Verdict, "OMP": Verdict}`), `"accuracies"`
        (`{kind: {learning rate: [accuracy for each seed]}}`), and `"num_parameters"`, a pair for
        the ticket and the small dense network. Sparsities are those of the masks: `"sparsity"` of
        the tickets by iterative pruning, that of a verdict of its own tickets. If they depend on
        the weights, as with some structures (see `find_ticket`), they are means over all rates and
        seeds.

    Raises:
        ValueError: If an argument is out of its range, no level is sparse enough to be judged,
            `build` ignores its seed, `train` does not return an accuracy in percent, or `directory`
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
    check_booleans(large_dataset=large_dataset)
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
    judged = _judged(model, levels, pruning, judged_levels, min_sparsity)
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
            for kind, level, value in _outcomes(contest, judged, train_small, rewind_step):
                table.setdefault((kind, level), {}).setdefault(rate, []).append(value)
    thresholds = {"similar": similar, "clear": clear, "min_sparsity": min_sparsity}
    rows = [_judge(table, level, thresholds) for level in judged]
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
    """A ticket and the networks to compare it with, for one seed.

    The tickets are trained when the object is created. Every other network is trained when its
    accuracy is requested. Results are saved, so no training is repeated.

    Args:
        build: Function `build(seed)`, see `jackpot_protocol`.
        train: Function `train(model, run) -> accuracy` in percent, see `rigl_tf.lottery.Run`.
        directory: Path, where all results are saved.
        levels: Integer >= 1, how many times to prune, see `find_ticket`.
        prune_fraction: Share of the active connections that a level removes, in `(0, 1)`.
        scope: `"global"` or `"layerwise"`, see `find_ticket`.
        seed: Integer >= 0, the seed of the initial weights. It is passed to `train`, too.
        other_seed: Integer >= 0, the seed of the other initial weights.
        learning_rate: Number, passed to `train`, or `None`.
        known: Accuracies in percent of dense networks that were trained before.

    Attributes:
        seed: Integer, as given.
        model: The sparse model. Its weights and masks change with every training.
        levels: List of `Level`: the dense network and the tickets by iterative pruning.

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
        check_integers(0, seed=seed, other_seed=other_seed)
        self._build, self._train, self._known = build, train, known
        self.seed, self._other_seed, self._learning_rate = seed, other_seed, learning_rate
        self._directory = pathlib.Path(directory)
        self._pruning = {"prune_fraction": prune_fraction, "scope": scope}
        self.model = build(seed)
        path = self._directory / "lt-imp"
        self.levels = find_ticket(
            self.model, self._train_level, levels, directory=path, **self._pruning
        )
        self._pruned_once = functools.cache(self._one_shot)
        self._start, self._dense = read(path / "start.npz"), read(path / "level-000.npz")
        settings = {**self._pruning, "levels": None, "shapes": shapes_of(self.model)}
        self._records = Records(self._directory / "others", settings)

    def accuracy(self, kind: str, level: int) -> float:
        """The test accuracy of a network, which is trained if this is not done yet.

        Args:
            kind: String. `"LT-IMP"` or `"LT-OMP"`: a ticket by iterative or one-shot pruning (at
                level 0 the dense network). `"RR-IMP"` or `"RR-OMP"`: the same masks with other
                initial weights. `"random"`: the initial weights, with the masks of the ticket
                permuted within each kernel.
            level: Integer >= 0, how many times to prune, at most `levels`.

        Returns:
            Float, the accuracy in percent.

        Raises:
            ValueError: If `kind` is unknown or `level` is out of its range, or the model has
                structures, which `"random"` cannot keep.
        """
        check_choice((*_KINDS, "random"), kind=kind)
        self._check_level(level)
        if kind == "random":
            check_unstructured(self.model, '`"random"`', "use another kind")
        if kind == "LT-IMP":
            return self.levels[level].metrics
        weights = self._other_weights if kind.startswith("RR") else self._start["weights"]
        kernel_masks = self._masks(kind, level).values()
        compute = functools.partial(self._train_masked, kind, level, weights, kernel_masks)
        return self.once(kind, level, compute)

    def once(self, kind: str, level: int, compute: Callable[[], Any]) -> Any:
        """Calls `compute()` once, and saves its result.

        Args:
            kind: String, the name of the result.
            level: Integer >= 0, the level of the result.
            compute: Function without arguments; its result must be one that JSON can save.

        Returns:
            The result, computed or loaded.
        """
        check_integers(0, level=level)
        name = f"{kind.lower().replace(' ', '-')}-{level:03d}"
        return self._records.once(name, lambda: {"metrics": compute()})["metrics"]

    def train(
        self, model: keras.Model, kind: str, level: int, rewind: RewindPoint | None = None
    ) -> float:
        """Trains a model with the settings of all trainings.

        Args:
            model: The `keras.Model` to train.
            kind: String, the name of the training.
            level: Integer >= 0, how many times the network was pruned.
            rewind: A `RewindPoint`, or `None`.

        Returns:
            Float, the accuracy in percent.
        """
        check_integers(0, level=level)
        run = Run(kind, level, self.seed, self._learning_rate, rewind)
        return accuracy_of(self._train, model, run)

    def sparsity(self, kind: str, level: int) -> float:
        """The share of zeros over all sparse kernels of a network.

        Args:
            kind: String, as for `accuracy`.
            level: Integer >= 0, how many times to prune, at most `levels`.

        Returns:
            Float in `[0, 1)`.

        Raises:
            ValueError: If `kind` is unknown or `level` is out of its range.
        """
        check_choice((*_KINDS, "random"), kind=kind)
        self._check_level(level)
        return sparsity_of(self._masks(kind, level))

    def num_parameters(self, level: int) -> int:
        """The number of trainable parameters of a ticket by iterative pruning.

        Inactive connections do not count.

        Args:
            level: Integer >= 0, how many times the network was pruned, at most `levels`.

        Raises:
            ValueError: If `level` is out of its range.
        """
        self._check_level(level)
        return _num_parameters(self.model, self.levels[level].masks)

    def rewinding(self, levels: int, rewind_step: int) -> list[Level]:
        """Finds tickets whose weights are rewound to a step.

        Args:
            levels: Integer, how many times to prune.
            rewind_step: Integer, the step to rewind to.

        Returns:
            List of `Level`.
        """
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

    def _check_level(self, level):
        check_integers(0, level=level)
        last = self.levels[-1].number
        if level > last:
            raise ValueError(
                f"`level` must be at most {last}, the last level of the contest. "
                f"Received: level={level}"
            )

    def _train_level(self, model, run):
        accuracy = self.train(model, "LT-IMP" if run.level else "dense", run.level)
        if run.level == 0:
            # Checked before it is saved. At chance it may be below 1 %, so others count, too.
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
            return self._pruned_once(level)
        found = self.levels[level].masks
        return rearrange_masks(found, self.seed) if kind == "random" else found

    def _one_shot(self, level):
        restore(self.model, self._dense["weights"], self._dense["masks"])
        return prune(self.model, **self._pruning, times=level)

    @functools.cached_property
    def _other_weights(self):
        model = self._build(self._other_seed)
        weights, kernels = state_of(model)["weights"], _kernels(model)
        restore(model, self._start["weights"], self._start["masks"])
        # Only kernels: other variables may differ anyway, such as the random seed of Dropout.
        if all(np.array_equal(a, b) for a, b in zip(kernels, _kernels(model), strict=True)):
            raise ValueError(
                "`build` must return different initial weights for different seeds. "
                f"Received: the same for seeds {self.seed} and {self._other_seed}"
            )
        return weights


def _kernels(model):
    return [np.array(kernel.numpy()) for kernel in masks.kernels_of(model).values()]


def _outcomes(contest, judged, train_small, rewind_step):
    """Yields the results, as triples `(kind, level, accuracy)`.

    One kind is `"num_parameters"`, with the sizes of the ticket and of the small network. Two are
    `"sparsity of LT-IMP"` and `"sparsity of LT-OMP"`.

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
        for kind in ("LT-IMP", "LT-OMP"):
            yield f"sparsity of {kind}", level, contest.sparsity(kind, level)
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
    """The small dense network, after checking that it is built and has parameters."""
    model = small_dense(width, seed)
    if not isinstance(model, keras.Model) or not model.built or not model.trainable_weights:
        raise ValueError(
            "`small_dense` must return a built `keras.Model` with trainable weights, such as one "
            f"that begins with a `keras.Input`. Received: {model!r} for a width of {width:g}"
        )
    return model


def _width_of(small_dense, seed, num_parameters):
    """The largest width with at most `num_parameters`, by bisection; a width near 0 if none is."""
    low, high = 0.0, 1.0
    for _ in range(12):
        width = (low + high) / 2
        if _num_parameters(_small_network(small_dense, width, seed)) <= num_parameters:
            low = width
        else:
            high = width
    return low or high


def _num_parameters(model, kernel_masks=None):
    """The number of trainable parameters, without inactive connections."""
    sizes = {id(weight): math.prod(weight.shape) for weight in model.trainable_weights}
    kernels = masks.kernels_of(model)
    for path, mask in (kernel_masks or {}).items():
        if id(kernels[path].variable) in sizes:
            sizes[id(kernels[path].variable)] = int(np.count_nonzero(mask))
    return int(sum(sizes.values()))


def _judged(model, levels, pruning, judged_levels, min_sparsity):
    """The levels to judge; their sparsities are those that the first weights would have."""
    found = itertools.islice(prunings(model, **pruning), 1, levels + 1)
    sparsities = {level: sparsity_of(each) for level, each in enumerate(found, 1)}
    if judged_levels is None:
        judged_levels = [level for level, value in sparsities.items() if value >= min_sparsity]
    else:
        judged_levels = check_different("judged_levels", judged_levels, Integral)
    if not judged_levels or not set(judged_levels) <= set(sparsities):
        raise ValueError(
            f"`judged_levels` must be one or more levels from 1 to {levels}; by default, those "
            f"with `min_sparsity`. Received: judged_levels={judged_levels}, min_sparsity="
            f"{min_sparsity}, the highest sparsity is {max(sparsities.values(), default=0):.3g}"
        )
    return judged_levels


def _judge(table, level, thresholds):
    kinds = ("LT-IMP", "LT-OMP", "RR-IMP", "RR-OMP", "small dense", "rewinding")
    accuracies = {"dense": table["dense", 0]}
    accuracies |= {kind: table[kind, level] for kind in kinds if (kind, level) in table}
    means = {
        kind: {rate: float(np.mean(values)) for rate, values in of_rate.items()}
        for kind, of_rate in accuracies.items()
    }
    small = max(means["small dense"].values())
    verdicts, sparsities = {}, {}
    for way in ("IMP", "OMP"):
        three = [means[kind] for kind in ("dense", f"LT-{way}", f"RR-{way}")]
        results = {rate: tuple(kind[rate] for kind in three) for rate in three[0]}
        values = table[f"sparsity of LT-{way}", level].values()
        # Exact: the mean of equal numbers is this number.
        sparsities[way] = statistics.mean(value for of_rate in values for value in of_rate)
        verdicts[way] = decide(results, sparsities[way], small, **thresholds)
    sizes = next(iter(table["num_parameters", level].values()))[0]
    return {
        "level": level,
        "sparsity": sparsities["IMP"],
        "verdicts": verdicts,
        "accuracies": accuracies,
        "num_parameters": sizes,
    }


def _check_directory_and_residual(directory, residual):
    if not isinstance(directory, (str, os.PathLike)):
        raise ValueError(f"`directory` must be a path. Received: directory={directory!r}")
    if residual is not None:
        check_booleans(residual=residual)
