"""`rigl_tf.compact`: the same predictions from fewer units."""

import itertools
import json
import zipfile

import keras
import numpy as np
import pytest

import models
import rigl_tf


def chain(*units, activation="relu", inputs=(12,), between=(), use_bias=True):
    """A Functional chain of Dense layers; `between` makes layers for after each hidden one."""
    x = outputs = keras.Input(inputs, name="inputs")
    if len(inputs) > 1:
        outputs = keras.layers.Flatten(name="flatten")(outputs)
    for index, each in enumerate(units, start=1):
        is_last = index == len(units)
        outputs = keras.layers.Dense(
            each,
            activation=None if is_last else activation,
            use_bias=use_bias,
            bias_initializer="random_normal",
            name=f"dense_{index}",
        )(outputs)
        for make in () if is_last else between:
            outputs = make()(outputs)
    return keras.Model(x, outputs, name="chain")


def sparse_of(model, masks):
    """The model with these masks, one for each of `dense_1`, ..., and weights that are not zero."""
    sparse = rigl_tf.sparsify(model, 0.5, "uniform")
    generator = np.random.default_rng(0)
    for index, mask in enumerate(masks, start=1):
        rigl_tf.set_masks(sparse, {f"dense_{index}/kernel": mask})
        kernel = sparse.get_layer(f"dense_{index}").layer.kernel
        kernel.assign(np.where(mask, generator.normal(size=kernel.shape), 0))
    return sparse


def random_masks(widths, density, seed):
    generator = np.random.default_rng(seed)
    return [generator.random(shape) < density for shape in itertools.pairwise(widths)]


def live_by_removal(masks):
    """Removes one dead unit after another until there is none: `[live inputs, hidden, ...]`."""
    live = [set(range(len(mask))) for mask in masks] + [set(range(masks[-1].shape[1]))]
    while True:
        dead = [
            (layer, unit)
            for layer, units in enumerate(live[:-1])
            for unit in units
            if not any(masks[layer][unit, other] for other in live[layer + 1])
            or (layer and not any(masks[layer - 1][other, unit] for other in live[layer - 1]))
        ]
        if not dead:
            return [sorted(units) or [0] for units in live]
        for layer, unit in dead:
            live[layer].remove(unit)


def check_same_predictions(model, small, inputs=None):
    if inputs is None:
        shape = (32, *model.inputs[0].shape[1:])
        inputs = np.random.default_rng(1).normal(size=shape).astype("float32")
    want = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(small.predict(inputs, verbose=0), want, rtol=1e-5, atol=2e-6)


def test_by_hand():
    # Inputs 0, 1, 2; input 1 has no connection. Hidden units: 0 is reached from 0; 1 from nothing,
    # so it sends relu(0.5) = 0.5; 2 leads nowhere; 3 is reached from 0 and 2.
    model = chain(4, 2, inputs=(3,))
    sparse = sparse_of(
        model,
        [
            [[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]],
            [[1, 0], [1, 1], [0, 0], [0, 1]],
        ],
    )
    first, second = sparse.layers[1].layer, sparse.layers[2].layer
    first.kernel.assign([[1, 0, 7, 2], [0, 0, 0, 0], [0, 0, 0, 3]])
    first.bias.assign([0.25, 0.5, 9, -1])
    second.kernel.assign([[10, 0], [20, 40], [0, 0], [0, 30]])
    second.bias.assign([1, 2])
    assert [each.tolist() for each in rigl_tf.live_units(sparse)] == [[0, 2], [0, 3], [0, 1]]
    small = rigl_tf.compact(sparse)
    first, second = small.get_layer("dense_1").layer, small.get_layer("dense_2").layer
    np.testing.assert_array_equal(first.kernel, [[1, 2], [0, 3]])
    np.testing.assert_array_equal(first.bias, [0.25, -1])
    np.testing.assert_array_equal(second.kernel, [[10, 0], [0, 30]])
    np.testing.assert_array_equal(second.bias, [1 + 0.5 * 20, 2 + 0.5 * 40])
    masks = {path: mask.tolist() for path, mask in rigl_tf.get_masks(small).items()}
    assert masks == {
        "dense_1/kernel": [[True, True], [False, True]],
        "dense_2/kernel": [[True, False], [False, True]],
    }
    # x = (1, 5, -1): hidden (1.25, relu(2 - 3 - 1) = 0); outputs 12.5 + 11 and 22.
    np.testing.assert_array_equal(small(np.array([[1.0, 5.0, -1.0]])), [[23.5, 22.0]])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("density", [0.03, 0.1, 0.3])
def test_units_left_and_predictions(density, seed):
    activation = ["relu", "sigmoid", "tanh", "gelu"][seed]
    masks = random_masks((12, 10, 9, 8, 3), density, seed)
    sparse = sparse_of(chain(10, 9, 8, 3, activation=activation), masks)
    live = [units.tolist() for units in rigl_tf.live_units(sparse)]
    want = live_by_removal(masks)
    assert live == want
    small = rigl_tf.compact(sparse)
    check_same_predictions(sparse, small)
    assert [weight.shape for weight in small.trainable_weights[::2]] == [
        (len(rows), len(columns)) for rows, columns in itertools.pairwise(want)
    ]
    kernels = rigl_tf.get_masks(sparse).items()
    for (path, mask), rows, columns in zip(kernels, want, want[1:], strict=False):
        kept = rigl_tf.get_masks(small)[path]
        alive = mask[np.ix_(rows, columns)]
        np.testing.assert_array_equal(kept, alive if kept.any() else np.zeros_like(alive))


@pytest.mark.parametrize("dead", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_one_unit_stays_in_a_layer_of_dead_ones(dead):
    masks = [
        np.full(shape, index not in dead) for index, shape in enumerate([(12, 5), (5, 4), (4, 3)])
    ]
    sparse = sparse_of(chain(5, 4, 3, activation="sigmoid"), masks)
    assert [len(units) for units in rigl_tf.live_units(sparse)] == [1, 1, 1, 3]
    small = rigl_tf.compact(sparse)
    assert not any(mask.any() for mask in rigl_tf.get_masks(small).values())
    check_same_predictions(sparse, small)
    again = keras.models.clone_model(small)
    assert again.count_params() == small.count_params()


def test_layers_between_the_dense_ones():
    between = (
        keras.layers.BatchNormalization,
        keras.layers.LeakyReLU,
        lambda: keras.layers.Dropout(0.5),
    )
    model = chain(10, 8, 3, activation="tanh", inputs=(3, 4), between=between)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 2, w.shape) for w in layer.get_weights()])
    masks = random_masks((12, 10, 8, 3), 0.25, 1)
    sparse = sparse_of(model, masks)
    small = rigl_tf.compact(sparse)
    check_same_predictions(sparse, small)
    assert [layer.name for layer in small.layers] == [layer.name for layer in sparse.layers]
    width = len(live_by_removal(masks)[1])
    assert 1 < width < 10
    assert small.get_layer("batch_normalization").gamma.shape == (width,)


def test_sequential_model_and_softmax_at_the_end():
    dense = keras.Sequential(
        [
            keras.Input((4, 4)),
            keras.layers.Rescaling(2.0, offset=-1.0),
            keras.layers.Flatten(),
            keras.layers.Dense(20, "relu", name="hidden"),
            keras.layers.Dense(5, "softmax", name="classes"),
            keras.layers.Reshape((5, 1)),
        ]
    )
    sparse = rigl_tf.sparsify(dense, 0.95, "uniform", dense_layers="classes")
    small = rigl_tf.compact(sparse)
    assert small.count_params() < sparse.count_params()
    assert small.input_shape == (None, 4, 4)
    assert small.output_shape == (None, 5, 1)
    assert isinstance(small.get_layer("classes"), keras.layers.Dense)
    check_same_predictions(sparse, small)


def test_a_bias_only_where_constants_need_one():
    masks = [np.zeros((12, 6)), np.ones((6, 3))]
    masks[0][:3, :4] = 1
    for activation, use_bias in (("relu", False), ("sigmoid", True)):
        sparse = sparse_of(chain(6, 3, activation=activation, use_bias=False), masks)
        small = rigl_tf.compact(sparse)
        # relu(0) = 0 adds nothing; sigmoid(0) = 0.5 of two units does.
        assert not small.get_layer("dense_1").use_bias
        assert small.get_layer("dense_2").use_bias == use_bias
        check_same_predictions(sparse, small)


def test_plain_model_with_zeros():
    masks = random_masks((12, 10, 8, 3), 0.12, 3)
    sparse = sparse_of(chain(10, 8, 3, activation="sigmoid"), masks)
    plain = rigl_tf.strip(sparse)
    small = rigl_tf.compact(plain)
    assert [len(units) for units in rigl_tf.live_units(plain)] == [
        len(units) for units in live_by_removal(masks)
    ]
    assert not rigl_tf.get_masks(small)
    check_same_predictions(sparse, small)


def test_what_other_code_wrote_into_inactive_connections_does_not_count():
    sparse = sparse_of(chain(6, 3), random_masks((12, 6, 3), 0.4, 0))
    kernel = sparse.get_layer("dense_1").layer.kernel
    kernel.assign_add(keras.ops.ones_like(kernel))
    small = rigl_tf.compact(sparse)
    rigl_tf.set_masks(sparse, rigl_tf.get_masks(sparse))  # zeroes what was written
    check_same_predictions(sparse, small)


def test_saved_loaded_stripped_compacted_again(tmp_path):
    sparse = sparse_of(chain(10, 8, 3), random_masks((12, 10, 8, 3), 0.15, 0))
    small = rigl_tf.compact(sparse)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    check_same_predictions(sparse, loaded)
    again = rigl_tf.compact(loaded)
    assert [layer.name for layer in again.layers] == ["inputs", "dense_1", "dense_2", "dense_3"]
    assert again.count_params() == small.count_params()
    check_same_predictions(sparse, again)
    plain = rigl_tf.strip(small)
    check_same_predictions(sparse, plain)
    plain.save(tmp_path / "plain.keras")
    config = zipfile.ZipFile(tmp_path / "plain.keras").read("config.json").decode()
    assert json.loads(config)["class_name"] == "Functional"
    assert "rigl" not in config


def test_kernels_of_one_shape_have_different_masks_in_a_copy_from_the_config():
    sparse = rigl_tf.sparsify(chain(12, 12, 12), 0.5, dict.fromkeys)
    small = rigl_tf.compact(sparse)
    assert [layer.units for layer in small.layers[1:]] == [12, 12, 12]
    masks = rigl_tf.get_masks(keras.models.clone_model(small)).values()
    assert all((one != other).any() for one, other in itertools.combinations(masks, 2))


def test_trained_on_with_other_masks():
    sparse = rigl_tf.sparsify(chain(30, 20, 3), 0.9, "uniform", dense_layers="dense_3")
    small = rigl_tf.compact(sparse)
    before = rigl_tf.get_masks(small)
    small.compile(
        rigl_tf.RigL(keras.optimizers.SGD(0.1), end_step=8, update_frequency=2, drop_fraction=0.5),
        "mse",
    )
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(64, 12)), generator.normal(size=(64, 3))
    losses = small.fit(inputs, targets, batch_size=16, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    after = rigl_tf.get_masks(small)
    assert any((after[path] != before[path]).any() for path in before)
    assert all(after[path].sum() == before[path].sum() for path in before)


@pytest.mark.parametrize(
    ("widths", "second", "num_active", "flops", "num_bytes", "whole_bytes", "sparsity"),
    [
        # Table 2 of the paper, `RigL`: 12.6 kFLOPs, 31,914 bytes.
        ((408, 100, 69), 33, 6309, 12_618, 31_914.5, 31_915, 0.870),
        # `RigL+`: 6.2 kFLOPs, 16,113 bytes.
        ((375, 62, 51), 16, 3080, 6_160, 16_113.5, 16_115, 0.886),
    ],
)
def test_sizes_of_the_paper(widths, second, num_active, flops, num_bytes, whole_bytes, sparsity):
    """The published numbers leave one number of connections; its bytes end in half a byte."""
    inputs, hidden_1, hidden_2 = widths
    masks = [np.zeros((784, 300)), np.zeros((300, 100))]
    # So many connections of each unit to the next ones, and the rest from the first inputs.
    for unit in range(hidden_1):
        masks[1][unit, (unit + np.arange(second)) % hidden_2] = 1
    first = num_active - 10 * hidden_2 - hidden_1 * second
    for connection in range(first):
        unit, number = connection % inputs, connection // inputs
        masks[0][unit, (unit + number) % hidden_1] = 1
    sparse = rigl_tf.sparsify(models.lenet_300_100(), 0.9, "uniform", dense_layers="classifier")
    rigl_tf.set_masks(
        sparse, {f"dense_{index}/kernel": mask for index, mask in enumerate(masks, start=1)}
    )
    small = rigl_tf.compact(sparse)
    assert [len(units) for units in rigl_tf.live_units(sparse)] == [*widths, 10]
    cost = rigl_tf.flops.count(small)
    assert sum(kernel.num_active for kernel in cost.kernels) == num_active
    assert cost.flops == flops
    # Values and biases of four bytes, a bit for each connection of the first two layers.
    bits = inputs * hidden_1 + hidden_1 * hidden_2
    assert 4 * (num_active + hidden_1 + hidden_2 + 10) + bits / 8 == num_bytes
    assert cost.num_bytes == whole_bytes  # each of the two masks ends with a full byte
    size = sum(kernel.size for kernel in cost.kernels)
    assert round(1 - num_active / size, 3) == sparsity


def test_the_model_is_not_changed():
    sparse = sparse_of(chain(10, 8, 3), random_masks((12, 10, 8, 3), 0.15, 0))
    before = [weight.numpy() for weight in sparse.weights]
    rigl_tf.compact(sparse)
    for weight, value in zip(sparse.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


class Doubled(keras.Model):
    def call(self, inputs):
        return 2 * super().call(inputs)


def with_dropout_always():
    inputs = keras.Input((4,))
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(4)(inputs), training=True)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def with_doubling_call():
    inputs = keras.Input((4,))
    return Doubled(inputs, keras.layers.Dense(2)(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras.layers.Dense(3), "Received: <Dense"),
        (
            lambda: keras.Sequential([keras.layers.Dense(3)], name="m"),
            "Build the model before. Received: model='m'",
        ),
        (with_dropout_always, "not be called with `training=True`"),
        (with_doubling_call, "of class Doubled, with a `call` of its own"),
    ],
)
def test_refused(make, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        rigl_tf.compact(model)


def test_live_units_need_a_kernel():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="needs a model with a kernel"):
        rigl_tf.live_units(model)
    check_same_predictions(model, rigl_tf.compact(model))


def test_subclassed_model_is_refused():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Net()
    model(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"Sequential or Functional model.*of class Net"):
        rigl_tf.live_units(model)
