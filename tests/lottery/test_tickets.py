"""Tests of `lottery.find_ticket`: levels that a human can prune by eye."""

import json

import keras
import numpy as np
import pytest
from helpers import assert_equal, kernels_of, mlp

import rigl_tf
from rigl_tf import lottery, structures

layers = keras.layers
# With so few connections a kernel soon has none.
empties_kernels = pytest.mark.filterwarnings("ignore:All kernels were ranked together:UserWarning")

# Two kernels of ten connections, all weights different.
ONE = np.array([[1, -2, 3, -4, 5], [-6, 7, -8, 9, -10]], "float32")
TWO = np.array([[11], [-12], [13], [-14], [15]], "float32")


def network(structure=None):
    dense = keras.Sequential(
        [keras.Input((2,)), layers.Dense(5, name="one"), layers.Dense(1, name="two")]
    )
    sparse = rigl_tf.sparsify(dense, 0.0, structure=structure)
    one, two = [wrapper.layer for wrapper in sparse.layers]
    one.kernel.assign(ONE)
    two.kernel.assign(TWO)
    two.bias.assign([7.0])
    return sparse


class Halving:
    """Trains by halving all weights and adding one to the last bias; counts its calls."""

    def __init__(self, stop_at=None):
        self.calls = []
        self.starts = []
        self.stop_at = stop_at

    def __call__(self, model, run):
        level = run.level
        if level == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(level)
        self.starts.append([*kernels_of(model), model.layers[1].layer.bias.numpy()])
        for kernel in rigl_tf.masks.sparse_kernels(model).values():
            kernel.assign(kernel / 2)
        model.layers[1].layer.bias.assign_add([1.0])
        return {"accuracy": np.float32(0.5), "level": level}


def test_global_levels_by_hand():
    # 15 connections; a half goes: 15 -> 15 - 7 = 8 -> 4. The weakest stand in the first kernel.
    model, train = network(), Halving()
    with pytest.warns(UserWarning, match=r"Received: none in \['sequential/one/kernel'\]") as told:
        found = lottery.find_ticket(model, train, levels=2, prune_fraction=0.5)
    assert [each.filename for each in told] == [__file__]
    assert [level.num_active for level in found] == [15, 8, 4]
    assert [level.sparsity for level in found] == [0.0, 7 / 15, 11 / 15]
    assert [level.number for level in found] == train.calls == [0, 1, 2]
    assert found[2].metrics == {"accuracy": 0.5, "level": 2}
    first, second = found[1].masks.values()
    np.testing.assert_array_equal(first, np.abs(ONE) >= 8)
    assert second.all()
    first, second = found[2].masks.values()
    assert not first.any()
    np.testing.assert_array_equal(second, np.abs(TWO) >= 12)
    # Each level starts from the initial weights, its mask applied, the bias too.
    one, two, bias = train.starts[1]
    np.testing.assert_array_equal(one, np.where(np.abs(ONE) >= 8, ONE, 0))
    np.testing.assert_array_equal(two, TWO)
    assert bias == [7.0]
    # The model is the ticket.
    np.testing.assert_array_equal(kernels_of(model)[1], np.where(np.abs(TWO) >= 12, TWO, 0))
    assert model.layers[1].layer.bias.numpy() == [7.0]
    assert all(
        (mask == of_level).all()
        for mask, of_level in zip(
            rigl_tf.get_masks(model).values(), found[2].masks.values(), strict=True
        )
    )


def test_a_level_is_printed_without_its_arrays():
    level = lottery.Level(1, 3, 0.7, {"kernel": ONE}, {"accuracy": 0.5}, [ONE])
    assert str(level) == ("Level(number=1, num_active=3, sparsity=0.7, metrics={'accuracy': 0.5})")
    assert "masks" not in str(lottery.FineTuned({"kernel": ONE}, {}))


def test_layerwise_levels_by_hand(recwarn):
    # 10 -> 10 - 3 = 7 -> 5 and 5 -> 5 - 1 = 4 -> 3.
    found = lottery.find_ticket(network(), Halving(), 2, prune_fraction=0.3, scope="layerwise")
    assert [level.num_active for level in found] == [15, 11, 8]
    first, second = found[2].masks.values()
    np.testing.assert_array_equal(first, np.abs(ONE) >= 6)
    np.testing.assert_array_equal(second, np.abs(TWO) >= 13)
    assert not recwarn


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_one_shot_has_the_counts_of_as_many_levels(scope):
    train = Halving()
    once = lottery.find_ticket(network(), train, 3, 0.3, scope, one_shot=True)
    levels = lottery.find_ticket(network(), Halving(), 3, 0.3, scope)
    assert train.calls == [0, 3]
    assert [level.num_active for level in once] == [15, levels[3].num_active]
    # Halving changes no order, so the masks are equal as well.
    for mask, of_level in zip(once[1].masks.values(), levels[3].masks.values(), strict=True):
        np.testing.assert_array_equal(mask, of_level)


def test_whole_units_of_all_kernels_are_ranked_together():
    # Five columns, the mean sizes 3.5 to 7.5, and one of 13: six units -> 6 - 3 = 3 -> 3 - 1 = 2.
    found = lottery.find_ticket(network(structures.Channels()), Halving(), 2, 0.5)
    assert [level.num_active for level in found] == [15, 9, 7]
    assert [level.sparsity for level in found] == [0, 6 / 15, 8 / 15]
    for level, num_columns in ((1, 2), (2, 1)):
        first, second = found[level].masks.values()
        assert_equal(first, np.tile(np.arange(5) >= 5 - num_columns, (2, 1)))
        assert second.all()


@pytest.mark.parametrize(
    ("structure", "scope", "counts"),
    [
        # 40 and 20 blocks of 2: 40 -> 30 -> 23 -> 18 and 20 -> 15 -> 12 -> 9; 60 -> 45 -> 34 -> 26.
        (structures.Block((2, 1)), "layerwise", [120, 90, 70, 54]),
        (structures.Block((2, 1)), "global", [120, 90, 68, 52]),
        # 10 outputs of 8: 80 -> 60 = 10 * 6 -> 45 = 10 * 4 + 5 -> 40 -> 30 = 10 * 3.
        # 4 outputs of 10: 40 -> 30 = 4 * 7 + 2 -> 28 -> 21 = 4 * 5 + 1 -> 20 -> 15 = 4 * 3 + 3.
        (structures.ConstantFanIn(), "layerwise", [120, 88, 60, 42]),
    ],
)
def test_of_structures_a_share_of_the_units_is_pruned(structure, scope, counts):
    def find(**others):
        model = rigl_tf.sparsify(mlp(8, 10, 4), 0.0, structure=structure)
        found = lottery.find_ticket(model, lambda model, run: None, 3, 0.25, scope, **others)
        return [level.num_active for level in found]

    assert find() == counts
    assert find(one_shot=True) == [counts[0], counts[3]]


@empties_kernels
def test_rewinding_of_the_learning_rate_keeps_the_trained_weights():
    model, train = network(), Halving()
    lottery.find_ticket(model, train, 2, 0.5, rewind="learning_rate")
    np.testing.assert_array_equal(train.starts[1][1], TWO / 2)
    np.testing.assert_array_equal(train.starts[2][1], np.where(np.abs(TWO) >= 12, TWO / 4, 0))
    assert train.starts[2][2] == [9.0]
    np.testing.assert_array_equal(kernels_of(model)[1], np.where(np.abs(TWO) >= 12, TWO / 4, 0))


def test_rewinding_of_the_learning_rate_takes_no_weights():
    points = []

    def train(model, run):
        points.append(run.rewind)
        run.rewind.record(2)
        run.rewind.record(4)  # step 3 is overstepped, and nothing is missed

    lottery.find_ticket(network(), train, 1, rewind_step=3, rewind="learning_rate")
    assert [(point.start_step, point.state) for point in points] == [(0, None), (3, None)]


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_a_kernel_without_connections_stays_without(scope):
    # Ten and none; a half goes: 10 -> 5 -> 3.
    model = network()
    one, two = rigl_tf.get_masks(model)
    rigl_tf.set_masks(model, {two: np.zeros((5, 1))})
    found = lottery.find_ticket(model, Halving(), 2, 0.5, scope)
    assert [level.num_active for level in found] == [10, 5, 3]
    np.testing.assert_array_equal(found[2].masks[one], np.abs(ONE) >= 8)
    assert not found[2].masks[two].any()


@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_training_that_diverged_is_told(rewind):
    def train(model, run):
        kernel = next(iter(rigl_tf.masks.sparse_kernels(model).values()))
        kernel.assign(kernel * np.nan)

    with pytest.raises(ValueError, match=r"training that diverged.*NaN or inf in \['.*one/kernel"):
        lottery.find_ticket(network(), train, 1, rewind=rewind)


def test_nothing_is_kept_of_a_training_that_diverged(tmp_path):
    """Not of the last one either, whose weights are never ranked; with another rate it goes on."""

    def diverged(model, run):
        if run.level == 1:
            model.trainable_weights[-1].assign(model.trainable_weights[-1] * np.nan)

    message = f"NaN or inf in .* after level 1 in '{tmp_path}'"
    with pytest.raises(ValueError, match=message):
        lottery.find_ticket(network(), diverged, 1, 0.5, directory=tmp_path)
    found = lottery.find_ticket(network(), Halving(), 1, 0.5, directory=tmp_path)
    assert [level.number for level in found] == [0, 1]


def test_the_history_of_fit_is_metrics(tmp_path):
    def train(model, run):
        model.compile("sgd", "mse")
        return model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    found = lottery.find_ticket(rigl_tf.sparsify(model, 0.0), train, 1, directory=tmp_path)
    assert [list(level.metrics) for level in found] == [["loss"], ["loss"]]


@pytest.mark.parametrize("pruning", [{}, {"scope": "layerwise", "rewind": "learning_rate"}])
@empties_kernels
def test_a_stopped_run_goes_on_at_the_first_unfinished_level(tmp_path, pruning):
    whole = network()
    wanted = lottery.find_ticket(whole, Halving(), 3, 0.3, **pruning)
    model, train = network(), Halving(stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        lottery.find_ticket(model, train, 3, 0.3, directory=tmp_path, **pruning)
    other = network()
    other.set_weights([value * 0 + 3 for value in other.get_weights()])  # not looked at
    again = Halving()
    found = lottery.find_ticket(other, again, 3, 0.3, directory=tmp_path, **pruning)
    assert train.calls + again.calls == [0, 1, 2, 3]
    assert_same(found, wanted)
    for value, of_whole in zip(other.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(value, of_whole)
    # A third time nothing is trained; one level more is.
    third = Halving()
    assert_same(lottery.find_ticket(network(), third, 3, 0.3, directory=tmp_path, **pruning), found)
    assert third.calls == []
    lottery.find_ticket(network(), third, 4, 0.3, directory=tmp_path, **pruning)
    assert third.calls == [4]


def assert_same(found, wanted):
    for level, other in zip(found, wanted, strict=True):
        assert (level.number, level.num_active, level.metrics) == (
            other.number,
            other.num_active,
            other.metrics,
        )
        for mask, of_other in zip(level.masks.values(), other.masks.values(), strict=True):
            np.testing.assert_array_equal(mask, of_other)


def test_a_directory_of_other_settings_is_refused(tmp_path):
    lottery.find_ticket(network(), Halving(), 1, 0.5, directory=tmp_path)
    with pytest.raises(ValueError, match=r"same settings.*prune_fraction=0.3 \(there: 0.5\)"):
        lottery.find_ticket(network(), Halving(), 1, 0.3, directory=tmp_path)
    dense = keras.Sequential([keras.Input((3,)), layers.Dense(5)])
    other = rigl_tf.sparsify(dense, 0.0)
    with pytest.raises(ValueError, match=r"same settings.*shapes=\[\[3, 5\]"):
        lottery.find_ticket(other, Halving(), 1, 0.5, directory=tmp_path)


def test_a_half_written_level_does_not_count_and_a_damaged_one_is_named(tmp_path):
    lottery.find_ticket(network(), Halving(), 1, 0.5, directory=tmp_path)
    (tmp_path / "level-001.npz").rename(tmp_path / ".tmp-level-001.npz")
    train = Halving()
    lottery.find_ticket(network(), train, 1, 0.5, directory=tmp_path)
    assert train.calls == [1]
    (tmp_path / "level-001.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"delete it and.*level-001\.npz"):
        lottery.find_ticket(network(), train, 1, 0.5, directory=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("settings.json", b"", "settings of a directory are damaged.*settings.json"),
        ("settings.json", b"[]", "settings of a directory are damaged.*settings.json"),
        ("settings.json", b"\xff", "settings of a directory are damaged.*settings.json"),
        ("level-001.npz", b"", r"delete it and.*level-001\.npz"),
        ("level-001.npz", None, r"delete it and.*level-001\.npz \(without masks\)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    lottery.find_ticket(network(), Halving(), 1, 0.5, directory=tmp_path)
    if content is None:
        np.savez(tmp_path / name, metrics="1")
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        lottery.find_ticket(network(), Halving(), 1, 0.5, directory=tmp_path)


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_directory_that_is_a_file_is_refused(tmp_path, inside):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"must be a directory.*directory='.*file/?{inside}'"):
        lottery.find_ticket(network(), Halving(), 1, 0.5, directory=tmp_path / "file" / inside)


X = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
Y = X[:, :1] * X[:, 1:]
STATES = {}


def fit_from(model, run):
    """Four epochs of three steps; what each training starts with goes to `STATES`."""
    level, rewind = run.level, run.rewind
    STATES[level] = model.get_weights()
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.iterations.assign(rewind.start_step)
    model.compile(optimizer, "mse")
    snapshot = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: STATES.update({(level, epoch + 1): model.get_weights()})
    )
    first = rewind.start_step // 3
    model.fit(X, Y, 4, 4, 0, callbacks=[rewind, snapshot], shuffle=False, initial_epoch=first)
    return {"steps": int(optimizer.iterations.numpy()), "first": first}


def normalised():
    keras.utils.set_random_seed(1)
    dense = keras.Sequential(
        [keras.Input((2,)), layers.Dense(5), layers.BatchNormalization(), layers.Dense(1)]
    )
    return rigl_tf.sparsify(dense, 0.0)


def not_again(model, run):
    raise AssertionError


@empties_kernels
def test_fit_rewinds_to_step_k_normalisation_and_all(tmp_path):
    model = normalised()
    found = lottery.find_ticket(
        model, fit_from, 2, 0.5, rewind_step=6, directory=tmp_path / "whole"
    )
    assert [level.metrics for level in found] == [
        {"steps": 12, "first": 0},
        {"steps": 12, "first": 2},
        {"steps": 12, "first": 2},
    ]
    names = {weight.name for weight in model.weights}
    assert {"gamma", "beta", "moving_mean", "moving_variance", "bias"} < names
    masks = found[2].masks
    for weight, now, then, start in zip(
        model.weights, STATES[2], STATES[0, 2], STATES[0], strict=True
    ):
        if weight.name != "kernel_mask":
            assert (then != start).any()  # it had moved by step 6
            np.testing.assert_array_equal(now, np.where(masks.get(weight.path, True), then, 0))
    # A level has them before they were masked.
    for weight, started, then in zip(model.weights, found[2].weights, STATES[0, 2], strict=True):
        if weight.name != "kernel_mask":
            np.testing.assert_array_equal(started, then)
    # Read from the files, the rewound weights are the same.
    again = normalised()
    lottery.find_ticket(again, not_again, 2, 0.5, rewind_step=6, directory=tmp_path / "whole")
    for value, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, other)


def test_a_loop_of_ones_own_rewinds_too():
    starts = []

    def train(model, run):
        rewind = run.rewind
        starts.append(kernels_of(model)[1])
        for step in range(rewind.start_step, 4):
            for kernel in rigl_tf.masks.sparse_kernels(model).values():
                kernel.assign(kernel / 2)
            rewind.record(step + 1)

    lottery.find_ticket(network(), train, 1, 0.2, rewind_step=3)
    np.testing.assert_array_equal(starts[1], TWO / 8)


def test_recurrent_layers_start_each_level_in_the_same_state(tmp_path):
    rnn = layers.SimpleRNN(2, stateful=True)
    dense = keras.Sequential([keras.Input((3, 2), batch_size=1), rnn, layers.Dense(1)])
    model = rigl_tf.sparsify(dense, 0.0)
    (state,) = rnn.states
    x, starts = np.ones((1, 3, 2), "float32"), []

    def train(model, run):
        starts.append(state.numpy().tolist())
        model(x)
        assert state.numpy().tolist() != starts[0]

    model(x)
    for levels in (1, 2):  # the second time from the files
        lottery.find_ticket(model, train, levels, directory=tmp_path)
        assert state.numpy().tolist() == starts[0]
        model(x)
    assert len(starts) == 3
    assert starts[0] == starts[1] == starts[2]


def test_the_model_has_the_masks_after_a_training_that_moves_connections(tmp_path):
    def swap(model, run):
        masks = rigl_tf.get_masks(model)
        rigl_tf.set_masks(model, {path: np.flip(mask) for path, mask in masks.items()})

    model = network()
    ticket = lottery.find_ticket(model, swap, 1, 0.3, "layerwise", directory=tmp_path)[-1]
    # 1, 2 and 3 were pruned, and 11; flipped these are -8, 9 and -10, and 15.
    wanted = [np.where(np.abs(ONE) < 8, ONE, 0), np.where(TWO < 15, TWO, 0)]
    assert_equal(kernels_of(model), wanted)
    assert_equal(list(ticket.masks.values()), [kernel != 0 for kernel in wanted])
    again = network()
    lottery.find_ticket(again, not_again, 1, 0.3, "layerwise", directory=tmp_path)
    assert_equal(kernels_of(again), wanted)


def test_a_compiled_optimizer_starts_fresh_at_each_level():
    model = network()
    optimizer = keras.optimizers.SGD(0.001, momentum=0.9)
    model.compile(optimizer, "mse")
    seen = []

    def train(model, run):
        seen.append([variable.numpy() for variable in optimizer.variables])
        model.fit(X, Y, 4, verbose=0)
        optimizer.learning_rate.assign(0.5)

    lottery.find_ticket(model, train, 1)
    for first, second in zip(*seen, strict=True):
        np.testing.assert_array_equal(first, second)
    assert int(optimizer.iterations.numpy()) == 0


def test_bad_arguments():
    def find(model=None, train=lambda model, run: None, levels=1, **others):
        lottery.find_ticket(model or network(), train, levels, **others)

    with pytest.raises(ValueError, match=r"`levels` must be an integer >= 1\. Received: levels=0"):
        find(levels=0)
    with pytest.raises(ValueError, match="`rewind_step` must be an integer >= 0"):
        find(rewind_step=0.5)
    with pytest.raises(ValueError, match=r"in \(0, 1\)\. Received: prune_fraction=1\.0"):
        find(prune_fraction=1.0)
    with pytest.raises(ValueError, match="`scope` must be one of"):
        find(scope="local")
    with pytest.raises(ValueError, match=r"must take a model and .*Received: train\(model\)"):
        find(train=lambda model: None)
    with pytest.raises(ValueError, match="`rewind` must be one of"):
        find(rewind="both")
    with pytest.raises(ValueError, match="without sparse kernels"):
        find(keras.Sequential([keras.Input((2,)), layers.Dense(1)]))
    with pytest.raises(ValueError, match="model='m', without sparse kernels"):
        find("m")
    with pytest.raises(ValueError, match="that JSON can save"):
        find(train=lambda model, run: object())
    with pytest.raises(ValueError, match="rewind_step=3, steps seen=0"):
        find(rewind_step=3)
    with pytest.raises(ValueError, match=r"steps_per_execution.*rewind_step=3, steps done=4"):
        find(train=lambda model, run: run.rewind.record(4), rewind_step=3)
    assert json.dumps(lottery.levels.plain({"a": np.arange(2), 3: (1, 2)})) == (
        '{"a": [0, 1], "3": [1, 2]}'
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda model: lottery.find_ticket(model, lambda *_: None, 1),
        lambda model: lottery.prune_and_fine_tune(model, lambda *_: None, 0.5),
        lambda model: lottery.ADMM(model, 0.5),
        lambda model: lottery.sanity_check(
            lambda seed: model, dict, lambda *_: 50.0, (np.ones((4, 8)), np.zeros(4, int)), 2
        ),
    ],
)
def test_csr_kernels_are_refused_before_anything_is_trained(call):
    dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = rigl_tf.sparsify(dense, 0.5, execution="csr")
    with pytest.raises(ValueError, match=r"with_execution\(model, 'masked'\).*/kernel'\]"):
        call(model)


def never(model, run):
    pytest.fail("trained")


@pytest.mark.parametrize(
    "call",
    [
        lambda build: lottery.find_ticket(build(0), never, 1),
        lambda build: lottery.jackpot_protocol(build, never, never, [0.1], "unused", levels=1),
    ],
)
def test_structures_that_set_the_sparsity_are_refused_before_anything_is_trained(call):
    def build(seed):
        return rigl_tf.sparsify(mlp(4, 3), 0.0, structure=structures.NM(2, 4))

    message = r"prunes step by step.*magnitude_masks.*Received: \{'.*/kernel': 'NM\(2, 4\)'\}"
    with pytest.raises(ValueError, match=message):
        call(build)
