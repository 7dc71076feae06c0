"""The state of a model, and results of trainings in files, so that each runs only once."""

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


@dataclasses.dataclass(frozen=True)
class Level:
    """One training of a network that was pruned `number` times.

    Attributes:
        number: Integer, 0 for the network before pruning.
        num_active: Integer, the active connections of all sparse kernels together.
        sparsity: Float, the share of zeros over all sparse kernels.
        masks: `{kernel path: mask}`, for `rigl_tf.set_masks`.
        metrics: What `train` returned.
        weights: What the training started from, as from `model.get_weights()`, before the masks
            were applied: a partially trained ticket for `sanity_check`, if it was rewound.
    """

    number: int
    num_active: int
    sparsity: float
    masks: dict
    metrics: Any
    weights: list


def state_of(model):
    """The values of all variables of a model but its masks; random seeds are among them."""
    return {
        "weights": [_array(variable) for variable in _variables(model)],
        "masks": list(masks.get_masks(model).values()),
    }


def trained_state(model, where):
    """`state_of` a model after a training; a `ValueError` if that diverged."""
    weights = [*model.trainable_weights, *masks.kernels_of(model).values()]
    broken = [each.path for each in weights if not np.isfinite(_array(each)).all()]
    if broken:
        raise ValueError(
            "A training must end with finite weights, and nothing is kept of a training that "
            f"diverged. Received: NaN or inf in {list(dict.fromkeys(broken))} after {where}"
        )
    return state_of(model)


def weights_of(model, weights):
    """The weights that `state_of` gave in the order of `model.get_weights()`."""
    values = dict(zip(map(id, _variables(model)), weights, strict=True))
    return [values[id(each)] if id(each) in values else each.numpy() for each in model.weights]


def without_masks(model, weights):
    """What `model.get_weights()` gave as `state_of` has it: the opposite of `weights_of`.

    Nothing is set, so weights that are masked out keep their values. Of variables that are no
    weights, such as the states of random seeds, it has the model's own values.

    Returns:
        The weights, a list, and the masks, `{kernel path: mask}`.

    Raises:
        ValueError: If they are not weights of such a model.
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
    """Sets what `state_of` gave; the masks have the last word."""
    for variable, value in zip(_variables(model), weights, strict=True):
        variable.assign(value)
    masks.set_masks(model, dict(zip(masks.kernels_of(model), kernel_masks, strict=True)))


def shapes_of(model):
    """The shapes of what `state_of` gives: two models of different ones are not the same."""
    return [list(variable.shape) for variable in _variables(model)]


def _variables(model):
    return masks.without_masks(model, model.variables)


def _array(variable):
    value = variable.numpy()
    # bfloat16 is no type of NumPy's files; float32 holds all its numbers.
    return value.astype("float32") if value.dtype.kind == "V" else np.array(value)


class Records:
    """Results by name, each computed once: those in the directory are read.

    A record is a dictionary with lists of arrays, and `metrics`, which JSON can hold. It is one
    file, written under a temporary name and renamed when it is complete. Several processes may
    share a directory: of two that compute the same, all go on with what the first has finished.

    Args:
        directory: Path, made if it is not there. `None` keeps nothing.
        settings: Dictionary for JSON. A directory with other settings is refused.

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
                "`directory` must be a directory, or a path where one can be made, not a file or "
                f"in one. Received: directory={str(self._path)!r} ({error.strerror})"
            ) from error
        self._check_settings(self._path / "settings.json", json.loads(json.dumps(settings)))

    def once(self, name, compute):
        """The record of this name; `compute()` makes it if there is none."""
        path = None if self._path is None else self._path / f"{name}.npz"
        if path is not None and path.exists():
            return read(path)
        record = compute()
        record = {**record, "metrics": plain(record.get("metrics"))}
        if path is not None:
            if path.exists():  # by now: another process was faster
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
                "`directory` must be new, or hold results of the same settings. "
                f"Received: directory={str(self._path)!r}, {difference}"
            )


def _settings_in(path):
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            "The settings of a directory must be as they were written, a dictionary in JSON: take "
            f"another directory if they are lost. Received: {path}"
        )
    return found


def replace_file(path, write):
    """Writes a file under a temporary name, `write(file)`, and renames it when it is complete.

    The name is its own: two processes may write the same file, and the later one counts.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(metrics):
    """`metrics` as JSON gives them back, so that a result is the same when it is read again.

    Of what `model.fit` returns, the history.
    """
    if isinstance(metrics, keras.callbacks.History):
        metrics = metrics.history
    try:
        return json.loads(json.dumps(metrics, default=lambda value: np.asarray(value).tolist()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`train` must return metrics that JSON can hold: numbers, in lists or dictionaries. "
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
    """A record that was read; it is an error of its file if something is missing."""

    def __init__(self, path):
        super().__init__()
        self._path = path

    def __missing__(self, key):
        raise _damaged(self._path, f"without {key}")


def _damaged(path, why):
    return ValueError(
        "What is finished must be as it was written: delete the file, and those of later levels, "
        "to have them run again. "
        f"Received: {path} ({why})"
    )


def read(path):
    """The record in a file of `Records`."""
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
