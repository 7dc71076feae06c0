"""A character language model: bits per character of all methods at 75 % sparsity.

    python -m scripts.rigl.language --data_dir=DATA

trains a GRU on the text `DATA/tinyshakespeare.txt.gz`, or on the file given by --text: dense,
static, SET, RigL and gradually pruned, with one seed (--seeds for more). These are 5 runs of 2000
steps, about two minutes each on one core. Finished runs are rows of `results/language.csv` and are
never repeated. The page and the plot are made from all rows. The paper trains 200,000 steps on
WikiText-103; pruning is best there, RigL second and static last.
"""

import functools
import gzip
import math
import pathlib

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import models
import rigl_tf
from scripts.common import entry, experiments, methods, plots, styles, tables, words

_NAME = "language"
_KEY = ("method", "seed", "steps", "characters")
_METHODS = ("dense", "static", "set", "rigl", "pruning")
_SPARSITY = 0.75
_BATCH_SIZE = 32
_LENGTH = 64
_STEPS_PER_EPOCH = 50
_UPDATE_FREQUENCY = 20
_LEARNING_RATE = 2e-3
_DISTRIBUTION = functools.partial(rigl_tf.distributions.uniform, dense_first=False)

FLAGS = flags.FLAGS


def _define_flags():
    experiments.define_flags(epochs=40, seeds=("0",))
    flags.DEFINE_string("text", "tinyshakespeare.txt.gz", "A text file in --data_dir.")
    flags.DEFINE_list("methods", list(_METHODS), "Methods to run.")
    flags.DEFINE_float("width", 0.5, "Width, relative to the paper's network of 512 units.")


def load_text(path):
    """The bytes of a text file, which may be compressed by gzip, as an array of integers."""
    if not path.is_file():
        raise ValueError(f"--text must be a file in --data_dir. Received: {path}")
    text = path.read_bytes()
    if path.suffix == ".gz":
        text = gzip.decompress(text)
    return np.frombuffer(text, np.uint8).astype("int32")


def sequences(tokens):
    """Inputs and targets of shape `(sequences, length)`. A target is the next character."""
    count = (len(tokens) - 1) // _LENGTH
    if count < _BATCH_SIZE:
        raise ValueError(
            f"A text must have {_BATCH_SIZE} sequences of {_LENGTH} characters. "
            f"Received: {len(tokens)} characters"
        )
    inputs = tokens[: count * _LENGTH].reshape(count, _LENGTH)
    return inputs, tokens[1 : count * _LENGTH + 1].reshape(count, _LENGTH)


def random_batches(tokens, num_batches, seed):
    """Batches of sequences that begin at random places in the text. The seed determines them."""
    with tf.device("CPU"):
        tokens = tf.constant(tokens)

    def batch(step):
        starts = tf.random.stateless_uniform(
            (_BATCH_SIZE, 1), (seed, step), 0, len(tokens) - _LENGTH, tf.int32
        )
        windows = tf.gather(tokens, starts + tf.range(_LENGTH + 1))
        return windows[:, :-1], windows[:, 1:]

    return tf.data.Dataset.range(num_batches).map(batch).prefetch(tf.data.AUTOTUNE)


def train(train_tokens, test_tokens, run, width):
    """One run. Returns bits per character of the test text, and of the last training steps."""
    method, seed, total_steps = run["method"], run["seed"], run["steps"]
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    # The paper's L2 coefficient 5e-4 is of TF1, which halves the sum of squares.
    dense = models.gru_language_model(l2=2.5e-4, width=width)
    model = methods.sparsify(method, dense, _SPARSITY, _DISTRIBUTION, seed)
    # The paper clips at 10 and updates masks to the end of training, from a drop fraction of 0.1.
    optimizer = methods.wrap_optimizer(
        method,
        keras.optimizers.Adam(_LEARNING_RATE, global_clipnorm=10.0),
        total_steps,
        _SPARSITY,
        _DISTRIBUTION,
        end_fraction=0.75 if method == "pruning" else 1.0,
        update_frequency=_UPDATE_FREQUENCY,
        drop_fraction=0.1,
        seed=seed,
    )
    cross_entropy = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="entropy")
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[cross_entropy],
        steps_per_execution=min(total_steps, _STEPS_PER_EPOCH),
    )
    optimizer.build(model.trainable_variables)  # else the first step is traced twice
    history = model.fit(
        random_batches(train_tokens, total_steps, seed),
        epochs=max(1, total_steps // _STEPS_PER_EPOCH),
        steps_per_epoch=min(total_steps, _STEPS_PER_EPOCH),
        shuffle=False,
        verbose=0,
    )
    scores = model.evaluate(*sequences(test_tokens), batch_size=64, verbose=0, return_dict=True)
    return {
        "bits": round(scores["entropy"] / math.log(2), 4),
        "train_bits": round(history.history["entropy"][-1] / math.log(2), 4),
    }


def _against_the_paper(values):
    """Which method is better than which. `values` are those of `tables.means`."""
    bits = {method: value[0] for (method, _), value in values.items()}
    order = ", ".join(sorted(bits.keys() - {"dense"}, key=bits.get))
    yield (
        "The paper, after 200,000 steps on WikiText-103, has pruning best, RigL second and static "
        f"last. Here, from the best to the worst: {order}. In so few steps none is trained to the "
        "end."
    )


def _report(rows):
    values = tables.means(rows, "method", "steps", "bits")
    lines = [
        "# A character language model at 75 %",
        "",
        f"GRU of {round(512 * FLAGS.width)} units, embedding {round(128 * FLAGS.width)}, readout "
        f"{round(256 * FLAGS.width)}: the paper's network at width {FLAGS.width:g}. "
        f"`{FLAGS.text}`, the last tenth for testing; batch {_BATCH_SIZE}, sequences of "
        f"{_LENGTH}, Adam {_LEARNING_RATE:g} (the paper's 7e-4 is for a hundred times as many "
        "steps), L2 5e-4, gradients clipped at norm 10. All kernels at 75 %, the "
        f"embedding dense; masks updated every {_UPDATE_FREQUENCY} steps to the end, drop "
        "fraction 0.1 (cosine); pruning from 30 % to 75 % of training. Seeds "
        f"{sorted({row['seed'] for row in rows})}. {words.L2}",
        "",
    ]
    training = tables.means(rows, "method", "steps", "train_bits")
    cells = []
    for method in _METHODS:
        for steps in sorted(key[1] for key in values if key[0] == method):
            bits = tables.with_spread(values[method, steps], 3)
            cells.append([method, steps, bits, f"{training[method, steps][0]:.3f}"])
    lines += tables.table(["method", "steps", "bits per character, test", "training"], cells)
    lines += ["", *_against_the_paper(values), "", f"![Bits per character]({_NAME}.png)"]
    experiments.write_page(_NAME, lines, "scripts.rigl.language")
    with plots.figure(pathlib.Path(FLAGS.output_dir) / f"{_NAME}.png") as axes:
        longest = {method: max(k[1] for k in values if k[0] == method) for method, _ in values}
        for method, steps in longest.items():
            mean, deviation, _ = values[method, steps]
            color = styles.of([method])[method]["color"]
            axes.bar(styles.label(method), mean, yerr=deviation, capsize=3, color=color)
        axes.set(title="Characters, GRU at 75 %", ylabel="bits per character (test)")
        axes.set_ylim(bottom=0.95 * min(value[0] for value in values.values()))


def main(_):
    tokens = load_text(pathlib.Path(FLAGS.data_dir or "", FLAGS.text))[: FLAGS.max_examples]
    rows = experiments.store(_NAME, _KEY)
    wanted = [
        {
            "method": method,
            "seed": int(seed),
            "steps": FLAGS.epochs * _STEPS_PER_EPOCH,
            "characters": len(tokens),
        }
        for seed in FLAGS.seeds
        for method in FLAGS.methods
    ]
    split = len(tokens) * 9 // 10
    experiments.run_all(
        rows,
        wanted,
        lambda run: train(tokens[:split], tokens[split:], run, FLAGS.width),
        lambda run: 30 + 0.06 * run["steps"],
    )
    _report([row for row in rows.rows if row["characters"] == len(tokens)])


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
