"""Measures gradient flow, and whether lottery tickets learn the pruned solution again.

    python -m scripts.lottery --protocol=gradient_flow --data_dir=DATA

LeNet-300-100 is trained at 98 % and LeNet5 at 95 % sparsity (ERK): with static masks and with RigL,
from three initialisations; as pruned networks; as the ticket of the first pruned network, from its
initial weights (for ResNet-20 also from early weights); and with the ticket's masks on new weights.
Expect that RigL raises the gradient norm, and that a ticket ends where the pruned network ended.

There are 11 rows for each case and seed. They take about 7 minutes on one core for either network.
The exact Hessians of LeNet5, only for the first seed, take another half an hour. ResNet-20, with
one seed, at 90 % and with fewer measurements, takes two hours.
"""

import dataclasses
import functools

import keras
import numpy as np

import rigl_tf
from rigl_tf import analysis
from rigl_tf.initializers import SparseVarianceScaling, initialize
from scripts.common import methods, tables
from scripts.lottery import networks, spectra

NAME = "lottery_gradient_flow"
KEY = ("case", "seed", "network", "init", "epochs", "examples")
CASES = {
    **networks.SMALL_CASES,
    "cifar10_resnet20": dataclasses.replace(networks.CASES["cifar10_resnet20"], share=0.3),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a network.

    Attributes:
        sparsity: Float.
        inits: The connections that He's initialisation counts: see `SparseVarianceScaling`.
        num_runs: Integer, the number of pruned networks, of tickets, and of trainings from He's
            initial weights.
        num_held_out: Integer, the number of test examples for the gradients.
        num_in_hessian: Integer, the number of training examples for a Hessian.
        lanczos_steps: Integer, or `None` for the exact spectrum.
        rewind: Float. After this share of the training, the weights of the pruned network are kept
            for a rewound ticket; with 0 there is none. ResNet-20 needs it, because it is not stable
            at the start.
    """

    sparsity: float
    inits: tuple = ("dense", "layer", "neuron")
    num_runs: int = 3
    num_held_out: int = 1000
    num_in_hessian: int = 500
    lanczos_steps: int | None = 80
    rewind: float = 0.0


PLANS = {
    "lenet_300_100": Plan(0.98),
    "lenet5": Plan(0.95, lanczos_steps=None),  # 2,400 rows; LeNet-300-100 has 5,700
    "resnet20": Plan(
        0.9,
        ("dense", "neuron"),
        num_runs=2,
        num_held_out=200,
        num_in_hessian=100,
        lanczos_steps=30,
        rewind=0.1,
    ),
}
COEFFICIENTS = np.linspace(-0.2, 1.2, 15)
SPECTRUM_SEED = 0
SPECTRA = (("static", "dense"), ("static", "neuron"), ("rigl", "dense"), ("ticket", "dense"))
TICKETS = {"ticket": "start", "rewound": "rewound"}  # with which weights of the pruned network
UPDATE_SEEN = 0.35  # of the training: the mask update before and after which it is computed
POINTS = ("start", "before_update", "after_update", "end")
_NUM_INTERVALS = 60  # of the training: mask updates and measurements are so far apart
_OTHER_START = 1000  # added to the seed, for other weights


def plan_of(case):
    """The `Plan` of a `networks.Case`."""
    return PLANS[case.network]


def wanted(case, seed):
    plan = plan_of(CASES[case])
    pairs = [(network, init) for network in ("static", "rigl") for init in plan.inits]
    pairs += [("pruned", "dense"), ("ticket", "dense")]
    pairs += [("rewound", "dense")] * bool(plan.rewind)
    pairs += [("scratch", init) for init in plan.inits]
    return [
        {"case": case, "seed": seed, "network": network, "init": init}
        | networks.setting(CASES[case])
        for network, init in pairs
    ]


def seconds(run):
    case, network = CASES[run["case"]], run["network"]
    spectra = 150 * len(_points(run))
    num_runs = _num_runs(case, network, run["init"])
    return 10 + spectra + 1.5 * num_runs * case.seconds * case.epochs


def _num_runs(case, network, init):
    is_one = network in ("static", "rigl") or init != "dense"
    return 1 if is_one else plan_of(case).num_runs


def _points(run):
    """The steps of the training at which the Hessian is computed."""
    if run["seed"] != SPECTRUM_SEED or (run["network"], run["init"]) not in SPECTRA:
        return ()
    return POINTS if run["network"] == "rigl" else ("start", "end")


@dataclasses.dataclass
class Trained:
    """A trained network as arrays, because the model itself is not kept."""

    accuracy: float
    states: dict  # the weights at `POINTS`, as far as it came by, and those to rewind to
    logits: np.ndarray
    norms: list  # (step, gradient norm)
    updates: list  # (step, norm before, norm after)


def _he(init):
    return SparseVarianceScaling(2.0, "fan_in", "normal", init)


def _build(case, seed, sparsity, init="dense"):
    return networks.build(case, seed, sparsity, initializer=_he(init))


def _train(case, model, method, seed, watch=True, start=0):
    """Trains from a step to the end. If masks change, the training must begin at step 0."""
    total, plan = networks.total_steps(case), plan_of(case)
    frequency = max(1, total // _NUM_INTERVALS)
    data = networks.data_of(case)
    optimizer = networks.optimizer_of(case)
    optimizer.iterations.assign(start)
    optimizer = methods.wrap_optimizer(
        method, optimizer, total, plan.sparsity, update_frequency=frequency, seed=seed
    )
    held_out = data.x_test[: plan.num_held_out], data.y_test[: plan.num_held_out]
    flow = analysis.GradientFlow(held_out, every=frequency)
    update = frequency * max(1, int(UPDATE_SEEN * (total // frequency)))
    keep = _Keep(before_update=update, after_update=update + 1, rewound=_rewind_step(case))
    watching = {"callbacks": [flow, keep], "steps_per_execution": 1} if watch else {}
    first = model.get_weights()
    accuracy = networks.train(case, model, seed, optimizer, steps=(start, total), **watching)
    return Trained(
        accuracy,
        {"start": first, **keep.states, "end": model.get_weights()},
        model.predict(data.x_test, batch_size=1000, verbose=0),
        # The sparse optimizer counts its own steps.
        [(start + step, norms.total) for step, norms in flow.history],
        [(step, before.total, after.total) for step, before, after in flow.updates],
    )


def _rewind_step(case):
    share = plan_of(case).rewind
    return max(1, round(share * networks.total_steps(case))) if share else None


class _Keep(keras.callbacks.Callback):
    """A callback that keeps the weights after given numbers of steps, under given names."""

    def __init__(self, **steps):
        super().__init__()
        self._steps = steps
        self._num_done = 0
        self.states = {}

    def on_train_batch_end(self, batch, logs=None):
        self._num_done += 1
        for name, step in self._steps.items():
            if step == self._num_done:
                self.states[name] = self.model.get_weights()


@functools.lru_cache(maxsize=1)
def _pruned(name, seed, epochs, examples):
    """The pruned network from which the ticket comes."""
    model = _build(CASES[name], seed, 0.0)
    return _train(CASES[name], model, "pruning", seed), rigl_tf.get_masks(model)


def run(run):
    case, seed, network = CASES[run["case"]], run["seed"], run["network"]
    if network in ("static", "rigl"):
        model = _build(case, seed, plan_of(case).sparsity, run["init"])
        return _row(case, run, model, [_train(case, model, network, seed)])
    pruned, masks = _pruned(*(run[key] for key in ("case", "seed", "epochs", "examples")))
    if network == "pruned":
        trainings = [pruned]
        for number in range(1, plan_of(case).num_runs):
            other = seed + _OTHER_START * number
            model = _build(case, other, 0.0)
            trainings.append(_train(case, model, "pruning", other, watch=False))
        return _row(case, run, None, trainings)
    trainings = []
    start = _rewind_step(case) if network == "rewound" else 0
    for number in range(_num_runs(case, network, run["init"])):
        model = _with_masks(case, seed, run, pruned, masks)
        order = seed + _OTHER_START * number
        trainings.append(_train(case, model, "static", order, watch=not number, start=start))
    return _row(case, run, model, trainings, pruned)


def _with_masks(case, seed, run, pruned, masks):
    """Trains with the masks of the pruned network, on its earlier weights or on new ones."""
    if run["network"] in TICKETS:
        model = _build(case, seed, 0.0)
        model.set_weights(pruned.states[TICKETS[run["network"]]])
        rigl_tf.set_masks(model, masks)
        return model
    model = _build(case, seed + _OTHER_START, 0.0)
    rigl_tf.set_masks(model, masks)
    initialize(model, _he(run["init"]), seed + _OTHER_START)
    return model


def _row(case, run, model, trainings, pruned=None):
    """The columns for trainings from the same masks and weights; `model` is the last of them."""
    first = trainings[0]
    return {
        "accuracy": first.accuracy,
        "accuracies": " ".join(f"{each.accuracy:g}" for each in trainings),
        **_similarity(case, trainings),
        **_to_pruned(case, model, first, pruned),
        "norms": tables.to_text(first.norms),
        "updates": tables.to_text(first.updates),
        **{f"spectrum_{point}": "" for point in POINTS},
        **{
            f"spectrum_{point}": spectrum(case, model, first.states[point])
            for point in _points(run)
        },
    }


def _similarity(case, trainings):
    """How different the predictions of networks are, and how much better an ensemble is."""
    logits = [each.logits for each in trainings]
    if len(logits) == 1:
        return dict.fromkeys(("disagreement", "ensemble_accuracy"), "")
    pairs = [(a, b) for number, a in enumerate(logits) for b in logits[:number]]
    disagreement = np.mean([analysis.disagreement(*pair) for pair in pairs])
    accuracy = analysis.ensemble_accuracy(logits, networks.data_of(case).y_test)
    return {"disagreement": float(disagreement), "ensemble_accuracy": round(100 * accuracy, 3)}


def _to_pruned(case, model, trained, pruned):
    """How far a network is from the pruned one: predictions, weights, error on the line."""
    names = ("start_cosine", "end_cosine", "start_l2", "end_l2")
    if pruned is None:
        return dict.fromkeys(("pruned_disagreement", *names, "errors_to_pruned"), "")
    end = pruned.states["end"]
    distances = [
        analysis.solution_distance(model, trained.states[point], end) for point in ("start", "end")
    ]
    values = [each.cosine for each in distances] + [each.l2 for each in distances]
    errors = analysis.interpolate(
        model,
        trained.states["end"],
        end,
        functools.partial(networks.error_between, case),
        COEFFICIENTS,
    )
    return {
        "pruned_disagreement": analysis.disagreement(trained.logits, pruned.logits),
        **dict(zip(names, values, strict=True)),
        "errors_to_pruned": " ".join(f"{error:.5g}" for error in errors),
    }


def spectrum(case, model, weights):
    """The spectrum of the Hessian at some weights, see `spectra.measure`."""
    model.set_weights(weights)  # the masks are among them
    data, plan = networks.data_of(case), plan_of(case)
    examples = data.x_train[: plan.num_in_hessian], data.y_train[: plan.num_in_hessian]
    return spectra.measure(model, examples, plan.lanczos_steps)
