"""The protocol `sanity`: a few steps on small data, and what its page says."""

import dataclasses
import functools

import numpy as np
import pytest
from running import cells_of, given, run_protocol

from rigl_tf.lottery.sanity import CHECKS
from scripts.common import experiments
from scripts.lottery import networks, sanity
from scripts.lottery.pages import sanity as page_of_sanity

pytestmark = pytest.mark.usefixtures("without_xla")


def test_sanity(small_case, monkeypatch):
    case, *directories = small_case
    tickets = {
        ("dense", 0.0): (),
        ("SNIP", 0.98): ("random ticket",),
        ("LT", 0.98): ("corrupted labels",),
        ("random, smart ratio", 0.98): (),
    }
    plan = dataclasses.replace(sanity.CASES["mnist_lenet5"], case=case, tickets=tickets)
    monkeypatch.setattr(sanity, "CASES", {"mnist_lenet5": plan})
    pretrained = []
    pretrain = sanity._pretrain
    monkeypatch.setattr(sanity, "_done", {})
    monkeypatch.setattr(
        sanity, "_pretrain", lambda *args: pretrained.append(args) or pretrain(*args)
    )
    rows, page = run_protocol(sanity, *directories, "--seeds=0")
    assert [row["ticket"] for row in rows] == ["dense", "SNIP", "LT", "random, smart ratio"]
    # Those on true labels and on random ones: what LT is made of was trained for the first row.
    assert len(pretrained) == 2
    _, snip, ticket, _ = rows
    assert snip["half data"] == ""
    drop = float(ticket["accuracy"]) - float(ticket["corrupted labels"])
    (found,) = cells_of(page, "LT", "98%")[:1]
    assert found.strip("*") == f"{drop:.2f}"
    assert "**" not in found  # one seed
    assert cells_of(page, "SNIP") == [f"{float(snip['accuracy']):.2f}"]
    assert cells_of(page, "SNIP, its counts at random") == [f"{float(snip['random ticket']):.2f}"]
    claim = "Partially trained tickets notice corrupted labels"
    assert cells_of(page, claim) == ["not run"]


@pytest.fixture
def small(mnist_dir):
    """The flags that a protocol needs."""
    define = functools.partial(experiments.define_flags, epochs=5)
    with given(define, f"--data_dir={mnist_dir}", "--max_examples=200") as them:
        yield them


def test_a_ticket_of_each_kind(small, monkeypatch):
    """Where each gets its masks and its weights from."""
    case = networks.CASES["mnist_lenet5"]
    plan = sanity.Plan(case, {})
    start = networks.build(case, 0, 0.0).get_weights()
    rng = np.random.default_rng(0)
    trained, rewound = ([rng.normal(size=x.shape) for x in start] for _ in range(2))
    for values in (trained, rewound):
        for index, value in enumerate(start):
            if value.dtype == bool:
                values[index] = value
    found = {"trained": trained, "rewound": rewound}
    monkeypatch.setattr(sanity, "_pretrained", lambda *_: found)
    data = networks.data_of(case)
    expected = {
        "SNIP": start,
        "GraSP": start,
        "LT": start,
        "weight rewinding": rewound,
        "learning-rate rewinding": trained,
        "hybrid": trained,
        "random, smart ratio": start,
        "random, ERK": start,
    }
    masks = {}
    for ticket, weights in expected.items():
        model = networks.build(case, 0, 0.0)
        setting = {"ticket": ticket, "sparsity": 0.9, "seed": 0}
        masks[ticket], used = sanity._find(plan, setting, model, (data.x_train, data.y_train))
        for a, b in zip(used, weights, strict=True):
            np.testing.assert_array_equal(a, b)
    for ticket in ("weight rewinding", "learning-rate rewinding"):
        assert all((masks[ticket][path] == mask).all() for path, mask in masks["LT"].items())
    counts = {name: [int(m.sum()) for m in each.values()] for name, each in masks.items()}
    assert counts["hybrid"] == counts["random, smart ratio"]
    assert sum(counts["LT"]) == sum(counts["SNIP"]) == 44190 - 39771
    # 252 of 840 of the classifier; the others by 30, 20 / 4, 12 / 9 and 6 / 16, times
    # 4167 / (4500 + 12000 + 40960 + 3780); the first is full, and passes 156 on.
    assert counts["hybrid"] == [150, 972, 2787, 257, 252]
    # The weights of a hybrid ticket are the largest of their kernel.
    kernel = next(value for value in trained if value.shape == (120, 84) and value.dtype != bool)
    mask = list(masks["hybrid"].values())[3]
    assert abs(kernel[mask]).min() > abs(kernel[~mask]).max()


def test_partially_trained_tickets_begin_where_they_are_rewound_to(small, monkeypatch):
    case = networks.CASES["mnist_lenet_300_100"]
    data = networks.data_of(case)
    pair = data.x_train, data.y_train
    monkeypatch.setattr(sanity, "_done", {})
    small.epochs = 10
    seen = []

    def train(case, model, seed, optimizer, data=None, callbacks=(), **arguments):
        for epoch in range(10):
            for callback in callbacks:
                model.set_weights([np.full_like(value, epoch) for value in model.get_weights()])
                callback.on_epoch_end(epoch)
        seen.append((int(optimizer.iterations), arguments))
        return 50.0

    monkeypatch.setattr(networks, "train", train)
    found = sanity._pretrained(case, 0, pair)
    # Two epochs of ten are done when that of number 1 ends.
    assert {float(np.max(value)) for value in found["rewound"]} == {1.0}
    assert {float(np.max(value)) for value in found["trained"]} <= {9.0, 1.0}
    assert sanity._pretrained(case, 0, pair) is found
    sanity._train(case, None, 0, sanity._rewind_epoch(case))
    # 2 epochs of 2 steps.
    assert seen[-1] == (4, {"first_epoch": 2})


def _sanity_row(ticket, sparsity, seed, accuracy, **checks):
    columns = {check: checks.get(check.replace(" ", "_"), "") for check in CHECKS}
    names = {"case": "c", "ticket": ticket, "sparsity": sparsity, "seed": seed, "epochs": 1}
    return {**names, "accuracy": accuracy, **columns}


def test_verdicts_of_the_sanity_page():
    rows = [
        # Drops of 0.2 and 0.21; of 2 and 4 points, which is not enough for two seeds.
        _sanity_row("LT", 0.9, 0, 90.0, corrupted_labels=89.8, random_ticket=88.0),
        _sanity_row("LT", 0.9, 1, 92.0, corrupted_labels=91.79, random_ticket=88.0),
        # 0.4 and 0.41 worse.
        _sanity_row("random, smart ratio", 0.9, 0, 89.6),
        _sanity_row("random, smart ratio", 0.9, 1, 91.59),
        # A drop of 10 points, and one of 0.4 and 0.6; the third seed has no checks.
        _sanity_row("weight rewinding", 0.9, 0, 90.0, rearranged_masks=80.0, shuffled_weights=89.6),
        _sanity_row("weight rewinding", 0.9, 1, 90.0, rearranged_masks=80.1, shuffled_weights=89.4),
        _sanity_row("weight rewinding", 0.9, 2, 95.0),
    ]
    page = "\n".join(page_of_sanity.lines(rows))
    one = "confirmed (1 of 1 confirmed, 0 contradicted)"
    verdicts = {
        "Initial tickets (SNIP, GraSP, LT) do not notice corrupted data": one,
        "Random tickets with the counts of an initial ticket are as good": (
            "undecided (0 of 1 confirmed, 0 contradicted)"
        ),
        "Random tickets with the smart ratio are as good as initial tickets, or better": one,
        "Partially trained tickets notice rearranged masks and shuffled weights": (
            "undecided (1 of 2 confirmed, 0 contradicted)"
        ),
    }
    for claim, verdict in verdicts.items():
        assert cells_of(page, claim) == [verdict]
    assert cells_of(page, "LT", "90%")[0] == "0.20 ± 0.01"
    assert cells_of(page, "LT", "90%")[5] == "3.00 ± 1.41"


def test_seconds(small):
    small.epochs = 10
    # The ticket and its six checks, 2 epochs of 5 seconds each; and before it three trainings on
    # corrupted data. Two cores.
    ticket = {"case": "mnist_lenet5", "sparsity": 0.95, "ticket": "LT"}
    assert sanity.seconds(ticket) == (7 + 3) * 2 * 5 / 2
