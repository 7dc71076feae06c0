"""Tests whether two trainings of a ticket, or of the dense network, end linearly connected.

    python -m scripts.lottery --protocol=connectivity --data_dir=DATA

Tickets are found by iterative pruning with rewinding to several steps: by ordinary training, with
large batches, and with a warm-up. Each ticket is trained twice, with different orders of the data.
The test error is measured on the line from one solution to the other, and from the dense solution
to the ticket's solution. Tickets from step 0 are also trained with a penalty that repels them from
the solutions in which the ticket was found. Expect lower barriers for later steps.

A case with one seed takes about 100 trainings of 5 epochs and 16 minutes of one core for
LeNet-300-100, 63 trainings of 25 epochs and an hour and a half in the setting of Maene et al., 54
trainings of 3 epochs and 13 minutes for LeNet-5, and two hours of one core for ResNet-20, which has
one seed. Trainings are kept in `runs` in the output directory, because each level of pruning starts
from the level before. So for parallel processes choose other cases or seeds for each, not another
`--part`.
"""

import dataclasses
import functools
import math
import pathlib

import numpy as np
from absl import flags

import rigl_tf
from rigl_tf import analysis, lottery
from scripts.lottery import networks

FLAGS = flags.FLAGS

NAME = "lottery_connectivity"
KEY = ("case", "training", "rewind", "level", "seed", "epochs", "examples")
_OTHER_START = 1000  # added to the seed of the weights of a reinitialised ticket
_OTHER_ORDERS = (2000, 3000)  # added to the seed of the data orders that are compared
_NUM_POINTS = 11


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a case.

    Attributes:
        case: A `networks.Case`.
        settings: Tuple of pairs: the way of training, and the step to rewind to, as a share of all
            steps.
        levels: The levels of pruning to measure; 0 is the dense network.
        prune_fraction: Float.
        repelled: Boolean, whether tickets from step 0 are also trained with repulsion.
    """

    case: networks.Case
    settings: tuple
    levels: tuple
    prune_fraction: float
    repelled: bool = True


def _lenet_300_100(name):
    settings = (("plain", 0), ("plain", 0.02), ("plain", 0.1), ("large batch", 0), ("warm-up", 0))
    case = dataclasses.replace(networks.CASES[name], share=0.5)
    return Plan(case, settings, (0, 2, 4, 6), 0.5)


def _lenet5(name):
    settings = (("plain", 0), ("plain", 0.1), ("large batch", 0))
    case = dataclasses.replace(networks.CASES[name], share=0.3)
    return Plan(case, settings, (0, 1, 2, 3), 0.65)  # 95.7 %: random ones of 98 % do not train


CASES = {
    "mnist_lenet_300_100": _lenet_300_100("mnist_lenet_300_100"),
    "fashion_mnist_lenet_300_100": _lenet_300_100("fashion_mnist_lenet_300_100"),
    "mnist_lenet_maene": Plan(
        networks.CASES["mnist_lenet_maene"],
        (("plain", 0), ("plain", 0.1), ("large batch", 0)),
        (0, 2, 4, 6),
        0.5,
    ),
    "mnist_lenet5": _lenet5("mnist_lenet5"),
    "fashion_mnist_lenet5": _lenet5("fashion_mnist_lenet5"),
    "cifar10_resnet20": Plan(
        dataclasses.replace(networks.CASES["cifar10_resnet20"], share=0.3),
        (("plain", 0), ("plain", 0.1), ("warm-up", 0)),
        (0, 1),
        0.8,
        repelled=False,
    ),
}


def wanted(case, seed):
    plan = CASES[case]
    same = {"seed": seed, **networks.setting(plan.case)}
    return [
        {"case": case, "training": training, "rewind": rewind, "level": level, **same}
        for level in plan.levels
        for training, rewind in plan.settings
    ]


def seconds(run):
    plan = CASES[run["case"]]
    num_trainings = 2
    if run["level"]:
        num_trainings += 2 + 3 * (plan.repelled and not run["rewind"])
    return num_trainings * (4 + run["epochs"] * plan.case.seconds) / 2


class Training:
    """Trains the networks of a run, in parts if it must stop at the step to rewind to.

    Attributes:
        case: A `networks.Case`. With large batches, they are ten times as large.
        step: Integer, the step to rewind to.
        total: Integer, the number of steps of a whole training.
    """

    def __init__(self, case, name, rewind):
        is_large = name == "large batch"
        batch_size = case.batch_size * (10 if is_large else 1)
        self.case = dataclasses.replace(case, batch_size=batch_size)
        self._warmup_epochs = case.epochs / 5 if name == "warm-up" else 0
        self.total = networks.total_steps(self.case)
        self.step = max(1, round(rewind * self.total)) if rewind else 0

    def __call__(self, model, seed, start=0, stop=None, callbacks=()):
        """Trains from one step of the schedule to another, in the data order of the seed."""
        optimizer = networks.optimizer_of(self.case, warmup_epochs=self._warmup_epochs)
        if not self.case.adam:  # its moments start at zero, and are corrected for that
            optimizer.iterations.assign(start)
        parts = math.gcd(self.step, self.total)
        networks.fit(
            self.case,
            model,
            seed,
            optimizer,
            steps=(start, self.total if stop is None else stop),
            steps_per_execution=max(n for n in range(1, 51) if parts % n == 0),
            callbacks=callbacks,
        )

    def error(self, model):
        """The share of test images in the wrong class."""
        return networks.error_between(self.case, model) / 100


def run(run):
    """Does a run, for the dense network or a ticket. Trainings for the ticket are kept on disk."""
    plan, seed = CASES[run["case"]], run["seed"]
    training = Training(plan.case, run["training"], run["rewind"])
    model = networks.build(training.case, seed, 0.0)
    if not run["level"]:
        if training.step:
            training(model, seed, stop=training.step)
        found = _instability(model, training, seed)
        return {"sparsity": 0.0, **found, **dict.fromkeys([*_TO_DENSE, *_REPELLED], "")}
    ticket, solutions = _ticket(model, plan, run, training)
    found = _instability(model, training, seed)
    return {
        "sparsity": round(ticket.sparsity, 6),
        **found,
        **_to_dense(model, training, solutions),
        **_repelled(plan, run, training, ticket, solutions),
    }


def _ticket(model, plan, run, training):
    """Makes the model the ticket. Returns it, and the trained weights of each level before."""
    names = ("case", "training", "rewind", "seed", "epochs", "examples")
    directory = "-".join(str(run[name]).replace(" ", "_") for name in names)
    directory = pathlib.Path(FLAGS.output_dir, "runs", NAME, directory)
    directory.mkdir(parents=True, exist_ok=True)

    def train(model, asked):
        rewind = asked.rewind
        start = rewind.start_step if rewind else 0
        training(model, run["seed"], start, callbacks=[rewind] if rewind else [])
        np.savez(directory / f"solution-{asked.level}.npz", *model.get_weights())
        return networks.test_accuracy(training.case, model)

    level = run["level"]
    found = lottery.find_ticket(
        model,
        train,
        level,
        plan.prune_fraction,
        rewind_step=training.step,
        directory=directory / "levels",
    )
    return found[-1], [_arrays(directory / f"solution-{k}.npz") for k in range(level + 1)]


def _arrays(path):
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def _instability(model, training, seed):
    found = analysis.instability(
        model,
        training,
        training.error,
        training.step,
        data_seeds=[order + seed for order in _OTHER_ORDERS],
        num_points=_NUM_POINTS,
    )
    ends = found.errors[0], found.errors[-1]
    return {
        "accuracy": round(100 - 50 * sum(ends), 3),
        "barrier": round(100 * found.barrier, 3),
        "errors": _text(found.errors),
        "angle": round(analysis.solution_distance(model, *found.solutions).angle, 4),
    }


_TO_DENSE = ("barrier_to_dense", "errors_to_dense", "angle_to_dense")


def _to_dense(model, training, solutions):
    """Measures the line from the dense solution to the ticket's solution."""
    dense, *_, last = solutions
    coefficients = np.linspace(0, 1, _NUM_POINTS)
    errors = analysis.interpolate(model, dense, last, training.error, coefficients)
    barrier = round(100 * analysis.error_barrier(errors), 3)
    angle = round(analysis.solution_distance(model, dense, last).angle, 4)
    return dict(zip(_TO_DENSE, (barrier, _text(errors), angle), strict=True))


_REPELLED = (
    "ticket",
    "ticket_repelled",
    "ticket_repelled_angle",
    "reinitialised",
    "reinitialised_repelled",
)


def _repelled(plan, run, training, ticket, solutions):
    """Trains the ticket, and a reinitialised one, away from the known solutions."""
    if not plan.repelled or run["rewind"]:
        return dict.fromkeys(_REPELLED, "")
    known = [solutions[0], *solutions[1:-1][-1:]]
    train = functools.partial(_from_start, training, ticket.masks, run["seed"])
    other = _OTHER_START + run["seed"]
    repelled, angle = train(run["seed"], known)
    values = ticket.metrics, repelled, angle, train(other)[0], train(other, known)[0]
    return dict(zip(_REPELLED, values, strict=True))


def _from_start(training, masks, seed, start, known=()):
    """The accuracy and, if solutions are known, the angle to the first of them."""
    model = networks.build(training.case, start, 0.0)
    rigl_tf.set_masks(model, masks)
    analysis.repel(model, known)
    training(model, seed)
    analysis.repel(model, ())  # the next network may be the same object
    accuracy = networks.test_accuracy(training.case, model)
    if not known:
        return accuracy, None
    return accuracy, round(
        analysis.solution_distance(model, known[0], model.get_weights()).angle, 4
    )


def _text(errors):
    return " ".join(f"{100 * error:.2f}" for error in errors)
