"""How the experiments train a classifier: batches, steps, accuracy."""

import weakref

import keras
import tensorflow as tf


def batches(x, y, batch_size, epochs, seed, first_epoch=0, augment=None):
    """The batches of the epochs from `first_epoch` on, as one `tf.data.Dataset`.

    The order in an epoch depends only on the seed and on the number of the epoch. In each epoch the
    last, incomplete batch is left out.

    Args:
        x, y: Arrays of inputs and targets.
        batch_size, epochs, seed: Integers.
        first_epoch: Integer, the first epoch.
        augment: Function that takes a batch of inputs and a seed (a pair of integers), and returns
            changed inputs; or `None`.
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


def shift_and_flip(images, seed, most=4):
    """Shifts each image by some pixels and flips half of them: the usual augmentation of CIFAR.

    Args:
        images: Tensor, shape `(batch, height, width, channels)`.
        seed: Pair of integers.
        most: Integer, the largest shift in each direction, in pixels.

    Returns:
        Tensor of the same shape. Pixels from outside the image are 0.
    """
    size, height, width = images.shape[0], images.shape[1], images.shape[2]
    seeds = tf.random.experimental.stateless_split(seed, 3)
    padded = tf.pad(images, [[0, 0], [most, most], [most, most], [0, 0]])
    limits = 0, 2 * most + 1
    rows = tf.random.stateless_uniform((size, 1), seeds[0], *limits, tf.int32) + tf.range(height)
    columns = tf.random.stateless_uniform((size, 1), seeds[1], *limits, tf.int32) + tf.range(width)
    flipped = tf.random.stateless_uniform((size, 1), seeds[2]) < 0.5
    columns = tf.where(flipped, columns[:, ::-1], columns)
    shifted = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(shifted, columns, axis=2, batch_dims=1)


def steps_per_epoch(data, batch_size):
    """The number of complete batches. Raises a `ValueError` if there is none."""
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
    """Trains a classifier whose outputs are logits.

    Args:
        model: A `keras.Model`.
        optimizer: A `keras.optimizers.Optimizer`.
        data: A `scripts.common.datasets.Dataset`.
        batch_size, epochs, seed, augment, first_epoch: See `batches`.
        callbacks: List of `keras.callbacks.Callback`.
        steps: Pair of integers, to train only a part: the first step, and the step before which to
            stop. They are counted over all epochs. For Keras such a part is one epoch.
        jit_compile: Boolean, whether XLA compiles the steps. On CPUs this is faster for Dense
            layers and slower for convolutions.
        validate: Boolean, whether to evaluate the test data after every epoch.
        steps_per_execution: Integer, a divisor of the steps of an epoch. Defaults to the largest
            one up to 50. Use 1 for callbacks that do something between steps. With `steps` it need
            not be a divisor.

    Returns:
        The `keras.callbacks.History`.
    """
    num_steps = steps_per_epoch(data, batch_size)
    examples = batches(data.x_train, data.y_train, batch_size, epochs, seed, first_epoch, augment)
    if steps is not None:
        start, stop = steps
        first_epoch, epochs, num_steps = 0, 1, stop - start
        examples = examples.skip(start).take(num_steps)
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
    """Compiles a model. If it is compiled in this way already, only its optimizer is reset.

    This saves time: to compile a training step with XLA takes longer than some epochs of a small
    network.
    """
    is_plain = type(optimizer) in (keras.optimizers.SGD, keras.optimizers.Adam)
    config = {**optimizer.get_config(), "name": None} if is_plain else id(optimizer)
    # A penalty that was added later is not in the compiled step.
    regularizers = [weight.regularizer for weight in model.trainable_weights]
    how = (type(optimizer), config, jit_compile, steps_per_execution, regularizers)
    if is_plain and _compiled.get(model) == how:
        optimizer.build(model.trainable_variables)
        for variable, new in zip(model.optimizer.variables, optimizer.variables, strict=True):
            variable.assign(new)
        return
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
    )
    # A step that creates variables, such as those of the optimizer or a metric, is traced twice.
    optimizer.build(model.trainable_variables)
    _compiled[model] = how


def accuracy(model, x, y):
    """The share of inputs whose largest logit is that of their label, in percent."""
    scores = model.evaluate(x, y, batch_size=min(1000, len(x)), verbose=0, return_dict=True)
    return round(100 * scores["accuracy"], 3)
