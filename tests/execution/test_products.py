"""Which kernels can be CSR, and that their layers compute what they did."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import executions_of, half, numbers, sequential

import rigl_tf
from rigl_tf import masks

layers = keras.layers


# Products.

EQUATIONS = {
    # equation: (output shape, bias axes, shape of the inputs)
    "ab,bc->ac": (5, "c", (2, 6)),
    "abc,cd->abd": ((None, 5), "d", (2, 3, 4)),
    "...x,xy->...y": (5, "y", (2, 3, 2, 4)),
    "abc,cde->abde": ((None, 2, 3), "de", (2, 3, 4)),
    "abcd,cde->abe": ((None, 5), "e", (2, 2, 3, 4)),
    "abcd,cdef->abef": ((None, 3, 2), None, (2, 2, 3, 4)),
}
OTHER_EQUATIONS = {
    "abc,dc->abd": ((None, 5), (2, 3, 4)),  # a transposed kernel
    "abc,bcd->abd": ((3, 5), (2, 3, 4)),  # a kernel for each place
    "abc,cd->adb": ((5, None), (2, 3, 4)),  # outputs in another order
    "abc,bd->adc": ((5, 4), (2, 3, 4)),  # a sum over another dimension
}


def einsum(equation, table):
    output_shape, *bias, shape = table[equation]
    layer = layers.EinsumDense(equation, output_shape, bias_axes=bias[0] if bias else None)
    return layer, numbers(shape)


def both(make, x):
    """Outputs, and gradients of input, kernel and the rest, of a masked and of a CSR layer."""
    results = []
    for execution in ("masked", "csr"):
        keras.utils.set_random_seed(0)
        layer = rigl_tf.SparseWrapper(make(), 0.5, seed=1, execution=execution)
        x = tf.convert_to_tensor(x)
        layer(x)
        for weight in layer.trainable_weights[1:]:
            weight.assign(numbers(weight.shape, seed=2))  # a bias
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) * numbers(y.shape, seed=3))
        gradients = tape.gradient(loss, [x, *[each.value for each in layer.trainable_weights]])
        kernel = masks.kernel_of(layer.trainable_weights[0])
        if execution == "masked":
            gradients[1] = tf.boolean_mask(gradients[1], kernel.mask)
        results.append([y, *gradients])
    assert kernel.execution == "csr"
    return results


@pytest.mark.parametrize("equation", EQUATIONS)
def test_equations_that_are_products(equation):
    x = einsum(equation, EQUATIONS)[1]
    for want, got in zip(*both(lambda: einsum(equation, EQUATIONS)[0], x), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", OTHER_EQUATIONS)
def test_equations_that_are_none(equation):
    layer, x = einsum(equation, OTHER_EQUATIONS)
    wrapped = rigl_tf.SparseWrapper(layer, 0.5, execution="csr")
    wrapped(x)
    assert not wrapped.has_csr


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 6), (2, 1, 2, 6), (0, 6), (1, 6)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_of_any_rank_and_batch(shape, use_bias):
    def make():
        return layers.Dense(4, "tanh", use_bias=use_bias)

    for want, got in zip(*both(make, numbers(shape)), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16"])
def test_other_dtypes(dtype):
    x = tf.cast(numbers((3, 6)), dtype.removeprefix("mixed_"))
    for want, got in zip(*both(lambda: layers.Dense(4, dtype=dtype), x), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(
            np.float32(got), np.float32(want), rtol=2e-2, atol=2e-2 if "float16" in dtype else 0
        )


def test_unknown_batch_and_length():
    layer = rigl_tf.SparseWrapper(layers.Dense(4), 0.5, execution="csr")
    layer.build((None, None, 6))
    seen = []

    @tf.function(input_signature=[tf.TensorSpec((None, None, 6))])
    def call(x):
        y = layer(x)
        seen.append(y.shape.as_list())
        return y

    for shape in [(2, 3, 6), (1, 5, 6), (0, 2, 6)]:
        x = numbers(shape)
        np.testing.assert_allclose(call(x), x @ np.asarray(layer.layer.kernel), atol=1e-5)
    assert seen == [[None, None, 4]]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 23 / 24])
def test_from_all_connections_to_one(sparsity):
    layer = rigl_tf.SparseWrapper(layers.Dense(4), sparsity, execution="csr")
    x = numbers((3, 6))
    np.testing.assert_allclose(layer(x), x @ np.asarray(layer.layer.kernel), atol=1e-5)
    assert masks.kernels_of(layer).popitem()[1].num_active == round(24 * (1 - sparsity))


# Layers that hold such layers.


def attention():
    inputs = keras.Input((4, 6))
    return keras.Model(inputs, layers.MultiHeadAttention(2, 3)(inputs, inputs))


@pytest.mark.parametrize(
    ("make", "shape", "num"),
    [
        (attention, (4, 6), 4),
        (lambda: sequential((4, 6), layers.TimeDistributed(layers.Dense(3))), (4, 6), 1),
        (lambda: sequential((6,), sequential((6,), layers.Dense(3)), layers.Dense(2)), (6,), 2),
    ],
)
def test_layers_in_layers(make, shape, num):
    outputs = []
    for execution in ("masked", "csr"):
        keras.utils.set_random_seed(0)
        model = half(make(), execution=execution)
        outputs.append(model(numbers((3, *shape))))
    assert executions_of(model) == ["csr"] * num
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


# What stays masked, and why.


@keras.saving.register_keras_serializable(package="rigl_tf_tests")
def mean_of_squares(kernel):
    return keras.ops.mean(kernel**2)


class OwnCall(layers.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: layers.Dense(4, dtype="float64"), "float64"),
        (lambda: layers.Dense(4, kernel_constraint="max_norm"), "its constraint MaxNorm"),
        (
            lambda: layers.Dense(4, kernel_regularizer=mean_of_squares),
            "its regularizer mean_of_squares needs the whole kernel",
        ),
        (lambda: OwnCall(4), "OwnCall is neither a matrix product"),
        (lambda: layers.EinsumDense("ab,cb->ac", 4), "EinsumDense is neither a matrix product"),
    ],
)
def test_why_a_kernel_stays_masked(make, why):
    model = half(sequential((6,), make()), execution="csr")
    assert executions_of(model) == ["masked"]
    assert why in rigl_tf.sparsity_summary(model).kernels[0].reason


@pytest.mark.parametrize("regularizer", ["l1", "l2", keras.regularizers.L1L2(0.1, 0.2)])
def test_regularizers_of_each_weight(regularizer):
    losses = []
    for execution in ("masked", "csr"):
        keras.utils.set_random_seed(0)
        layer = layers.Dense(4, kernel_regularizer=regularizer, kernel_constraint="non_neg")
        model = half(sequential((6,), layer), execution=execution)
        losses.append(float(sum(model.losses)))
    assert executions_of(model) == ["csr"]
    assert losses[0] == pytest.approx(losses[1])


# Derivatives of derivatives.


def derivative(model, x, order):
    """The gradient, by the inputs, of the sum of the outputs; of its sum; and so on."""
    if order == 0:
        return model(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = derivative(model, x, order - 1)
    return tape.gradient(y, x)


def conv_net():
    conv = layers.Conv2D(4, 3, strides=2, padding="same", activation="tanh")
    last = layers.Conv2D(3, 2, dilation_rate=2, activation="sigmoid")
    return sequential((5, 5, 2), layers.Conv2D(3, 1, activation="tanh"), conv, last)


def dense_net():
    return sequential((6,), layers.Dense(8, "tanh"), layers.Dense(4, "tanh"))


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("make", [dense_net, conv_net])
def test_second_derivatives(make):
    check_derivatives(make, order=1)


@pytest.mark.usefixtures("native")  # TensorFlow's own operations need loops in loops for these
@pytest.mark.parametrize("make", [dense_net, conv_net])
@pytest.mark.parametrize("order", [2, 3])
def test_higher_derivatives(make, order):
    check_derivatives(make, order)


def check_derivatives(make, order):
    results = []
    for execution in ("masked", "csr"):
        keras.utils.set_random_seed(0)
        model = half(make(), execution=execution)
        x = tf.constant(numbers((3, *model.input_shape[1:])))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(derivative(model, x, order) ** 2)
        gradients = tape.gradient(loss, [each.value for each in model.trainable_variables])
        if execution == "masked":
            kernels = [masks.kernel_of(each) for each in model.trainable_variables]
            gradients = [
                each if kernel is None else tf.boolean_mask(each, kernel.mask)
                for each, kernel in zip(gradients, kernels, strict=True)
            ]
        results.append([loss, *(each for each in gradients if each is not None)])
    assert set(executions_of(model)) == {"csr"}
    for want, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("either")
def test_forward_mode():
    layer = rigl_tf.SparseWrapper(layers.Dense(4), 0.5, execution="csr")
    x, direction = tf.constant(numbers((3, 6))), tf.constant(numbers((3, 6), seed=1))
    layer.build(x.shape)
    with tf.autodiff.ForwardAccumulator(x, direction) as forward:
        y = layer(x)
    expected = direction.numpy() @ layer.layer.kernel.numpy()
    np.testing.assert_allclose(forward.jvp(y), expected, rtol=1e-4, atol=1e-6)


# What layers get.


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
def test_inputs_may_be_integers(dtype):
    x = np.random.default_rng(0).integers(2, size=(5, 6)).astype(dtype)
    layer = rigl_tf.SparseWrapper(layers.Dense(4), 0.5, execution="csr")
    with tf.GradientTape() as tape:
        y = layer(tf.constant(x))
    np.testing.assert_allclose(y, x.astype("float32") @ layer.layer.kernel.numpy(), rtol=1e-5)
    assert y.dtype == tf.float32
    assert np.any(tape.gradient(y, layer.layer.kernel_values))


def test_inputs_may_be_sparse_tensors():
    x = numbers((5, 6))
    layer = rigl_tf.SparseWrapper(layers.Dense(4), 0.5, execution="csr")
    np.testing.assert_array_equal(layer(tf.sparse.from_dense(x)), layer(tf.constant(x)))


def test_a_kernel_computes_as_a_tensor():
    layer = rigl_tf.SparseWrapper(layers.Dense(4), 0.5, execution="csr")
    layer.build((None, 6))
    kernel = layer.layer.kernel
    dense = kernel.numpy()
    for of in (
        lambda k: k * 2.0,
        lambda k: 1 - k,
        lambda k: -k,
        lambda k: k**2,
        lambda k: k[1:, 0],
        lambda k: dense.T @ k,
    ):
        np.testing.assert_allclose(of(kernel), of(dense), rtol=1e-6)
    np.testing.assert_array_equal(kernel.value, dense)
    assert kernel.ndim == 2
    assert kernel in {kernel: dense}


@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_a_kernel_is_assigned_as_a_variable(wrap):
    layer = rigl_tf.SparseWrapper(layers.Dense(4), 0.5, execution="csr")
    layer.build((None, 6))
    kernel = layer.layer.kernel
    before, other = kernel.numpy(), numbers((6, 4), seed=1)
    is_active = before != 0
    wrap(kernel.assign_add)(tf.constant(other))
    np.testing.assert_allclose(kernel.numpy(), (before + other) * is_active, atol=1e-6)
    wrap(kernel.assign_sub)(tf.constant(2.0))
    np.testing.assert_allclose(kernel.numpy(), (before + other - 2) * is_active, atol=1e-6)
    wrap(kernel.assign)(tf.constant(other))
    np.testing.assert_allclose(kernel.numpy(), other * is_active, atol=1e-6)
    with pytest.raises(ValueError, match=r"must have its shape \(6, 4\). Received: shape=\(4, 6"):
        kernel.assign(other.T)


@pytest.mark.parametrize("collect", [False, True])
@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_jacobians(wrap, collect):
    x = tf.constant(numbers((3, 6)))
    layer = rigl_tf.SparseWrapper(layers.Dense(4, "tanh"), 0.5, execution="csr")
    y = layer(x).numpy()
    layer.layer.kernel.collect.assign(collect)  # as in the step of a mask update

    @wrap
    def jacobian():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.batch_jacobian(y, x)

    expected = (1 - y**2)[:, np.newaxis] * layer.layer.kernel.numpy()
    np.testing.assert_allclose(jacobian(), expected.transpose(0, 2, 1), rtol=1e-4, atol=1e-6)


def test_lora_is_refused():
    layer = rigl_tf.SparseWrapper(layers.Dense(4), 0.5, execution="csr")
    layer.build((None, 6))
    with pytest.raises(ValueError, match="`enable_lora` needs a masked kernel"):
        layer.layer.enable_lora(2)


@keras.saving.register_keras_serializable(package="rigl_tf_tests")
class Cell(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.dense = layers.Dense(units, "tanh")

    def build(self, shape):
        self.dense.build((None, shape[-1] + self.units))

    def call(self, inputs, states):
        state = self.dense(tf.concat([inputs, states[0]], axis=-1))
        return state, [state]


def test_loops_cannot_be_differentiated():
    x = numbers((4, 3, 5))
    layer = rigl_tf.sparsify(
        keras.Sequential([keras.Input((3, 5)), layers.RNN(Cell(8))]), 0.5, execution="csr"
    )

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x))
        return tape.gradient(loss, layer.trainable_variables)

    @tf.function
    def gradients_in_a_loop():
        total = tf.zeros([])
        for _ in tf.range(3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer.layers[0].cell.dense(numbers((4, 13))))
            total += tf.norm(tape.gradient(loss, layer.trainable_variables)[0])
        return total

    assert gradients_in_a_loop() > 0
    with pytest.raises(ValueError, match="cannot be trained inside a loop"):
        gradients()
