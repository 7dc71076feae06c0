"""Saves the results of trainings in files, so that each training runs only once."""

import dataclasses
import json
import os
import pathlib
import uuid
import zipfile
from typing import Any

import keras
import numpy as np

from rigl_tf import masks
from rigl_tf.walk import recurrent_states


@dataclasses.dataclass(frozen=True)
class Level:
    """One training of a network that was pruned `number` times.

    Attributes:
        number: Integer, how often the network was pruned; 0 before pruning.
        num_active: Integer, the number of active connections of all sparse kernels together.
        sparsity: Float, the share of zeros over all sparse kernels.
        masks: `{kernel path: mask}`, for `rigl_tf.set_masks`, as they were after the training.
        metrics: The result of `train`.
        weights: The weights at the start of the training, before the masks were applied: a list of
            arrays as from `model.get_weights()`. If weights are rewound to a later step, this is a
            partially trained ticket for `sanity_check`.

    `print` shows the numbers, not the arrays.
    """

    number: int
    num_active: int
    sparsity: float
    masks: dict[str, np.ndarray] = dataclasses.field(repr=False)
    metrics: Any
    weights: list[np.ndarray] = dataclasses.field(repr=False)


def state_of(model):
    """The values of all variables of a model (also seeds and recurrent states), and its masks."""
    return {
        "weights": [_array(variable) for variable in _variables(model)],
        "masks": list(masks.get_masks(model).values()),
    }


def trained_state(model, where):
    """`state_of` a model after a training; raises a `ValueError` if the training diverged."""
    weights = [*model.trainable_weights, *masks.kernels_of(model).values()]
    broken = [each.path for each in weights if not np.isfinite(_array(each)).all()]
    if broken:
        raise ValueError(
            "A training must end with finite weights. A training that diverged is not saved. "
            f"Received: NaN or inf in {list(dict.fromkeys(broken))} after {where}"
        )
    return state_of(model)


def weights_of(model, weights):
    """The weights from `state_of`, in the order of `model.get_weights()`."""
    values = dict(zip(map(id, _variables(model)), weights, strict=True))
    return [values[id(each)] if id(each) in values else each.numpy() for each in model.weights]


def weights_and_masks(model, weights):
    """Converts `model.get_weights()` to the form of `state_of`; the reverse of `weights_of`.

    The model is not changed, so inactive weights keep their values. Variables that are not weights,
    such as the states of random seeds and of recurrent layers, have the model's values.

    Returns:
        The weights, a list, and the masks, `{kernel path: mask}`.

    Raises:
        ValueError: If the weights do not fit the model.
    """
    shapes = [tuple(each.shape) for each in model.weights]
    received = [np.shape(array) for array in weights]
    if received != shapes:
        raise ValueError(
            f"Weights must be as from `model.get_weights()`, {len(shapes)} arrays in their shapes. "
            f"Received: {len(received)} arrays of shapes {received}"
        )
    given = dict(zip(map(id, model.weights), map(np.asarray, weights), strict=True))
    values = [given[id(each)] if id(each) in given else _array(each) for each in _variables(model)]
    kernels = masks.kernels_of(model)
    return values, {path: given[id(kernel.kernel_mask)] for path, kernel in kernels.items()}


def restore(model, weights, kernel_masks):
    """Sets weights from `state_of`, then masks, which set inactive connections to zero."""
    for variable, value in zip(_variables(model), weights, strict=True):
        variable.assign(value)
    masks.set_masks(model, dict(zip(masks.kernels_of(model), kernel_masks, strict=True)))


def shapes_of(model):
    """The shapes of the weights from `state_of`, to tell different models apart."""
    return [list(variable.shape) for variable in _variables(model)]


def _variables(model):
    return [*masks.without_masks(model, model.variables), *recurrent_states(model)]


def _array(variable):
    value = variable.numpy()
    # NumPy cannot save bfloat16 in files; float32 can hold all of its numbers.
    return value.astype("float32") if value.dtype.kind == "V" else np.array(value)


class Records:
    """Results by name. Each is computed once and saved in a directory.

    A record is a dictionary with lists of arrays, and `metrics`, which can be saved as JSON. It is
    saved in one file, which is written under a temporary name and renamed when it is complete.
    Several processes may use the same directory: if two compute the same result, both continue with
    the one that was finished first.

    Args:
        directory: Path, which is created if it does not exist. With `None` nothing is saved.
        settings: Dictionary that can be saved as JSON. They must equal the settings in an existing
            directory.

    Raises:
        ValueError: If `directory` is a file or has other settings, or a file in it is damaged.
    """

    def __init__(self, directory, settings):
        if directory is not None and not isinstance(directory, (str, os.PathLike)):
            raise ValueError(f"`directory` must be a path. Received: directory={directory!r}")
        self._path = None if directory is None else pathlib.Path(directory).expanduser()
        if self._path is None:
            return
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                "`directory` must be a directory, or a path where a directory can be created. "
                f"Received: directory={str(self._path)!r} ({error.strerror})"
            ) from error
        self._check_settings(self._path / "settings.json", json.loads(json.dumps(settings)))

    def once(self, name, compute):
        """The record with this name; `compute()` is called if it does not exist yet."""
        path = None if self._path is None else self._path / f"{name}.npz"
        if path is not None and path.exists():
            return read(path)
        record = compute()
        record = {**record, "metrics": plain(record.get("metrics"))}
        if path is not None:
            if path.exists():  # another process has finished it in the meantime
                return read(path)
            replace_file(path, lambda file: _write(file, record))
        return record

    def _check_settings(self, path, settings):
        if not path.exists():
            text = json.dumps(settings, indent=2) + "\n"
            replace_file(path, lambda file: file.write(text.encode()))
        found = _settings_in(path)
        names = sorted(settings.keys() | found.keys())
        other = [name for name in names if settings.get(name) != found.get(name)]
        if other:
            difference = ", ".join(
                f"{name}={_short(settings.get(name))} (there: {_short(found.get(name))})"
                for name in other
            )
            raise ValueError(
                "`directory` must be new, or have results of the same settings. "
                f"Received: directory={str(self._path)!r}, {difference}"
            )


def _settings_in(path):
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            "The settings of a directory are damaged (they must be a dictionary in JSON): use "
            f"another directory. Received: {path}"
        )
    return found


def replace_file(path, write):
    """Writes a file with `write(file)` under a temporary name, and renames it when it is complete.

    Temporary names are unique. So two processes may write the same file; the last one counts.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(metrics):
    """`metrics` as they are after saving and loading with JSON, so that both are the same.

    The result of `model.fit` is replaced by its history.
    """
    if isinstance(metrics, keras.callbacks.History):
        metrics = metrics.history
    try:
        return json.loads(json.dumps(metrics, default=lambda value: np.asarray(value).tolist()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`train` must return metrics that JSON can save: numbers, in lists or dictionaries. "
            f"Received: {metrics!r}"
        ) from error


def _short(value):
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _write(file, record):
    arrays = {
        f"{name}/{index}": array
        for name, values in record.items()
        if name != "metrics"
        for index, array in enumerate(values)
    }
    np.savez(file, metrics=json.dumps(record["metrics"]), **arrays)


class _Record(dict):
    """A record from a file. A missing entry is an error of the file."""

    def __init__(self, path):
        super().__init__()
        self._path = path

    def __missing__(self, key):
        raise _damaged(self._path, f"without {key}")


def _damaged(path, why):
    return ValueError(
        "A file with a finished result is damaged: delete it and the files of later levels, to run "
        "them again. "
        f"Received: {path} ({why})"
    )


def read(path):
    """Reads a record from a file of `Records`."""
    record = _Record(path)
    try:
        with np.load(path) as arrays:
            record["metrics"] = json.loads(str(arrays["metrics"]))
            for key in arrays.files:
                if key != "metrics":
                    record.setdefault(key.split("/")[0], []).append(arrays[key])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    return record
