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


class Curves:
    """The numbers of each epoch.

    Args:
        history: A `keras.callbacks.History`, a dictionary `{name: list of numbers}`, the path of a
            CSV file with a row for each epoch, or `None`.

    Attributes:
        epochs: List of the numbers of the epochs. The first epoch has the number 1, or a higher one
            if `history` begins later.
        of_all: `{name: list of numbers}` of the whole model; NaN where a number is missing.
        of_kernels: `{name: {path: list of numbers}}` of the kernels, from the names
            `"moved/PATH"` and `"sparsity/PATH"` of `SparsityLogger`.

    Raises:
        ValueError: If `history` is none of these.
    """

    def __init__(self, history):
        first, columns = _columns(history)
        self.of_all, self.of_kernels = {}, {}
        length = max(map(len, columns.values()), default=0)
        self.epochs = list(range(first, first + length))
        for name, values in columns.items():
            numbers = [_number(value) for value in values] + [math.nan] * (length - len(values))
            if not np.isfinite(numbers).any():
                continue
            kind, _, path = str(name).partition("/")
            if path and kind in _OF_KERNELS:
                self.of_kernels.setdefault(kind, {})[path] = numbers
            else:
                self.of_all[str(name)] = numbers

    def groups(self):
        """`[(name, {label: numbers})]`, which joins `name` and `val_name` for one picture."""
        result = {}
        for name, numbers in self.of_all.items():
            is_validation = name.startswith("val_")
            label = "validation" if is_validation else "training"
            result.setdefault(name.removeprefix("val_"), {})[label] = numbers
        return list(result.items())


_OF_KERNELS = ("moved", "sparsity")


def _columns(history):
    """The number of the first epoch, and `{name: list of values}`."""
    if history is None:
        return 1, {}
    if isinstance(history, keras.callbacks.History):
        return (history.epoch[0] + 1 if history.epoch else 1), history.history
    if isinstance(history, Mapping):
        if not all(isinstance(each, (list, tuple, np.ndarray)) for each in history.values()):
            raise ValueError(f"{_RULE} Received: a dictionary with values that are no lists")
        return 1, {name: list(values) for name, values in history.items()}
    if isinstance(history, (str, os.PathLike)):
        return _columns_of_file(pathlib.Path(history))
    raise ValueError(f"{_RULE} Received: {type(history).__name__}")


def _columns_of_file(path):
    try:
        with path.open(newline="", errors="replace") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise ValueError(f"{_RULE} Received: history={str(path)!r} ({error})") from error
    if not rows or not any(np.isfinite(_number(x)) for row in rows for x in row.values()):
        raise ValueError(f"{_RULE} Received: history={str(path)!r}, without numbers")
    names = [name for name in rows[0] if name not in (None, "epoch")]
    first = _number(rows[0].get("epoch", 1))
    # `CSVLogger` counts epochs from 0, other loggers from 1.
    first = int(first) if np.isfinite(first) and first >= 1 else 1
    return first, {name: [row.get(name) for row in rows] for name in names}


def _number(value):
    """The value as a float; NaN if it is not a number."""
    if isinstance(value, (Real, str)) or getattr(value, "shape", None) == ():
        try:
            return float(value)
        except (TypeError, ValueError):
            return math.nan
    return math.nan
