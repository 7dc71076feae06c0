"""Tests of `lottery.judge_ticket` and `lottery.jackpot_protocol`, worked by hand."""

import keras
import numpy as np
import pytest

import rigl_tf
from rigl_tf import lottery, structures
from rigl_tf.lottery.report import has_residual


def judge(dense=92.0, ticket=92.0, random=90.0, small=90.0, sparsity=0.8, **others):
    return lottery.judge_ticket({0.1: (dense, ticket, random)}, sparsity, small, **others)


def held(verdict):
    return [condition.number for condition in verdict.conditions if condition.holds]


CASES = [
    # All as it should be.
    ({}, [1, 2, 3, 4, 5], "jackpot"),
    # Condition 1: a hard cut.
    ({"sparsity": 0.6}, [1, 2, 3, 4, 5], "jackpot"),
    ({"sparsity": 0.59}, [2, 3, 4, 5], "none"),
    ({"sparsity": 0.59, "min_sparsity": 0.5}, [1, 2, 3, 4, 5], "jackpot"),
    # Conditions 2 and 3: a gap of exactly .5 is not clear, whatever floats make of it.
    ({"ticket": 92.3, "small": 91.8}, [1, 3, 4, 5], "none"),
    ({"ticket": 92.3, "small": 91.79}, [1, 2, 3, 4, 5], "jackpot"),
    ({"ticket": 92.3, "random": 91.8}, [1, 2, 4, 5], "none"),
    ({"ticket": 92.3, "random": 91.79}, [1, 2, 3, 4, 5], "jackpot"),
    ({"ticket": 92.0, "random": 91.0, "clear": 1.0}, [1, 2, 4, 5], "none"),
    # Conditions 4 and 5: a drop of exactly .5 is still similar.
    ({"dense": 92.8, "ticket": 92.3}, [1, 2, 3, 4, 5], "jackpot"),
    ({"dense": 70.6, "ticket": 70.1, "random": 60, "small": 60}, [1, 2, 3, 4, 5], "jackpot"),
    ({"dense": 92.81, "ticket": 92.3}, [1, 2, 3], "none"),
    ({"dense": 93.5, "ticket": 92.0, "similar": 1.5}, [1, 2, 3, 4, 5], "jackpot"),
]


@pytest.mark.parametrize(("values", "holds", "name"), CASES)
def test_one_learning_rate(values, holds, name):
    verdict = judge(**values)
    assert held(verdict) == holds
    assert verdict.verdict == name


@pytest.mark.parametrize("threshold", [1, 3, 5, 7])
def test_thresholds_are_exact_in_tenths(threshold):
    # In floats 92.3 - 92.0 is less than .3, and 50.1 - 50.0 more than .1.
    for tenth in (923, 641, 640, 501, 777):
        ticket, other = tenth / 10, (tenth - threshold) / 10
        limit = threshold / 10
        assert not judge(ticket=ticket, random=other, clear=limit).conditions[2].holds
        assert judge(dense=ticket, ticket=other, similar=limit).conditions[3].holds


def test_each_condition_has_a_learning_rate_of_its_own():
    # The small rate is as good as dense there (4), but not as the best dense (5): secondary.
    results = {0.1: (94.0, 91.0, 90.9), 0.01: (92.0, 91.9, 85.0)}
    verdict = lottery.judge_ticket(results, 0.9, 90.0)
    assert verdict.verdict == "secondary"
    values = [(c.value, c.margin, c.learning_rate) for c in verdict.conditions]
    assert values == [
        (0.9, 0.3, None),
        (1.9, 1.4, 0.01),  # 91.9 - 90
        (1.0, 0.5, 0.01),  # 91.9 - 90.9: the best reinitialised is at the other rate
        (-0.1, 0.4, 0.01),
        (-2.1, -1.6, 0.01),  # 91.9 - 94
    ]
    # Condition 4 at the rate where the ticket itself is worse.
    results = {0.1: (94.0, 93.0, 90.0), 0.01: (88.0, 88.0, 85.0)}
    verdict = lottery.judge_ticket(results, 0.9, 90.0)
    assert held(verdict) == [1, 2, 3, 4]
    assert verdict.conditions[3].learning_rate == 0.01
    # The best reinitialised at any rate takes the prize away.
    results[0.01] = (88.0, 88.0, 92.6)
    assert lottery.judge_ticket(results, 0.9, 90.0).verdict == "none"


def test_seeds_are_averaged():
    results = {0.1: ([92.0, 94.0], np.array([93.0, 92.0]), (90.0, 91.0))}
    verdict = lottery.judge_ticket(results, 0.9, [90.0, 91.0])
    assert [condition.value for condition in verdict.conditions] == [0.9, 2.0, 2.0, -0.5, -0.5]
    assert verdict.verdict == "jackpot"


def test_a_verdict_can_be_read():
    lines = str(judge(ticket=91.0)).splitlines()
    assert lines[0] == "none at sparsity 0.8"
    assert lines[1] == "1. yes  sparsity: 0.8 (must be >= 0.6; margin +0.2)"
    assert lines[3] == (
        "3. yes  ticket - best reinitialised, at learning rate 0.1: 1 (must be > 0.5; margin +0.5)"
    )
    assert lines[5] == (
        "5. no   ticket - best dense, at learning rate 0.1: -1 (must be >= -0.5; margin -0.5)"
    )


NONE = float("nan")
BAD = [
    ({"results": {}}, "must map at least one learning rate.*Received: results={}"),
    ({"results": [(92, 92, 90)]}, "must map at least one learning rate"),
    ({"results": {0.1: (92, 92)}}, r"must be three accuracies.*results\[0.1\]=\(92, 92\)"),
    ({"results": {0.1: 92}}, "must be three accuracies"),
    ({"results": {0.1: (92, NONE, 90)}}, r"from 0 to 100.*results\[0.1\]=nan"),
    ({"results": {0.1: (92, [], 90)}}, "from 0 to 100"),
    ({"results": {0.1: (92, "high", 90)}}, "from 0 to 100"),
    ({"results": {0.1: (92, 101, 90)}}, "from 0 to 100"),
    ({"results": {0.1: (0.92, 0.91, 0.9)}, "small_dense": 0.9}, "multiply them by 100"),
    ({"results": {0.1: (0.92, 0.91, 0.9)}}, "Accuracies must be in percent.*none above 0.92"),
    ({"small_dense": 0.93}, "`small_dense` must be in percent.*none above 0.93"),
    ({"small_dense": None}, "Received: small_dense=None"),
    ({"sparsity": 1.0}, r"in \[0, 1\). Received: sparsity=1.0"),
    ({"sparsity": NONE}, r"in \[0, 1\). Received: sparsity=nan"),
    ({"min_sparsity": 60}, r"in \[0, 1\). Received: min_sparsity=60"),
    ({"similar": -0.5}, "`similar` must be a finite number >= 0"),
    ({"clear": NONE}, "`clear` must be a finite number >= 0"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_input_is_refused_in_a_sentence(bad, message):
    good = {"results": {0.1: (92, 92, 90)}, "sparsity": 0.9, "small_dense": 90}
    with pytest.raises(ValueError, match=message):
        lottery.judge_ticket(**{**good, **bad})


UNITS, RATES = 8, (0.1, 0.01)


def small_dense(width, seed):
    """48 weights if it is whole, six for each unit; above 0 with seeds 0 and 1, below with others.

    The first kernel is the larger one, in numbers and in weights.
    """
    units = max(1, int(UNITS * width))
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(units, use_bias=False),
            keras.layers.Dense(2, use_bias=False),
        ],
        name="net",
    )
    draw = np.random.default_rng(seed)
    sign = 1 if seed < 2 else -1
    model.set_weights([sign * draw.uniform(1, 2, weight.shape) for weight in model.get_weights()])
    return model


def build(seed):
    return rigl_tf.sparsify(small_dense(1.0, seed), 0.0)


class Training:
    """The accuracy tells what was trained: dense 92, ticket 91, reinitialised 85, small 80.

    At the small learning rate dense and ticket have 90. Each seed adds its half.
    """

    def __init__(self, stop_after=None):
        self.calls = []
        self.stop_after = stop_after

    def __call__(self, model, run):
        learning_rate, seed, rewind = run.learning_rate, run.seed, run.rewind
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        active = [mask.sum() for mask in rigl_tf.get_masks(model).values()]
        kernels = model.trainable_weights
        kind = "small"
        if active:
            kind = "dense" if sum(active) == 48 else "ticket"
            if any((kernel.numpy() < 0).any() for kernel in kernels):
                kind = "random"
        if rewind is not None:
            kind = f"rewinding {kind}"
            for step in range(rewind.start_step, 4):
                rewind.record(step + 1)
        for kernel in kernels:
            kernel.assign(kernel * 2)
        self.calls.append((learning_rate, seed, kind, int(sum(active)) or model.count_params()))
        by_kind = {"dense": 92, "ticket": 91, "random": 85, "small": 80}
        accuracy = by_kind.get(kind, 91.5)
        if learning_rate == 0.01:
            accuracy = min(accuracy, 90)
        return accuracy + seed / 2


def run(train, directory, **others):
    settings = {"levels": 3, "prune_fraction": 0.5, "seeds": [0, 1], **others}
    return lottery.jackpot_protocol(build, train, small_dense, RATES, directory, **settings)


def test_protocol_by_hand(tmp_path):
    # 48 -> 24 -> 12 -> 6: levels 2 and 3 are at 75 % and 87.5 %, the first below 60 %.
    train = Training()
    rows = run(train, tmp_path)
    assert [(row["level"], row["sparsity"]) for row in rows] == [(2, 0.75), (3, 0.875)]
    once = [(0.1, 0, kind, count) for kind, count in EXPECTED_KINDS]
    assert train.calls[: len(once)] == once
    assert len(train.calls) == 4 * len(once)
    # Two and one units fit into 12 and 6 weights.
    assert [row["num_parameters"] for row in rows] == [(12, 12), (6, 6)]
    assert rows[0]["accuracies"] == {
        "dense": {0.1: [92.0, 92.5], 0.01: [90.0, 90.5]},
        "LT-IMP": {0.1: [91.0, 91.5], 0.01: [90.0, 90.5]},
        "LT-OMP": {0.1: [91.0, 91.5], 0.01: [90.0, 90.5]},
        "RR-IMP": {0.1: [85.0, 85.5], 0.01: [85.0, 85.5]},
        "RR-OMP": {0.1: [85.0, 85.5], 0.01: [85.0, 85.5]},
        "small dense": {0.1: [80.0, 80.5], 0.01: [80.0, 80.5]},
    }
    # Similar to dense at the small rate, a point below the best dense.
    verdict = rows[0]["verdicts"]["IMP"]
    assert [c.value for c in verdict.conditions] == [0.75, 11.0, 6.0, 0.0, -1.0]
    assert verdict.verdict == "secondary"
    # Other thresholds ask for no other training.
    jackpot = run(Training(stop_after=0), tmp_path, similar=1)
    assert jackpot[1]["verdicts"]["OMP"].verdict == "jackpot"


EXPECTED_KINDS = [
    ("dense", 48),
    ("ticket", 24),
    ("ticket", 12),
    ("ticket", 6),
    ("ticket", 12),
    ("random", 12),
    ("random", 12),
    ("small", 12),
    ("ticket", 6),
    ("random", 6),
    ("random", 6),
    ("small", 6),
]


def test_a_stopped_protocol_goes_on_and_trains_nothing_twice(tmp_path):
    whole = run(Training(), tmp_path / "whole", rewind_step=3)
    first = Training(stop_after=10)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "stopped", rewind_step=3)
    second = Training()
    assert run(second, tmp_path / "stopped", rewind_step=3) == whole
    # Four trainings of each pair of rate and seed are for rewinding.
    assert len(first.calls + second.calls) == 4 * (12 + 4)
    assert [call for call in second.calls if "rewinding" in call[2]][:4] == [
        (0.1, 0, "rewinding dense", 48),
        (0.1, 0, "rewinding ticket", 24),
        (0.1, 0, "rewinding ticket", 12),
        (0.1, 0, "rewinding ticket", 6),
    ]
    assert whole[0]["accuracies"]["rewinding"] == {0.1: [91.5, 92.0], 0.01: [90.0, 90.5]}
    reports = [(tmp_path / name / "report.md").read_text() for name in ("whole", "stopped")]
    assert reports[0] == reports[1]


def test_shares_of_one_are_refused_before_they_are_kept(tmp_path):
    calls = []

    def shares(model, run):
        calls.append(run.seed)
        return 0.92

    with pytest.raises(ValueError, match="multiply them by 100"):
        run(shares, tmp_path / "mended")
    assert calls == [0]
    assert run(Training(), tmp_path / "mended") == run(Training(), tmp_path / "new")


def test_networks_at_chance_are_no_shares_of_one(tmp_path):
    # Half a percent, as of 200 classes: a small dense network, and all at a rate that is too large.
    train = Training()

    def at_chance(model, run):
        accuracy = train(model, run)
        is_lost = run.learning_rate == 0.01 or train.calls[-1][2] == "small"
        return 0.5 if is_lost else accuracy

    rows = run(at_chance, tmp_path, seeds=[0])
    assert rows[0]["accuracies"]["dense"] == {0.1: [92.0], 0.01: [0.5]}
    # The ticket has 91: a point below dense, at the other rate as bad as that.
    conditions = rows[0]["verdicts"]["IMP"].conditions
    assert [condition.value for condition in conditions] == [0.75, 90.5, 6.0, 0.0, -1.0]


def test_the_other_start_depends_on_the_seed_alone(tmp_path):
    built = []

    def noted(seed):
        built.append(seed)
        return build(seed)

    for seeds in ([0], [1, 0], [0, 2, 1]):
        built.clear()
        settings = {"levels": 2, "prune_fraction": 0.5, "seeds": seeds}
        lottery.jackpot_protocol(noted, Training(), small_dense, [0.1], tmp_path, **settings)
        assert set(built) == {*seeds, *(1_000_000 + seed for seed in seeds)}


def test_frozen_parameters_count_on_neither_side(tmp_path):
    def frozen(seed):
        model = build(seed)
        model.layers[0].trainable = False
        return model

    # Of 32 and 16 weights 8 and 4 are left, the 8 frozen; no small network has less than 6.
    (row,) = lottery.jackpot_protocol(
        frozen,
        Training(),
        small_dense,
        [0.1],
        tmp_path,
        levels=1,
        prune_fraction=0.75,
        scope="layerwise",
        seeds=[0],
    )
    assert row["num_parameters"] == (4, 6)


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_the_sparsity_is_that_of_the_masks(tmp_path, scope):
    """Not of as many single weights: each output has the same number, rounded down."""

    def alike(seed):
        return rigl_tf.sparsify(small_dense(1.0, seed), 0.0, structure=structures.ConstantFanIn())

    train = Training()
    settings = {"levels": 1, "judged_levels": [1], "prune_fraction": 0.6, "scope": scope}
    settings["seeds"] = [0, 1]
    (row,) = lottery.jackpot_protocol(alike, train, small_dense, [0.1], tmp_path, **settings)
    tickets = [count for _, _, kind, count in train.calls if kind == "ticket"]
    for way, counts in (("IMP", tickets[::2]), ("OMP", tickets[1::2])):
        assert row["verdicts"][way].sparsity == pytest.approx(1 - sum(counts) / 2 / 48)
    assert row["sparsity"] == row["verdicts"]["IMP"].sparsity
    assert row["num_parameters"][0] == tickets[0]
    if scope == "layerwise":
        # 8 outputs of 4: 32 - 19 = 13 = 8 * 1 + 5; two of 8: 16 - 9 = 7 = 2 * 3 + 1.
        assert tickets == [8 + 6] * 4


def test_report(tmp_path):
    run(Training(), tmp_path)
    report = (tmp_path / "report.md").read_text()
    for line in (
        "There is a secondary prize, at sparsity 75.0 %, 87.5 %.",
        "48 weights in sparse kernels; residual connections: no",
        "- Seeds: 2 (0, 1): mean ± standard deviation",
        # The deviation of 91 and 91.5 from their mean is a quarter: sqrt(2 / 16 / (2 - 1)).
        "| 75.0 % | 0.1 | 92.25 ± 0.35 | 91.25 ± 0.35 | 91.25 ± 0.35 | 85.25 ± 0.35 |",
        "### IMP, 75.0 %\n\n```\nsecondary at sparsity 0.75\n",
        "| 1. Iterative or one-shot | IMP has no advantage | LT-IMP − LT-OMP = +0.00, the mean over"
        " 2 sparsities | yes |",
        "| 2. Learning rate | not a small one | best for the ticket 0.1, for the dense network 0.1"
        " | yes |",
        "highest sparsity with a prize: 87.5 %; a narrower dense network of the ticket's size is"
        " similar to the dense one at no sparsity | not testable with one network |",
        "| does not matter: the ticket prefers a large rate | LT-IMP − RR-IMP = +6.00 at learning"
        " rate 0.1 | no |",
    ):
        assert line in report
    run(Training(stop_after=0), tmp_path, residual=True)
    report = (tmp_path / "report.md").read_text()
    assert "IMP is better than OMP | LT-IMP − LT-OMP = +0.00, the mean over 2 sparsities | no" in (
        report
    )
    assert "a relatively small one | best for the ticket 0.1" in report
    run(Training(stop_after=0), tmp_path, large_dataset=True, judged_levels=[2])
    report = (tmp_path / "report.md").read_text()
    assert "| 5. Iterative or one-shot | OMP is better than IMP |" in report
    assert "87.5 %" not in report


def test_one_seed_and_one_rate_are_said_so(tmp_path):
    lottery.jackpot_protocol(
        build, Training(), small_dense, [0.1], tmp_path, levels=1, prune_fraction=0.75, seeds=[0]
    )
    report = (tmp_path / "report.md").read_text()
    assert "- Seeds: one (seed 0): there is no spread" in report
    assert "±" not in report
    assert report.count("not testable with one |") == 2


def test_residual_connections_are_found():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4)(inputs)
    plain = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    by_layer = keras.Model(inputs, keras.layers.Add()([inputs, hidden]))
    nested = keras.Sequential([inputs, keras.Model(inputs, inputs + hidden)])

    class Unknown(keras.Model):
        pass

    assert [has_residual(m) for m in (plain, by_layer, nested)] == [False, True, True]
    assert has_residual(rigl_tf.sparsify(by_layer, 0.0)) is True
    assert has_residual(Unknown()) is None


@keras.saving.register_keras_serializable(package="tests")
class OwnResidual(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return x + self.dense(x)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda x: x + 1.0, False),
        (lambda x: keras.ops.relu6(x + 3.0) / 6.0 * x, False),  # hard swish
        (lambda x: x + x, False),
        (lambda x: x + keras.layers.Dense(4)(x), True),
        (lambda x: keras.layers.Add()([x, keras.layers.Dense(4)(x)]), True),
        (keras.layers.MultiHeadAttention(2, 2), False),
        (OwnResidual(), None),
        (keras.layers.TimeDistributed(OwnResidual()), None),
        (keras.layers.Lambda(lambda x: x + 1.0), None),
        (lambda x: x + OwnResidual()(x), True),
    ],
)
def test_what_is_residual(make, answer):
    inputs = keras.Input((3, 4))
    hidden = keras.layers.Dense(4)(inputs)
    both = [hidden] * (1 + isinstance(make, keras.layers.MultiHeadAttention))
    model = keras.Model(inputs, keras.layers.Dense(2)(make(*both)))
    assert has_residual(model) is answer
    assert has_residual(keras.Sequential([inputs, model])) is answer
    if not isinstance(make, keras.layers.Lambda):
        assert has_residual(rigl_tf.sparsify(model, 0.0)) is answer


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"similar": -1}, "`similar` must be a finite number >= 0. Received: similar=-1"),
        ({"clear": "x"}, "`clear` must be a finite number >= 0. Received: clear='x'"),
        ({"min_sparsity": 60, "judged_levels": [2]}, "Received: min_sparsity=60"),
        ({"residual": "yes"}, "`residual` must be `True`.*residual='yes'"),
        ({"learning_rates": 0.1}, "`learning_rates` must be different numbers.*rates=0.1"),
        ({"learning_rates": ["0.1"]}, r"`learning_rates` must be different.*rates=\['0.1'\]"),
        ({"seeds": 3}, "`seeds` must be different integers >= 0.*seeds=3"),
        ({"seeds": [-1]}, r"`seeds` must be different integers >= 0.*seeds=\[-1\]"),
        ({"seeds": [True]}, r"`seeds` must be different integers >= 0.*seeds=\[True\]"),
        ({"judged_levels": 2}, "`judged_levels` must be different integers.*levels=2"),
        ({"judged_levels": [2.0]}, r"`judged_levels` must be different integers.*\[2.0\]"),
        ({"directory": None}, "`directory` must be a path. Received: directory=None"),
        ({"small_dense": None}, "`small_dense` must be a function. Received: small_dense=None"),
        ({"small_dense": lambda width, seed: None}, "must return a built.*None for a width of 0.5"),
        (
            {"small_dense": lambda width, seed: keras.Sequential([keras.layers.Dense(1)])},
            "`small_dense` must return a built `keras.Model`.*built=False",
        ),
    ],
)
def test_arguments_are_checked_before_anything_is_trained(tmp_path, bad, message):
    def never(*arguments):
        pytest.fail("trained")

    good = {"learning_rates": [0.1], "directory": tmp_path, "levels": 2, "prune_fraction": 0.5}
    good["small_dense"] = small_dense
    with pytest.raises(ValueError, match=message):
        lottery.jackpot_protocol(build, never, **good | bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seed": True}, "`seed` must be an integer >= 0. Received: seed=True"),
        ({"seed": 0.5}, "`seed` must be an integer >= 0. Received: seed=0.5"),
        ({"other_seed": "x"}, "`other_seed` must be an integer >= 0. Received: other_seed='x'"),
    ],
)
def test_bad_seeds_of_a_contest(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        lottery.Contest(build, Training(), tmp_path, levels=1, prune_fraction=0.5, **bad)


@pytest.mark.parametrize("level", [True, 0.5, -1])
def test_bad_levels_of_a_contest(tmp_path, level):
    contest = lottery.Contest(build, Training(), tmp_path, levels=1, prune_fraction=0.5)
    message = f"`level` must be an integer >= 0. Received: level={level}"
    for ask in (
        lambda: contest.accuracy("LT-IMP", level),
        lambda: contest.once("small dense", level, lambda: 0),
        lambda: contest.train(contest.model, "small dense", level),
        lambda: contest.num_parameters(level),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_levels_above_those_of_a_contest_are_refused(tmp_path):
    contest = lottery.Contest(build, Training(stop_after=2), tmp_path, 1, prune_fraction=0.5)
    message = "`level` must be at most 1, the last level of the contest. Received: level=2"
    for kind in ("LT-IMP", "LT-OMP", "RR-IMP", "RR-OMP", "random"):
        with pytest.raises(ValueError, match=message):
            contest.accuracy(kind, 2)
    with pytest.raises(ValueError, match=message):
        contest.num_parameters(2)


def test_the_learning_rate_that_diverges_is_named(tmp_path):
    train = Training()

    def diverging(model, run):
        accuracy = train(model, run)
        if run.learning_rate == 0.01:
            model.trainable_weights[0].assign(model.trainable_weights[0] * np.nan)
        return accuracy

    with pytest.raises(ValueError, match=r"NaN or inf in .* after level 0 in '.*rate-0.01-seed-0"):
        run(diverging, tmp_path)
    assert run(Training(), tmp_path)  # nothing is kept of it


def test_seeds_of_numpy(tmp_path):
    def checked(seed):
        assert type(seed) is int
        return build(seed)

    settings = {"levels": 1, "prune_fraction": np.float32(0.75), "seeds": np.arange(1)}
    rows = lottery.jackpot_protocol(checked, Training(), small_dense, [0.1], tmp_path, **settings)
    assert rows[0]["sparsity"] == 0.75


def test_bad_protocols_are_refused_in_a_sentence(tmp_path):
    def protocol(build=build, train=None, rates=(0.1,), **others):
        train = train or Training()
        settings = {"levels": 2, "prune_fraction": 0.5, **others}
        lottery.jackpot_protocol(build, train, small_dense, rates, tmp_path, **settings)

    def with_dropout(seed):
        # The state of Dropout is another one with each seed, the weights are not.
        dropout = keras.layers.Dropout(0.5, seed=seed)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), dropout])
        model.set_weights([np.ones((4, 2)), np.zeros(2)])
        return rigl_tf.sparsify(model, 0.0)

    with pytest.raises(ValueError, match=r"`learning_rates` must be different.*rates=\[\]"):
        protocol(rates=[])
    with pytest.raises(ValueError, match=r"`seeds` must be different integers.*seeds=\[1, 1\]"):
        protocol(seeds=[1, 1])
    with pytest.raises(ValueError, match=r"`levels` must be an integer >= 1\. Received: levels=0"):
        protocol(levels=0)
    with pytest.raises(ValueError, match=r"one or more levels from 1 .*highest sparsity is 0\.5"):
        protocol(levels=1)
    with pytest.raises(ValueError, match=r"`judged_levels` must be one or more levels from 1 to 2"):
        protocol(judged_levels=[3])
    with pytest.raises(ValueError, match="must return the test accuracy"):
        protocol(train=lambda model, run: {"accuracy": 90})
    with pytest.raises(
        ValueError, match=r"for different seeds\. Received: the same for seeds 0 and 1000000"
    ):
        protocol(build=lambda seed: build(0))
    with pytest.raises(ValueError, match=r"for different seeds\. Received: the same"):
        protocol(build=with_dropout, rates=[0.3])
    with pytest.raises(ValueError, match="multiply them by 100"):
        protocol(train=lambda model, run: 0.9, rates=[0.2])
