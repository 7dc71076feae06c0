"""Reads a history of training: curves of the whole model, and of each kernel."""

import csv
import math
import os
import pathlib
from collections.abc import Mapping
from numbers import Real

import keras
import numpy as np

_RULE = (
    "`history` must be what `fit` returns, its dictionary, or the path of a file that "
    "`keras.callbacks.CSVLogger` wrote."
)


# What may stand between the columns of a file.
_SEPARATORS = ",;\t|"


class Curves:
    """The numbers of each epoch.

    A history does not say of which epochs the numbers of a short list are. In a list of validation,
    they are assumed to be of every n-th epoch, as with `fit(validation_freq=n)`. If several n fit,
    the largest is taken: its last number is nearest to the end. Numbers of other short lists, and
    if no n fits, are assumed to be of the last epochs. A file has empty cells instead.

    Args:
        history: A `keras.callbacks.History`, a dictionary `{name: list of numbers}`, the path of a
            CSV file with a row for each epoch, or `None`.

    Attributes:
        epochs: List of the numbers of the epochs. The first epoch has the number 1, or a higher one
            if `history` begins later. A file may leave epochs out.
        of_all: `{name: list of numbers}` of the whole model; NaN where a number is missing.
        of_kernels: `{name: {path: list of numbers}}` of the kernels, from the names
            `"moved/PATH"` and `"sparsity/PATH"` of `SparsityLogger`.
        is_in_order: Whether the paths of `of_kernels` are in the order of the kernels.
            `keras.callbacks.CSVLogger` sorts them, so in a file, and in a dictionary with sorted
            names, they need not be.
        estimates: List of sentences on numbers whose epochs are not certain.

    Raises:
        ValueError: If `history` is none of these.
    """

    def __init__(self, history):
        epochs, columns = _columns(history)
        is_file = isinstance(history, (str, os.PathLike))
        self.is_in_order = not is_file and list(columns) != sorted(columns, key=str)
        self.of_all, self.of_kernels = {}, {}
        length = max(map(len, columns.values()), default=0)
        self.epochs = epochs if len(epochs) == length else list(range(1, 1 + length))
        estimates = {}
        for name, values in columns.items():
            numbers = [_number(value) for value in values]
            if not np.isfinite(numbers).any():
                continue
            numbers, estimate = _in_epochs(numbers, self.epochs, str(name).startswith("val_"))
            if estimate:
                estimates.setdefault(estimate, []).append(str(name))
            kind, _, path = str(name).partition("/")
            if path and kind in _OF_KERNELS:
                self.of_kernels.setdefault(kind, {})[path] = numbers
            else:
                self.of_all[str(name)] = numbers
        self.estimates = [f"{', '.join(names)}: {each}" for each, names in estimates.items()]

    def groups(self):
        """`[(name, {label: numbers})]`, which joins `name` and `val_name` for one picture."""
        result = {}
        for name, numbers in self.of_all.items():
            is_validation = name.startswith("val_")
            label = "validation" if is_validation else "training"
            result.setdefault(name.removeprefix("val_"), {})[label] = numbers
        return list(result.items())


_OF_KERNELS = ("moved", "sparsity")


def _in_epochs(numbers, epochs, is_validation):
    """The numbers with NaN at the epochs between, and a sentence if these are an estimate."""
    if len(numbers) == len(epochs):
        return numbers, ""
    known, is_certain = epochs[-len(numbers) :], False
    where = "at the last ones"
    frequencies = _frequencies(len(numbers), epochs) if is_validation else []
    if frequencies:
        known = [epoch for epoch in epochs if epoch % frequencies[-1] == 0]
        is_certain = len(frequencies) == 1
        where = f"as of fit(validation_freq={frequencies[-1]}), though other frequencies would fit"
    by_epoch = dict(zip(known, numbers, strict=True))
    estimate = (
        f"the history has {len(numbers)} numbers for {len(epochs)} epochs and does not say for "
        f"which. They are drawn {where}."
    )
    return [by_epoch.get(epoch, math.nan) for epoch in epochs], "" if is_certain else estimate


def _frequencies(number, epochs):
    """All n for which so many of the epochs are multiples of n, in ascending order."""
    before, last = epochs[0] - 1, epochs[-1]
    return [n for n in range(1, last + 1) if last // n - before // n == number]


def _columns(history):
    """The numbers of the epochs, empty if they are not known, and `{name: list of values}`."""
    if history is None:
        return [], {}
    if isinstance(history, keras.callbacks.History):
        return _epochs_of(history), history.history
    if isinstance(history, Mapping):
        if not all(isinstance(each, (list, tuple, np.ndarray)) for each in history.values()):
            raise ValueError(f"{_RULE} Received: a dictionary with values that are no lists")
        return [], {name: list(values) for name, values in history.items()}
    if isinstance(history, (str, os.PathLike)):
        return _columns_of_file(pathlib.Path(history))
    raise ValueError(f"{_RULE} Received: {type(history).__name__}")


def _epochs_of(history):
    # A `History` that was given to several calls of `fit` knows only the epochs of the last one.
    length = max(map(len, history.history.values()), default=0)
    first = max(1, history.epoch[-1] + 2 - length) if history.epoch else 1
    return list(range(first, first + length))


def _columns_of_file(path):
    try:
        with path.open(newline="", errors="replace") as file:
            lines = list(file)
        separator = max(_SEPARATORS, key="".join(lines[:1]).count)
        rows = list(csv.DictReader(lines, delimiter=separator))
    except (OSError, csv.Error) as error:
        raise ValueError(f"{_RULE} Received: history={str(path)!r} ({error})") from error
    if not rows or not any(np.isfinite(_number(x)) for row in rows for x in row.values()):
        raise ValueError(f"{_RULE} Received: history={str(path)!r}, without numbers")
    names = [name for name in rows[0] if name not in (None, "epoch")]
    epochs = np.array([_number(row.get("epoch")) for row in rows])
    if np.isfinite(epochs).all() and (np.diff(epochs) > 0).all() and epochs[0] >= 0:
        # `CSVLogger` counts epochs from 0. A file that begins with 1 is rather of another logger.
        epochs = [int(epoch) + (epochs[0] != 1) for epoch in epochs]
    else:  # A training was begun anew, for example, and added to the same file.
        epochs = []
    return epochs, {name: [row.get(name) for row in rows] for name in names}


def _number(value):
    """The value as a float; NaN if it is not a number."""
    if isinstance(value, (Real, str)) or getattr(value, "shape", None) == ():
        try:
            return float(value)
        except (TypeError, ValueError):
            return math.nan
    return math.nan
