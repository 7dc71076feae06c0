"""Tries every family of `keras.applications`, from `sparsify` to `strip`.

    python -m scripts.checks.applications

takes the smallest model of each family, with the smallest input that it allows. The model is made
sparse, trained, saved, loaded, stripped and counted. After each step two things are checked:
kernels are zero where their masks are false, and the numbers of active connections are those of ERK
at 90 %. A family that passed is a row of `results/applications.csv` and is not checked again. The
Markdown table is made from all rows. It takes about twenty minutes on two cores.
"""

import collections
import gc
import pathlib
import tempfile
import time

import keras
import numpy as np
from absl import flags

import rigl_tf
from scripts.common import entry, provenance
from scripts.common.rows import Rows

# The smallest model of each family: height and width of its input.
FAMILIES = {
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "NASNetMobile": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "VGG19": 32,
    "Xception": 71,
}
_SPARSITY = 0.9
_BATCH_SIZE = 4
_NAME = "applications"

FLAGS = flags.FLAGS


def _define_flags():
    flags.DEFINE_list("families", list(FAMILIES), "Models to try.")
    flags.DEFINE_string("output_dir", "results", "Directory for the results and the table.")


def check_family(name):
    """Checks one model in all steps.

    Args:
        name: A key of `FAMILIES`.

    Returns:
        Its row of the table. The first check that fails raises an error.
    """
    begin = time.monotonic()
    size = FAMILIES[name]
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 255, (2 * _BATCH_SIZE, size, size, 3)).astype("float32")
    y = generator.integers(0, 1000, 2 * _BATCH_SIZE)

    dense = _build(name, size)
    # The sparse model takes over its layers and weights.
    dense_outline, dense_weights = outline(dense), dense.get_weights()
    sparse = rigl_tf.sparsify(dense, _SPARSITY, "erk", seed=0)
    check_taken_over(sparse, dense_weights)
    check_counts(sparse)

    first_masks = _masks(sparse)
    seconds_of_fit = _train(sparse, x, y)
    check_counts(sparse)
    changes = zip(first_masks, _masks(sparse), strict=True)
    num_moved = sum(not np.array_equal(*change) for change in changes)
    if not num_moved:
        raise AssertionError("The update must move connections, but no mask changed")

    loaded = _saved_and_loaded(sparse)
    check_counts(loaded)
    # By position: Keras itself names the weights of nested models anew when it loads them.
    np.testing.assert_equal(_masks(loaded), _masks(sparse))
    predictions = predict(loaded, x)
    np.testing.assert_array_equal(predictions, predict(sparse, x))

    facts = _facts(loaded)
    stripped = rigl_tf.strip(loaded)
    np.testing.assert_array_equal(predict(stripped, x), predictions)
    np.testing.assert_equal(outline(stripped), dense_outline)

    return {
        "model": name,
        "input": f"{size}x{size}x3",
        **facts,
        "masks_moved": num_moved,
        "fit_seconds": round(seconds_of_fit, 1),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _build(name, size):
    """A model whose predictions still depend on the input after two steps of training.

    With the initial weights of Keras, the activations of deep models vanish. The statistics of
    batch normalisation are not those of any data, so here they are taken from the last batch.
    Models without normalisation get larger weights, because only a tenth of them will be active.
    """
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    if name.startswith("VGG"):
        model.set_weights([3 * weight for weight in model.get_weights()])
    return model


def _train(model, x, y):
    """Two steps of `fit`: step 0 trains the weights, step 1 updates the masks."""
    model.compile(
        rigl_tf.RigL(keras.optimizers.SGD(0.01, momentum=0.9), end_step=100, update_frequency=1),
        "sparse_categorical_crossentropy",
    )
    # Otherwise the first step creates its variables, and is traced twice.
    model.optimizer.build(model.trainable_variables)
    begin = time.monotonic()
    model.fit(x, y, batch_size=_BATCH_SIZE, verbose=0)
    optimizer = model.optimizer
    steps = (optimizer.step, optimizer.inner_optimizer.iterations, optimizer.num_skipped_updates)
    np.testing.assert_array_equal([int(step) for step in steps], [2, 1, 0])
    return time.monotonic() - begin


def predict(model, x):
    """Predictions for a batch. It is checked that they are finite and depend on the input."""
    predictions = np.asarray(model(x, training=False))
    if not np.isfinite(predictions).all() or not np.ptp(predictions, axis=0).any():
        raise AssertionError("Predictions must be finite and depend on the input")
    return predictions


def _saved_and_loaded(model):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "model.keras")
        model.save(path)
        return keras.saving.load_model(path)


def check_taken_over(sparse, dense_weights):
    """Checks that the dense model's weights are kept, and every matrix is sparse or known dense."""
    masks = rigl_tf.get_masks(sparse)
    weights = [weight for weight in sparse.weights if weight.dtype != "bool"]
    for weight, expected in zip(weights, dense_weights, strict=True):
        if weight.path in masks:
            expected = np.where(masks[weight.path], expected, 0)
        np.testing.assert_array_equal(weight.numpy(), expected, weight.path)
    summary = rigl_tf.sparsity_summary(sparse)
    listed = [each.path for each in summary.kernels + summary.dense]
    expected = [weight.path for weight in weights if len(weight.shape) >= 2]
    np.testing.assert_array_equal(sorted(listed), sorted(expected))


def _masks(model):
    return list(rigl_tf.get_masks(model).values())


def check_counts(model):
    """Checks that kernels are zero outside their masks, and that ERK gives their counts."""
    masks = rigl_tf.get_masks(model)
    values = {weight.path: weight.numpy() for weight in model.weights}
    shapes = {path: mask.shape for path, mask in masks.items()}
    shares = rigl_tf.distributions.erk(shapes, _SPARSITY)
    for path, mask in masks.items():
        np.testing.assert_array_equal(values[path], np.where(mask, values[path], 0), path)
        num_zeros = rigl_tf.distributions.num_zeros(mask.size, shares[path])
        np.testing.assert_equal(int(mask.sum()), mask.size - num_zeros, path)


def outline(model):
    """Name and class of each layer, and the shape of each weight. A mask would be found here."""
    layers = [(layer.name, type(layer)) for layer in model.layers]
    return layers, [tuple(weight.shape) for weight in model.weights]


def _facts(model):
    """The columns of the table about a sparse model."""
    summary = rigl_tf.sparsity_summary(model)
    reasons = collections.Counter(weights.reason for weights in summary.dense)
    cost = rigl_tf.flops.count(model)
    return {
        "weights": summary.num_weights,
        "sparse_kernels": len(summary.kernels),
        "share_of_weights": round(
            sum(kernel.size for kernel in summary.kernels) / summary.num_weights, 4
        ),
        "skipped": ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items())),
        "sparsity": round(summary.sparsity, 6),
        "dense_flops": cost.dense_flops,
        "flops_ratio": round(cost.flops_ratio, 4),
    }


def write_table(rows, output_dir):
    order = list(FAMILIES)
    rows = sorted(rows, key=lambda row: order.index(row["model"]))
    text = [
        "# Every family of keras.applications",
        "",
        f"The smallest model of each family, `weights=None`, with ImageNet's 1,000 classes: "
        f"sparsified at {_SPARSITY:.0%} (ERK), trained two steps with RigL (SGD with momentum; the "
        "second step is a mask update), saved to `.keras`, loaded, stripped. All of these hold for "
        "every row: kernels are zero where their masks are, and have exactly as many connections "
        "as ERK gives them, after each of these; the sparse model starts with the dense model's "
        "weights; the loaded model has the same masks and predictions; the stripped model has the "
        "dense model's layers, no masks, and exactly the same predictions as the sparse one.",
        "",
        "So that predictions of untrained models depend on their inputs, batch normalisation has "
        "momentum 0 here, and the weights of VGG are three times those that Keras starts with.",
        "",
        "Kernels are the weights of two and more dimensions. Skipped are those that stay dense by "
        "the rule of `sparsify`; biases and normalisations are not listed, they are in `weights`. "
        "FLOPs are per image of this size, as `rigl_tf.flops.count` has them, and their ratio is "
        "sparse / dense. `moved`: kernels whose connections the update changed (those left dense "
        "by ERK, or too small, have none to move). Seconds are those of the whole check; in "
        "brackets, of the two steps of `fit`, most of which is tracing. They were taken while the "
        "machine did other work, and say little.",
        "",
        "| model | input | weights | sparse kernels | of all weights | kernels skipped | sparsity "
        "| moved | FLOPs, dense | FLOPs ratio | seconds (fit) |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *(_line(row) for row in rows),
        "",
        provenance.line("scripts.checks.applications"),
    ]
    (output_dir / f"{_NAME}.md").write_text("\n".join(text) + "\n")


def _line(row):
    cells = [
        row["model"],
        row["input"],
        f"{row['weights']:,}",
        row["sparse_kernels"],
        f"{row['share_of_weights']:.1%}",
        row["skipped"] or "none",
        f"{row['sparsity']:.3%}",
        row["masks_moved"],
        f"{row['dense_flops'] / 1e6:,.1f} M",
        f"{row['flops_ratio']:.3f}",
        f"{row['seconds']:.0f} ({row['fit_seconds']:.0f})",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main(_):
    output_dir = pathlib.Path(FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    rows = Rows(output_dir / f"{_NAME}.csv", ("model",))
    for name in FLAGS.families:
        if {"model": name} in rows:
            continue
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        rows.add(check_family(name))
        gc.collect()
        print(rows.rows[-1], flush=True)
        write_table(rows.rows, output_dir)
    write_table(rows.rows, output_dir)


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
