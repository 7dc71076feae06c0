"""Tests of `rigl_tf.objective`: what gradients are taken of."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rigl_tf import objective
from scripts import strategies

X, Y = np.ones((4, 2), "float32"), np.arange(4.0, dtype="float32")[:, np.newaxis]


def test_batches():
    (whole,) = objective.batches((X, Y))
    assert whole.inputs is X
    np.testing.assert_array_equal(whole.targets, Y)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)
    assert [batch.share for batch in objective.batches(data)] == [0.75, 0.25]
    assert [batch.share for batch in objective.batches([(X, [0, 1, 2, 3]), (X, Y)])] == [0.5, 0.5]


def test_a_tuple_of_two_is_a_pair():
    (batch,) = objective.batches(((X, X), (Y, Y)))
    assert batch.inputs == (X, X)
    assert len(batch.targets) == 2


@pytest.mark.parametrize("targets", [(X, Y), [X, Y], {"x": X, "y": Y}])
def test_targets_of_several_outputs(targets):
    (batch,) = objective.batches([({"one": X, "two": Y}, targets)])
    tf.nest.assert_same_structure(batch.targets, targets)
    assert batch.share == 1


ENDLESS = tf.data.Dataset.from_tensors((X, Y)).repeat()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "none"),
        (None, "NoneType"),
        ({"x": X}, "dict"),
        (X, "a batch of type ndarray"),
        ([X, Y], "a batch of type ndarray"),
        ([(X, Y, Y)], "a batch of type tuple and length 3"),
        ((X[:0], Y[:0]), "shapes="),
        ((X, Y[:3]), "shapes="),
        ((X, 1.0), "shapes="),
        ((X, None), "NoneType"),
        (ENDLESS, "a data set that is repeated without end"),
    ],
)
def test_data_that_is_none(data, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        objective.batches(data)


class HalfTheSum(keras.losses.Loss):
    """Of all examples: there is nothing left to reduce."""

    def call(self, targets, outputs):
        return tf.reduce_sum(targets + outputs) / 2


LOSSES = [
    "mse",
    ["mse"],
    {"output": keras.losses.MeanSquaredError()},
    keras.losses.MeanSquaredError(reduction="sum"),
    keras.losses.MeanSquaredError(reduction=None),
    lambda targets, outputs: (targets - outputs) ** 2,
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("within_scope", [False, True])
def test_the_mean_loss_has_no_other_reduction(loss, within_scope):
    def value():
        return objective.mean_loss(loss)(Y, np.zeros((4, 1), "float32"))

    if within_scope:
        with strategies.mirrored("CPU").scope():
            assert float(value()) == 3.5
            assert float(objective.on_a_replica(value)) == 3.5
    assert float(value()) == 3.5


def test_a_loss_that_is_reduced_already():
    with strategies.mirrored("CPU").scope():
        value = objective.on_a_replica(lambda: objective.mean_loss(HalfTheSum())(Y, Y))
    assert float(value) == 6


def test_the_loss_itself_stays():
    loss = keras.losses.MeanSquaredError(reduction="sum")
    objective.mean_loss(loss)(Y, Y)
    assert loss.reduction == "sum"


@pytest.mark.parametrize("loss", [None, 1, ["mse", "mse"], {}])
def test_losses_that_are_none(loss):
    with pytest.raises(ValueError, match="`loss` must be"):
        objective.mean_loss(loss)


def test_several_outputs_need_a_function():
    outputs = {"a": X, "b": Y}
    with pytest.raises(ValueError, match="several outputs must be a function"):
        objective.mean_loss("mse")(outputs, outputs)

    def loss(targets, outputs):
        return tf.reduce_mean(targets["a"] * outputs["a"]) + tf.reduce_mean(outputs["b"])

    assert float(objective.mean_loss(loss)(outputs, outputs)) == 2.5


def test_states_of_recurrent_layers_are_given_back():
    model = keras.Sequential(
        [
            keras.Input((3, 2), batch_size=4),
            keras.layers.SimpleRNN(5, stateful=True),
            keras.layers.Dropout(0.5),
        ]
    )
    x = np.ones((4, 3, 2), "float32")
    (state,) = model.layers[0].states
    before = state.numpy().copy()
    with objective.untouched_state(model):
        model(x, training=True)
        assert (state.numpy() != before).any()
    np.testing.assert_array_equal(state, before)
