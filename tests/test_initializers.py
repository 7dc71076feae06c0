"""Tests of `rigl_tf.initializers`: variances counted by hand, measured in kernels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_same_model, dense_weights, differ, executions_of, half, kernels_of

import rigl_tf
from rigl_tf import initializers
from rigl_tf.initializers import SparseVarianceScaling, initialize

layers = keras.layers

# Into the outputs: 3, 1 and 0 connections; out of the inputs: 2, 1, 1 and 0.
MASK = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], bool)


def limit_of(mask, **arguments):
    """The limit of the uniform distribution of each entry: 80 draws come near it."""
    initializer = SparseVarianceScaling(distribution="uniform", **arguments)
    values = [initializer(mask, (seed, 1)).numpy() for seed in range(80)]
    assert (np.min(values, axis=0)[mask] < 0).all()
    return np.max(np.abs(values), axis=0)


def assert_limits(got, variances):
    want = np.sqrt(3 * np.asarray(variances))
    assert (got <= want * (1 + 1e-6)).all()
    np.testing.assert_allclose(got, want, rtol=0.08)


@pytest.mark.parametrize(
    ("mode", "fans"),
    [
        ("fan_in", [[3, 1, 0], [3, 0, 0], [3, 0, 0], [0, 0, 0]]),
        ("fan_out", [[2, 2, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]),
        ("fan_avg", [[2.5, 1.5, 0], [2, 0, 0], [2, 0, 0], [0, 0, 0]]),
    ],
)
def test_connections_of_each_neuron(mode, fans):
    variances = np.divide(0.5, fans, out=np.zeros((4, 3)), where=np.array(fans) > 0)
    assert_limits(limit_of(MASK, scale=0.5, mode=mode), variances)


def test_normal():
    """Four thousand inputs, of which each output has 2,000, 500 and none."""
    mask = np.zeros((4000, 3), bool)
    mask[::2, 0] = mask[::8, 1] = True
    values = SparseVarianceScaling(2.0, "fan_in", "normal")(mask, (0, 0)).numpy()
    assert not values[~mask].any()
    for column, num in ((0, 2000), (1, 500)):
        active = values[mask[:, column], column]
        assert active.std() == pytest.approx(np.sqrt(2 / num), rel=0.1)
        assert abs(active.mean()) < 3 * np.sqrt(2 / num / num)
        within_one_sigma = (abs(active) < np.sqrt(2 / num)).mean()
        assert within_one_sigma == pytest.approx(0.683, abs=0.05)


def test_average_of_the_layer_and_all_connections():
    # 4 active connections of 12: 4/3 for each output, 1 for each input.
    assert_limits(limit_of(MASK, fans="layer", mode="fan_in"), MASK * 3 / 4)
    assert_limits(limit_of(MASK, fans="layer", mode="fan_out"), MASK * 1.0)
    assert_limits(limit_of(MASK, fans="layer"), MASK * 6 / 7)
    assert_limits(limit_of(MASK, fans="dense", mode="fan_in"), MASK / 4)
    assert_limits(limit_of(MASK, fans="dense"), MASK * 2 / 7)


def test_resnet_of_the_rigl_paper():
    """Its code: std sqrt(2 / 115.2) = .131762, limit sqrt(6 / (409.6 + 200)) = .099209."""
    mask = rigl_tf.selection.random_mask((3, 3, 64, 128), 73728 // 10, seed=(0, 0)).numpy()
    he = SparseVarianceScaling(2.0, mode="fan_out", distribution="normal", fans="layer")
    std = he(mask, (0, 0)).numpy()[mask].std()
    assert std == pytest.approx(0.131762, rel=0.03)  # of 7,372 numbers
    mask = rigl_tf.selection.random_mask((2048, 1000), 409_600, seed=(0, 0)).numpy()
    values = SparseVarianceScaling(fans="layer")(mask, (0, 0)).numpy()
    assert np.abs(values).max() == pytest.approx(0.099209, rel=1e-4)


def test_dense_layer_as_keras_has_it():
    """Without zeros there is no difference to `VarianceScaling`."""
    for mode in ("fan_in", "fan_out", "fan_avg"):
        keras_values = keras.initializers.VarianceScaling(1.0, mode, "uniform", seed=0)((60, 40))
        values = SparseVarianceScaling(mode=mode)(np.ones((60, 40), bool), (0, 0))
        got, want = (np.abs(v).max() for v in (values.numpy(), np.asarray(keras_values)))
        assert got == pytest.approx(want, rel=0.01)


def fans_of(model, mode):
    """`{kernel name: fan of each connection}`, as the initializer's values tell them."""

    class Fans(SparseVarianceScaling):
        def __call__(self, kernel_mask, seed, axes=None):
            active = tf.cast(kernel_mask, tf.float32)
            into, out = axes
            counted = tf.reduce_sum(active, into if mode == "fan_in" else out, keepdims=True)
            return counted * tf.ones_like(active)

    initialize(model, Fans())
    return {path: kernel.numpy() for path, kernel in rigl_tf.masks.sparse_kernels(model).items()}


def assert_fans(layer, shape, want):
    """What goes into a neuron and comes out of a unit, by a sum over the mask."""
    wrapper = rigl_tf.SparseWrapper(layer, 0.5)
    wrapper.build(shape)
    model_masks = rigl_tf.get_masks(wrapper)
    for mode in ("fan_in", "fan_out"):
        for path, fans in fans_of(wrapper, mode).items():
            mask = model_masks[path]
            name = path.rpartition("/")[2]
            expected = want[name][mode](mask.astype("float32")) * np.ones(mask.shape)
            np.testing.assert_array_equal(fans, np.where(mask, expected, 0), err_msg=path)


def total(*axes):
    return lambda mask: mask.sum(axes, keepdims=True)


def group_out(mask):
    """Six filters in three groups of two: the first two belong to the first group."""
    pairs = [mask[..., k : k + 2].sum((0, 1, 3), keepdims=True) for k in (0, 2, 4)]
    return np.repeat(np.concatenate(pairs, axis=-1), 2, axis=-1)


@pytest.mark.parametrize(
    ("layer", "shape", "into", "out"),
    [
        (lambda: layers.Dense(5), (None, 4), total(0), total(1)),
        (lambda: layers.Conv2D(5, (2, 3)), (None, 8, 8, 4), total(0, 1, 2), total(0, 1, 3)),
        (lambda: layers.Conv1D(5, 3), (None, 8, 4), total(0, 1), total(0, 2)),
        (lambda: layers.Conv2D(6, 3, groups=3), (None, 8, 8, 9), total(0, 1, 2), group_out),
        (
            lambda: layers.Conv2DTranspose(5, 3),
            (None, 8, 8, 4),
            total(0, 1, 3),
            total(0, 1, 2),
        ),
        (lambda: layers.EinsumDense("ab,bcd->acd", (2, 3)), (None, 4), total(0), total(1, 2)),
        (lambda: layers.EinsumDense("...cd,cde->...e", (5,)), (None, 2, 3), total(0, 1), total(2)),
        # The letter b is in inputs, kernel and outputs: a Dense layer for each b.
        (lambda: layers.EinsumDense("abc,bcd->abd", (3, 5)), (None, 3, 4), total(1), total(2)),
    ],
)
def test_axes_of_layers(layer, shape, into, out):
    assert_fans(layer(), shape, {"kernel": {"fan_in": into, "fan_out": out}})


def test_axes_of_depthwise_and_recurrent_kernels():
    separable = rigl_tf.sparsify(
        keras.Sequential([keras.Input((8, 8, 4)), layers.SeparableConv2D(5, 3)]),
        0.5,
        sparse_layers="separable_conv2d",
    )
    fans = fans_of(separable, "fan_in")
    mask = rigl_tf.get_masks(separable)["sequential/separable_conv2d/depthwise_kernel"]
    np.testing.assert_array_equal(
        fans["sequential/separable_conv2d/depthwise_kernel"], mask.sum((0, 1)) * mask
    )
    columns = {"fan_in": total(0), "fan_out": total(1)}
    assert_fans(layers.GRU(3), (None, 6, 4), {"kernel": columns, "recurrent_kernel": columns})


def test_attention():
    """`query` kernels are (in, heads, size), `output` kernels (heads, size, out)."""
    layer = layers.MultiHeadAttention(2, 3)
    wrapper = rigl_tf.SparseWrapper(layer, 0.5)
    wrapper(np.ones((1, 4, 6)), np.ones((1, 4, 6)))
    fans, model_masks = fans_of(wrapper, "fan_in"), rigl_tf.get_masks(wrapper)
    assert len(fans) == 4
    for path, mask in model_masks.items():
        axes = (0, 1) if "output" in path else (0,)
        np.testing.assert_array_equal(fans[path], mask * mask.sum(axes, keepdims=True))


def make_model():
    model = keras.Sequential([keras.Input((20,)), layers.Dense(30, "relu"), layers.Dense(30)])
    model.layers[0].bias.assign(np.full(30, 7.0))
    return model


def test_sparsify_draws_and_initialize_draws_the_same():
    initializer = SparseVarianceScaling()
    plain = rigl_tf.sparsify(make_model(), 0.8, seed=3)
    keras.utils.set_random_seed(0)
    model = rigl_tf.sparsify(make_model(), 0.8, initializer=initializer, seed=3)
    for before, now in zip(kernels_of(plain), kernels_of(model), strict=True):
        np.testing.assert_array_equal(before != 0, now != 0)
        assert not np.any((before == now) & (now != 0))
    np.testing.assert_array_equal(model.layers[0].layer.bias, np.full(30, 7.0))
    initialize(plain, initializer, seed=3)
    for one, other in zip(kernels_of(plain), kernels_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    initialize(plain, initializer, seed=4)
    assert not any(
        np.any((one == other) & (one != 0))
        for one, other in zip(kernels_of(plain), kernels_of(model), strict=True)
    )


def test_values_are_independent_of_masks_and_of_each_other():
    """Random masks of the same seed mark the largest draws: values must not be these again."""
    model = rigl_tf.sparsify(make_model(), 0.0)
    rigl_tf.set_masks(model, rigl_tf.pruning.random_masks(model, 0.8, seed=0))
    initialize(model, SparseVarianceScaling(), seed=0)
    for kernel in kernels_of(model):
        assert abs((kernel[kernel != 0] > 0).mean() - 0.5) < 0.2
    ones = {path: np.ones(k.shape) for path, k in rigl_tf.masks.sparse_kernels(model).items()}
    rigl_tf.set_masks(model, ones)
    initialize(model, SparseVarianceScaling(mode="fan_out"))
    one, other = kernels_of(model)
    assert abs(np.corrcoef(one.ravel(), other[:20].ravel())[0, 1]) < 0.15


def every_kind_of_csr():
    """All kinds of kernels that can be CSR; the last one's layer is inside another one."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.Conv2D(6, 3),
            layers.EinsumDense("abcd,de->abce", (4, 4, 5)),
            layers.Flatten(),
            layers.Dense(8),
            layers.Reshape((2, 4)),
            layers.EinsumDense("abc,cde->abde", (2, 2, 3)),  # two axes of outputs
            layers.Reshape((2, 6)),
            layers.TimeDistributed(layers.Dense(3)),
        ]
    )


@pytest.mark.parametrize("arguments", [{}, {"fans": "layer", "distribution": "normal"}])
def test_csr_kernels_get_the_same_values(arguments):
    scaling = SparseVarianceScaling(2.0, "fan_in", **arguments)
    masked, csr = (
        half(every_kind_of_csr(), execution=execution, initializer=scaling, seed=3)
        for execution in ("masked", "csr")
    )
    assert executions_of(csr) == ["csr"] * 5
    assert_same_model(csr, masked, tolerance=0)
    initialize(masked, scaling, seed=4)
    assert differ(dense_weights(csr), dense_weights(masked))
    initialize(csr, scaling, seed=4)
    assert_same_model(csr, masked, tolerance=0)


class Late(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(8), layers.Dense(4)

    def call(self, inputs):
        return self.two(self.one(inputs))


def unbuilt_sequential():
    return keras.Sequential([layers.Dense(8), layers.Dense(4)])


@pytest.mark.parametrize("make", [unbuilt_sequential, Late])
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_models_that_are_built_later(make, sparsity):
    initializer = SparseVarianceScaling()
    x = np.ones((4, 6), "float32")
    called = rigl_tf.sparsify(make(), sparsity, initializer=initializer, seed=1)
    called(x)
    first = kernels_of(called)
    initialize(called, initializer, seed=1)
    for kernel, want in zip(first, kernels_of(called), strict=True):
        np.testing.assert_array_equal(kernel, want)
        assert (kernel != 0).mean() == pytest.approx(1 - sparsity, abs=0.1)
    fitted = rigl_tf.sparsify(make(), sparsity, initializer=initializer, seed=1)
    fitted.compile(rigl_tf.StaticSparse(keras.optimizers.SGD(0.0)), "mse")
    fitted.fit(x, np.ones((4, 4)), verbose=0)
    for kernel, want in zip(kernels_of(fitted), first, strict=True):
        np.testing.assert_array_equal(kernel, want)


def numbered(kernel_mask, seed, axes):
    return tf.fill(kernel_mask.shape, seed[1] + 2.0)


@pytest.mark.filterwarnings("ignore:`build")  # Keras on the layer that is not used
def test_a_layer_that_is_built_after_training_began():
    class Unused(Late):
        def call(self, inputs):
            return self.one(inputs)

    model = rigl_tf.sparsify(Unused(), 0.5, initializer=numbered)
    model.compile(rigl_tf.StaticSparse(keras.optimizers.SGD(0.0)), "mse")
    model.fit(np.ones((4, 6)), np.ones((4, 8)), verbose=0)
    model.two(np.ones((4, 6)))
    one, two = kernels_of(model)
    np.testing.assert_array_equal(np.unique(one), [0, 2])
    np.testing.assert_array_equal(np.unique(two), [0, 3])
    assert (two == 0).sum() == 12


def test_config_and_mixed_precision():
    initializer = SparseVarianceScaling(2.0, "fan_in", "normal", "layer")
    config = keras.saving.serialize_keras_object(initializer)
    again = keras.saving.deserialize_keras_object(config)
    np.testing.assert_array_equal(again(MASK, (0, 0)), initializer(MASK, (0, 0)))
    keras.config.set_dtype_policy("bfloat16")
    model = rigl_tf.sparsify(make_model(), 0.8, initializer=initializer)
    assert {str(kernel.dtype) for kernel in kernels_of(model)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseVarianceScaling(0), "scale=0"),
        (lambda: SparseVarianceScaling(mode="fanin"), "mode='fanin'"),
        (lambda: SparseVarianceScaling(distribution="he"), "distribution='he'"),
        (lambda: SparseVarianceScaling(fans="all"), "fans='all'"),
        (lambda: initialize(make_model(), SparseVarianceScaling()), "model='sequential', without"),
        (lambda: initialize(make_model(), "he_normal"), "initializer='he_normal'"),
        (
            lambda: rigl_tf.sparsify(make_model(), 0.5, initializer=keras.initializers.HeNormal()),
            "initializer=<.*HeNormal",
        ),
        (
            lambda: initialize(
                rigl_tf.sparsify(make_model(), 0.5), initializers.SparseVarianceScaling(), seed=0.5
            ),
            "seed=0.5",
        ),
        (lambda: SparseVarianceScaling()(np.ones((3, 4), bool), 0), "seed=0"),
        (lambda: SparseVarianceScaling()(np.ones((3, 4), bool), (0, 0.5)), r"seed=\(0, 0.5\)"),
        (
            lambda: initialize(
                rigl_tf.sparsify(make_model(), 0.5), lambda mask, seed, axes: tf.zeros(3)
            ),
            r"shape=\(3,\), for",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        call()


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_draws_do_not_depend_on_how_many_are_drawn_together(distribution, monkeypatch):
    scaling = SparseVarianceScaling(distribution=distribution)
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    whole = scaling(mask, (3, 4))
    monkeypatch.setattr(initializers, "_DRAWS", 16)
    np.testing.assert_array_equal(scaling(mask, (3, 4)), whole)
