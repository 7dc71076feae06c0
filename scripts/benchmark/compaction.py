"""Removes half of the units of networks with `rigl_tf.compact`, and measures both networks.

    python -m scripts.benchmark.compaction

The networks of `keras.applications` have random weights, because size and time are measured, not
accuracy. `compact(model, keep=0.5)` removes the units (filters) with the smallest weights. It also
checks that the small model predicts what the large one predicts if the outputs of these units are
0. The time of one image is measured in rounds in which both models take turns, so other programs on
the machine slow down both. It takes about 3 minutes on two cores. Finished runs are rows of
`results/compaction.csv` and are never repeated. The page `results/compaction.md` is made from all
rows.
"""

import os
import pathlib
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import rigl_tf
from scripts.common import entry, provenance, rows, tables

FLAGS = flags.FLAGS
_KEY = ("model", "keep", "size", "rounds", "calls", "seed")


def _define_flags():
    flags.DEFINE_list("models", ["MobileNetV2", "ResNet50"], "Names in keras.applications.")
    flags.DEFINE_float("keep", 0.5, "Share of units to keep.", 0.01, 1.0)
    flags.DEFINE_integer("size", 224, "Height and width of the images.", lower_bound=32)
    flags.DEFINE_integer("rounds", 15, "Rounds in which both models are measured.", 1)
    flags.DEFINE_integer("calls", 10, "Calls of a model in a round.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of weights and statistics.")
    flags.DEFINE_string("output_dir", "results", "Directory for compaction.csv and compaction.md.")


def build(name, size, seed):
    """A network with random weights and offsets, and normalisation statistics of random images."""
    keras.utils.set_random_seed(seed)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classifier_activation=None
    )
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(generator.uniform(-0.5, 0.5, layer.beta.shape))
            layer.momentum = 0.0
    model(generator.uniform(0, 2, (4, size, size, 3)), training=True)
    return model


def milliseconds(models, size, num_rounds, num_calls):
    """The mean time of a call with one image: for each model a list with one time per round."""
    image = tf.random.stateless_uniform((1, size, size, 3), (0, 0))
    functions = [tf.function(lambda x, m=model: m(x, training=False)) for model in models]
    for function in functions:
        function(image)
        function(image)
    times = [[] for _ in models]
    for _ in range(num_rounds):
        for function, series in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(num_calls):
                function(image).numpy()
            series.append(1000 * (time.perf_counter() - start) / num_calls)
    return times


def file_bytes(model):
    """The size of a model's `.keras` file."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "model.keras")
        model.save(path)
        return os.path.getsize(path)


def measure(run):
    """Does one run. Returns its row."""
    model = build(run["model"], run["size"], run["seed"])
    start = time.perf_counter()
    small, report = rigl_tf.compact(model, keep=run["keep"], return_report=True)
    seconds = time.perf_counter() - start
    before, after = milliseconds([model, small], run["size"], run["rounds"], run["calls"])
    return {
        **run,
        "weights_before": report.num_weights_before,
        "weights": report.num_weights,
        "flops_before": rigl_tf.flops.count(model).flops,
        "flops": rigl_tf.flops.count(small).flops,
        "bytes_before": file_bytes(model),
        "bytes": file_bytes(small),
        "ms_before": " ".join(f"{each:.3f}" for each in before),
        "ms": " ".join(f"{each:.3f}" for each in after),
        "difference": f"{report.max_difference:.2g}",
        "seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),
        "revision": provenance.git_revision(),
    }


def _series(text):
    return np.array([float(each) for each in str(text).split()])


def _quartiles(values):
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def page(finished):
    """The text of the page."""
    head = ["model", "kept", "", "weights", "FLOPs", "file (bytes)", "latency (ms)", "difference"]
    lines = []
    for row in finished:
        before, after = _series(row["ms_before"]), _series(row["ms"])
        name = [row["model"], f"{row['keep']:.0%} of the units"]
        for state, end, times in (("before", "_before", before), ("after", "", after)):
            lines.append([*name, state, f"{row[f'weights{end}']:,}"])
            lines[-1] += [f"{row[f'flops{end}'] / 1e6:,.0f} M", f"{row[f'bytes{end}']:,}"]
            lines[-1] += [_quartiles(times), "" if end else row["difference"]]
        ratios = [row[f"{each}_before"] / row[each] for each in ("weights", "flops", "bytes")]
        lines.append([*name, "ratio", *(f"{each:.2f}" for each in ratios)])
        lines[-1] += [_quartiles(before / after), ""]
    loads = ", ".join(f"{row['load']}" for row in finished)
    return "\n".join(
        [
            "# Half of the units removed",
            "",
            "Networks of `keras.applications` with random weights, 1,000 classes, images of "
            "224x224 unless the command says otherwise, made smaller by "
            "`rigl_tf.compact(model, keep=0.5)`: plain dense Keras models. FLOPs as "
            "`rigl_tf.flops.count` has them; the file is the `.keras` file. Latency: one image, "
            "`tf.function`, rounds of some calls that alternate between both models, median and "
            "quartiles of the rounds; the ratio is that of each round. Difference: the largest "
            "one between the outputs (logits) of the small model, and those of the large "
            "one when nothing reads the removed units. Accuracy is not measured: such a model is "
            "to be fine-tuned.",
            "",
            *tables.table(head, lines),
            "",
            f"The machine did other work, too; its load at the end of each run: {loads}.",
            "",
            provenance.line("scripts.benchmark.compaction"),
            "",
        ]
    )


def main(_):
    output = pathlib.Path(FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    finished = rows.Rows(output / "compaction.csv", _KEY)
    for name in FLAGS.models:
        run = {"model": name, **{key: getattr(FLAGS, key) for key in _KEY if key != "model"}}
        if run not in finished:
            finished.add(measure(run))
    (output / "compaction.md").write_text(page(finished.rows))
    print(page(finished.rows))


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
