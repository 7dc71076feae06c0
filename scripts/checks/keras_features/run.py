"""Tries the training features of Keras on a sparse model, and writes a table of what holds.

    python -m scripts.checks.keras_features.run

Each feature of this package trains a small sparse model with RigL on one device, and under
`MirroredStrategy` on two logical CPUs. After every step every kernel must be zero where its mask
says so, counts must be what they were, and replicas equal. In the end masks must have moved, and
two replicas must have the masks and weights of one device. What fails is tried with the dense model
and the plain optimizer too, and the table names the failure. Takes ten minutes. Writes
`results/keras_features.md`, and `results/keras_features.csv` row by row: started again, it goes on
where it was. The tests run the same list.
"""

import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import rigl_tf
from scripts.checks import keras_features
from scripts.common import entry, provenance, tables
from scripts.common.rows import Rows
from scripts.train import strategies

FLAGS = flags.FLAGS
_DETERMINISM = "`enable_op_determinism`, `set_random_seed`"


def _define_flags():
    flags.DEFINE_string("output_dir", "results", "Directory for keras_features.md.")
    flags.DEFINE_bool("determinism", False, "Only compare two runs with deterministic operations.")


class Watch(keras.callbacks.Callback):
    """Asserts what must hold of a sparse model, after every step and whenever it is evaluated."""

    def __init__(self):
        super().__init__()
        self.history = []  # the masks before the first and after every step

    @property
    def masks(self):
        return list(rigl_tf.get_masks(self.model).values())

    @property
    def moved(self):
        """Whether any mask ever changed."""
        return any(
            (mask != first).any()
            for masks in self.history
            for mask, first in zip(masks, self.history[0], strict=True)
        )

    def on_train_begin(self, logs=None):
        if not self.history:
            self.history.append(self.masks)
        self.check()

    def on_train_batch_end(self, batch, logs=None):
        self.check()
        self.history.append(self.masks)

    def on_test_batch_end(self, batch, logs=None):
        self.check()

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def check(self):
        kernels = rigl_tf.masks.sparse_kernels(self.model).values()
        for kernel, mask, first in zip(kernels, self.masks, self.history[0], strict=True):
            value = np.asarray(kernel)
            np.testing.assert_array_equal(value, np.where(mask, value, 0), kernel.path)
            assert mask.sum() == first.sum(), kernel.path
            assert np.isfinite(value).all(), kernel.path
        for variable in [*self.model.weights, *self.model.optimizer.variables]:
            if variable.name.endswith("gradient_accumulator"):
                continue  # Each replica's own, in Keras.
            replicas = tf.distribute.get_strategy().experimental_local_results(variable.value)
            for other in replicas[1:]:
                np.testing.assert_array_equal(replicas[0], other, variable.path)


def run(feature, strategy, sparse=True):
    """Trains a model with one feature of Keras, and asserts what must hold.

    Args:
        feature: A `keras_features.Feature`.
        strategy: A `tf.distribute.Strategy`.
        sparse: Boolean, whether the model is sparse, and trained with a sparse optimizer.

    Returns:
        The trained model's trainable weights and, if it is sparse, its masks after every step.

    Raises:
        AssertionError: If something does not hold.
    """
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(feature.policy)
    watch = Watch() if sparse else keras.callbacks.Callback()
    try:
        with strategy.scope(), tempfile.TemporaryDirectory() as directory:
            model = feature.model()
            optimizer = feature.optimizer()
            if sparse:
                model = rigl_tf.sparsify(model, 0.5, distribution=_same_for_all)
                feature.prepare(model)
                optimizer = feature.wrap(optimizer)
            model.compile(optimizer, **{"loss": "mse", **feature.compile})
            feature.run(model, watch, directory)
            if sparse:
                watch.check()
                assert watch.moved, "no mask moved"
            weights = [np.asarray(weight) for weight in model.trainable_weights]
            if sparse:
                feature.check(model, watch)  # may change the model
    finally:
        keras.config.set_dtype_policy("float32")
    return weights, watch.history if sparse else None


def _same_for_all(shapes, sparsity):
    return dict.fromkeys(shapes, sparsity)


def assert_same(one, other, tolerance):
    """Asserts that two results of `run` have the same masks and, nearly, the same weights."""
    for masks, wants in zip(one[1], other[1], strict=True):
        for mask, want in zip(masks, wants, strict=True):
            np.testing.assert_array_equal(mask, want)
    for weight, want in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(weight, want, rtol=tolerance, atol=tolerance)


def two_replicas():
    return strategies.mirrored("CPU")


# How far two replicas may be from one device, which sums a batch in another order.
_TOLERANCE = {"float32": 1e-4, "mixed_float16": 3e-2, "mixed_bfloat16": 3e-2}


def tolerance(feature):
    """How far the weights of two replicas may be from those of one device."""
    return _TOLERANCE[feature.policy]


def described(error):
    """The kind and the first sentence of an error."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"


def row(feature, mirrored):
    """`{column: text}` of what was seen of one feature."""
    cells = {"feature": feature.name}
    one = other = None
    try:
        one = run(feature, tf.distribute.get_strategy())
        cells["one device"] = "holds"
    except Exception as error:
        cells["one device"] = f"**fails**: {described(error)}"
    try:
        other = run(feature, mirrored)
        cells["two replicas"] = "holds"
    except Exception as error:
        cells["two replicas"] = _why(feature, mirrored, error)
    remarks = [feature.remark, feature.differs]
    if one and other and not feature.differs:
        try:
            assert_same(other, one, tolerance(feature))
            cells["two replicas"] = "holds, as one device"
        except AssertionError as error:
            remarks.append(f"**differs**: {described(error)}")
    return {**cells, "remarks": "; ".join(filter(None, remarks))}


def _why(feature, mirrored, error):
    """Whether what failed fails with a dense model and the plain optimizer too."""
    try:
        run(feature, mirrored, sparse=False)
    except Exception as plain:
        kind = "refused" if isinstance(error, ValueError) else "fails"
        return f"{kind}, as Keras itself fails with a dense model ({type(plain).__name__})"
    return f"**fails**: {described(error)}"


def check_determinism():
    """Runs one feature twice on each strategy with deterministic ops: bit for bit the same."""
    tf.config.experimental.enable_op_determinism()
    for strategy in (tf.distribute.get_strategy(), two_replicas()):
        for feature in keras_features.SEEDED:
            assert_same(run(feature, strategy), run(feature, strategy), tolerance=0)


def determinism_row():
    """The row of `enable_op_determinism`, which cannot be switched off: in its own process."""
    command = [sys.executable, "-m", "scripts.checks.keras_features.run", "--determinism"]
    code = subprocess.run(command, check=False, capture_output=True).returncode
    cell = "**fails**" if code else "holds, two runs are equal bit for bit"
    return {
        "feature": _DETERMINISM,
        "one device": cell,
        "two replicas": cell,
        "remarks": "",
    }


def split_cpu():
    """Two logical CPUs; only before TensorFlow starts."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def main(_):
    split_cpu()
    if FLAGS.determinism:
        check_determinism()
        return
    output_dir = pathlib.Path(FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    rows = Rows(output_dir / "keras_features.csv", ("feature",))
    mirrored = two_replicas()
    for feature in keras_features.FEATURES:
        if {"feature": feature.name} not in rows:
            rows.add(row(feature, mirrored))
            print(*rows.rows[-1].values(), sep=" | ", flush=True)
    if {"feature": _DETERMINISM} not in rows:
        rows.add(determinism_row())
    lines = [
        "# Training features of Keras with sparse models",
        "",
        "RigL, two mask updates in eight steps of a small model at 50 %, with each feature, on one "
        "device and under `MirroredStrategy` on two logical CPUs. **Holds**: after every step each "
        "kernel is zero where its mask says so, counts are what they were, replicas are equal bit "
        "for bit, and the masks moved. **As one device**: the masks after every step are those of "
        f"one device, and so are the weights at the end, to {_TOLERANCE['float32']:g} (in half "
        f"precision {_TOLERANCE['mixed_float16']:g}).",
        "",
        *tables.table(rows.rows[0], [row.values() for row in rows.rows]),
        "",
        provenance.line("scripts.checks.keras_features.run"),
    ]
    (output_dir / "keras_features.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
