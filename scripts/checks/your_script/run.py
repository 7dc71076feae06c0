"""Makes training scripts sparse with two lines, runs them, and checks the results.

    python -m scripts.checks.your_script.run [NAME ...] [--output=results/your_script.md]

Without names, all scripts of this package. Of each one the two lines in its docstring are changed,
and it is run to its end. Then every kernel that a sparse optimizer trained must be zero outside of
its mask and have as many connections as before, and masks must have moved; the model must predict
the same after it was saved and loaded (as a whole where Keras can do that with the dense script's
model, else its weights), after an export, and after `strip`, which must leave no wrapper. A script
that fails has the error in its row. Takes ten minutes on two cores.
"""

import contextlib
import gc
import importlib.util
import io
import os
import pathlib
import sys
import tempfile
import time
import traceback
import warnings

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import rigl_tf
from rigl_tf.walk import all_layers
from scripts.checks import your_script
from scripts.common import provenance, tables

FLAGS = flags.FLAGS
_COLUMNS = {
    "script": "script",
    "kernels": "sparse kernels",
    "sparsity": "sparsity",
    "updates": "mask updates",
    "moved": "moved",
    "saved": "saved and loaded",
    "exported": "difference of the export",
    "stripped": "of the stripped model",
    "seconds": "seconds",
}


def _define_flags():
    flags.DEFINE_string("output", "", "Markdown file for the table; it is always printed.")


class Watch:
    """What the sparse optimizers of a script train: their kernels, and the masks at the start."""

    def __init__(self):
        self.optimizers = []
        self.first_masks = []  # of (kernel, mask)

    @contextlib.contextmanager
    def watching(self):
        """Takes notes whenever a sparse optimizer is built."""
        build = rigl_tf.SparseOptimizer.build

        def watched(optimizer, variables):
            build(optimizer, variables)
            if not any(optimizer is each for each in self.optimizers):
                self.optimizers.append(optimizer)
                self.first_masks += [(v, _mask(v)) for v in variables if _mask(v) is not None]

        rigl_tf.SparseOptimizer.build = watched
        try:
            yield
        finally:
            rigl_tf.SparseOptimizer.build = build

    @property
    def num_updates(self):
        """Steps that trained no weights, but moved the masks."""
        return sum(int(each.step - each.inner_optimizer.iterations) for each in self.optimizers)

    def check(self):
        """Asserts zeros and counts of every kernel; returns `(number that moved, that could)`."""
        assert self.optimizers, "no sparse optimizer was used"
        assert self.num_updates > 0, "there was no mask update"
        could = [_could_move(mask) for _, mask in self.first_masks]
        moved = [(mask != _mask(kernel)).any() for kernel, mask in self.first_masks]
        for kernel, first in self.first_masks:
            value, mask = np.asarray(kernel), _mask(kernel)
            np.testing.assert_array_equal(value, np.where(mask, value, 0), kernel.path)
            assert np.isfinite(value).all(), kernel.path
            assert mask.sum() == first.sum(), f"{kernel.path} has another number of connections"
        assert any(moved), "no mask moved"
        return sum(moved), sum(could)


def _could_move(mask):
    return 0 < mask.sum() < mask.size


def _mask(kernel):
    with tf.init_scope():
        mask = rigl_tf.masks.mask_of(kernel)
        return None if mask is None else np.asarray(mask).copy()


@contextlib.contextmanager
def execute(name, text):
    """Runs the text of a script as a module of its own, and gives the module.

    Until the end it is a file, as AutoGraph reads the source, and Keras finds its classes and
    functions when it loads a model, which a script's user would give as `custom_objects`.
    """
    keras.utils.clear_session(free_memory=False)
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, f"{name}.py")
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(f"a_users_{name}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                spec.loader.exec_module(module)
            with keras.saving.custom_object_scope(_classes_and_functions(module)):
                yield module
        finally:
            keras.config.set_dtype_policy("float32")
            del sys.modules[module.__name__]


def _classes_and_functions(module):
    return {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
    }


def check(name):
    """Runs a script with its two lines changed, and takes its model through all the rest.

    Args:
        name: One of `your_script.NAMES`.

    Returns:
        Its row of the table, if everything held; else the first failed check raises.
    """
    begin = time.monotonic()
    watch = Watch()
    with contextlib.ExitStack() as stack:
        with watch.watching():
            script = stack.enter_context(execute(name, your_script.sparse(name)))
        row = {"script": name, **_check(name, watch, script.model, script.sample)}
    return {**row, "seconds": round(time.monotonic() - begin)}


def _check(name, watch, model, sample):
    moved, could = watch.check()
    masks = list(rigl_tf.get_masks(model).values())
    assert masks, "the trained model has no sparse kernel"
    expected = _predict(model, sample)
    row = {
        "kernels": len(masks),
        "sparsity": f"{1 - sum(map(np.sum, masks)) / sum(map(np.size, masks)):.3f}",
        "updates": watch.num_updates,
        "moved": f"{moved} of {could}",
        "saved": _save_and_load(name, model, sample, expected),
        "exported": f"{_export(model, sample, expected):.1e}",
    }
    _same_masks(model, masks)
    np.testing.assert_equal(_predict(model, sample), expected, "saving or export changed the model")
    watch.check()
    return {**row, "stripped": f"{_strip(model, sample, expected):.1e}"}


def _predict(model, sample):
    return [np.asarray(x) for x in keras.tree.flatten(model(sample, training=False))]


def _same_masks(model, masks):
    """By position: Keras itself names the weights of nested models anew when it loads them."""
    np.testing.assert_equal(list(rigl_tf.get_masks(model).values()), masks)


def _difference(outputs, expected):
    pairs = zip(outputs, expected, strict=True)
    return max(float(np.abs(np.subtract(*pair, dtype="float64")).max()) for pair in pairs)


def _save_and_load(name, model, sample, expected):
    """Saves and loads the model, or its weights if Keras cannot do it with the dense one either.

    Returns:
        What was saved, and the largest difference of predictions.
    """
    masks = list(rigl_tf.get_masks(model).values())
    try:
        loaded, what = _loaded(model), "model"
        outputs = _predict(loaded, sample)
    except Exception as error:
        why = why_dense_cannot_be_loaded(name)
        if why is None:
            raise AssertionError("the dense model can be saved and loaded, not this one") from error
        loaded, what = _with_weights_loaded(model), f"weights ({why})"
        outputs = _predict(loaded, sample)
    _same_masks(loaded, masks)
    difference = _difference(outputs, expected)
    assert difference == 0, f"a loaded {what} predicts something else, by {difference}"
    return what


def _loaded(model):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "model.keras")
        model.save(path)
        return keras.saving.load_model(path)


def why_dense_cannot_be_loaded(name):
    """The kind of error with which Keras cannot save and load what the dense script trains."""
    with execute(f"dense_{name}", your_script.dense(name)) as script:
        try:
            outputs = _predict(_loaded(script.model), script.sample)
        except Exception as error:
            return type(error).__name__
        same = _difference(outputs, _predict(script.model, script.sample)) < 1e-5
    return None if same else "other predictions"


def _with_weights_loaded(model):
    """The model itself, after all that it knew was taken away and loaded from a file."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "model.weights.h5")
        model.save_weights(path)
        weights = model.get_weights()
        model.set_weights([0 * each if each.dtype.kind == "f" else each for each in weights])
        model.load_weights(path)
    return model


def _export(model, sample, expected):
    """Exports the model, runs the artifact, and gives the largest difference of predictions."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "saved_model")
        rigl_tf.export(model, path, inputs=sample)
        artifact = tf.saved_model.load(path)
        ((specs,), _) = artifact.serve.concrete_functions[0].structured_input_signature
        outputs = artifact.serve(_as_specified(sample, specs))
        difference = _difference(map(np.asarray, keras.tree.flatten(outputs)), expected)
    largest = max(1.0, *(float(np.abs(each).max()) for each in expected))
    assert difference <= (2e-2 if _in_half_precision(model) else 1e-4) * largest, difference
    return difference


def _as_specified(sample, specs):
    """What TensorFlow takes, which casts nothing, nor finds the arrays of a list by their names."""
    if isinstance(sample, dict) and not isinstance(specs, dict):
        sample = [sample[spec.name] for spec in specs]
    return tf.nest.map_structure(lambda x, spec: tf.cast(x, spec.dtype), sample, specs)


def _in_half_precision(model):
    return any("16" in layer.compute_dtype for layer in all_layers(model))


def _strip(model, sample, expected):
    """Strips the model; the result must be plain and predict the same."""
    plain = rigl_tf.strip(model)
    wrapped = [each.name for each in all_layers(plain) if isinstance(each, rigl_tf.SparseWrapper)]
    assert not wrapped, f"wrappers in the stripped model: {wrapped}"
    difference = _difference(_predict(plain, sample), expected)
    assert difference == 0, f"the stripped model predicts something else, by {difference}"
    return difference


def described(error):
    """The kind and the first line of an error, and of what it came from."""
    text = " ".join(str(error).split())
    cause = "" if error.__cause__ is None else f" (from {described(error.__cause__)})"
    return f"{type(error).__name__}: {text[:300]}{cause}"


def table(rows):
    """The rows as a Markdown table."""
    cells = [[row.get(column, "") for column in _COLUMNS] for row in rows]
    return "\n".join(tables.table(_COLUMNS.values(), cells))


def page(rows):
    """The page with the table."""
    held = sum("**" not in row["saved"] for row in rows)
    return "\n".join(
        [
            "# Two lines in training scripts as their users write them",
            "",
            f"{held} of {len(rows)} scripts in the style of published Keras examples train sparse "
            "with `sparsify` around the model and `RigL` around the optimizer, and nothing else "
            "changed. **moved**: kernels with another mask than at the start, of those that are "
            "neither full nor empty. **saved and loaded**: as a whole, or the weights where Keras "
            "cannot load the dense script's model either (with the error that it gives). "
            "Predictions of what was loaded are the same, bit for bit. What fails makes a second "
            "model of `layer.output` of wrapped layers and of others, which stand in two graphs: "
            "[what to write in its place]"
            "(../docs/guides/any_model.md#a-second-model-of-inner-outputs).",
            "",
            table(rows),
            "",
            f"{provenance.line('scripts.checks.your_script.run')}. Each script sets its own seed.",
        ]
    )


def main(arguments):
    names = arguments[1:] or your_script.NAMES
    unknown = sorted(set(names) - set(your_script.NAMES))
    if unknown:
        raise app.UsageError(f"no such scripts: {unknown}; there are {your_script.NAMES}")
    rows = []
    for name in names:
        try:
            rows.append(check(name))
        except Exception as error:
            traceback.print_exc()
            rows.append({"script": name, "saved": f"**fails**: {described(error)}"})
        print(*rows[-1].values(), sep=" | ", flush=True)
        gc.collect()
    print(table(rows))
    if FLAGS.output:
        pathlib.Path(FLAGS.output).write_text(page(rows) + "\n")
    return any("**" in row["saved"] for row in rows)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _define_flags()
    app.run(main)
