"""The whole comparison behind a verdict: tickets, reinitialised and small networks."""

import functools
import math
import os
import pathlib
from numbers import Integral, Real

import numpy as np

from rigl_tf import masks
from rigl_tf.lottery.jackpot import check_numbers, check_percent, check_thresholds, decide
from rigl_tf.lottery.levels import Records, read, replace_file, restore, shapes_of, state_of
from rigl_tf.lottery.report import has_residual, report
from rigl_tf.lottery.tickets import check_arguments, find_ticket, optimizer_reset, prune

_OTHER_START = 1_000_000  # added to the seed, for other initial weights


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
    learning_rates = check_numbers("learning_rates", learning_rates, Real)
    seeds = check_numbers("seeds", seeds, Integral)
    check_thresholds(similar, clear, min_sparsity)
    _check_directory_and_residual(directory, residual)
    directory = pathlib.Path(directory).expanduser()
    model = build(seeds[0])
    check_arguments(model, levels, prune_fraction, scope, rewind_step)
    pruning = {"prune_fraction": prune_fraction, "scope": scope}
    sparsities = _judged(model, levels, pruning, judged_levels, min_sparsity)
    pruning["levels"] = levels
    small = small_dense, functools.cache(functools.partial(_width, small_dense, seeds[0]))
    table = {}
    for rate in learning_rates:
        for seed in seeds:
            path = directory / f"rate-{rate}-seed-{seed}"
            fit = functools.partial(_fit, train, rate, seed)
            known = [value for values in table.get(("dense", 0), {}).values() for value in values]
            cell = _cell(build, fit, known, small, seed, path, pruning, sparsities, rewind_step)
            for kind, level, value in cell:
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


def _cell(build, fit, known, small, seed, directory, pruning, judged, rewind_step):
    """All trainings with one learning rate and seed, as triples `(kind, level, accuracy)`.

    Among them is the size of the ticket and of the small network, as `"num_parameters"`.
    """
    model = build(seed)
    path = directory / "lt-imp"
    imp = find_ticket(model, functools.partial(_level, fit, known), directory=path, **pruning)
    start, dense = read(path / "start.npz"), read(path / "level-000.npz")
    yield "dense", 0, dense["metrics"]
    other = _reinitialised(build, start, seed)
    records = Records(directory / "others", {**pruning, "levels": None, "shapes": shapes_of(model)})

    def accuracy(name, level, run, *arguments):
        run = functools.partial(run, fit, *arguments)
        return records.once(f"{name.lower()}-{level:03d}", run)["metrics"]

    for level in judged:
        restore(model, dense["weights"], dense["masks"])
        way = pruning["prune_fraction"], pruning["scope"]
        one_shot = list(prune(model, *way, times=level).values())
        iterative = list(imp[level].masks.values())
        yield "LT-IMP", level, imp[level].metrics
        for kind, weights, kernel_masks in (
            ("LT-OMP", start["weights"], one_shot),
            ("RR-IMP", other, iterative),
            ("RR-OMP", other, one_shot),
        ):
            yield kind, level, accuracy(kind, level, _masked, model, weights, kernel_masks)
        size = _num_parameters(model, one_shot)
        narrow = accuracy("small-dense", level, _small, *small, seed, size)
        yield "small dense", level, narrow["accuracy"]
        yield "num_parameters", level, (size, narrow["num_parameters"])
    if rewind_step:
        restore(model, start["weights"], start["masks"])
        path = directory / "rewinding"
        train = _rewinding(fit)
        found = find_ticket(model, train, directory=path, rewind_step=rewind_step, **pruning)
        for level in judged:
            yield "rewinding", level, found[level].metrics


def _rewinding(fit):
    return lambda model, level, rewind: fit(model, rewind)


def _fit(train, rate, seed, model, *rewind):
    accuracy = train(model, rate, seed, *rewind)
    if not isinstance(accuracy, Real) or not 0 <= accuracy <= 100:
        raise ValueError(
            "`train` must return the test accuracy, a number from 0 to 100 in percent. "
            f"Received: {accuracy!r}"
        )
    return float(accuracy)


def _level(fit, known, model, level):
    accuracy = fit(model)
    if level == 0:
        # Before it is kept. At chance less than 1 % is right: `known` are earlier dense networks.
        check_percent([accuracy, *known])
    return accuracy


def _masked(fit, model, weights, kernel_masks):
    restore(model, weights, kernel_masks)
    reset_optimizer = optimizer_reset(model)
    accuracy = fit(model)
    reset_optimizer()
    return {"metrics": accuracy}


def _small(fit, small_dense, width_of, seed, num_parameters):
    model = small_dense(width_of(num_parameters), seed)
    size = _num_parameters(model)
    return {"metrics": {"accuracy": fit(model), "num_parameters": size}}


def _width(small_dense, seed, num_parameters):
    """The largest width with at most so many parameters, by bisection; else one near 0."""
    low, high = 0.0, 1.0
    for _ in range(12):
        width = (low + high) / 2
        if _num_parameters(small_dense(width, seed)) <= num_parameters:
            low = width
        else:
            high = width
    return low or high


def _reinitialised(build, start, seed):
    model = build(seed + _OTHER_START)
    weights, kernels = state_of(model)["weights"], _kernels(model)
    restore(model, start["weights"], start["masks"])
    # Other variables differ in any case: Dropout keeps the state of its random seed.
    if all(np.array_equal(a, b) for a, b in zip(kernels, _kernels(model), strict=True)):
        raise ValueError(
            "`build` must give other initial weights for another seed. "
            f"Received: the same for seeds {seed} and {seed + _OTHER_START}"
        )
    return weights


def _kernels(model):
    return [np.array(kernel.numpy()) for kernel in masks.sparse_kernels(model).values()]


def _num_parameters(model, kernel_masks=()):
    """The trainable parameters that are not masked out."""
    sizes = {id(weight): math.prod(weight.shape) for weight in model.trainable_weights}
    for kernel, mask in zip(masks.sparse_kernels(model).values(), kernel_masks, strict=False):
        if id(kernel) in sizes:
            sizes[id(kernel)] = np.count_nonzero(mask)
    return int(sum(sizes.values()))


def _judged(model, levels, pruning, judged_levels, min_sparsity):
    """The levels to judge and their sparsities, which do not depend on the weights."""
    sparsities = {}
    for level in range(1, levels + 1):
        kernel_masks = prune(model, **pruning, times=level).values()
        size = sum(mask.size for mask in kernel_masks)
        zeros = sum(np.count_nonzero(~mask) for mask in kernel_masks)
        sparsities[level] = float(zeros / size)
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
