"""Tests of `rigl_tf.lottery.fine_tuning`: what is pruned when, and two steps of ADMM by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import messages, mlp

import rigl_tf
from rigl_tf import lottery, structures
from rigl_tf.lottery import ADMM

layers = keras.layers


def linear(*weights, **arguments):
    """One output, whose kernel are these weights."""
    model = keras.Sequential(
        [keras.Input((len(weights),)), layers.Dense(1, use_bias=False, **arguments)]
    )
    model = rigl_tf.sparsify(model, 0.0)
    kernel_of(model).assign(np.array(weights, "float32")[:, None])
    return model


def kernel_of(model):
    (kernel,) = rigl_tf.masks.sparse_kernels(model).values()
    return kernel


def values_of(model):
    return kernel_of(model).numpy().ravel().tolist()


def nothing(targets, outputs):
    return 0.0 * tf.reduce_sum(outputs)


class Training:
    """Notes what it sees, and adds 1 to every active weight."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.seen = {}

    def __call__(self, model, run):
        name = run.name
        if name == self.stop_at:
            raise RuntimeError("stop")
        self.seen[name] = values_of(model)
        kernel = kernel_of(model)
        kernel.assign(rigl_tf.masks.masked(kernel + 1, rigl_tf.masks.mask_of(kernel)))
        return len(self.seen)


def test_one_shot():
    model, train = linear(1, -4, 3, 2), Training()
    got = lottery.prune_and_fine_tune(model, train, 0.5, "one_shot")
    # Trained: 2, -3, 4, 3. The two largest, of equals the first.
    assert train.seen == {"dense": [1, -4, 3, 2], "fine_tune": [0, -3, 4, 0]}
    assert values_of(model) == [0, -2, 5, 0]
    assert got.metrics == {"dense": 1, "fine_tune": 2}
    assert [mask.ravel().tolist() for mask in got.masks.values()] == [[False, True, True, False]]


def test_iterative():
    # Of ten weights: 0.2, 1 - 0.8^2 = 0.36, 1 - 0.8^3 = 0.488, 0.5 pruned, rounded down.
    model, train = linear(*range(1, 11)), Training()
    lottery.prune_and_fine_tune(model, train, 0.5)
    num_zeros = {name: values.count(0) for name, values in train.seen.items()}
    assert num_zeros == {
        "dense": 0,
        "iterative_1": 2,
        "iterative_2": 3,
        "iterative_3": 4,
        "fine_tune": 5,
    }
    assert train.seen["fine_tune"] == [0] * 5 + [10, 11, 12, 13, 14]
    # Less than one round: as in one shot.
    train = Training()
    lottery.prune_and_fine_tune(linear(1, 2, 3, 4), train, 0.5, prune_fraction=0.5)
    assert list(train.seen) == ["dense", "fine_tune"]


@pytest.mark.parametrize(
    ("sparsity", "prune_fraction", "num_between"),
    [(0.36, 0.2, 1), (0.488, 0.2, 2), (0.5904, 0.2, 3), (0.7599, 0.3, 3), (0.75, 0.5, 1)],
)
def test_a_sparsity_of_whole_rounds_has_as_many_trainings(sparsity, prune_fraction, num_between):
    """1 - 0.8^2 = 0.36 is two rounds, though less in floats; the last one is `"fine_tune"`."""
    got = lottery.prune_and_fine_tune(
        linear(*range(1, 11)), Training(), sparsity, prune_fraction=prune_fraction
    )
    between = [f"iterative_{number + 1}" for number in range(num_between)]
    assert list(got.metrics) == ["dense", *between, "fine_tune"]


def test_a_model_that_is_too_sparse_is_refused():
    model, train = linear(1, 2, 3, 4, 5), Training()
    (path,) = rigl_tf.get_masks(model)
    rigl_tf.set_masks(model, {path: np.array([0, 0, 0, 1, 1])[:, None]})
    with pytest.raises(ValueError, match=r"2 active connections, but pruning would leave 3"):
        lottery.prune_and_fine_tune(model, train, 0.4, "one_shot")
    assert train.seen == {}
    lottery.prune_and_fine_tune(model, train, 0.8, "one_shot")
    assert train.seen == {"dense": [0, 0, 0, 4, 5], "fine_tune": [0, 0, 0, 0, 6]}


def test_training_that_diverged_is_told():
    def train(model, run):
        kernel_of(model).assign([[np.nan], [2.0]])

    with pytest.raises(ValueError, match="training that diverged"):
        lottery.prune_and_fine_tune(linear(1, 2), train, 0.5)


def test_a_last_training_that_diverged_is_told_and_not_kept(tmp_path):
    arguments = {"sparsity": 0.5, "pruning": "one_shot", "directory": tmp_path}

    def train(model, run):
        if run.name == "fine_tune":
            kernel_of(model).assign([[np.nan], [2.0]])

    with pytest.raises(ValueError, match=r"NaN or inf in .* after 'fine_tune'"):
        lottery.prune_and_fine_tune(linear(1, 2), train, **arguments)
    again = Training()
    lottery.prune_and_fine_tune(linear(1, 2), again, **arguments)
    assert list(again.seen) == ["fine_tune"]


@pytest.mark.filterwarnings("ignore:`prune_and_fine_tune` reaches a sparsity of")
def test_layers_are_pruned_alike_and_the_first_is_not():
    model = keras.Sequential([keras.Input((8,)), *[layers.Dense(n) for n in (6, 10, 5)]])
    model = rigl_tf.sparsify(model, 0.0)
    got = lottery.prune_and_fine_tune(model, lambda model, name: None, 0.8, "one_shot")
    # 48 weights; 60 and 50, of which 48 and 40 are pruned.
    assert [int(mask.sum()) for mask in got.masks.values()] == [48, 12, 10]
    got = lottery.prune_and_fine_tune(
        model, lambda model, name: None, 0.9, "admm", distribution="erk", num_updates=1
    )
    assert sum(int(mask.sum()) for mask in got.masks.values()) == pytest.approx(16, abs=3)


def test_admm_by_hand():
    model = linear(3, 1)
    model.compile(keras.optimizers.SGD(1.0), nothing)
    fit = {"x": np.ones((4, 2)), "y": np.ones((4, 1)), "batch_size": 4, "verbose": 0}
    assert model.fit(**fit).history["loss"] == [0]
    with ADMM(model, 0.5, rho=0.5) as admm:
        # Z = (3, 0), U = 0: the penalty is 0.25 * 1, its gradient 0.5 * (0, 1).
        assert model.fit(**fit).history["loss"] == [0.25]
        assert values_of(model) == [3, 0.5]
        assert admm.gap() == pytest.approx(np.sqrt(0.25 / 9.25))
        admm.update()
        # Z = (3, 0), U = (0, 0.5): 0.25 * (0.5 - 0 + 0.5)^2, and the gradient is 0.5 * (0, 1).
        assert model.fit(**fit).history["loss"] == [0.25]
        assert values_of(model) == [3, 0]
        admm.update()
        # U stays: 0.25 * 0.5^2, the gradient is 0.5 * (0, 0.5).
        assert model.fit(**fit).history["loss"] == [0.0625]
        assert values_of(model) == [3, -0.25]
        # W + U = (3, 0.25) -> Z = (3, 0), U = (0, 0.25): (-0.25 + 0.25)^2.
        admm.update()
        assert model.fit(**fit).history["loss"] == [0]
    assert model.fit(**fit).history["loss"] == [0]
    kernel_of(model).assign([[3.0], [1.0]])
    assert model.fit(**fit).history["loss"] == [0]
    assert values_of(model) == [3, 1]


@pytest.mark.parametrize(
    ("structure", "far"),
    [
        # Of each column 9 and 7, 2 and 5: the first column stays.
        (structures.Block((2, 1)), [1, 1, 3, 2]),
        (structures.NM(2, 4), [4, 1, 1, 1]),
        (structures.ConstantFanIn(), [4, 1, 1, 1]),
    ],
)
def test_admm_pulls_towards_a_structure(structure, far):
    model = rigl_tf.sparsify(mlp(4, 2), 0.0, structure=structure)
    kernel_of(model).assign([[5, 1], [4, -1], [-1, 3], [6, -2]])
    with ADMM(model, 0.5, rho=2.0) as admm:
        (loss,) = model.losses
        assert float(loss) == np.sum(np.square(far))
        assert admm.gap() == pytest.approx(np.linalg.norm(far) / 93**0.5)
        admm.update()
        (loss,) = model.losses
        assert float(loss) == np.sum(np.square(2 * np.array(far)))  # U is W - Z


def test_a_structure_that_sets_the_sparsity_is_pruned_once_or_not_at_all():
    model = rigl_tf.sparsify(mlp(4, 2), 0.0, structure=structures.NM(2, 4))
    train = Training(stop_at="dense")
    with pytest.raises(ValueError, match=r'"iterative"` prunes step by step.*\(2, 4\)'):
        lottery.prune_and_fine_tune(model, train, 0.5)
    with pytest.raises(ValueError, match=r"has a sparsity of 0\.5.*Received: sparsity=0\.6"):
        lottery.prune_and_fine_tune(model, train, 0.6, "one_shot")
    got = lottery.prune_and_fine_tune(model, lambda model, run: None, 0.5, "one_shot")
    assert [mask.sum(axis=0).tolist() for mask in got.masks.values()] == [[2, 2]]


def test_a_model_that_has_the_units_to_be_left_is_not_too_sparse():
    # 40 - 13 = 27 of 40 connections would be left, which are 6 of each output.
    model = rigl_tf.sparsify(mlp(10, 4), 0.33, structure=structures.ConstantFanIn())
    got = lottery.prune_and_fine_tune(model, lambda model, run: None, 0.33, "one_shot")
    assert [mask.sum(axis=0).tolist() for mask in got.masks.values()] == [[6, 6, 6, 6]]


@pytest.mark.parametrize("pruning", ["one_shot", "iterative", "admm"])
def test_a_sparsity_that_the_distribution_misses_is_told_of(pruning):
    def told(**arguments):
        model = rigl_tf.sparsify(mlp(40, 20, 4), 0.0)
        prune = lottery.prune_and_fine_tune
        return messages(prune, model, lambda model, run: None, 0.5, pruning, **arguments)

    (message,) = told()
    assert message.startswith("`prune_and_fine_tune` reaches a sparsity of 0.045 instead of 0.5")
    assert not told(distribution="erk")
    (message,) = messages(ADMM, rigl_tf.sparsify(mlp(40, 20, 4), 0.0), 0.5)
    assert message.startswith("`ADMM` reaches a sparsity of 0.045 instead of 0.5")


def test_admm_counts_in_evaluation_as_long_as_it_is_open():
    model = linear(3, 1)
    model.compile(keras.optimizers.SGD(1.0), nothing)
    data = {"x": np.ones((4, 2)), "y": np.ones((4, 1)), "verbose": 0}
    assert model.evaluate(**data) == 0
    with ADMM(model, 0.5, rho=0.5):
        assert model.evaluate(**data) == 0.25
    assert model.evaluate(**data) == 0


def test_gap_without_a_penalty():
    assert ADMM(linear(3, 1), 0.0).gap() == 0
    assert ADMM(linear(0, 0), 0.5).gap() == 0
    # Nothing but the second weight, 1, is far: 1 / sqrt(9 + 1).
    assert ADMM(linear(3, 1), 0.5).gap() == pytest.approx(10**-0.5)


@pytest.mark.filterwarnings("ignore:`ADMM` reaches a sparsity of")
def test_admm_keeps_a_regularizer_and_leaves_dense_kernels_alone():
    model = linear(3, 1, kernel_regularizer=keras.regularizers.L2(0.5))
    regularizer = kernel_of(model).regularizer
    with ADMM(model, 0.5, rho=2.0):
        (loss,) = model.losses
        assert float(loss) == 0.5 * (9 + 1) + 1
    assert kernel_of(model).regularizer is regularizer
    with pytest.raises(RuntimeError, match="stop"), ADMM(model, 0.5):
        raise RuntimeError("stop")
    (loss,) = model.losses
    assert float(loss) == 5
    deep = keras.Sequential([keras.Input((8,)), layers.Dense(6), layers.Dense(10)])
    with ADMM(rigl_tf.sparsify(deep, 0.0), 0.5) as admm:
        assert len(admm._model.losses) == 1


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float64"])
def test_admm_makes_weights_small_before_they_go(policy):
    keras.config.set_dtype_policy(policy)
    if policy == "float64":
        keras.config.set_floatx(policy)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8)).astype("float32")
    y = x @ np.array([2, -2, 1.5, 1, 0.3, 0.2, -0.2, 0.1], "float32")[:, None]
    gaps = []

    def train(model, run):
        model.compile(keras.optimizers.SGD(0.05), "mse")
        model.fit(x, y, epochs=3, verbose=0)
        if run.name.startswith("admm"):
            values = np.sort(abs(np.array(values_of(model))))
            gaps.append(float(np.linalg.norm(values[:4]) / np.linalg.norm(values)))

    model = linear(*[0.1] * 8)
    got = lottery.prune_and_fine_tune(model, train, 0.5, "admm", num_updates=3, rho=2.0)
    assert list(got.metrics) == ["dense", "admm_1", "admm_2", "admm_3", "fine_tune"]
    # Of a small weight w, 2 (v - w) + 2 (v + U) = 0 leaves v = w / 2, which becomes U; then w / 4
    # is left, then w / 8. Norms of the small and of the large ones: sqrt(0.18) and sqrt(11.25).
    assert gaps == pytest.approx(np.sqrt(0.18 / 11.25) / np.array([2, 4, 8]), rel=0.15)
    (mask,) = got.masks.values()
    assert mask.ravel().tolist() == [True] * 4 + [False] * 4
    np.testing.assert_allclose(np.array(values_of(model)[:4]), [2, -2, 1.5, 1], atol=0.1)


@pytest.mark.parametrize("pruning", ["iterative", "admm"])
def test_goes_on_where_it_was_stopped(pruning, tmp_path):
    arguments = {"sparsity": 0.5, "pruning": pruning, "num_updates": 3, "rho": 0.5}

    def make():
        return linear(1, -6, 3, 2, 5, 4, 8, 7, -9, 10)

    model, train = make(), Training()
    whole = lottery.prune_and_fine_tune(model, train, **arguments)
    again, rest = make(), Training()
    with pytest.raises(RuntimeError, match="stop"):
        lottery.prune_and_fine_tune(
            again, Training(stop_at=f"{pruning}_2"), **arguments, directory=tmp_path
        )
    rest.seen.update(dict.fromkeys(["dense", f"{pruning}_1"]))
    got = lottery.prune_and_fine_tune(again, rest, **arguments, directory=tmp_path)
    assert got.metrics == whole.metrics
    assert values_of(again) == values_of(model)
    assert [*rest.seen][2:] == [*train.seen][2:]
    assert rest.seen["fine_tune"] == train.seen["fine_tune"]
    with pytest.raises(ValueError, match=r"sparsity=0.6 \(there: 0.5\)"):
        lottery.prune_and_fine_tune(
            make(), train, **arguments | {"sparsity": 0.6}, directory=tmp_path
        )


@pytest.mark.parametrize(
    ("pruning", "no_part"),
    [
        ("one_shot", {"rho": 1e-2, "num_updates": 3, "prune_fraction": 0.5}),
        ("iterative", {"rho": 1e-2, "num_updates": 3}),
        ("admm", {"prune_fraction": 0.5}),
    ],
)
def test_settings_are_those_that_play_a_part(pruning, no_part, tmp_path):
    def run(share, **others):
        lottery.prune_and_fine_tune(
            linear(1, 2, 3, 4),
            lambda model, name: None,
            0.5,
            pruning,
            distribution=lambda shapes, sparsity: dict.fromkeys(shapes, share * sparsity),
            directory=tmp_path,
            **others,
        )

    run(1.0)
    run(1.0, **no_part)
    # Another function, of other shares.
    with pytest.raises(ValueError, match=r"shares=\[.*\[0\.25\]\] \(there: \[.*\[0\.5\]\]\)"):
        run(0.5)


def test_schedules_of_a_compiled_model_start_again():
    model = linear(3, 1)
    model.compile(keras.optimizers.SGD(0.0), nothing)
    steps = []

    def train(model, run):
        steps.append(int(model.optimizer.iterations))
        model.fit(np.ones((6, 2)), np.ones((6, 1)), 2, verbose=0)

    lottery.prune_and_fine_tune(model, train, 0.5, "admm", num_updates=1)
    assert steps == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 0.0}, "sparsity=0.0"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"pruning": "magic"}, "pruning='magic'"),
        ({"prune_fraction": 1}, "prune_fraction=1"),
        ({"num_updates": 0}, "num_updates=0"),
        ({"pruning": "admm", "rho": 0}, "rho=0"),
        ({"pruning": "admm", "rho": float("nan")}, "rho=nan"),
        ({"pruning": "admm", "rho": "x"}, "rho='x'"),
        ({"distribution": "erdos"}, "identifier='erdos'"),
        ({"distribution": lambda shapes, sparsity: {}}, r"\[\], without \['"),
        ({"model": keras.Sequential(name="dense")}, "model='dense', without sparse kernels"),
        ({"model": "m"}, "model='m', without sparse kernels"),
    ],
)
def test_wrong_arguments(arguments, message):
    """All are refused before anything is trained."""
    right = {"model": linear(1, 2), "train": Training(stop_at="dense"), "sparsity": 0.5}
    with pytest.raises(ValueError, match=f"Received: {message}"):
        lottery.prune_and_fine_tune(**right | arguments)
