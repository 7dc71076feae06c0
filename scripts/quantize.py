"""From RigL to int8: quantisation-aware training of a sparse network, which keeps its zeros.

    python -m scripts.quantize

It trains a sparse convolutional network with RigL, and converts it to a model for TensorFlow Model
Optimization (TFMOT) with `rigl_tf.interop.to_tf_keras`. This model is fine-tuned with simulated
int8, keeping the zeros, and converted to LiteRT. For comparison, the same network is quantised
after training without fine-tuning. It takes two minutes on two cores, and writes
`results/quantize.md`.
"""

import gzip
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import rigl_tf
from rigl_tf.artifacts import litert_file, runtime
from scripts.common import datasets, entry, provenance
from scripts.common.tables import table

FLAGS = flags.FLAGS
layers = keras.layers


def _define_flags():
    flags.DEFINE_float("sparsity", 0.9, "Sparsity of the kernels.", 0.0, 0.99)
    flags.DEFINE_integer("epochs", 15, "Epochs of RigL.", lower_bound=1)
    flags.DEFINE_integer("fine_tuning_epochs", 5, "Epochs with simulated int8.", lower_bound=1)
    flags.DEFINE_string("dataset", "digits", "Data set for training, see scripts.common.datasets.")
    flags.DEFINE_string("data_dir", None, "Where its file is.")
    flags.DEFINE_string("output_dir", "results", "Where the page goes.")


def network(shape, num_classes):
    """Three convolutions with normalisation, and two Dense layers."""
    inputs = x = keras.Input(shape, name="image")
    for number, width in enumerate((32, 64, 64)):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv_{number}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm_{number}")(x)
        x = layers.ReLU(name=f"relu_{number}")(x)
    x = layers.Flatten(name="flat")(layers.MaxPooling2D(2, name="pool")(x))
    x = layers.Dense(128, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="head")(x), name="network")


def train(data):
    """Trains the sparse network with RigL, and returns it."""
    keras.utils.set_random_seed(0)
    model = rigl_tf.sparsify(network(data.x_train.shape[1:], data.num_classes), FLAGS.sparsity)
    num_steps = FLAGS.epochs * -(-len(data.x_train) // 64)
    model.compile(
        rigl_tf.RigL(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.003, num_steps)),
            end_step=max(2, 3 * num_steps // 4),
            update_frequency=min(10, num_steps),
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=FLAGS.epochs, verbose=2)
    return model


def fine_tune(model, data):
    """A `tf_keras` model with simulated int8, fine-tuned with its zeros kept."""
    # These turn `tf.keras` into Keras 2, so they come last.
    import tensorflow_model_optimization as tfmot
    import tf_keras

    twin = rigl_tf.interop.to_tf_keras(model)
    annotated = tfmot.quantization.keras.quantize_annotate_model(twin)
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    aware = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    aware.compile(tf_keras.optimizers.Adam(1e-4), loss)
    aware.fit(data.x_train, data.y_train, batch_size=64, epochs=FLAGS.fine_tuning_epochs, verbose=2)
    return twin, aware


def to_int8(aware, path):
    """Writes the LiteRT file of a model with simulated int8."""
    converter = tf.lite.TFLiteConverter.from_keras_model(aware)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    path.write_bytes(converter.convert())


def accuracy_of(outputs, data):
    return f"{100 * np.mean(np.argmax(outputs, axis=-1) == data.y_test):.2f}"


def zeros_of(arrays):
    """The share of zeros in all kernels together."""
    arrays = [array for array in arrays if np.ndim(array) > 1]
    return f"{np.mean(np.concatenate([np.ravel(array) == 0 for array in arrays])):.2%}"


def row_of_file(name, path, data):
    """The row of a LiteRT file, which is run in a new Python process."""
    outputs, latencies = runtime.run(
        "litert", path, {_input_of(path): data.x_test}, batch_sizes=(1,)
    )
    (outputs,) = outputs.values()
    operations = litert_file.read(path.read_bytes())
    weights = [each.weights.array for each in operations if each.weights is not None]
    return [
        name,
        accuracy_of(outputs, data),
        zeros_of(weights),
        f"{path.stat().st_size:,}",
        f"{len(gzip.compress(path.read_bytes())):,}",
        str(latencies[0]) if latencies else "–",
    ]


def _input_of(path):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    (name,) = runner.get_input_details()
    return name


def rows(data, directory):
    """The rows of the table."""
    model = train(data)
    files = {name: directory / f"{name}.tflite" for name in ("float", "after", "aware")}
    rigl_tf.export(model, files["float"], "litert", measure=False)
    rigl_tf.export(
        model,
        files["after"],
        "litert",
        quantize="int8",
        representative_data=data.x_train[:200],
        sparse_storage=False,
        measure=False,
    )
    trained = model.predict(data.x_test, verbose=0)
    kernels = [np.asarray(array) for array in model.get_weights() if array.dtype != bool]
    twin, aware = fine_tune(model, data)
    to_int8(aware, files["aware"])
    simulated = [each.numpy() for each in aware.weights if "kernel:" in each.name]
    return [
        ["RigL, Keras", accuracy_of(trained, data), zeros_of(kernels), *"–––"],
        row_of_file("RigL, LiteRT float32, stored sparse", files["float"], data),
        row_of_file("the same in int8, quantised after training", files["after"], data),
        [
            "in `tf_keras`, before fine-tuning",
            accuracy_of(twin.predict(data.x_test, verbose=0), data),
            zeros_of([each.numpy() for each in twin.weights]),
            *"–––",
        ],
        [
            "fine-tuned with simulated int8",
            accuracy_of(aware.predict(data.x_test, verbose=0), data),
            zeros_of(simulated),
            *"–––",
        ],
        row_of_file("fine-tuned, LiteRT int8", files["aware"], data),
    ]


def main(argv):
    del argv
    output = pathlib.Path(FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    data = datasets.load(FLAGS.dataset, FLAGS.data_dir)
    with tempfile.TemporaryDirectory() as directory:
        lines = table(
            ["step", "accuracy (%)", "zeros of the kernels", "bytes", "gzip", "latency, batch 1"],
            rows(data, pathlib.Path(directory)),
        )
    text = [
        "# From RigL to int8",
        "",
        f"A convolutional network on {data.name}, sparsity {FLAGS.sparsity:g}, one seed:",
        f"{FLAGS.epochs} epochs of RigL, then {FLAGS.fine_tuning_epochs} of prune-preserving",
        "quantisation-aware training by TensorFlow Model Optimization. Latency: median (range) in",
        "LiteRT on the CPU. int8 files are stored dense, as LiteRT has no sparse int8 kernels for",
        "zeros without blocks; compressed, their zeros cost nothing.",
        "",
        *lines,
        "",
        provenance.line("scripts.quantize"),
        "",
    ]
    (output / "quantize.md").write_text("\n".join(text))


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
