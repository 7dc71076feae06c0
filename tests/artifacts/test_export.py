"""Tests of `rigl_tf.export`."""

import collections
import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import threading
import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import covers_part, mirrored, numbers

import rigl_tf

layers = keras.layers
# To measure the time of calls takes longer than all the rest: where that is not the point.
export = functools.partial(rigl_tf.export, measure=False)


def sparse_mlp():
    dense = keras.Sequential(
        [
            keras.Input((16,), name="features"),
            layers.Dense(12, activation="relu", name="hidden"),
            layers.Dense(3, name="head"),
        ],
        name="mlp",
    )
    return rigl_tf.sparsify(dense, 0.75, "erk")


def sparse_convnet():
    dense = keras.Sequential(
        [
            keras.Input((8, 8, 2), name="image"),
            layers.Conv2D(6, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Dropout(0.5, name="dropout"),
            layers.Flatten(name="flatten"),
            layers.Dense(3, name="head"),
        ]
    )
    sparse = rigl_tf.sparsify(dense, 0.8, "erk")
    sparse.compile(
        rigl_tf.RigL(keras.optimizers.SGD(0.05), 8, update_frequency=2), "mse", run_eagerly=True
    )
    sparse.fit(numbers((32, 8, 8, 2)), numbers((32, 3)), batch_size=8, epochs=2, verbose=0)
    return sparse


def listed(directory):
    """All that is in a directory, hidden files included, with the files' contents."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def serve(path, **inputs):
    """The outputs of the default signature."""
    artifact = tf.saved_model.load(str(path))
    outputs = artifact.signatures["serving_default"](**inputs)
    return {name: value.numpy() for name, value in outputs.items()}


def perturb(monkeypatch, perturbation):
    """Makes each artifact give other outputs: those of the last of three units."""
    change_outputs(
        monkeypatch, lambda outputs: outputs + tf.cast([0, perturbation, 0], outputs.dtype)
    )


def change_outputs(monkeypatch, change):
    """Lets each artifact that is loaded return what `change` makes of each of its outputs."""
    load, load_model = tf.saved_model.load, keras.saving.load_model

    def changed(call):
        return lambda *args, **kwargs: tf.nest.map_structure(change, call(*args, **kwargs))

    class Changed:
        """The default signature; what it is made of is as it was."""

        def __init__(self, function):
            self.structured_input_signature = function.structured_input_signature
            self._call = changed(function)

        def __call__(self, **inputs):
            return self._call(**inputs)

    def loaded(path):
        artifact = load(path)
        signatures = {name: Changed(function) for name, function in artifact.signatures.items()}
        return types.SimpleNamespace(artifact=artifact, signatures=signatures)

    monkeypatch.setattr(tf.saved_model, "load", loaded)

    def load_changed(path, **settings):
        return changed(load_model(path, **settings))

    monkeypatch.setattr(keras.saving, "load_model", load_changed)


# What is written.


@pytest.mark.parametrize("make", [sparse_mlp, sparse_convnet])
def test_a_saved_model_predicts_what_the_model_predicts(make, tmp_path):
    model = make()
    report = rigl_tf.export(model, tmp_path / "new" / "directory")
    assert report.path == str(tmp_path / "new" / "directory")
    assert report.format == "saved_model"
    (name,) = [tensor.name for tensor in model.inputs]
    for batch_size in (1, 5, 64):
        x = numbers((batch_size, *model.input_shape[1:]))
        (outputs,) = serve(report.path, **{name: tf.constant(x)}).values()
        np.testing.assert_allclose(outputs, model(x, training=False), atol=1e-5)
        artifact = tf.saved_model.load(report.path)
        np.testing.assert_array_equal(artifact.serve(x), outputs)
    assert listed(tmp_path / "new").keys() == {
        "directory",
        *(f"directory/{file}" for file in listed(tmp_path / "new" / "directory")),
    }


@pytest.mark.parametrize("make", [sparse_mlp, sparse_convnet])
def test_a_keras_file_predicts_what_the_model_predicts(make, tmp_path):
    model = make()
    report = rigl_tf.export(model, str(tmp_path / "model.keras"), format="keras")
    assert report.format == "keras"
    loaded = keras.saving.load_model(report.path)
    x = numbers((5, *model.input_shape[1:]))
    np.testing.assert_allclose(loaded(x), model(x, training=False), atol=1e-5)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    with zipfile.ZipFile(report.path) as archive:
        assert "rigl_tf" not in archive.read("config.json").decode()
    assert list(listed(tmp_path)) == ["model.keras"]


def test_the_zeros_of_a_saved_model_are_those_of_the_masks(tmp_path):
    model = sparse_convnet()
    kernels = {weight.path: weight for weight in model.weights}
    masks = rigl_tf.get_masks(model)
    export(model, tmp_path / "export")
    arrays = [weight.numpy() for weight in tf.saved_model.load(str(tmp_path / "export")).weights]
    for path, mask in masks.items():
        (array,) = [array for array in arrays if array.shape == mask.shape]
        assert not array[~mask].any()
        np.testing.assert_array_equal(array, kernels[path])
    # Two kernels, a bias, the four of the normalisation, the dropout's seed: each once, no mask.
    names = [
        name for name, _ in tf.train.list_variables(str(tmp_path / "export/variables/variables"))
    ]
    assert len([name for name in names if "VARIABLE_VALUE" in name]) == len(arrays) == 8


@pytest.mark.parametrize("format", ["saved_model", "keras"])
def test_weights_outside_of_the_masks_are_told_of(format, tmp_path):
    model = sparse_mlp()
    kernel, mask = model.layers[0].layer.kernel, model.layers[0].kernel_mask.numpy()
    kernel.assign(np.ones(kernel.shape))
    outside = {kernel.path: int((~mask).sum())}
    with pytest.warns(UserWarning, match="not zero outside of the masks"):
        report = export(model, tmp_path / f"model.{format}", format)
    assert report.outside == outside == rigl_tf.sparsity_summary(model).outside
    assert "not zero outside of the masks" in str(report)
    # They are what the model predicts with, and they stay.
    np.testing.assert_array_equal(kernel, np.ones(kernel.shape))
    if format == "keras":
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded.layers[0].kernel, np.ones(kernel.shape))


def test_small_outputs_are_compared_with_what_they_are(tmp_path, monkeypatch):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(20_000, activation="softmax")(inputs))
    report = export(model, tmp_path / "export")
    assert report.max_difference < 1e-8
    change_outputs(monkeypatch, tf.zeros_like)
    with pytest.raises(RuntimeError, match="not those of the model"):
        export(model, tmp_path / "export")


class RoundsInAGraph(layers.Layer):
    """Gives other digits in a graph, as sums that cancel out do."""

    def call(self, inputs):
        return inputs if tf.executing_eagerly() else inputs * (1 + 2e-4)


def test_what_a_graph_rounds_in_the_model_itself_is_allowed(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), RoundsInAGraph()])
    x = numbers((8, 4))
    report = export(model, tmp_path / "export", inputs=x)
    assert report.max_difference > 1e-4 * np.abs(model(x)).max()


def test_a_dense_model(tmp_path):
    dense = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    report = export(dense, tmp_path / "export")
    assert report.num_active == report.num_weights == 15
    assert (report.sparsity, report.flops_ratio) == (0, 1)


def test_a_model_without_weights(tmp_path):
    report = export(keras.Sequential([keras.Input((4,)), layers.ReLU()]), tmp_path / "out")
    assert (report.sparsity, report.flops_ratio, report.num_weights) == (0, 1, 0)
    assert "0 of 0" in str(report)


def test_the_model_is_as_before(tmp_path):
    model = sparse_convnet()
    before = {weight.path: weight.numpy() for weight in model.weights}
    export(model, tmp_path / "export")
    assert model.compiled
    for weight in model.weights:
        np.testing.assert_array_equal(weight, before[weight.path])
    model.fit(numbers((8, 8, 8, 2)), numbers((8, 3)), verbose=0)


def several_inputs(structure):
    one, other = keras.Input((4,), name="one"), keras.Input((3,), name="the other")
    x = layers.Concatenate()([one, other])
    sum_, words = layers.Dense(2, name="sum")(x), layers.Dense(5, name="words")(x)
    if structure == "list":
        return keras.Model([one, other], [sum_, words])
    return keras.Model({"one": one, "the other": other}, {"p": sum_, "q": words})


@pytest.mark.parametrize("format", ["saved_model", "keras"])
@pytest.mark.parametrize("structure", ["list", "dict"])
def test_several_inputs_and_outputs(structure, format, tmp_path):
    model = rigl_tf.sparsify(several_inputs(structure), 0.5, "erk")
    path = tmp_path / ("export.keras" if format == "keras" else "export")
    rigl_tf.export(model, path, format)
    x = {"one": tf.constant(numbers((6, 4))), "the other": tf.constant(numbers((6, 3), 1))}
    given = list(x.values()) if structure == "list" else x
    want = tf.nest.flatten(model(given))
    if format == "keras":
        got = tf.nest.flatten(keras.saving.load_model(path)(given))
    else:
        got = serve(path, one=x["one"], the_other=x["the other"])
        assert sorted(got) == (["output_0", "output_1"] if structure == "list" else ["p", "q"])
        got = [got[name] for name in sorted(got)]
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        (lambda p, q: {"x": [p, q], "y": q}, ["x_0", "x_1", "y"]),
        (lambda p, q: [{"x": p}, q], ["output_0_x", "output_1"]),
    ],
)
def test_nested_outputs(structure, names, tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, structure(layers.Dense(2)(x), layers.Dense(3)(x)))
    report = export(model, tmp_path / "export")
    x = tf.constant(numbers((5, 4)))
    got = serve(report.path, x=x)
    assert sorted(got) == names
    artifact = tf.saved_model.load(report.path)
    outputs = artifact.serve(x)
    tf.nest.assert_same_structure(outputs, model(x), check_types=False)
    for name, output, want in zip(
        names, tf.nest.flatten(outputs), tf.nest.flatten(model(x)), strict=True
    ):
        np.testing.assert_allclose(output, want, atol=1e-5)
        np.testing.assert_array_equal(got[name], output)


@pytest.mark.parametrize("structure", [dict, collections.OrderedDict])
def test_keys_in_any_order(structure, tmp_path):
    one, other = keras.Input((4,), name="z"), keras.Input((3,), name="a")
    outputs = layers.Dense(2)(layers.Concatenate()([one, other]))
    model = keras.Model(structure(z=one, a=other), outputs)
    x = collections.OrderedDict(z=numbers((6, 4)), a=numbers((6, 3)))
    report = export(model, tmp_path / "export", inputs=x)
    assert report.flops == rigl_tf.flops.count(model, x).flops == 2 * 7 * 2
    (outputs,) = serve(report.path, **{name: tf.constant(x[name]) for name in x}).values()
    # Keras swaps inputs if it is called with the other kind of dictionary.
    np.testing.assert_allclose(outputs, model(structure(x)), atol=1e-5)


@pytest.mark.parametrize("format", ["saved_model", "keras"])
@covers_part
def test_integer_inputs(format, tmp_path):
    dense = keras.Sequential(
        [
            keras.Input((4,), dtype="int32", name="words"),
            layers.Embedding(50, 6),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.5, "erk")
    path = tmp_path / ("export.keras" if format == "keras" else "export")
    export(model, path, format)
    x = tf.constant(np.random.default_rng(0).integers(0, 50, (3, 4)), "int32")
    if format == "keras":
        got = keras.saving.load_model(path)(x)
    else:
        (got,) = serve(path, words=x).values()
    np.testing.assert_allclose(got, model(x), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = sparse_mlp()
    x = tf.constant(numbers((5, 16)))
    report = export(model, tmp_path / "export")
    (outputs,) = serve(report.path, features=x).values()
    np.testing.assert_allclose(
        outputs.astype("float32"), tf.cast(model(x), "float32"), rtol=0.02, atol=0.02
    )
    export(model, tmp_path / "model.keras", format="keras")
    assert keras.saving.load_model(tmp_path / "model.keras").layers[0].compute_dtype == policy[6:]


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_a_graph_rounds_bfloat16_in_other_places(activation, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(20, activation) for _ in range(3)]
    model = keras.Sequential([keras.Input((12,)), *hidden, layers.Dense(3, dtype="float32")])
    report = export(model, tmp_path / "export")
    # Four times the distance from 1 to the next number in bfloat16, of 8 significant bits.
    assert report.max_difference <= 4 * 2**-7


def test_bfloat16_hides_no_wrong_outputs(tmp_path, monkeypatch):
    keras.config.set_dtype_policy("mixed_bfloat16")
    perturb(monkeypatch, 0.1)
    with pytest.raises(RuntimeError, match="not those of the model"):
        export(sparse_mlp(), tmp_path / "export")


@pytest.mark.filterwarnings("error")
def test_infinite_outputs(tmp_path, monkeypatch):
    x = keras.Input((6,))
    allowed = keras.ops.where([[True, False, True]], layers.Dense(3)(x), -np.inf)
    model = keras.Model(x, [allowed, -allowed])
    assert export(model, tmp_path / "export").max_difference < 1e-5
    change_outputs(monkeypatch, lambda outputs: tf.abs(outputs) * 0 + 1)
    with pytest.raises(RuntimeError, match=r"largest difference (nan|inf)"):
        export(model, tmp_path / "other")


def test_nan_in_any_output_is_seen(tmp_path, monkeypatch):
    x = keras.Input((6,))
    model = keras.Model(x, [layers.Dense(3)(x), layers.Dense(3, name="last")(x)])
    perturb(monkeypatch, np.nan)
    with pytest.raises(RuntimeError, match="largest difference nan"):
        export(model, tmp_path / "export")


def test_outputs_of_another_shape(tmp_path):
    """Keras takes the unknown length of the sequence for another number in a graph."""
    model = keras.Sequential([keras.Input((None, 8)), layers.TimeDistributed(layers.Dense(7))])
    with pytest.raises(RuntimeError, match=r"have the shapes of .*7\)\], and not \[\(4, 5, 7\)\]"):
        export(model, tmp_path / "export", inputs=numbers((4, 5, 8)))
    assert not listed(tmp_path)


def test_an_export_of_another_format_stays(tmp_path):
    export(sparse_mlp(), tmp_path / "model")
    before = listed(tmp_path)
    with pytest.raises(ValueError, match=r"an export of `format='saved_model'` is, format='web'"):
        export(sparse_mlp(), tmp_path / "model", "web")
    assert listed(tmp_path) == before


def test_a_model_that_is_not_built(tmp_path):
    model = keras.Sequential([layers.Dense(3)], name="new")
    with pytest.raises(ValueError, match=r"`export` needs a built model.*'new', not built"):
        export(model, tmp_path / "model")


def test_a_model_whose_outputs_are_nan(tmp_path):
    model = sparse_mlp()
    model.layers[-1].layer.bias.assign([0, np.nan, 0])
    with pytest.raises(ValueError, match=r"outputs of the model must not be NaN.*'mlp'"):
        export(model, tmp_path / "export")
    assert not listed(tmp_path)


# Models whose inputs are of any size, or not known.


def test_sequences_of_any_length(tmp_path):
    dense = keras.Sequential(
        [
            keras.Input((None,), dtype="int32", name="tokens"),
            layers.Embedding(9, 4, mask_zero=True),
            layers.Bidirectional(layers.GRU(3)),
            layers.Dense(2),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.5)
    report = export(model, tmp_path / "export", inputs=np.array([[1, 2, 3], [8, 5, 0]]))
    kernels = rigl_tf.flops.count(model, tf.TensorSpec((1, 3), "int32")).kernels
    assert [kernel.num_uses for kernel in kernels] == [3, 3, 3, 3, 1]
    assert report.flops == 2 * sum(kernel.num_active * kernel.num_uses for kernel in kernels)
    for tokens in ([[1, 2, 3, 4, 5, 6]], [[7], [8]]):
        (outputs,) = serve(report.path, tokens=tf.constant(tokens)).values()
        np.testing.assert_allclose(outputs, model(np.array(tokens)), atol=1e-5)


def test_images_of_any_size(tmp_path):
    dense = keras.Sequential(
        [
            keras.Input((None, None, 3), name="image"),
            layers.SeparableConv2D(8, 3),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.5)
    report = export(model, tmp_path / "export", inputs=numbers((1, 8, 8, 3)))
    x = numbers((2, 5, 9, 3))
    (outputs,) = serve(report.path, image=tf.constant(x)).values()
    np.testing.assert_allclose(outputs, model(x), atol=1e-5)


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = [layers.Dense(7, activation="relu"), layers.Dropout(0.5)]
        self.head = layers.Dense(3)

    def call(self, inputs, training=False):
        for layer in self.hidden:
            inputs = layer(inputs, training=training)
        return {"words": self.head(inputs)}


def subclassed(cls=Subclassed):
    model = rigl_tf.sparsify(cls(), 0.5)
    model(numbers((2, 5)))
    return model


def test_a_subclassed_model(tmp_path):
    model = subclassed()
    report = export(model, tmp_path / "export", inputs=numbers((2, 5)))
    assert report.dense_flops == 2 * (5 * 7 + 7 * 3)
    num_zeros = sum(np.sum(~mask) for mask in rigl_tf.get_masks(model).values())
    assert report.sparsity == pytest.approx(num_zeros / (5 * 7 + 7 * 3 + 7 + 3))
    x = numbers((4, 5))
    outputs = serve(report.path, inputs=tf.constant(x))
    np.testing.assert_allclose(outputs["words"], model(x)["words"], atol=1e-5)


@keras.saving.register_keras_serializable()
class Registered(Subclassed):
    pass


def test_a_keras_file_of_a_subclassed_model(tmp_path):
    model = subclassed(Registered)
    path = tmp_path / "model.keras"
    export(model, path, "keras", numbers((2, 5)))
    x = numbers((4, 5))
    loaded = keras.saving.load_model(path)
    np.testing.assert_allclose(loaded(x)["words"], model(x)["words"], atol=1e-5)


def test_a_dictionary_that_a_subclassed_model_takes(tmp_path):
    class OfTwo(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs["left"]) + self.dense(inputs["right"])

    x = {"left": numbers((2, 4)), "right": numbers((2, 4), 1)}
    model = rigl_tf.sparsify(OfTwo(), 0.5)
    model(x)
    report = export(model, tmp_path / "export", inputs=x)
    assert report.dense_flops == 2 * 2 * 4 * 3
    (outputs,) = serve(
        report.path, **{name: tf.constant(value) for name, value in x.items()}
    ).values()
    np.testing.assert_allclose(outputs, model(x), atol=1e-5)


# Strings, lookup tables, states.


@pytest.mark.parametrize("format", ["saved_model", "keras"])
def test_strings(format, tmp_path):
    inputs = keras.Input((3,), dtype="string", name="words")
    x = layers.StringLookup(vocabulary=["a", "b", "1"])(inputs)
    x = layers.Flatten()(layers.Embedding(5, 4)(x))
    x = layers.Dense(4, activation="softmax")(x)

    model = rigl_tf.sparsify(keras.Model(inputs, x), 0.5)
    path = tmp_path / ("export.keras" if format == "keras" else "export")
    rigl_tf.export(model, path, format)
    x = tf.constant([["a", "b", "c"], ["1", "1", "b"]])
    if format == "keras":
        got = keras.saving.load_model(path)(x)
    else:
        (got,) = serve(path, words=x).values()
    np.testing.assert_allclose(got, model(x), atol=1e-5)


class Best(layers.Layer):
    """The index of the largest input."""

    def call(self, inputs):
        return tf.argmax(inputs, -1)


def test_words_as_outputs(tmp_path, monkeypatch):
    words = layers.StringLookup(vocabulary=["a", "b", "c"], invert=True, num_oov_indices=0)
    dense = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3), Best(), words])
    model = rigl_tf.sparsify(dense, 0.5)
    report = rigl_tf.export(model, tmp_path / "export")
    x = numbers((20, 4))
    (outputs,) = serve(report.path, x=tf.constant(x)).values()
    assert len(set(outputs)) > 1
    np.testing.assert_array_equal(outputs, model(x))
    change_outputs(monkeypatch, lambda outputs: tf.strings.lower(outputs) + "!")
    with pytest.raises(RuntimeError, match="not those of the model"):
        rigl_tf.export(model, tmp_path / "export")


class Watched(layers.Layer):
    def __init__(self):
        super().__init__()
        self.largest = [keras.metrics.Mean("largest")]

    def call(self, inputs):
        self.largest[0].update_state(keras.ops.max(inputs))
        return inputs


def test_a_metric_in_a_layer(tmp_path):
    dense = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3), Watched()])
    model, x = rigl_tf.sparsify(dense, 0.5), numbers((20, 4))
    report = export(model, tmp_path / "export")
    (outputs,) = serve(report.path, x=tf.constant(x)).values()
    np.testing.assert_allclose(outputs, model(x), atol=1e-6)


def test_sentences(tmp_path):
    """How long the longest one is, is not known beforehand: FLOPs are not."""
    sentences = np.array(["the cat sat", "on the mat, the cat"])
    split = layers.TextVectorization()
    split.adapt(sentences)
    dense = keras.Sequential(
        [
            keras.Input((), dtype="string", name="text"),
            split,
            layers.Embedding(9, 4),
            layers.LSTM(3),
            layers.Dense(2, name="head"),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.5)
    report = export(model, tmp_path / "export", inputs=sentences)
    assert (report.flops, report.dense_flops, report.flops_ratio) == (None, None, None)
    assert len(report.not_counted) == 3
    assert all("shapes" in reason for reason in report.not_counted.values())
    assert "not counted" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["flops"] is None
    (outputs,) = serve(report.path, text=tf.constant(sentences)).values()
    np.testing.assert_allclose(outputs, model(sentences), atol=1e-5)


def test_float_inputs_of_an_embedding_are_in_its_range(tmp_path):
    dense = keras.Sequential(
        [keras.Input((64,)), layers.Embedding(2, 6), layers.Flatten(), layers.Dense(2)]
    )
    assert export(rigl_tf.sparsify(dense, 0.5), tmp_path / "export").flops > 0


def test_a_batch_of_one_size_and_a_state(tmp_path):
    layer = layers.LSTM(4, stateful=True, name="lstm")
    dense = keras.Sequential([keras.Input(batch_shape=(6, 5, 3), name="x"), layer, layers.Dense(2)])
    model = rigl_tf.sparsify(dense, 0.5)
    report = rigl_tf.export(model, tmp_path / "export")
    assert report.dense_flops == 2 * (5 * (3 * 16 + 4 * 16) + 4 * 2)
    assert not any(np.any(state) for state in model.get_layer("lstm").layer.states)
    artifact = tf.saved_model.load(report.path)
    x = numbers((6, 5, 3))
    for _ in range(2):
        np.testing.assert_allclose(artifact.serve(x), model(x), atol=1e-5)


def test_a_model_under_a_strategy(tmp_path):
    with mirrored().scope():
        model = sparse_mlp()
    report = export(model, tmp_path / "export")
    x = numbers((3, 16))
    (outputs,) = serve(report.path, features=tf.constant(x)).values()
    np.testing.assert_allclose(outputs, model(x), atol=1e-5)


# The report.


def test_the_report(tmp_path):
    model = sparse_mlp()
    masks = rigl_tf.get_masks(model)
    for mask, count in zip(masks.values(), (20, 10), strict=True):
        mask[...] = (np.arange(mask.size) < count).reshape(mask.shape)
    rigl_tf.set_masks(model, masks)
    report = rigl_tf.export(model, tmp_path / "export")
    assert report.num_weights == 16 * 12 + 12 + 12 * 3 + 3
    assert report.num_active == 20 + 12 + 10 + 3
    assert report.sparsity == pytest.approx(1 - 45 / 243)
    assert (report.flops, report.dense_flops) == (2 * 30, 2 * 228)
    assert report.flops_ratio == 30 / 228
    # Active values and biases, and bit masks of 192 and 36 bits.
    assert report.sparse_bytes == 4 * 45 + 24 + 5
    assert report.file_bytes == sum(len(data or b"") for data in listed(tmp_path).values())
    assert 0 < report.compressed_bytes < report.file_bytes
    assert 0 <= report.max_difference < 1e-5
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers == {
        **json.loads(json.dumps(dataclasses.asdict(report))),
        "sparsity": report.sparsity,
        "flops_ratio": report.flops_ratio,
    }
    text = str(report)
    for part in ("saved_model", "45 of 243", "60 of 456", "0.132", f"{report.file_bytes:,}"):
        assert part in text


def test_zeros_cost_nothing_when_compressed(tmp_path):
    def compressed_bytes(sparsity):
        dense = keras.Sequential([keras.Input((256,)), layers.Dense(256)])
        model = rigl_tf.sparsify(dense, sparsity, "erk")
        return export(model, tmp_path / "export").compressed_bytes

    assert compressed_bytes(0.9) < 0.25 * compressed_bytes(0.0)


# Where it is written.


@pytest.mark.parametrize("format", ["saved_model", "keras"])
def test_an_earlier_export_is_replaced(format, tmp_path):
    path = tmp_path / ("export.keras" if format == "keras" else "export")
    export(sparse_mlp(), path, format)
    if format == "saved_model":
        (path / "assets" / "stale").write_text("of the earlier export")
    model = sparse_mlp()
    model.layers[-1].layer.bias.assign([1, 2, 3])
    export(model, path, format)
    x = tf.constant(numbers((2, 16)))
    if format == "keras":
        outputs = keras.saving.load_model(path)(x)
    else:
        (outputs,) = serve(path, features=x).values()
        assert not (path / "assets" / "stale").exists()
    np.testing.assert_allclose(outputs, model(x, training=False), atol=1e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "export").mkdir()
    export(sparse_mlp(), tmp_path / "export")
    assert (tmp_path / "export" / "saved_model.pb").is_file()


def test_a_link_to_an_earlier_export_is_replaced(tmp_path):
    export(sparse_mlp(), tmp_path / "first")
    first = listed(tmp_path / "first")
    (tmp_path / "latest").symlink_to(tmp_path / "first")
    export(sparse_mlp(), tmp_path / "latest")
    assert listed(tmp_path / "first") == first
    assert not (tmp_path / "latest").is_symlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["first", "latest"]


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(sparse_mlp(), "export").path == "export"
    assert (tmp_path / "export" / "saved_model.pb").is_file()


class Added(keras.Model):
    """Takes a list."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs[0] + inputs[1]["more"])


def test_nested_inputs_of_a_subclassed_model(tmp_path):
    inputs = [numbers((2, 4)), {"more": numbers((2, 4), 1)}]
    model = Added()
    model(inputs)
    report = export(rigl_tf.sparsify(model, 0.5), tmp_path / "it", inputs=inputs)
    x, more = inputs[0], inputs[1]["more"]
    (outputs,) = serve(report.path, arg_0=tf.constant(x), arg_1_more=tf.constant(more)).values()
    np.testing.assert_allclose(outputs, model(inputs), atol=1e-5)


# In a fresh interpreter.


@pytest.mark.fresh_interpreter
@pytest.mark.parametrize("format", ["saved_model", "keras"])
def test_it_runs_in_a_fresh_interpreter(format, tmp_path, monkeypatch):
    if format == "saved_model":  # Where Keras cannot even be imported.
        (tmp_path / "keras.py").write_text("raise SystemExit('Keras is imported')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = keras.Input((3,), dtype="string", name="w")
    table = layers.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot")
    x = keras.Input((4,), name="x")
    hidden = layers.Concatenate()([table(words), x])
    outputs = {"q": layers.Dense(3, dtype="mixed_bfloat16")(hidden), "p": hidden}
    model = rigl_tf.sparsify(keras.Model({"w": words, "x": x}, outputs), 0.5)
    report = rigl_tf.export(model, tmp_path / f"it.{format}", format)
    assert report.max_difference < 0.05
    assert not report.notes
    assert [latency.batch_size for latency in report.latencies] == [1, 32]
    assert all(latency.dense is None for latency in report.latencies)
    assert [kernel.kernel for kernel in report.kernels] == ["dense"]
    assert (
        "The sparse kernel runs 'dense': TensorFlow multiplies dense matrices, zeros included"
        in str(report)
    )


@keras.saving.register_keras_serializable("test_export")
class Doubled(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


@pytest.mark.fresh_interpreter
@pytest.mark.parametrize("place", ["a module", "the program"])
def test_classes_of_the_user_are_known_in_the_fresh_interpreter(place, tmp_path, monkeypatch):
    if place == "the program":
        monkeypatch.setattr(Doubled, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], "Doubled", Doubled, raising=False)
    model = keras.Sequential([keras.Input((4,)), Doubled(3)])
    report = rigl_tf.export(model, tmp_path / "it.keras", "keras")
    assert report.max_difference < 1e-6
    assert report.notes == (
        "It holds classes or functions of your own (Doubled): they must be known wherever it is "
        "loaded.",
    )
    assert [latency.batch_size for latency in report.latencies] == [1, 32]  # only measured there


@pytest.mark.fresh_interpreter
def test_classes_that_cannot_be_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(Doubled, "unreadable", threading.Lock(), raising=False)
    monkeypatch.setattr(Doubled, "__module__", "__main__")
    model = keras.Sequential([keras.Input((4,)), Doubled(3)])
    report = rigl_tf.export(model, tmp_path / "it.keras", "keras")
    assert report.max_difference < 1e-6
    assert "could not be run in a fresh interpreter" in report.notes[-1]
    assert "Doubled" in report.notes[-1]


@pytest.mark.fresh_interpreter
def test_what_cannot_be_loaded_anywhere_is_thrown_away(untouched, monkeypatch):
    save = tf.saved_model.save

    def cut_off(module, path, **settings):
        save(module, path, **settings)
        (pathlib.Path(path) / "saved_model.pb").write_bytes(b"cut off")

    monkeypatch.setattr(tf.saved_model, "save", cut_off)
    with pytest.raises(RuntimeError, match="cannot be run by tensorflow in a fresh interpreter"):
        rigl_tf.export(sparse_mlp(), untouched / "export")


# What is refused. Each leaves the directory as it was.


@pytest.fixture
def untouched(tmp_path):
    """A directory with a file, a full directory and a file in it; checked afterwards."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    before = listed(tmp_path)
    yield tmp_path
    assert listed(tmp_path) == before


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        ("full", "saved_model", "`path` must be new, or an earlier export.*something else"),
        ("file", "saved_model", "`path` must be new, or an earlier export.*something else"),
        ("b.tflite", "saved_model", "writes a directory: give `format='litert'`, or change"),
        ("b.keras", "saved_model", "writes a directory: give `format='keras'`, or change"),
        ("b.h5", "web", r"must not end with '\.h5', .* no format writes such a file, or change"),
        ("model.h5", "keras", r"`path` must end with '\.keras'.*model\.h5"),
        ("model", "keras", r"`path` must end with '\.keras'"),
        ("model", "hdf5", r"`format` must be one of \['saved_model', 'keras', 'litert', .*'hdf5'"),
        ("model", None, r"`format` must be one of .*format=None"),
        ("file/model", "saved_model", "`path` must be in a directory.*file is a file"),
        ("file/a/model.keras", "keras", "`path` must be in a directory.*file is a file"),
        ("full/..", "saved_model", r"`path` must name a file or directory.*full/\.\."),
    ],
)
def test_bad_arguments(path, format, message, untouched):
    with pytest.raises((ValueError, OSError), match=message) as error:
        export(sparse_mlp(), untouched / path, format)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path", ["", ".", "gs://bucket/x", "http://host/x", pathlib.Path("s3://bucket/x")]
)
def test_paths_that_are_none(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`path` must name a file or directory on this machine"):
        export(sparse_mlp(), path)
    assert not listed(tmp_path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.ones((0, 16)), r"at least one example.*\(0, 16\)"),
        (np.ones((2, 5)), r"shapes of the model's inputs.*\(2, 5\) for 'features'.*\(None, 16\)"),
        (np.ones(16), r"shapes of the model's inputs.*\(16,\) for"),
        ("words", "strings where the model takes strings.*string for 'features'.*float32"),
        (tf.data.Dataset.from_tensors(np.ones((2, 16))), "a batch of arrays.*_TensorDataset"),
        ([None], "a batch of arrays.*NoneType"),
    ],
)
def test_inputs_that_are_none(inputs, message, untouched):
    with pytest.raises(ValueError, match=f"`inputs` must .*{message}") as error:
        export(sparse_mlp(), untouched / "export", inputs=inputs)
    assert "\n" not in str(error.value)


def test_inputs_that_a_subclassed_model_does_not_take(untouched):
    with pytest.raises(ValueError, match=r"model can be called on.*\(2, 4\).*to have val") as error:
        export(subclassed(), untouched / "export", inputs=numbers((2, 4)))
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("format", ["saved_model", "keras"])
def test_lora(format, untouched):
    model = sparse_mlp()
    model.layers[0].layer.enable_lora(2)
    with pytest.raises(ValueError, match=r"without LoRA.*'mlp' with LoRA in .*'hidden'"):
        export(model, untouched / f"new.{format}", format)


def test_a_full_directory_with_the_suffix_of_keras(tmp_path):
    (tmp_path / "model.keras").mkdir()
    (tmp_path / "model.keras" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="something else"):
        export(sparse_mlp(), tmp_path / "model.keras", "keras")
    assert len(listed(tmp_path)) == 2


def test_an_unbuilt_model(untouched):
    model = rigl_tf.sparsify(keras.Sequential([layers.Dense(3)], name="early"), 0.5)
    with pytest.raises(ValueError, match=r"built model.*'early'"):
        export(model, untouched / "export")


def test_an_unknown_input_dimension(untouched):
    model = keras.Sequential([keras.Input((None, 4)), layers.Conv1D(2, 3)])
    with pytest.raises(ValueError, match=r"input dimensions.*pass a batch, `inputs=...`"):
        export(model, untouched / "new" / "export")


def test_unknown_inputs(untouched):
    with pytest.raises(ValueError, match=r"not know its inputs.*pass a batch.*Subclassed"):
        export(subclassed(), untouched / "export")


def test_a_class_that_keras_does_not_know(untouched):
    with pytest.raises(ValueError, match=r"if Keras knows all classes.*'Subclassed'") as error:
        export(subclassed(), untouched / "model.keras", "keras", numbers((2, 5)))
    assert "\n" not in str(error.value)


def test_no_model(untouched):
    with pytest.raises(ValueError, match="Received: 'model'"):
        export("model", untouched / "export")


class Noise(layers.Layer):
    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


class KerasNoise(layers.Layer):
    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs))


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (Noise, RuntimeError, "two calls of the model itself: it is not deterministic"),
        (KerasNoise, ValueError, "must be in its layers, its random seeds too"),
    ],
)
def test_random_numbers_without_a_seed(layer, error, message, untouched):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layer()])
    with pytest.raises(error, match=message) as raised:
        export(model, untouched / "export")
    assert "\n" not in str(raised.value)


def test_a_model_that_is_random_at_inference(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), Noise()])
    with pytest.raises(RuntimeError, match="`check=False`"):
        export(model, tmp_path / "export")
    assert export(model, tmp_path / "export", check=False).max_difference > 0


# What goes wrong while it is written.


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A directory with an export of either format."""
    directory = tmp_path_factory.mktemp("exports")
    export(sparse_mlp(), directory / "export")
    export(sparse_mlp(), directory / "export.keras", "keras")
    return directory


@pytest.fixture
def earlier(exports, tmp_path):
    """A copy of these exports, which must survive."""
    shutil.copytree(exports, tmp_path, dirs_exist_ok=True)
    before = listed(tmp_path)
    yield tmp_path
    assert listed(tmp_path) == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_full_disk(when, earlier, monkeypatch):
    save = tf.saved_model.save

    def full(obj, path, **kwargs):
        if when == "after":
            save(obj, path, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export(sparse_mlp(), earlier / "export")
    with pytest.raises(OSError, match="No space left"):
        export(sparse_mlp(), earlier / "new")


def test_a_rename_that_fails(earlier, monkeypatch):
    rename = pathlib.Path.rename

    def failing(self, target):
        if target == earlier / "export" and not self.name.endswith(".earlier"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        export(sparse_mlp(), earlier / "export")


@pytest.mark.parametrize(
    ("path", "perturbation"),
    [
        ("export", 0.01),
        ("export", np.nan),
        ("new", 0.01),
        ("export.keras", 0.01),
        ("new.keras", np.inf),
    ],
)
def test_a_conversion_that_changes_the_outputs(path, perturbation, earlier, monkeypatch):
    perturb(monkeypatch, perturbation)
    format = "keras" if path.endswith(".keras") else "saved_model"
    with pytest.raises(
        RuntimeError, match="not those of the model, so it was thrown away"
    ) as error:
        export(sparse_mlp(), earlier / path, format)
    assert "not deterministic" not in str(error.value)
