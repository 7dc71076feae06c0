"""Greedy forward selection: measures how many units of a trained layer are enough.

    python -m scripts.lottery --protocol=greedy --data_dir=DATA

Each network is trained densely. Then 1/30, 1/10 and 1/3 of the units of its first Dense layer are
selected (for ResNet-20: of the filters of a convolution in its last block). This is done by local
and global imitation, with and without repetition, at random, and by the largest weights. The small
dense models that result are fine-tuned.

There are 18 rows for each case and seed, which take about 3 minutes on one core. ResNet-20, with
one seed, takes an hour. Expect a discrepancy that is halved every 30 units, and is far smaller than
that of random units.
"""

import dataclasses
import functools
from typing import NamedTuple

import keras
import numpy as np

from rigl_tf import lottery
from scripts.common import tables
from scripts.lottery import networks

NAME = "lottery_greedy"
KEY = ("case", "seed", "method", "num_units", "epochs", "examples")
CASES = {
    **networks.SMALL_CASES,
    "cifar10_resnet20": dataclasses.replace(networks.CASES["cifar10_resnet20"], share=0.4),
}


class Place(NamedTuple):
    """The layer in which units are selected, and layers around it, as names.

    Attributes:
        layer: The layer with the units.
        features: The layer whose output is the input of the next layer.
        following: The next layer with a kernel.
        beside: Layers whose outputs go around `layer` to later layers.
    """

    layer: str
    features: str
    following: str
    beside: tuple = ()


_IN_LENET = Place("dense_1", "dense_1", "dense_2")
_BLOCK = "stage3_block3"
PLACES = {
    "lenet_300_100": _IN_LENET,
    "lenet5": _IN_LENET,
    "resnet20": Place(
        f"{_BLOCK}_conv1", f"{_BLOCK}_conv1_relu", f"{_BLOCK}_conv2", ("stage3_block2_relu",)
    ),
}
GREEDY = {
    "local": {"imitate": "local", "repetition": True},
    "local, no repetition": {"imitate": "local", "repetition": False},
    "global": {"imitate": "global", "repetition": True},
    "global, no repetition": {"imitate": "global", "repetition": False},
}
RANDOM, LARGEST = BASELINES = ("random", "largest weights")
METHODS = (*GREEDY, *BASELINES)
SIZES = {"lenet_300_100": (10, 30, 100), "lenet5": (4, 12, 40), "resnet20": (2, 6, 20)}
OBJECTIVES = ("local", "global")
NUM_EXAMPLES = 1000
FINE_TUNING = 0.2  # of the epochs, at a tenth of the learning rate
_MAX_GLOBAL_STEPS = 300


def wanted(case, seed):
    """The runs. For each method, the largest size is first, because its row has the whole curve."""
    return [
        {"case": case, "seed": seed, "method": method, "num_units": size}
        | networks.setting(CASES[case])
        for method in METHODS
        for size in reversed(SIZES[CASES[case].network])
    ]


def seconds(run):
    """The approximate time of a run. The dense training is done once for a case and seed."""
    case, num_rows = CASES[run["case"]], len(METHODS) * 3
    selection = 0.3 * run["num_units"] if run["method"].startswith("global") else 3
    epochs = case.epochs / num_rows + _fine_tuning_epochs(case)
    return 4 + selection + case.seconds * epochs


def _fine_tuning_epochs(case):
    return max(1, round(FINE_TUNING * case.epochs))


@functools.lru_cache(maxsize=1)
def _dense(name, seed, epochs, examples):
    """The weights and the accuracy of the network in which units are selected."""
    case = CASES[name]
    model = networks.build(case, seed)
    accuracy = networks.train(case, model, seed)
    return model.get_weights(), accuracy


def run(run):
    case, data = CASES[run["case"]], networks.data_of(CASES[run["case"]])
    weights, dense_accuracy = _dense(*(run[key] for key in ("case", "seed", "epochs", "examples")))
    model = networks.build(case, run["seed"])
    model.set_weights(weights)
    place = PLACES[case.network]
    measure = Discrepancy(model, place, data.x_train[:NUM_EXAMPLES])
    selection, curves = _select(model, place, measure, run)
    small = lottery.keep_units(model, {place.layer: selection})
    logits = small.predict(data.x_test, batch_size=1000, verbose=0)
    epochs = _fine_tuning_epochs(case)
    optimizer = networks.optimizer_of(case, 0.1 * case.learning_rate, epochs)
    fine_tuned = networks.train(case, small, run["seed"], optimizer, epochs=epochs)
    shares = np.zeros(measure.num_units)
    shares[selection.units] = selection.weights
    is_largest = run["num_units"] == max(SIZES[case.network])
    return {
        "selected": len(selection.units),
        "dense_accuracy": dense_accuracy,
        "accuracy": round(100 * float(np.mean(logits.argmax(axis=1) == data.y_test)), 3),
        "fine_tuned_accuracy": fine_tuned,
        **{f"{name}_discrepancy": value for name, value in measure(shares).items()},
        **{
            f"{name}_curve": tables.to_text(curves.get(name, [])) if is_largest else ""
            for name in OBJECTIVES
        },
    }


class Discrepancy:
    """Measures how much the outputs change if weighted units stand for all units of the layer.

    Called with the share of each unit, it returns `{"local": ..., "global": ...}`. "local" is for
    the outputs of the next layer before bias and activation, "global" for the outputs of the
    network. Each number is the squared norm of the change divided by the squared norm of the
    outputs, both as means over the examples.
    """

    def __init__(self, model, place, inputs):
        outputs = [model.get_layer(name).output for name in (place.features, *place.beside)]
        parts = keras.Model(model.input, {"parts": outputs}).predict(inputs, 1000, verbose=0)
        self._features, *self._beside = parts["parts"]
        self._kernel = model.get_layer(place.following).get_weights()[0].astype("float64")
        self._tail = keras.Model(outputs, model.output)
        self.inputs = inputs
        self.num_units = self._features.shape[-1]
        # `select_units` has these sums of squares as means over the examples.
        self.norms = {
            name: np.sum(values**2) / len(inputs)
            for name, values in self._outputs(np.ones(self.num_units)).items()
        }

    def __call__(self, shares):
        whole = self._outputs(np.ones(self.num_units))
        part = self._outputs(self.num_units * shares)
        return {
            name: float(np.sum((part[name] - whole[name]) ** 2) / np.sum(whole[name] ** 2))
            for name in OBJECTIVES
        }

    def _outputs(self, factors):
        features = (self._features * factors).astype("float32")
        exact = features.astype("float64")
        if features.ndim == 2:
            following = exact @ self._kernel
        else:
            following = keras.ops.conv(exact, self._kernel, padding="same")
        outputs = self._tail([features, *self._beside])
        return {"local": np.asarray(following), "global": np.asarray(outputs, "float64")}


def _select(model, place, measure, run):
    """The selection, and `{objective: [(number of units, relative discrepancy)]}`."""
    method, num_units = run["method"], run["num_units"]
    if method in BASELINES:
        return _baseline(model, place, measure, method, num_units, run["seed"])
    how = GREEDY[method]
    limit = {"max_steps": _MAX_GLOBAL_STEPS} if how["imitate"] == "global" else {}
    selection = lottery.select_units(model, place.layer, measure.inputs, num_units, **how, **limit)
    # The last value at each number of units.
    curve = dict(zip(selection.num_units, selection.discrepancies, strict=True))
    norm = measure.norms[how["imitate"]]
    return selection, {how["imitate"]: [(n, value / norm) for n, value in sorted(curve.items())]}


def _baseline(model, place, measure, method, num_units, seed):
    """A selection of random units, as a mean of all; or of the units with the largest weights."""
    kernel = model.get_layer(place.layer).get_weights()[0]
    order = np.random.default_rng(seed).permutation(measure.num_units)
    if method == LARGEST:
        sizes = np.abs(kernel).sum(axis=tuple(range(kernel.ndim - 1)))
        order = np.argsort(-sizes, kind="stable")
    curves = {name: [] for name in OBJECTIVES}
    for count in range(1, num_units + 1):
        share = 1 / count if method == RANDOM else 1 / measure.num_units
        shares = np.zeros(measure.num_units)
        shares[order[:count]] = share
        for name, value in measure(shares).items():
            curves[name].append((count, value))
    units = np.sort(order[:num_units])
    return lottery.Selection(units, shares[units], [], [], len(shares)), curves
