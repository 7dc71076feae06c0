"""The protocol `correlation`: a few steps on small data, and what its page says."""

import dataclasses

import numpy as np
import pytest
from running import cells_of, run_protocol

import rigl_tf
from scripts.lottery import correlation
from scripts.lottery.pages import correlation as page_of_correlation

pytestmark = pytest.mark.usefixtures("without_xla")

SMALL = ("--max_examples=200", "--seeds=0")


def test_correlation(mnist_dir, tmp_path, monkeypatch):
    runs = [("one_shot", 0.01, 0.7), ("admm", 1.0, 0.7)]
    plan = dataclasses.replace(correlation.CASES["mnist_lenet5"], runs=runs)
    monkeypatch.setattr(correlation, "CASES", {"mnist_lenet5": plan})
    monkeypatch.setattr(correlation, "_NUM_UPDATES", 1)
    seen = []
    train_ticket = correlation._train_ticket

    def spy(case, model, *arguments):
        seen.append((rigl_tf.get_masks(model), model.get_weights()))
        return train_ticket(case, model, *arguments)

    monkeypatch.setattr(correlation, "_train_ticket", spy)
    rows, page = run_protocol(correlation, mnist_dir, tmp_path, *SMALL)
    assert [float(row["learning_rate"]) for row in rows] == [0.0005, 0.05]
    # Two steps leave the weights about where they were.
    assert float(rows[0]["correlation_dense"]) > 0.9
    assert all(float(row["correlation_ticket"]) > 0.2 for row in rows)
    for ticket, rewound, other in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
        counts = [int(mask.sum()) for mask in ticket[0].values()]
        # Each kernel keeps 30 %, but the first.
        assert counts == [150, 2400 - 1680, 30720 - 21504, 10080 - 7056, 840 - 588]
        for a, b in zip(ticket[0].values(), other[0].values(), strict=True):
            np.testing.assert_array_equal(a, b)
        # Of one epoch 10 % are none: rewound to the first weights.
        for a, b in zip(ticket[1], rewound[1], strict=True):
            np.testing.assert_array_equal(a, b)
        assert any((a != b).any() for a, b in zip(ticket[1], other[1], strict=True))
    row = rows[1]
    shown = [row[name] for name in ("fine_tune", "rewound", "ticket", "reinitialised")]
    assert cells_of(page, "70%", "admm")[:4] == [f"{float(x):.2f}" for x in shown]
    shown = [rows[0][f"correlation_{name}"] for name in ("dense", "ticket", "reinitialised")]
    assert cells_of(page, "70%", "0.0005")[:3] == [f"{float(x):.3f}" for x in shown]


def _correlation_row(pruning, rate, seed, **columns):
    names = {"case": "c", "pruning": pruning, "learning_rate": rate, "sparsity": 0.7, "seed": seed}
    correlations = ("dense", "ticket", "reinitialised", "fine_tune", "with_trained")
    return {
        **names,
        "epochs": 1,
        **dict.fromkeys([f"correlation_{name}" for name in correlations], 0.5),
        **dict.fromkeys(["dense", "fine_tune", "rewound", "ticket", "reinitialised"], 90.0),
        **columns,
    }


def test_verdicts_of_the_correlation_page():
    rows = []
    for seed, noise in enumerate((0.0, 0.02, -0.02)):
        rows += [
            _correlation_row(
                "one_shot", 0.01, seed, ticket=89.6, reinitialised=89.0 + noise, dense=90.0
            ),
            _correlation_row(
                "one_shot",
                1.0,
                seed,
                dense=91.0 + noise,
                ticket=90.4,
                fine_tune=91.0,
                correlation_dense=0.204 + noise / 20,
            ),
            # From one seed to the next, fine-tuning and the ticket change places.
            _correlation_row(
                "iterative", 1.0, seed, fine_tune=90.9, ticket=90.9 + 10 * noise, rewound=91.5
            ),
        ]
    page = "\n".join(page_of_correlation.lines(rows))
    verdicts = {
        # 0.5 is 0.3 above chance, of which 0.01 does not count.
        "At a small learning rate the weights before and after training are correlated": (
            "confirmed (+0.29 ± 0.00)"
        ),
        "At a large one they are not: the correlation is that of chance": (
            "confirmed (+0.00 ± 0.00)"
        ),
        "The larger the learning rate, the less the correlation": "confirmed (+0.30 ± 0.00)",
        "At a small learning rate (a tenth of the large one, as in the paper) tickets win: as good "
        "as dense, better than reinitialised": "confirmed (1 of 1 confirmed, 0 contradicted)",
        # 90.4 is more than half a point below 91.0.
        "At a large one they do not": "confirmed (1 of 1 confirmed, 0 contradicted)",
        "Fine-tuning is better than the ticket": "undecided (1 of 2 confirmed, 0 contradicted)",
        # 90 beside 90.4, and 91.5 beside 90.9 and 0.2 more or less.
        "Rewinding is better than the ticket": "undecided (1 of 2 confirmed, 1 contradicted)",
        "Iterative pruning is better than one-shot": (
            "contradicted (0 of 1 confirmed, 1 contradicted)"
        ),
        "ADMM is better than iterative pruning": "not run",
    }
    for claim, verdict in verdicts.items():
        assert cells_of(page, claim) == [verdict]
    assert cells_of(page, "70%", "0.01")[-1] == "confirmed"
    assert cells_of(page, "70%", "1")[-1] == "contradicted"
    # One seed decides nothing.
    page = "\n".join(page_of_correlation.lines(rows[:3]))
    assert cells_of(page, "70%", "1")[-1] == "undecided"


def test_seconds(lottery_flags):
    lottery_flags.epochs = 10
    # 2 epochs of 5 seconds for each of five networks; 50, 75, 87.5 and 93.75 % before the last
    # pruning. Two cores.
    iterative = {"case": "mnist_lenet5", "sparsity": 0.95, "pruning": "iterative"}
    assert correlation.seconds(iterative) == (5 * 2 + 4) * 5 / 2
