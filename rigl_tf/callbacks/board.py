"""Writes numbers and pictures for TensorBoard."""

import importlib.util
import itertools
import os
import socket
import time
import warnings
from typing import Any

import tensorflow as tf

_Event, _Summary = tf.compat.v1.Event, tf.compat.v1.Summary
_VERSION = "brain.Event:2"
_SECONDS_BETWEEN_FLUSHES = 120  # as in `tf.summary`
_numbers_of_files = itertools.count()


class Board:
    """Writes to a folder that TensorBoard shows.

    It writes the same records as `tf.summary`, which would take ten times as long for each.

    If the package `tensorboard` is not installed, there is a warning, and nothing is written.

    Args:
        log_dir: Path of the folder, or `None` to write nothing.

    Raises:
        ValueError: If the folder cannot be written to.
    """

    def __init__(self, log_dir):
        self._writer: Any = None
        self._events = {}
        if log_dir is None:
            return
        if importlib.util.find_spec("tensorboard") is None:
            warnings.warn(
                "Nothing is written for TensorBoard, as the package 'tensorboard' is not "
                "installed: `pip install tensorboard`. The logs of `fit` have all numbers. "
                f"Received: log_dir={os.fspath(log_dir)!r}",
                stacklevel=2,
            )
            return
        try:
            tf.io.gfile.makedirs(log_dir)
            self._writer = tf.io.TFRecordWriter(os.path.join(os.fspath(log_dir), _name_of_file()))
            self._write(_Event(wall_time=time.time(), file_version=_VERSION))
            self.flush()
        except tf.errors.OpError as error:
            raise ValueError(
                "`log_dir` must be a folder that can be written to. "
                f"Received: log_dir={os.fspath(log_dir)!r} ({type(error).__name__})"
            ) from error

    @property
    def is_open(self):
        return self._writer is not None

    def write(self, step, numbers, images=None):
        """Writes `{name: number}` and `{name: matrix of numbers in [0, 1]}`."""
        if not self.is_open:
            return
        now = time.time()
        if numbers:
            event = self._event(tuple(numbers))
            event.wall_time, event.step = now, step
            for value, number in zip(event.summary.value, numbers.values(), strict=True):
                value.tensor.float_val[0] = number
            self._write(event)
        for name, matrix in (images or {}).items():
            summary = _Summary(value=[_image(name, matrix)])
            self._write(_Event(wall_time=now, step=step, summary=summary))
        if now - self._last_flush > _SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def _event(self, names):
        """The record of numbers with these names. What holds the names is made only once."""
        if names not in self._events:
            self._events[names] = _Event(summary=_Summary(value=map(_scalar, names)))
        return self._events[names]

    def _write(self, event):
        self._writer.write(event.SerializeToString())

    def flush(self):
        if self.is_open:
            self._writer.flush()
            self._last_flush = time.time()

    def close(self):
        if self.is_open:
            self._writer.close()
            self._writer = None


def _name_of_file():
    """A name as `tf.summary` gives it, which no other file has."""
    parts = (int(time.time()), socket.gethostname(), os.getpid(), next(_numbers_of_files))
    return "events.out.tfevents.{:010d}.{}.{}.{}.v2".format(*parts)


def _scalar(name):
    """The record that `tf.summary.scalar` writes for the number 0."""
    value = _value(name, "scalars", tf.float32)
    value.tensor.tensor_shape.SetInParent()
    value.tensor.float_val.append(0)
    return value


def _image(name, matrix):
    """The record that `tf.summary.image` writes for a grey picture."""
    pixels = tf.image.convert_image_dtype(matrix[..., tf.newaxis], tf.uint8, saturate=True)
    height, width = matrix.shape
    parts = [str(width).encode(), str(height).encode(), tf.io.encode_png(pixels).numpy()]
    value = _value(name, "images", tf.string)
    value.tensor.tensor_shape.dim.add(size=len(parts))
    value.tensor.string_val.extend(parts)
    return value


def _value(name, plugin, dtype):
    data = tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin)
    metadata = tf.compat.v1.SummaryMetadata(plugin_data=data)
    value = _Summary.Value(tag=name, metadata=metadata)
    value.tensor.dtype = dtype.as_datatype_enum
    return value
