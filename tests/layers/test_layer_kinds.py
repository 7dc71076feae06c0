"""Every kind of layer that has kernels: wrapped, trained, saved and stripped."""

import keras
import numpy as np
import pytest
from helpers import ends_early, numbers

import rigl_tf

layers = keras.layers


@keras.saving.register_keras_serializable(package="tests")
class Bilinear(layers.Layer):
    """A user's layer that owns its weights and takes two inputs."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, left_shape, right_shape):
        self.left = self.add_weight(shape=(left_shape[-1], self.units), name="left")
        self.right = self.add_weight(shape=(right_shape[-1], self.units), name="right")
        self.shift = self.add_weight(shape=(self.units,), name="shift")

    def call(self, left, right):
        return (left @ self.left) * (right @ self.right) + self.shift

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """A user's layer made of layers, without a `build` of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.attention = layers.MultiHeadAttention(2, units, name="attention")
        self.norms = [layers.LayerNormalization(name=name) for name in ("norm1", "norm2")]
        self.dense = {
            "up": layers.Dense(3 * units, name="up"),
            "down": layers.Dense(units, name="down"),
        }

    def call(self, inputs, training=None):
        x = inputs + self.attention(self.norms[0](inputs), inputs, training=training)
        return x + self.dense["down"](keras.ops.relu(self.dense["up"](self.norms[1](x))))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def once(inputs):
    return (inputs,), {}


def twice(inputs):
    return (inputs, inputs), {}


SEQUENCE, IMAGE, VECTOR = (5, 4), (6, 6, 3), (6,)
# The layer; the shape of a sample; how it is called; the shapes of its kernels, by hand.
KINDS = {
    "SimpleRNN": (lambda: layers.SimpleRNN(3), SEQUENCE, once, [(4, 3), (3, 3)]),
    "GRU": (lambda: layers.GRU(3), SEQUENCE, once, [(4, 9), (3, 9)]),
    "LSTM": (lambda: layers.LSTM(3, return_sequences=True), SEQUENCE, once, [(4, 12), (3, 12)]),
    "RNN": (
        lambda: layers.RNN([layers.GRUCell(3), layers.SimpleRNNCell(2)]),
        SEQUENCE,
        once,
        [(4, 9), (3, 9), (3, 2), (2, 2)],
    ),
    "Bidirectional": (
        lambda: layers.Bidirectional(layers.LSTM(3)),
        SEQUENCE,
        once,
        [(4, 12), (3, 12), (4, 12), (3, 12)],
    ),
    "ConvLSTM1D": (lambda: layers.ConvLSTM1D(2, 2), (3, 5, 4), once, [(2, 4, 8), (2, 2, 8)]),
    "TimeDistributed": (lambda: layers.TimeDistributed(layers.Dense(3)), SEQUENCE, once, [(4, 3)]),
    "MultiHeadAttention": (
        lambda: layers.MultiHeadAttention(2, 3),
        SEQUENCE,
        twice,
        [(4, 2, 3), (4, 2, 3), (4, 2, 3), (2, 3, 4)],
    ),
    "GroupQueryAttention": (
        lambda: layers.GroupQueryAttention(3, 4, 2),
        SEQUENCE,
        twice,
        [(4, 4, 3), (4, 2, 3), (4, 2, 3), (4, 3, 4)],
    ),
    "EinsumDense": (
        lambda: layers.EinsumDense("abc,cde->abde", (5, 3, 2), bias_axes="de"),
        SEQUENCE,
        once,
        [(4, 3, 2)],
    ),
    "SeparableConv1D": (lambda: layers.SeparableConv1D(5, 2), SEQUENCE, once, [(1, 4, 5)]),
    "SeparableConv2D": (lambda: layers.SeparableConv2D(5, 2), IMAGE, once, [(1, 1, 3, 5)]),
    "SpectralNormalization": (
        lambda: layers.SpectralNormalization(layers.Dense(4)),
        VECTOR,
        once,
        [(6, 4)],
    ),
    "Sequential": (
        lambda: keras.Sequential([layers.Dense(4), layers.ReLU(), layers.Dense(2)]),
        VECTOR,
        once,
        [(6, 4), (4, 2)],
    ),
    "a layer with weights": (lambda: Bilinear(3), VECTOR, twice, [(6, 3), (6, 3)]),
    "a layer of layers": (
        lambda: Block(4),
        SEQUENCE,
        once,
        [(4, 2, 4), (4, 2, 4), (4, 2, 4), (2, 4, 4), (4, 12), (12, 4)],
    ),
}


def check_masks(model, sparsity):
    """Exact counts, and zeros where the masks say so."""
    kernels = {weight.path: weight.numpy() for weight in model.weights}
    masks = rigl_tf.get_masks(model)
    for path, mask in masks.items():
        assert (~mask).sum() == int(sparsity * mask.size)
        np.testing.assert_array_equal(kernels[path], np.where(mask, kernels[path], 0))
    return masks


GROUPS = [
    ["SimpleRNN", "GRU", "LSTM", "RNN", "Bidirectional", "ConvLSTM1D", "TimeDistributed"],
    ["MultiHeadAttention", "GroupQueryAttention", "EinsumDense", "a layer of layers"],
    [
        "SeparableConv1D",
        "SeparableConv2D",
        "SpectralNormalization",
        "Sequential",
        "a layer with weights",
    ],
]


def model_of(kinds):
    """A model with an input and a branch for each kind of layer."""
    inputs, branches = [], []
    for kind in kinds:
        make, shape, how, _ = KINDS[kind]
        inputs.append(keras.Input(shape))
        args, kwargs = how(inputs[-1])
        branches.append(layers.Flatten()(make()(*args, **kwargs)))
    x = layers.Concatenate()(branches)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


@pytest.mark.parametrize("kinds", GROUPS, ids=["recurrent", "attention", "others"])
def test_sparsify_train_save_load_strip(kinds, tmp_path):
    dense = model_of(kinds)
    # Every kernel has the same sparsity.
    before = {weight.path: weight.numpy() for weight in dense.weights}
    sparse = rigl_tf.sparsify(dense, 0.5, dict.fromkeys, dense_layers="head")
    assert [weight.path for weight in sparse.trainable_weights] == [
        weight.path for weight in dense.trainable_weights
    ]
    masks = check_masks(sparse, 0.5)
    assert [mask.shape for mask in masks.values()] == [
        shape for kind in kinds for shape in KINDS[kind][3]
    ]
    values = {weight.path: weight.numpy() for weight in sparse.weights}
    for path, old in before.items():
        mask = masks.get(path, True)
        np.testing.assert_array_equal(values[path], np.where(mask, old, 0), err_msg=path)

    x = [numbers((8, *KINDS[kind][1])) for kind in kinds]
    optimizer = rigl_tf.SET("adam", end_step=4, update_frequency=2, drop_fraction=0.9)
    sparse.compile(optimizer, "mse", run_eagerly=True)
    sparse.fit(x, numbers((8, 2)), batch_size=2, verbose=0)
    trained = check_masks(sparse, 0.5)
    assert all((trained[path] != mask).any() for path, mask in masks.items() if mask.size > 12)
    want = sparse(x)
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), want)
    for one, other in zip(trained.values(), check_masks(loaded, 0.5).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    plain = rigl_tf.strip(loaded)
    assert not rigl_tf.get_masks(plain)
    np.testing.assert_array_equal(plain(x), want)


ONE_INPUT = [kind for kind in KINDS if KINDS[kind][2] is once and kind != "Sequential"]


@pytest.mark.parametrize("kind", ONE_INPUT)
def test_a_layer_that_is_built_late(kind):
    make, shape, _, shapes = KINDS[kind]
    dense = keras.Sequential([make(), layers.Flatten(), layers.Dense(2, name="head")])
    sparse = rigl_tf.sparsify(dense, 0.5, dict.fromkeys, dense_layers="head")
    assert rigl_tf.get_masks(sparse) == {}
    sparse.build((None, *shape))
    assert [mask.shape for mask in check_masks(sparse, 0.5).values()] == shapes


@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: layers.Embedding(10, 4), (5,)), (lambda: layers.DepthwiseConv2D(4), (6, 6, 3))],
)
def test_embeddings_and_depthwise_kernels_if_asked_for(make, shape):
    for built in (False, True):
        layer = make()
        dense = keras.Sequential([layer, layers.Flatten(), layers.Dense(3, name="head")])
        if built:
            dense.build((None, *shape))
        sparse = rigl_tf.sparsify(dense, 0.5, dict.fromkeys, sparse_layers=layer.name)
        sparse.build((None, *shape))
        assert len(check_masks(sparse, 0.5)) == 2
    x = np.random.default_rng(0).integers(10, size=(8, *shape))
    optimizer = rigl_tf.RigL("adam", end_step=4, update_frequency=2, drop_fraction=0.9)
    sparse.compile(optimizer, "mse", run_eagerly=True)
    before = rigl_tf.get_masks(sparse)
    sparse.fit(x, numbers((8, 3)), batch_size=2, verbose=0)
    after = check_masks(sparse, 0.5)
    assert all((after[path] != mask).any() for path, mask in before.items())


def test_a_list_of_sparsities_by_hand():
    layer = rigl_tf.SparseWrapper(layers.GRU(4), [None, 0.75, None])
    layer.build((None, 5, 4))
    ((name, mask),) = layer.kernel_masks.items()
    assert name == "gru_cell/recurrent_kernel"
    assert mask.numpy().sum() == 12  # a quarter of 4 x 12
    copy = rigl_tf.SparseWrapper.from_config(layer.get_config())
    copy.build((None, 5, 4))
    np.testing.assert_array_equal(copy.kernel_mask, mask)


@pytest.mark.parametrize("bad", [[0.5, 1.0], (None, -0.1), [0.5, "x"], [True, None]])
def test_a_list_with_a_bad_sparsity(bad):
    with pytest.raises(ValueError, match="Received: sparsity="):
        rigl_tf.SparseWrapper(layers.Dense(4), bad)


def test_a_list_of_the_wrong_length():
    with pytest.raises(ValueError, match=r"an entry for each weight of the layer, .*bias"):
        rigl_tf.SparseWrapper(layers.Dense(4), [0.5]).build((None, 3))


def test_attributes_are_the_layers():
    layer = rigl_tf.SparseWrapper(layers.LSTM(3, stateful=True), 0.5)
    assert (layer.units, layer.stateful, layer.return_sequences) == (3, True, False)
    assert not hasattr(layer, "no_such_attribute")
    assert not hasattr(layer, "kernel_mask")
    layer(np.ones((2, 5, 4)))
    layer.reset_state()
    # A cell does what a recurrent layer asks of it.
    cell = rigl_tf.SparseWrapper(layers.GRUCell(3), 0.5)
    assert layers.RNN(cell, return_sequences=True)(np.ones((2, 5, 4))).shape == (2, 5, 3)
    assert len(check_masks(cell, 0.5)) == 2


def test_masks_of_timesteps_and_arguments_reach_the_layer():
    tokens = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    embedding = layers.Embedding(10, 4, mask_zero=True)
    attention, recurrent = layers.MultiHeadAttention, layers.GRU
    cases = [
        (lambda: attention(2, 3), lambda layer, x: layer(x, x, use_causal_mask=True)),
        (lambda: attention(2, 3, dropout=0.9), lambda layer, x: layer(x, value=x, training=False)),
        (lambda: recurrent(3, return_sequences=True), lambda layer, x: layer(x)),
        (lambda: recurrent(3), lambda layer, x: layer(x, initial_state=x[:, 0, :3])),
        (lambda: recurrent(3), lambda layer, x: layer(x, mask=np.ones((2, 5), bool))),
        (lambda: layers.Bidirectional(recurrent(3)), lambda layer, x: layer(x)),
    ]
    for make, call in cases:
        plain, wrapper = make(), rigl_tf.SparseWrapper(make(), 0.0)
        # New inputs each time: attention layers take the mask off theirs.
        want = call(plain, embedding(tokens))
        call(wrapper, embedding(tokens))
        wrapper.layer.set_weights(plain.get_weights())
        got = call(wrapper, embedding(tokens))
        np.testing.assert_array_equal(got, want)
        masks = [getattr(each, "_keras_mask", None) for each in (got, want)]
        assert [mask is None for mask in masks] in ([True, True], [False, False])
        if masks[1] is not None:
            np.testing.assert_array_equal(*masks)


def test_training_is_known_inside():
    class Noisy(layers.Dense):
        def call(self, inputs, training=None):
            return super().call(inputs) * (0.0 if training else 1.0)

    layer = rigl_tf.SparseWrapper(Noisy(3), 0.5)
    x = np.ones((2, 4))
    assert np.any(layer(x))
    assert not np.any(layer(x, training=True))
    model = keras.Sequential([layer])
    assert not np.any(model(x, training=True))
    assert np.any(model.predict(x, verbose=0))


class OfCell(keras.Model):
    """A model that does itself what `keras.layers.RNN` does with a cell."""

    def __init__(self, cell, **kwargs):
        super().__init__(**kwargs)
        self.cell = cell
        self.head = layers.Dense(2, name="head")

    def call(self, inputs):
        states = self.cell.get_initial_state(batch_size=8)
        for step in range(inputs.shape[1]):
            outputs, states = self.cell(inputs[:, step], states)
        return self.head(outputs)

    def get_config(self):
        return {"cell": keras.saving.serialize_keras_object(self.cell)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["cell"]))


CELLS = {
    "SimpleRNNCell": (lambda: layers.SimpleRNNCell(3), [(4, 3), (3, 3)]),
    "GRUCell": (lambda: layers.GRUCell(3), [(4, 9), (3, 9)]),
    "LSTMCell": (lambda: layers.LSTMCell(3), [(4, 12), (3, 12)]),
    "StackedRNNCells": (
        lambda: layers.StackedRNNCells([layers.GRUCell(3), layers.LSTMCell(2)]),
        [(4, 9), (3, 9), (3, 8), (2, 8)],
    ),
}


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize("kind", CELLS)
@ends_early
def test_a_cell_without_a_recurrent_layer(kind, is_built):
    make, shapes = CELLS[kind]
    dense, x = OfCell(make()), numbers((8, 2, 4))
    if is_built:
        dense(x)
    sparse = rigl_tf.sparsify(dense, 0.5, dict.fromkeys, dense_layers="head")
    sparse(x)
    masks = check_masks(sparse, 0.5)
    assert [mask.shape for mask in masks.values()] == shapes
    np.testing.assert_array_equal(rigl_tf.strip(sparse)(x), sparse(x))
    if is_built:  # the rest is as for one that is built late
        return
    optimizer = rigl_tf.SET("adam", end_step=4, update_frequency=2, drop_fraction=0.9)
    sparse.compile(optimizer, "mse", run_eagerly=True)
    sparse.fit(x, numbers((8, 2)), batch_size=8, epochs=3, verbose=0)
    trained = check_masks(sparse, 0.5)
    assert all((trained[path] != mask).any() for path, mask in masks.items() if mask.size > 12)
    np.testing.assert_array_equal(rigl_tf.strip(sparse)(x), sparse(x))


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: layers.PReLU(), "activation"),
        (lambda: layers.RMSNormalization(axis=[-2, -1]), "normalisation"),
    ],
)
def test_slopes_and_scales_stay_dense(make, reason, is_built):
    dense = keras.Sequential([layers.Dense(4), make(), layers.Dense(3)])
    if is_built:
        dense.build((None, 5, 6))
    sparse = rigl_tf.sparsify(dense, 0.5)
    sparse.build((None, 5, 6))
    assert [mask.shape for mask in rigl_tf.get_masks(sparse).values()] == [(6, 4), (4, 3)]
    assert [weights.reason for weights in rigl_tf.sparsity_summary(sparse).dense] == [reason]
    # Multiplications and additions of the two kernels, at each of the five positions.
    assert rigl_tf.flops.count(sparse).dense_flops == 2 * 5 * (6 * 4 + 4 * 3)
