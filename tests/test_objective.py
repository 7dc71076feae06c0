"""Tests of `rigl_tf.objective`: what gradients are taken of."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import mirrored

from rigl_tf import objective

X, Y = np.ones((4, 2), "float32"), np.arange(4.0, dtype="float32")[:, np.newaxis]


def test_batches():
    (whole,) = objective.batches((X, Y))
    assert whole.inputs is X
    np.testing.assert_array_equal(whole.targets, Y)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)
    assert [batch.num_examples for batch in objective.batches(data)] == [3, 1]
    pairs = [(X, [0, 1, 2, 3]), (X, Y)]
    assert [batch.num_examples for batch in objective.batches(pairs)] == [4, 4]


class Pairs(keras.utils.PyDataset):
    """`number` batches; `None`: without end."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    @property
    def num_batches(self):
        return self.number

    def __getitem__(self, index):
        return X, Y, np.full(4, index)


@pytest.mark.parametrize(
    "data",
    [
        [(X, Y, np.full(4, index)) for index in range(2)],
        Pairs(2),
        tf.data.Dataset.range(2).map(lambda index: (X, Y, tf.fill([4], index))),
    ],
)
def test_weights_of_examples(data):
    weights = [batch.sample_weight.numpy().tolist() for batch in objective.batches(data)]
    assert weights == [[0.0] * 4, [1.0] * 4]
    (whole,) = objective.batches((X, Y, None))
    assert whole.sample_weight is None


def test_batches_are_read_one_by_one():
    taken = []

    def generate():
        for index in range(3):
            taken.append(index)
            yield X, Y

    reading = objective.read_batches(generate())
    next(reading)
    next(reading)
    assert taken == [0, 1]


def test_the_mean_over_unequal_batches():
    data = [(X[:3], Y[:3]), (X[3:], Y[3:]), (X, Y)]
    (mean,) = objective.mean_over(
        objective.read_batches(data), lambda inputs, targets, weights: [tf.reduce_mean(targets)]
    )
    assert float(mean) == 1.5  # (0 + 1 + 2 + 3 + 0 + 1 + 2 + 3) / 8


UNKNOWN = tf.data.Dataset.from_tensors((X, Y)).repeat().take_while(lambda x, y: True)


@pytest.mark.parametrize("data", [UNKNOWN, (pair for pair in [(X, Y)])])
def test_batches_of_unknown_number_are_not_kept(data):
    with pytest.raises(ValueError, match=r"pass a list, .* Received: .* of unknown length"):
        objective.batches(data)
    assert next(objective.read_batches(data)).num_examples == 4


def test_a_tuple_of_two_is_a_pair():
    (batch,) = objective.batches(((X, X), (Y, Y)))
    assert batch.inputs == (X, X)
    assert len(batch.targets) == 2


@pytest.mark.parametrize("targets", [(X, Y), [X, Y], {"x": X, "y": Y}])
def test_targets_of_several_outputs(targets):
    (batch,) = objective.batches([({"one": X, "two": Y}, targets)])
    tf.nest.assert_same_structure(batch.targets, targets)
    assert batch.num_examples == 4


ENDLESS = tf.data.Dataset.from_tensors((X, Y)).repeat()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "none"),
        (None, "NoneType"),
        ({"x": X}, "dict"),
        (X, "a batch of type ndarray"),
        ([X, Y], "a batch of type ndarray"),
        ([(X, Y, Y, Y)], "a batch of type tuple and length 4"),
        ((X, Y, {"y": Y}), "sample_weight of type dict"),
        ((X, Y, ["one"] * 4), "sample_weight of type list"),
        ((X, Y, [1.0, 2.0]), "shapes="),
        ((X[:0], Y[:0]), "shapes="),
        ((X, Y[:3]), "shapes="),
        ((X, 1.0), "shapes="),
        ((X, None), "NoneType"),
        (ENDLESS, "a data set that is repeated endlessly"),
        (Pairs(None), "a data set that is repeated endlessly"),
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
        with mirrored().scope():
            assert float(value()) == 3.5
            assert float(objective.on_a_replica(value)) == 3.5
    assert float(value()) == 3.5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("within_scope", [False, True])
def test_examples_count_with_their_weights(loss, within_scope):
    """Squares 0, 1, 4 and 9: (2 * 1 + 0.5 * 4) / 4 is 1."""
    weights = np.array([3.0, 2.0, 0.5, 0.0], "float32")

    def value():
        return objective.mean_loss(loss)(Y, np.zeros((4, 1), "float32"), weights)

    if within_scope:
        with mirrored().scope():
            assert float(objective.on_a_replica(value)) == 1.0
    assert float(value()) == 1.0
    weights = weights[:, np.newaxis]
    assert float(value()) == 1.0


@pytest.mark.parametrize("loss", [HalfTheSum(), lambda y, z: tf.reduce_mean(y)])
def test_weights_need_a_value_of_each_example(loss):
    with pytest.raises(ValueError, match=r"a value for each of them.* Received: loss="):
        objective.mean_loss(loss)(Y, Y, np.ones(4))


@pytest.mark.parametrize(
    "loss", ["mse", keras.losses.MeanSquaredError(), lambda y, z: tf.reduce_mean((y - z) ** 2, -1)]
)
def test_masked_timesteps_are_left_out(loss):
    """Of the sequences 1, 2, - and 3, -, - with outputs of 0: (1 + 4 + 9) / 3."""
    masked = keras.layers.Masking(mask_value=9.0)(np.array([[1, 2, 9], [3, 9, 9]])[..., None])
    outputs = keras.layers.Activation(lambda x: 0 * x)(masked)
    targets = np.array([[1, 2, 9], [3, 9, 9]], "float32")[..., None]
    assert float(objective.mean_loss(loss)(targets, outputs)) == pytest.approx(14 / 3)


def test_a_loss_that_is_reduced_already():
    with mirrored().scope():
        value = objective.on_a_replica(lambda: objective.mean_loss(HalfTheSum())(Y, Y))
    assert float(value) == 6


def test_the_loss_itself_stays():
    loss = keras.losses.MeanSquaredError(reduction="sum")
    objective.mean_loss(loss)(Y, Y)
    assert loss.reduction == "sum"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize(
    "loss",
    [
        "hinge",
        "kl_divergence",
        "binary_crossentropy",
        keras.losses.poisson,
        lambda targets, outputs: tf.square(targets - outputs),
    ],
)
def test_a_function_gets_what_it_gets_in_fit(loss, shape, dtype):
    """Columns in float32, whatever the targets and outputs are."""
    targets = np.reshape([0, 1, 1, 0], shape)
    outputs = tf.constant([[0.2], [0.4], [0.6], [0.9]], dtype)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Activation("linear")])
    model.compile(loss=loss)
    want = model.compute_loss(y=targets, y_pred=outputs)
    got = objective.mean_loss(loss)(targets, outputs)
    assert float(got) == pytest.approx(float(want), rel=1e-6)


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
