"""What sparse and stripped models keep: what layers learned, what is frozen, states, ties."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import covers_part, numbers

import rigl_tf
from rigl_tf.walk import all_layers

layers = keras.layers
serializable = keras.saving.register_keras_serializable(package="test_copies")


def around(model):
    """A sparse model around the layers of a dense one, and a plain one around those of it."""
    sparse = rigl_tf.sparsify(model, 0.0)
    return [sparse, rigl_tf.strip(sparse)]


# What layers learned by `adapt`.


@serializable
class Scaled(layers.Layer):
    """Holds a layer that learns by `adapt`, and one with a kernel."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.Normalization()
        self.dense = layers.Dense(4)

    def build(self, shape):
        if not self.norm.built:
            self.norm.build(shape)
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(self.norm(inputs))


@serializable
class ScaledModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.Normalization()
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(self.norm(inputs))


X = numbers((50, 6), mean=5.0, scale=3.0)


@pytest.mark.parametrize("is_built", [True, False], ids=["built", "not built"])
def test_a_nested_layer_keeps_what_it_learned(is_built):
    layer = Scaled()
    layer.norm.adapt(X)
    model = keras.Sequential([keras.Input((6,)), layer] if is_built else [layer])
    want = model(X) if is_built else None
    sparse = rigl_tf.sparsify(model, 0.0)
    if is_built:
        np.testing.assert_array_equal(sparse(X), want)
        np.testing.assert_array_equal(rigl_tf.strip(sparse)(X), want)
    sparse(X)
    scaled = sparse.layers[0].layer.norm(X)
    np.testing.assert_allclose(scaled, (X - X.mean(0)) / X.std(0), rtol=1e-4, atol=1e-4)


def test_a_layer_of_a_subclassed_model_keeps_what_it_learned():
    model = ScaledModel()
    model.norm.adapt(X)
    want = model(X)
    for each in around(model):
        np.testing.assert_array_equal(each(X), want)
        np.testing.assert_allclose(each.predict(X, verbose=0), want, rtol=0, atol=1e-6)


@serializable
class Words(keras.Model):
    """Layers with vocabularies and bins; some can be called only after `adapt`."""

    def __init__(self, output_mode="multi_hot", **kwargs):
        super().__init__(**kwargs)
        self.output_mode = output_mode
        self.words = layers.TextVectorization(output_mode=output_mode)
        self.lookup = layers.StringLookup(output_mode="multi_hot")
        self.bins = layers.Discretization(num_bins=3, output_mode="one_hot")
        self.dense = layers.Dense(4)

    def build(self, shape):
        self.dense.build((None, 16))

    def get_config(self):
        return {**super().get_config(), "output_mode": self.output_mode}

    def call(self, inputs):
        bins = self.bins(tf.cast(tf.strings.length(inputs), "float32"))
        parts = [self.words(inputs), self.lookup(inputs[:, None]), bins]
        return self.dense(tf.concat([tf.cast(part, "float32") for part in parts], axis=-1))


@serializable
class WordsLayer(layers.Layer):
    def __init__(self, output_mode="multi_hot", **kwargs):
        super().__init__(**kwargs)
        self.inner = Words(output_mode)

    def build(self, shape):
        self.inner.dense.build((None, 16))

    def call(self, inputs):
        return self.inner.call(inputs)


def adapt(words, texts):
    words.words.adapt(texts)
    words.lookup.adapt(texts)
    words.bins.adapt(np.array([len(text) for text in texts], "float32"))


@pytest.mark.parametrize("output_mode", ["multi_hot", "tf_idf"])
def test_vocabularies_and_bins_are_kept(output_mode):
    texts = ["a b", "b c d", "a a e f g h"]
    model = Words(output_mode)
    adapt(model, texts)
    want, vocabulary = model(tf.constant(texts)), model.words.get_vocabulary()
    for each in around(model):
        assert each.words.get_vocabulary() == vocabulary
        np.testing.assert_array_equal(each(tf.constant(texts)), want)

    layer = WordsLayer(output_mode)
    adapt(layer.inner, texts)
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, layer(inputs))
    want = model(tf.constant(texts))
    for each in around(model):
        np.testing.assert_array_equal(each(tf.constant(texts)), want)


# What is frozen.


@serializable
class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(6, name="first")
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.first.build(shape)
        self.norm.build((None, 6))

    def call(self, inputs, training=None):
        return self.norm(self.first(inputs), training=training)


@serializable
class Part(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(6, name="first")
        self.second = layers.Dense(6, name="second")

    def call(self, inputs):
        return self.second(self.first(inputs))


@serializable
class Blocks(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block()
        self.head = layers.Dense(2)

    def call(self, inputs):
        return self.head(self.block(inputs))


def block():
    layer = Block()
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
    layer.first.trainable = False
    layer.norm.trainable = False
    return model


def attention():
    inputs = keras.Input((3, 6))
    layer = layers.MultiHeadAttention(2, 3)
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs, inputs)))
    layer.query_dense.trainable = False
    return model


def weight():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(6), layers.Dense(2)])
    model.layers[0].kernel.trainable = False
    return model


def part():
    layer = Part()
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
    layer.first.trainable = False
    return model


def subclassed():
    model = Part()
    model(np.ones((2, 6)))
    model.first.kernel.trainable = False
    return model


def block_of_subclassed():
    model = Blocks()
    model(np.ones((2, 6)))
    model.block.first.trainable = False
    return model


def thawed():
    layer = Block(trainable=False)
    model = keras.Sequential([keras.Input((6,)), layer, layers.Dense(2)])
    layer.trainable = True
    layer.first.trainable = False
    return model


@pytest.mark.parametrize(
    "make", [block, attention, weight, part, subclassed, block_of_subclassed, thawed]
)
@covers_part
def test_what_is_frozen_stays_frozen(make):
    model = make()
    want = [weight.shape for weight in model.trainable_weights]
    sparse = rigl_tf.sparsify(model, 0.5)
    for each in (sparse, rigl_tf.strip(sparse)):
        assert [weight.shape for weight in each.trainable_weights] == want
    trainable = {weight.path for weight in sparse.trainable_weights}
    assert rigl_tf.get_masks(sparse).keys() <= trainable


# States beyond weights.


@serializable
class Noise(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs):
        noise = keras.random.normal(keras.ops.shape(inputs), seed=self.seed_generator)
        return inputs + noise


@serializable
class NoisyModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)
        self.noise = Noise()

    def call(self, inputs):
        return self.noise(self.dense(inputs))


@pytest.mark.parametrize("is_subclassed", [False, True])
def test_seeds_go_on(is_subclassed):
    inputs = keras.Input((6,))
    model = NoisyModel()
    if not is_subclassed:
        model = keras.Model(inputs, model.noise(model.dense(inputs)))
    model.predict(X, verbose=0)
    (seed,) = [each for each in model.variables if "seed" in each.path]
    before = seed.numpy()
    want = model(X)
    for each in around(model):
        seed.assign(before)
        np.testing.assert_array_equal(each(X), want)
        assert (seed.numpy() != before).any()


@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_states_of_recurrent_layers_go_on(is_bidirectional):
    layer = layers.LSTM(4, stateful=True)
    layer = layers.Bidirectional(layer) if is_bidirectional else layer
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 6)), layer, layers.Dense(2)])
    x = numbers((2, 3, 6))
    model.predict(x, verbose=0)
    inner = [layer.forward_layer, layer.backward_layer] if is_bidirectional else [layer]
    states = [state for each in inner for state in each.states]
    before = [state.numpy() for state in states]
    want = model(x)
    assert (model(x).numpy() != want.numpy()).any()
    for each in around(model):
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        np.testing.assert_array_equal(each(x), want)


def test_export_leaves_the_states_of_recurrent_layers(tmp_path):
    layer = layers.LSTM(4, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 6)), layer, layers.Dense(2)])
    sparse = rigl_tf.sparsify(model, 0.5)
    sparse.predict(numbers((2, 3, 6)), verbose=0)
    before = [state.numpy() for state in layer.states]
    assert before[0].any()
    rigl_tf.export(sparse, tmp_path / "export")
    for state, old in zip(layer.states, before, strict=True):
        np.testing.assert_array_equal(state, old)


# Wrappers inside of other layers.


def timed():
    inner = rigl_tf.SparseWrapper(layers.Dense(4), 0.5)
    return keras.Sequential([keras.Input((3, 6)), layers.TimeDistributed(inner), layers.Dense(2)])


def recurrent():
    cells = [rigl_tf.SparseWrapper(layers.GRUCell(4), 0.5), layers.GRUCell(3)]
    return keras.Sequential([keras.Input((3, 6)), layers.RNN(cells)])


@serializable
class TimedModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.timed = layers.TimeDistributed(rigl_tf.SparseWrapper(layers.Dense(4), 0.5))

    def call(self, inputs):
        return self.timed(inputs)


def timed_model():
    model = TimedModel()
    model(np.ones((2, 3, 6)))
    return model


@pytest.mark.parametrize("make", [timed, recurrent, timed_model])
def test_strip_takes_wrappers_out_of_layers(make):
    model = make()
    x = numbers((2, 3, 6))
    plain = rigl_tf.strip(model)
    assert not any(isinstance(each, rigl_tf.SparseWrapper) for each in all_layers(plain))
    assert rigl_tf.get_masks(model)
    assert not rigl_tf.get_masks(plain)
    assert len(plain.weights) == len(model.weights) - len(rigl_tf.get_masks(model))
    np.testing.assert_array_equal(plain(x), model(x))


# Lambda layers.


SCALE = 3.0


def test_lambda_layers_keep_their_functions(tmp_path):
    factor = tf.constant(2.0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Lambda(
                lambda x, by: tf.concat([x, x], -1) * factor * by * SCALE,
                output_shape=lambda shape: (shape[0], 12),
                arguments={"by": 2.0},
            ),
            layers.Lambda(lambda x: x[:, :5], output_shape=(5,), name="cut", dtype="float64"),
            layers.Lambda(lambda x: -x),
            layers.Dense(4),
        ]
    )
    want = model(X)
    sparse, plain = around(model)
    for each in (sparse, plain):
        np.testing.assert_array_equal(each(X), want)
        assert [layer.name for layer in each.layers] == [layer.name for layer in model.layers]
        assert each.output_shape == (None, 4)
        assert each.layers[1] is model.layers[1]
        assert each.layers[1].dtype_policy.name == "float64"
    rigl_tf.export(sparse, tmp_path / "export")


# Inputs.


@serializable
class AddIfThere(layers.Layer):
    def call(self, inputs, other=None):
        return inputs if other is None else inputs + other


def test_optional_inputs_stay_optional():
    inputs, other = keras.Input((6,)), keras.Input((6,), optional=True)
    model = keras.Model([inputs, other], layers.Dense(2)(AddIfThere()(inputs, other)))
    want = model([X, None])
    for each in around(model):
        np.testing.assert_array_equal(each([X, None]), want)


@pytest.mark.parametrize("kind", ["sparse", "ragged"])
def test_sparse_and_ragged_inputs_stay_what_they_are(kind):
    inputs = keras.Input((6,), **{kind: True})
    output = layers.Lambda(lambda x: tf.zeros((1, 6)), output_shape=(6,))(inputs)
    model = keras.Model(inputs, layers.Dense(2)(output))
    for each in around(model):
        assert getattr(each.input, kind)
        assert getattr(each.layers[0], kind)


def test_a_sequential_model_keeps_a_sparse_input():
    inputs = keras.Input((6,), sparse=True, name="it")
    dense = layers.Lambda(tf.sparse.to_dense, output_shape=(6,))
    model = keras.Sequential([inputs, dense, layers.Dense(2)])
    x = tf.sparse.from_dense(X)
    want = model(x)
    for each in around(model):
        assert each.inputs[0].sparse
        assert each.inputs[0].name == "it"
        np.testing.assert_array_equal(each(x), want)


# Weights that layers share.


@serializable
class Tied(layers.Layer):
    """The transpose of an embedding."""

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def build(self, shape):
        if not self.embedding.built:
            self.embedding.build(None)

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.embedding.embeddings))

    def get_config(self):
        embedding = keras.saving.serialize_keras_object(self.embedding)
        return {**super().get_config(), "embedding": embedding}

    @classmethod
    def from_config(cls, config):
        embedding = keras.saving.deserialize_keras_object(config["embedding"])
        return cls(**{**config, "embedding": embedding})


def tied(wrap):
    inputs = keras.Input((5,), dtype="int32")
    embedding = layers.Embedding(20, 4)
    return keras.Model(inputs, Tied(embedding)(wrap(layers.Dense(4))(embedding(inputs))))


@pytest.mark.parametrize("how", ["sparsify", "with the embedding", "by hand"])
@covers_part
def test_tied_weights_stay_tied(how):
    x = np.arange(10).reshape(2, 5)
    if how == "by hand":
        sparse = tied(lambda layer: rigl_tf.SparseWrapper(layer, 0.5))
    else:
        more = {"sparse_layers": layers.Embedding} if how == "with the embedding" else {}
        sparse = rigl_tf.sparsify(tied(lambda layer: layer), 0.5, dict.fromkeys, **more)
    plain = rigl_tf.strip(sparse)
    # Half of 4 x 4 and 20 x 4.
    counts = [int(mask.sum()) for mask in rigl_tf.get_masks(sparse).values()]
    assert sorted(counts) == ([8, 40] if how == "with the embedding" else [8])
    for model in (sparse, plain):
        (embedding,) = [weight for weight in model.weights if weight.path.endswith("/embeddings")]
        assert model.layers[1].embeddings is embedding
        assert model.layers[-1].embedding.embeddings is embedding
    before = embedding.numpy()
    sparse.compile(keras.optimizers.SGD(0.1), "mse")
    sparse.fit(x, numbers((2, 5, 20)), verbose=0)
    assert (embedding.numpy() != before).any()
    np.testing.assert_array_equal(plain(x), sparse(x))


# LoRA.


def test_lora_is_refused():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(2, name="it")])
    model.layers[1].enable_lora(2)
    for copy in (rigl_tf.strip, lambda model: rigl_tf.sparsify(model, 0.5)):
        with pytest.raises(ValueError, match=r"without LoRA.*'it'"):
            copy(model)


# Copies from a config.


@serializable
class Twins(layers.Layer):
    """Two kernels of one path and shape, which begin with the same mask."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one, self.other = layers.Dense(6, name="it"), layers.Dense(6, name="it")

    def call(self, x):
        return self.one(x) - self.other(x)


@pytest.mark.parametrize(
    "copy",
    [
        keras.models.clone_model,
        lambda model: keras.models.model_from_json(model.to_json()),
        lambda model: keras.models.clone_model(keras.models.clone_model(model)),
    ],
)
def test_a_copy_from_the_config_has_the_masks_that_the_model_began_with(copy):
    inputs = keras.Input((6,))
    x = layers.Dense(6)(layers.Dense(6)(layers.Dense(6)(inputs)))
    x = layers.MultiHeadAttention(2, 3)(*[layers.Reshape((2, 3))(x)] * 2)
    x = Twins()(layers.Flatten()(x))
    model = rigl_tf.sparsify(keras.Model(inputs, x), 0.5, dict.fromkeys, seed=3)
    began = rigl_tf.get_masks(model)
    assert (began["dense/kernel"] != began["dense_1/kernel"]).any()
    rigl_tf.set_masks(model, {path: np.ones_like(mask) for path, mask in began.items()})
    for mask, want in zip(rigl_tf.get_masks(copy(model)).values(), began.values(), strict=True):
        np.testing.assert_array_equal(mask, want)
