"""The whole comparison behind a verdict: tickets, reinitialised and small networks."""

import functools
import os
import pathlib
from numbers import Integral, Real

import numpy as np

from rigl_tf import masks
from rigl_tf.checks import check_functions
from rigl_tf.lottery.jackpot import check_numbers, check_thresholds, decide
from rigl_tf.lottery.levels import replace_file
from rigl_tf.lottery.report import has_residual, report
from rigl_tf.lottery.tickets import check_arguments, nums_left
from rigl_tf.lottery.trainings import all_trainings, percent, small_network, width_of


def jackpot_protocol(
    build,
    train,
    small_dense,
    learning_rates,
    directory,
    *,
    levels=10,
    prune_fraction=0.2,
    scope="global",
    seeds=(0, 1, 2),
    rewind_step=0,
    judged_levels=None,
    residual=None,
    large_dataset=False,
    similar=0.5,
    clear=0.5,
    min_sparsity=0.6,
):
    """Trains all that a verdict needs, judges each sparsity, and writes the report.

    At each learning rate and with each seed these are trained: the dense network, tickets by
    iterative (LT-IMP) and one-shot pruning (LT-OMP) from the initial weights, the same masks with
    other initial weights (RR-IMP, RR-OMP), and a narrower dense network; with `rewind_step` also
    tickets whose weights are rewound to that step. These take no part in the verdict, as they do
    not start from the initialisation. For `n` levels of which `j` are judged that is `n + 1 + 4j`
    trainings, or `2n + 2 + 4j`.

    Reference:

    - [Ma et al., 2021](https://arxiv.org/abs/2107.00166), sections 2 and 3

    Args:
        build: Function `build(seed)`, the built sparse model made with `sparsify(model, 0.0)`;
            another seed gives other initial weights. Reinitialised networks have those of
            `build(seed + 1_000_000)`.
        train: Function `train(model, learning_rate, seed) -> accuracy` that compiles the model,
            trains it to the end and returns the test accuracy in percent; only the order of the
            data and the like should depend on `seed`. With `rewind_step` it is called as
            `train(model, learning_rate, seed, rewind)`, too, see `find_ticket`.
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
    >>> def train(model, learning_rate, seed):
    ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ...     model.compile(keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"])
    ...     model.fit(x, y, verbose=0)
    ...     return 100 * model.evaluate(x, y, verbose=0)[1]
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     rows = jackpot_protocol(
    ...         build, train, small_dense, [0.1], directory, levels=1, prune_fraction=0.8, seeds=[0]
    ...     )
    >>> [(row["sparsity"], sorted(row["verdicts"])) for row in rows]
    [(0.8, ['IMP', 'OMP'])]
    """
    check_functions(build=build, train=train, small_dense=small_dense)
    learning_rates = check_numbers("learning_rates", learning_rates, Real)
    seeds = check_numbers("seeds", seeds, Integral)
    check_thresholds(similar, clear, min_sparsity)
    _check_directory_and_residual(directory, residual)
    directory = pathlib.Path(directory).expanduser()
    model = build(seeds[0])
    check_arguments(model, levels, prune_fraction, scope, rewind_step)
    small_network(small_dense, 0.5, seeds[0])  # before anything is trained
    pruning = {"prune_fraction": float(prune_fraction), "scope": scope}
    sparsities = _judged(model, levels, pruning, judged_levels, min_sparsity)
    pruning["levels"] = levels
    small = small_dense, functools.cache(functools.partial(width_of, small_dense, seeds[0]))
    table = {}
    for rate in learning_rates:
        for seed in seeds:
            path = directory / f"rate-{rate}-seed-{seed}"
            fit = functools.partial(percent, train, rate, seed)
            known = [value for values in table.get(("dense", 0), {}).values() for value in values]
            for kind, level, value in all_trainings(
                build, fit, known, small, seed, path, pruning, sparsities, rewind_step
            ):
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
        judged_levels = check_numbers("judged_levels", judged_levels, Integral)
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
