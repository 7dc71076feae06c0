"""Tests of `rigl_tf.analysis.predictions`: shares and angles that are known by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import rigl_tf
from rigl_tf import analysis

layers = keras.layers

# The classes 0, 1, 2 and 0.
LOGITS = np.array([[5.0, 1, 0], [0, 2, 1], [0, 0, 1], [3, 2, 2]])


def test_disagreement():
    assert analysis.disagreement(LOGITS, LOGITS) == 0
    assert analysis.disagreement(LOGITS, 3 * LOGITS + 1) == 0
    other = LOGITS[:, [0, 2, 1]]  # the classes 0, 2, 1 and 0
    assert analysis.disagreement(LOGITS, other) == 0.5
    assert analysis.disagreement(LOGITS, -LOGITS) == 1


def test_ensembles():
    labels = np.array([0, 1, 2, 1])
    assert analysis.ensemble_accuracy([LOGITS], labels) == 0.75
    assert analysis.ensemble_accuracy([LOGITS], labels[:, None]) == 0.75
    # Probabilities .99 / .01 and two of .4 / .6: the mean is .6 / .4, the majority says 1.
    probabilities = [np.array([[0.99, 0.01]]), *[np.array([[0.4, 0.6]])] * 2]
    assert analysis.ensemble_accuracy(probabilities, [0], from_logits=False) == 1
    logits = [np.log(each) + 7 for each in probabilities]
    assert analysis.ensemble_accuracy(logits, [0]) == 1
    # The mean of logits would say 0: 20 - 3 * 2 > 0.
    logits = [np.array([[20.0, 0.0]]), *[np.array([[0.0, 3.0]])] * 3]
    assert analysis.ensemble_accuracy(logits, [1]) == 1


def two_kernels():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2), layers.Dense(1)])
    return rigl_tf.sparsify(model, 0.5, dict.fromkeys)


def solution(model, one, two):
    """Weights as of `get_weights`: the values of both kernels, active where they are no `None`."""
    by_shape = {(2, 2): np.array(one, object).reshape(2, 2), (2, 1): np.array(two, object)[:, None]}
    arrays = []
    for weight in model.get_weights():
        values = by_shape.get(weight.shape)
        if values is None:
            arrays.append(np.full(weight.shape, 9.0))  # a bias, which does not count
        elif weight.dtype == bool:
            arrays.append(np.not_equal(values, None))
        else:
            arrays.append(np.where(np.not_equal(values, None), values, 0).astype("float32"))
    return arrays


def test_distance_on_the_common_mask():
    model = two_kernels()
    start = solution(model, [3, None, 0, 5], [4, 7])
    end = solution(model, [0, 6, 1, None], [2, None])
    # In common: (3, 0, 4) and (0, 1, 2), one of them active at zero in each.
    got = analysis.solution_distance(model, start, end)
    cosine = 8 / (5 * np.sqrt(5))
    assert got.l2 == pytest.approx(np.sqrt(9 + 1 + 4))
    assert got.cosine == pytest.approx(cosine)
    assert got.angle == pytest.approx(2 * np.arccos(cosine) / np.pi)


def test_angles():
    model = two_kernels()
    start = solution(model, [1, 2, 3, 4], [5, 6])
    opposite = solution(model, [-2, -4, -6, -8], [-10, -12])
    orthogonal = solution(model, [2, -1, 4, -3], [6, -5])
    assert analysis.solution_distance(model, start, start) == (0, 1, 0)
    assert analysis.solution_distance(model, start, opposite).angle == pytest.approx(2)
    assert analysis.solution_distance(model, start, orthogonal).angle == pytest.approx(1)


def test_repellent_loss_by_hand():
    model = two_kernels()
    model.set_weights(solution(model, [3, None, 0, 5], [4, None]))
    known = [solution(model, [1, 9, None, 2], [2, 9]), solution(model, [-5, 9, 9, 0], [0, 9])]
    analysis.repel(model, known)
    # At the model's connections: (3, 0, 5, 4) with (1, 0, 2, 2), and with (-5, 9, 0, 0).
    want = 2 / 2 * (21**2 / (50 * 9) + 15**2 / (50 * 106))
    (loss,) = model.losses
    assert float(loss) == pytest.approx(want, rel=1e-6)
    analysis.repel(model, known[:1], weight=-1)
    (loss,) = model.losses
    assert float(loss) == pytest.approx(-(21**2) / 450, rel=1e-6)
    analysis.repel(model, [])
    assert model.losses == []


def test_a_float64_network_is_repelled():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model = rigl_tf.sparsify(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), 0.5)
    model.compile("sgd", "mse")
    analysis.repel(model, [model.get_weights()])
    history = model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0).history
    assert history["loss"][0] > 2  # the cosine is 1 at first


def test_the_gradient_is_that_of_active_connections():
    model = two_kernels()
    model.set_weights(solution(model, [3, None, 0, 5], [4, None]))
    analysis.repel(model, [solution(model, [1, 9, 9, 2], [2, 9])])
    values = [kernel.value for kernel in rigl_tf.masks.sparse_kernels(model).values()]
    with tf.GradientTape() as tape:
        (loss,) = model.losses
    one, two = tape.gradient(loss, values)
    # Of 2 u^2 / (50 * 90): u = 21 the product, and of v = 50, the square of the kernels.
    a, b = np.array([3, 0, 0, 5, 4, 0.0]), np.array([1, 0, 9, 2, 2, 0.0])
    want = 2 * (2 * 21 * b / (50 * 90) - 21**2 * 2 * a / (50**2 * 90))
    np.testing.assert_allclose([*one.numpy().ravel(), *two.numpy().ravel()], want, rtol=1e-4)


def test_kernels_at_zero_have_no_angle_and_no_gradient():
    model = two_kernels()
    model.set_weights(solution(model, [0] * 4, [0, 0]))
    analysis.repel(model, [solution(model, [1] * 4, [1, 1])])
    kernels = [kernel.value for kernel in rigl_tf.masks.sparse_kernels(model).values()]
    with tf.GradientTape() as tape:
        (loss,) = model.losses
    assert float(loss) == 0
    assert not any(np.any(each) for each in tape.gradient(loss, kernels))


X, Y = np.random.default_rng(0).normal(size=(2, 32, 6)).astype("float32")


def train(weight, known=None):
    """A model that was trained from the same start as any other."""
    keras.utils.set_random_seed(0)
    dense = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, "tanh", kernel_regularizer="l2"),
            layers.Dense(6),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.5)
    if known is not None:
        analysis.repel(model, [known], weight)
    model.compile(rigl_tf.StaticSparse(keras.optimizers.Adam(0.01)), "mse")
    model.fit(X, Y, batch_size=8, epochs=10, shuffle=False, verbose=0)
    return model


def test_fit_repels_and_attracts(tmp_path):
    known = train(0).get_weights()
    models = {weight: train(weight, known) for weight in (2.0, 0.0, -1.0)}
    repelled, same, attracted = (
        analysis.solution_distance(model, known, model.get_weights()).cosine ** 2
        for model in models.values()
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert repelled < 0.3
    assert attracted > 0.95
    models[2.0].save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(X), models[2.0](X), rtol=1e-6)
    assert len(again.losses) == 1  # the layer's own


def test_own_regularizers_and_frozen_kernels_stay():
    dense = keras.Sequential([
        keras.Input((6,)),
        layers.Dense(4),
        layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.5), use_bias=False),
    ])  # fmt: skip
    model = rigl_tf.sparsify(dense, 0.5)
    model.layers[0].trainable = False
    (own,) = (float(loss) for loss in model.losses)
    analysis.repel(model, [model.get_weights()], weight=1.0)
    (both,) = (float(loss) for loss in model.losses)
    assert both == pytest.approx(own + 1, rel=1e-5)
    analysis.repel(model, [model.get_weights()], weight=3.0)
    assert float(model.losses[0]) == pytest.approx(own + 3, rel=1e-5)
    model.layers[0].trainable = True
    analysis.repel(model, [model.get_weights()], weight=5.0)
    assert sum(map(float, model.losses)) == pytest.approx(own + 5, rel=1e-5)
    analysis.repel(model, [])
    assert sum(map(float, model.losses)) == own


def dense_model():
    return keras.Sequential([keras.Input((2,)), layers.Dense(2)])


def zero_distance():
    model = two_kernels()
    start = solution(model, [1] * 4, [None, None])
    return analysis.solution_distance(model, start, solution(model, [None] * 4, [1, 1]))


def repel_nan():
    model = two_kernels()
    analysis.repel(model, [[array * np.nan for array in model.get_weights()]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis.disagreement(LOGITS, LOGITS[:2]), r"shapes=\[\(4, 3\), \(2, 3\)\]"),
        (lambda: analysis.disagreement(LOGITS[:, :1], LOGITS[:, :1]), "shapes="),
        (lambda: analysis.ensemble_accuracy([], [0]), r"shapes=\[\]"),
        (lambda: analysis.ensemble_accuracy([LOGITS], [0, 1]), r"shape=\(2,\), dtype=int64"),
        (lambda: analysis.ensemble_accuracy([LOGITS], LOGITS[:, 0]), r".*dtype=float64"),
        (lambda: analysis.ensemble_accuracy([LOGITS], [0, 1, 2, 3]), "labels from 0 to 3"),
        (
            lambda: analysis.disagreement(LOGITS * np.nan, LOGITS),
            r"infinite or NaN logits .* \[0\]",
        ),
        (lambda: analysis.ensemble_accuracy([LOGITS + np.inf], [0] * 4), "infinite or NaN logits"),
        (lambda: analysis.ensemble_accuracy([LOGITS - np.inf], [0] * 4), "infinite or NaN logits"),
        (lambda: analysis.solution_distance(two_kernels(), None, []), "0 arrays"),
        (lambda: analysis.solution_distance(dense_model(), [], []), "model='sequential', without"),
        (lambda: analysis.solution_distance(two_kernels(), [], []), "0 arrays"),
        (zero_distance, "norms .* on 0 common connections"),
        (lambda: analysis.repel(dense_model(), []), "model='sequential', without"),
        (lambda: analysis.repel(two_kernels(), [], weight=None), "weight=None"),
        (lambda: analysis.repel(two_kernels(), [[np.ones(3)]]), "1 arrays"),
        (repel_nan, r"NaN or inf in solutions\[0\]"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        call()
