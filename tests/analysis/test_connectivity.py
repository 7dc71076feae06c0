"""Tests of paths between solutions, mostly on losses whose curves are known by hand."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import mirrored

import rigl_tf
from rigl_tf import analysis

layers = keras.layers


def linear(size=2, **arguments):
    """`y = x @ w`: with the unit vectors as inputs the outputs are the weights."""
    return keras.Sequential([keras.Input((size,)), layers.Dense(1, use_bias=False, **arguments)])


def column(*values):
    return [np.array(values, "float32")[:, None]]


def weights_of(model):
    return model.get_weights()[0].ravel().tolist()


def test_interpolate_on_the_line():
    model = linear()
    before = model.get_weights()
    got = analysis.interpolate(
        model, column(1, 0), column(0, 4), weights_of, coefficients=[0, 0.25, 1, 1.5]
    )
    assert got == [[1, 0], [0.75, 1], [0, 4], [-0.5, 6]]
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    got = analysis.interpolate(model, column(0, 0), column(29, 0), weights_of)
    np.testing.assert_allclose(got, [[k, 0] for k in range(30)], rtol=1e-6)


def test_interpolate_on_a_curve():
    # (1 - c)^2 (1, 0) + 2 c (1 - c) (4, 2) + c^2 (0, 4) at c = 1/2
    got = analysis.interpolate(
        linear(), column(1, 0), column(0, 4), weights_of, [0.5], control_points=[column(4, 2)]
    )
    assert got == [[2.25, 2]]


def test_each_point_starts_in_the_same_state_of_recurrent_layers():
    rnn = layers.SimpleRNN(2, stateful=True)
    model = keras.Sequential([keras.Input((3, 2), batch_size=1), rnn])
    x, weights = np.ones((1, 3, 2), "float32"), model.get_weights()
    model(x)
    before = rnn.states[0].numpy().tolist()
    got = analysis.interpolate(model, weights, weights, lambda m: m(x).numpy().tolist(), [0, 0.5])
    assert got[0] == got[1] != before
    assert rnn.states[0].numpy().tolist() == before
    data = tf.data.Dataset.from_tensors((x, np.ones((1, 2), "float32")))
    analysis.train_bezier(model, weights, weights, data, "mse", "sgd", 1, jit_compile=False)
    assert rnn.states[0].numpy().tolist() == before


def test_weights_are_restored_after_an_error():
    model = linear()
    before = model.get_weights()

    def fail(model):
        model.set_weights(column(7, 7))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        analysis.interpolate(model, column(1, 0), column(0, 4), fail)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def sparse_linear(size):
    return rigl_tf.sparsify(linear(size), 0.5)


def test_the_path_between_sparse_solutions_is_in_the_union():
    model = sparse_linear(4)
    (path,) = rigl_tf.get_masks(model)
    ends = []
    for active, values in (((0, 1), (2, 4, 0, 0)), ((1, 2), (0, 6, 8, 0))):
        mask = np.zeros((4, 1), bool)
        mask[list(active)] = True
        rigl_tf.set_masks(model, {path: mask})
        model.set_weights([array if array.dtype == bool else column(*values)[0]
                           for array in model.get_weights()])  # fmt: skip
        ends.append(model.get_weights())
    rigl_tf.set_masks(model, {path: np.array([[True], [False], [False], [True]])})
    before = model.get_weights()
    seen = []

    def evaluate(model):
        seen.append(rigl_tf.get_masks(model)[path].ravel().tolist())
        return model(np.eye(4)).numpy().ravel().tolist()

    got = analysis.interpolate(model, *ends, evaluate, [0.5])
    assert got == [[1, 5, 4, 0]]
    assert seen == [[True, False, False, True]]
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_moving_statistics_are_interpolated_unless_evaluate_estimates_them():
    model = keras.Sequential([keras.Input((1,)), layers.BatchNormalization(momentum=0.0)])
    gamma, beta, mean, variance = (np.full(1, x, "float32") for x in (1, 0, 2, 4))
    start, end = [gamma, beta, mean, variance], [gamma, beta, mean + 4, variance + 8]
    as_they_are = analysis.interpolate(
        model, start, end, lambda m: [float(w[0]) for w in m.get_weights()], [0.5]
    )
    assert as_they_are == [[1, 0, 4, 8]]

    def estimate(model):
        model(np.array([[10.0], [20.0]]), training=True)
        return [float(w[0]) for w in model.get_weights()]

    before = model.get_weights()
    assert analysis.interpolate(model, start, end, estimate, [0.5]) == [[1, 0, 15, 25]]
    assert model.get_weights() == before


@pytest.mark.parametrize(
    ("errors", "barrier"),
    [
        ([1.0, 4.0, 9.0, 3.0], 7.0),
        ([5.0, 1.0], 2.0),  # the higher end is above the mean of the ends
        ([2.0, 1.0, 2.0], 0.0),
        # (c - 1/2)^2 has its maximum at the ends: there is no barrier
        ((np.linspace(0, 1, 21) - 0.5) ** 2, 0.0),
        (-((np.linspace(0, 1, 21) - 0.5) ** 2), 0.25),
    ],
)
def test_error_barrier(errors, barrier):
    assert analysis.error_barrier(errors) == pytest.approx(barrier, abs=1e-12)


@pytest.mark.parametrize("errors", [[], [1.0], [[1.0, 2.0]], [0.0, np.nan, 0.0], None, ["a", "b"]])
def test_errors_that_have_no_barrier(errors):
    with pytest.raises(ValueError, match="two or more finite numbers"):
        analysis.error_barrier(errors)


def test_bezier():
    points = [np.array(p, float) for p in ((0, 0), (3, 3), (9, 0), (0, 27))]
    # of two points: the line; cubic at 1/3: (8, 12, 6, 1) / 27
    np.testing.assert_allclose(analysis.bezier(points[1:3], 0.25), [4.5, 2.25])
    np.testing.assert_allclose(analysis.bezier(points, 1 / 3), [90 / 27, 63 / 27])
    np.testing.assert_allclose(analysis.bezier(points, 0.0), points[0])
    np.testing.assert_allclose(analysis.bezier(points, 1.0), points[-1])
    third = tf.constant(1 / 3, tf.float64)
    np.testing.assert_allclose(analysis.bezier(points, third), [90 / 27, 63 / 27])


# Training curves. A loss that is linear in the weights has a constant gradient, so that one step
# of SGD moves a control point by -learning_rate * share(t) * gradient.

EYE = tf.data.Dataset.from_tensors((np.eye(2, dtype="float32"), np.zeros((2, 1), "float32")))


def twice_the_sum(_, outputs):
    return 2 * tf.reduce_sum(outputs)


@pytest.mark.parametrize(("degree", "jit_compile"), [(2, False), (2, True), (3, True)])
def test_the_chain_rule(degree, jit_compile):
    model = linear()
    before = model.get_weights()
    points = analysis.train_bezier(
        model, column(0, 0), column(3, 6), EYE, twice_the_sum, keras.optimizers.SGD(0.5), 1, degree,
        seed=5, jit_compile=jit_compile,
    )  # fmt: skip
    t = float(tf.random.stateless_uniform([], (5, 0)))
    shares = {2: [2 * t * (1 - t)], 3: [3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)]}[degree]
    assert len(points) == degree - 1
    for k, (point, share) in enumerate(zip(points, shares, strict=True), 1):
        line = np.array([[3.0], [6.0]]) * k / degree
        np.testing.assert_allclose(point[0], line - 0.5 * share * 2, rtol=1e-6)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_each_step_has_its_own_point():
    arguments = (column(0, 0), column(0, 0), EYE, twice_the_sum)
    for seed in (0, 1):
        ((point,),) = analysis.train_bezier(
            linear(), *arguments, keras.optimizers.SGD(0.5), steps=4, seed=seed
        )
        ts = [float(tf.random.stateless_uniform([], (seed, step))) for step in range(4)]
        np.testing.assert_allclose(point, [[-sum(2 * t * (1 - t) for t in ts)]] * 2, rtol=1e-5)


def test_a_ring_is_gone_round():
    """The loss is (|w|^2 - 1)^2: zero on the circle, 1 in its middle, where the line goes."""
    model = linear()
    start, end = column(1, 0), column(-0.8, 0.6)

    def ring(_, outputs):
        return (tf.reduce_sum(outputs**2) - 1) ** 2

    def losses(points):
        return analysis.interpolate(
            model, start, end, lambda m: float(ring(0, m(np.eye(2)))), control_points=points
        )

    # The middle of the line is (0.1, 0.3): |w|^2 = 0.1.
    assert analysis.error_barrier(losses([])) == pytest.approx(0.81, abs=0.01)
    for degree in (2, 3):
        points = analysis.train_bezier(
            model, start, end, EYE, ring, keras.optimizers.SGD(0.1), 400, degree
        )
        assert analysis.error_barrier(losses(points)) < 0.1
        # The best quadratic has its middle near (0.1, 0.3) / |(0.1, 0.3)|, outside the chord.
        middle = analysis.bezier([start[0], *[p[0] for p in points], end[0]], 0.5).ravel()
        assert np.linalg.norm(middle) == pytest.approx(1, abs=0.15)


class Everywhere(keras.optimizers.SGD):
    """Moves every weight, whatever its gradient."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, tf.ones_like(gradient))


def test_masks_keep_the_curve_in_the_union():
    model = sparse_linear(2)
    (path,) = rigl_tf.get_masks(model)
    mask = np.array([[True], [False]])
    ends = [[mask if w.dtype == bool else column(v, 0)[0] for w in model.get_weights()]
            for v in (1, -1)]  # fmt: skip

    def train(masks, optimizer):
        (point,) = analysis.train_bezier(
            model, *ends, EYE, twice_the_sum, optimizer, 3, masks=masks
        )
        assert [w.dtype for w in point] == [w.dtype for w in model.get_weights()]
        return next(w for w in point if w.dtype != bool).ravel()

    for optimizer in ("sgd", "adam", Everywhere()):
        inside, outside = train({path: mask}, optimizer)
        assert inside < 0
        assert outside == 0
    # Gradients outside do not count when they are clipped.
    clipped = train({path: mask}, keras.optimizers.SGD(1.0, clipnorm=1e-3))
    np.testing.assert_allclose(clipped, [-3e-3, 0], rtol=1e-4)
    inside, outside = train(None, "sgd")
    assert inside == pytest.approx(outside)
    assert inside < 0


def test_only_trainable_weights_leave_the_line():
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(1), layers.BatchNormalization(), layers.Dropout(0.5)]
    )
    start = model.get_weights()
    end = [array + 2 if array.dtype == np.float32 else array for array in start]
    data = tf.data.Dataset.from_tensors((np.ones((4, 1), "float32"), np.ones((4, 1), "float32")))
    (point,) = analysis.train_bezier(
        model, start, end, data, "mse", keras.optimizers.SGD(0.1), steps=2
    )
    trainable = {id(variable) for variable in model.trainable_variables}
    for variable, first, got in zip(model.weights, start, point, strict=True):
        if id(variable) not in trainable:
            is_float = first.dtype == np.float32
            np.testing.assert_array_equal(got, first + 1 if is_float else first)
    assert any((got != first + 1).any() for got, first in zip(point, start, strict=True))
    for now, then in zip(model.get_weights(), start, strict=True):
        np.testing.assert_array_equal(now, then)


def test_bad_arguments_of_train_bezier():
    model = linear()

    def train(**changes):
        arguments = {"start": column(0, 0), "end": column(1, 1), "data": EYE, "loss": "mse"}
        arguments |= {"optimizer": "sgd", "steps": 1}
        analysis.train_bezier(model, **{**arguments, **changes})

    with pytest.raises(
        ValueError, match=r"`start` must be weights of this model.* 1 arrays.* 0 arrays$"
    ):
        train(start=[])
    with pytest.raises(ValueError, match=r"`end` .* of shape \(3, 1\) for \(2, 1\)"):
        train(end=column(1, 2, 3))
    with pytest.raises(ValueError, match="`steps` must be an integer >= 1"):
        train(steps=0)
    with pytest.raises(ValueError, match="`degree` must be an integer >= 2"):
        train(degree=1)
    with pytest.raises(ValueError, match="must be the path of a sparse kernel"):
        train(masks={"nowhere": np.ones((2, 1), bool)})
    with pytest.raises(ValueError, match=r"`data` must be a `tf.data.Dataset`.* 'list'"):
        train(data=[1])
    with pytest.raises(ValueError, match="`data` must have at least one batch"):
        train(data=EYE.take(0))
    with pytest.raises(ValueError, match=r"pairs `\(inputs, targets\)`"):
        train(data=EYE.map(lambda x, y: (x, y, y)))
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        train(seed=0.5)
    with pytest.raises(ValueError, match="Received: loss=None"):
        train(loss=None)
    used = keras.optimizers.SGD()
    train(optimizer=used)
    with pytest.raises(ValueError, match=r"`optimizer` must be new.*'sgd"):
        train(optimizer=used)
    scope = mirrored().scope()
    with scope, pytest.raises(ValueError, match=r"one device.*the scope of MirroredStrategy"):
        train()
    with pytest.raises(ValueError, match=r"`control_points\[0\]` must be weights of this model"):
        analysis.interpolate(model, column(0, 0), column(1, 1), len, control_points=[column(1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": None}, "`start` must be weights of this model"),
        ({"evaluate": 0}, "`evaluate` must be a function"),
        ({"coefficients": 5}, "list of finite numbers. Received: 5"),
        ({"coefficients": [0, math.nan]}, r"list of finite numbers. Received: \[0.0, nan\]"),
        ({"coefficients": ["a"]}, "list of finite numbers"),
    ],
)
def test_bad_arguments_of_interpolate(arguments, message):
    right = {"start": column(0, 0), "end": column(1, 1), "evaluate": len}
    with pytest.raises(ValueError, match=message):
        analysis.interpolate(linear(), **{**right, **arguments})


def test_a_curve_has_two_ends():
    with pytest.raises(ValueError, match=r"There must be two or more `points`\. Received: 1"):
        analysis.bezier([1.0], 0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_float16"])
def test_curves_of_other_types(dtype):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, dtype=dtype)])
    start, end = model.get_weights(), [-weight for weight in model.get_weights()]
    data = EYE.map(lambda x, y: (x, tf.cast(y, tf.float32)))
    (point,) = analysis.train_bezier(model, start, end, data, "mse", "sgd", steps=2)
    for array, first in zip(point, start, strict=True):
        assert array.dtype == first.dtype
        assert array.shape == first.shape


def test_equal_calls_draw_equal_dropout():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(8), layers.Dropout(0.5), layers.Dense(1)]
    )
    start, end = model.get_weights(), [-weight for weight in model.get_weights()]
    first, second = (
        analysis.train_bezier(model, start, end, EYE, "mse", "sgd", steps=4) for _ in range(2)
    )
    for one, other in zip(first[0], second[0], strict=True):
        np.testing.assert_array_equal(one, other)


def in_csr():
    """A CSR model whose four connections are 1, 2, 3, 4 in one column, and its weights."""
    model = rigl_tf.sparsify(linear(8), 0.5, execution="csr")
    (kernel,) = rigl_tf.masks.kernels_of(model).values()
    set_column(model, [1, 2, 3, 4, 0, 0, 0, 0])
    return model, kernel


def set_column(model, column):
    column = np.array(column, "float32")[:, None]
    rigl_tf.set_masks(model, dict.fromkeys(rigl_tf.get_masks(model), column != 0))
    (kernel,) = rigl_tf.masks.kernels_of(model).values()
    kernel.assign(column)


def test_csr_kernels_with_the_same_places_are_interpolated():
    model, kernel = in_csr()
    start = model.get_weights()
    set_column(model, [3, 2, 1, 4, 0, 0, 0, 0])
    middle = analysis.interpolate(
        model, start, model.get_weights(), lambda model: kernel.numpy().ravel().tolist(), [0.5]
    )
    assert middle == [[2, 2, 2, 4, 0, 0, 0, 0]]


@pytest.mark.parametrize("now", [[0, 0, 0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 0, 0, 0, 0]])
def test_csr_kernels_with_other_places_are_refused(now):
    model, _ = in_csr()
    start = model.get_weights()
    set_column(model, [0, 0, 0, 0, 1, 2, 3, 4])
    end = model.get_weights()
    set_column(model, now)
    name = "start" if now[0] == 0 else "end"
    with pytest.raises(ValueError, match=f"'masked'.*`{name}` with other active .*dense/kernel"):
        analysis.interpolate(model, start, end, lambda model: None)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, w: analysis.train_bezier(model, w, w, None, "mse", "sgd", 1),
        lambda model, w: analysis.solution_distance(model, w, w),
        lambda model, w: analysis.repel(model, [w]),
        lambda model, w: analysis.hessian(model, (np.ones((2, 8)), np.ones((2, 1))), "mse"),
        lambda model, w: analysis.hessian_density(model, (np.ones((2, 8)), np.ones(2)), "mse"),
        lambda model, w: analysis.hessian_eigenvalues(model, (np.ones((2, 8)), np.ones(2)), "mse"),
    ],
)
def test_what_needs_masked_kernels_says_so(call):
    model, _ = in_csr()
    with pytest.raises(ValueError, match=r"needs masked .*with_execution\(.*dense/kernel'\]"):
        call(model, model.get_weights())
