"""Tests whether large weights are large from the start, and compares tickets and fine-tuning.

    python -m scripts.lottery --protocol=correlation --data_dir=DATA

For each row a dense network is trained, pruned and fine-tuned. With the resulting mask, three other
networks are trained for as many epochs as the fine-tuning: a ticket from the initial weights, a
rewound ticket from early weights, and a reinitialised ticket. The learning rate is small, medium or
large with one-shot pruning, and large with iterative and ADMM pruning.

A seed takes about 9 minutes of a core for LeNet-300-100 and for LeNet-5. CIFAR-10, with one seed,
takes an hour and a half. According to the paper, expect this: if the learning rate is large enough,
the correlation is that of chance, and fine-tuning is better than the ticket.
"""

import dataclasses
import functools

import keras

import rigl_tf
from rigl_tf import analysis, distributions, lottery
from scripts.lottery import networks

NAME = "lottery_correlation"
KEY = ("case", "pruning", "learning_rate", "sparsity", "seed", "epochs", "examples")
P = 0.2  # the share of weights that count as large
PRUNINGS = ("one_shot", "iterative", "admm")
FINE_TUNED = "fine_tune"
_SPARSITIES = (0.7, 0.95)
_RATES = (0.01, 0.1, 1.0)  # as shares of the case's learning rate
_PRUNE_FRACTION = 0.5
_NUM_UPDATES = 4
_RHO = 0.01
_REWIND_SHARE = 0.1  # of the epochs
_OTHER_START = 1000  # added to the seed of the weights of a reinitialised ticket


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a case.

    Attributes:
        case: A `networks.Case`.
        runs: List of `(pruning, rate, sparsity)`. The rate is a share of the case's learning rate.
        dense_first: Boolean, whether the first kernel stays dense, as in the paper.
    """

    case: networks.Case
    runs: list
    dense_first: bool = True


_ALL = [
    *(("one_shot", rate, sparsity) for sparsity in _SPARSITIES for rate in _RATES),
    *((pruning, 1.0, sparsity) for sparsity in _SPARSITIES for pruning in PRUNINGS[1:]),
]
_FEW = [("one_shot", rate, 0.7) for rate in _RATES]


def _plan(name, share, runs, **arguments):
    return Plan(dataclasses.replace(networks.CASES[name], share=share), runs, **arguments)


CASES = {
    "mnist_lenet_300_100": _plan("mnist_lenet_300_100", 1.0, _ALL, dense_first=False),
    "fashion_mnist_lenet_300_100": _plan(
        "fashion_mnist_lenet_300_100", 1.0, _ALL, dense_first=False
    ),
    "mnist_lenet5": _plan("mnist_lenet5", 0.2, _ALL),
    "fashion_mnist_lenet5": _plan("fashion_mnist_lenet5", 0.2, _ALL),
    "cifar10_resnet20": _plan("cifar10_resnet20", 0.3, _FEW),
}


def wanted(case, seed):
    plan = CASES[case]
    same = {"case": case, "seed": seed, **networks.setting(plan.case)}
    return [
        {
            "pruning": pruning,
            "learning_rate": round(rate * plan.case.learning_rate, 6),
            "sparsity": sparsity,
            **same,
        }
        for pruning, rate, sparsity in plan.runs
    ]


def seconds(run):
    case = CASES[run["case"]].case
    num_levels = sum(1 - (1 - _PRUNE_FRACTION) ** n < run["sparsity"] for n in range(1, 100))
    between = {"one_shot": 0, "iterative": num_levels, "admm": _NUM_UPDATES}[run["pruning"]]
    return (5 * case.epochs + between) * case.seconds / 2


def run(run):
    plan, seed = CASES[run["case"]], run["seed"]
    case, rate = plan.case, run["learning_rate"]
    model = networks.build(case, seed, 0.0)
    weights = {"ticket": model.get_weights()}
    rewind_epoch = max(round(_REWIND_SHARE * case.epochs), int(case.epochs > 1))
    weights["rewound"] = weights["ticket"]
    kernels = {"start": analysis.get_kernels(model)}

    def train(model, asked):
        name = asked.name
        if name not in ("dense", FINE_TUNED):
            optimizer = networks.optimizer_of(case, rate, epochs=1)
            return networks.train(case, model, seed, optimizer, epochs=1)
        keep = functools.partial(_keep, model, weights, rewind_epoch)
        callback = keras.callbacks.LambdaCallback(on_epoch_begin=keep)
        callbacks = [callback] if name == "dense" else []
        accuracy = networks.train(
            case, model, seed, networks.optimizer_of(case, rate), callbacks=callbacks
        )
        kernels[name] = analysis.get_kernels(model)
        return accuracy

    result = lottery.prune_and_fine_tune(
        model,
        train,
        run["sparsity"],
        run["pruning"],
        distribution=functools.partial(distributions.uniform, dense_first=plan.dense_first),
        prune_fraction=_PRUNE_FRACTION,
        num_updates=_NUM_UPDATES,
        rho=_RHO,
    )
    keras.utils.set_random_seed(_OTHER_START + seed)
    weights["reinitialised"] = networks.another(case, 0.0).get_weights()
    found = {name: result.metrics[name] for name in ("dense", FINE_TUNED)}
    correlations = {
        "dense": _correlation(kernels["start"], kernels["dense"]),
        FINE_TUNED: _correlation(kernels["start"], kernels[FINE_TUNED], result.masks),
        "with_trained": _correlation(kernels["dense"], kernels[FINE_TUNED], result.masks),
    }
    for name, values in weights.items():
        model.set_weights(values)
        rigl_tf.set_masks(model, result.masks)
        before = analysis.get_kernels(model)
        first_epoch = rewind_epoch if name == "rewound" else 0
        found[name] = _train_ticket(case, model, seed, rate, first_epoch)
        correlations[name] = _correlation(before, analysis.get_kernels(model), result.masks)
    return {
        **found,
        **{f"correlation_{name}": round(value, 5) for name, value in correlations.items()},
    }


def _keep(model, weights, rewind_epoch, epoch, logs=None):
    if epoch == rewind_epoch:
        weights["rewound"] = model.get_weights()


def _train_ticket(case, model, seed, rate, first_epoch):
    optimizer = networks.optimizer_of(case, rate)
    optimizer.iterations.assign(first_epoch * networks.total_steps(case, 1))
    return networks.train(case, model, seed, optimizer, first_epoch=first_epoch)


def _correlation(before, after, masks=None):
    """The correlation over all kernels together, with the weights that the masks keep."""
    return analysis.weight_correlation(before, after, P, masks_a=masks, masks_b=masks).total
