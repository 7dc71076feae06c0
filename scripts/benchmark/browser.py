"""Measures sparse networks in a browser, and checks the predictions of `xnnpack.check`.

    python -m scripts.benchmark.browser

It trains a MobileNet-like network with RigL at 80, 90 and 95 %, writes it with `rigl_tf.export(...,
format="web")`, and measures the pages in headless Chromium. Then it does the same with small
networks, each of which breaks one of XNNPACK's conditions. `make test-web` installs what is needed.
It takes a quarter of an hour on two cores, and writes `results/browser.md`, `.csv` and `.png`.
"""

import os
import pathlib
import shutil
import tempfile

import keras
import numpy as np
from absl import flags

import rigl_tf
from scripts.common import browser, datasets, entry, provenance
from scripts.common.rows import Rows
from scripts.common.tables import table

FLAGS = flags.FLAGS
# From this speed-up on, a network is called faster. The shortest times are compared, because other
# programs on the machine can only make a time longer.
_FASTER = 1.2
_KINDS = ("dense", "sparse")
_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512)
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1)

layers = keras.layers


def _define_flags():
    flags.DEFINE_list("sparsities", ["0.8", "0.9", "0.95"], "Sparsities of the 1x1 kernels.")
    flags.DEFINE_integer("epochs", 4, "Epochs of training.", lower_bound=1)
    flags.DEFINE_integer("size", 96, "Height and width of the images.", lower_bound=16)
    flags.DEFINE_string("dataset", "digits", "Data set for training, see scripts.common.datasets.")
    flags.DEFINE_string("data_dir", None, "Where its file is.")
    flags.DEFINE_list("variants", list(VARIANTS), "Conditions to break.")
    flags.DEFINE_string("output_dir", "results", "Where the page goes.")


def mobilenet(size, num_classes, first=32, blocks=None):
    """MobileNet (v1), padded as XNNPACK needs it; the 1x1 convolutions are named `pointwise_...`.

    Args:
        size: Height and width of the images.
        num_classes: Number of logits.
        first: Filters of the first convolution.
        blocks: List of `(filters, stride)`; by default nine, fewer than in the paper.
    """
    inputs = keras.Input((size, size, 3), name="image")
    x = _normalised(
        layers.Conv2D(first, 3, strides=2, use_bias=False)(layers.ZeroPadding2D(1)(inputs))
    )
    blocks = blocks or zip(_CHANNELS, _STRIDES, strict=True)
    for number, (width, stride) in enumerate(blocks):
        x = layers.ZeroPadding2D(1)(x)
        x = _normalised(layers.DepthwiseConv2D(3, strides=stride, use_bias=False)(x))
        x = _normalised(layers.Conv2D(width, 1, use_bias=False, name=f"pointwise_{number}")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="head")(x), name="mobilenet")


def _normalised(x):
    return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))


# Small networks that XNNPACK runs sparse, and changes after which it does not.


def _small(
    first=lambda x: x,
    stem=lambda x: layers.Conv2D(128, 3, strides=2, name="stem")(layers.ZeroPadding2D(1)(x)),
    block=lambda x: x,
    depthwise=lambda x: layers.DepthwiseConv2D(3, padding="same")(x),
    pointwise=lambda x, name: layers.Conv2D(128, 1, activation="relu", name=name)(x),
    end=lambda x: layers.GlobalAveragePooling2D()(x),
    channels=3,
    head=10,
):
    inputs = keras.Input((96, 96, channels), name="image")
    x = first(stem(inputs))
    for number in range(3):
        x = pointwise(depthwise(block(x)), f"pointwise_{number}")
    return keras.Model(inputs, layers.Dense(head, name="head")(end(x)), name="small")


def _residual(x):
    return layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])


def _squeeze(x):
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Multiply()([x, layers.Conv2D(128, 1, activation="sigmoid")(scale)])


def _padded(size, stride):
    return lambda x: layers.DepthwiseConv2D(size, strides=stride)(
        layers.ZeroPadding2D(size // 2)(x)
    )


# Name: the network, and the sparsity of its 1x1 kernels.
VARIANTS = {
    "all conditions hold": (lambda: _small(), 0.9),
    "60 % zeros": (lambda: _small(), 0.6),
    "70 % zeros": (lambda: _small(), 0.7),
    "first convolution padded 'same'": (
        lambda: _small(stem=lambda x: layers.Conv2D(128, 3, strides=2, padding="same")(x)),
        0.9,
    ),
    "first convolution of stride 1": (
        lambda: _small(stem=lambda x: layers.Conv2D(128, 3, padding="same")(x)),
        0.9,
    ),
    "images with 4 channels": (lambda: _small(channels=4), 0.9),
    "no first convolution": (lambda: _small(stem=lambda x: x, channels=128), 0.9),
    "depthwise 5x5": (
        lambda: _small(depthwise=lambda x: layers.DepthwiseConv2D(5, padding="same")(x)),
        0.9,
    ),
    "depthwise 7x7": (
        lambda: _small(depthwise=lambda x: layers.DepthwiseConv2D(7, padding="same")(x)),
        0.9,
    ),
    "depthwise stride 2, ZeroPadding2D(1)": (lambda: _small(first=_padded(3, 2)), 0.9),
    "depthwise stride 2, padded 'same'": (
        lambda: _small(first=layers.DepthwiseConv2D(3, strides=2, padding="same")),
        0.9,
    ),
    "1x1 of stride 2": (
        lambda: _small(first=layers.Conv2D(128, 1, strides=2)),
        0.9,
    ),
    "a sum with an earlier layer": (lambda: _small(block=_residual), 0.9),
    "squeeze and excitation": (lambda: _small(block=_squeeze), 0.9),
    "swish": (lambda: _small(block=layers.Activation("swish")), 0.9),
    "average pooling in between": (
        lambda: _small(first=layers.AveragePooling2D(3, strides=1, padding="same")),
        0.9,
    ),
    "BatchNormalization behind a ReLU": (
        lambda: _small(block=lambda x: layers.BatchNormalization()(layers.ReLU()(x))),
        0.9,
    ),
    "a global maximum at the end": (lambda: _small(end=layers.GlobalMaxPooling2D()), 0.9),
    "a dense head of 1000 classes": (lambda: _small(head=1000), 0.9),
}


def _sparsify(model, sparsity):
    """Makes a network sparse, with this share of zeros in each 1x1 convolution."""
    convolutions = [layer for layer in model.layers if type(layer) is layers.Conv2D]
    names = [layer.name for layer in convolutions if layer.kernel_size == (1, 1)]
    return rigl_tf.sparsify(model, dict.fromkeys(names, sparsity))


def images(x, size):
    """Images of this size with three channels."""
    x = np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
    return np.asarray(keras.ops.image.resize(x, (size, size)))


def train(sparsity, data, size, epochs):
    """Trains a network, dense if `sparsity` is 0. Returns it and its test accuracy in percent."""
    keras.utils.set_random_seed(0)
    model = mobilenet(size, data.num_classes)
    model = _sparsify(model, sparsity) if sparsity else model
    num_steps = epochs * -(-len(data.x_train) // 64)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.003, num_steps))
    if sparsity:
        end_step = max(2, 3 * num_steps // 4)
        optimizer = rigl_tf.RigL(optimizer, end_step=end_step, update_frequency=10)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(images(data.x_train, size), data.y_train, batch_size=64, epochs=epochs, verbose=2)
    test = model.evaluate(images(data.x_test, size), data.y_test, verbose=0, return_dict=True)
    return model, 100 * test["accuracy"]


def measure(model, screenshot=None):
    """Measures a model in Chromium. Returns the row, with the prediction of `check`."""
    check = rigl_tf.xnnpack.check(model)
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory, "page")
        rigl_tf.export(model, folder, "web", measure=False)
        report = browser.run(folder, screenshot)
    if not report["same"]:
        raise RuntimeError(f"The outputs differ in the browser: {report['differences']}")
    row = {"foreseen": f"{check.num_sparse} of {check.num_pointwise}"}
    for kind in _KINDS:
        latency = report["latencies"][kind]
        row[f"{kind}_ms"] = round(latency["median"], 3)
        row[f"{kind}_least_ms"] = round(latency["least"], 3)
        row[f"{kind}_most_ms"] = round(latency["most"], 3)
        row[f"{kind}_bytes"] = report["bytes"][kind]
        row[f"{kind}_gzip_bytes"] = report["gzip"][kind]
    changes = [s.change for s in check.steps if s.change and s.operation != "FULLY_CONNECTED"]
    # Some operations fit, but their neighbour does not. Their advice is to change the neighbour.
    change = next((each for each in changes if not each.startswith("change ")), "")
    return {**row, "speedup": round(report["speedup"], 3), "change": change}


def main(argv):
    del argv
    output = pathlib.Path(FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if browser.missing():
        raise SystemExit(browser.missing())
    (output / "browser.csv").unlink(missing_ok=True)
    rows = Rows(output / "browser.csv", ["network", "sparsity"])
    data = datasets.load(FLAGS.dataset, FLAGS.data_dir)
    loads = [os.getloadavg()[0]]
    _, dense_accuracy = train(0.0, data, FLAGS.size, FLAGS.epochs)
    with tempfile.TemporaryDirectory() as directory:
        for sparsity in map(float, FLAGS.sparsities):
            model, accuracy = train(sparsity, data, FLAGS.size, FLAGS.epochs)
            picture = pathlib.Path(directory, f"{sparsity}.png")
            start = {"network": "mobilenet", "sparsity": sparsity, "accuracy": round(accuracy, 2)}
            rows.add({**start, **measure(model, picture)})
            print(rows.rows[-1], flush=True)
            shutil.copy(picture, output / "browser.png")
    for name in FLAGS.variants:
        builder, sparsity = VARIANTS[name]
        keras.utils.set_random_seed(0)
        row = measure(_sparsify(builder(), sparsity))
        rows.add({"network": name, "sparsity": sparsity, "accuracy": "", **row})
        print(rows.rows[-1], flush=True)
        loads.append(os.getloadavg()[0])
    (output / "browser.md").write_text(page(rows.rows, dense_accuracy, max(loads)))


def page(rows, dense_accuracy, load):
    """The text of `browser.md`.

    Args:
        rows: As in `browser.csv`.
        dense_accuracy: Of the dense network, in percent.
        load: The largest load of the machine while it was measured.
    """
    trained = [row for row in rows if row["network"] == "mobilenet"]
    variants = [row for row in rows if row["network"] != "mobilenet"]
    text = [
        "# In the browser",
        "",
        "LiteRT.js 2.5.3 (XNNPACK in WebAssembly, one thread) in headless Chromium, on pages that",
        '`rigl_tf.export(model, path, format="web")` wrote. Median (range) of calls with one',
        "image; the dense and the sparse file take turns. Both hold the same weights. The load of",
        f"the machine was up to {load:.0f}; Chromium alone makes it 1 to 2.",
        "",
        f"A MobileNet (v1) with nine blocks, images of {FLAGS.size} x {FLAGS.size}, trained",
        f"with RigL on {FLAGS.dataset} for {FLAGS.epochs} epochs; the 1x1 convolutions are sparse,",
        f"without any structure. The dense network reaches {dense_accuracy:.1f} %.",
        "",
        *table(
            ["sparsity", "accuracy (%)", "dense (ms)", "sparse (ms)", "times as fast", "dense (kB)",
             "sparse (kB)", "gzip, dense and sparse (kB)"],
            [
                [
                    f"{row['sparsity']:.0%}",
                    f"{row['accuracy']:.1f}",
                    _range(row, "dense"),
                    _range(row, "sparse"),
                    f"{row['speedup']:.2f}",
                    f"{row['dense_bytes'] / 1000:,.0f}",
                    f"{row['sparse_bytes'] / 1000:,.0f}",
                    ", ".join(f"{row[f'{kind}_gzip_bytes'] / 1000:,.0f}" for kind in _KINDS),
                ]
                for row in trained
            ],
        ),
        "",
        "![The page](browser.png)",
    ]  # fmt: skip
    if variants:
        right = sum(_is_faster(row) == _is_foreseen(row) for row in variants)
        text += [
            "",
            "## Does `rigl_tf.xnnpack.check` foresee it?",
            "",
            "Small networks (3 blocks of 128 channels, images of 96 x 96), each with a change.",
            "`foreseen` is how many 1x1 convolutions skip zeros, as `check` says. Faster means",
            f"that the shortest time is {_FASTER:g} times as short at least: `check` is right of",
            f"{right} of {len(variants)}.",
            "",
            *table(
                ["network", "zeros", "foreseen", "dense (ms)", "sparse (ms)", "times as fast",
                 "as foreseen", "what `check` says to change first"],
                [
                    [
                        row["network"],
                        f"{row['sparsity']:.0%}",
                        row["foreseen"],
                        _range(row, "dense"),
                        _range(row, "sparse"),
                        f"{row['speedup']:.2f}",
                        "yes" if _is_faster(row) == _is_foreseen(row) else "no",
                        row["change"] or "–",
                    ]
                    for row in variants
                ],
            ),
        ]  # fmt: skip
    return "\n".join([*text, "", provenance.line("scripts.benchmark.browser"), ""])


def _is_faster(row):
    return row["dense_least_ms"] >= _FASTER * row["sparse_least_ms"]


def _is_foreseen(row):
    return not str(row["foreseen"]).startswith("0 ")


def _range(row, kind):
    return f"{row[f'{kind}_ms']:.1f} ({row[f'{kind}_least_ms']:.1f}–{row[f'{kind}_most_ms']:.1f})"


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
