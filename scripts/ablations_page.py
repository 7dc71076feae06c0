"""The page and the plot of the ablations: accuracies, and the paper's claims beside them."""

import pathlib

from absl import flags

from scripts import experiments, results
from scripts.results import with_spread

FREQUENCIES = (50, 100, 500, 1000)
DROP_FRACTIONS = (0.1, 0.3, 0.5)
DISTRIBUTIONS = ("uniform", "erdos_renyi", "erk")
DISTRIBUTED = ("static", "set", "rigl")
_LITTLE = 0.5  # percentage points

FLAGS = flags.FLAGS


def write(name, rows, studies, missing):
    """Writes the page and the plot.

    Args:
        name: String, of their files.
        rows: The rows of finished runs.
        studies: `{study: (title, settings, share of the epochs)}`.
        missing: `{study: number of runs}` that are still to be done.
    """
    values = results.means(rows, "study", "setting", "accuracy")
    lines = [
        "# MNIST: what the settings of RigL do",
        "",
        "Test accuracy in percent after the last epoch, mean ± standard deviation over seeds "
        f"{sorted({row['seed'] for row in rows})}. LeNet-300-100 at 98 % (ERK), {FLAGS.epochs} "
        "epochs, batch 100, SGD 0.1, Nesterov momentum 0.9, cosine decay, L2 1e-4; unless the "
        "setting says otherwise, masks are updated every 100 steps until 75 % of training, drop "
        "fraction 0.3 (cosine), and grown connections start at zero.",
    ]
    for study, (title, settings, share) in studies.items():
        found = {s: values[study, s] for s in settings if (study, s) in values}
        if not found:
            continue
        heading = f"## {title[0].upper()}{title[1:]}"
        lines += ["", heading, "", *_table(study, found)]
        if share != 1:
            lines += ["", f"{round(share * FLAGS.epochs)} epochs."]
    lines += ["", *_claims(values), "", f"![Accuracy by setting]({name}.png)"]
    if missing:
        names = ", ".join(f"{study} ({count})" for study, count in missing.items())
        lines += ["", f"Runs that are still to be done: {names}."]
    experiments.write_page(name, lines, "scripts.ablations")
    _plot(values, pathlib.Path(FLAGS.output_dir) / f"{name}.png")


def _at_least(value, other, less=0.0):
    """Whether a mean is not below another, but for `less` and for their standard deviations."""
    return value[0] + value[1] + other[1] >= other[0] - less


def _best(values, study):
    return max(value for (name, _), value in values.items() if name == study)


def _every(values, frequency):
    return max(values["update", f"every {frequency}, {f:g}"] for f in DROP_FRACTIONS[1:])


def _hundred_is_best(values):
    mine = _every(values, 100)  # a `KeyError` if that is still to be run
    best = _best(values, "update")
    return _at_least(mine, best), f"{with_spread(mine)}, the best of all {with_spread(best)}"


def _thousand_is_not_bad(values):
    seldom, often = _every(values, 1000), _every(values, 100)
    return _at_least(seldom, often, 2 * _LITTLE), f"{with_spread(seldom)} and {with_spread(often)}"


def _schedules_are_alike(values):
    names = ("cosine", "inverse power 1", "inverse power 3")
    means = [values["schedule", name][0] for name in names]
    return max(means) - min(means) <= _LITTLE, f"{min(means):.2f} to {max(means):.2f}"


def _zero_is_best(values):
    zero = values["grow_init", "zeros"]
    best = _best(values, "grow_init")
    return _at_least(zero, best), f"{with_spread(zero)}, the best of all {with_spread(best)}"


def _erk_is_best(values):
    best = [
        max(DISTRIBUTIONS, key=lambda name, of=method: values["distribution", f"{of}, {name}"])
        for method in DISTRIBUTED
    ]
    pairs = zip(DISTRIBUTED, best, strict=True)
    return set(best) == {"erk"}, ", ".join(f"{method}: {name}" for method, name in pairs)


def _ticket(way, other, is_better):
    def claim(values):
        ticket, random = values["lottery", _TICKET[way]], values["lottery", other]
        holds = _at_least(random, ticket) and not (is_better and _at_least(ticket, random))
        return holds, f"{with_spread(random)} and {with_spread(ticket)}"

    return claim


_TICKET = {way: f"lottery masks and weights, {way}" for way in ("static", "RigL")}
_CLAIMS = {
    "An update every 100 steps with a drop fraction of 0.3 or 0.5 is best": _hundred_is_best,
    "Every 1000 steps is not much worse (by a point at most)": _thousand_is_not_bad,
    "Cosine and inverse power schedules differ little (by half a point)": _schedules_are_alike,
    "No start of grown connections is better than zero": _zero_is_best,
    "ERK is the best distribution for all methods": _erk_is_best,
    "RigL from random masks is better than static training of a ticket": _ticket(
        "static", "random masks, RigL", True
    ),
    "RigL gains nothing from a ticket": _ticket("RigL", "random masks, RigL", False),
    "RigL from random masks, twice as long, is better than RigL from a ticket": _ticket(
        "RigL", "random masks, RigL, twice as long", True
    ),
}


def _claims(values):
    """The paper's claims and whether they hold here: a table."""
    rows = []
    for claim, judge in _CLAIMS.items():
        try:
            holds, seen = judge(values)
        except KeyError:
            rows.append([claim, "still to be run"])
            continue
        rows.append([claim, f"{'confirmed' if holds else 'not confirmed'} ({seen})"])
    return [
        "## What the paper finds",
        "",
        "In its appendix, with ResNet-50 on ImageNet and WRN-22-2 on CIFAR-10; tickets in its "
        "table 3. A difference counts if it is above the sum of both standard deviations.",
        "",
        *results.table(["claim", "here"], rows),
        "",
        "On MNIST a ticket of 98 %, found by gradual pruning, is nearly as good as the dense "
        "network; with ResNet-50 the paper's tickets are 4 points below RigL. LeNet-5 has so few "
        "weights in its convolutions that ERK leaves them 52 and 98.",
    ]


def _table(study, found):
    if study == "update":
        head = ["update every", *(f"drop {fraction:g}" for fraction in DROP_FRACTIONS)]
        cells = [
            [
                frequency,
                *(with_spread(found.get(f"every {frequency}, {f:g}")) for f in DROP_FRACTIONS),
            ]
            for frequency in FREQUENCIES
        ]
        return results.table(head, cells)
    cells = [[setting, with_spread(value)] for setting, value in found.items()]
    return results.table(["setting", "accuracy"], cells)


def _plot(values, path):
    with results.figure(path, figsize=(7, 0.3 * len(values) + 1)) as axes:
        labels = [f"{study}: {setting}" for study, setting in values]
        mean, deviation, _ = zip(*values.values(), strict=True)
        axes.errorbar(mean, labels, xerr=deviation, fmt="o", capsize=3)
        axes.invert_yaxis()
        axes.set(title="MNIST: settings of RigL", xlabel="test accuracy (%)")
        axes.grid(alpha=0.3)
