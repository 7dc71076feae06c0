"""Structures: their units by hand and by NumPy, and what they are in layers, files and masks.

What each of them must satisfy with each algorithm is in `whole/test_structured_properties.py`.
"""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    ON_ONE_DEVICE,
    active,
    all_alike,
    assert_equal,
    covers_part,
    in_world,
    masks_of,
    messages,
    mlp,
    numbers,
    sequential,
)
from keras import layers

import rigl_tf
from rigl_tf import selection, structures
from rigl_tf.layers.axes import axes_of
from rigl_tf.structures import NM, Axes, Block, Channels, ConstantFanIn

# In most tests here the last layer has the structure, too.
pytestmark = [
    covers_part,
    pytest.mark.filterwarnings("ignore:Outputs of the model have lost all:UserWarning"),
]

ALL = [
    Block((4, 1)),
    Block((2, 2), "max"),
    NM(2, 4),
    ConstantFanIn(),
    Channels(),
    Channels("inputs"),
]
every_structure = pytest.mark.parametrize("structure", ALL, ids=str)


def sparse(structure, sparsity=None, *sizes, seed=0):
    sparsity = structure.sparsity or 0.5 if sparsity is None else sparsity
    return rigl_tf.sparsify(mlp(*(sizes or (8, 12, 4))), sparsity, structure=structure, seed=seed)


def dense_copy(model):
    """A plain model of its own with the same weights."""
    plain = rigl_tf.strip(model)
    copy = keras.models.clone_model(plain)
    copy.set_weights(plain.get_weights())
    return copy


# Units, by hand.


def test_a_block_is_dropped_and_grown_as_a_whole():
    units = Block((2, 1)).units((4, 2))
    mask = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    drop = np.array([[9.0, 0], [0, 0], [0, 4], [0, 4.5]])  # 9 in one block, 8.5 in the other
    grow = np.array([[5.0, 1], [0, 1], [3, 0], [0, 0]])  # blocks of 5, 2, 3 and 0
    new = units.drop_and_grow(mask, drop, grow, 1)
    np.testing.assert_array_equal(new, [[1, 0], [1, 0], [1, 0], [1, 0]])
    largest = Block((2, 1), "max").units((4, 2)).keep(mask, drop, 1)
    np.testing.assert_array_equal(largest, mask & (drop.max(axis=0) == 9))
    assert (units.num_units, units.unit_size, int(units.num_active(mask))) == (4, 2, 2)


def test_of_m_inputs_n_are_kept():
    """The kernel's weakest is dropped, then the group that it was in grows."""
    units = NM(1, 2).units((4, 1))
    mask = np.array([[True], [False], [False], [True]])
    drop = np.array([[5.0], [0], [0], [1]])
    new = units.drop_and_grow(mask, drop, np.array([[0.0], [9], [3], [2]]), 1)
    np.testing.assert_array_equal(new[:, 0], [True, False, True, False])


def test_a_channel_is_a_filter():
    mask = Channels().units((3, 3, 2, 5)).random_mask(2, (0, 1)).numpy()
    assert sorted(mask.sum(axis=(0, 1, 2))) == [0, 0, 0, 18, 18]
    mask = Channels("inputs").units((3, 3, 2, 5)).random_mask(1, (0, 1)).numpy()
    assert sorted(mask.sum(axis=(0, 1, 3))) == [0, 45]


@pytest.mark.parametrize(
    ("shape", "sparsity", "fan_in", "num_ablated", "after"),
    [((784, 300), 0.9, 78, 100, 117), ((3, 3, 64, 64), 0.9, 57, 16, 76)],
)
def test_ablation_by_hand(shape, sparsity, fan_in, num_ablated, after):
    """The numbers that the paper's rule gives: `int(size * (1 - s)) // outputs`."""
    units = ConstantFanIn().units(shape)
    units.start_with(sparsity)
    mask = units.random_mask(units.count(sparsity), (0, 1)).numpy()
    per_output = mask.reshape(-1, shape[-1]).sum(axis=0)
    np.testing.assert_array_equal(per_output, fan_in)
    # The first outputs have the smallest weights, all of which are dropped, and grow nothing.
    weak = np.arange(shape[-1]) < num_ablated
    scores = 1 + np.random.default_rng(0).random(shape) - weak
    new = units.drop_and_grow(mask, scores, scores, num_ablated * fan_in).numpy()
    np.testing.assert_array_equal(new.reshape(-1, shape[-1]).sum(axis=0), np.where(weak, 0, after))
    assert 0 <= math.ceil(np.prod(shape) * (1 - sparsity)) - new.sum() < shape[-1]


def srigl(mask, drop, grow, num_drop, gamma, budget):
    """An update of SRigL by the paper, for a matrix, with scores that are all different."""
    num_inputs, num_outputs = mask.shape
    fan_in = mask.sum(axis=0).max()
    kept = np.zeros_like(mask)
    order = sorted(np.argwhere(mask).tolist(), key=lambda place: -drop[tuple(place)])
    for place in order[: len(order) - num_drop]:
        kept[tuple(place)] = True
    salient = kept.copy()
    order = sorted(np.argwhere(~kept).tolist(), key=lambda place: -grow[tuple(place)])
    for place in order[:num_drop]:
        salient[tuple(place)] = True
    used = [j for j in range(num_outputs) if salient[:, j].sum() >= gamma * fan_in - 1e-9]
    fan_in = budget // len(used)
    new = np.zeros_like(mask)
    for j in used:
        inputs = sorted(np.flatnonzero(kept[:, j]), key=lambda i: -drop[i, j])[:fan_in]
        others = sorted(set(range(num_inputs)) - set(inputs), key=lambda i: -grow[i, j])
        others = [i for i in others if not kept[i, j]]
        new[inputs + others[: fan_in - len(inputs)], j] = True
    return new


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.6])
def test_srigl_step_by_step(gamma):
    rng = np.random.default_rng(1)
    units = ConstantFanIn(gamma).units((20, 9))
    units.start_with(0.7)
    mask = units.random_mask(units.count(0.7), (3, 4)).numpy()
    num_outputs = []
    for _ in range(6):
        drop, grow = rng.normal(size=(2, 20, 9)) ** 2
        want = srigl(mask, drop, grow, 16, gamma, budget=54)
        mask = units.drop_and_grow(mask, drop, grow, 16).numpy()
        np.testing.assert_array_equal(mask, want)
        units.check(mask, "kernel")
        num_outputs.append(mask.any(axis=0).sum())
    assert min(num_outputs) == 9 if gamma == 0 else min(num_outputs) < 9


def test_ablation_leaves_as_many_outputs_as_the_connections_need():
    """Nearly dense, with no output that has enough: 3 outputs of 4 inputs hold 12 connections."""
    units = ConstantFanIn(1.0).units((4, 4))
    units.start_with(0.25)
    mask = units.random_mask(units.count(0.25), (0, 1)).numpy()
    drop = np.arange(16.0).reshape(4, 4)
    new = units.drop_and_grow(mask, drop, -drop, 12).numpy()
    assert new.sum() == 12
    units.check(new, "kernel")


def test_an_ablated_output_comes_back_if_it_is_salient():
    units = ConstantFanIn(0.5).units((4, 2))
    mask = np.array([[True, False]] * 2 + [[False, False]] * 2)
    drop, grow = np.array([[3.0, 0], [2, 0], [0, 0], [0, 0]]), np.array([[0.0, 9]] + [[0, 0]] * 3)
    new = units.drop_and_grow(mask, drop, grow, 1).numpy()
    np.testing.assert_array_equal(new, [[True, True]] + [[False, False]] * 3)


# Rows.


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_top_k_per_row(world, dtype):
    rng = np.random.default_rng(0)
    scores = rng.integers(-2, 3, (40, 7)).astype(dtype)
    if dtype != "int64":
        scores[rng.random(scores.shape) < 0.2] = -np.inf
    k = rng.integers(-1, 9, 40)
    rank = np.argsort(np.argsort(-scores.astype("float64"), axis=1, kind="stable"), axis=1)
    top = in_world(world, selection.top_k_per_row)
    np.testing.assert_array_equal(
        top(tf.constant(scores), tf.constant(k)), rank < np.clip(k, 0, 7)[:, np.newaxis]
    )


def test_top_k_per_row_of_extreme_numbers():
    ends = np.iinfo("int64").max, np.iinfo("int64").min
    scores = np.array([[*ends, 0, ends[0]]] * 3)
    found = selection.top_k_per_row(scores, [0, 1, 3])
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1]])


# Layers.


def axes_of_first_kernel(layer, shape):
    layer.build((None, *shape))
    return axes_of(layer, layer.weights[0]), layer.weights[0].shape


@pytest.mark.parametrize(
    ("layer", "shape", "want"),
    [
        (layers.Dense(3), (4,), Axes((0,), (1,))),
        (layers.Conv2D(3, 5), (9, 9, 4), Axes((2,), (3,))),
        (layers.Conv1D(4, 5, groups=2), (9, 4), Axes((1,), (2,))),
        (layers.Conv2DTranspose(3, 5), (9, 9, 4), Axes((3,), (2,))),
        (layers.DepthwiseConv2D(5), (9, 9, 4), Axes((0, 1), (2, 3))),
        (layers.SeparableConv1D(3, 5), (9, 4), Axes((0,), (1, 2))),
        (layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (5, 4), Axes((0,), (1, 2))),
        (layers.EinsumDense("abcd,cde->abe", (None, 6)), (5, 2, 3), Axes((0, 1), (2,))),
        (layers.EinsumDense("...x,xy->...y", 6), (5, 4), Axes((0,), (1,))),
        # A matrix for each place along b, and outputs that come first.
        (layers.EinsumDense("abc,bdc->abd", (5, 6)), (5, 4), Axes((2,), (1,))),
    ],
)
def test_what_is_an_input_and_what_an_output(layer, shape, want):
    axes, kernel_shape = axes_of_first_kernel(layer, shape)
    assert axes == want
    # Fan-in: the number of weights that an output reads, at all positions.
    per_output = math.prod(kernel_shape[axis] for axis in want.outputs)
    units = ConstantFanIn().units(kernel_shape, axes)
    assert (units.num_rows, units.num_columns) == (
        per_output,
        math.prod(kernel_shape) // per_output,
    )


def test_blocks_along_the_inputs_of_an_output_projection():
    """The kernel of attention, `(heads, size, out)`, is a matrix of heads x size inputs."""
    units = Block((6, 1)).units((2, 3, 4), Axes((0, 1), (2,)))
    mask = units.random_mask(1, (0, 1)).numpy()
    assert sorted(mask.sum(axis=(0, 1))) == [0, 0, 0, 6]


def test_groups_of_a_transposed_convolution():
    """Its kernel is `(positions, out, in)`."""
    model = sequential((5, 8), layers.Conv1DTranspose(3, 2))
    model = rigl_tf.sparsify(model, structure=NM(2, 4))
    np.testing.assert_array_equal(masks_of(model)[0].reshape(2, 3, 2, 4).sum(axis=-1), 2)


def test_a_block_with_a_number_for_each_axis():
    model = rigl_tf.sparsify(
        sequential((8, 8, 4), layers.Conv2D(6, 3)), 0.5, structure=Block((3, 3, 1, 1))
    )
    whole = masks_of(model)[0].sum(axis=(0, 1))
    assert set(whole.flat) == {0, 9}
    assert np.count_nonzero(whole) == 12


@every_structure
def test_every_kernel_of_a_model(structure):
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    model = keras.Model(inputs, layers.LSTM(4)(x))
    model = rigl_tf.sparsify(model, structure.sparsity or 0.5, structure=structure)
    summary = rigl_tf.sparsity_summary(model)
    assert len(summary.kernels) == 6
    assert {kernel.structure for kernel in summary.kernels} == {str(structure)}
    assert all(0 < kernel.num_active < kernel.size for kernel in summary.kernels)
    rigl_tf.set_masks(model, rigl_tf.get_masks(model))  # which checks them


# Shares.


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("structure", [Block((4, 1)), Block((2, 2)), Channels()], ids=str)
def test_the_total_is_as_near_as_whole_units_come(structure, sparsity):
    shapes = {"a": (3, 3, 4, 16), "b": (3, 3, 16, 32), "c": (512, 64), "d": (64, 12)}
    units = {path: structure.units(shape) for path, shape in shapes.items()}
    plain = rigl_tf.distributions.erk(shapes, sparsity)
    shares = structures.allocate("erk", units, sparsity)
    zeros = 0
    for path, each in units.items():
        mask = each.random_mask(each.count(shares[path]), (0, 1)).numpy()
        each.check(mask, path)
        zeros += mask.size - mask.sum()
        # No kernel is more than a unit away from its share.
        assert abs(shares[path] - plain[path]) * each.num_units < 1 + 1e-6
    wanted = sum(plain[path] * each.size for path, each in units.items())
    smallest = min(each.unit_size for path, each in units.items() if shares[path])
    assert wanted - zeros >= -1e-6
    if isinstance(structure, Block):
        assert wanted - zeros < smallest + 1


def test_without_a_structure_shares_are_those_of_the_distribution():
    shapes = {"a": (30, 7), "b": (7, 5)}
    units = {path: structures.Units(shape) for path, shape in shapes.items()}
    want = rigl_tf.distributions.erk(shapes, 0.7)
    assert structures.allocate("erk", units, 0.7) == want


def test_each_structure_has_a_unit_left():
    for structure in (Block((4, 1)), Channels(), ConstantFanIn()):
        assert min(active(sparse(structure, 0.999))) > 0


def test_outputs_that_channels_take_away_are_told_of():
    """Half of the 20 outputs. The hidden layer loses 4 of its 8, which nobody is told of."""
    message = r"`Channels\(\)` applies to its last layer.*/dense_1/kernel': '10 of 20'\}"
    with pytest.warns(UserWarning, match=message) as told:
        rigl_tf.sparsify(mlp(6, 8, 20), 0.5, all_alike, structure=Channels())
    assert len(told) == 1


@pytest.mark.filterwarnings("error:Outputs of the model")
def test_no_outputs_are_taken_away():
    sparse(Channels(), 0.0)
    sparse(Channels("inputs"))
    for structure in (None, Block((4, 1)), ConstantFanIn()):
        rigl_tf.sparsify(mlp(8, 12, 4), 0.9, structure=structure)
    dense = keras.Sequential([keras.Input((8,)), layers.Dense(6), layers.Dense(4, name="head")])
    rigl_tf.sparsify(dense, 0.5, structure=Channels(), dense_layers="head")


def test_masks_are_a_function_of_the_seed():
    for structure in ALL:
        one, two, other = (masks_of(sparse(structure, seed=seed)) for seed in (1, 1, 2))
        assert_equal(one, two)
        assert any((a != b).any() for a, b in zip(one, other, strict=True))


# Values.


@every_structure
def test_a_structure_is_a_value(structure):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(structure)))
    copy = keras.saving.deserialize_keras_object(config)
    assert copy == structure
    assert hash(copy) == hash(structure)
    assert [each for each in ALL if each == copy] == [structure]


@every_structure
def test_it_is_kept(structure, tmp_path):
    model = sparse(structure)
    model.compile("sgd", "mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    for copy in (loaded, clone, rigl_tf.with_execution(model, "auto")):
        assert [each.structure for each in copy.layers] == [structure] * 2
        assert {each.structure for each in rigl_tf.sparsity_summary(copy).kernels} == {
            str(structure)
        }
        rigl_tf.set_masks(copy, rigl_tf.get_masks(model))
    assert_equal(masks_of(loaded), masks_of(model))
    again = rigl_tf.sparsify(dense_copy(loaded), from_zeros=True, structure=structure)
    assert_equal(masks_of(again), masks_of(model))


def test_structured_kernels_are_masked_and_the_summary_says_why():
    for execution in ("csr", "auto"):
        model = rigl_tf.sparsify(mlp(), 0.5, structure=Block((2, 1)), execution=execution)
        kernels = rigl_tf.sparsity_summary(model).kernels
        assert {(each.execution, each.reason) for each in kernels} == {
            ("masked", "has a structure")
        }
    assert "kernel Block((2, 1)) (masked: has a" in str(rigl_tf.sparsity_summary(model))


def test_a_wrapper_by_hand():
    layer = rigl_tf.SparseWrapper(layers.Dense(3), structure=NM(1, 4), seed=0)
    layer(np.ones((1, 8)))
    assert layer.sparsity == 0.75
    np.testing.assert_array_equal(layer.kernel_mask.numpy().reshape(2, 4, 3).sum(axis=1), 1)
    assert rigl_tf.SparseWrapper(layers.Dense(3), structure=Channels()).sparsity == 0
    assert rigl_tf.SparseWrapper(layers.Dense(3), 0.0, structure=NM(1, 4)).sparsity == 0


def test_a_model_that_is_built_late():
    model = keras.Sequential([layers.Dense(8), layers.Dense(4)])
    model = rigl_tf.sparsify(model, structure=NM(1, 2))
    model(np.ones((1, 6)))
    assert active(model) == [24, 16]


# Masks from scores, once.


BATCH = numbers((8, 8)), numbers((8, 4), seed=1)
PRUNERS = {
    "magnitude": rigl_tf.pruning.magnitude_masks,
    "random": lambda model, *arguments: rigl_tf.pruning.random_masks(model, *arguments),
    "SNIP": lambda model, sparsity, *rest: rigl_tf.pruning.snip_masks(
        model, BATCH, sparsity, "mse", *rest
    ),
    "GraSP": lambda model, sparsity, *rest: rigl_tf.pruning.grasp_masks(
        model, BATCH, sparsity, "mse", *rest
    ),
}


@every_structure
@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("distribution", [None, all_alike])
def test_pruning_keeps_to_the_structure(structure, pruner, distribution):
    if pruner == "random" and distribution is None:
        distribution = "erk"
    sparsity = structure.sparsity or 0.6
    model = sparse(structure, 0.0)
    masks = PRUNERS[pruner](model, sparsity, distribution)
    rigl_tf.set_masks(model, masks)
    sizes = [96, 48]
    lost = sum(sizes) * (1 - sparsity) - sum(active(model))
    assert abs(lost) <= sum(each.units.step for each in rigl_tf.masks.kernels_of(model).values())
    # Pruned again to the same, nothing changes.
    again = rigl_tf.pruning.magnitude_masks(model, sparsity, distribution or "erk")
    if distribution is not None:
        assert [mask.sum() for mask in again.values()] == active(model)


def test_blocks_of_all_kernels_are_ranked_together():
    """By hand: of six blocks of two weights, three stay."""
    model = rigl_tf.sparsify(mlp(2, 2, 1), 0.0, structure=Block((2, 1)))
    model.layers[0].layer.kernel.assign([[5.0, 1], [0, 2]])
    model.layers[1].layer.kernel.assign([[2.0], [2]])
    masks = list(rigl_tf.pruning.magnitude_masks(model, 1 / 3).values())
    np.testing.assert_array_equal(masks[0], [[True, False], [True, False]])
    np.testing.assert_array_equal(masks[1], [[True], [True]])


def test_channels_are_ranked_by_the_mean_of_their_weights():
    """Else those of large kernels would always be kept."""
    model = rigl_tf.sparsify(mlp(4, 2, 2), 0.0, structure=Channels())
    model.layers[0].layer.kernel.assign(np.ones((4, 2)))
    model.layers[1].layer.kernel.assign([[1.5, 0.5], [1.5, 0.5]])
    masks = list(rigl_tf.pruning.magnitude_masks(model, 0.5).values())
    np.testing.assert_array_equal(masks[0], [[True, False]] * 4)
    np.testing.assert_array_equal(masks[1], [[True, False], [True, False]])


# What does not fit is said in a sentence.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(4), r"`shape` of a Block must be a tuple .* Received: shape=4"),
        (lambda: Block((4,)), r"`shape` of a Block must be a tuple .* Received: shape=\(4,\)"),
        (lambda: Block((0, 1)), r"`shape` must be an integer >= 1. Received: shape=0"),
        (lambda: Block((4, 1), "mean"), "`pooling` must be one of .* Received: pooling='mean'"),
        (lambda: NM(2, 2), "`n` must be below `m`. Received: n=2, m=2"),
        (lambda: NM(0, 2), "`n` must be an integer >= 1. Received: n=0"),
        (lambda: NM(1, 2.0), "`m` must be an integer >= 1. Received: m=2.0"),
        (lambda: ConstantFanIn(2), r"`min_salient` must be a number in \[0, 1\]"),
        (lambda: Channels("rows"), "`of` must be one of .* Received: of='rows'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "block"}, "`structure` must be a value of .* Received: structure='block'"),
        ({"structure": Block}, "`structure` must be a value of"),
        (
            {"structure": Block((4, 1))},
            r"Block\(\(4, 1\)\) needs inputs and outputs that its numbers divide.*"
            r"'.*/kernel' of shape \(6, 8\), with \(6, 8\) inputs",
        ),
        ({"structure": Block((3, 3, 1, 1))}, r"needs a kernel of 4 axes.* of shape \(6, 8\)"),
        ({"structure": NM(2, 4)}, "needs a number of inputs that 4 divides.* with 6 inputs"),
        ({"structure": NM(1, 2), "sparsity": 0.6}, r"NM\(1, 2\) has a sparsity of 0.5: leave"),
        (
            {"structure": NM(1, 2), "sparsity": {layers.Dense: 0.9}},
            r"NM\(1, 2\) has a sparsity of 0.5: leave",
        ),
        ({"structure": Block((2, 1)), "sparsity": None}, "A sparsity must be a real number"),
    ],
)
def test_what_does_not_fit_a_model_leaves_it_dense(arguments, message):
    model = mlp(6, 8, 3)
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(ValueError, match=message):
        rigl_tf.sparsify(model, **{"sparsity": 0.5, **arguments})
    assert [type(layer) for layer in model.layers] == [layers.Dense] * 2
    assert_equal(before, [weight.numpy() for weight in model.weights])
    assert rigl_tf.get_masks(rigl_tf.sparsify(model, 0.5))


def broken(structure, mask):
    """A mask with another number of connections in one unit."""
    mask = mask.copy()
    place = (0, np.flatnonzero(mask.any(axis=0))[0])
    mask[place] = not mask[place]
    return mask


@every_structure
def test_masks_that_break_the_structure(structure, tmp_path):
    model = sparse(structure)
    path, mask = next(iter(rigl_tf.get_masks(model).items()))
    with pytest.raises(ValueError, match=r"must fit its structure .* Received: "):
        rigl_tf.set_masks(model, {path: broken(structure, mask)})
    np.testing.assert_array_equal(rigl_tf.get_masks(model)[path], mask)
    other = rigl_tf.sparsify(mlp(8, 12, 4), 0.5)
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match="must fit its structure"):
        model.load_weights(tmp_path / "other.weights.h5")
    rigl_tf.set_masks(model, rigl_tf.get_masks(model))
    with pytest.raises(ValueError, match="must fit its structure"):
        rigl_tf.sparsify(dense_copy(other), from_zeros=True, structure=structure)


class OwnMask(rigl_tf.RigL):
    def new_mask(self, kernel, mask, gradient, step):
        return mask


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: rigl_tf.SNFS("sgd", 1000, redistribute=True),
        lambda: OwnMask("sgd", 1000),
    ],
)
def test_algorithms_that_would_break_it_are_refused(optimizer):
    model = sparse(Block((4, 1)))
    optimizer = optimizer()
    with pytest.raises(ValueError, match=r"chooses single connections.*Block\(\(4, 1\)\)"):
        optimizer.build(model.trainable_variables)
    optimizer.build(rigl_tf.sparsify(mlp(), 0.5).trainable_variables)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: rigl_tf.DNW("sgd", 0.75),
        lambda: rigl_tf.GradualPruning("sgd", 1000, 0.75),
    ],
)
def test_another_sparsity_than_that_of_n_of_m(optimizer):
    model = sparse(NM(2, 4), 0.0)
    with pytest.raises(ValueError, match=r"NM\(2, 4\) has a sparsity of 0.5"):
        optimizer().build(model.trainable_variables)


def test_a_sparsity_that_whole_channels_cannot_have_is_no_surprise():
    model = sparse(Channels(), 0.0)
    optimizer = rigl_tf.GradualPruning("sgd", 1000, 0.7)
    assert messages(optimizer.build, model.trainable_variables) == []
