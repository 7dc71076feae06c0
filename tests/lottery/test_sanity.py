"""Tests of `rigl_tf.lottery.sanity` and `corruption`, with pruners whose verdict is known."""

import keras
import numpy as np
import pytest
from helpers import kernels_of, mlp

import rigl_tf
from rigl_tf import lottery, structures
from rigl_tf.lottery import SanityTable

layers = keras.layers

LABELS = np.arange(20_000) % 10


def test_corrupt_labels():
    same = lottery.corrupt_labels(LABELS, 0, 10)
    np.testing.assert_array_equal(same, LABELS)
    half = lottery.corrupt_labels(LABELS, 0.5, 10, seed=1)
    # A tenth of those that are drawn anew are what they were; standard deviation 0.0035.
    assert (half != LABELS).mean() == pytest.approx(0.45, abs=0.015)
    every = lottery.corrupt_labels(LABELS, 1.0, 10, seed=1)
    assert (every == LABELS).mean() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_allclose(np.bincount(every) / 20_000, 0.1, atol=0.01)
    np.testing.assert_array_equal(every, lottery.corrupt_labels(LABELS, 1.0, 10, seed=1))
    assert (every != lottery.corrupt_labels(LABELS, 1.0, 10, seed=2)).mean() > 0.8
    column = lottery.corrupt_labels(np.zeros((5, 1), "uint8"), 1.0, 3)
    assert (column.shape, column.dtype) == ((5, 1), "uint8")
    np.testing.assert_array_equal(LABELS, np.arange(20_000) % 10)


def test_shuffle_pixels():
    images = np.tile(np.arange(48, dtype="uint8").reshape(1, 4, 4, 3), (30, 1, 1, 1))
    got = lottery.shuffle_pixels(images, seed=3)
    assert (got.shape, got.dtype) == (images.shape, images.dtype)
    np.testing.assert_array_equal(np.sort(got.reshape(30, -1)), images.reshape(30, -1))
    # Every image in a way of its own, across channels; of 48 entries one stays, on average.
    assert len({row.tobytes() for row in got}) == 30
    assert (got == images).mean() < 0.05
    assert (got % 3 == images % 3).mean() < 0.5
    np.testing.assert_array_equal(got, lottery.shuffle_pixels(images, seed=3))
    assert (got != lottery.shuffle_pixels(images, seed=4)).mean() > 0.9


def test_half_dataset():
    x, y = lottery.half_dataset((np.arange(10).reshape(5, 2), np.array([5, 6, 7, 8, 9])))
    assert (x.tolist(), y.tolist()) == ([[0, 1], [2, 3]], [5, 6])


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (np.arange(8).reshape(4, 2), "ndarray"),
        ((np.arange(4), np.arange(6)), r"\[\(4,\), \(6,\)\]"),
        ((np.arange(4), 3), r"\[\(4,\), \(\)\]"),
        ((), "tuple"),
    ],
)
def test_half_of_something_else(data, received):
    with pytest.raises(ValueError, match=f"tuple of arrays of one length.*Received: {received}"):
        lottery.half_dataset(data)


def test_rearrange_masks():
    ticket = {"a": np.arange(100).reshape(5, 20) < 30, "b": np.arange(100).reshape(5, 20) < 30}
    got = lottery.rearrange_masks(ticket, seed=1)
    assert list(got) == ["a", "b"]
    for path, mask in got.items():
        assert (mask.shape, mask.dtype, mask.sum()) == ((5, 20), bool, 30)
        assert (mask != ticket[path]).sum() > 15
    assert (got["a"] != got["b"]).any()
    again, other = (lottery.rearrange_masks(masks=ticket, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(got["a"], again["a"])
    assert (got["a"] != other["a"]).any()
    # Everywhere with the same probability: 0.3, standard deviation 0.03.
    masks = [lottery.rearrange_masks(ticket, seed=seed)["a"] for seed in range(250)]
    np.testing.assert_allclose(np.mean(masks, axis=0), 0.3, atol=0.13)


def make_model(seed=0, sparsity=0.0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, name="one"), layers.Dense(10, name="two")]
    )
    return rigl_tf.sparsify(model, sparsity, dict.fromkeys, seed=seed)


def test_shuffle_weights():
    model = make_model(sparsity=0.5)
    model.layers[0].bias.assign(np.arange(8.0))
    before = kernels_of(model)
    lottery.shuffle_weights(model, seed=1)
    after = kernels_of(model)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old != 0, new != 0)
        np.testing.assert_array_equal(np.sort(old.ravel()), np.sort(new.ravel()))
        assert (old != new).sum() > 15
    np.testing.assert_array_equal(model.layers[0].bias, np.arange(8.0))
    with pytest.raises(ValueError, match="Received: model='dense', without sparse kernels"):
        lottery.shuffle_weights(keras.Sequential(name="dense"))


def test_random_and_hybrid_tickets():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv1"),
            layers.Conv2D(8, 3, name="conv2"),
            layers.Flatten(),
            layers.Dense(10, name="dense"),
        ]
    )
    model = rigl_tf.sparsify(model, 0.0)
    # 108, 288 and 1280 weights, of which 502 are left at 0.7; 384 of them in the dense layer.
    # 118 for the others: raw 12 and 6, 1296 + 1728 = 3024. Without residual connections raw
    # 12 and 6 / 4: 1296 + 432 = 1728; 88.5 and 29.5.
    for residual, counts in ((True, [50, 67, 384]), (False, [88, 29, 384])):
        for ticket in (
            lottery.random_ticket(model, 0.7, residual, seed=1),
            lottery.hybrid_ticket(model, 0.7, residual),
        ):
            assert [int(mask.sum()) for mask in ticket.values()] == counts
    for kernel, mask in zip(kernels_of(model), ticket.values(), strict=True):
        assert abs(kernel[mask]).min() >= abs(kernel[~mask]).max()
    one, other = (lottery.random_ticket(model, 0.7, True, seed=seed) for seed in (1, 2))
    assert all((mask != other[path]).any() for path, mask in one.items())
    # Half of the dense layer, and of the convolutions nothing is left: refused.
    with pytest.raises(ValueError, match="pass a smaller `linear_density`"):
        lottery.random_ticket(model, 0.7, True, linear_density=0.5)


X = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
Y = np.argmax(X, axis=1)


def by_data(model, data):
    """A mask that is a function of the data: which inputs go with which labels."""
    inputs, labels = data
    means = np.stack([inputs[labels == k].mean(axis=0) for k in range(6)], axis=1)
    kernels = rigl_tf.masks.sparse_kernels(model)
    return {
        path: np.resize(means > 0.3, kernel.shape).astype(bool) for path, kernel in kernels.items()
    }


def by_weights(model, data):
    """Magnitudes of the initial weights: the data play no part."""
    return rigl_tf.pruning.magnitude_masks(model, 0.5, dict.fromkeys)


class Training:
    """90 % if masks and (if asked for) weights are those that the pruner chose, else 80 %."""

    def __init__(self, prune, of_weights=False):
        self.prune, self.of_weights = prune, of_weights
        self.names = []

    def __call__(self, model, run):
        name = str(run)
        self.names.append(name)
        seed = int(name[-1])
        wanted = make_model(seed)
        found = self.prune(wanted, (X, Y))
        if self.of_weights:
            found, weights = found
            wanted.set_weights(weights)
        rigl_tf.set_masks(wanted, found)
        # Keras gives each model another name, so the paths are not the same.
        got, want = (rigl_tf.get_masks(each).values() for each in (model, wanted))
        is_same = all((one == other).all() for one, other in zip(got, want, strict=True))
        if self.of_weights:
            pairs = zip(kernels_of(model), kernels_of(wanted), strict=True)
            is_same = is_same and all((one == other).all() for one, other in pairs)
        return 90.0 if is_same else 80.0


def check(prune, of_weights=False, **arguments):
    train = Training(prune, of_weights)
    table = lottery.sanity_check(
        make_model, prune, train, (X, Y), 6, **{"seeds": (0, 1), **arguments}
    )
    return {name: table.passed(name) for name in table.accuracies if name != "ticket"}, train


def test_a_pruner_that_uses_the_data():
    passed, train = check(by_data)
    assert passed == {
        "corrupted labels": True,
        "corrupted pixels and labels": True,
        "half data": False,  # a hundred examples tell as much
        "rearranged masks": True,
        "shuffled weights": False,
        "random ticket": True,
    }
    assert train.names[:3] == [
        "ticket, seed 0",
        "corrupted labels, seed 0",
        "corrupted pixels and labels, seed 0",
    ]
    assert len(train.names) == 14


def test_a_pruner_that_does_not():
    passed, _ = check(by_weights, checks=["corrupted pixels and labels", "random ticket"])
    assert passed == {"corrupted pixels and labels": False, "random ticket": True}


def test_a_pruner_that_trains_and_rewinds():
    """It returns weights; what it leaves in the model does not count."""

    def prune(model, data):
        weights = [3 * array if array.dtype != bool else array for array in model.get_weights()]
        for variable in model.trainable_variables:
            variable.assign(7 + 0 * variable)
        return by_data(model, data), weights

    passed, _ = check(prune, of_weights=True, checks=["half data", "shuffled weights"])
    assert passed == {"half data": False, "shuffled weights": True}


def test_what_the_pruner_sees():
    seen = []

    def prune(model, data):
        seen.append(data)
        return by_weights(model, data)

    lottery.sanity_check(make_model, prune, lambda model, run: 50, (X, Y), 6, seeds=[2])
    # Once true data, for all checks that do without others.
    (x, y), (same, labels), (shuffled, others), half = seen
    for got, want in ((x, X), (y, Y), (same, X), (np.sort(shuffled), np.sort(X))):
        np.testing.assert_array_equal(got, want)
    for got in (labels, others):
        np.testing.assert_array_equal(got, lottery.corrupt_labels(Y, 1.0, 6, seed=2))
    assert (shuffled != X).mean() > 0.7
    for got, want in zip(half, (X, Y), strict=True):
        np.testing.assert_array_equal(got, want[:100])


def test_what_training_starts_from():
    """Of an initial ticket the initial weights; a random one has them in any case."""
    seen = {}

    def prune(model, data):
        return by_weights(model, data), [2 * array for array in model.get_weights()]

    def train(model, run):
        seen[str(run)] = [kernels_of(model), rigl_tf.get_masks(model)]
        return 50

    lottery.sanity_check(
        make_model, prune, train, (X, Y), 6, seeds=[5], checks=["rearranged masks", "random ticket"]
    )
    initial, masks = kernels_of(make_model(5)), []
    for name, factor in (("ticket", 2), ("rearranged masks", 2), ("random ticket", 1)):
        kernels, found = seen[f"{name}, seed 5"]
        mask = next(iter(found.values()))
        masks.append(mask)
        assert mask.sum() == 24
        np.testing.assert_array_equal(kernels[0], np.where(mask, factor * initial[0], 0))
    assert all((masks[i] != masks[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_verdict_and_table():
    # Drops of 2, 0 and 1: mean 1, standard deviation 1. Of 1, 0.5 and 1.5: 1 and 0.5.
    table = SanityTable(
        {
            "ticket": [90.0, 91.0, 92.0],
            "half data": [88.0, 91.0, 91.0],
            "corrupted labels": [89.0, 90.5, 90.5],
        },
        threshold=0.5,
    )
    assert table.drop("half data") == (1, 1)
    assert not table.passed("half data")
    assert table.drop("corrupted labels") == (1, 0.5)
    assert table.passed("corrupted labels")
    assert not SanityTable(table.accuracies, threshold=1.0).passed("corrupted labels")
    assert str(table).splitlines() == [
        "| run | accuracy, % | drop, points | check |",
        "|---|---|---|---|",
        "| ticket | 91.00 ± 1.00 |  |  |",
        "| half data | 90.00 ± 1.73 | 1.00 ± 1.00 | failed |",
        "| corrupted labels | 90.00 ± 0.87 | 1.00 ± 0.50 | passed |",
        "",
        "Passed: the accuracy drops by more than 0.5 points for each of 3 seeds, or in the mean "
        "and by more than its standard deviation.",
    ]
    # One seed that does not train at all hides nothing: drops of 3, 4 and 80.
    ruined = SanityTable({"ticket": [90.0, 90.0, 90.0], "half data": [87.0, 86.0, 10.0]}, 0.5)
    mean, spread = ruined.drop("half data")
    assert mean < spread
    assert ruined.passed("half data")
    assert not SanityTable(ruined.accuracies, threshold=3.0).passed("half data")
    one = str(SanityTable({"ticket": [90.0], "half data": [89.0]}, 0.5))
    assert "| half data | 89.00 | 1.00 | passed |" in one
    assert one.endswith("There is only one seed, so the standard deviation is unknown.")


@pytest.mark.parametrize("check", ["random ticket", "ticket", None])
def test_a_check_that_was_not_run_is_refused(check):
    table = SanityTable({"ticket": [90.0], "half data": [89.0]}, 0.5)
    for ask in (table.drop, table.passed):
        with pytest.raises(
            ValueError, match=rf"one of \['half data'\]\. Received: check={check!r}"
        ):
            ask(check)


def test_goes_on_where_it_was_stopped(tmp_path):
    arguments = {"checks": ["corrupted labels", "random ticket"], "directory": tmp_path}

    class Stopped(Training):
        def __call__(self, model, run):
            if str(run) == "random ticket, seed 1":
                raise RuntimeError("stop")
            return super().__call__(model, run)

    with pytest.raises(RuntimeError, match="stop"):
        lottery.sanity_check(
            make_model, by_data, Stopped(by_data), (X, Y), 6, seeds=(0, 1), **arguments
        )
    passed, train = check(by_data, **arguments)
    assert train.names == ["random ticket, seed 1"]
    assert passed == {"corrupted labels": True, "random ticket": True}
    _, train = check(by_data, **arguments)
    assert train.names == []


def test_a_directory_of_another_model_or_other_data_is_refused(tmp_path):
    def run(build=make_model, number=200):
        data = X[:number], Y[:number]
        lottery.sanity_check(
            build, by_weights, lambda model, run: 50, data, 6, seeds=[0], directory=tmp_path
        )

    def wider(seed):
        return rigl_tf.sparsify(keras.Sequential([keras.Input((6,)), layers.Dense(9)]), 0.0)

    run()
    with pytest.raises(ValueError, match=r"same settings.*, shapes=\[\[6, 9\], \[9\]\]"):
        run(wider)
    with pytest.raises(ValueError, match=r"same settings.*data_shapes=\[\[100, 6\], \[100\]\]"):
        run(number=100)
    run()


def test_weights_that_were_masked_cannot_be_rearranged():
    def prune(model, data):
        rigl_tf.set_masks(model, by_weights(model, data))
        return rigl_tf.get_masks(model), model.get_weights()

    arguments = {"build": make_model, "train": lambda model, run: 50, "data": (X, Y)}
    with pytest.raises(ValueError, match=r"before they were masked.*0 wherever a mask is `False`"):
        lottery.sanity_check(prune=prune, num_classes=6, **arguments)
    # The other checks do not look at them.
    others = ["half data", "shuffled weights", "random ticket"]
    lottery.sanity_check(prune=prune, num_classes=6, checks=others, **arguments)


@pytest.mark.parametrize(("share", "received"), [(0.0, "0 of 128"), (1.0, "128 of 128")])
def test_a_pruner_that_prunes_nothing_or_all(share, received):
    def prune(model, data):
        return {path: mask & bool(share) for path, mask in rigl_tf.get_masks(model).items()}

    with pytest.raises(ValueError, match=f"prune some connections.*Received: {received} active"):
        lottery.sanity_check(make_model, prune, lambda model, run: 50, (X, Y), 6)


def test_a_rewound_ticket_can_be_checked():
    """`find_ticket` has masked the model's own weights; those of the level are as they were."""

    def prune(model, data):
        def fit(model, run):
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("sgd", loss)
            model.fit(*data, epochs=1, callbacks=[run.rewind], verbose=0)

        ticket = lottery.find_ticket(model, fit, 2, 0.5, rewind_step=1)[-1]
        return ticket.masks, ticket.weights

    table = lottery.sanity_check(
        make_model, prune, lambda model, run: 50, (X, Y), 6, checks=["rearranged masks"], seeds=[0]
    )
    assert table.accuracies == {"ticket": [50.0], "rearranged masks": [50.0]}


def test_a_check_that_is_named_twice_is_done_once():
    _, train = check(by_weights, checks=["half data", "half data"], seeds=[0])
    assert train.names == ["ticket, seed 0", "half data, seed 0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": lambda model, run: 0.9}, "none above 0.9"),
        ({"train": lambda model, run: {"accuracy": 90}}, "{'accuracy': 90} for 'ticket, seed 0'"),
        ({"train": lambda model, run: float("nan")}, "nan for 'ticket, seed 0'"),
        ({"prune": lambda model, data: None}, "NoneType"),
        ({"prune": lambda model, data: {"other": np.ones(3)}}, "'other'"),
        ({"prune": lambda model, data: ({}, None, 3)}, "dict, NoneType, int"),
        ({"prune": lambda model, data: ({}, [np.ones(3)])}, r"1 arrays of shapes \[\(3,\)\]"),
        ({"checks": None}, "checks=None"),
        ({"checks": ["half"]}, r"checks=\['half'\]"),
        ({"checks": "half data"}, "checks='half data'"),
        ({"checks": []}, r"checks=\[\]"),
        ({"seeds": []}, r"seeds=\[\]"),
        ({"seeds": 3}, "seeds=3"),
        ({"seeds": None}, "seeds=None"),
        ({"seeds": [-1]}, r"seeds=\[-1\]"),
        ({"seeds": (1, 1)}, r"seeds=\(1, 1\)"),
        ({"threshold": -1}, "threshold=-1"),
        ({"data": X}, "ndarray"),
        ({"data": (X, Y[:-1])}, "tuple"),
        ({"data": (X, X)}, "dtype=float32"),
        ({"data": (X[:0], Y[:0])}, r"tuple of shapes \[\(0, 6\), \(0,\)\]"),
        ({"data": (X, np.eye(6, dtype=int)[Y])}, r"shape=\(200, 6\), from 0 to 1"),
        ({"data": (X, Y - 1)}, r"shape=\(200,\), from -1 to 4"),
        ({"num_classes": 5}, r"shape=\(200,\), from 0 to 5, num_classes=5"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    right = {
        "build": make_model,
        "prune": by_weights,
        "train": lambda model, run: 50,
        "data": (X, Y),
        "num_classes": 6,
    }
    with pytest.raises(ValueError, match=f"Received: {message}"):
        lottery.sanity_check(**right | arguments)


@pytest.mark.parametrize("check", ["rearranged masks", "random ticket"])
def test_masks_with_a_structure_are_not_rearranged(check, tmp_path):
    """Refused before any training; the other checks run."""

    def build(seed):
        return rigl_tf.sparsify(mlp(6, 6), 0.0, structure=structures.Block((2, 1)))

    def never(model, run):
        pytest.fail("trained")

    def prune(model, data):
        return rigl_tf.pruning.magnitude_masks(model, 0.5)

    message = (
        r"cannot rearrange.*pass `checks=` without 'rearranged masks' and 'random ticket'\. "
        r"Received: \{'.*/kernel': 'Block\(\(2, 1\)\)'\}"
    )
    arguments = {"data": (X, Y), "num_classes": 6, "seeds": [0]}
    with pytest.raises(ValueError, match=message):
        lottery.sanity_check(build, prune, never, checks=["half data", check], **arguments)
    kept = ["half data", "shuffled weights"]
    table = lottery.sanity_check(build, prune, lambda *_: 50, checks=kept, **arguments)
    assert list(table.accuracies) == ["ticket", *kept]
    contest = lottery.Contest(build, lambda *_: 50, tmp_path, 1, 0.5)
    with pytest.raises(ValueError, match=r'`"random"` cannot rearrange.*use another kind'):
        contest.accuracy("random", 1)


def test_labels_in_a_column():
    table = lottery.sanity_check(
        make_model, by_weights, lambda model, run: 50, (X, Y[:, None]), 6, seeds=[0]
    )
    assert len(table.accuracies) == 7


def test_classes_that_do_not_fit_the_labels():
    labels = np.zeros(3, "uint8")
    assert lottery.corrupt_labels(labels, 1.0, 256).dtype == "uint8"
    with pytest.raises(ValueError, match="Received: dtype=uint8, num_classes=257"):
        lottery.corrupt_labels(labels, 1.0, 257)


@pytest.mark.parametrize(
    ("corrupt", "received"),
    [
        (lambda: lottery.corrupt_labels(LABELS, 1.5, 10), r"probability=1\.5"),
        (lambda: lottery.corrupt_labels(LABELS, 1.0, 9), "from 0 to 9, num_classes=9"),
        (lambda: lottery.corrupt_labels(LABELS - 1, 1.0, 10), "from -1 to 8, num_classes=10"),
        (lambda: lottery.corrupt_labels(LABELS, 1.0, 10, seed=0.5), r"seed=0\.5"),
        (lambda: lottery.corrupt_labels(np.eye(4, dtype=int), 1.0, 4), r"shape=\(4, 4\)"),
        (lambda: lottery.shuffle_pixels(LABELS), r"shape=\(20000,\)"),
        (lambda: lottery.shuffle_pixels(X, seed=-1), "seed=-1"),
        (lambda: lottery.rearrange_masks({"a": [0.5, 1.0]}), r"values from 0\.5 to 1\.0"),
        (lambda: lottery.rearrange_masks([[True]]), "list"),
        (lambda: lottery.rearrange_masks({"a": [True]}, seed=None), "seed=None"),
        (lambda: lottery.shuffle_weights(make_model(0), seed="a"), "seed='a'"),
    ],
)
def test_what_cannot_be_corrupted(corrupt, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        corrupt()
