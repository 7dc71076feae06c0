"""Writes numbers and pictures for TensorBoard."""

import importlib.util
import os
import warnings

import tensorflow as tf

_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
)


class Board:
    """Writes to a folder that TensorBoard shows.

    TensorFlow needs the package `tensorboard` for this. If it is not installed, there is a warning,
    and nothing is written.

    Args:
        log_dir: Path of the folder, or `None` to write nothing.

    Raises:
        ValueError: If the folder cannot be written to.
    """

    def __init__(self, log_dir):
        self._writer = None
        self._records = {}
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
            self._writer = tf.summary.create_file_writer(os.fspath(log_dir))
        except tf.errors.OpError as error:
            raise ValueError(
                "`log_dir` must be a folder that can be written to. "
                f"Received: log_dir={os.fspath(log_dir)!r} ({type(error).__name__})"
            ) from error

    def write(self, step, numbers, images=None):
        """Writes `{name: number}` and `{name: matrix of numbers in [0, 1]}`."""
        if self._writer is None:
            return
        with self._writer.as_default(step=step), tf.summary.record_if(True):
            if numbers:
                # One write for all numbers: `tf.summary.scalar` takes 0.3 ms for each number.
                tf.summary.experimental.write_raw_pb(self._record(numbers))
            for name, matrix in (images or {}).items():
                tf.summary.image(name, matrix[tf.newaxis, :, :, tf.newaxis])

    def _record(self, numbers):
        """The bytes of the record of `{name: number}`. What holds the names is made only once."""
        names = tuple(numbers)
        if names not in self._records:
            self._records[names] = tf.compat.v1.Summary(value=map(_scalar, names))
        record = self._records[names]
        for value, number in zip(record.value, numbers.values(), strict=True):
            value.tensor.float_val[0] = number
        return record.SerializeToString()

    def flush(self):
        if self._writer is not None:
            self._writer.flush()

    @property
    def is_open(self):
        return self._writer is not None

    def close(self):
        if self._writer is not None:
            self._writer.close()


def _scalar(name):
    """The record that `tf.summary.scalar` writes for the number 0."""
    value = tf.compat.v1.Summary.Value(tag=name, metadata=_SCALAR)
    value.tensor.dtype = tf.float32.as_datatype_enum
    value.tensor.tensor_shape.SetInParent()
    value.tensor.float_val.append(0)
    return value
