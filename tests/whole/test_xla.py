"""The whole training step is one XLA program of static shapes: what a TPU needs.

A TPU cannot be tried here. What stops a program on one can be read off its HLO, which is the same
for every device before XLA optimises it: a dimension whose size is known only when it runs
(`f32[<=8]`, and the operations that set or ask for it), and calls that leave the program for the
host (custom calls, infeeds, sends). An operation without an XLA kernel, as those that call Python
or print, does not get there: it cannot be compiled.
"""

import itertools
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import INNER, ROOT, mlp, python

import rigl_tf
from rigl_tf.execution import engine

layers = keras.layers

DYNAMIC = {"set-dimension-size", "get-dimension-size", "dynamic-reshape"}
LEAVES = {"custom-call", "infeed", "outfeed", "send", "recv", "send-done", "recv-done"}


def classifier():
    return mlp(12, 16, 3, activation="relu")


def convnet():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(6, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.3),
            layers.Dense(3),
        ]
    )


def recurrent():
    return keras.Sequential([keras.Input((5, 4)), layers.GRU(6), layers.Dense(3)])


def attention():
    inputs = keras.Input((5, 4))
    x = layers.Add()([inputs, layers.MultiHeadAttention(2, 3)(inputs, inputs)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def every_second_step(algorithm, inner):
    return algorithm(inner, 20, update_frequency=2, drop_fraction=0.5)


def pruning(inner, end_step, update_frequency, drop_fraction):
    return rigl_tf.GradualPruning(inner, end_step, 0.9, update_frequency=update_frequency)


def redistributed(inner, *args, **kwargs):
    return rigl_tf.SNFS(inner, *args, redistribute=True, grow_init="random_normal", **kwargs)


def dnw(inner, *args, **kwargs):
    return rigl_tf.DNW(inner, 0.5)


def compiled(make, algorithm, inner=INNER["momentum"]):
    """A sparse model and a batch. All variables are there before the step is traced."""
    model = rigl_tf.sparsify(make(), 0.5)
    is_static = algorithm is rigl_tf.StaticSparse
    optimizer = algorithm(inner()) if is_static else every_second_step(algorithm, inner())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=True)
    model.optimizer.build(model.trainable_variables)
    x = tf.random.stateless_normal((8, *model.input_shape[1:]), (0, 0))
    return model, (x, tf.range(8) % 3)


def opcodes(hlo):
    return set(re.findall(r"[\])}] ([a-z][a-z0-9-]*)\(", hlo))


def check_is_static(hlo):
    assert not re.search(r"\[[^\]\s]*<=", hlo)
    assert not opcodes(hlo) & (DYNAMIC | LEAVES)


@pytest.mark.parametrize(
    ("make", "algorithm", "inner", "policy"),
    [
        (classifier, rigl_tf.RigL, INNER["momentum"], "float32"),
        (classifier, rigl_tf.SET, INNER["momentum"], "float32"),
        (classifier, rigl_tf.SNFS, INNER["momentum"], "float32"),
        (classifier, rigl_tf.StaticSparse, INNER["momentum"], "float32"),
        (classifier, redistributed, INNER["momentum"], "float32"),
        (classifier, dnw, INNER["momentum"], "float32"),
        (classifier, pruning, INNER["momentum"], "float32"),
        (convnet, rigl_tf.RigL, keras.optimizers.Adam, "mixed_bfloat16"),
        (recurrent, rigl_tf.RigL, keras.optimizers.Adam, "float32"),
        (attention, rigl_tf.RigL, keras.optimizers.Adam, "float32"),
    ],
)
def test_a_training_step_is_static(make, algorithm, inner, policy):
    keras.config.set_dtype_policy(policy)
    model, batch = compiled(make, algorithm, inner)
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    hlo = step.experimental_get_compiler_ir(batch)(stage="hlo")
    check_is_static(hlo)
    # Forward and backward, and, if an update replaces a gradient step, both branches.
    found = opcodes(hlo)
    assert "dot" in found
    assert ("conditional" in found) == (algorithm not in (rigl_tf.StaticSparse, dnw))
    # Doubles are slow on a TPU.
    assert "f64[" not in hlo
    # The program is the same at every step; else it would be compiled anew for each of them.
    model.optimizer.step.assign(4)
    assert step.experimental_get_compiler_ir(batch)(stage="hlo") == hlo


def test_the_optimised_program_is_static_too():
    model, batch = compiled(classifier, rigl_tf.RigL)
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    check_is_static(step.experimental_get_compiler_ir(batch)(stage="optimized_hlo"))


def test_a_dynamic_shape_would_be_found():
    def positive(x):
        return 2 * tf.boolean_mask(x, x > 0)

    x = tf.constant([1.0, -1.0])
    hlo = tf.function(positive, jit_compile=True).experimental_get_compiler_ir(x)(stage="hlo")
    assert re.search(r"\[[^\]\s]*<=", hlo)
    assert opcodes(hlo) & DYNAMIC


def test_a_call_to_the_host_would_be_found():
    def on_host(x):
        return tf.numpy_function(np.sin, [x], tf.float32)

    with pytest.raises(ValueError, match=r"unsupported operations.*PyFunc"):
        tf.function(on_host, jit_compile=True).experimental_get_compiler_ir(1.0)(stage="hlo")


def test_a_step_of_a_strategy():
    """The step in `strategy.run`, compiled as one: two mask updates move the connections."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model, batch = compiled(classifier, rigl_tf.RigL)

    @tf.function(jit_compile=True, autograph=False)
    def step(batch):
        return strategy.run(model.train_step, (batch,))

    with strategy.scope():
        check_is_static(step.experimental_get_compiler_ir(batch)(stage="hlo"))
        masks = [rigl_tf.get_masks(model)]
        losses = []
        for _ in range(4):
            losses.append(float(step(batch)["loss"]))
            masks.append(rigl_tf.get_masks(model))
    assert np.all(np.isfinite(losses))
    moved = [
        any((before[path] != after[path]).any() for path in before)
        for before, after in itertools.pairwise(masks)
    ]
    assert moved == [False, False, True, False]
    for kernel in rigl_tf.masks.sparse_kernels(model).values():
        mask = masks[-1][kernel.path]
        assert mask.sum() == masks[0][kernel.path].sum()
        assert not kernel.numpy()[~mask].any()


TRAINS = """
import sys
import keras, numpy as np, rigl_tf
layers = keras.layers
hidden = [layers.Dense(1024, activation="relu") for _ in range(int(sys.argv[1]))]
model = keras.Sequential([keras.Input((1024,)), *hidden, layers.Dense(3)])
model = rigl_tf.sparsify(model, 0.9)
settings = {"grow_init": "random_normal"} if sys.argv[2] == "SET" else {}
optimizer = getattr(rigl_tf, sys.argv[2])("sgd", 100, update_frequency=2, **settings)
model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=True)
model.train_on_batch(np.ones((2, 1024), "float32"), np.zeros(2))
"""


def temporary_memory(num_layers, algorithm, folder):
    """The bytes that XLA allocates for all temporary arrays of a training step together."""
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
    arguments = ("-c", TRAINS, str(num_layers), algorithm)
    done = python(*arguments, XLA_FLAGS=flags, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    (report,) = pathlib.Path(folder).glob("*one_step*-buffer-assignment.txt")
    return int(re.search(r"size (\d+), preallocated-temp", report.read_text())[1])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["RigL", "SET"])
def test_updates_of_many_kernels_share_their_temporary_memory(algorithm, tmp_path):
    """More kernels need memory for their gradients and new masks alone: 5 bytes a weight."""
    two, six = (temporary_memory(num, algorithm, tmp_path / str(num)) for num in (2, 6))
    assert (six - two) / (4 * 1024**2) < 7


class KeepsFew(rigl_tf.SparseOptimizer):
    """An algorithm whose mask is so simple that XLA would compute it again and again."""

    def new_mask(self, kernel, mask, gradient, step):
        return mask & (tf.abs(kernel) > 0.1)


def num_instructions(num_kernels):
    """In the optimised program of a step."""
    model, batch = compiled(lambda: mlp(*[40] * num_kernels, 3), KeepsFew)
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    return step.experimental_get_compiler_ir(batch)(stage="optimized_hlo").count(" = ")


def test_the_program_grows_with_the_number_of_kernels_and_not_with_its_square():
    few, more, many = (num_instructions(num) for num in (2, 6, 14))
    assert many - more < 2.5 * (more - few)


# CSR kernels.


class Unbuilt(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.first, self.last = layer, layers.Dense(3)

    def call(self, inputs):
        return self.last(self.first(inputs))


@pytest.mark.parametrize("made_by", ["SparseWrapper", "sparsify"])
def test_a_model_of_csr_kernels_that_is_not_built_trains_without_xla(made_by):
    x, y = np.ones((8, 12), "float32"), np.ones((8, 3), "float32")
    if made_by == "sparsify":
        model = rigl_tf.sparsify(Unbuilt(layers.Dense(16)), 0.5, execution="csr")
    else:
        model = Unbuilt(rigl_tf.SparseWrapper(layers.Dense(16), 0.5, execution="csr"))
    with pytest.warns(UserWarning, match="Proceeding with `jit_compile=False`"):
        model.compile("sgd", "mse", jit_compile=True)
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"])
    assert rigl_tf.sparsity_summary(model).kernels[0].execution == "csr"


@pytest.mark.parametrize(
    ("layer", "shape"), [(layers.Dense(4), (2, 6)), (layers.Conv2D(4, 3), (2, 5, 5, 6))]
)
def test_the_sentence_of_xla_says_what_to_do(layer, shape):
    if not engine.is_native():
        pytest.skip("There is no C++ compiler.")
    layer = rigl_tf.SparseWrapper(layer, 0.5, execution="csr")
    x = tf.ones(shape)
    layer(x)
    with pytest.raises(tf.errors.UnimplementedError, match="XLA cannot compile CSR kernels: leave"):
        tf.function(layer, jit_compile=True)(x)
