"""Loads and checks the data sets of the scripts."""

import os
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

_DOWNLOADS = ("mnist", "fashion_mnist", "cifar10")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class Dataset(NamedTuple):
    """A data set: inputs are float32; labels are int32 in `[0, num_classes)`, one per example."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    name: str


def load(name, data_dir=None):
    """Loads a data set by its name, or your own from an `.npz` file.

    Integer pixels (0 to 255) are divided by 255 and those of `digits` by 16;
    floating-point inputs are taken as they are. Grayscale images get a channel
    axis. `cifar10` is then standardised: each channel minus its mean over the
    training images, divided by its standard deviation over them.

    Args:
        name: `"digits"` (8x8, ships with scikit-learn; 1,437 training and 360 test
            images, always the same), `"mnist"`, `"fashion_mnist"`, `"cifar10"`, or
            the path of an `.npz` file with the arrays `x_train`, `y_train`,
            `x_test` and `y_test`.
        data_dir: Directory in which `<name>.npz` is looked for before
            `keras.datasets` is asked, which downloads the data once.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If the name is unknown, or the data cannot be read, downloaded
            or used for training.
    """
    name = os.fspath(name)
    if name == "digits":
        return _finish(name, "digits", _digits())
    if name in _DOWNLOADS:
        return _named(name, data_dir)
    if not name.endswith(".npz"):
        raise ValueError(
            f"`name` must be one of digits, {', '.join(_DOWNLOADS)} or the path of an .npz file. "
            f"Received: name={name!r}"
        )
    path = Path(name).expanduser()
    return _finish(path.stem, path, _read(path))


def pooled(data, size):
    """A `Dataset` of smaller images: each pixel is the mean over `size` x `size` pixels."""
    smaller = {}
    for name in ("x_train", "x_test"):
        images = getattr(data, name)
        num_images, height, width, channels = images.shape
        tiles = (num_images, height // size, size, width // size, size, channels)
        smaller[name] = images.reshape(tiles).mean(axis=(2, 4))
    return data._replace(**smaller)


def _named(name, data_dir):
    path = Path(data_dir or "").expanduser() / f"{name}.npz"
    if data_dir is not None and path.exists():
        dataset = _finish(name, path, _read(path))
    else:
        dataset = _finish(name, f"keras.datasets.{name}", _download(name, data_dir, path))
    if name == "cifar10":
        _standardise(dataset.x_train, dataset.x_test)
    return dataset


def _digits():
    # scikit-learn is needed for this data set only.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8) / 16
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=360, stratify=y, random_state=0
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _download(name, data_dir, path):
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception when there is no network.
        wanted = path if data_dir is not None else f"<data_dir>/{path}"
        raise ValueError(
            f"`{name}` must be at {wanted} when it cannot be downloaded. "
            f"Received: data_dir={data_dir!r} ({type(error).__name__}: {_one_line(error)})"
        ) from error
    return dict(zip(_ARRAYS, (*train, *test), strict=True))


def _read(path):
    if not path.is_file():
        raise ValueError(f"The data set must be an existing .npz file. Received: {path}")
    try:
        # NumPy leaves a file open that it opened and cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [array for array in _ARRAYS if array not in archive.files]
            arrays = {} if missing else {array: archive[array] for array in _ARRAYS}
        if any(not isinstance(array, np.ndarray) for array in arrays.values()):
            raise TypeError("a member is not a NumPy array")
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for damaged files.
        raise ValueError(
            "The data set must be an undamaged .npz file of plain, not pickled, arrays. "
            f"Received: {path} ({type(error).__name__}: {_one_line(error)})"
        ) from error
    if missing:
        raise ValueError(
            f"The data set must have the arrays {', '.join(_ARRAYS)}. "
            f"Received: {path} without {', '.join(missing)}"
        )
    return arrays


def _finish(name, source, arrays):
    """Checks the four arrays, and converts them to the shapes and types of a `Dataset`."""
    x_train, x_test = (_inputs(arrays[key], key, source) for key in ("x_train", "x_test"))
    y_train, y_test = (_labels(arrays[key], key, source) for key in ("y_train", "y_test"))
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y):
            raise ValueError(
                f"`x_{split}` and `y_{split}` must have the same length. "
                f"Received: {len(x)} and {len(y)} in {source}"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            "`x_train` and `x_test` must hold examples of the same shape. "
            f"Received: {x_train.shape[1:]} and {x_test.shape[1:]} in {source}"
        )
    num_classes = int(max(y_train.max(), y_test.max())) + 1
    return Dataset(x_train, y_train, x_test, y_test, num_classes, name)


def _inputs(x, key, source):
    if x.ndim not in (2, 3, 4) or x.size == 0:
        raise ValueError(
            f"`{key}` must be a non-empty array of vectors or images, with 2 to 4 axes. "
            f"Received: shape {x.shape} in {source}"
        )
    if x.dtype.kind not in "iuf":
        raise ValueError(
            f"`{key}` must be integers or floating-point numbers. Received: {x.dtype} in {source}"
        )
    if x.dtype.kind in "iu":
        if x.min() < 0 or x.max() > 255:
            raise ValueError(
                f"`{key}`, being integers, must lie between 0 and 255. "
                f"Received: {x.min()} to {x.max()} in {source}"
            )
        x = np.divide(x, 255, dtype=np.float32)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise ValueError(f"`{key}` must be finite in float32. Received: NaN or inf in {source}")
    return x[..., np.newaxis] if x.ndim == 3 else x


def _labels(y, key, source):
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.size == 0:
        raise ValueError(
            f"`{key}` must be a non-empty vector of labels, shape (n,) or (n, 1). "
            f"Received: shape {y.shape} in {source}"
        )
    if y.dtype.kind not in "iu":
        raise ValueError(f"`{key}` must be integer labels. Received: {y.dtype} in {source}")
    if y.min() < 0 or y.max() >= np.iinfo(np.int32).max:
        raise ValueError(
            f"`{key}` must be class indices from 0 upwards, in int32. "
            f"Received: {y.min()} to {y.max()} in {source}"
        )
    return y.astype(np.int32)


def _standardise(x_train, x_test):
    """Standardises each channel of both arrays in place, with the numbers of the training set."""
    for channel in range(x_train.shape[-1]):
        # Summed in float64: in float32 a sum over 51 million pixels stops growing.
        mean = float(x_train[..., channel].mean(dtype=np.float64))
        deviation = float(x_train[..., channel].std(dtype=np.float64))
        for x in (x_train, x_test):
            x[..., channel] = (x[..., channel] - mean) / max(deviation, 1e-7)


def _one_line(error):
    return " ".join(str(error).split())
