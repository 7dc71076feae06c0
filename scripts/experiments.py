"""What the experiments share: their flags, runs that are done once, and how a network is trained.

An experiment is a list of runs, each a dictionary that says all about it. A finished run is a row
of a CSV file, and never repeated; so an experiment can be stopped and started at any time, and
shared by processes that do a part each (`--part=0/2` and `--part=1/2`).
"""

import pathlib
import re
import time
import weakref
from fractions import Fraction

import keras
import tensorflow as tf
from absl import flags

from scripts import datasets, results

FLAGS = flags.FLAGS


def define_flags(epochs, seeds=("0", "1", "2")):
    """The flags of every experiment; `epochs` and `seeds` are those of the published table."""
    flags.DEFINE_string("data_dir", None, "Directory with the data; else Keras downloads it.")
    flags.DEFINE_string("output_dir", "results", "Where the rows, the table and the plot go.")
    flags.DEFINE_list("seeds", list(seeds), "Seeds to run.")
    flags.DEFINE_integer("epochs", epochs, "Epochs of each run.", lower_bound=1)
    flags.DEFINE_integer("max_examples", None, "Train and test on the first examples only.")
    flags.DEFINE_bool("only_report", False, "Make the page of the runs that there are, run none.")
    flags.DEFINE_string("part", "0/1", "The part of the runs to do: `1/3` is the second of three.")
    flags.register_validator(
        "part",
        lambda part: re.fullmatch(r"\d+/[1-9]\d*", part) and Fraction(part) < 1,
        "--part must be like 1/3, the first number less than the second",
    )


def load(name):
    """The data set as the flags say."""
    data = datasets.load(name, FLAGS.data_dir)
    if FLAGS.max_examples:
        arrays = {
            array: getattr(data, array)[: FLAGS.max_examples]
            for array in ("x_train", "y_train", "x_test", "y_test")
        }
        data = data._replace(**arrays)
    return data


def store(name, key):
    """The rows of `name`.csv in the output directory, which is made if need be."""
    output_dir = pathlib.Path(FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    return results.Rows(output_dir / f"{name}.csv", key)


def run_all(rows, wanted, do, seconds):
    """Does the runs that have no row yet, after it has said what they will cost.

    Args:
        rows: The `scripts.results.Rows` of the experiment.
        wanted: List of runs, dictionaries with the columns of the rows' key at least.
        do: Function that gets a run and returns the other columns of its row.
        seconds: Function that gets a run and returns what it takes on two cores, about.
    """
    todo = [] if FLAGS.only_report else [run for run in wanted if run not in rows]
    part, num_parts = map(int, FLAGS.part.split("/"))
    todo = todo[part::num_parts]
    minutes = sum(map(seconds, todo)) / 60
    print(f"{len(todo)} runs to do, about {minutes:.0f} minutes on two cores", flush=True)
    for number, run in enumerate(todo, 1):
        begin = time.monotonic()
        result = do(run)
        took = time.monotonic() - begin
        revision = f"git-{results.git_revision()}"
        rows.add({**run, **result, "seconds": round(took, 1), "revision": revision})
        columns = {name: str(value) for name, value in {**run, **result}.items()}
        shown = ", ".join(f"{name} {text}" for name, text in columns.items() if len(text) < 40)
        print(f"{number}/{len(todo)} {shown}: {took:.0f} s", flush=True)


def batches(x, y, batch_size, epochs, seed, first_epoch=0, augment=None):
    """The batches of the epochs from `first_epoch` on, as one `tf.data.Dataset`.

    The order of each epoch is a function of the seed and of the epoch only. Of each epoch the last
    incomplete batch is left out.

    Args:
        x, y: Arrays of inputs and targets.
        batch_size, epochs, seed: Integers.
        first_epoch: Integer, the epoch to begin with.
        augment: Function that gets a batch of inputs and a seed, a pair of integers, and returns
            inputs; or `None`.
    """
    with tf.device("CPU"):
        x, y = tf.constant(x), tf.constant(y)

    def one_epoch(epoch):
        seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(x)), seeds)
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)

    def examples(number, indices):
        inputs = tf.gather(x, indices)
        if augment is not None:
            inputs = augment(inputs, tf.stack([tf.constant(seed, tf.int64), number]))
        return inputs, tf.gather(y, indices)

    indices = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
    first_batch = first_epoch * (len(x) // batch_size)
    return indices.enumerate(first_batch).map(examples).prefetch(tf.data.AUTOTUNE)


def shift_and_flip(images, seed):
    """Shifts each image by up to 4 pixels and flips every second one: CIFAR's augmentation.

    Args:
        images: Tensor, shape `(batch, height, width, channels)`.
        seed: Pair of integers.

    Returns:
        Tensor of the same shape; what is shifted in is 0.
    """
    size, height, width = images.shape[0], images.shape[1], images.shape[2]
    seeds = tf.random.experimental.stateless_split(seed, 3)
    padded = tf.pad(images, [[0, 0], [4, 4], [4, 4], [0, 0]])
    rows = tf.random.stateless_uniform((size, 1), seeds[0], 0, 9, tf.int32) + tf.range(height)
    columns = tf.random.stateless_uniform((size, 1), seeds[1], 0, 9, tf.int32) + tf.range(width)
    flipped = tf.random.stateless_uniform((size, 1), seeds[2]) < 0.5
    columns = tf.where(flipped, columns[:, ::-1], columns)
    shifted = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(shifted, columns, axis=2, batch_dims=1)


def steps_per_epoch(data, batch_size):
    """The number of whole batches; a `ValueError` if there is none."""
    steps = len(data.x_train) // batch_size
    if not steps:
        raise ValueError(
            f"An epoch needs a batch of {batch_size} at least. "
            f"Received: {len(data.x_train)} training examples"
        )
    return steps


def fit(
    model,
    optimizer,
    data,
    batch_size,
    epochs,
    seed,
    augment=None,
    callbacks=(),
    first_epoch=0,
    steps=None,
    jit_compile=True,
    validate=False,
    steps_per_execution=None,
):
    """Trains a classifier, whose outputs are logits.

    Args:
        model: A `keras.Model`.
        optimizer: A `keras.optimizers.Optimizer`.
        data: A `scripts.datasets.Dataset`.
        batch_size, epochs, seed, augment, first_epoch: See `batches`.
        callbacks: List of `keras.callbacks.Callback`.
        steps: Pair of integers, the first step and the one to stop before, counted over all
            epochs: a part of the training, which is one epoch to Keras.
        jit_compile: Whether XLA compiles the steps. On CPUs that is faster for Dense layers, and
            slower for convolutions.
        validate: Whether to evaluate the test data after every epoch.
        steps_per_execution: Integer, a divisor of the steps of an epoch, by default the largest up
            to 50; 1 for callbacks that look between steps.

    Returns:
        The `keras.callbacks.History`.
    """
    num_steps = steps_per_epoch(data, batch_size)
    examples = batches(data.x_train, data.y_train, batch_size, epochs, seed, first_epoch, augment)
    if steps is not None:
        start, stop = steps
        examples, first_epoch, epochs, num_steps = examples.skip(start), 0, 1, stop - start
    # A divisor, so that an execution never takes batches of the next epoch.
    steps_per_execution = steps_per_execution or max(n for n in range(1, 51) if num_steps % n == 0)
    compile_classifier(model, optimizer, jit_compile, steps_per_execution)
    return model.fit(
        examples,
        initial_epoch=first_epoch,
        epochs=epochs,
        steps_per_epoch=num_steps,
        callbacks=list(callbacks),
        validation_data=(data.x_test, data.y_test) if validate else None,
        validation_batch_size=min(1000, len(data.x_test)),
        shuffle=False,
        verbose=0,
    )


_compiled = weakref.WeakKeyDictionary()


def compile_classifier(model, optimizer, jit_compile, steps_per_execution):
    """Compiles a model, or only gives its SGD a new start if it is compiled in this way already.

    To compile a training step with XLA takes longer than some epochs of a small network.
    """
    is_sgd = type(optimizer) is keras.optimizers.SGD
    config = {**optimizer.get_config(), "name": None} if is_sgd else id(optimizer)
    # A penalty that came since is not in what was compiled.
    regularizers = [weight.regularizer for weight in model.trainable_weights]
    how = (config, jit_compile, steps_per_execution, regularizers)
    if is_sgd and _compiled.get(model) == how:
        optimizer.build(model.trainable_variables)
        for variable, new in zip(model.optimizer.variables, optimizer.variables, strict=True):
            variable.assign(new)
        return
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
    )
    _compiled[model] = how


def accuracy(model, x, y):
    """The share of inputs whose largest logit is that of their label, in percent."""
    scores = model.evaluate(x, y, batch_size=min(1000, len(x)), verbose=0, return_dict=True)
    return round(100 * scores["accuracy"], 3)


def write_page(name, lines, module):
    """Writes `name`.md into the output directory, the provenance last."""
    path = pathlib.Path(FLAGS.output_dir) / f"{name}.md"
    rows = "The column `revision` of the CSV file has the commit that each run was made with, where"
    rows = f"{rows} it was recorded; the line below is of this page."
    path.write_text("\n".join([*lines, "", rows, "", results.provenance(module)]) + "\n")
