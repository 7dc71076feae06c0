"""What Evci et al. claim of gradient flow and of tickets, asked of the rows of a case and seed."""

import statistics

import numpy as np

from scripts.protocols import gradient_flow as protocol
from scripts.protocols import pages

LARGER = 1.1  # a norm larger by this factor counts as larger, where noise would decide
NO_BARRIER = 2.0  # percentage points of test error
_INSIDE = (protocol.COEFFICIENTS > -1e-9) & (protocol.COEFFICIENTS < 1 + 1e-9)


def start_norm(row):
    """The gradient norm before the first step."""
    return pages.from_text(row["norms"])[0][1]


def mean_norm(row):
    """The mean gradient norm over the training, the first step left out."""
    later = [norm for _, norm in pages.from_text(row["norms"])[1:]]
    return statistics.mean(later) if later else start_norm(row)


def changes(row):
    """The relative change of the norm at each mask update."""
    return [after / before - 1 for _, before, after in pages.from_text(row["updates"])]


def barrier(row):
    """How far the test error rises on the line to the pruned network, in percentage points.

    Above the straight line between the errors of the ends. The mean of the ends, which
    `analysis.error_barrier` takes, is for ends that are equally good: of others it makes a barrier
    of half their difference where the error falls all the way.
    """
    inside = errors(row)[_INSIDE]
    return float(np.max(inside - np.linspace(inside[0], inside[-1], len(inside))))


def errors(row):
    return np.array(list(map(float, row["errors_to_pruned"].split())))


def _gain(row):
    """What the ensemble has over the mean of its networks, in percentage points."""
    return row["ensemble_accuracy"] - statistics.mean(map(float, str(row["accuracies"]).split()))


def claims(of_one):
    """Whether the paper's claims hold, `None` for what is not run.

    Args:
        of_one: `{(network, init): row}` of a case and seed.
    """
    dense = of_one["pruned", "dense"]
    static, aware = of_one["static", "dense"], of_one["static", "neuron"]
    rigl, ticket = of_one["rigl", "dense"], of_one["ticket", "dense"]
    scratch, rewound = of_one["scratch", "dense"], of_one.get(("rewound", "dense"))
    return {
        "Sparse networks have a poor gradient flow at initialisation: the norm is below the dense "
        "network's": start_norm(static) < start_norm(dense),
        "Sparsity-aware initialisation (per neuron) raises it": (
            start_norm(aware) > start_norm(static)
        ),
        "… and static training with it is more accurate": aware["accuracy"] > static["accuracy"],
        "RigL has a better gradient flow during training than static masks": (
            mean_norm(rigl) > LARGER * mean_norm(static)
        ),
        "A mask update of RigL raises the norm, on average": statistics.mean(changes(rigl)) > 0,
        "RigL is more accurate than static masks": rigl["accuracy"] > static["accuracy"],
        "A ticket does not improve gradient flow during training: its norms are not above those "
        "of its masks on new weights": mean_norm(ticket) <= LARGER * mean_norm(scratch),
        "A ticket is more accurate than its masks on new weights": (
            ticket["accuracy"] > scratch["accuracy"]
        ),
        "A ticket starts and ends nearer to the pruned solution (cosine)": all(
            ticket[f"{point}_cosine"] > scratch[f"{point}_cosine"] for point in ("start", "end")
        ),
        "A ticket ends in the basin of the pruned solution: no barrier": (
            barrier(ticket) < NO_BARRIER
        ),
        "… and so does one that is rewound to early weights": (
            rewound and barrier(rewound) < NO_BARRIER
        ),
        "… and its masks on new weights do not": barrier(scratch) >= NO_BARRIER,
        "A ticket re-learns the function of the pruned network: it disagrees with it less than "
        "scratch, and than pruned networks with each other": (
            ticket["pruned_disagreement"]
            < min(scratch["pruned_disagreement"], dense["disagreement"])
        ),
        "The cost is novelty: tickets disagree with each other less than scratch trainings do, and "
        "gain less by an ensemble": (
            ticket["disagreement"] < scratch["disagreement"] and _gain(ticket) < _gain(scratch)
        ),
    }
