"""Measures steps of sparse training of ResNet-50, MobileNet-v1 and a Vision Transformer.

    python -m scripts.benchmark.networks

Four programs are compared: dense Keras in graph mode, dense Keras with XLA, RigL with masks, and
RigL with `execution="auto"`. Each is a process. They take turns on random images, in rounds, and
ratios are computed for each round. It takes twenty minutes on two cores without other work, and
writes `results/networks.md` and `.csv`.
"""

import pathlib
import sys

import numpy as np
from absl import flags

from scripts.benchmark import execution_page, network_programs, rounds
from scripts.common import entry, experiments, provenance, tables

_MODULE = "scripts.benchmark.network_programs"
_DENSE = ("dense", "dense_xla")
_MASKED = "masked"
_SPARSE = "auto"
_KEY = ("program", "network", "distribution", "sparsity", "pixels", "batch")
_LABELS = {
    "resnet50": "ResNet-50",
    "mobilenet_v1": "MobileNet-v1",
    "vision_transformer": "Vision Transformer (ViT-S/16)",
}
# How many times as fast sparse training is to be: network and distribution, by sparsity.
AIMS = {("resnet50", "uniform"): {0.9: 1.3, 0.95: 1.8}}

FLAGS = flags.FLAGS


def _define_flags():
    names = list(network_programs.NETWORKS)
    flags.DEFINE_list("networks", names, "Networks to measure.")
    flags.DEFINE_list("sparsities", ["0.9", "0.95"], "Sparsities.")
    flags.DEFINE_list("distributions", ["uniform", "erk"], "Distributions of the sparsity.")
    flags.DEFINE_integer("pixels", 224, "Height and width of the images.", lower_bound=32)
    flags.DEFINE_integer("batch", 8, "Examples in a batch.", lower_bound=1)
    flags.DEFINE_integer("rounds", 10, "Rounds for each network.", lower_bound=1)
    flags.DEFINE_integer("block_ms", 300, "Milliseconds of a block of steps.", lower_bound=1)
    flags.DEFINE_integer("seconds", 240, "Time limit of a network in seconds.", lower_bound=1)
    flags.DEFINE_string("output_dir", "results", "Directory for the results and the page.")
    flags.DEFINE_bool("only_report", False, "Only make the page, from existing results.")
    flags.register_validator(
        "networks", lambda given: set(given) <= set(names), f"--networks must be in {names}"
    )


def cases(network):
    """`{program: cases}` of a network."""
    rest = {"pixels": FLAGS.pixels, "batch": FLAGS.batch}
    dense = [{"network": network, "distribution": "", "sparsity": 0.0, **rest}]
    sparse = [
        {"network": network, "distribution": distribution, "sparsity": float(sparsity), **rest}
        for distribution in FLAGS.distributions
        for sparsity in FLAGS.sparsities
    ]
    # Masked steps do not depend on the sparsity.
    return {**dict.fromkeys(_DENSE, dense), _MASKED: sparse[:1], _SPARSE: sparse}


def _command(program):
    return [sys.executable, "-m", _MODULE, program]


def run(rows):
    """Measures each network in new processes, and adds the rows."""
    revision = f"git-{provenance.git_revision()}"
    for network in FLAGS.networks:
        wanted = cases(network)
        ready, missing = rounds.start({name: _command(name) for name in wanted})
        try:
            found = [
                {"program": name, **case, "missing": reason}
                for name, reason in missing.items()
                for case in wanted[name]
            ]
            found += rounds.measure(ready, wanted, FLAGS.rounds, FLAGS.seconds, FLAGS.block_ms)
        finally:
            for worker in ready.values():
                worker.close()
        for row in found:
            rows.add({**row, "revision": revision})
            print({name: row.get(name) for name in (*_KEY, "ms", "missing")}, flush=True)


def _faster(row, rows, programs):
    """The speed-up of a row over the fastest of some programs, and the row of this program."""
    others = [
        other
        for other in rows
        if other["program"] in programs
        and all(other[name] == row[name] for name in ("network", "pixels", "batch"))
    ]
    if not others:
        return None, None
    base = min(others, key=lambda other: np.median(execution_page.series(other)))
    return execution_page.series(base) / execution_page.series(row), base


def _reasons(row, rows, needed):
    """Lines that say why a row is not as fast as it was to be, by rows of other sparsities."""
    alike = ("program", "network", "distribution", "pixels", "batch")
    steps = {
        other["sparsity"]: np.median(execution_page.series(other))
        for other in rows
        if all(other[name] == row[name] for name in alike)
    }
    if len(steps) < 2:
        return []
    name = f"{_LABELS[row['network']]}, {row['distribution']}, {row['sparsity']:.0%}"
    took, independent = steps[row["sparsity"]], execution_page.independent_ms(steps)
    return [
        execution_page.reason(name, needed, took, independent)
        + " (Along a line through the steps of this network; it contains masked and dense layers, "
        "normalisation, activations, and moving pixels for products.)"
    ]


def write(directory, rows, line):
    """Writes `networks.md`."""
    measured = [row for row in rows if row.get("ms", "") != ""]
    cells, reasons = [], []
    for row in measured:
        if row["program"] != _SPARSE:
            continue
        ratio, base = _faster(row, measured, _DENSE)
        than_masked, _ = _faster(row, measured, (_MASKED,))
        ms, update = (np.median(execution_page.series(row, n)) for n in ("ms", "update_ms"))
        dense_ms = np.median(execution_page.series(base)) if base else None
        aim = AIMS.get((row["network"], row["distribution"]), {}).get(row["sparsity"], "–")
        if aim != "–" and ratio is not None:
            is_reached = np.median(ratio) >= aim
            if not is_reached:
                reasons += _reasons(row, measured, ms * np.median(ratio) / aim)
            aim = f"{aim} {'reached' if is_reached else 'missed'}"
        kernels = row["num_csr"] + row["num_masked"]
        cells.append(
            [
                _LABELS[row["network"]],
                f"{row['distribution']}, {row['sparsity']:.0%}",
                f"{row['num_csr']} of {kernels}",
                f"{row['share_csr']:.0%}",
                f"{ms:.0f}",
                f"{dense_ms:.0f} ({'XLA' if base['program'] == 'dense_xla' else 'graph'})"
                if base
                else "–",
                execution_page.with_quartiles(ratio),
                aim,
                execution_page.with_quartiles(than_masked),
                f"{update / dense_ms:.2f}" if base else "–",
            ]
        )
    head = ["network", "sparsity", "kernels in CSR", "weights in them", "step (ms)"]
    head += ["dense Keras (ms)", "times as fast", "aim", "times as fast as masks"]
    head += ["mask update, in dense steps"]
    text = [
        "# Sparse training of whole networks: what a step costs",
        "",
        f"Images of {FLAGS.pixels} x {FLAGS.pixels} pixels, batches of {FLAGS.batch}, SGD with "
        'momentum, RigL with `execution="auto"`: it stores a kernel as CSR where that is faster, '
        "and keeps the others masked. Depthwise kernels stay dense, and the first layer where the "
        "sparsity is uniform. Dense Keras is the faster of graph mode and XLA. Masks are those of "
        "RigL in graph mode; its steps do not depend on the sparsity. Every program is a "
        "process of its own; they train in turn, and a ratio is that of two blocks of the same "
        "round: median (quartiles).",
        "",
        *tables.table(head, cells),
        "",
        *reasons,
        *execution_page.ending(rows, _KEY[:4], line),
    ]
    (directory / "networks.md").write_text("\n".join(text) + "\n")


def main(_):
    """Measures, and writes the page."""
    path = pathlib.Path(FLAGS.output_dir) / "networks.csv"
    if not FLAGS.only_report:
        path.unlink(missing_ok=True)  # Times are of one run, on one machine.
    rows = experiments.store("networks", _KEY)
    if not FLAGS.only_report:
        run(rows)
    write(path.parent, rows.rows, provenance.line("scripts.benchmark.networks"))


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
