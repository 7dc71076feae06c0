"""Tests of `rigl_tf.flops.graph`: the uses of connections, by hand for every kind of layer."""

import fractions

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import covers_part

import rigl_tf
from rigl_tf import flops

layers, ops = keras.layers, keras.ops


def uses(model, inputs=None):
    """`(size, uses of each connection)` of each kernel."""
    return [(kernel.size, kernel.num_uses) for kernel in flops.count(model, inputs).kernels]


def sequential(shape, *of_layers, **kwargs):
    return keras.Sequential([keras.Input(shape, name="given", **kwargs), *of_layers])


# Recurrent layers: both kernels once for each timestep.

# 5 timesteps of 3 features; the layer, its kernels and the factor by which units count.
CELLS = {
    "SimpleRNN": (lambda **kwargs: layers.SimpleRNN(4, name="rnn", **kwargs), 4),
    "GRU": (lambda **kwargs: layers.GRU(4, name="rnn", **kwargs), 12),
    "LSTM": (lambda **kwargs: layers.LSTM(4, name="rnn", **kwargs), 16),
    "a cell": (lambda **kwargs: layers.RNN(layers.LSTMCell(4), name="rnn", **kwargs), 16),
    "unrolled": (lambda **kwargs: layers.GRU(4, unroll=True, name="rnn", **kwargs), 12),
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_recurrent_layer(kind):
    make, width = CELLS[kind]
    model = sequential((5, 3), layers.Masking(), make(return_sequences=True))
    assert sorted(uses(model)) == sorted([(3 * width, 5), (4 * width, 5)])


def test_both_directions():
    model = sequential((5, 3), layers.Bidirectional(layers.LSTM(4)))
    assert uses(model) == [(3 * 16, 5), (4 * 16, 5)] * 2
    assert flops.count(model).flops == 2 * 2 * 5 * (3 * 16 + 4 * 16)


def test_cells_on_top_of_each_other():
    model = sequential((5, 3), layers.RNN([layers.GRUCell(4), layers.SimpleRNNCell(2)]))
    assert uses(model) == [(3 * 12, 5), (4 * 12, 5), (4 * 2, 5), (2 * 2, 5)]


def test_a_batch_of_one_size():
    model = keras.Sequential([keras.Input(batch_shape=(6, 5, 3)), layers.LSTM(4, stateful=True)])
    assert uses(model) == [(48, 5), (64, 5)]


def test_a_recurrent_convolution():
    # 5 timesteps, 8 - 3 + 1 positions, where the recurrent kernel is padded.
    model = sequential((5, 8, 3), layers.ConvLSTM1D(4, 3))
    assert uses(model) == [(3 * 3 * 16, 5 * 6), (3 * 4 * 16, 5 * 6)]


def test_the_kernel_of_a_gpu():
    """On a GPU a recurrent layer is one operation. It is only traced here, not run."""

    class OnGpu(layers.Layer):
        def build(self, input_shape):
            self.cell = layers.LSTMCell(4)
            self.cell.build(input_shape)

        def call(self, inputs):
            weights = [self.cell.kernel, self.cell.recurrent_kernel, ops.tile(self.cell.bias, [2])]
            outputs = tf.raw_ops.CudnnRNNV3(
                input=tf.transpose(inputs, (1, 0, 2)),
                input_h=tf.zeros((1, 1, 4)),
                input_c=tf.zeros((1, 1, 4)),
                params=tf.concat([tf.reshape(weight, [-1]) for weight in weights], 0),
                sequence_lengths=[5],
            )
            return outputs.output[-1]

        def compute_output_spec(self, inputs):
            return keras.KerasTensor((1, 4))

    model = keras.Sequential([keras.Input(batch_shape=(1, 5, 3)), OnGpu()])
    assert uses(model) == [(48, 5), (64, 5)]


@pytest.mark.parametrize("layer", [layers.LSTM(2), layers.Conv1D(2, 3, padding="same")])
def test_at_each_time(layer):
    layer = type(layer).from_config(layer.get_config())
    at_each_time = sequential((4, 8, 3), layers.TimeDistributed(layer))
    alone = sequential((8, 3), type(layer).from_config(layer.get_config()))
    assert flops.count(alone).flops > 0
    assert flops.count(at_each_time).flops == 4 * flops.count(alone).flops


# Attention, Einstein sums, separable and dilated convolutions.


@pytest.mark.parametrize(
    ("equation", "output_shape", "size", "num_uses"),
    [
        ("abc,cd->abd", (None, 3), 6 * 3, 5),
        ("...x,xy->...y", 3, 6 * 3, 5),
        ("abc,bcd->abd", (5, 3), 5 * 6 * 3, 1),
        ("abc,cde->abde", (None, 2, 3), 6 * 2 * 3, 5),
        ("abc,cde->adeb", (2, 3, None), 6 * 2 * 3, 5),
    ],
)
def test_einsum_dense(equation, output_shape, size, num_uses):
    model = sequential((5, 6), layers.EinsumDense(equation, output_shape, bias_axes=None))
    assert uses(model) == [(size, num_uses)]


def test_attention():
    query, value = keras.Input((5, 6)), keras.Input((7, 8))
    outputs = layers.MultiHeadAttention(2, 3, value_dim=4)(query, value)
    # The scores and their sums have no kernel.
    assert uses(keras.Model([query, value], outputs)) == [
        *((6 * 2 * 3, 5), (8 * 2 * 3, 7), (8 * 2 * 4, 7)),
        (2 * 4 * 6, 5),
    ]


def test_attention_of_groups():
    inputs = keras.Input((5, 6))
    layer = layers.GroupQueryAttention(head_dim=3, num_query_heads=4, num_key_value_heads=2)
    sizes = [6 * 4 * 3, 6 * 2 * 3, 6 * 2 * 3, 4 * 3 * 6]
    model = keras.Model(inputs, layer(inputs, inputs))
    assert uses(model) == [(size, 5) for size in sizes]


def test_separable_convolutions():
    # 7 - 3 + 1 by 6 - 3 + 1 positions: 3 x 3 for each of 2 x 4 channels, then 8 to 5.
    model = sequential((7, 6, 2), layers.SeparableConv2D(5, 3, depth_multiplier=4, name="conv"))
    assert uses(model) == [(3 * 3 * 2 * 4, 5 * 4), (8 * 5, 5 * 4)]
    model = sequential((9, 2), layers.SeparableConv1D(5, 3, strides=2))
    assert uses(model) == [(3 * 2, 4), (2 * 5, 4)]


# An odd number of positions: TensorFlow pads it, and computes more than it keeps.
@pytest.mark.parametrize(
    ("shape", "layer", "num_uses"),
    [
        ((11, 3), layers.Conv1D(2, 3, dilation_rate=2), 7),
        ((9, 8, 3), layers.Conv2D(2, 3, dilation_rate=2), 5 * 4),
        ((9, 8, 3), layers.Conv2D(2, 3, dilation_rate=2, padding="same"), 9 * 8),
        ((7, 7, 7, 3), layers.Conv3D(2, 3, dilation_rate=2), 3 * 3 * 3),
        ((9, 8, 3), layers.DepthwiseConv2D(3, dilation_rate=2), 5 * 4),
    ],
)
def test_a_dilated_convolution(shape, layer, num_uses):
    model = sequential(shape, type(layer).from_config(layer.get_config()))
    assert [number for _, number in uses(model)] == [num_uses]


def test_channels_first():
    """As on a GPU. It is only traced here, not run."""

    class OnGpu(layers.Layer):
        def build(self, input_shape):
            self.kernel = self.add_weight(shape=(3, 3, 2, 5), name="kernel")

        def call(self, inputs):
            kernel = self.kernel.value
            return tf.nn.conv2d(inputs, kernel, 1, "VALID", data_format="NCHW")

        def compute_output_shape(self, input_shape):
            return (None, 5, 6, 4)

    assert uses(sequential((2, 8, 6), OnGpu())) == [(90, 6 * 4)]


# Embeddings.


def test_an_embedding_is_looked_up():
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(2)(layers.Embedding(9, 3)(inputs)))
    cost = flops.count(model)
    assert cost.flops == 2 * 5 * 3 * 2
    assert cost.num_other_weights == 9 * 3 + 2
    sparse = rigl_tf.sparsify(model, 0.5, sparse_layers=["embedding"])
    masks = rigl_tf.get_masks(sparse)
    for count, mask in zip((10, 4), masks.values(), strict=True):
        mask[...] = (np.arange(mask.size) < count).reshape(mask.shape)
    rigl_tf.set_masks(sparse, masks)
    cost = flops.count(sparse)
    assert [kernel.num_uses for kernel in cost.kernels] == [0, 5]
    assert (cost.flops, cost.flops_ratio) == (2 * 5 * 4, 4 / 6)
    # Bit masks of 27 and 6 bits.
    assert cost.num_bytes == 4 * (10 + 4 + 2) + 4 + 1


def test_an_embedding_that_is_an_output_layer_too():
    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = layers.Embedding(9, 3)

        def call(self, inputs):
            hidden = ops.tanh(self.embedding(inputs))
            return ops.matmul(hidden, ops.transpose(self.embedding.embeddings))

    model = Tied()
    tokens = np.ones((2, 5), "int32")
    model(tokens)
    assert flops.count(model, tokens).flops == 5 * 2 * 9 * 3


# Layers of a user.


class Own(layers.Layer):
    """A 6 x 7 kernel that `product(inputs, self)` makes use of."""

    def __init__(self, product):
        super().__init__(name="own")
        self.product = product

    def get_config(self):
        return {"product": self.product}

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(6, 7), name="kernel")
        self.scale = self.add_weight(shape=(7,), name="scale")
        self.experts = self.add_weight(shape=(2, 6, 7), name="experts")

    def call(self, inputs):
        return self.product(inputs, self)


def standardized(kernel):
    mean, variance = tf.nn.moments(tf.convert_to_tensor(kernel), [0], keepdims=True)
    return (kernel - mean) / tf.sqrt(variance + 1e-3)


@tf.custom_gradient
def straight_through(inputs, kernel):
    return inputs @ tf.sign(kernel), lambda upstream: (upstream, upstream)


PRODUCTS = {
    "matmul": (lambda x, own: x @ own.kernel, 1),
    "einsum": (lambda x, own: tf.einsum("bi,ij->bj", x, own.kernel), 1),
    "einsum with dots": (lambda x, own: tf.einsum("...i,ij->...j", x, own.kernel), 1),
    "both transposed": (
        lambda x, own: tf.transpose(tf.matmul(own.kernel, x, transpose_a=True, transpose_b=True)),
        1,
    ),
    "a batch of matrices": (
        lambda x, own: tf.matmul(x[:, None], own.kernel.value[None])[:, 0],
        1,
    ),
    "one of three": (
        lambda x, own: tf.switch_case(
            tf.cast(x[0, 0], tf.int32),
            [
                lambda: x @ own.kernel,
                lambda: x @ own.kernel - x @ own.kernel,
                lambda: tf.zeros_like(x @ own.kernel),
            ],
        ),
        2,
    ),
    "by hand": (lambda x, own: ops.sum(x[:, :, None] * own.kernel, axis=1), 1),
    "transposed": (
        lambda x, own: tf.transpose(tf.matmul(tf.transpose(own.kernel), x, transpose_b=True)),
        1,
    ),
    "twice": (lambda x, own: x @ own.kernel + (2 * x) @ own.kernel, 2),
    "one half twice": (
        lambda x, own: tf.concat(
            [x @ own.kernel[:, :3], x @ own.kernel[:, 3:], x @ own.kernel[:, 3:]], 1
        ),
        fractions.Fraction(3 + 4 + 4, 7),
    ),
    "normalised": (lambda x, own: x @ (own.kernel * own.scale / ops.norm(own.kernel, axis=0)), 1),
    "standardised": (lambda x, own: x @ standardized(own.kernel), 1),
    "a gradient of its own": (
        lambda x, own: straight_through(x, tf.convert_to_tensor(own.kernel)),
        1,
    ),
    "compiled": (lambda x, own: tf.function(tf.matmul, jit_compile=True)(x, own.kernel.value), 1),
    "one of two": (
        lambda x, own: ops.cond(
            ops.sum(x) > 0, lambda: x @ own.kernel, lambda: x @ own.kernel + x @ own.kernel
        ),
        2,
    ),
    "a loop": (
        lambda x, own: ops.fori_loop(0, 3, lambda _, value: value + x @ own.kernel, x @ own.kernel),
        4,
    ),
    "a limited loop": (
        lambda x, own: tf.while_loop(
            lambda _: True,
            lambda value: value + x @ own.kernel,
            [x @ own.kernel],
            maximum_iterations=4,
        )[0],
        5,
    ),
    "a state that starts as a constant": (
        lambda x, own: tf.while_loop(
            lambda _, state: True,
            lambda i, state: (i + 1, state * own.kernel[0] + x @ own.kernel),
            (0, tf.zeros_like(tf.tile(x[:, :1], (1, 7)))),
            maximum_iterations=3,
        )[1],
        3 + 3 * fractions.Fraction(7, 42),
    ),
    "a constant, to which another weight is added": (
        lambda x, own: (tf.ones((1, 6)) @ own.kernel + own.experts[0, :1]) * (x @ own.kernel),
        2,
    ),
    "a scan": (
        lambda x, own: ops.scan(
            lambda carry, each: (carry + each @ own.kernel, carry),
            ops.matmul(x, own.kernel),
            ops.stack([x, x, x]),
        )[0],
        4,
    ),
    "a loop in a loop": (
        lambda x, own: ops.fori_loop(
            0,
            3,
            lambda _, value: ops.fori_loop(0, 2, lambda _, value: value + x @ own.kernel, value),
            x @ own.kernel,
        ),
        1 + 3 * 2,
    ),
    "a map": (
        lambda x, own: ops.vectorized_map(
            lambda row: tf.linalg.matvec(own.kernel, row, transpose_a=True), x
        ),
        1,
    ),
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_layer_of_a_user(kind):
    product, num_uses = PRODUCTS[kind]
    assert uses(sequential((6,), Own(product))) == [(42, num_uses)]


# What is added, compared or not used at all is no kernel, unless it is sparse.
@pytest.mark.parametrize(
    "product",
    [lambda x, own: x, lambda x, own: x + own.kernel[:, 0], lambda x, own: x * own.scale[:6]],
)
def test_no_product(product):
    model = sequential((6,), Own(product))
    cost = flops.count(model)
    assert (cost.flops, cost.kernels, cost.num_other_weights) == (0, (), 42 + 7 + 84)
    sparse = flops.count(rigl_tf.sparsify(sequential((6,), Own(product)), 0.5))
    assert [kernel.num_uses for kernel in sparse.kernels] == [0, 0]
    assert sparse.flops_ratio == 1


def unlimited(x, own):
    return tf.while_loop(
        lambda value: tf.reduce_sum(value) < 1,
        lambda value: value + x @ own.kernel,
        [x @ own.kernel],
    )[0]


def queue(x, own):
    """Rows come in and go out: a third goes each time, so that the sum never is quite the limit."""
    rows = tf.while_loop(
        lambda step, rows: step < 5,
        lambda step, rows: (step + 1, tf.concat([rows[2:], own.kernel[:2]], axis=0)),
        [0, tf.zeros((6, 7))],
    )[1]
    return x @ rows


def relay(x, own):
    """A kernel that comes to the last of nine variables in the ninth iteration."""
    first = own.kernel * 1
    values = tf.while_loop(
        lambda step, *values: step < 20,
        lambda step, *values: (step + 1, first, *values[:-1]),
        [0, *[tf.zeros((6, 7))] * 9],
    )
    return x @ values[-1]


def test_a_loop_that_hands_a_kernel_on():
    assert uses(sequential((6,), Own(relay))) == [(42, 1)]


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        (queue, "copied to more and more variables"),
        (lambda x, own: x @ tf.gather(own.experts.value, tf.argmax(x[0]))[0:6], "GatherV2"),
        (lambda x, own: x @ (own.kernel @ tf.transpose(own.kernel)), "another weight"),
        (lambda x, own: x / ops.sum(own.kernel), "RealDiv"),
        (unlimited, "a loop of unknown length"),
    ],
)
def test_what_cannot_be_counted(product, reason):
    model = sequential((6,), Own(product))
    with pytest.raises(ValueError, match=f"FLOPs can be counted.*own/.*{reason}") as error:
        flops.count(model)
    assert "\n" not in str(error.value)


# Whole networks, and sparse ones.


@pytest.mark.parametrize(
    "make",
    [
        lambda: sequential((5, 3), layers.Bidirectional(layers.LSTM(4)), layers.Dense(2)),
        lambda: sequential((7, 6, 2), layers.SeparableConv2D(5, 3)),
        lambda: sequential((6,), Own(lambda x, own: x @ own.kernel)),
    ],
)
@covers_part
def test_a_sparse_model_is_used_as_the_dense_one(make):
    sparse = rigl_tf.sparsify(make(), 0.5)
    masks = rigl_tf.get_masks(sparse)
    cost = flops.count(sparse)
    assert cost.dense_flops == flops.count(make()).dense_flops
    num_uses = {kernel.path: kernel.num_uses for kernel in cost.kernels}
    of_others = sum(kernel.flops for kernel in cost.kernels if kernel.path not in masks)
    of_sparse = sum(2 * mask.sum() * num_uses[path] for path, mask in masks.items())
    assert cost.flops == of_sparse + of_others < cost.dense_flops


@pytest.mark.parametrize(
    ("make", "multiplications"),
    [
        (keras.applications.MobileNetV2, 300e6),
        (keras.applications.EfficientNetB0, 390e6),
        pytest.param(keras.applications.ResNet50, 3.86e9, marks=pytest.mark.slow),
        pytest.param(keras.applications.ConvNeXtTiny, 4.5e9, marks=pytest.mark.slow),
        pytest.param(keras.applications.DenseNet121, 2.87e9, marks=pytest.mark.slow),
        pytest.param(keras.applications.NASNetMobile, 564e6, marks=pytest.mark.slow),
    ],
)
def test_a_network_costs_what_its_paper_says(make, multiplications):
    cost = flops.count(make(weights=None, input_shape=(224, 224, 3)))
    assert cost.flops / 2 == pytest.approx(multiplications, rel=0.03)
