"""The protocol `recipe`: a few steps on small data, and what its page says."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from running import cells_of, run_protocol

import rigl_tf
from rigl_tf import analysis
from scripts.lottery import networks, recipe
from scripts.lottery.pages import recipe as page_of_recipe

pytestmark = pytest.mark.usefixtures("without_xla")


@pytest.fixture
def two_orders(monkeypatch):
    monkeypatch.setattr(recipe, "ORDERS_OF_FIRST", recipe.ORDERS)


@pytest.mark.slow
def test_recipe(mnist_dir, tmp_path, two_orders):
    arguments = "--max_examples=300", "--seeds=0"
    rows, page = run_protocol(recipe, mnist_dir, tmp_path, *arguments)
    kinds = [(row["network"], int(row["order"])) for row in rows]
    assert kinds == [
        ("pruned", 0),
        *(("ticket", order) for order in (0, 1)),
        ("scratch", 0),
        *(("scratch_aware", order) for order in (0, 1)),
        ("rigl", 0),
        ("rigl_aware", 0),
    ]
    # The same share of each kernel, the first one too: 8 of 150, 120 of 2400, and so on.
    sizes = (150, 2400, 30720, 10080, 840)
    active = sum(size - int(0.95 * size) for size in sizes)
    assert {float(row["sparsity"]) for row in rows} == {round(1 - active / sum(sizes), 6)}

    labels = np.load(mnist_dir / "mnist.npz")["y_test"]
    predictions = [recipe.unpack(row["probabilities"]).reshape(len(labels), 10) for row in rows]
    for row, each in zip(rows, predictions, strict=True):
        assert 100 * np.mean(each.argmax(axis=1) == labels) == pytest.approx(float(row["accuracy"]))
    unlike = 100 * analysis.disagreement(predictions[0], predictions[1])
    assert cells_of(page, "tickets", "1")[-1] == f"{unlike:.2f}"
    together = np.mean(np.array(predictions[4:6], float), axis=0).argmax(axis=1)
    ensemble = f"{100 * np.mean(together == labels):.2f} (98.00)"
    assert cells_of(page, "scratch, sparsity-aware, of one start", "2")[1] == ensemble
    # One seed decides nothing.
    assert {cells_of(page, text)[0] for text, *_ in page_of_recipe.CLAIMS} == {"undecided"}

    # Killed after the first three runs and started again, it does the others as before.
    path = tmp_path / "lottery_recipe.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:4]) + "\n")
    again, _ = run_protocol(recipe, mnist_dir, tmp_path, *arguments)
    told = [{k: v for k, v in row.items() if k != "seconds"} for row in (*rows, *again)]
    assert told[: len(rows)] == told[len(rows) :]


def test_masks_and_weights_of_the_recipe(mnist_dir, tmp_path, two_orders, monkeypatch):
    """What each network begins with."""
    begun = {}

    def keep(case, model, network, order):
        masks, kernels = (
            {path: np.array(each) for path, each in found.items()}
            for found in (rigl_tf.get_masks(model), analysis.get_kernels(model))
        )
        begun.setdefault(network, []).append((masks, kernels, order))
        flat = np.concatenate([mask.ravel() for mask in masks.values()])
        flat = np.random.default_rng(0).random(flat.size) < 0.05
        columns = {"accuracy": 50.0, "sparsity": 0.95}
        columns["probabilities"] = recipe.pack(np.eye(10, dtype=np.uint8)[[0] * 100])
        return columns | {"masks": recipe.pack(np.packbits(flat)) if network == "pruned" else ""}

    monkeypatch.setattr(recipe, "_train", keep)
    run_protocol(recipe, mnist_dir, tmp_path, "--max_examples=300", "--seeds=0")
    ((dense, start, first_order),) = begun["pruned"]
    assert all(mask.all() for mask in dense.values())
    (masks, ticket, _), (_, other, _) = begun["ticket"]
    scratch, aware = begun["scratch"][0][1], begun["scratch_aware"][1][1]
    for path, mask in masks.items():
        np.testing.assert_array_equal(ticket[path], np.where(mask, start[path], 0))
        np.testing.assert_array_equal(other[path], ticket[path])
        np.testing.assert_array_equal(begun["rigl"][0][0][path], mask)
        np.testing.assert_array_equal(begun["rigl"][0][1][path], scratch[path])
        np.testing.assert_array_equal(begun["rigl_aware"][0][1][path], aware[path])
        assert not np.any((scratch[path] == start[path]) & mask)
        assert not np.any(scratch[path][~mask])
        # Glorot's limit counts all connections, so its weights are much smaller.
        assert np.std(aware[path][mask]) > 2 * np.std(scratch[path][mask])
    orders = [each[-1] for each in begun["ticket"]]
    assert len({first_order, *orders}) == 3
    assert [each[-1] for each in begun["scratch_aware"]] == orders
    assert begun["scratch"][0][-1] == begun["rigl"][0][-1] == orders[0]


def test_optimizers_of_the_recipe():
    """By the numbers of the authors' configurations."""
    case = recipe.CASES["mnist_lenet5"]
    pruning = recipe._optimizer(case, "pruned", recipe.STEPS, 0)
    steps = list(pruning._steps)
    assert (steps[0], steps[1], steps[-1]) == (3000, 3100, 7000)
    rigl = recipe._optimizer(case, "rigl_aware", recipe.STEPS, 0)
    assert (rigl.update_frequency, rigl.end_step) == (100, 11719)
    for step in (100, 5000, 11700):  # the share follows the learning rate
        rate = float(rigl.inner_optimizer._learning_rate(step))
        share = float(rigl.drop_fraction_at(tf.constant(step)))
        assert share == pytest.approx(0.3 * rate / 0.05, rel=1e-4)
    for optimizer in (pruning, rigl, recipe._optimizer(case, "ticket", recipe.STEPS, 0)):
        inner = optimizer.inner_optimizer
        assert (inner.momentum, inner.nesterov) == (0.9, False)
        assert float(inner._learning_rate(0)) == pytest.approx(0.05)
        assert float(inner._learning_rate(11719)) == pytest.approx(0)


def test_the_penalty_of_the_recipe_has_no_half(lottery_flags):
    case = recipe.CASES["mnist_lenet5"]
    model = networks.build(case, 0)
    kernels = [each for each in model.trainable_weights if len(each.shape) > 1]
    expected = 5e-4 * sum(float(np.sum(np.square(keras.ops.convert_to_numpy(k)))) for k in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)


def test_bytes_keep_the_class():
    logits = np.array([[0.0, 1e-6, -9.0], [7.0, 0.0, 0.0], [1e-6, 0.0, 1e-6]])
    numbers = recipe.to_bytes(logits)
    assert numbers.argmax(axis=1).tolist() == logits.argmax(axis=1).tolist()
    assert np.abs(numbers / recipe.PARTS - tf.nn.softmax(logits)).max() < 1.5 / recipe.PARTS
    assert recipe.unpack(recipe.pack(numbers)).tolist() == numbers.ravel().tolist()


def test_masks_before_their_network(mnist_dir, tmp_path, two_orders, monkeypatch):
    monkeypatch.setattr(recipe, "NETWORKS", ("ticket",))
    with pytest.raises(ValueError, match="must be trained before its masks are used"):
        run_protocol(recipe, mnist_dir, tmp_path, "--max_examples=300", "--seeds=0")


def _row(network, seed, order, accuracy, classes):
    probabilities = 60 * np.eye(3, dtype=np.uint8)[classes]
    row = {"case": "mnist_lenet5", "network": network, "seed": seed, "order": order}
    return row | {"accuracy": accuracy, "probabilities": recipe.pack(probabilities)}


def test_claims_of_the_recipe():
    labels = np.array([0, 1, 2, 0])
    rows = []
    for seed in (0, 1, 2):
        rows += [_row("pruned", seed, 0, 98.5 + 0.01 * seed, labels)]
        rows += [_row("ticket", seed, order, 98.4, labels) for order in (0, 1)]
        rows += [_row("scratch", seed, 0, 97.0 + 0.1 * seed, labels)]
        rows += [_row("scratch_aware", seed, 0, 97.0 + 0.1 * seed, [1, 1, 2, 0])]
        rows += [_row("scratch_aware", seed, 1, 97.0, [0, 2, 2, 0])]
        rows += [_row("rigl", seed, 0, 97.1, labels)]
        rows += [_row("rigl_aware", seed, 0, 97.0 + (seed - 1), labels)]
    found = page_of_recipe.Found(rows, labels)
    verdicts = [
        page_of_recipe.claims.verdict(differences(found), margin)
        for _, differences, margin in page_of_recipe.CLAIMS
    ]
    # The ensembles have 100: a gain of 3 points for scratch trainings, and of 1.6 for tickets.
    # RigL: +0.1, 0 and -0.1; with aware weights -1, -0.1 and 0.8 above scratch.
    assert verdicts == 6 * ["confirmed"] + 3 * ["undecided"]
    assert found.to_pruned(("scratch_aware", 1, 0)) == 25
    assert found.within("scratch_aware", 0) == 50
    # t(4) = 2.776 for 95 %: 5 values of deviation 0.1 have ± 2.776 * 0.1 * sqrt(1 + 1/5).
    values = [1.0, 1.0, 1.0, 1.1, 0.9]
    deviation = np.std(values, ddof=1)
    half = 2.776 * deviation * 1.2**0.5
    assert page_of_recipe._beside(values, 1.5) == f"1.00 ± {half:.2f} (1.50 †)"
    assert page_of_recipe._beside(values, 1.1) == f"1.00 ± {half:.2f} (1.10)"
