"""Tests of which weights are kernels, and of the arguments that name layers."""

import re

import keras
import numpy as np
import pytest

import rigl_tf
from rigl_tf.checks import check_keras_3
from rigl_tf.layers.eligibility import Choice, dense_reason

layers = keras.layers


# Which weights are kernels: by shape and name.


class Raw(layers.Layer):
    """Has one weight of its own, of any name and shape, called `held` among its attributes."""

    def __init__(self, shape, weight_name=None, held="weight_of_it", **kwargs):
        super().__init__(**kwargs)
        setattr(self, held, self.add_weight(shape=shape, name=weight_name))


def reason(layer):
    (weight,) = layer.weights
    return dense_reason(layer, weight)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        # Vision Transformers, Swin, CaiT, DETR, BLIP-2, Perceiver, CLIP, VQ-VAE, Set Transformer.
        ("pos_embed", "embedding"),
        ("pos_emb", "position"),
        ("position", "position"),
        ("positional_encoding", "position"),
        ("posTable", "position"),
        ("pe", "position"),
        ("rel_pos_h", "position"),
        ("rel_pos_w", "position"),
        ("position_weights", "position"),
        ("relative_position_bias_table", "bias"),
        ("relative_table", "table"),
        ("class_token", "token"),
        ("cls", "token"),
        ("clsToken", "token"),
        ("dist_token", "token"),
        ("mask_token", "token"),
        ("prompts", "token"),
        ("query_tokens", "token"),
        ("latent_queries", "query"),
        ("queries", "query"),
        ("query", "query"),
        ("latents", "query"),
        ("inducing_points", "query"),
        ("class_embedding", "embedding"),
        ("embeddings_vqvae", "embedding"),
        ("word_emb", "embedding"),
        ("codebook", "codebook"),
        # Kernels.
        ("kernel", None),
        ("w", None),
        ("W1", None),
        ("weight", None),
        ("query_kernel", None),
        ("query_weights", None),
        ("W_query", None),
        ("token_mixing_kernel", None),
        ("token_proj", None),
        ("pos_projection", None),
        ("composed", None),
        ("requery", None),
        ("recurrent_kernel", None),
        ("wq", None),
    ],
)
def test_what_the_name_of_a_weight_says(name, want):
    assert reason(Raw((4, 8), name)) == want


@pytest.mark.parametrize(
    ("shape", "name", "want"),
    [
        ((1, 1, 64), "cls_token", "vector"),
        ((1, 1), "temperature", "vector"),
        ((4, 1, 1), "logit_scale", "vector"),
        ((1, 5, 64), "scale", None),
        # One unit, or one input, of a layer.
        ((64, 1), "kernel", None),
        ((1, 64), "w", None),
    ],
)
def test_a_vector_has_one_dimension_above_one(shape, name, want):
    assert reason(Raw(shape, name)) == want


def test_a_layer_with_one_unit_is_sparse():
    model = keras.Sequential([keras.Input((20,)), layers.Dense(1)])
    (mask,) = rigl_tf.get_masks(rigl_tf.sparsify(model, 0.9)).values()
    assert mask.sum() == 2


@pytest.mark.parametrize(
    ("held", "want"), [("pos", "position"), ("_cls", "token"), ("latents", "query"), ("w1", None)]
)
def test_a_weight_without_a_name_is_called_as_its_attribute(held, want):
    assert reason(Raw((4, 8), held=held)) == want
    assert reason(Raw((4, 8), "given", held=held)) is None


@pytest.mark.parametrize(
    ("class_name", "want"),
    [
        ("PositionEmbedding", "position"),
        ("PosEncoding", "position"),
        ("ClassToken", "token"),
        ("CLSToken", "token"),
        ("VectorQuantizer", "codebook"),
        ("TokenMixing", None),
        ("PositionwiseFeedForward", None),
        ("PatchEmbedding", None),
        ("QueryHead", None),
    ],
)
def test_what_a_users_class_says(class_name, want):
    layer = type(class_name, (Raw,), {})((4, 8), "weight")
    assert reason(layer) == want
    assert reason(type(class_name, (Raw,), {})((4, 8), "kernel")) is None
    # So does the name of a layer, whatever its number.
    named = "_".join(re.findall("[A-Z][a-z]+|[A-Z]+(?=[A-Z])", class_name)).lower() + "_1"
    assert reason(Raw((4, 8), "weight", name=named)) == want


def test_the_kernels_of_keras_stay_kernels_whatever_their_layers_are_called():
    attention = layers.MultiHeadAttention(2, 4, name="tokens")
    attention.build((None, 5, 8), (None, 5, 8))
    kernels = [weight.path for weight in attention.weights if weight.name == "kernel"]
    sparse = rigl_tf.SparseWrapper(attention, 0.5)
    sparse.build((None, 5, 8), (None, 5, 8))
    assert list(rigl_tf.get_masks(sparse)) == kernels
    assert [path.split("/")[-2] for path in kernels[:3]] == ["query", "key", "value"]
    for name in ("pos_embedding", "cls_token", "query", "patch_embedding"):
        layer = layers.Dense(8, name=name)
        layer.build((None, 4))
        assert dense_reason(layer, layer.kernel) is None


class Perceiver(layers.Layer):
    """Learned queries and positions of its own, and a kernel."""

    def build(self, shape):
        self.latents = self.add_weight(shape=(3, shape[-1]), name="latents")
        self.positions = self.add_weight(shape=(1, *shape[1:]))
        self.mixed = self.add_weight(shape=(shape[-1], shape[-1]), name="mixed")
        self.built = True

    def call(self, inputs):
        keys = (inputs + self.positions) @ self.mixed
        return keras.ops.softmax(self.latents @ keras.ops.transpose(keys, (0, 2, 1))) @ keys


def perceiver():
    inputs = keras.Input((6, 8))
    x = layers.Flatten()(Perceiver(name="perceiver")(inputs))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def test_learned_queries_stay_dense_unless_asked_for():
    sparse = rigl_tf.sparsify(perceiver(), 0.5)
    assert list(rigl_tf.get_masks(sparse)) == ["perceiver/mixed", "head/kernel"]
    reasons = {each.path: each.reason for each in rigl_tf.sparsity_summary(sparse).dense}
    assert reasons.pop("perceiver/latents") == "query"
    assert list(reasons.values()) == ["position"]
    asked = rigl_tf.sparsify(perceiver(), 0.5, sparse_layers="perceiver/latents")
    assert list(rigl_tf.get_masks(asked)) == [
        "perceiver/latents",
        "perceiver/mixed",
        "head/kernel",
    ]


# Naming layers.


def network():
    encoder = keras.Sequential(
        [keras.Input((5, 4)), layers.LSTM(4, name="lstm"), layers.Dense(6, name="code")],
        name="encoder",
    )
    inputs = keras.Input((5, 4))
    x = layers.Dense(4, name="first")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="head")(encoder(x)), name="network")


LSTM = ["encoder/lstm/lstm_cell/kernel", "encoder/lstm/lstm_cell/recurrent_kernel"]
ALL = ["first/kernel", *LSTM, "encoder/code/kernel", "head/kernel"]


def chosen(model, **arguments):
    """The paths that are selected in the layers of a built model."""
    choice = Choice(**arguments)
    selected = choice.select(model)
    choice.check_all_met()
    return [
        weight.path for weight, is_chosen in zip(model.weights, selected, strict=True) if is_chosen
    ]


@pytest.mark.parametrize(
    ("dense_layers", "dense"),
    [
        (lambda m: layers.LSTM, LSTM),
        (lambda m: layers.Dense, ["first/kernel", "encoder/code/kernel", "head/kernel"]),
        (lambda m: keras.Sequential, [*LSTM, "encoder/code/kernel"]),
        (lambda m: m.get_layer("first"), ["first/kernel"]),
        (lambda m: m.get_layer("encoder"), [*LSTM, "encoder/code/kernel"]),
        (lambda m: m.get_layer("encoder").get_layer("lstm").cell, LSTM),
        (lambda m: "encoder/code/kernel", ["encoder/code/kernel"]),
        (lambda m: re.compile("^encoder/"), [*LSTM, "encoder/code/kernel"]),
        (
            lambda m: ["head", layers.LSTM, m.get_layer("first"), lambda layer: layer.name == "a"],
            ["first/kernel", *LSTM, "head/kernel"],
        ),
    ],
)
def test_layers_that_stay_dense(dense_layers, dense):
    model = network()
    assert chosen(model, dense_layers=dense_layers(model)) == [p for p in ALL if p not in dense]
    sparse = rigl_tf.sparsify(model, 0.5, dense_layers=dense_layers(model))
    assert list(rigl_tf.get_masks(sparse)) == [path for path in ALL if path not in dense]


def test_layers_that_become_sparse_by_class_and_object():
    def model():
        return keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.DepthwiseConv2D(2, name="depthwise"),
                layers.Conv2D(3, 1, name="conv"),
            ]
        )

    first = model()
    both = ["sequential/depthwise/kernel", "sequential/conv/kernel"]
    assert chosen(first, sparse_layers=first.layers[0]) == both
    assert [path.split("/", 1)[1] for path in chosen(model(), sparse_layers=layers.Layer)] == [
        path.split("/", 1)[1] for path in both
    ]
    assert chosen(first) == both[1:]


@pytest.mark.parametrize(
    "where", ["encoder/code/kernel", "encoder", re.compile("encoder/"), re.compile("^encoder/c")]
)
def test_names_mean_the_same_in_a_model_that_was_loaded(where, tmp_path):
    # Keras forgets the name of a nested model in the paths of weights.
    model = network()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    shapes = [
        [weight.shape for weight in each.weights if weight.path in chosen(each, dense_layers=where)]
        for each in (model, loaded)
    ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) < 5


class Other(layers.Layer):
    pass


@pytest.mark.parametrize("argument", ["dense_layers", "sparse_layers"])
@pytest.mark.parametrize("bad", [layers.GRU, Other, layers.Dense(3, name="GRU"), "encoder/kernel"])
def test_a_layer_that_the_model_does_not_have(argument, bad):
    with pytest.raises(ValueError, match=rf"`{argument}` must be names .*'lstm'.*Received: \['"):
        chosen(network(), **{argument: bad})


@pytest.mark.parametrize("bad", [3, None, [3], int, keras.optimizers.SGD, {"head": 0.5}])
def test_what_names_no_layer(bad):
    with pytest.raises(ValueError, match=r"`dense_layers` must be names of layers, .* Received: "):
        Choice(dense_layers=bad)


# A sparsity for each layer.


def shares(model, sparsity, **arguments):
    """What `sparsity` gives to the kernels: `{path: sparsity}`."""
    choice = Choice(sparsity=sparsity, **arguments)
    selected = choice.select(model)
    choice.check_all_met()
    kernels = {
        weight.path: weight
        for weight, is_chosen in zip(model.weights, selected, strict=True)
        if is_chosen
    }
    return choice.sparsities(kernels)


def test_a_sparsity_for_each_layer():
    model = network()
    assert shares(model, {"head": 0.5}) == {"head/kernel": 0.5}
    assert shares(model, {layers.LSTM: 0.9, "first": 0.0}) == {
        "first/kernel": 0.0,
        LSTM[0]: 0.9,
        LSTM[1]: 0.9,
    }
    assert shares(model, {model.get_layer("encoder"): 0.8, re.compile("^first"): 0.1}) == {
        "first/kernel": 0.1,
        LSTM[0]: 0.8,
        LSTM[1]: 0.8,
        "encoder/code/kernel": 0.8,
    }
    assert Choice().sparsities({}) is None


def test_the_first_entry_that_names_a_kernel_counts():
    model = network()
    sparsity = {LSTM[1]: 0.3, "lstm": 0.6, re.compile(""): 0.9}
    assert shares(model, sparsity) == dict(zip(ALL, [0.9, 0.6, 0.3, 0.9, 0.9], strict=True))
    # An entry that never comes first would be ignored.
    with pytest.raises(ValueError, match=r"no earlier key names; .*Received: \['head'\]"):
        shares(model, {layers.Dense: 0.9, "head": 0.5})


def test_dense_layers_have_the_last_word_on_sparsities():
    assert shares(network(), {layers.Dense: 0.9}, dense_layers="encoder") == {
        "first/kernel": 0.9,
        "head/kernel": 0.9,
    }
    with pytest.raises(ValueError, match=r"Each key of `sparsity` .*Received: \['head'\]"):
        shares(network(), {"first": 0.5, "head": 0.5}, dense_layers="head")


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        ({}, r"must name the layers to make sparse. Received: sparsity=\{\}"),
        ({"head": 1.0}, r"in \[0, 1\). Received: sparsity\['head'\]=1.0"),
        ({layers.LSTM: None}, r"Received: sparsity\['LSTM'\]=None"),
        ({3: 0.5}, r"`sparsity` must be names of layers, .* Received: 3"),
        ({"nope": 0.5}, r"keys must be .*'encoder'.*'head/kernel'.* Received: \['nope'\]"),
    ],
)
def test_bad_sparsities(sparsity, message):
    with pytest.raises(ValueError, match=message):
        shares(network(), sparsity)


def test_a_sparsity_for_an_embedding_needs_sparse_layers():
    def model():
        return keras.Sequential(
            [keras.Input((5,)), layers.Embedding(9, 4, name="words"), layers.Dense(3)], name="m"
        )

    with pytest.raises(ValueError, match=r"`sparse_layers`, too: \['m/words/embeddings \(embedd"):
        shares(model(), {"words": 0.5})
    assert shares(model(), {"words": 0.5}, sparse_layers="words") == {"m/words/embeddings": 0.5}


# When there is nothing to make sparse.


def test_the_advice_names_what_sparse_layers_can_do():
    model = keras.Sequential([keras.Input((5,)), layers.Embedding(9, 4, name="words")])
    choice = Choice()
    assert not any(choice.select(model))
    assert choice.advice() == (
        "To make these sparse, name their layers in `sparse_layers`: "
        f"['{model.weights[0].path} (embedding)']. "
    )
    unbuilt = Choice()
    assert not unbuilt.may_have_kernels(layers.Embedding(9, 4, name="late"))
    assert "['late (embedding)']" in unbuilt.advice()


def test_the_advice_names_what_is_frozen():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="fc")], name="base")
    model.trainable = False
    choice = Choice()
    assert not any(choice.select(model))
    assert choice.advice() == (
        "These are frozen; set `trainable` of their layers first: ['base/fc/kernel']. "
    )
    plain = Choice()
    plain.select(layers.ReLU())
    assert plain.advice() == ""


# Keras 2.


def keras_2(name):
    """An object as of `tf_keras`, and one of a user's class that is made from it."""
    base = type(name, (), {"__module__": "tf_keras.src.engine.training"})
    return base(), type("Own", (base,), {})()


def test_objects_of_keras_2_are_told():
    for each in keras_2("Model"):
        with pytest.raises(ValueError, match=r"`model` must be made with Keras 3.*Keras 2"):
            check_keras_3(model=each)
        with pytest.raises(ValueError, match="is made with Keras 2"):
            rigl_tf.sparsity_summary(each)
        for optimizer in (rigl_tf.RigL, rigl_tf.StaticSparse):
            with pytest.raises(ValueError, match="`inner_optimizer` must be made with Keras 3"):
                optimizer(each, *[10] * (optimizer is rigl_tf.RigL))
    check_keras_3(model=network(), optimizer="adam", other=None, cls=np.float32)
