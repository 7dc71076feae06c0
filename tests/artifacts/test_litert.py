"""Tests of `rigl_tf.export(..., format="litert")`: what is stored, run, told and refused."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from helpers import covers_part, numbers

import rigl_tf
from rigl_tf.artifacts import kernels, layouts, litert_file, runtime
from rigl_tf.artifacts.programs import run_artifact
from rigl_tf.masks import kernels_of

layers = keras.layers
NAMES = {"litert": "m.tflite", "onnx": "m.onnx", "web": "m"}


def with_zeros(model, blocks=(), sparsity=0.9):
    """A sparse model, some of whose kernels have blocks of a size along their inputs."""
    sparse = rigl_tf.sparsify(model, sparsity, "uniform", dense_layers=["stem", "head"])
    rng, masks = np.random.default_rng(0), rigl_tf.get_masks(sparse)
    for path, mask in masks.items():
        size = next((size for name, size in dict(blocks).items() if name in path), 1)
        coarse = rng.random((mask.shape[-2] // size, mask.shape[-1])) > sparsity
        masks[path] = np.repeat(coarse, size, axis=0).reshape(mask.shape)
    rigl_tf.set_masks(sparse, masks)
    for path, kernel in kernels_of(sparse).items():
        kernel.assign(rng.normal(size=kernel.shape) * masks[path])
    return sparse


def mlp(blocks=()):
    model = keras.Sequential(
        [
            keras.Input((32,), name="x"),
            layers.Dense(32, "relu", name="stem"),
            layers.Dense(64, "relu", name="one"),
            layers.Dense(48, "relu", name="two"),
            layers.Dense(3, name="head"),
        ],
        name="mlp",
    )
    return with_zeros(model, blocks)


def mobile(padding="valid"):
    """What XNNPACK runs sparse; its normalisations are folded into the kernels."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.ZeroPadding2D(1)(inputs) if padding == "valid" else inputs
    x = layers.Conv2D(8, 3, strides=2, padding=padding, use_bias=False, name="stem")(x)
    x = layers.ReLU()(layers.BatchNormalization(gamma_initializer="random_normal")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(16, 1, use_bias=False, name="one")(x)
    x = layers.ReLU()(layers.BatchNormalization(gamma_initializer="random_normal")(x))
    x = layers.Conv2D(16, 1, activation="relu", name="two")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x), name="mobile")
    return with_zeros(model)


def predictions(path, **inputs):
    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    return runner(**inputs)


def operations_of(report):
    return litert_file.read(pathlib.Path(report.path).read_bytes())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports of both networks, with their reports."""
    directory = tmp_path_factory.mktemp("litert")
    networks = {"mlp": mlp({"one": 4}), "mobile": mobile()}
    return {
        name: (
            model,
            rigl_tf.export(model, directory / f"{name}.tflite", "litert", measure=name == "mlp"),
        )
        for name, model in networks.items()
    }


# What is written.


@pytest.mark.parametrize("network", ["mlp", "mobile"])
def test_it_predicts_what_the_model_predicts(network, exported):
    model, report = exported[network]
    (name,) = [tensor.name for tensor in model.inputs]
    for batch_size in (1, 5):
        x = numbers((batch_size, *model.input_shape[1:]))
        (outputs,) = predictions(report.path, **{name: x}).values()
        np.testing.assert_allclose(outputs, model(x), atol=1e-5)
    assert report.max_difference < 1e-5
    assert report.file_bytes < report.dense_file_bytes
    # Small files are mostly structure: the values alone are fewer bytes than the whole.
    assert report.bound_bytes < report.sparse_bytes < report.file_bytes


def test_the_fresh_interpreter_needs_neither_tensorflow_nor_this_library(exported, tmp_path):
    program = run_artifact.__file__
    _, report = exported["mlp"]
    request = {"runtime": "litert", "paths": [report.path], "batch_sizes": [], "size": None}
    (tmp_path / "request.json").write_text(json.dumps({**request, "limit": 1}))
    np.savez(tmp_path / "inputs.npz", _x=numbers((2, 32)))
    code = (
        f"import runpy, sys; sys.argv = ['', {str(tmp_path)!r}]\n"
        f"runpy.run_path({program!r}, run_name='__main__')\n"
        "print([name for name in ('tensorflow', 'keras', 'rigl_tf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert outputs["_output_0"].shape == (2, 3)


def test_sparse_storage_is_read_as_it_was_written(exported):
    """Also where a normalisation was folded into the kernel: its zeros stay."""
    for model, report in exported.values():
        operations = operations_of(report)
        masks = rigl_tf.get_masks(model)
        for path, mask in masks.items():
            turned = mask.reshape(-1, mask.shape[-1]).T
            (found,) = [
                each.weights
                for each in operations
                if each.weights is not None and each.weights.array.size == mask.size
                if np.array_equal(each.weights.array.reshape(turned.shape) != 0, turned)
            ]
            assert found.block == (4 if model.name == "mlp" and path == "mlp/one/kernel" else 1)


def test_values_of_blocks(exported):
    model, report = exported["mlp"]
    operations = operations_of(report)
    kernel = model.get_layer("one").layer.kernel.numpy()
    (found,) = [each for each in operations if each.weights.block == 4]
    np.testing.assert_array_equal(found.weights.array, kernel.T)
    assert not found.is_expanded


# What is told.


def test_what_runs_each_kernel(exported):
    _, report = exported["mlp"]
    one, two = report.kernels
    assert (one.path, one.structure, one.kernel, one.advice) == (
        "mlp/one/kernel",
        "blocks of (4, 1)",
        "native sparse",
        "",
    )
    assert (two.kernel, two.structure) == ("expanded at load", "unstructured")
    assert "no sparse FULLY_CONNECTED" in two.reason
    assert "blocks of (4, 1) in float32" in two.advice
    text = str(report)
    assert "mlp/two/kernel: It is no faster" in text
    assert f"(dense: {report.dense_file_bytes:,})" in text
    assert json.loads(json.dumps(report.to_dict()))["kernels"][0]["kernel"] == "native sparse"


def test_a_kernel_without_structure_that_is_stored_in_blocks(tmp_path):
    """At 98.5 % of zeros the converter takes blocks of 4, most of whose values are zeros."""
    hidden = layers.Dense(300, name="hidden", use_bias=False)
    dense = keras.Sequential([keras.Input((784,)), hidden, layers.Dense(10, name="head")])
    sparse = rigl_tf.sparsify(dense, {"hidden": 0.985, "head": 0.5})
    report = rigl_tf.export(sparse, tmp_path / "m.tflite", "litert", measure=False)
    assert [each.kernel for each in report.kernels] == ["native sparse", "expanded at load"]
    assert report.kernels[0].structure == "unstructured"
    assert report.kernels[0].reason.endswith("stores this one, with the zeros inside of them")
    found = next(each.weights for each in operations_of(report) if each.weights.block == 4)
    assert found.array.size == 784 * 300


def test_latencies_of_both_take_turns(exported):
    _, report = exported["mlp"]
    assert [each.batch_size for each in report.latencies] == [1, 32]
    for latency in report.latencies:
        for median, least, most in (latency.sparse, latency.dense):
            assert 0 < least <= median <= most
        assert latency.speedup == pytest.approx(latency.dense[0] / latency.sparse[0])
        assert f"batch {latency.batch_size}" in str(report)
    assert exported["mobile"][1].latencies == ()


def test_what_xnnpack_runs_sparse_elsewhere(exported):
    _, report = exported["mobile"]
    for kernel in report.kernels:
        assert kernel.in_browser == "native sparse"
        assert "in a browser" in kernel.advice


@pytest.mark.parametrize(
    ("machine", "kernel"), [("aarch64", "native sparse"), ("x86_64", "expanded at load")]
)
def test_the_machine_decides(machine, kernel, exported, monkeypatch):
    model, report = exported["mobile"]
    monkeypatch.setattr(kernels.platform, "machine", lambda: machine)
    arrays = {path: each.numpy() for path, each in kernels_of(model).items()}
    operations = operations_of(report)
    name = layouts.namer(model, operations)
    reports = kernels.report_litert(arrays, operations, name)
    assert {each.kernel for each in reports} == {kernel}


def test_dense_storage(tmp_path):
    report = rigl_tf.export(
        mlp(), tmp_path / "m.tflite", "litert", sparse_storage=False, measure=False
    )
    assert report.dense_file_bytes is None
    assert {each.kernel for each in report.kernels} == {"dense"}
    assert "it is stored dense, in float32" in report.kernels[0].reason


def test_a_stripped_model_has_sparse_kernels(tmp_path):
    report = rigl_tf.export(rigl_tf.strip(mlp()), tmp_path / "m.tflite", "litert", measure=False)
    assert [each.path for each in report.kernels] == ["mlp/one/kernel", "mlp/two/kernel"]


# Other models.


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(16, "relu"), layers.Dense(4)

    def call(self, inputs):
        return {"b": self.second(self.first(inputs["p"])), "a": [inputs["q"] * 2, inputs["p"]]}


@covers_part
def test_a_subclassed_model_with_nested_outputs(tmp_path):
    batch = {"q": numbers((3, 2)), "p": numbers((3, 8), 1)}
    model = Subclassed()
    model(batch)
    sparse = rigl_tf.sparsify(model, 0.8)
    report = rigl_tf.export(sparse, tmp_path / "m.tflite", "litert", batch, measure=False)
    assert report.max_difference < 1e-5
    outputs = predictions(report.path, **batch)
    assert sorted(outputs) == ["a_0", "a_1", "b"]
    np.testing.assert_array_equal(outputs["a_1"], batch["p"])


@covers_part
def test_a_csr_model(tmp_path):
    model = rigl_tf.with_execution(mlp({"one": 4}), "csr")
    report = rigl_tf.export(model, tmp_path / "m.tflite", "litert", measure=False)
    assert [each.kernel for each in report.kernels] == ["native sparse", "expanded at load"]


@covers_part
@pytest.mark.parametrize(
    ("make", "structure", "kernel"),
    [
        (lambda: layers.GRU(8), None, "expanded at load"),
        (lambda: layers.GRU(8, reset_after=False), None, "expanded at load"),  # cut in two
        (lambda: layers.ConvLSTM1D(4, 3), None, "expanded at load"),  # cut in four
        (lambda: layers.LSTM(8), rigl_tf.structures.Block((4, 1)), "native sparse"),
    ],
)
def test_a_recurrent_model_takes_one_example(make, structure, kernel, tmp_path):
    shape = (5, 6, 8) if isinstance(make(), layers.ConvLSTM1D) else (5, 8)
    model = keras.Sequential([keras.Input(shape), make()])
    sparse = rigl_tf.sparsify(model, 0.75, structure=structure)
    report = rigl_tf.export(sparse, tmp_path / "m.tflite", "litert", measure=False)
    assert report.max_difference < 1e-5
    assert [each.kernel for each in report.kernels] == [kernel] * 2
    found = layouts.matched(rigl_tf.get_masks(sparse), operations_of(report))
    for path, mask in rigl_tf.get_masks(sparse).items():
        parts = {use.weights.index: use.weights for use in found[path]}.values()
        assert sum(np.count_nonzero(part.array) for part in parts) == np.count_nonzero(mask)


def test_a_layer_that_is_used_twice(tmp_path):
    shared = layers.Dense(16, name="shared")
    inputs = keras.Input((16,))
    model = rigl_tf.sparsify(keras.Model(inputs, shared(shared(inputs))), 0.9)
    report = rigl_tf.export(model, tmp_path / "m.tflite", "litert", measure=False)
    assert [each.kernel for each in report.kernels] == ["expanded at load"]


# Quantisation.


def test_unstructured_zeros_in_float16(tmp_path):
    report = rigl_tf.export(
        mlp(), tmp_path / "m.tflite", "litert", quantize="float16", measure=False
    )
    assert {each.kernel for each in report.kernels} == {"expanded at load"}


@pytest.mark.parametrize("quantize", ["float16", "dynamic_int8", "int8"])
def test_quantised_and_dense(quantize, tmp_path):
    model, data = mlp({"one": 4}), numbers((20, 32))
    report = rigl_tf.export(
        model,
        tmp_path / "m.tflite",
        "litert",
        quantize=quantize,
        representative_data=data if quantize == "int8" else None,
        sparse_storage=False,
        measure=False,
    )
    assert report.max_difference > 0
    assert {each.kernel for each in report.kernels} == {"dense"}
    stored = "float16" if quantize == "float16" else "int8"
    assert stored in report.kernels[0].reason or quantize == "dynamic_int8"


def test_blocks_of_16_in_int8(tmp_path):
    model, data = mlp({"one": 16, "two": 16}), numbers((20, 32))
    report = rigl_tf.export(
        model,
        tmp_path / "m.tflite",
        "litert",
        data,
        quantize="int8",
        representative_data=data,
        measure=False,
    )
    assert {each.kernel for each in report.kernels} == {"native sparse"}


@pytest.mark.parametrize(
    ("quantize", "block", "why"),
    [
        ("float16", 4, "blocks, of which LiteRT computes NaN.*layer 'one'"),
        ("dynamic_int8", 1, "fails to load.*sparse_storage=False.*layer 'one'"),
        ("int8", 4, "fails to load.*sparse_storage=False.*layer 'one'"),
    ],
)
def test_known_faults_are_refused(quantize, block, why, tmp_path):
    # Kernels large enough that the converter quantises them.
    model = mlp({"one": block})
    data = numbers((8, 32)) if quantize == "int8" else None
    with pytest.raises(ValueError, match=why) as error:
        rigl_tf.export(
            model,
            tmp_path / "m.tflite",
            "litert",
            quantize=quantize,
            representative_data=data,
            measure=False,
        )
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_blocks_of_16_in_dynamic_int8_are_refused(tmp_path):
    model = mlp({"one": 16, "two": 16})
    with pytest.raises(ValueError, match=r"wrong outputs.*quantize='int8'"):
        rigl_tf.export(model, tmp_path / "m.tflite", "litert", quantize="dynamic_int8")
    assert not list(tmp_path.iterdir())


def without_inputs(num_inputs, units, num_dead):
    """A Dense layer, some of whose units have no connections, the others have all."""
    model = rigl_tf.sparsify(
        keras.Sequential([keras.Input((num_inputs,), name="x"), layers.Dense(units)]), 0.5
    )
    masks = {path: np.zeros(mask.shape, bool) for path, mask in rigl_tf.get_masks(model).items()}
    for mask in masks.values():
        mask[:, num_dead:] = True
    rigl_tf.set_masks(model, masks)
    kernel = model.layers[0].layer.kernel
    kernel.assign(numbers(kernel.shape) * next(iter(masks.values())))
    return model


@pytest.mark.parametrize(("num_inputs", "units"), [(7, 3), (30, 16), (3, 8)])
def test_blocks_that_divide_no_kernel_are_stored_dense(num_inputs, units, tmp_path):
    """The converter stores them in blocks of 4 even so, which LiteRT reads wrong."""
    model = without_inputs(num_inputs, units, units // 2)
    before = model.get_weights()
    report = rigl_tf.export(model, tmp_path / "m.tflite", "litert", measure=False)
    (kernel,) = report.kernels
    assert kernel.kernel == "dense"
    assert "look like blocks of 4" in kernel.reason
    (operation,) = operations_of(report)
    np.testing.assert_array_equal(operation.weights.array.T, model.layers[0].layer.kernel)
    for array, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(array, weight)


def test_blocks_that_divide_no_kernel_of_a_recurrent_layer(tmp_path):
    model = rigl_tf.sparsify(keras.Sequential([keras.Input((5, 7)), layers.GRU(4)]), 0.5)
    columns = {path: np.ones(mask.shape) for path, mask in rigl_tf.get_masks(model).items()}
    for mask in columns.values():
        mask[:, ::2] = 0
    rigl_tf.set_masks(model, columns)
    for path, kernel in kernels_of(model).items():
        kernel.assign(numbers(kernel.shape) * columns[path])
    report = rigl_tf.export(model, tmp_path / "m.tflite", "litert", measure=False)
    assert report.max_difference < 1e-5
    assert [each.kernel for each in report.kernels] == ["dense", "native sparse"]
    assert "look like blocks of 4" in report.kernels[0].reason


def test_blocks_that_divide_no_kernel_are_not_quantised(tmp_path):
    with pytest.raises(ValueError, match=r"do not divide its 30 inputs.*sparse_storage=False"):
        rigl_tf.export(
            without_inputs(30, 16, 8), tmp_path / "m.tflite", "litert", quantize="float16"
        )
    assert not list(tmp_path.iterdir())


def test_a_kernel_without_active_weights(tmp_path):
    model = without_inputs(8, 4, 4)
    report = rigl_tf.export(model, tmp_path / "m.tflite", "litert", measure=False)
    assert report.kernels[0].sparsity == 1


@pytest.mark.parametrize("format", ["litert", "web", "onnx"])
def test_a_state_is_kept_by_a_saved_model_alone(format, tmp_path):
    model = keras.Sequential(
        [keras.Input(batch_shape=(2, 3, 4)), layers.GRU(4, stateful=True, name="memory")]
    )
    path = tmp_path / NAMES[format]
    with pytest.raises(ValueError, match=r"keeps no state.*'memory' with `stateful=True`"):
        rigl_tf.export(rigl_tf.sparsify(model, 0.5), path, format)
    assert not list(tmp_path.iterdir())


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "m.onnx"}, r"`path` must end with '\.tflite'"),
        ({"quantize": "int4"}, "`quantize` must be one of"),
        ({"quantize": "int8"}, "`representative_data`, a batch of typical inputs, must be given"),
        ({"representative_data": np.ones((2, 32))}, "and only then.*quantize=None, and data"),
        (
            {"quantize": "int8", "representative_data": np.ones((2, 5))},
            "`representative_data` must have the shapes of the model's inputs",
        ),
        (
            {"quantize": "int8", "representative_data": "words"},
            "`representative_data` must be strings where",
        ),
        ({"path": "m", "format": "saved_model", "quantize": "int8"}, '`format="litert"`'),
        ({"path": "m", "format": "web", "sparse_storage": False}, '`format="litert"`'),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    arguments = {"path": "m.tflite", "format": "litert", "inputs": numbers((2, 32)), **arguments}
    path = tmp_path / arguments.pop("path")
    with pytest.raises(ValueError, match=message) as error:
        rigl_tf.export(mlp(), path, **arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["litert", "web"])
def test_a_model_without_sparse_kernels(format, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="needs a model with sparse kernels"):
        rigl_tf.export(model, tmp_path / NAMES[format], format)
    assert not list(tmp_path.iterdir())


def test_unknown_dimensions(tmp_path):
    model = keras.Sequential([keras.Input((None, 4), name="x"), layers.Conv1D(8, 3)])
    sparse = rigl_tf.sparsify(model, 0.8)
    with pytest.raises(ValueError, match="except the batch size, must be known: pass a batch"):
        rigl_tf.export(sparse, tmp_path / "m.tflite", "litert")
    assert not list(tmp_path.iterdir())
    batch = numbers((2, 9, 4))
    report = rigl_tf.export(sparse, tmp_path / "m.tflite", "litert", batch, measure=False)
    assert report.max_difference < 1e-5


class Unknown(layers.Layer):
    def call(self, inputs):
        return tf.linalg.inv(tf.eye(4) + inputs[:, :, None])[:, :, 0]


def test_what_litert_cannot_express(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), Unknown()])
    sparse = rigl_tf.sparsify(model, 0.5)
    with pytest.raises(ValueError, match="converter of LiteRT must know every operation") as error:
        rigl_tf.export(sparse, tmp_path / "m.tflite", "litert")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["litert", "web"])
def test_mixed_precision(format, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="half")])
    with pytest.raises(ValueError, match=r"computes in float32.*in float16"):
        rigl_tf.export(rigl_tf.sparsify(model, 0.5), tmp_path / NAMES[format], format)
    assert not list(tmp_path.iterdir())


def test_transposed_convolutions(tmp_path):
    model = keras.Sequential(
        [keras.Input((4, 4, 8)), layers.Conv2DTranspose(16, 3, strides=2), layers.Flatten()]
    )
    sparse = rigl_tf.sparsify(model, 0.8)
    report = rigl_tf.export(sparse, tmp_path / "m.tflite", "litert", measure=False)
    (kernel,) = report.kernels
    assert kernel.kernel in ("expanded at load", "dense")
    assert "no sparse TRANSPOSE_CONV" in kernel.advice


def test_words_are_refused(tmp_path):
    inputs = keras.Input((1,), dtype="string")
    lookup = layers.StringLookup(vocabulary=["0", "1"], output_mode="one_hot")
    model = rigl_tf.sparsify(keras.Model(inputs, layers.Dense(3)(lookup(inputs))), 0.5)
    with pytest.raises(ValueError, match="must be of a model of numbers"):
        rigl_tf.export(model, tmp_path / "m.tflite", "litert")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_run(tmp_path):
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="run by ai-edge-litert in a fresh inter") as error:
        runtime.run("litert", tmp_path / "broken.tflite", {"x": np.ones(3)})
    assert "\n" not in str(error.value)


def test_wrong_outputs_are_thrown_away(tmp_path, monkeypatch):
    run = runtime.run

    def wrong(*arguments, **settings):
        outputs, latencies = run(*arguments, **settings)
        return {name: array + 0.1 for name, array in outputs.items()}, latencies

    monkeypatch.setattr(runtime, "run", wrong)
    with pytest.raises(RuntimeError, match="not those of the model, so it was thrown away"):
        rigl_tf.export(mlp(), tmp_path / "m.tflite", "litert", measure=False)
    assert not list(tmp_path.iterdir())


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_MODULES", {"litert": ("no_such_module", "ai-edge-litert")})
    with pytest.raises(ImportError, match="pip install ai-edge-litert") as error:
        rigl_tf.export(mlp(), tmp_path / "m.tflite", "litert")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
