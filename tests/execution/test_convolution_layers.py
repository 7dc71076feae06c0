"""Convolutions with CSR kernels do what the same ones with masks do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import covers_part, ends_early, numbers, sequential

import rigl_tf
from rigl_tf import masks
from rigl_tf.execution import engine

layers = keras.layers

pytestmark = [covers_part, ends_early]


def trained(make, execution, shape, steps=4, policy="float32"):
    """Losses, weights and masks after an update and a step, and the model."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    model = rigl_tf.sparsify(make(), 0.5, execution=execution)
    kernels = masks.kernels_of(model).values()
    with_zeros = [kernel for kernel in kernels if kernel.num_active < kernel.size]
    assert {kernel.execution for kernel in with_zeros} == {execution}
    started = [kernel.mask for kernel in kernels]
    optimizer = rigl_tf.RigL(
        keras.optimizers.SGD(0.02, momentum=0.9), end_step=100, update_frequency=2
    )
    model.compile(optimizer, "mse", run_eagerly=True)
    x, y = numbers((4, *shape)), numbers((4, *model.compute_output_shape((4, *shape))[1:]), seed=1)
    losses = [model.train_on_batch(x, y) for _ in range(steps)]
    kept = [kernel.mask for kernel in kernels]
    assert any((mask != old).any() for mask, old in zip(kept, started, strict=True))
    return np.array(losses), [kernel.numpy() for kernel in kernels], kept, model


def check_alike(make, shape):
    """Checks that masked and CSR training agree."""
    results = [trained(make, execution, shape) for execution in ("masked", "csr")]
    (losses, kernels, kept, _), (csr_losses, csr_kernels, csr_kept, model) = results
    np.testing.assert_allclose(csr_losses, losses, rtol=1e-5)
    for kernel, other, mask, other_mask in zip(kernels, csr_kernels, kept, csr_kept, strict=True):
        np.testing.assert_array_equal(other_mask, mask)
        np.testing.assert_allclose(other, kernel, atol=1e-4)
    return model


def test_one_dimension():
    def make():
        return sequential(
            (23, 3),
            layers.Conv1D(4, 2, padding="causal", dilation_rate=3, activation="tanh"),
            layers.Conv1D(5, 3, 2, padding="causal"),
            layers.Conv1D(4, 4, 3, padding="same"),
        )

    check_alike(make, (23, 3))


def test_two_dimensions_of_unknown_size():
    def make():
        return sequential(
            (None, None, 3),
            layers.Conv2D(4, 1, activation="tanh"),
            layers.Conv2D(5, 3, 2, padding="same", use_bias=False),
            layers.Conv2D(4, 3, padding="same", dilation_rate=(2, 1)),
            layers.Conv2D(5, 1, 2),
            layers.Conv2D(3, (2, 3)),
        )

    model = check_alike(make, (14, 15, 3))
    assert model.output_shape == (None, None, None, 3)
    assert model(numbers((1, 30, 16, 3))).shape == (1, 7, 2, 3)


def test_three_dimensions():
    def make():
        return sequential(
            (5, 6, 7, 2),
            layers.Conv3D(3, 3, padding="same", activation="tanh"),
            layers.Conv3D(4, (1, 2, 3), 2),
        )

    check_alike(make, (5, 6, 7, 2))


def test_used_twice_inside_time_distributed():
    def make():
        convolution = layers.TimeDistributed(layers.Conv2D(3, 3, padding="same"))
        inputs = keras.Input((2, 6, 5, 3))
        return keras.Model(inputs, convolution(keras.ops.tanh(convolution(inputs))))

    check_alike(make, (2, 6, 5, 3))


def test_mixed_bfloat16():
    def make():
        return sequential((8, 7, 3), layers.Conv2D(4, 3, padding="same"), layers.Conv2D(4, 1))

    (losses, *_), (csr_losses, *_, model) = (
        trained(make, execution, (8, 7, 3), policy="mixed_bfloat16")
        for execution in ("masked", "csr")
    )
    assert model(numbers((2, 8, 7, 3))).dtype == tf.bfloat16
    # Sums of bfloat16 products differ in how they are rounded.
    np.testing.assert_allclose(csr_losses, losses, rtol=2e-2)


class Doubled(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return 2 * super().convolution_op(inputs, kernel)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Conv2D(4, 3, groups=2), "grouped convolution"),
        (layers.Conv2D(4, 3, data_format="channels_first"), "channels_first"),
        (layers.Conv2DTranspose(4, 3), "Conv2DTranspose is neither a matrix product nor a conv"),
        (Doubled(4, 3), "Doubled is neither"),
    ],
)
def test_others_stay_masked(layer, reason):
    model = rigl_tf.sparsify(sequential((8, 8, 4), layer), 0.5, execution="csr")
    (kernel,) = rigl_tf.sparsity_summary(model).kernels
    assert kernel.execution == "masked"
    assert reason in kernel.reason


@pytest.mark.parametrize(
    ("channels", "sparsity", "execution"),
    [(32, 0.9, "csr"), (32, 0.7, "masked"), (16, 0.9, "masked")],
)
def test_auto_stores_what_pays(channels, sparsity, execution):
    model = sequential((8, 8, channels), layers.Conv2D(channels, 3))
    model = rigl_tf.sparsify(model, sparsity, execution="auto")
    (kernel,) = rigl_tf.sparsity_summary(model).kernels
    assert kernel.execution == (execution if engine.is_native() else "masked")
