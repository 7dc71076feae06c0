"""Writes the table of claims on top of the index of results.

    python -m scripts.rigl.index

Each claim of the RigL paper has beside it what the rows in `results/` say of it: confirmed,
contradicted or undecided, by paired t intervals at 95 % over the seeds; not run; or that it cannot
be run here. The table is written between two marks in `results/README.md`.
"""

import pathlib

from absl import flags

from scripts.common import claims, entry, tables
from scripts.common.rows import Rows
from scripts.rigl import ablations, big_sparse, landscape, methods_page, methods_table

FLAGS = flags.FLAGS
BEGIN, END = "<!-- claims -->", "<!-- end of claims -->"
_TITLES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10_small": "CIFAR-10",
}
_PAPER = "Evci et al. 2020"
_OF_OTHER_PAGES = (
    (ablations, "ablations", "appendix and table 3"),
    (landscape, "landscape", "section 4.3"),
    (big_sparse, "big_sparse", "table of MobileNet-v1"),
)
_OTHERS = (
    (
        "FLOPs and sizes of all rows of the paper and its README",
        "figure 2, tables 2 and 4, README",
        "116 of 146 numbers are met to the last digit: [flops](flops.md)",
    ),
    (
        "a character language model: RigL is better than SET and static masks",
        "figure 4",
        "undecided, one seed of a smaller model: [language](language.md)",
    ),
)
# What needs ImageNet, or days of two cores for one run: claim, place in the paper, why.
_CANNOT = (
    (
        "accuracies of ResNet-50 on ImageNet, in all rows of figure 2, table 4 and the README",
        "figure 2, table 4",
        "one dense training is 3.2e18 FLOPs, a year of two cores",
    ),
    (
        "RigL 5x reaches the accuracy of the dense ResNet-50, and of pruning 1.5x",
        "figure 2",
        "as above; on small data see RigL 5x",
    ),
    (
        "MobileNet-v1: RigL is better than pruning and small-dense; Big-Sparse than the dense one",
        "table of MobileNet-v1",
        "as above",
    ),
    (
        "accuracies of WRN-22-2 on CIFAR-10 over the sparsity",
        "figure 4",
        "250 epochs are a day of two cores for each run",
    ),
    (
        "the character language model on WikiText-103 in its full size",
        "figure 4",
        "200,000 steps are days for each run",
    ),
)


def _define_flags():
    flags.DEFINE_string("output_dir", "results", "Directory of the results and of their index.")


def lines(directory):
    """The lines of the table, of the CSV files in a directory."""
    found = {}
    for dataset, setting in methods_table.SETTINGS.items():
        name = f"{dataset}_{setting.network}"
        rows = _whole(Rows(directory / f"{name}.csv", ()).rows)
        for claim, at in methods_page.claims_of(setting.claims, rows, setting.epochs):
            link = f"[{_TITLES[dataset]}]({name}.md)" if rows else _TITLES[dataset]
            found.setdefault((claim.text, claim.source), []).append(f"{link}: {_verdicts(at)}")
    table = [[text, source, "<br>".join(verdicts)] for (text, source), verdicts in found.items()]
    for module, name, where in _OF_OTHER_PAGES:
        rows = Rows(directory / f"{name}.csv", ()).rows
        if rows:
            table += [
                [text, f"{_PAPER}, {where}", f"[{name}]({name}.md): {verdict}"]
                for text, verdict in module.judged(rows).items()
            ]
    table += map(list, _OTHERS)
    table += [[text, where, f"cannot be run here: {why}"] for text, where, why in _CANNOT]
    return tables.table(["claim", "from", "here"], table)


def _whole(rows):
    """The rows of the whole data set, not of trainings with fewer examples."""
    most = max((row["examples"] for row in rows), default=0)
    return [row for row in rows if row["examples"] == most]


def _verdicts(at):
    """`confirmed at 90 and 95 %; undecided at 80 %`; the verdict alone if it is one for all."""
    by_verdict = {}
    for sparsity, (verdict, _) in at.items():
        by_verdict.setdefault(verdict, []).append(f"{100 * sparsity:g}")
    if len(by_verdict) < 2:
        return next(iter(by_verdict), claims.NOT_RUN)
    return "; ".join(f"{verdict} at {_listed(each)} %" for verdict, each in by_verdict.items())


def _listed(words):
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def write(path, new):
    """Puts lines between the marks of a page.

    Raises:
        ValueError: If the marks are not there.
    """
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} must have the marks {BEGIN} and {END}, for the table of claims.")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    path.write_text("\n".join([f"{before}{BEGIN}", "", *new, "", f"{END}{after}"]))


def main(_):
    directory = pathlib.Path(FLAGS.output_dir)
    write(directory / "README.md", lines(directory))


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
