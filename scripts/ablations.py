"""MNIST: what the settings of RigL do, three seeds each.

    python -m scripts.ablations --data_dir=DATA

trains LeNet-300-100 at 98 % sparsity (ERK) by RigL with other update frequencies and drop
fractions, other schedules of the drop fraction, other starting values of grown connections, and
from lottery tickets: 78 runs of 10 epochs, about 20 s each on two cores. For the distribution of
sparsity it trains LeNet-5 at 95 %: 27 runs of 5 epochs, 30 s each. Finished runs are rows of
`results/ablations.csv` and are never repeated; the page and the plot beside it are made anew from
all rows.
"""

import collections
import math

import keras
from absl import app, flags

import models
import rigl_tf
from scripts import ablations_page, experiments, methods

_BATCH_SIZE = 100
_NAME = "ablations"
_KEY = ("study", "setting", "seed", "epochs", "examples")
_SPARSITY = 0.98
_END_FRACTION = 0.75

FLAGS = flags.FLAGS


def _define_flags():
    experiments.define_flags(epochs=10)
    flags.DEFINE_list("studies", list(STUDIES), "Studies to run.")


def _grid():
    for frequency in ablations_page.FREQUENCIES:
        for fraction in ablations_page.DROP_FRACTIONS:
            arguments = {"update_frequency": frequency, "drop_fraction": fraction}
            yield f"every {frequency}, {fraction:g}", arguments


def _drop_schedules(end_step, learning_rate):
    schedules = rigl_tf.schedules
    return {
        "cosine": 0.3,
        "constant": schedules.ConstantDropFraction(0.3),
        "inverse power 1": schedules.PowerDropFraction(0.3, 0, end_step, power=1),
        "inverse power 3": schedules.PowerDropFraction(0.3, 0, end_step, power=3),
        "learning rate": schedules.LearningRateDropFraction(0.3, learning_rate),
    }


_GROW_INITS = {
    "zeros": {"grow_init": "zeros"},
    "initial distribution": {"grow_init": "initial_distribution"},
    "random normal": {"grow_init": "random_normal"},
    "random uniform": {"grow_init": "random_uniform"},
    # A step of gradient descent with the first learning rate.
    "gradient, times -0.1": {"grow_init": "gradient", "grow_scale": -0.1},
    "sign of the gradient, times -0.01": {"grow_init": "gradient_sign", "grow_scale": -0.01},
}
_LOTTERY = {
    "lottery masks and weights, static": "static",
    "lottery masks and weights, RigL": "rigl",
    "random masks, static": "static",
    "random masks, RigL": "rigl",
    "random masks, RigL, twice as long": "rigl",
}
# Study: what it is about, its settings, epochs as a share of --epochs.
STUDIES = {
    "update": ("update frequency and drop fraction", [name for name, _ in _grid()], 1.0),
    "schedule": (
        "schedule of the drop fraction",
        ["cosine", "constant", "inverse power 1", "inverse power 3", "learning rate"],
        1.0,
    ),
    "grow_init": ("where grown connections start", list(_GROW_INITS), 1.0),
    "lottery": ("starting from a lottery ticket", list(_LOTTERY), 1.0),
    "distribution": (
        "distribution of the sparsity (LeNet-5, 95 %, learning rate 0.05)",
        [
            f"{method}, {name}"
            for method in ablations_page.DISTRIBUTED
            for name in ablations_page.DISTRIBUTIONS
        ],
        0.5,
    ),
}


def _train(data, model, method, run, epochs, learning_rate=0.1, jit_compile=True, **arguments):
    """Trains and returns the test accuracy; for `arguments` see `methods.wrap_optimizer`."""
    total_steps = epochs * experiments.steps_per_epoch(data, _BATCH_SIZE)
    learning_rate = keras.optimizers.schedules.CosineDecay(learning_rate, total_steps)
    if arguments.get("drop_fraction") in STUDIES["schedule"][1]:
        end_step = math.ceil(_END_FRACTION * total_steps)
        schedules = _drop_schedules(end_step, learning_rate)
        arguments["drop_fraction"] = schedules[arguments["drop_fraction"]]
    inner = keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    optimizer = methods.wrap_optimizer(
        method,
        inner,
        total_steps,
        _SPARSITY,
        end_fraction=_END_FRACTION,
        seed=run["seed"],
        **arguments,
    )
    experiments.fit(
        model, optimizer, data, _BATCH_SIZE, epochs, run["seed"], jit_compile=jit_compile
    )
    return experiments.accuracy(model, data.x_test, data.y_test)


def _lenet(data, method, run):
    return methods.build_model(
        method,
        "lenet_300_100",
        _SPARSITY,
        "erk",
        run["seed"],
        data,
        input_shape=(28, 28, 1),
        l2=5e-5,
    )


def _plain(data, run, **arguments):
    return _train(data, _lenet(data, "rigl", run), "rigl", run, run["epochs"], **arguments)


def _from_ticket(data, run):
    """A ticket: the connections that pruning keeps, at the weights that they had at the start."""
    if "lottery" not in run["setting"]:
        longer = 2 if "twice" in run["setting"] else 1
        method = _LOTTERY[run["setting"]]
        return _train(data, _lenet(data, method, run), method, run, longer * run["epochs"])
    model = _lenet(data, "pruning", run)
    start = model.get_weights()
    _train(data, model, "pruning", run, run["epochs"])
    masks = rigl_tf.get_masks(model)
    keras.backend.clear_session()
    model = _lenet(data, "pruning", run)
    model.set_weights(start)
    rigl_tf.set_masks(model, masks)
    return _train(data, model, _LOTTERY[run["setting"]], run, run["epochs"])


def _with_distribution(data, run):
    method, distribution = run["setting"].split(", ")
    dense = models.lenet5(input_shape=data.x_train.shape[1:], l2=5e-5)
    model = rigl_tf.sparsify(dense, 0.95, distribution, seed=run["seed"])
    # At 0.1, as the others have it, one of nine RigL trainings does not leave the start.
    return _train(data, model, method, run, run["epochs"], learning_rate=0.05, jit_compile=False)


def _run(data, run):
    keras.utils.set_random_seed(run["seed"])
    keras.backend.clear_session()
    study, setting = run["study"], run["setting"]
    if study == "update":
        found = _plain(data, run, **dict(_grid())[setting])
    elif study == "schedule":
        found = _plain(data, run, drop_fraction=setting)
    elif study == "grow_init":
        found = _plain(data, run, **_GROW_INITS[setting])
    elif study == "lottery":
        found = _from_ticket(data, run)
    else:
        found = _with_distribution(data, run)
    return {"accuracy": found}


def main(_):
    data = experiments.load("mnist")
    rows = experiments.store(_NAME, _KEY)
    wanted = [
        {
            "study": study,
            "setting": setting,
            "seed": int(seed),
            "epochs": max(1, round(STUDIES[study][2] * FLAGS.epochs)),
            "examples": len(data.x_train),
        }
        for study in FLAGS.studies
        for seed in FLAGS.seeds
        for setting in STUDIES[study][1]
    ]
    experiments.run_all(
        rows, wanted, lambda run: _run(data, run), lambda run: 5 + 2 * run["epochs"]
    )
    missing = collections.Counter(run["study"] for run in wanted if run not in rows)
    finished = [row for row in rows.rows if row["examples"] == len(data.x_train)]
    ablations_page.write(_NAME, finished, STUDIES, missing)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
