"""Tests of where grown connections start, and of the random numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import all_alike, drop_half, updates_only

import rigl_tf
from rigl_tf.optimizers import draws, growth

layers = keras.layers
pytestmark = updates_only
SHAPE = (40, 100)


def grown(
    grow_init, grow_scale=1.0, seed=0, steps=2, change=lambda values: values, kind=rigl_tf.RigL
):
    """Trains without moving weights. The weights before the last update, which drops half of the
    connections, the weights that it grew, and their gradients; in both kernels of a model."""
    keras.utils.set_random_seed(0)
    dense = keras.Sequential(
        [
            keras.Input(SHAPE[:1]),
            layers.Dense(SHAPE[1], use_bias=False),
            layers.Dense(SHAPE[1], use_bias=False),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.5, all_alike)
    optimizer = kind(
        keras.optimizers.SGD(0.0, momentum=0.9),
        end_step=99,
        update_frequency=1,
        drop_fraction=drop_half,
        grow_init=grow_init,
        grow_scale=grow_scale,
        seed=seed,
    )
    kernels = model.trainable_weights
    optimizer.build(kernels)
    for kernel in kernels:
        kernel.assign(change(kernel.numpy()))
    for step in range(steps):
        rng = np.random.default_rng(step)
        gradients = [rng.normal(size=kernel.shape).astype("float32") for kernel in kernels]
        before = [kernel.numpy() for kernel in kernels]
        old = list(rigl_tf.get_masks(model).values())
        optimizer.apply([tf.constant(gradient) for gradient in gradients], kernels)
    result = []
    for kernel, values, mask, gradient in zip(kernels, before, old, gradients, strict=True):
        new = rigl_tf.masks.mask_of(kernel).numpy()
        after = kernel.numpy()
        assert mask.sum() == new.sum()
        assert not after[~new].any()
        np.testing.assert_array_equal(after[mask & new], values[mask & new])
        chosen = new & ~mask
        assert chosen.sum() > 0.1 * new.sum()
        result.append((values[mask], after[chosen], gradient[chosen]))
    slots = [v.numpy() for v in optimizer.inner_optimizer.variables if v.shape == SHAPE]
    assert len(slots) == 1
    assert not slots[0][rigl_tf.get_masks(model)[kernels[0].path] & ~old[0]].any()
    return result


@pytest.mark.parametrize("scale", [1.0, -0.25])
@pytest.mark.parametrize(
    ("grow_init", "of"),
    [("zeros", np.zeros_like), ("gradient", np.array), ("gradient_sign", np.sign)],
)
def test_known_values(grow_init, of, scale):
    for _, values, gradients in grown(grow_init, scale):
        np.testing.assert_array_equal(values, scale * of(gradients))


def test_uniformly_as_large_as_the_active_weights():
    for active, values, _ in grown("random_uniform", 0.5):
        width = 0.5 * np.abs(active).mean()
        assert np.abs(values).max() <= width * (1 + 1e-5)
        assert np.abs(values).max() > 0.95 * width
        assert abs(values.mean()) < 0.15 * width
        assert len(np.unique(values)) > 0.9 * len(values)


def test_normally_as_wide_as_the_active_weights():
    for active, values, _ in grown("random_normal", 2.0, change=lambda values: 3 * values):
        assert values.std() == pytest.approx(2 * active.std(), rel=0.15)
        assert abs(values.mean()) < 0.2 * values.std()
        # A normal distribution has 68 % within one standard deviation, a uniform one 58 %.
        assert np.mean(np.abs(values) < values.std()) == pytest.approx(0.68, abs=0.05)


def test_normally_as_wide_as_the_initial_weights():
    initial = [values.std() for values, _, _ in grown("zeros")]
    got = grown("initial_distribution", change=lambda values: 3 * values)
    for (active, values, _), std in zip(got, initial, strict=True):
        assert active.std() == pytest.approx(3 * std, rel=1e-3)
        assert values.std() == pytest.approx(std, rel=0.15)
        assert abs(values.mean()) < 0.2 * std


def test_random_values_are_drawn_apart_from_random_scores():
    """SET grows where its random scores are largest; of the same numbers all values were large."""
    for _, values, _ in grown("random_uniform", kind=rigl_tf.SET):
        assert 0.4 < np.mean(values > 0) < 0.6


@pytest.mark.parametrize("grow_init", ["random_normal", "random_uniform"])
def test_random_values_depend_on_seed_kernel_and_step(grow_init):
    once, again = grown(grow_init), grown(grow_init)
    for (_, values, _), (_, same, _) in zip(once, again, strict=True):
        np.testing.assert_array_equal(values, same)
    others = [grown(grow_init, seed=1)[0][1], once[1][1], grown(grow_init, steps=3)[0][1]]
    for other in others:
        assert len(np.intersect1d(once[0][1], other)) < 0.05 * len(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grow_init": "ones"}, "grow_init='ones'"),
        ({"grow_init": None}, "grow_init=None"),
        ({"grow_init": 0}, "grow_init=0"),
        ({"grow_scale": "x"}, "grow_scale='x'"),
        ({"grow_scale": np.inf}, "grow_scale=inf"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        rigl_tf.RigL("sgd", end_step=5, **arguments)


def test_draws_are_the_same_with_xla():
    def all_of_them(step):
        seed = draws.fold(tf.constant([-(2**40), 0], tf.int64), 5, step)
        return seed, draws.uniform((20, 30), seed), draws.normal((20, 30), seed)

    step = tf.constant(12, tf.int64)
    want = all_of_them(step)
    for jit_compile in (False, True):
        seed, uniform, normal = tf.function(all_of_them, jit_compile=jit_compile)(step)
        np.testing.assert_array_equal(seed, want[0])
        np.testing.assert_array_equal(uniform, want[1])
        np.testing.assert_allclose(normal, want[2], rtol=1e-5)


def test_draws_are_distributed_as_they_should():
    uniform = np.sort(draws.uniform((10_000,), (1, 2)).numpy())
    assert 0 < uniform[0] < uniform[-1] < 1
    # Kolmogorov's distance: above 1.63 / sqrt(n) in one of a hundred samples.
    assert np.abs(uniform - (np.arange(10_000) + 0.5) / 10_000).max() < 0.0163
    normal = draws.normal((10_000,), (3, 4)).numpy()
    assert np.isfinite(normal).all()
    assert normal.mean() == pytest.approx(0, abs=0.03)
    assert normal.std() == pytest.approx(1, abs=0.03)
    assert np.mean(np.abs(normal) < 1.96) == pytest.approx(0.95, abs=0.01)


def test_means_of_more_than_float16_counts():
    """Half of 160,000 entries are active, of 0.5 and -0.5; float16 ends at 65,504."""
    kernel = tf.constant(np.tile([0.5, 100.0, -0.5, 100.0], 40_000), tf.float16)
    active = tf.abs(kernel) < 1
    assert float(growth.mean_of_active(tf.abs(kernel), active)) == 0.5
    assert float(growth.std_of_active(kernel, active)) == 0.5
    for grow_init in ("random_uniform", "random_normal"):
        values = growth.initial_values(grow_init, kernel, active, None, None, lambda: (1, 2))
        assert values.dtype == tf.float16
        std = 0.5 if grow_init == "random_normal" else 0.5 / np.sqrt(3)
        assert values.numpy().astype("float32").std() == pytest.approx(std, rel=0.02)
