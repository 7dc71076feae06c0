"""Tests which tickets lose accuracy if the data are corrupted, or connections or weights moved.

    python -m scripts.lottery --protocol=sanity --data_dir=DATA

Each row is a ticket of one pruner at one sparsity. It is trained, and trained again after a part of
it was destroyed, see `rigl_tf.lottery.sanity_check`. Initial tickets (SNIP, GraSP, LT) have the
initial weights. Partially trained tickets have the weights of an early epoch (weight rewinding) or
of the end (learning-rate rewinding). Random tickets have the numbers of connections of the smart
ratio; hybrid tickets have the same numbers, with the largest weights. According to the paper,
expect that the destruction does not hurt initial tickets.

A seed takes about 14 minutes of a core for LeNet-300-100 and 10 minutes for LeNet-5. CIFAR-10, with
one seed, takes two hours. A process trains the dense networks of all its tickets only once for each
seed. So for parallel processes choose other cases or seeds for each, not another `--part`.
"""

import dataclasses
import functools
import zlib

import keras
import numpy as np

import rigl_tf
from rigl_tf import distributions, lottery, pruning
from rigl_tf.lottery.sanity import CHECKS
from scripts.lottery import networks

NAME = "lottery_sanity"
KEY = ("case", "ticket", "sparsity", "seed", "epochs", "examples")
INITIAL = ("SNIP", "GraSP", "LT")
PARTIALLY_TRAINED = ("weight rewinding", "learning-rate rewinding")
HYBRID = "hybrid"
SPARSITIES = (0.9, 0.95, 0.98)
# Random tickets by the decay of their densities; "ERK" is for networks without convolutions.
RANDOM = {
    "random, smart ratio": "quadratic",
    "random, linear": "linear",
    "random, ascending": "ascending",
    "random, cubic": "cubic",
    "random, uniform": "uniform",
    "random, ERK": None,
}
_EXAMPLES_PER_CLASS = 10  # examples for SNIP and GraSP, as in the paper
_REWIND_SHARE = 0.2  # of the epochs


@dataclasses.dataclass(frozen=True)
class Plan:
    """The tickets of a case: `{(ticket, sparsity): checks}`."""

    case: networks.Case
    tickets: dict
    residual: bool = False


def _pruned(checked, everywhere):
    """All checks at the sparsity `checked`; at others only a random ticket with equal counts."""
    tickets = {("dense", 0.0): ()}
    for sparsity in SPARSITIES:
        for ticket in INITIAL + PARTIALLY_TRAINED:
            if sparsity == checked:
                tickets[ticket, sparsity] = CHECKS
            elif ticket in everywhere:
                tickets[ticket, sparsity] = ("random ticket",)
    return tickets


_DENSE_ONLY = {
    **_pruned(0.98, INITIAL + PARTIALLY_TRAINED),
    **{("random, ERK", sparsity): () for sparsity in SPARSITIES},
}
# Not at 0.98: there no random LeNet-5 leaves the start, and every check is noticed.
_CONVOLUTIONAL = {
    **_pruned(0.95, INITIAL),
    **{("learning-rate rewinding", sparsity): () for sparsity in (0.9, 0.98)},
    **{(name, s): () for s in SPARSITIES for name in ("random, smart ratio", HYBRID)},
    **{(name, 0.95): () for name, decay in RANDOM.items() if decay},
}
_CIFAR = {
    ("dense", 0.0): (),
    ("SNIP", 0.95): ("corrupted labels", "rearranged masks"),
    ("GraSP", 0.95): ("rearranged masks",),
    ("LT", 0.95): ("corrupted labels", "rearranged masks"),
    ("learning-rate rewinding", 0.95): ("corrupted labels", "rearranged masks"),
    ("random, smart ratio", 0.95): (),
    (HYBRID, 0.95): (),
}


def _case(name, share):
    return dataclasses.replace(networks.CASES[name], share=share)


CASES = {
    "mnist_lenet_300_100": Plan(_case("mnist_lenet_300_100", 1.0), _DENSE_ONLY),
    "fashion_mnist_lenet_300_100": Plan(_case("fashion_mnist_lenet_300_100", 1.0), _DENSE_ONLY),
    "mnist_lenet5": Plan(_case("mnist_lenet5", 0.2), _CONVOLUTIONAL),
    "fashion_mnist_lenet5": Plan(_case("fashion_mnist_lenet5", 0.2), _CONVOLUTIONAL),
    "cifar10_resnet20": Plan(_case("cifar10_resnet20", 0.4), _CIFAR, residual=True),
}


def wanted(case, seed):
    plan = CASES[case]
    same = {"seed": seed, **networks.setting(plan.case)}
    return [
        {"case": case, "ticket": ticket, "sparsity": sparsity, **same}
        for ticket, sparsity in plan.tickets
    ]


def seconds(run):
    case = CASES[run["case"]].case
    checks = CASES[run["case"]].tickets[run["ticket"], run["sparsity"]]
    num_trainings = 1 + len(checks)
    if run["ticket"] == "LT":  # those of the corrupted data; later rows know the result
        num_trainings += sum("labels" in check or check == "half data" for check in checks)
    return num_trainings * case.epochs * case.seconds / 2


def run(run):
    plan = CASES[run["case"]]
    case, seed = plan.case, run["seed"]
    data = networks.data_of(case)
    pair = data.x_train, data.y_train
    checks = plan.tickets[run["ticket"], run["sparsity"]]

    def build(seed):
        return networks.build(case, seed, 0.0)

    def prune(model, pair):
        return _find(plan, run, model, pair)

    def train(model, asked):
        is_random = asked.name == "random ticket"
        is_partial = run["ticket"] in (*PARTIALLY_TRAINED, HYBRID) and not is_random
        return _train(case, model, seed, _rewind_epoch(case) if is_partial else 0)

    if run["ticket"] == "dense":
        found = {"ticket": [_pretrained(case, seed, pair)["accuracy"]]}
    elif not checks:
        model = build(seed)
        found_masks, weights = prune(model, pair)
        model.set_weights(weights)
        rigl_tf.set_masks(model, found_masks)
        found = {"ticket": [train(model, lottery.Run("ticket"))]}
    else:
        found = lottery.sanity_check(
            build, prune, train, pair, data.num_classes, checks=checks, seeds=[seed]
        ).accuracies
    return {
        "accuracy": found["ticket"][0],
        **{check: found[check][0] if check in found else "" for check in CHECKS},
    }


def _find(plan, run, model, pair):
    """The masks and weights of a ticket. The model, at its initial weights, finds it on `pair`."""
    ticket, sparsity, seed = run["ticket"], run["sparsity"], run["seed"]
    start = model.get_weights()
    if ticket in RANDOM:
        distribution = _distribution(plan, RANDOM[ticket]) if RANDOM[ticket] else "erk"
        return pruning.random_masks(model, sparsity, distribution, seed), start
    if ticket in ("SNIP", "GraSP"):
        find = pruning.snip_masks if ticket == "SNIP" else pruning.grasp_masks
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return find(model, _sample(plan.case, pair, seed), sparsity, loss), start
    found = _pretrained(plan.case, seed, pair)  # maybe in this very model: see `networks.build`
    model.set_weights(found["trained"])
    distribution = _distribution(plan, "quadratic") if ticket == HYBRID else None
    found_masks = pruning.magnitude_masks(model, sparsity, distribution)
    if ticket == "LT":
        return found_masks, start
    return found_masks, found["rewound" if ticket == "weight rewinding" else "trained"]


def _distribution(plan, decay):
    """The smart ratio. Hidden Dense layers count as 1x1 convolutions, the classifier as linear.

    Otherwise each Dense layer of LeNet-5 would keep 30 %, together more than the whole network may
    keep.
    """

    def distribution(shapes, sparsity):
        *hidden, classifier = shapes
        shapes = {
            **{path: (1,) * (4 - len(shapes[path])) + tuple(shapes[path]) for path in hidden},
            classifier: shapes[classifier],
        }
        return distributions.smart_ratio(shapes, sparsity, plan.residual, decay=decay)

    return distribution


def _sample(case, pair, seed):
    size = min(_EXAMPLES_PER_CLASS * networks.data_of(case).num_classes, len(pair[0]))
    chosen = np.random.default_rng(seed).choice(len(pair[0]), size, replace=False)
    return tuple(array[chosen] for array in pair)


def _rewind_epoch(case):
    return max(1, round(_REWIND_SHARE * case.epochs)) if case.epochs > 1 else 0


def _train(case, model, seed, first_epoch):
    optimizer = networks.optimizer_of(case)
    optimizer.iterations.assign(first_epoch * networks.total_steps(case, 1))
    return networks.train(case, model, seed, optimizer, first_epoch=first_epoch)


_done = {}


def _pretrained(case, seed, pair):
    """Trains a dense network on `pair`, once in a process, because many tickets need it."""
    key = (case, case.epochs, seed, *(zlib.crc32(np.ascontiguousarray(array)) for array in pair))
    if key not in _done:
        _done[key] = _pretrain(case, seed, pair)
    return _done[key]


def _pretrain(case, seed, pair):
    model = networks.build(case, seed, 0.0)
    data = networks.data_of(case)._replace(x_train=pair[0], y_train=pair[1])
    share = len(pair[0]) / len(networks.data_of(case).x_train)
    rewound = [model.get_weights()]
    keep = functools.partial(_keep, model, rewound, _rewind_epoch(case) - 1)
    accuracy = networks.train(
        case,
        model,
        seed,
        # The cosine ends where the training ends, on half of the data too.
        networks.optimizer_of(case, epochs=share * case.epochs),
        data=data,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)],
    )
    return {"rewound": rewound[-1], "trained": model.get_weights(), "accuracy": accuracy}


def _keep(model, kept, wanted_epoch, epoch, logs=None):
    if epoch == wanted_epoch:
        kept.append(model.get_weights())
