"""The trainings behind a verdict, of one learning rate and seed. Each is kept, and done once."""

import functools
import math
from numbers import Real

import keras
import numpy as np

from rigl_tf import masks
from rigl_tf.lottery.jackpot import check_percent
from rigl_tf.lottery.levels import Records, read, restore, shapes_of, state_of
from rigl_tf.lottery.tickets import find_ticket, optimizer_reset, prune

_OTHER_START = 1_000_000  # added to the seed, for other initial weights


def all_trainings(build, fit, known, small, seed, directory, pruning, judged, rewind_step):
    """The trainings as triples `(kind, level, accuracy)`.

    Among them is the size of the ticket and of the small network, as `"num_parameters"`.

    Args:
        build, rewind_step: See `jackpot_protocol`.
        fit: Function `fit(model)` or `fit(model, rewind)` that returns the accuracy.
        known: Accuracies of dense networks trained before.
        small: Pair of functions: `small_dense`, and the width of so many parameters.
        seed: Integer.
        directory: `pathlib.Path`.
        pruning: Arguments of `find_ticket`.
        judged: Levels, integers.
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


def percent(train, rate, seed, model, *rewind):
    """What `train` returns, checked."""
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
    model = small_network(small_dense, width_of(num_parameters), seed)
    size = _num_parameters(model)
    return {"metrics": {"accuracy": fit(model), "num_parameters": size}}


def small_network(small_dense, width, seed):
    """The small dense network; one that is not built would count as one without parameters."""
    model = small_dense(width, seed)
    if not isinstance(model, keras.Model) or not model.built or not model.trainable_weights:
        raise ValueError(
            "`small_dense` must return a built `keras.Model` with trainable weights, such as one "
            f"that begins with a `keras.Input`. Received: {model!r} for a width of {width:g}"
        )
    return model


def width_of(small_dense, seed, num_parameters):
    """The largest width with at most so many parameters, by bisection; else one near 0."""
    low, high = 0.0, 1.0
    for _ in range(12):
        width = (low + high) / 2
        if _num_parameters(small_network(small_dense, width, seed)) <= num_parameters:
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
        if id(kernel.variable) in sizes:
            sizes[id(kernel.variable)] = np.count_nonzero(mask)
    return int(sum(sizes.values()))
