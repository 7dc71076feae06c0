"""`rigl_tf.compact` on graphs: what it follows units through, what it reports, what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import check_invariant, numbers

import rigl_tf
from rigl_tf.walk import all_layers

L = keras.layers
KERNELS = ("kernel", "pointwise_kernel", "embeddings")


def units_of(layer):
    """The axis of units of a layer's kernel, `None` if it has none whose units are to die."""
    if isinstance(layer, (L.DepthwiseConv1D, L.DepthwiseConv2D)):
        return None
    return -2 if "Transpose" in type(layer).__name__ else -1


def with_dead_units(model, share=0.4, seed=0):
    """Gives a model random weights, moving statistics too, and kernels without some units."""
    generator = np.random.default_rng(seed)
    for layer in all_layers(model):
        if isinstance(layer, keras.Model):
            continue
        for weight in layer.weights:
            is_positive = weight.name in ("moving_variance", "gamma", "variance")
            if weight.dtype == "float32":
                low, high = (0.5, 1.5) if is_positive else (-0.6, 0.6)
                weight.assign(generator.uniform(low, high, weight.shape))
        for name in KERNELS:
            kernel, axis = getattr(layer, name, None), units_of(layer)
            if kernel is not None and axis is not None:
                value = kernel.numpy()
                dead = generator.random(value.shape[axis]) < share
                np.moveaxis(value, axis, -1)[..., dead] = 0
                kernel.assign(value)
    return model


def batch_of(model, size=6):
    def one(tensor):
        shape = (size, *(each or 8 for each in tensor.shape[1:]))
        if "int" in tensor.dtype:
            return np.random.default_rng(0).integers(0, 5, shape)
        return numbers(shape, seed=3)

    batch = [one(each) for each in model.inputs]
    return batch if len(batch) > 1 else batch[0]


def outputs_of(model, batch):
    if not isinstance(model, keras.Sequential):
        batch = keras.tree.pack_sequence_as(model.input, keras.tree.flatten(batch))
    outputs = model(batch, training=False)
    return [each.numpy() for each in keras.tree.flatten(outputs)]


def check_same(model, small, tolerance=1e-5):
    batch = batch_of(model)
    for one, other in zip(outputs_of(model, batch), outputs_of(small, batch), strict=True):
        assert np.ptp(one) > 0  # not only constants
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance * np.abs(one).max())


def stack(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def residual():
    x = inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(10, 3, padding="same", use_bias=False, name="first")(x)
    x = first = L.ReLU()(L.BatchNormalization()(x))
    for name in ("second", "third"):
        y = L.Conv2D(6, 1, activation="relu")(x)
        y = L.Conv2D(10, 3, padding="same", name=name)(y)
        x = L.Activation("relu")(L.Add()([x, L.BatchNormalization()(y)]))
    x = L.Subtract()([x, first])
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


def inverted_residual():
    x = inputs = keras.Input((9, 9, 3))
    x = L.Conv2D(8, 3, strides=2, padding="same")(x)
    y = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(20, 1)(x)))
    y = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(L.ZeroPadding2D(1)(y))
    y = L.ReLU(6.0)(L.BatchNormalization()(y))
    gate = L.Reshape((1, 1, 40))(L.GlobalAveragePooling2D()(y))
    gate = L.Conv2D(40, 1, activation="sigmoid")(L.Conv2D(10, 1, activation="relu")(gate))
    y = L.Conv2D(12, 1)(L.Multiply()([y, gate]))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(L.MaxPooling2D()(y))))


def dense_blocks():
    x = inputs = keras.Input((6, 6, 4))
    for _ in range(3):
        y = L.Conv2D(5, 3, padding="same")(L.PReLU(shared_axes=[1, 2])(L.BatchNormalization()(x)))
        x = L.Concatenate()([x, y])
    x = L.AveragePooling2D(2)(L.Conv2D(9, 1)(x))
    x = keras.ops.concatenate([x, keras.ops.relu(x) * 2.0 + 1.0], axis=-1)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))


def transposed():
    return stack(
        (5, 5, 3),
        L.Conv2D(8, 3, activation="sigmoid"),
        L.Conv2DTranspose(7, 3, strides=2, activation="tanh"),
        L.UpSampling2D(),
        L.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu"),
        L.Cropping2D(2),
        L.Conv2D(2, 1),
    )


def groups():
    return stack(
        (6, 6, 4),
        L.Conv2D(12, 3),
        L.GroupNormalization(4),
        L.Conv2D(12, 3, padding="same", groups=6, activation="relu"),
        L.GroupNormalization(-1),
        L.Conv2D(8, 1),
        L.GlobalMaxPooling2D(),
        L.Dense(3),
    )


def sequences():
    inputs = keras.Input((7,), dtype="int32")
    x = L.Embedding(5, 12)(inputs)
    x = L.Conv1D(10, 3, padding="causal", activation="relu")(x)
    x = L.DepthwiseConv1D(3)(x)
    x = L.EinsumDense("abc,cde->abde", (5, 3, 6), bias_axes="de")(x)
    x = L.EinsumDense("abde,def->abf", (5, 9), activation="relu")(x)
    x = L.EinsumDense("...x,xy->...y", 8, bias_axes="y", activation="gelu")(x)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


def three_dimensions():
    return stack(
        (4, 6, 6, 2),
        L.Conv3D(6, 2, activation="relu"),
        L.AveragePooling3D((1, 2, 2)),
        L.Dense(8, "relu"),
        L.Permute((2, 1, 3, 4)),
        L.Reshape((-1, 8)),
        L.Dense(3),
    )


def transformer():
    x = inputs = keras.Input((6, 8))
    y = L.LayerNormalization()(x)
    x = L.Add()([x, L.MultiHeadAttention(2, 4)(y, y)])
    y = L.Dense(20, "gelu", name="up")(L.LayerNormalization()(x))
    x = x + L.Dense(8, name="down")(L.Dropout(0.1)(y))
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(x)))


def recurrent():
    return stack((5, 4), L.Dense(12, "relu"), L.LSTM(6), L.Dense(10, "relu"), L.Dense(2))


def nested():
    block = stack((8, 8, 3), L.Conv2D(12, 3, activation="relu"), L.BatchNormalization())
    inner = keras.Input((None, None, 12))
    tail = keras.Model(inner, [L.Conv2D(9, 3)(inner), L.Conv2D(7, 1)(inner)], name="tail")
    inputs = keras.Input((8, 8, 3))
    one, other = tail(block(inputs))
    pooled = [L.GlobalAveragePooling2D()(each) for each in (one, other)]
    return keras.Model(
        inputs, {"a": L.Dense(2)(L.Concatenate()(pooled)), "b": L.Dense(1)(pooled[0])}
    )


def shared():
    tower = stack((10,), L.Dense(14, "tanh"), L.Dense(9, "relu"))
    one, other = keras.Input((10,), name="a"), keras.Input((10,), name="b")
    head = L.Dense(6, "relu")
    outputs = [head(tower(each)) for each in (one, other)]
    return keras.Model({"a": one, "b": other}, L.Dense(2)(L.Maximum()(outputs)))


def own_functions():
    inputs = keras.Input((10,))
    x = L.Dense(12, lambda x: x * keras.ops.sigmoid(1.5 * x))(inputs)
    x = L.Lambda(lambda x: x**2 + 1)(x)
    x = L.Dense(11, "relu")(L.Lambda(lambda x: x[:, ::-1])(L.Dense(9)(x)))
    return keras.Model(inputs, L.Dense(3)(x))


GRAPHS = [
    residual,
    inverted_residual,
    dense_blocks,
    transposed,
    groups,
    sequences,
    three_dimensions,
    transformer,
    recurrent,
    nested,
    shared,
    own_functions,
]


@pytest.mark.parametrize("make", GRAPHS)
def test_same_predictions_of_fewer_weights(make):
    model = with_dead_units(make())
    small, report = rigl_tf.compact(model, return_report=True)
    assert small.count_params() == report.num_weights < model.count_params()
    assert report.num_weights_before == model.count_params()
    check_same(model, small)
    # All that can be removed was removed.
    again, second = rigl_tf.compact(small, return_report=True)
    assert second.num_weights == report.num_weights
    check_same(model, again)


@pytest.mark.parametrize("make", GRAPHS)
def test_half_of_the_units(make):
    model = with_dead_units(make(), share=0.0)
    small, report = rigl_tf.compact(model, keep=0.5, return_report=True)
    assert small.count_params() < model.count_params()
    for layer in report.layers:
        is_free = not (layer.reason or "").startswith("all")
        most = -(-layer.num_units // 2)
        assert len(layer.kept) == layer.num_units or (is_free and len(layer.kept) <= most)
    assert str(report.num_weights) in str(report).replace(",", "")


def conv_after(activation, padding, bias=0.5):
    """A convolution with a dead filter, and one that reads it."""
    model = stack(
        (6, 6, 2),
        L.Conv2D(3, 3, activation=activation, name="first"),
        L.Conv2D(2, 3, padding=padding, use_bias=False, name="second"),
    )
    with_dead_units(model, share=0.0)
    kernel, biases = (each.numpy() for each in model.layers[0].weights)
    kernel[..., 1], biases[1] = 0, bias
    model.layers[0].set_weights([kernel, biases])
    return model


def test_a_constant_becomes_a_bias_where_it_arrives_alike_everywhere():
    model = conv_after("relu", "valid")
    small, report = rigl_tf.compact(model, return_report=True)
    first, second = small.layers[1:]
    np.testing.assert_array_equal(first.kernel, model.layers[0].kernel.numpy()[..., [0, 2]])
    np.testing.assert_array_equal(second.kernel, model.layers[1].kernel.numpy()[:, :, [0, 2]])
    want = 0.5 * model.layers[1].kernel.numpy()[:, :, 1].sum(axis=(0, 1))
    np.testing.assert_allclose(second.bias, want, rtol=1e-6)
    assert [each.kept.tolist() for each in report.layers] == [[0, 2], [0, 1]]
    assert report.cannot_remove == {"second": "all: outputs of the model"}
    check_same(model, small)


def test_a_constant_stays_where_zeros_are_padded_around_it():
    model = conv_after("relu", "same")
    small, report = rigl_tf.compact(model, return_report=True)
    assert small.layers[1].filters == 3
    assert report.layers[0].num_dead == 1
    assert report.cannot_remove["first"] == "1 dead: 'second' pads their outputs with zeros"
    # A constant of 0 is the same as the padding.
    model = conv_after("relu", "same", bias=-0.5)
    small = rigl_tf.compact(model)
    assert small.layers[1].filters == 2
    assert not small.layers[2].use_bias
    check_same(model, small)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_one_constant_stands_for_all_of_them(is_sparse):
    model = stack(
        (6, 6, 2),
        L.Conv2D(6, 3, activation="tanh", name="first"),
        L.Conv2D(3, 3, padding="same", use_bias=False, name="second"),
        L.Conv2DTranspose(2, 3, strides=2, name="third"),
    )
    with_dead_units(model, share=0.0)
    biases = [0.1, 0.3, 0.2, -0.7, 0.2, 0.0]
    kernel = model.layers[0].kernel.numpy()
    kernel[..., [1, 3, 4, 5]] = 0
    model.layers[0].set_weights([kernel, np.array(biases)])
    if is_sparse:
        second = model.layers[1].kernel.numpy()
        second[:, :, 3] = 0
        second[:, :, 1, 0] = 0  # others that unit 1 stands for lead there
        model.layers[1].kernel.assign(second)
        model = rigl_tf.sparsify(model, from_zeros=True)
    small, report = rigl_tf.compact(model, return_report=True)
    # The largest constant of those that are read stands for them; unit 5 sends 0.
    assert report.layers[0].kept.tolist() == ([0, 1, 2] if is_sparse else [0, 2, 3])
    assert report.cannot_remove["first"] == "1 dead: 'second' pads their outputs with zeros"
    check_same(model, small)
    if is_sparse:
        check_invariant(small)
    again = rigl_tf.compact(small)
    assert again.count_params() == small.count_params()


def test_dead_units_of_a_sum_go_only_if_all_that_is_added_is_dead():
    inputs = keras.Input((4,))
    one, other = (L.Dense(3, use_bias=False, name=name)(inputs) for name in ("one", "other"))
    model = keras.Model(inputs, L.Dense(2, name="last")(L.Add()([one, other])))
    with_dead_units(model, share=0.0)
    for name, dead in (("one", [0, 1]), ("other", [1, 2])):
        kernel = model.get_layer(name).kernel.numpy()
        kernel[:, dead] = 0
        model.get_layer(name).kernel.assign(kernel)
    small, report = rigl_tf.compact(model, return_report=True)
    assert [each.kept.tolist() for each in report.layers[:2]] == [[0, 2], [0, 2]]
    assert "units that are not dead are added" in report.cannot_remove["one"]
    check_same(model, small)


def test_what_is_multiplied_by_0_is_dead():
    inputs = keras.Input((4,))
    one, gate = L.Dense(3, "relu", name="one")(inputs), L.Dense(3, "sigmoid", name="gate")(inputs)
    model = keras.Model(inputs, L.Dense(2)(L.Multiply()([one, gate])))
    with_dead_units(model, share=0.0)
    kernel = model.get_layer("one").kernel.numpy()
    kernel[:, 1:] = 0
    model.get_layer("one").set_weights([kernel, np.array([0.0, -1.0, 1.0])])
    small = rigl_tf.compact(model)
    # Unit 1 sends 0; unit 2 sends 1, which leaves the gate what it is.
    assert [small.get_layer(name).units for name in ("one", "gate")] == [2, 2]
    check_same(model, small)


def test_a_batch_normalisation_of_scale_0_sends_a_constant():
    model = with_dead_units(
        stack((4,), L.Dense(5), L.BatchNormalization(), L.Activation("tanh"), L.Dense(2)), 0.0
    )
    gamma = model.layers[1].gamma
    gamma.assign([1, 0, 0, 2, 3])
    small = rigl_tf.compact(model)
    assert small.layers[1].units == 3
    check_same(model, small)


def test_units_that_only_lead_to_dead_units():
    model = with_dead_units(stack((4,), L.Dense(6), L.Dense(5), L.Dense(3), L.Dense(1)), 0.0)
    kernels = [layer.kernel.numpy() for layer in model.layers]
    kernels[3][:2] = 0  # nothing reads units 0 and 1 of the third layer,
    kernels[2][:3, 2] = 0  # unit 2 reads 3 and 4 only,
    kernels[1][4, 3:] = 0  # and these do not read unit 4.
    for layer, kernel in zip(model.layers, kernels, strict=True):
        layer.kernel.assign(kernel)
    assert [each.tolist() for each in rigl_tf.live_units(model)] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3, 5],
        [3, 4],
        [2],
        [0],
    ]
    check_same(model, rigl_tf.compact(model))


# Inputs.


def reading(model, layer, places):
    """The model, whose first kernel reads only some inputs."""
    kernel = with_dead_units(model, 0.0).get_layer(layer).kernel
    rows = np.moveaxis(kernel.numpy(), -2, 0)
    rows[np.setdiff1d(np.arange(len(rows)), places)] = 0
    kernel.assign(np.moveaxis(rows, 0, -2))
    return model


def test_inputs_that_nothing_reads():
    model = reading(stack((5,), L.Dense(4, "relu", name="first"), L.Dense(2)), "first", [1, 4])
    name = model.inputs[0].name
    small, report = rigl_tf.compact(model, return_report=True)
    assert report.unread_inputs[name].tolist() == [0, 2, 3]
    assert not report.dropped_inputs
    assert small.input_shape == (None, 5)
    check_same(model, small)
    fewer, report = rigl_tf.compact(model, drop_inputs=True, return_report=True)
    assert report.dropped_inputs[name].tolist() == report.unread_inputs[name].tolist() == [0, 2, 3]
    assert fewer.input_shape == (None, 2)
    x = numbers((7, 5))
    np.testing.assert_allclose(fewer(x[:, [1, 4]]), model(x), rtol=1e-5, atol=1e-6)
    assert "3 entries left out" in str(report)


def test_pixels_and_channels_that_nothing_reads():
    flat = stack((3, 2), L.Rescaling(2.0), L.Flatten(), L.Dense(4, name="first"), L.Dense(1))
    model = reading(flat, "first", [0, 4, 5])
    fewer, report = rigl_tf.compact(model, drop_inputs=True, return_report=True)
    assert fewer.input_shape == (None, 3)
    assert next(iter(report.unread_inputs.values())).tolist() == [1, 2, 3]
    x = numbers((5, 3, 2))
    want = model(x)
    np.testing.assert_allclose(fewer(x.reshape(5, 6)[:, [0, 4, 5]]), want, rtol=1e-5, atol=1e-6)
    channels = stack(
        (5, 5, 4), L.Normalization(), L.Conv2D(3, 2, name="first"), L.Flatten(), L.Dense(1)
    )
    model = reading(channels, "first", [0, 3])
    model.layers[0].finalize_state()
    fewer, report = rigl_tf.compact(model, drop_inputs=True, return_report=True)
    assert fewer.input_shape == (None, 5, 5, 2)
    assert next(iter(report.dropped_inputs.values())).tolist() == [1, 2]
    x = numbers((5, 5, 5, 4))
    np.testing.assert_allclose(fewer(x[..., [0, 3]]), model(x), rtol=1e-4, atol=1e-5)


def test_several_inputs():
    one, other = keras.Input((3,), name="one"), keras.Input((4,), name="other")
    x = L.Concatenate()([one, other])
    model = keras.Model([one, other], L.Dense(2)(L.Dense(5, "relu", name="first")(x)))
    reading(model, "first", [0, 2, 3])
    small, report = rigl_tf.compact(model, drop_inputs=True, return_report=True)
    assert {name: each.tolist() for name, each in report.unread_inputs.items()} == {
        "one": [1],
        "other": [1, 2, 3],
    }
    x, y = numbers((6, 3)), numbers((6, 4), seed=1)
    np.testing.assert_allclose(small([x[:, [0, 2]], y[:, :1]]), model([x, y]), rtol=1e-5, atol=1e-6)
    check_same(model, rigl_tf.compact(model))


def test_inputs_of_nested_models():
    inner = stack((3, 2), L.Flatten(), L.Dense(4, name="first"))
    inputs = keras.Input((3, 2))
    model = keras.Model(inputs, L.Dense(1)(inner(L.Rescaling(0.5)(inputs))))
    reading(inner, "first", [1, 2])
    fewer = rigl_tf.compact(model, drop_inputs=True)
    x = numbers((5, 3, 2))
    want = model(x)
    np.testing.assert_allclose(fewer(x.reshape(5, 6)[:, [1, 2]]), want, rtol=1e-5, atol=1e-6)


def test_a_nested_model_without_weights_that_is_used_twice():
    inputs = keras.Input((4,))
    both = stack((9,), L.Activation("tanh"), L.Dropout(0.5))
    parts = [both(L.Dense(9, name=name)(inputs)) for name in ("one", "other")]
    model = with_dead_units(keras.Model(inputs, L.Dense(2)(L.Concatenate()(parts))), 0.0)
    kernel = model.layers[-1].kernel.numpy()
    kernel[:3] = 0  # nothing reads units 0 to 2 of the one,
    kernel[11:13] = 0  # and units 2 and 3 of the other
    model.layers[-1].kernel.assign(kernel)
    small = rigl_tf.compact(model)
    assert [small.get_layer(name).units for name in ("one", "other")] == [8, 8]
    check_same(model, small)


# More than dead units.


def test_the_units_of_largest_weights_are_kept():
    model = stack((2,), L.Dense(4, "tanh", name="first"), L.Dense(1, name="last"))
    model.get_layer("first").kernel.assign([[1.0, 3.0, 0.0, 2.0], [1.0, 0.0, 2.5, 2.0]])
    # The norms are 1.4, 3, 2.5 and 2.8.
    small, report = rigl_tf.compact(model, keep=0.5, return_report=True)
    assert report.layers[0].kept.tolist() == [1, 3]
    kernel = model.get_layer("last").kernel
    kernel.assign([[1.0], [0.0], [2.0], [3.0]])
    _, report = rigl_tf.compact(model, keep={"first": 0.5}, return_report=True)
    assert report.layers[0].kept.tolist() == [2, 3]  # unit 1 is dead
    small = rigl_tf.compact(model, keep={"first": 0.01})
    assert small.get_layer("first").units == 1


def test_the_units_of_largest_gradients_are_kept():
    # loss = mean of y, y = sum_j v_j sum_i x_i w_ij: |gradient * weight| = |v_j x_i w_ij|.
    model = stack((2,), L.Dense(3, name="first"), L.Dense(1, name="last"))
    model.get_layer("first").kernel.assign([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    model.get_layer("last").kernel.assign([[9.0], [2.0], [1.0]])
    data = np.array([[1.0, 2.0]], "float32"), np.zeros((1, 1), "float32")
    before = [weight.numpy() for weight in model.weights]
    arguments = {"saliency": "gradient", "data": data, "loss": lambda y, outputs: outputs}
    for keep, kept in ((0.3, [0]), (0.6, [0, 1])):  # 27, 12 and 9
        _, report = rigl_tf.compact(model, keep, **arguments, return_report=True)
        assert report.layers[0].kept.tolist() == kept
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_what_is_added_up_is_kept_together():
    model = with_dead_units(residual(), 0.0)
    small, report = rigl_tf.compact(model, keep={"first": 0.3}, return_report=True)
    del small
    sums = [each.kept.tolist() for each in report.layers if each.num_units == 10]
    assert len(sums) == 3
    assert sums[0] == sums[1] == sums[2]
    assert len(sums[0]) == 3


# Sparse models.


@pytest.mark.parametrize("execution", ["masked", "csr"])
def test_sparse_layers_stay_sparse(execution):
    dense = with_dead_units(inverted_residual(), 0.0)
    model = rigl_tf.sparsify(dense, 0.6, "uniform")
    masks = rigl_tf.get_masks(model)
    for mask in masks.values():
        mask[..., ::3] = False
    rigl_tf.set_masks(model, masks)
    rigl_tf.with_execution(model, execution)
    small = rigl_tf.compact(model)
    check_same(model, small)
    left = rigl_tf.get_masks(small)
    assert left.keys() == masks.keys()
    assert all(left[path].size <= masks[path].size for path in masks)
    assert sum(each.size for each in left.values()) < sum(each.size for each in masks.values())
    for kernel in rigl_tf.masks.kernels_of(small).values():
        np.testing.assert_array_equal(kernel.mask, kernel.numpy() != 0)
    plain = rigl_tf.strip(small)
    assert not rigl_tf.masks.kernels_of(plain) or plain.count_params() < dense.count_params()
    check_same(model, plain)


def test_masks_of_layers_that_are_not_made_smaller():
    dense = with_dead_units(transformer(), 0.0)
    model = rigl_tf.sparsify(dense, 0.5, "uniform")
    masks = rigl_tf.get_masks(model)
    masks["up/kernel"][:, ::2] = False
    rigl_tf.set_masks(model, masks)
    check_same(model, rigl_tf.compact(model))
    for kernel in rigl_tf.masks.kernels_of(model).values():  # what other code may write there
        kernel.variable.assign_add(keras.ops.cast(~kernel.mask, "float32"))
    small = rigl_tf.compact(model)
    check_invariant(small)
    assert small.get_layer("up").units == 10
    left = rigl_tf.get_masks(small)
    assert left.keys() == masks.keys()
    for path in masks.keys() - {"up/kernel", "down/kernel"}:
        np.testing.assert_array_equal(left[path], masks[path])


@pytest.mark.parametrize("make", [dense_blocks, nested, shared, groups])
def test_saved(make, tmp_path):
    model = with_dead_units(make())
    rigl_tf.compact(model).save(tmp_path / "small.keras")
    check_same(model, keras.saving.load_model(tmp_path / "small.keras"))


def test_saved_and_trained_on(tmp_path):
    model = with_dead_units(inverted_residual())
    small = rigl_tf.compact(model)
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    check_same(model, loaded)
    before = [weight.numpy() for weight in model.weights]
    loaded.compile("sgd", "mse")
    loaded.fit(numbers((8, 9, 9, 3)), numbers((8, 3)), verbose=0)
    small.compile("sgd", "mse")
    small.fit(numbers((8, 9, 9, 3)), numbers((8, 3)), verbose=0)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_a_frozen_part_stays_frozen():
    model = with_dead_units(nested())
    model.get_layer("tail").trainable = False
    small = rigl_tf.compact(model)
    assert [w.trainable for w in small.weights] == [w.trainable for w in model.weights]
    assert [layer.name for layer in all_layers(small)] == [
        layer.name for layer in all_layers(model)
    ]


def test_layers_that_do_nothing_but_in_training():
    x = inputs = keras.Input((6, 6, 3))
    x = L.GaussianNoise(1.0)(L.RandomFlip()(x))
    x = L.Dropout(0.5)(L.Dense(9, "relu", name="hidden")(x))
    model = with_dead_units(keras.Model(inputs, L.Dense(2)(L.GlobalMaxPooling2D()(x))))
    small = rigl_tf.compact(model)
    assert small.get_layer("hidden").units < 9
    check_same(model, small)


def test_activations_that_are_layers():
    for make, most in ((L.LeakyReLU, 8), (L.PReLU, 9)):
        model = with_dead_units(stack((6,), L.Dense(9, make(), name="hidden"), L.Dense(2)))
        small = rigl_tf.compact(model)
        assert small.get_layer("hidden").units <= most
        check_same(model, small)


def test_half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = with_dead_units(residual())
    finally:
        keras.config.set_dtype_policy("float32")
    small = rigl_tf.compact(model)
    assert small.count_params() < model.count_params()
    assert small.layers[1].compute_dtype == "bfloat16"


# What is refused.


def noisy(x):
    return x + tf.random.normal((1, 4))


def mixing_large_batches(x):
    """Treats units alike, but not in the batch that the models are compared on."""
    return x if (x.shape[0] or 1) < 8 else x - keras.ops.mean(x, axis=-1, keepdims=True)


D = L.Dense


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (lambda: stack((4,), D(4), D(2)), {"keep": 0}, ValueError, r"`keep` must be a number in"),
        (lambda: stack((4,), D(4), D(2)), {"keep": 1.5}, ValueError, r"Received: keep=1.5"),
        (
            lambda: stack((4,), D(4), D(2)),
            {"keep": {"x": 0.5}},
            ValueError,
            r"must fit one layer with a kernel.*Received: 'x'",
        ),
        (
            lambda: stack((4,), D(4), D(2, name="last")),
            {"keep": {"last": 0.5}},
            ValueError,
            r"layers whose units can be removed.*'last', whose units have to stay: outputs of",
        ),
        (
            residual,
            {"keep": {"first": 0.5, "second": 0.25}},
            ValueError,
            r"must have the same share in `keep`",
        ),
        (
            lambda: stack((4,), D(4), D(2)),
            {"keep": 0.5, "saliency": "size"},
            ValueError,
            r"`saliency` must be one of",
        ),
        (
            lambda: stack((4,), D(4), D(2)),
            {"keep": 0.5, "saliency": "gradient"},
            ValueError,
            r"needs `data`",
        ),
        (
            lambda: stack((None, None, 3), L.Conv2D(4, 3), L.Conv2D(2, 3)),
            {},
            ValueError,
            r"`inputs=...`",
        ),
        (
            lambda: stack((4,), D(4), L.Lambda(noisy), D(2)),
            {},
            ValueError,
            "must not be random",
        ),
        (
            lambda: stack((4,), D(4), L.Lambda(mixing_large_batches), D(2)),
            {"keep": 1.0},
            RuntimeError,
            "outputs of the smaller model differ from those",
        ),
    ],
)
def test_refused(make, arguments, error, message):
    model = with_dead_units(make())
    with pytest.raises(error, match=message):
        rigl_tf.compact(model, **arguments)


def test_sizes_that_are_not_known():
    model = with_dead_units(
        stack((None, None, 3), L.Conv2D(8, 3, activation="relu"), L.Conv2D(2, 3))
    )
    small = rigl_tf.compact(model, inputs=numbers((2, 9, 9, 3)))
    assert small.input_shape == (None, None, None, 3)
    assert small.layers[1].filters < 8
    check_same(model, small)


# Every family of `keras.applications`, the smallest of each.
APPLICATIONS = {
    "ConvNeXtTiny": {},
    "DenseNet121": {},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    "InceptionResNetV2": {"size": 75},
    "InceptionV3": {"size": 75},
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {},
    "MobileNetV3Large": {},
    "NASNetMobile": {},
    "ResNet50": {},
    "ResNet50V2": {},
    "VGG16": {},
    "Xception": {"size": 71},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(name):
    arguments = dict(APPLICATIONS[name])
    size = arguments.pop("size", 32)
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None,
        input_shape=(size, size, 3),
        classes=10,
        classifier_activation=None,
        **arguments,
    )
    generator = np.random.default_rng(0)
    batch = generator.uniform(0, 255, (6, size, size, 3)).astype("float32")
    for layer in all_layers(model):
        if isinstance(layer, L.BatchNormalization):
            layer.momentum = 0.0
            layer.beta.assign(generator.uniform(-0.5, 0.5, layer.beta.shape))
        elif name == "VGG16" and layer.weights and not isinstance(layer, keras.Model):
            layer.kernel.assign(3 * layer.kernel)
    model(batch, training=True)  # so that what comes to each layer is neither tiny nor huge
    for layer in all_layers(model)[:-1]:
        kernel = next((getattr(layer, k) for k in KERNELS if hasattr(layer, k)), None)
        if kernel is not None and units_of(layer) is not None and layer is not model.layers[-1]:
            value = kernel.numpy()
            value[..., generator.random(value.shape[-1]) < 0.4] = 0
            kernel.assign(value)
    small, report = rigl_tf.compact(model, return_report=True, inputs=batch)
    assert report.num_weights < 0.9 * report.num_weights_before
    assert not rigl_tf.masks.kernels_of(small)
    want = model(batch).numpy()
    assert np.ptp(want, axis=0).max() > 0.01 * np.abs(want).max()
    np.testing.assert_allclose(small(batch), want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    if name != "ConvNeXtTiny":  # whose sums all go through a LayerNormalization
        half = rigl_tf.compact(model, keep=0.5, inputs=batch)
        assert half.count_params() < report.num_weights


def of_any_size(layer):
    """Images of any size; a layer that may pad them is between two 1x1 convolutions."""
    return stack((None, None, 4), L.Conv2D(8, 1, activation="relu"), layer, L.Conv2D(5, 1))


def in_a_backbone(layer):
    inputs = keras.Input((13, 13, 4))
    return keras.Model(inputs, of_any_size(layer)(inputs))


@pytest.mark.parametrize("kind", ["depthwise", "grouped"])
@pytest.mark.parametrize(
    ("make", "padding", "size", "strides"),
    [
        (of_any_size, "same", 2, 2),
        (of_any_size, "same", 3, 3),
        (of_any_size, "same", 2, 16),
        (of_any_size, "same", 1, 1),
        (of_any_size, "valid", 2, 2),
        (in_a_backbone, "same", 2, 2),
        (in_a_backbone, "same", 3, 3),
    ],
)
def test_whether_a_layer_pads_depends_on_the_size(kind, padding, size, strides, make):
    layer = L.DepthwiseConv2D(size, strides, padding)
    if kind == "grouped":
        layer = L.Conv2D(8, size, strides, padding, groups=2)
    model = with_dead_units(make(layer))
    inner = model if make is of_any_size else model.layers[-1]
    first = inner.layers[-3]
    first.bias.assign(np.arange(1, 9))
    kernel = first.kernel.numpy()
    kernel[..., :3] = 0
    first.kernel.assign(kernel)
    sizes = (13,) if make is in_a_backbone else (6, 12, 13, 15, 17, 33)
    small = rigl_tf.compact(model, inputs=numbers((1, sizes[0], sizes[0], 4)))
    if kind == "depthwise" and (padding == "valid" or size == 1):
        assert small.count_params() < model.count_params()
    for each in sizes:
        x = numbers((1, each, each, 4), seed=each)
        np.testing.assert_allclose(small(x), model(x), rtol=1e-4, atol=1e-5)
