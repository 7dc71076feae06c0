"""The protocols of the lottery-ticket papers, on small networks.

    python -m scripts.lottery --protocol=tickets --data_dir=DATA

runs one of them (tickets, sanity, connectivity, gradient_flow, recipe, correlation, greedy) with
three seeds. The module with this name in `scripts/lottery` says what is trained, how long it takes
and which results to expect. Finished runs are rows of a CSV file in `results/` and are never
repeated. The page and the plots, which compare our numbers with the claims of the papers, are made
from all rows.
"""

import importlib

from absl import app, flags

from scripts.common import entry, experiments
from scripts.lottery import networks
from scripts.lottery.pages import common

PROTOCOLS = (
    "tickets",
    "sanity",
    "connectivity",
    "gradient_flow",
    "recipe",
    "correlation",
    "greedy",
)

FLAGS = flags.FLAGS


def _define_flags():
    experiments.define_flags(epochs=10)
    flags.DEFINE_enum("protocol", None, PROTOCOLS, "The protocol to run.")
    flags.mark_flag_as_required("protocol")
    flags.DEFINE_list("cases", [], "Cases of the protocol to run, such as mnist. Default: all.")


def main(_):
    protocol = importlib.import_module(f"scripts.lottery.{FLAGS.protocol}")
    rows = experiments.store(protocol.NAME, protocol.KEY)
    cases = FLAGS.cases or list(protocol.CASES)
    unknown = [case for case in cases if case not in protocol.CASES]
    if unknown:
        raise app.UsageError(
            f"--cases must be some of {', '.join(protocol.CASES)}. Received: {', '.join(unknown)}"
        )
    if not FLAGS.only_report:  # to know what is wanted takes the data
        wanted = [
            run
            for seed in map(int, FLAGS.seeds)
            for case in cases
            if seed < networks.CASES[case].num_seeds
            for run in protocol.wanted(case, seed)
        ]
        experiments.run_all(rows, wanted, protocol.run, protocol.seconds)
    page = importlib.import_module(f"scripts.lottery.pages.{FLAGS.protocol}")
    common.write(protocol, page, rows.rows)


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
