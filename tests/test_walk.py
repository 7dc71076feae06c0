"""Tests of `rigl_tf.layers`: the walk over the layers of any model."""

import keras

from rigl_tf.walk import all_layers, layers_of_weights, recurrent_states


class Holder(keras.layers.Layer):
    """A layer of a user that holds another one, and a weight of its own."""

    def __init__(self, inner, **arguments):
        super().__init__(**arguments)
        self.inner = inner

    def build(self, shape):
        self.scale = self.add_weight(shape=(), name="scale")
        if not self.inner.built:
            self.inner.build(shape)

    def call(self, inputs):
        return self.scale * self.inner(inputs)


def nested(depth):
    """A Dense layer inside of so many others, from the outermost to the innermost."""
    layers = [keras.layers.Dense(2)]
    for _ in range(depth):
        layers.insert(0, Holder(layers[0]))
    layers[0].build((None, 2))
    return layers


def names(pairs):
    return [(weight.name, [layer.name for layer in around]) for weight, around in pairs]


def test_many_layers_in_each_other():
    """As each holds the next twice, in an attribute and in Keras's list, there are 2 ** 40 ways."""
    layers = nested(depth=40)
    found = [list(around) for _, around in layers_of_weights(layers[0])]
    # Keras lists the weights of a layer before those of the layers inside.
    assert found == [layers[: depth + 1] for depth in range(40)] + [layers, layers]
    assert all_layers(layers[0]) == layers


def test_of_a_layer_in_two_others_the_last_counts():
    shared = keras.layers.Dense(2, use_bias=False, name="shared")
    model = keras.Sequential(
        [keras.Input((2,)), Holder(shared, name="first"), Holder(shared, name="last")], name="all"
    )
    assert names(layers_of_weights(model)) == [
        ("scale", ["all", "first"]),
        ("kernel", ["all", "last", "shared"]),
        ("scale", ["all", "last"]),
    ]


class Transposed(keras.layers.Layer):
    """A layer that computes with the kernel of another one."""

    def __init__(self, other, **arguments):
        super().__init__(**arguments)
        self.kernel = other.kernel

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.kernel))


def test_of_a_weight_in_two_layers_the_last_counts():
    dense = keras.layers.Dense(3, use_bias=False, name="dense")
    dense.build((None, 2))
    layers = [dense, Transposed(dense, name="transposed")]
    model = keras.Sequential([keras.Input((2,)), *layers], name="all")
    assert names(layers_of_weights(model)) == [("kernel", ["all", "transposed"])]


class Counter(keras.layers.Layer):
    """A layer of a user whose states are weights."""

    stateful = True

    def build(self, shape):
        self.states = [self.add_weight(shape=(), name="count", trainable=False)]

    def call(self, inputs):
        return inputs


def test_recurrent_states_are_those_that_no_list_of_variables_has():
    both = keras.layers.Bidirectional(keras.layers.GRU(3, stateful=True))
    layers = [both, Counter(), keras.layers.RepeatVector(2), keras.layers.LSTM(4)]
    model = keras.Sequential([keras.Input((4, 2), batch_size=5), *layers])
    assert [id(state) for state in recurrent_states(model)] == [
        id(state) for each in (both.forward_layer, both.backward_layer) for state in each.states
    ]
    assert len(recurrent_states(model)) == 2
