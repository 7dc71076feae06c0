"""Greedy forward selection of units: problems solved by hand, and a slow obvious reference."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import mirrored

import models
import rigl_tf
from rigl_tf import lottery
from rigl_tf.lottery import Selection, imitation, keep_units, select_units
from rigl_tf.lottery.imitation import GlobalImitation
from rigl_tf.lottery.units import Link, link_of

layers = keras.layers


def sum_of(*contributions, bias=0.0):
    """A network of `N` hidden units that send `contributions / N`; `bias` is added to their sum."""
    size = len(contributions)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(size, name="hidden", kernel_initializer="ones"),
            layers.Dense(1, name="sum"),
        ]
    )
    kernel = np.array(contributions)[:, None] / size
    model.get_layer("sum").set_weights([kernel, np.array([bias])])
    return model


ONE = np.ones((1, 1))


def shares(selection, size):
    values = np.zeros(size)
    values[selection.units] = selection.weights
    return values


def test_three_units_by_hand():
    # The mean is 4. Nearest: the second unit, (3 - 4)^2. 3 + 6 / 6 = 4.
    got = select_units(sum_of(0, 3, 9, bias=7), "hidden", ONE, tolerance=1e-9)
    assert got.num_units == [1, 2]
    np.testing.assert_allclose(got.discrepancies, [1, 0], atol=1e-9)
    assert got.units.tolist() == [1, 2]
    np.testing.assert_allclose(got.weights, [5 / 6, 1 / 6], rtol=1e-6)


@pytest.mark.parametrize("imitate", ["local", "global"])
def test_without_repetition_by_hand(imitate):
    # 3; then (3 + 9) / 2 is nearer to 4 than (3 + 0) / 2; then all.
    arguments = {"imitate": imitate, "repetition": False}
    model = sum_of(0, 3, 9)
    got = select_units(model, "hidden", ONE, num_units=3, **arguments)
    np.testing.assert_allclose(got.discrepancies, [1, 4, 0], atol=1e-6)
    np.testing.assert_allclose(shares(got, 3), [1 / 3] * 3)
    got = select_units(model, "hidden", ONE, num_units=2, **arguments)
    np.testing.assert_allclose(shares(got, 3), [0, 0.5, 0.5])


@pytest.mark.parametrize("score", ["taylor", "exact"])
def test_global_by_hand(score):
    # 3; with one unit, 1/8 is the smallest rate up: 3 + 6 / 8 = 3.75. Then the share of the second
    # unit falls, at a rate of -1/3: 3.75 + 0.75 / 3 = 4.
    got = select_units(
        sum_of(0, 3, 9), "hidden", ONE, tolerance=1e-9, imitate="global", score=score
    )
    np.testing.assert_allclose(got.discrepancies, [1, 1 / 16, 0], atol=1e-6)
    np.testing.assert_allclose(shares(got, 3), [0, 5 / 6, 1 / 6], rtol=1e-6)


def test_a_taylor_approximation_chooses_what_is_evaluated():
    # The mean is 0: 10 is nearest. The five steepest ways down lead to -30, ..., -13; the best
    # step, to -12, is the sixth. (10 - 13) / 2 = -1.5, and (10 - 12) / 2 = -1.
    model = sum_of(70, 20, -16, -15, -14, -13, -12, -30, 10)
    for score, value in (("taylor", 2.25), ("exact", 1)):
        got = select_units(model, "hidden", ONE, 2, imitate="global", repetition=False, score=score)
        np.testing.assert_allclose(got.discrepancies, [100, value], rtol=1e-5)


def test_a_unit_can_be_deleted():
    # Five times points around a mean of (0, 0). (1, 1) is nearest; a third towards (1, -2) gives
    # (1, 0), a quarter towards (-1, 2) gives (1/2, 1/2); without (1, 1) what is left is (0, 0).
    points = np.array([[1, 1], [-1, 2], [-3, 4], [1, -2], [2, -5]])
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(5, name="hidden", kernel_initializer="ones"),
            layers.Dense(2, use_bias=False),
        ]
    )
    model.layers[-1].set_weights([points])  # a fifth of the contributions
    got = select_units(model, "hidden", ONE, tolerance=1e-9)
    np.testing.assert_allclose(got.discrepancies, [50, 25, 12.5, 0], atol=1e-6)
    assert got.num_units == [1, 2, 3, 2]
    np.testing.assert_allclose(shares(got, 5), [0, 0.5, 0, 0.5, 0], atol=1e-6)


def best_global_step(contributions, shares):
    model = sum_of(*contributions)
    imitation = GlobalImitation(model, link_of(model, "hidden"), ONE, None, None, "taylor")
    return imitation.best(np.array(shares), np.arange(len(shares)), None)


def test_shares_that_should_fall_are_ranked_too():
    # The sum is 1 and should be 0. The steepest ways: up with -8, then down with 4, at -1/3.
    contributions = [-8, 4, 0.9, 0.9, 0.8, 0.7, 0.4, 0.3]
    new_shares, value = best_global_step(contributions, [0.25, 0.75, *[0] * 6])
    np.testing.assert_allclose(new_shares, [1 / 3, 2 / 3, *[0] * 6])
    assert value == pytest.approx(0, abs=1e-6)


def test_the_global_imitation_can_delete():
    # The sum is 0.4 and should be 0: nothing but the second unit is as good.
    new_shares, value = best_global_step([4, 0, -4], [0.1, 0.9, 0])
    assert new_shares.tolist() == [0, 1, 0]
    assert value == pytest.approx(0, abs=1e-6)


def test_duplicates_are_left_out():
    model = dense_chain(4)
    kernel, bias = model.get_layer("hidden").get_weights()
    kernel[:, 2:] = kernel[:, :2]
    bias[2:] = bias[:2]
    model.get_layer("hidden").set_weights([kernel, bias])
    outgoing, _ = model.get_layer("next").get_weights()
    outgoing[2:] = outgoing[:2]
    model.get_layer("next").set_weights([outgoing, np.zeros(3)])
    x = normal(30, 5)
    selection = select_units(model, "hidden", x, tolerance=1e-10)
    assert sorted(selection.units % 2) == [0, 1]
    np.testing.assert_allclose(selection.weights, [0.5, 0.5], rtol=1e-5)
    small = keep_units(model, {"hidden": selection})
    np.testing.assert_allclose(small(x), model(x), rtol=1e-4, atol=1e-5)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def dense_chain(size=8):
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(size, "relu", name="hidden", bias_initializer="random_normal"),
            layers.Dense(3, name="next", bias_initializer="random_normal"),
        ]
    )


def convolutions(*between, following):
    """A layer of six filters, and what comes after it; its normalisations are not fresh ones."""
    x = outputs = keras.Input((8, 7, 2))
    steps = (layers.Conv2D(6, 3, name="hidden"), *between, following)
    for layer in steps:
        outputs = layer(outputs)
    if len(outputs.shape) > 2:
        outputs = layers.GlobalAveragePooling2D()(outputs)
    model = keras.Model(x, layers.Dense(4)(outputs))
    generator = np.random.default_rng(1)
    for layer in between:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 2, each.shape) for each in layer.weights])
    return model


def make(kind):
    if kind == "dense":
        return dense_chain(), normal(300, 5)
    normalised = layers.BatchNormalization(), layers.ReLU()
    tails = {
        "convolution": (normalised, layers.Conv2D(5, 3, 2, "same")),
        "dilated": ((layers.Dropout(0.5),), layers.Conv2D(5, (2, 3), dilation_rate=2)),
        "flattened": ((*normalised, layers.MaxPooling2D(2), layers.Flatten()), layers.Dense(5)),
        "normalised when flat": (
            (layers.Flatten(), layers.BatchNormalization(), layers.Activation("tanh")),
            layers.Dense(5),
        ),
        "pooled": ((layers.GlobalAveragePooling2D(),), layers.Dense(5, "relu")),
        "depthwise": (
            (layers.DepthwiseConv2D(3, strides=2), *normalised),
            layers.Conv2D(5, 1, use_bias=False),
        ),
    }
    between, following = tails[kind]
    following.name = "next"
    return convolutions(*between, following=following), normal(20, 8, 7, 2)


KINDS = [
    "dense",
    "convolution",
    "dilated",
    "flattened",
    "normalised when flat",
    "pooled",
    "depthwise",
]


def next_outputs(model, x):
    """What the next layer computes before its activation, measured in the model itself."""
    layer = model.get_layer("next")
    activation, layer.activation = layer.activation, keras.activations.linear
    model_input = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    inputs = keras.Model(model_input, layer.input)(x)
    outputs = layer(inputs).numpy()
    layer.activation = activation
    return outputs.reshape(len(x), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_model_has_the_discrepancy(kind):
    model, x = make(kind)
    before = [weight.numpy() for weight in model.weights]
    for repetition in (True, False):
        selection = select_units(model, "hidden", x, num_units=3, repetition=repetition)
        small = keep_units(model, {"hidden": selection})
        assert small.get_layer("hidden").kernel.shape[-1] == 3
        difference = next_outputs(small, x) - next_outputs(model, x)
        measured = (difference**2).sum(axis=1).mean()
        assert measured == pytest.approx(selection.discrepancies[-1], rel=1e-3)
        assert measured > 1e-3
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("kind", KINDS)
def test_all_units_once_are_the_layer(kind):
    model, x = make(kind)
    selection = select_units(model, "hidden", x, tolerance=0, repetition=False)
    size = model.get_layer("hidden").kernel.shape[-1]
    assert selection.num_units == list(range(1, size + 1))
    small = keep_units(model, {"hidden": selection})
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)


def contributions_of(model, x):
    """`(units, examples, outputs)`: each unit alone, `N` times, by the network itself."""
    size = model.get_layer("hidden").units
    nothing = np.zeros((size, 3), "float32")
    kernel, bias = model.get_layer("next").get_weights()
    results = []
    for unit in range(size):
        alone = nothing.copy()
        alone[unit] = kernel[unit] * size
        model.get_layer("next").set_weights([alone, 0 * bias])
        results.append(model(x).numpy())
    model.get_layer("next").set_weights([kernel, bias])
    return np.array(results, "float64")


def reference_path(contributions, num_steps):
    """The greedy local imitation, by the residual itself: `(discrepancies, counts, weights)`."""
    target = contributions.mean(axis=0)
    size, examples = contributions.shape[:2]

    def discrepancy(a):
        return ((np.tensordot(a, contributions, 1) - target) ** 2).sum() / examples

    a = min(np.eye(size), key=discrepancy)
    path = [(discrepancy(a), 1)]
    for _ in range(num_steps - 1):
        current = np.tensordot(a, contributions, 1)
        moves = []
        for unit in np.flatnonzero(a < 1):
            direction = contributions[unit] - current
            rate = ((target - current) * direction).sum() / (direction**2).sum()
            rate = min(max(rate, -a[unit] / (1 - a[unit])), 1)
            moved = (1 - rate) * a
            moved[unit] += rate
            moves.append(np.where(moved < 1e-12, 0, moved))
        a = min(moves, key=discrepancy)
        path.append((discrepancy(a), np.count_nonzero(a)))
    return [*zip(*path, strict=True), a]


@pytest.mark.parametrize("seed", range(4))
def test_local_imitation_follows_the_reference(seed):
    keras.utils.set_random_seed(seed)
    model, x = dense_chain(12), normal(40, 5, seed=seed)
    got = select_units(model, "hidden", x, tolerance=0, max_steps=30)
    discrepancies, counts, weights = reference_path(contributions_of(model, x), 30)
    np.testing.assert_allclose(got.discrepancies, discrepancies, rtol=1e-3)
    assert got.num_units == list(counts)
    np.testing.assert_allclose(shares(got, 12), weights, atol=1e-3)
    assert got.discrepancies == sorted(got.discrepancies, reverse=True)


@pytest.mark.parametrize("repetition", [True, False])
def test_the_global_discrepancy_is_the_loss_of_the_smaller_model(repetition):
    model, x = make("flattened")
    for loss, targets in (
        (None, None),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), np.arange(20) % 4),
    ):
        selection = select_units(
            model, "hidden", x, 4, None, "global", repetition, targets=targets, loss=loss
        )
        outputs = keep_units(model, {"hidden": selection})(x)
        if loss is None:
            measured = ((outputs - model(x)) ** 2).numpy().sum(axis=1).mean()
        else:
            measured = loss(targets, outputs)
        assert float(measured) == pytest.approx(selection.discrepancies[-1], rel=1e-4)
        if repetition:
            assert selection.discrepancies == sorted(selection.discrepancies, reverse=True)


def test_random_candidates():
    model, x = make("dense")
    runs = [
        select_units(model, "hidden", x, tolerance=1e-6, num_candidates=2, seed=seed)
        for seed in (0, 0, 1)
    ]
    same, again, other = (run.discrepancies for run in runs)
    assert same == again != other
    assert same == sorted(same, reverse=True)
    all_of_them = select_units(model, "hidden", x, tolerance=1e-6, num_candidates=8)
    assert all_of_them.discrepancies[0] <= min(same[0], other[0])


def test_several_layers_of_lenet5():
    model = models.lenet5((16, 16, 1), width=0.5)
    x = normal(10, 16, 16, 1)
    names = ("conv_1", "conv_2", "dense_1")
    selections = {name: select_units(model, name, x, 2) for name in names}
    small = keep_units(model, selections)
    assert [small.get_layer(name).kernel.shape[-1] for name in names] == [2, 2, 2]
    one_by_one = model
    for name in names:
        one_by_one = keep_units(one_by_one, {name: selections[name]})
    np.testing.assert_allclose(small(x), one_by_one(x), rtol=1e-5, atol=1e-6)
    assert small.layers[-1].name == model.layers[-1].name


def with_skip():
    x = keras.Input((4,))
    hidden = layers.Dense(4, name="hidden")(x)
    inner = layers.Dense(6, "relu", name="inner")(hidden)
    outputs = layers.Add(name="add")([hidden, layers.Dense(4, name="back")(inner)])
    return keras.Model(x, layers.Dense(2, name="last")(outputs))


@pytest.mark.parametrize("imitate", ["local", "global"])
def test_several_inputs(imitate):
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((3,), name="b")}
    hidden = layers.Dense(6, "relu", name="hidden")(layers.Concatenate()(list(inputs.values())))
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    x = {"a": normal(10, 4), "b": normal(10, 3, seed=1)}
    selection = select_units(model, "hidden", x, tolerance=0, imitate=imitate, repetition=False)
    small = keep_units(model, {"hidden": selection})
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)


def test_inside_a_residual_block():
    model, x = with_skip(), normal(10, 4)
    selection = select_units(model, "inner", x, tolerance=0, repetition=False)
    np.testing.assert_allclose(
        keep_units(model, {"inner": selection})(x), model(x), rtol=1e-5, atol=1e-6
    )


def chain_with(*between, activation=None):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, activation, name="hidden"), *between, layers.Dense(2)]
    )


@pytest.mark.parametrize(
    ("make_model", "layer", "message"),
    [
        (with_skip, "hidden", "'hidden' is followed by 2 layers"),
        (with_skip, "back", "'add' takes more than one input"),
        (with_skip, "last", "'last' is an output of the model"),
        (with_skip, "add", "'add' of class Add"),
        (with_skip, "other", "No such layer: other"),
        (lambda: chain_with(activation="softmax"), "hidden", "'hidden' mixes its units"),
        (lambda: chain_with(layers.LayerNormalization(name="n")), "hidden", "'n' mixes units"),
        (lambda: chain_with(layers.Softmax(name="s")), "hidden", "'s' mixes units"),
        (lambda: chain_with(layers.Dropout(0.5, (None, 3), name="d")), "hidden", "'d' mixes"),
        (lambda: chain_with(layers.Reshape((1, 3), name="r")), "hidden", "'r' mixes units"),
        (lambda: chain_with(layers.Reshape((3, -1), name="r")), "hidden", "'r' mixes units"),
        (lambda: rigl_tf.sparsify(chain_with(), 0.5), "hidden", "'hidden' inside a SparseWrapper"),
        (lambda: keras.Sequential([layers.Dense(2)]), "hidden", "a built Sequential"),
        (lambda: None, "hidden", "Received: None"),
    ],
)
def test_layers_without_a_next_one_are_refused(make_model, layer, message):
    with pytest.raises(ValueError, match=message):
        select_units(make_model(), layer, normal(4, 4), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_units": None}, "must say when to stop"),
        ({"num_units": 0}, "num_units=0"),
        ({"num_units": 2, "tolerance": -1}, "tolerance=-1"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"num_candidates": 1.5}, "num_candidates=1.5"),
        ({"max_steps": True}, "max_steps=True"),
        ({"imitate": "teacher"}, "imitate='teacher'"),
        ({"score": "exact"}, "`score` can be used only for the global imitation"),
        ({"score": "guess"}, "score='guess'"),
        ({"num_units": 4}, "num_units=4, and layer 'hidden' of 3 units"),
        ({"loss": "mse"}, "only for the global imitation"),
        ({"targets": np.ones(4)}, "only for the global imitation"),
        ({"inputs": normal(0, 4)}, "at least one example"),
        ({"inputs": [normal(4, 4)]}, "Received: list"),
        ({"inputs": 3.0}, "Received: float"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"seed": "a"}, "seed='a'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_units(
            chain_with(), "hidden", **{"inputs": normal(4, 4), "num_units": 2, **arguments}
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": np.arange(4)}, r"shape of the outputs, \(4, 2\)\. Received: shape=\(4,\)"),
        ({"targets": np.ones((4, 1))}, r"Received: shape=\(4, 1\)"),
        ({"targets": np.ones((3, 2))}, r"Received: shape=\(3, 2\)"),
        ({"targets": "a"}, r"Received: shape=\(\)"),
        ({"targets": np.ones((3, 2)), "loss": "mse"}, r"4 inputs\. Received: shape=\(3, 2\)"),
        ({"loss": "sparse_categorical_crossentropy"}, r"targets of shape \(4, 2\), outputs of"),
        ({"loss": "kullback"}, "kullback"),
    ],
)
def test_targets_that_do_not_fit_are_refused(arguments, message):
    model = chain_with()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        select_units(model, "hidden", normal(4, 4), 2, imitate="global", **arguments)
    for value, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, same)


def test_integers_are_targets_too():
    model, targets = chain_with(), np.eye(2, dtype=int)[[0, 1, 1, 0]]
    integers, floats = (
        select_units(model, "hidden", normal(4, 4), 2, imitate="global", targets=each)
        for each in (targets, targets.astype("float32"))
    )
    assert integers.discrepancies == floats.discrepancies


@pytest.mark.parametrize("repetition", [True, False])
@pytest.mark.parametrize("imitate", ["local", "global"])
@pytest.mark.parametrize("is_input", [True, False])
def test_what_is_not_finite_is_refused(is_input, imitate, repetition):
    model, x = chain_with(), normal(4, 4)
    if is_input:
        x[0, 0] = np.nan
    else:
        model.get_layer("hidden").bias.assign([0, np.nan, 0])
    with pytest.raises(ValueError, match="Received: a discrepancy of nan"):
        select_units(model, "hidden", x, 2, imitate=imitate, repetition=repetition)


def test_rows_of_large_layers_are_taken_in_parts(monkeypatch):
    model, x = make("convolution")
    whole = select_units(model, "hidden", x, 3)
    sizes = []
    rows = Link.rows

    def counted(link, x):
        sizes.append(len(x))
        return rows(link, x)

    monkeypatch.setattr(Link, "rows", counted)
    # An example has 6 x 5 pixels, a row 3 x 3 x 6 numbers.
    monkeypatch.setattr(imitation, "_MAX_SIZE", 8 * 30 * 54)
    parts = select_units(model, "hidden", x, 3)
    assert sizes == [8, 8, 4]
    np.testing.assert_array_equal(parts.units, whole.units)
    np.testing.assert_allclose(parts.discrepancies, whole.discrepancies, rtol=1e-9)


def test_the_global_imitation_needs_one_output():
    x = keras.Input((4,))
    hidden = layers.Dense(2, name="next")(layers.Dense(3, name="hidden")(x))
    model = keras.Model(x, [hidden, layers.Dense(1)(hidden)])
    assert len(select_units(model, "hidden", normal(4, 4), 2).units) == 2
    with pytest.raises(ValueError, match="one output"):
        select_units(model, "hidden", normal(4, 4), 2, imitate="global")


@pytest.mark.parametrize(
    ("units", "weights", "size"),
    [
        ([0, 3], [0.5, 0.5], 3),
        ([], [], 3),
        ([0], [0.5, 0.5], 3),
        ([-1, 1], [0.5, 0.5], 3),
        ([1, 1], [0.5, 0.5], 3),
        ([0, 1], [0.5, 0.5], 2),
    ],
)
def test_selections_of_other_layers_are_refused(units, weights, size):
    selection = Selection(np.array(units, int), np.array(weights), [0.0], [len(units)], size)
    with pytest.raises(ValueError, match="A selection must fit its layer"):
        keep_units(chain_with(), {"hidden": selection})


@pytest.mark.parametrize(
    ("selections", "message"),
    [
        (Selection(np.array([0]), np.array([1.0]), [0.0], [1], 4), "Received: Selection"),
        ({"hidden": None}, "Received: NoneType for 'hidden'"),
        ({"hidden": [1, 2]}, "Received: list for 'hidden'"),
    ],
)
def test_what_are_no_selections_is_refused(selections, message):
    with pytest.raises(ValueError, match=message):
        keep_units(chain_with(), selections)


@pytest.mark.parametrize("imitate", ["local", "global"])
def test_within_the_scope_of_a_strategy(imitate):
    def select(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            return select_units(dense_chain(), "hidden", normal(20, 5), 3, imitate=imitate)

    one, two = map(select, (tf.distribute.get_strategy(), mirrored()))
    np.testing.assert_array_equal(two.units, one.units)
    np.testing.assert_allclose(two.weights, one.weights, rtol=1e-5)


def test_selections_have_public_names():
    assert lottery.select_units is select_units
    assert lottery.keep_units is keep_units


def test_global_imitation_goes_on_from_a_unit_that_does_nothing():
    """The best first unit is a dead one: any other has 200 times its weight, far too much."""
    model = keras.Sequential(
        [keras.Input((30,)), keras.layers.Dense(200, "relu", name="hidden"), keras.layers.Dense(10)]
    )
    model.layers[0].bias.assign(np.where(np.arange(200) == 7, -1000.0, 0.0))
    inputs = np.random.default_rng(0).normal(size=(50, 30)).astype("float32")
    found = lottery.select_units(model, "hidden", inputs, num_units=5, imitate="global")
    assert 7 in found.units
    assert len(found.units) == 5
    assert found.discrepancies[-1] < found.discrepancies[0]
