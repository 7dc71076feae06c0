"""Compares tickets with other networks: accuracy over sparsity, judged as by Ma et al.

    python -m scripts.lottery --protocol=tickets --data_dir=DATA

At a small and at a large learning rate, these networks are trained: tickets by iterative and by
one-shot pruning; their masks with other initial weights; masks with the connections in other
places; and narrower dense networks. Expect that reinitialised and random tickets are worse at 97 %
and more, and that one-shot pruning becomes worse before iterative pruning does.

A case with one seed takes 86 trainings of 5 epochs and 12 minutes of one core for LeNet-300-100, 58
trainings of 3 epochs and 12 minutes for LeNet-5, and two hours of one core for ResNet-20, which has
one seed. Trainings are kept in `runs` in the output directory, because each level of pruning starts
from the level before. So for parallel processes choose other cases or seeds for each, not another
`--part`.
"""

import dataclasses
import functools
import pathlib

from absl import flags

import models
from rigl_tf import lottery
from scripts.lottery import networks

FLAGS = flags.FLAGS

NAME = "lottery_tickets"
KEY = ("case", "learning_rate", "seed", "kind", "level", "epochs", "examples")
_OTHER_START = 1000  # added to the seed of the weights of a reinitialised ticket
_RIVALS = ("LT-OMP", "RR-IMP", "RR-OMP", "random", "small dense")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a case.

    Attributes:
        case: A `networks.Case`.
        learning_rates: Pair of floats, a small and a large one.
        levels: Integer, how many times to prune.
        prune_fraction: Float.
        compared: The levels at which the networks of `rivals` are trained.
        rivals: Some of `_RIVALS`.
        residual: Boolean, whether the network has residual connections.
    """

    case: networks.Case
    learning_rates: tuple = (0.01, 0.1)
    levels: int = 7
    prune_fraction: float = 0.5
    compared: tuple = (1, 2, 3, 4, 5, 6, 7)
    rivals: tuple = _RIVALS
    residual: bool = False


def _case(name, share):
    return dataclasses.replace(networks.CASES[name], share=share)


def _lenet5(name):
    return Plan(_case(name, 0.3), (0.005, 0.05), compared=(3, 5, 6, 7))


CASES = {
    "mnist_lenet_300_100": Plan(_case("mnist_lenet_300_100", 0.5)),
    "fashion_mnist_lenet_300_100": Plan(_case("fashion_mnist_lenet_300_100", 0.5)),
    "mnist_lenet5": _lenet5("mnist_lenet5"),
    "fashion_mnist_lenet5": _lenet5("fashion_mnist_lenet5"),
    "cifar10_resnet20": Plan(
        _case("cifar10_resnet20", 0.4),
        (0.02, 0.2),
        levels=2,
        prune_fraction=0.7,
        compared=(2,),
        rivals=("LT-OMP", "RR-IMP", "random", "small dense"),
        residual=True,
    ),
}


def wanted(case, seed):
    plan = CASES[case]
    same = networks.setting(plan.case)
    trained = [("LT-IMP", level) for level in range(plan.levels + 1)]
    trained += [(kind, level) for level in plan.compared for kind in plan.rivals]
    return [
        {"case": case, "learning_rate": rate, "seed": seed, "kind": kind, "level": level, **same}
        for rate in plan.learning_rates
        for kind, level in trained
    ]


def seconds(run):
    return (4 + run["epochs"] * CASES[run["case"]].case.seconds) / 2


def run(run):
    """Trains one network. The levels of pruning before it are trained too, if they are not kept."""
    plan, seed, kind = CASES[run["case"]], run["seed"], run["kind"]
    case = plan.case

    def train(model, asked):
        return networks.train(case, model, seed, networks.optimizer_of(case, run["learning_rate"]))

    names = ("case", "learning_rate", "seed", "epochs", "examples")
    contest = lottery.Contest(
        lambda seed: networks.build(case, seed, 0.0),
        train,
        pathlib.Path(FLAGS.output_dir, "runs", NAME, "-".join(str(run[name]) for name in names)),
        max(1, run["level"]),
        plan.prune_fraction,
        seed=seed,
        other_seed=_OTHER_START + seed,
    )
    ticket = contest.levels[run["level"]]
    num_weights = ticket.num_active
    if kind == "small dense":
        width = models.small_dense_width(functools.partial(networks.another, case), num_weights)
        model = networks.build(case, seed, width=width)
        num_weights = models.count_kernel_weights(model)
        accuracy = train(model, None)
    else:
        accuracy = contest.accuracy(kind, run["level"])
    return {
        "sparsity": round(ticket.sparsity, 6),
        "num_weights": num_weights,
        "accuracy": accuracy,
    }
