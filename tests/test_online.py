"""`rigl_tf.online`: the same connections as from the whole gradient, tile by tile."""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ON_ONE_DEVICE, in_world

import rigl_tf
from rigl_tf import online, selection


def random_scores(kind, size, dtype):
    generator = np.random.default_rng(0)
    scores = {
        "plain": generator.normal(size=size),
        "ties": generator.integers(-1, 2, size=size),
        "one value": np.full(size, -3.5),
        "zeros of both signs": generator.choice([0.0, -0.0], size=size),
        "without a limit": generator.choice([np.inf, -np.inf, 0.0], size=size),
    }[kind]
    return tf.cast(scores.astype("float64"), dtype)


def tiles_of(scores, length):
    """The tiles of a vector; the last one is filled up with what must not be found."""
    size = scores.shape[0]
    num_tiles = -(-size // length)
    padded = tf.concat([scores, tf.fill([num_tiles * length - size], scores.dtype.max)], axis=0)

    def tile(number):
        indices = tf.cast(number * length + tf.range(length), tf.int64)
        found = tf.slice(padded, [number * length], [length])
        return found, tf.where(indices < size, indices, tf.constant(-1, tf.int64))

    return tile, num_tiles


def flat_indices(mask):
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_top_k_of_tiles_is_that_of_all_scores(dtype, world):
    cases = ((47, 10), (10, 10), (3, 1), (10, 47))
    # Each case is another graph; one that loops over tiles is enough for the other types.
    for length, k in cases if dtype == "float32" or world == "eager" else cases[1:2]:

        def find(scores, length=length, k=k):
            return online.top_k_of_tiles(*tiles_of(scores, length), k, dtype)

        find = in_world(world, find)
        for kind in ("plain", "ties", "one value", "zeros of both signs", "without a limit"):
            scores = random_scores(kind, 47, dtype)
            found, indices = find(scores)
            assert found.dtype == dtype
            assert sorted(indices.numpy().tolist()) == flat_indices(selection.top_k_mask(scores, k))
            values = scores.numpy().astype("float64")
            # By hand: from the largest, and of equal ones from the first.
            order = sorted(range(47), key=lambda index: (-values[index], index))
            assert indices.numpy().tolist() == order[:k]
            np.testing.assert_array_equal(found.numpy().astype("float64"), values[order[:k]])


def test_fewer_scores_than_wanted():
    tile, num_tiles = tiles_of(tf.constant([1.0, float("-inf"), 2.0]), 2)
    scores, indices = online.top_k_of_tiles(tile, num_tiles, 5)
    assert indices.numpy().tolist() == [2, 0, 1, -1, -1]
    assert scores.numpy()[:3].tolist() == [2.0, 1.0, float("-inf")]


def layer_case(layer, input_shape, dtype="float32", seed=0):
    """Inputs, gradient of the outputs, and the kernel's, of small integers: products are exact."""
    generator = np.random.default_rng(seed)
    layer.build(input_shape)
    inputs = tf.cast(generator.integers(-3, 4, size=input_shape), dtype)
    with tf.GradientTape() as tape:
        outputs = layer(tf.cast(inputs, "float32"))
        of_outputs = tf.cast(generator.integers(-3, 4, size=outputs.shape), "float32")
        loss = tf.reduce_sum(outputs * of_outputs)
    gradient = tape.gradient(loss, layer.kernel.value)
    kept = generator.random(layer.kernel.shape) < 0.3
    return inputs, tf.cast(of_outputs, dtype), gradient.numpy(), kept


def check_found(found, gradient, kept, k):
    values, indices = (each.numpy() for each in found)
    scores = np.where(kept, -np.inf, np.abs(gradient)).ravel()
    assert sorted(indices.tolist()) == flat_indices(selection.top_k_mask(tf.constant(scores), k))
    np.testing.assert_array_equal(values.astype("float32"), scores[indices])
    assert (np.diff(scores[indices]) <= 0).all()


@pytest.mark.parametrize(
    ("tile_rows", "world"),
    [(1, "eager"), (1, "graph"), (None, "eager"), *[(4, world) for world in ON_ONE_DEVICE]],
)
def test_dense_kernel(tile_rows, world):
    inputs, of_outputs, gradient, kept = layer_case(keras.layers.Dense(7), (5, 11))
    for k in (9, int((~kept).sum())):
        find = functools.partial(online.largest_gradients, k=k, tile_rows=tile_rows)
        check_found(in_world(world, find)(inputs, of_outputs, kept), gradient, kept, k)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(dtype):
    inputs, of_outputs, gradient, kept = layer_case(keras.layers.Dense(7), (5, 11), dtype)
    found = online.largest_gradients(inputs, of_outputs, kept, 9, tile_rows=4)
    assert found[0].dtype == dtype
    check_found(found, gradient, kept, 9)


def test_dense_kernel_on_sequences():
    inputs, of_outputs, gradient, kept = layer_case(keras.layers.Dense(7), (2, 3, 11))
    check_found(online.largest_gradients(inputs, of_outputs, kept, 9, 4), gradient, kept, 9)


CONVOLUTIONS = {
    "1d": (keras.layers.Conv1D, (2, 9, 5), {}, 3),
    "1d, dilated": (keras.layers.Conv1D, (2, 9, 5), {"dilation_rate": 2, "padding": "same"}, 3),
    "2d": (keras.layers.Conv2D, (2, 6, 7, 5), {}, (3, 2)),
    "2d, same": (keras.layers.Conv2D, (2, 6, 7, 5), {"padding": "same"}, (3, 2)),
    "2d, strides": (keras.layers.Conv2D, (2, 6, 7, 5), {"strides": (2, 3), "padding": "same"}, 3),
    "2d, strides, valid": (keras.layers.Conv2D, (2, 8, 7, 5), {"strides": 2}, (3, 2)),
    "2d, dilated": (keras.layers.Conv2D, (2, 8, 7, 5), {"dilation_rate": (1, 2)}, 3),
    "1x1": (keras.layers.Conv2D, (2, 4, 4, 5), {}, 1),
    "3d": (keras.layers.Conv3D, (1, 4, 5, 4, 3), {"strides": (1, 2, 1), "padding": "same"}, 2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    kind, shape, arguments, window = CONVOLUTIONS[name]
    inputs, of_outputs, gradient, kept = layer_case(kind(4, window, **arguments), shape)
    for tile_rows in (2, 64):
        found = online.largest_gradients(inputs, of_outputs, kept, 11, tile_rows, **arguments)
        check_found(found, gradient, kept, 11)


@pytest.mark.parametrize("world", ["graph", "XLA"])
def test_convolution_traced(world):
    kind, shape, arguments, window = CONVOLUTIONS["2d, strides"]
    inputs, of_outputs, gradient, kept = layer_case(kind(4, window, **arguments), shape)
    find = functools.partial(online.largest_gradients, k=11, tile_rows=2, **arguments)
    check_found(in_world(world, find)(inputs, of_outputs, kept), gradient, kept, 11)


def test_any_batch_size():
    find = tf.function(
        lambda x, g, kept: online.largest_gradients(x, g, kept, 9, 4),
        input_signature=[
            tf.TensorSpec([None, 11]),
            tf.TensorSpec([None, 7]),
            tf.TensorSpec([11, 7], tf.bool),
        ],
    )
    inputs, of_outputs, gradient, kept = layer_case(keras.layers.Dense(7), (5, 11))
    check_found(find(inputs, of_outputs, kept), gradient, kept, 9)


def test_not_a_number_is_found_last():
    inputs = tf.constant([[1.0, float("nan"), 2.0]])
    found, indices = online.largest_gradients(inputs, [[1.0]], np.zeros((3, 1), bool), 3, 2)
    assert indices.numpy().tolist() == [2, 0, 1]
    assert found.numpy().tolist() == [2.0, 1.0, tf.float32.min]


def kept_connections(kernel_shape):
    return np.random.default_rng(0).random(kernel_shape) < 0.1


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel"),
    [((4, 1024), (4, 512), (1024, 512)), ((2, 8, 8, 256), (2, 6, 6, 256), (3, 3, 256, 256))],
)
def test_memory_is_that_of_a_tile(inputs, outputs, kernel):
    """No tensor but the mask is as large as a few tiles, before XLA and after it."""
    k, tile_rows = 100, 16
    tile = tile_rows * kernel[-1] + k
    largest = max(tile, np.prod(inputs), np.prod(outputs))
    assert 10 * largest < np.prod(kernel)
    find = tf.function(
        lambda x, g, kept: online.largest_gradients(x, g, kept, k, tile_rows), jit_compile=True
    )
    arguments = tf.ones(inputs), tf.ones(outputs), tf.constant(kept_connections(kernel))
    compiler = find.experimental_get_compiler_ir(*arguments)
    for stage in ("hlo", "optimized_hlo"):
        text = compiler(stage=stage)
        sizes = {
            np.prod([int(n) for n in dims.split(",")])
            for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]+)\]", text)
            if kind != "pred"
        }
        assert tile in sizes
        assert max(sizes) <= largest
    # In a graph without XLA, too: of the dense gradient's size is only the mask.
    concrete = find.get_concrete_function(*arguments).graph.as_graph_def(add_shapes=True)
    nodes = [*concrete.node, *(node for f in concrete.library.function for node in f.node_def)]
    shapes = [
        [dim.size for dim in shape.dim]
        for node in nodes
        if "_output_shapes" in node.attr
        for shape in node.attr["_output_shapes"].list.shape
    ]
    large = [shape for shape in shapes if np.prod(shape) > largest]
    flat = [int(np.prod(kernel[:-1])), kernel[-1]]
    assert len(shapes) > 50
    assert all(shape in (list(kernel), flat) for shape in large)
    matrix_products = [node for node in nodes if node.op == "MatMul"]
    assert len(matrix_products) == 1


def test_steps_of_rigl_in_a_loop_of_ones_own():
    """The connections are those of `drop_and_grow` with the dense gradient, step after step."""
    inputs = keras.Input((20,))
    x = keras.layers.Dense(16, name="hidden")(inputs)
    x = keras.layers.Dense(1, name="last")(keras.layers.ReLU()(x))
    model = rigl_tf.sparsify(keras.Model(inputs, x), 0.8, dense_layers="last")
    layer = model.get_layer("hidden")
    path = layer.kernel.path
    parts = keras.Model(inputs=model.input, outputs=[layer.input, layer.output, model.output])
    data = np.random.default_rng(0).normal(size=(32, 20)).astype("float32")
    before = rigl_tf.get_masks(model)[path]
    num_active = int(before.sum())
    for num_drop in (7, 5, 2):
        with tf.GradientTape(persistent=True) as tape:
            layer_inputs, outputs, predictions = parts(data)
            loss = tf.reduce_mean((predictions - data[:, :1]) ** 2)
        mask = rigl_tf.get_masks(model)[path]
        dense = tf.abs(tape.gradient(loss, layer.kernel.value))
        want, _ = selection.drop_and_grow(mask, tf.abs(layer.kernel), dense, num_drop)
        kept = selection.keep(mask, tf.abs(layer.kernel), num_active - num_drop)
        of_outputs = tape.gradient(loss, outputs)
        _, indices = online.largest_gradients(layer_inputs, of_outputs, kept, 7, tile_rows=6)
        new_mask = online.grow(kept, indices, num_drop)
        np.testing.assert_array_equal(new_mask, want)
        rigl_tf.set_masks(model, {path: new_mask})
        layer.kernel.assign_add(0.1 * rigl_tf.masks.masked(dense, new_mask))
    assert (rigl_tf.get_masks(model)[path] != before).any()


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
def test_grow(world):
    kept = tf.constant([[True, False, False], [False, False, True]])
    indices = tf.constant([4, 1, 2], tf.int64)
    grow = in_world(world, online.grow)
    assert grow(kept, indices).numpy().tolist() == [[True, True, True], [False, True, True]]
    some = grow(kept, indices, tf.constant(2)).numpy().tolist()
    assert some == [[True, True, False], [False, True, True]]
    assert grow(kept, indices, tf.constant(0)).numpy().tolist() == kept.numpy().tolist()


X, G, KEPT = np.ones((2, 4), "float32"), np.ones((2, 3), "float32"), np.zeros((4, 3), bool)
IMAGE, WINDOW = np.ones((2, 5, 5, 4), "float32"), np.zeros((3, 3, 4, 3), bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "`k` must be an integer >= 1. Received: k=0"),
        ({"tile_rows": 1.5}, "`tile_rows` must be an integer >= 1. Received: tile_rows=1.5"),
        ({"inputs": X[:, :3]}, r"with this kernel.*\(2, 3\)"),
        ({"output_gradients": G[:, :2]}, r"with this kernel.*\(2, 2\)"),
        ({"inputs": IMAGE, "kept_mask": WINDOW}, "with this kernel"),
        ({"kept_mask": WINDOW, "padding": "causal"}, "Received: padding='causal'"),
        ({"kept_mask": WINDOW, "strides": (1, 2, 3)}, r"window's 2 dimensions.*\(1, 2, 3\)"),
        ({"kept_mask": WINDOW, "dilation_rate": 0}, "`dilation_rate` must be an integer >= 1"),
        # A grouped convolution has fewer channels in its kernel than its inputs have.
        (
            {
                "inputs": IMAGE,
                "kept_mask": WINDOW[:, :, :2],
                "output_gradients": np.ones((2, 3, 3, 3), "float32"),
            },
            "channels last and without groups",
        ),
    ],
)
def test_refused(arguments, message):
    given = {"inputs": X, "output_gradients": G, "kept_mask": KEPT, "k": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        online.largest_gradients(**given)
