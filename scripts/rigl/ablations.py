"""Measures the effect of the settings of RigL, SET and SNFS, on MNIST.

    python -m scripts.rigl.ablations --data_dir=DATA

trains LeNet-300-100 at 98 % sparsity (ERK) by RigL, SET and SNFS with other update frequencies and
drop fractions; by RigL with other schedules of the drop fraction, other starting values of grown
connections, and from lottery tickets; by SNFS with other momentums; and with masks that stay while
their weakest weights restart: 180 runs of 10 epochs, 20 to 60 s each on one core. For the
distribution of sparsity it trains LeNet-5 at 95 %: 27 runs of 5 epochs, 30 s each. Finished runs
are rows of `results/ablations.csv` and are never repeated; the page and the plot beside it are made
anew from all rows.
"""

import collections
import itertools
import math
import pathlib
import statistics

import keras
from absl import flags

import models
import rigl_tf
from scripts.common import (
    claims,
    classifiers,
    entry,
    experiments,
    methods,
    plots,
    styles,
    tables,
    words,
)
from scripts.common.tables import with_spread
from scripts.rigl import lenet

_NAME = "ablations"
_KEY = ("study", "setting", "seed", "epochs", "examples")
_SPARSITY = 0.98
_END_FRACTION = 0.75
_FREQUENCIES = (50, 100, 500, 1000)
_DROP_FRACTIONS = (0.1, 0.3, 0.5)
_MOMENTUMS = ("momentum 0", "momentum 0.5", "momentum 0.9", "momentum 0.99")
_DISTRIBUTIONS = ("uniform", "erdos_renyi", "erk")
_DISTRIBUTED = ("static", "set", "rigl")
# Methods that train LeNet-300-100 with `execution="csr"`: same masks, twice as fast as XLA.
_CSR = ("static", "static_reinit", "set", "rigl")
# Percentage points that are little: about what two seeds of such a training differ by.
_LITTLE = 0.5

FLAGS = flags.FLAGS


def _define_flags():
    experiments.define_flags(epochs=10)
    flags.DEFINE_list("studies", list(STUDIES), "Studies to run.")


def _grid():
    for frequency in _FREQUENCIES:
        for fraction in _DROP_FRACTIONS:
            arguments = {"update_frequency": frequency, "drop_fraction": fraction}
            yield f"every {frequency}, {fraction:g}", arguments


def _drop_schedules(end_step, learning_rate):
    schedules = rigl_tf.schedules
    return {
        "cosine": 0.3,
        "constant": schedules.ConstantDropFraction(0.3),
        "inverse power 1": schedules.PowerDropFraction(0.3, 0, end_step, power=1),
        "inverse power 3": schedules.PowerDropFraction(0.3, 0, end_step, power=3),
        "learning rate": schedules.LearningRateDropFraction(0.3, learning_rate),
    }


_GROW_INITS = {
    "zeros": {"grow_init": "zeros"},
    "initial distribution": {"grow_init": "initial_distribution"},
    "random normal": {"grow_init": "random_normal"},
    "random uniform": {"grow_init": "random_uniform"},
    # A step of gradient descent with the first learning rate.
    "gradient, times -0.1": {"grow_init": "gradient", "grow_scale": -0.1},
    "sign of the gradient, times -0.01": {"grow_init": "gradient_sign", "grow_scale": -0.01},
}
_LOTTERY = {
    "lottery masks and weights, static": "static",
    "lottery masks and weights, RigL": "rigl",
    "random masks, static": "static",
    "random masks, RigL": "rigl",
    "random masks, RigL, twice as long": "rigl",
}
# Study: what it is about, its settings, epochs as a share of --epochs.
STUDIES = {
    "update": ("update frequency and drop fraction", [name for name, _ in _grid()], 1.0),
    **{
        f"update_{method}": (
            f"update frequency and drop fraction of {styles.label(method)}",
            [name for name, _ in _grid()],
            1.0,
        )
        for method in ("set", "snfs")
    },
    "momentum": ("momentum of SNFS", list(_MOMENTUMS), 1.0),
    "restart": (
        "other connections, or new weights for the weakest",
        ["static", "static_reinit", "set", "rigl"],
        1.0,
    ),
    "schedule": (
        "schedule of the drop fraction",
        ["cosine", "constant", "inverse power 1", "inverse power 3", "learning rate"],
        1.0,
    ),
    "grow_init": ("where grown connections start", list(_GROW_INITS), 1.0),
    "lottery": ("starting from a lottery ticket", list(_LOTTERY), 1.0),
    "distribution": (
        "distribution of the sparsity (LeNet-5, 95 %, learning rate 0.05)",
        [f"{method}, {name}" for method in _DISTRIBUTED for name in _DISTRIBUTIONS],
        0.5,
    ),
}


def _train(data, model, method, run, epochs, learning_rate=0.1, jit_compile=None, **arguments):
    """Trains and returns the test accuracy; for `arguments` see `methods.wrap_optimizer`."""
    total_steps = epochs * classifiers.steps_per_epoch(data, lenet.BATCH_SIZE)
    learning_rate = lenet.learning_rate(total_steps, learning_rate)
    if arguments.get("drop_fraction") in STUDIES["schedule"][1]:
        end_step = math.ceil(_END_FRACTION * total_steps)
        schedules = _drop_schedules(end_step, learning_rate)
        arguments["drop_fraction"] = schedules[arguments["drop_fraction"]]
    inner = keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    optimizer = methods.wrap_optimizer(
        method,
        inner,
        total_steps,
        _SPARSITY,
        end_fraction=_END_FRACTION,
        seed=run["seed"],
        **arguments,
    )
    if jit_compile is None:
        jit_compile = method not in _CSR
    classifiers.fit(
        model, optimizer, data, lenet.BATCH_SIZE, epochs, run["seed"], jit_compile=jit_compile
    )
    return classifiers.accuracy(model, data.x_test, data.y_test)


def _lenet(data, method, run):
    model = methods.build_model(
        method,
        "lenet_300_100",
        _SPARSITY,
        "erk",
        run["seed"],
        data,
        input_shape=(28, 28, 1),
        l2=lenet.L2,
    )
    return rigl_tf.with_execution(model, "csr") if method in _CSR else model


def _plain(data, run, method="rigl", **arguments):
    return _train(data, _lenet(data, method, run), method, run, run["epochs"], **arguments)


def _from_ticket(data, run):
    """A ticket: the connections that pruning keeps, at the weights that they had at the start."""
    if "lottery" not in run["setting"]:
        longer = 2 if "twice" in run["setting"] else 1
        method = _LOTTERY[run["setting"]]
        return _train(data, _lenet(data, method, run), method, run, longer * run["epochs"])
    model = _lenet(data, "pruning", run)
    start = model.get_weights()
    _train(data, model, "pruning", run, run["epochs"])
    masks = rigl_tf.get_masks(model)
    keras.backend.clear_session()
    model = _lenet(data, "pruning", run)
    model.set_weights(start)
    rigl_tf.set_masks(model, masks)
    rigl_tf.with_execution(model, "csr")
    return _train(data, model, _LOTTERY[run["setting"]], run, run["epochs"])


def _with_distribution(data, run):
    method, distribution = run["setting"].split(", ")
    dense = models.lenet5(input_shape=data.x_train.shape[1:], l2=lenet.L2)
    model = rigl_tf.sparsify(dense, 0.95, distribution, seed=run["seed"])
    # At 0.1, as the others have it, one of nine RigL trainings does not leave the start.
    return _train(data, model, method, run, run["epochs"], learning_rate=0.05, jit_compile=False)


def _run(data, run):
    keras.utils.set_random_seed(run["seed"])
    keras.backend.clear_session()
    study, setting = run["study"], run["setting"]
    if study.startswith("update"):
        method = study.partition("_")[2] or "rigl"
        found = _plain(data, run, method, **dict(_grid())[setting])
    elif study == "momentum":
        found = _plain(data, run, "snfs", gradient_momentum=float(setting.split()[1]))
    elif study == "restart":
        found = _plain(data, run, setting)
    elif study == "schedule":
        found = _plain(data, run, drop_fraction=setting)
    elif study == "grow_init":
        found = _plain(data, run, **_GROW_INITS[setting])
    elif study == "lottery":
        found = _from_ticket(data, run)
    else:
        found = _with_distribution(data, run)
    return {"accuracy": found}


def _report(rows, missing):
    """Writes the page and the plot; `missing` is `{study: number of runs still to be done}`."""
    values = tables.means(rows, "study", "setting", "accuracy")
    order = [(study, each) for study, (_, settings, _) in STUDIES.items() for each in settings]
    values = {key: values[key] for key in order if key in values}
    lines = [
        "# MNIST: what the settings of RigL, SET and SNFS do",
        "",
        "Test accuracy in percent after the last epoch, mean ± standard deviation over seeds "
        f"{sorted({row['seed'] for row in rows})}. LeNet-300-100 at 98 % (ERK), {FLAGS.epochs} "
        "epochs, batch 100, SGD 0.1, Nesterov momentum 0.9, cosine decay, L2 1e-4; unless the "
        "setting says otherwise, it is RigL, masks are updated every 100 steps until 75 % of "
        "training, drop fraction 0.3 (cosine), SNFS has a momentum of 0.9, and grown connections "
        f"start at zero. Trained in CSR, but for SNFS. {words.L2}",
    ]
    for study, (title, settings, share) in STUDIES.items():
        found = {s: values[study, s] for s in settings if (study, s) in values}
        if not found:
            continue
        heading = f"## {title[0].upper()}{title[1:]}"
        lines += ["", heading, "", *_table(study, found)]
        if share != 1:
            lines += ["", f"{round(share * FLAGS.epochs)} epochs."]
        if study == "restart" and {"set", "static_reinit"} <= found.keys():
            lines += ["", _what_moving_gains(rows)]
    lines += ["", *_claims(rows), "", f"![Accuracy by setting]({_NAME}.png)"]
    if missing:
        names = ", ".join(f"{study} ({count})" for study, count in missing.items())
        lines += ["", f"Runs that are still to be done: {names}."]
    experiments.write_page(_NAME, lines, "scripts.rigl.ablations")
    _plot(values, pathlib.Path(FLAGS.output_dir) / f"{_NAME}.png")


def _settings(values, study, names):
    """`{setting: {seed: accuracy}}` of a study; a `KeyError` if one of these is not run."""
    return {name: values[study, name] for name in names}


def _mean(of_seeds):
    return statistics.mean(of_seeds.values())


def _best(settings):
    """The setting with the highest mean."""
    return max(settings, key=lambda name: _mean(settings[name]))


def _judge(settings, first, second, more=0.0):
    """What the interval of `first` less `second` says, with `more` points for `first`: text."""
    gains = claims.differences(settings, first, second)
    verdict = claims.verdict([gain + more for gain in gains])
    return f"{verdict} ({first} less {second}: {claims.signed(gains)})"


def _every(frequency):
    return [f"every {frequency}, {fraction:g}" for fraction in _DROP_FRACTIONS[1:]]


def _hundred_is_best(values):
    settings = _settings(values, "update", [name for name, _ in _grid()])
    mine = _best({name: settings[name] for name in _every(100)})
    other = _best({name: of for name, of in settings.items() if name not in _every(100)})
    return _judge(settings, mine, other)


def _thousand_is_not_bad(values):
    settings = _settings(values, "update", [*_every(1000), *_every(100)])
    seldom, often = (_best({name: settings[name] for name in _every(n)}) for n in (1000, 100))
    return _judge(settings, seldom, often, 2 * _LITTLE)


def _is_best(study, mine):
    def judge(values):
        names = _MOMENTUMS if study == "momentum" else [name for name, _ in _grid()]
        settings = _settings(values, study, names)
        return _judge(settings, mine, _best({k: of for k, of in settings.items() if k != mine}))

    return judge


def _no_momentum_is_as_good(values):
    settings = _settings(values, "momentum", ("momentum 0", "momentum 0.9"))
    gains = claims.differences(settings, *settings)
    return f"{claims.verdict(gains, _LITTLE)} (0 less 0.9: {claims.signed(gains)})"


def _what_moving_gains(rows):
    """What we claim ourselves, before the runs."""
    settings = _settings(_by_setting(rows), "restart", ("set", "static_reinit"))
    return (
        "`static_reinit`: the masks stay, and at an update the weakest weights restart at zero. "
        "Our claim, fixed before the runs: SET, which moves them to random places, is better: "
        f"{_judge(settings, 'set', 'static_reinit')}."
    )


def _schedules_are_alike(values):
    settings = _settings(values, "schedule", ("cosine", "inverse power 1", "inverse power 3"))
    pairs = list(itertools.combinations(settings, 2))
    found = [claims.differences(settings, *pair) for pair in pairs]
    verdicts = [claims.verdict(each, _LITTLE) for each in found]
    seen = ", ".join(
        f"{a} less {b}: {claims.signed(d)}" for (a, b), d in zip(pairs, found, strict=True)
    )
    return f"{_all(verdicts)} ({seen})"


def _all(verdicts):
    """The verdict that all of some claims hold."""
    for verdict in (claims.CONTRADICTED, claims.UNDECIDED):
        if verdict in verdicts:
            return verdict
    return claims.CONFIRMED


def _zero_is_best(values):
    settings = _settings(values, "grow_init", _GROW_INITS)
    others = [name for name in settings if name != "zeros"]
    verdicts = [
        claims.verdict([g + _LITTLE for g in claims.differences(settings, "zeros", name)])
        for name in others
    ]
    best = _best({name: settings[name] for name in others})
    seen = claims.signed(claims.differences(settings, "zeros", best))
    return f"{_all(verdicts)} (zeros less the best other, {best}: {seen})"


def _erk_is_best(values):
    verdicts, seen = [], []
    for method in _DISTRIBUTED:
        names = [f"{method}, {name}" for name in _DISTRIBUTIONS]
        settings, erk = _settings(values, "distribution", names), f"{method}, erk"
        other = _best({name: of for name, of in settings.items() if name != erk})
        each = claims.differences(settings, erk, other)
        verdicts.append(claims.verdict(each))
        seen.append(f"erk less {other}: {claims.signed(each)}")
    return f"{_all(verdicts)} ({'; '.join(seen)})"


def _ticket(way, other, more=0.0):
    names = other, _TICKET[way]
    return lambda values: _judge(_settings(values, "lottery", names), *names, more)


_TICKET = {way: f"lottery masks and weights, {way}" for way in ("static", "RigL")}
_CLAIMS = {
    "An update every 100 steps with a drop fraction of 0.3 or 0.5 is better than any other": (
        _hundred_is_best
    ),
    "Every 1000 steps is worse by less than a point": _thousand_is_not_bad,
    "SET is best with an update every 50 steps and a drop fraction of 0.1": (
        _is_best("update_set", "every 50, 0.1")
    ),
    "SNFS is best with an update every 50 steps and a drop fraction of 0.1": (
        _is_best("update_snfs", "every 50, 0.1")
    ),
    "SNFS is best with a momentum of 0.99": _is_best("momentum", "momentum 0.99"),
    "SNFS with a momentum of 0 and of 0.9 differ by less than half a point": (
        _no_momentum_is_as_good
    ),
    "Cosine and inverse power schedules differ by less than half a point": _schedules_are_alike,
    "No start of grown connections is better than zero by half a point": _zero_is_best,
    "ERK is the best distribution for all methods": _erk_is_best,
    "RigL from random masks is better than static training of a ticket": _ticket(
        "static", "random masks, RigL"
    ),
    "RigL gains less than half a point from a ticket": _ticket(
        "RigL", "random masks, RigL", _LITTLE
    ),
    "RigL from random masks, twice as long, is better than RigL from a ticket": _ticket(
        "RigL", "random masks, RigL, twice as long"
    ),
}


def judged(rows):
    """The paper's claims and what the rows say of them: `{claim: text}`."""
    values, found = _by_setting(rows), {}
    for claim, judge in _CLAIMS.items():
        try:
            found[claim] = judge(values)
        except KeyError:
            found[claim] = claims.NOT_RUN
    return found


def _by_setting(rows):
    values = {}
    for row in rows:
        values.setdefault((row["study"], row["setting"]), {})[row["seed"]] = row["accuracy"]
    return values


def _claims(rows):
    return [
        "## What the paper finds",
        "",
        "In its appendix, with ResNet-50 on ImageNet and WRN-22-2 on CIFAR-10; tickets in its "
        f"table 3. {words.VERDICTS} In brackets is the difference in points, with its interval. "
        "Where the claim names points they are its margin; where it is about several comparisons, "
        "all must be confirmed, and one that is contradicted contradicts it.",
        "",
        *tables.table(["claim", "here"], judged(rows).items()),
        "",
        "On MNIST a ticket of 98 %, found by gradual pruning, is nearly as good as the dense "
        "network; with ResNet-50 the paper's tickets are 4 points below RigL. LeNet-5 has so few "
        "weights in its convolutions that ERK leaves them 52 and 98.",
    ]


def _table(study, found):
    if study.startswith("update"):
        head = ["update every", *(f"drop {fraction:g}" for fraction in _DROP_FRACTIONS)]
        cells = [
            [
                frequency,
                *(with_spread(found.get(f"every {frequency}, {f:g}")) for f in _DROP_FRACTIONS),
            ]
            for frequency in _FREQUENCIES
        ]
        return tables.table(head, cells)
    cells = [[setting, with_spread(value)] for setting, value in found.items()]
    return tables.table(["setting", "accuracy"], cells)


def _plot(values, path):
    with plots.figure(path, figsize=(7, 0.3 * len(values) + 1)) as axes:
        labels = [f"{study}: {setting}" for study, setting in values]
        mean, deviation, _ = zip(*values.values(), strict=True)
        axes.errorbar(mean, labels, xerr=deviation, fmt="o", capsize=3)
        axes.margins(y=0.02)
        axes.invert_yaxis()
        axes.set(title="MNIST: settings of RigL, SET and SNFS", xlabel="test accuracy (%)")
        axes.grid(alpha=0.3)


def main(_):
    data = experiments.load("mnist")
    rows = experiments.store(_NAME, _KEY)
    wanted = [
        {
            "study": study,
            "setting": setting,
            "seed": int(seed),
            "epochs": max(1, round(STUDIES[study][2] * FLAGS.epochs)),
            "examples": len(data.x_train),
        }
        for study in FLAGS.studies
        for seed in FLAGS.seeds
        for setting in STUDIES[study][1]
    ]
    experiments.run_all(
        rows, wanted, lambda run: _run(data, run), lambda run: 5 + 2 * run["epochs"]
    )
    missing = collections.Counter(run["study"] for run in wanted if run not in rows)
    finished = [row for row in rows.rows if row["examples"] == len(data.x_train)]
    _report(finished, missing)


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
