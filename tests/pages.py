"""Models whose reports and web pages are looked at, in words and in a browser."""

import math

import keras

import rigl_tf

layers = keras.layers


def mobile():
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(32, 3, strides=2, activation="relu")(layers.ZeroPadding2D(1)(inputs))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2D(64, 1, activation="relu", name="pointwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x), name="mobile")
    return rigl_tf.sparsify(model, {"pointwise": 0.9})


def several_inputs():
    one, two = keras.Input((4,), name="one"), keras.Input((), dtype="int32", name="two")
    x = layers.Concatenate()([one, layers.Embedding(5, 3)(two)])
    outputs = {"p": layers.Dense(20, "relu")(x), "q": layers.Dense(30)(x)}
    return rigl_tf.sparsify(keras.Model([one, two], outputs, name="several"), 0.8)


def lenet():
    inputs = keras.Input((12, 12), name="image")
    x = layers.Flatten()(inputs)
    x = layers.Dense(20, "relu", name="first")(x)
    model = keras.Model(inputs, layers.Dense(10, name="last")(x), name="lenet")
    return rigl_tf.sparsify(model, {"first": 0.9, "last": 0.5})


HISTORY = {
    "loss": [2.0, 1.5, 1.25],
    "val_loss": [2.5, 1.75, 1.5],
    "sparsity": [0.9, 0.9, 0.9],
    "moved": [120, 20, 4],
    "seconds_per_update": [math.nan, 0.25, 0.5],
    "moved/first/kernel": [100.0, 40.0, 4.0],
    "moved/last/kernel": [20.0, 0.0, 5.0],
    "all of it unknown": [math.nan] * 3,
}


def many_layers():
    x = inputs = keras.Input((16,))
    for number in range(60):
        x = layers.Dense(16, name=f"a_rather_long_name_of_a_block_{number}_dense")(x)
    return rigl_tf.sparsify(keras.Model(inputs, x), 0.8)
