"""Features of `compile`, of `fit` and of custom training loops."""

import keras
import numpy as np
import tensorflow as tf

from scripts.checks.keras_features.base import (
    BATCH,
    EPOCHS,
    NUM,
    STEPS_PER_EPOCH,
    Feature,
    data,
    fit,
    momentum,
    rigl,
)
from scripts.checks.keras_features.optimizers import IN_BRANCH

# How a model is compiled.

COMPILE = [
    Feature("`run_eagerly=True`", compile={"run_eagerly": True}),
    Feature("`jit_compile=True`", compile={"jit_compile": True}, limit="InvalidArgumentError"),
    Feature(
        "`steps_per_execution=2`",
        compile={"steps_per_execution": 2},
        limit=IN_BRANCH.format("steps_per_execution"),
    ),
    Feature("`mixed_bfloat16`", policy="mixed_bfloat16"),
]

# How a model is trained.


def on_batches(model, watch, directory):
    watch.set_model(model)
    watch.on_train_begin()
    x, y = data()
    for step in range(EPOCHS * STEPS_PER_EPOCH):
        batch = slice(step % STEPS_PER_EPOCH * BATCH, (step % STEPS_PER_EPOCH + 1) * BATCH)
        model.train_on_batch(x[batch], y[batch])
        watch.on_train_batch_end(step)


def in_a_loop(apply):
    """A loop of one's own, with `apply(optimizer, gradients, variables)`."""

    def train(model, watch, directory):
        strategy = tf.distribute.get_strategy()
        optimizer, variables = model.optimizer, model.trainable_variables
        optimizer.build(variables)

        def replica(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / (3 * BATCH)
            apply(optimizer, tape.gradient(loss, variables), variables)

        step = tf.function(lambda x, y: strategy.run(replica, args=(x, y)))
        dataset = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH).repeat(EPOCHS)
        watch.set_model(model)
        watch.on_train_begin()
        for number, batch in enumerate(strategy.experimental_distribute_dataset(dataset)):
            step(*batch)
            watch.on_train_batch_end(number)

    return train


def apply_pairs(optimizer, gradients, variables):
    optimizer.apply_gradients(zip(gradients, variables, strict=True))


def twice(model, watch, directory):
    for _ in range(2):
        fit(model, watch, directory, epochs=1)


def first_layer_frozen(model, watch, directory):
    """Trains, freezes the first layer, compiles anew and trains on."""
    fit(model, watch, directory, epochs=1)
    frozen = model.layers[0]
    before = [np.asarray(weight) for weight in frozen.weights]
    frozen.trainable = False
    model.compile(rigl(momentum()), "mse")
    fit(model, watch, directory)
    for weight, old in zip(frozen.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def class_weights(directory):
    x, y = data()
    return {"data": (x, y.argmax(axis=1)), "class_weight": {0: 1.0, 1: 5.0, 2: 0.1}}


TRAINING = [
    Feature("`train_on_batch`", train=on_batches),
    Feature(
        "`tf.GradientTape` and `optimizer.apply`",
        train=in_a_loop(lambda optimizer, *args: optimizer.apply(*args)),
        remark="under a strategy call `optimizer.build` before, as with any optimizer of Keras",
    ),
    Feature("`tf.GradientTape` and `optimizer.apply_gradients`", train=in_a_loop(apply_pairs)),
    Feature("`fit` twice", train=twice),
    Feature("`layer.trainable = False`, compiled anew", train=first_layer_frozen),
    Feature(
        "`class_weight`",
        fit=class_weights,
        compile={"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
    ),
    Feature(
        "`sample_weight`",
        fit=lambda directory: {"sample_weight": np.linspace(0, 2, NUM).astype("float32")},
    ),
]
