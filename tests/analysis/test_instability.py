"""Instability analysis, on networks whose errors along the line are known by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_equal

import rigl_tf
from rigl_tf import analysis
from rigl_tf.schedules import WarmUp

layers = keras.layers


def absolute_value():
    """`abs(x)` of two units, `relu(x) + relu(-x)`, once trained as below."""
    return keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(2, "relu", use_bias=False, name="hidden"),
            layers.Dense(1, use_bias=False, kernel_initializer="ones"),
        ]
    )


def swap(model, data_seed, from_step):
    """The same function with its two units in one order or the other."""
    sign = 1 if data_seed == 0 else -1
    model.get_layer("hidden").set_weights([np.array([[sign, -sign]])])


def error(model):
    x = np.array([[1.0], [-1.0]])
    return float(tf.reduce_mean(tf.abs(model(x) - np.abs(x))))


def test_two_orders_of_the_same_units():
    # At c the units are (1 - 2c) x and -(1 - 2c) x, so the error is 1 - |1 - 2c|.
    result = analysis.instability(absolute_value(), swap, error, step=3, num_points=5)
    assert result.step == 3
    assert result.coefficients == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(result.errors, [0, 0.5, 1, 0.5, 0], atol=1e-6)
    assert result.barrier == pytest.approx(1)
    assert not result.is_stable
    assert [weights[0].tolist() for weights in result.solutions] == [[[1, -1]], [[-1, 1]]]


def test_the_threshold():
    for threshold, is_stable in ((1.001, True), (1, False), (0, False)):
        result = analysis.instability(absolute_value(), swap, error, 0, threshold, num_points=3)
        assert result.is_stable is is_stable
    result = analysis.instability(absolute_value(), swap, error, data_seeds=(1, 2))
    assert len(result.errors) == 30
    assert result.is_stable


def values(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(variable) for variable in variables]


def test_both_trainings_begin_alike_and_the_model_is_left_as_it_was():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    x, y = np.ones((8, 3)), np.ones((8, 1))
    model.fit(x, y, verbose=0)
    before = values(model)
    starts = []

    def train(model, data_seed, from_step):
        starts.append((data_seed, from_step, values(model)))
        model.fit(x, y, batch_size=4, verbose=0)

    def evaluate(model):
        return float(model.evaluate(x, y, verbose=0))

    analysis.instability(model, train, evaluate, 1, data_seeds=(5, 7), num_points=2)
    assert [start[:2] for start in starts] == [(5, 1), (7, 1)]
    for start in starts:
        assert_equal(start[2], before)
    assert_equal(values(model), before)

    def fail(model, data_seed, from_step):
        model.fit(x, y, verbose=0)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        analysis.instability(model, fail, evaluate)
    assert_equal(values(model), before)


def test_recurrent_layers_begin_in_the_same_state_too():
    rnn = layers.SimpleRNN(2, stateful=True)
    model = keras.Sequential(
        [keras.Input((3, 2), batch_size=1), rnn, layers.BatchNormalization(), layers.Dense(1)]
    )
    x, starts = np.ones((1, 3, 2), "float32"), []

    def train(model, data_seed, from_step):
        starts.append(rnn.states[0].numpy().tolist())
        model(x)

    def evaluate(model):
        analysis.estimate_statistics(model, [x])
        return float(model(x)[0, 0])

    model(x)
    before = rnn.states[0].numpy().tolist()
    result = analysis.instability(model, train, evaluate, num_points=3)
    assert starts == [before, before]
    assert rnn.states[0].numpy().tolist() == before
    # Both solutions are the same network, so each point has the same error.
    assert len(set(result.errors)) == 1
    analysis.estimate_statistics(model, [x])
    assert rnn.states[0].numpy().tolist() == before


def test_the_masks_of_a_ticket():
    model = rigl_tf.sparsify(absolute_value(), 0.5, "uniform")
    before = rigl_tf.get_masks(model)
    ticket = {path: ~mask for path, mask in before.items()}
    hidden = next(iter(before))
    seen = []

    def train(model, data_seed, from_step):
        seen.append(rigl_tf.get_masks(model))
        kernel = model.get_layer("hidden").layer.kernel
        assert np.all(kernel.numpy()[before[hidden]] == 0)

    analysis.instability(model, train, error, masks=ticket, num_points=2)
    assert len(seen) == 2
    for masks in seen:
        for path, mask in ticket.items():
            np.testing.assert_array_equal(masks[path], mask)
    for path, mask in rigl_tf.get_masks(model).items():
        np.testing.assert_array_equal(mask, before[path])
    with pytest.raises(ValueError, match=hidden):
        analysis.instability(model, train, error, masks={hidden: np.ones((3, 3))})


def test_convex_training_is_stable():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    y = x @ [[1.0], [2.0]] + np.random.default_rng(1).normal(size=(64, 1))

    def train(model, data_seed, from_step):
        model.compile(keras.optimizers.SGD(0.05), "mse")
        order = np.random.default_rng(data_seed).permutation(64)
        model.fit(x[order], y[order], batch_size=8, shuffle=False, verbose=0)

    def mean_squared_error(model):
        return float(tf.reduce_mean((model(x) - y) ** 2))

    result = analysis.instability(model, train, mean_squared_error, num_points=5)
    first, second = result.solutions
    assert np.abs(first[0] - second[0]).max() > 1e-3
    # A convex loss is nowhere above the chord; the ends alone may stand above their mean.
    assert result.barrier == pytest.approx(
        max(result.errors[0], result.errors[-1]) - (result.errors[0] + result.errors[-1]) / 2,
        abs=1e-6,
    )
    assert result.is_stable


def test_statistics_on_the_way():
    # Of w * x with x = +-1 the variance is w^2: 1 and 9 at the ends, 4 between, not (1 + 9) / 2.
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(1, use_bias=False), layers.BatchNormalization()]
    )
    x = np.array([[1.0], [-1.0]])

    def train(model, data_seed, from_step):
        weight = 1 + 2 * data_seed
        model.layers[0].set_weights([np.array([[weight]])])
        model.layers[1].moving_variance.assign([weight**2])

    def variance(model):
        return float(model.layers[1].moving_variance[0])

    def estimated(model):
        analysis.estimate_statistics(model, [x, x])
        return variance(model)

    assert analysis.instability(model, train, variance, num_points=3).errors == [1, 5, 9]
    got = analysis.instability(model, train, estimated, num_points=3).errors
    np.testing.assert_allclose(got, [1, 4, 9], rtol=1e-6)


def test_statistics_are_means_over_batches_and_nothing_else_changes():
    frozen = layers.BatchNormalization(name="frozen", trainable=False)
    inner = keras.Sequential([layers.BatchNormalization(momentum=0.5, name="inner")])
    model = keras.Sequential(
        [keras.Input((1,)), frozen, inner, layers.Dropout(0.5), layers.Dense(1)]
    )
    before = [variable.numpy() for variable in model.variables]
    scale = 1 / np.sqrt(1 + frozen.epsilon)
    batches = [np.array([[1.0], [3.0]]), np.array([[5.0], [5.0]]), np.array([[0.0], [0.0]])]
    data = [(batch, None) for batch in batches]
    analysis.estimate_statistics(model, data)
    layer = inner.get_layer("inner")
    np.testing.assert_allclose(layer.moving_mean, [7 / 3 * scale], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, [1 / 3 * scale**2], rtol=1e-5)
    assert layer.momentum == 0.5
    for variable, value in zip(model.variables, before, strict=True):
        if variable is not layer.moving_mean and variable is not layer.moving_variance:
            np.testing.assert_array_equal(variable, value)
    with pytest.raises(ValueError, match="at least one batch"):
        analysis.estimate_statistics(model, [])
    for one in (np.ones((4, 1)), (np.ones((4, 1)), np.ones(4))):
        with pytest.raises(ValueError, match=r"single batch into a list.*: (ndarray|tuple)"):
            analysis.estimate_statistics(model, one)
    analysis.estimate_statistics(absolute_value(), [])


def test_statistics_of_a_model_whose_call_was_traced_before():
    class Traced(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalise = layers.BatchNormalization()
            self.call_it = tf.function(self.normalise)

        def call(self, x, training=False):
            return self.call_it(x, training=training)

    model = Traced()
    model(np.ones((2, 1), "float32"), training=True)
    data = [np.full((2, 1), value, "float32") for value in (1, 2, 6)]
    analysis.estimate_statistics(model, data)
    np.testing.assert_allclose(model.normalise.moving_mean, [3.0], rtol=1e-6)
    assert not tf.config.functions_run_eagerly()


class Block(layers.Layer):
    """Holds batch normalisation in a layer of one's own."""

    def __init__(self):
        super().__init__()
        self.normalisation = layers.BatchNormalization()

    def call(self, inputs, training=None):
        return self.normalisation(inputs, training=training)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def call(self, inputs, training=None):
        return self.block(inputs, training=training)


@pytest.mark.parametrize("make", [Block, Subclassed])
def test_statistics_of_layers_of_one_s_own(make):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, make()(inputs))
    analysis.estimate_statistics(model, [np.array([[1.0], [3.0]]), np.array([[6.0], [6.0]])])
    np.testing.assert_allclose(np.ravel(model.get_weights()[2:]), [4, 0.5], rtol=1e-6)


def test_a_training_that_diverges():
    def train(model, data_seed, from_step):
        if data_seed == 1:
            model.layers[0].kernel.assign(np.full(model.layers[0].kernel.shape, np.nan))

    with pytest.raises(ValueError, match="NaN or inf after the training with data_seed=1"):
        analysis.instability(absolute_value(), train, error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "step=-1"),
        ({"num_points": 1}, "num_points=1"),
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"data_seeds": (1,)}, r"data_seeds=\(1,\)"),
        ({"data_seeds": 3}, "data_seeds=3"),
        ({"masks": [1]}, "Received: list"),
        ({"data_seeds": (1, 1)}, "two different seeds"),
        ({"evaluate": lambda model: None}, "finite number. Received: None"),
        ({"evaluate": lambda model: [0.1, 0.2]}, r"finite number. Received: \[0\.1, 0\.2\]"),
        ({"evaluate": None}, "`evaluate` must be a function"),
        ({"train": 3}, "train=3"),
        ({"model": keras.Sequential([keras.layers.Dense(2)])}, "built `keras.Model`"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        analysis.instability(
            **{"model": absolute_value(), "train": swap, "evaluate": error, **arguments}
        )


def test_an_error_may_be_a_tensor():
    got = analysis.instability(absolute_value(), swap, lambda model: tf.constant(error(model)))
    assert got.errors == pytest.approx(analysis.instability(absolute_value(), swap, error).errors)


def test_warm_up():
    halved = keras.optimizers.schedules.PiecewiseConstantDecay([6], [0.5, 0.25])
    for schedule, wanted in (
        (WarmUp(halved, 4), [0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.25]),
        (WarmUp(0.5, 2), [0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
    ):
        copy = keras.optimizers.schedules.deserialize(
            keras.optimizers.schedules.serialize(schedule)
        )
        for each in (schedule, copy):
            assert [float(each(step)) for step in range(8)] == wanted
    model = absolute_value()
    model.compile(keras.optimizers.SGD(WarmUp(0.5, 2)), "mse")
    before = model.get_weights()
    model.fit(np.ones((1, 1)), np.ones((1, 1)), verbose=0)
    assert_equal(model.get_weights(), before)  # a rate of 0
    assert float(model.optimizer.learning_rate) == 0.25
    for arguments in (("fast", 2), (True, 2), (0.5, 0), (0.5, 1.5)):
        with pytest.raises(ValueError, match="must be"):
            WarmUp(*arguments)


@pytest.mark.parametrize("moves", [False, True])
def test_csr_kernels_whose_connections_move_are_refused_after_the_first_training(moves):
    dense = keras.Sequential([keras.Input((4,)), layers.Dense(2, use_bias=False)])
    model = rigl_tf.sparsify(dense, 0.5, execution="csr")
    seeds = []

    def train(model, data_seed, from_step):
        seeds.append(data_seed)
        if moves:
            flipped = {path: ~mask for path, mask in rigl_tf.get_masks(model).items()}
            rigl_tf.set_masks(model, flipped)

    def measure(model):
        return 0.0

    if not moves:
        assert analysis.instability(model, train, measure, num_points=2).barrier == 0
        return
    with pytest.raises(ValueError, match=r"'masked'.*with other active connections"):
        analysis.instability(model, train, measure, num_points=2)
    assert seeds == [0]
