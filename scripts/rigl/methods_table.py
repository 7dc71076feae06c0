"""Compares the methods: accuracy over sparsity and over the cost of training, on small data.

    python -m scripts.rigl.methods_table --data_dir=DATA
    python -m scripts.rigl.methods_table --data_dir=DATA --dataset=fashion_mnist
    python -m scripts.rigl.methods_table --data_dir=DATA --dataset=cifar10
    python -m scripts.rigl.methods_table --data_dir=DATA --dataset=cifar10_small

On MNIST and Fashion-MNIST it trains LeNet-300-100 by all methods at 80, 90, 95, 98 and 99 %, with
five seeds, 10 epochs; those that the papers train longer also for two and five times as many, all
schedules stretched: 610 runs of 8 to 75 s on one core. With one core each
(`TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1`), two processes that do a part (`--part=0/2`)
get more done than one with both. `scripts.rigl.small_dense` has to be run before. The claims of
`scripts.rigl.methods_claims` were fixed before the runs.

On CIFAR-10 it trains ResNet-20 at 80 and 90 %: 13 runs of 6 epochs with one seed, about nine
minutes each on two cores. The papers train 160 epochs or more; what can be seen in six is the order
of the methods. Expect pruning and RigL above SET above static, and small-dense last.

`cifar10_small` is CIFAR-10 at 16 x 16 pixels: WRN-10-1 at 90 %, 30 epochs, uniform and ERK, five
seeds; the dense network, pruning and the longer trainings have three.

Finished runs are rows of a CSV file in `results/` and are never repeated. The Markdown table and
the plots beside it are made anew from all rows.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import keras
from absl import app, flags

import models
import rigl_tf
from scripts.common import classifiers, costs, datasets, entry, experiments, methods
from scripts.rigl import lenet, methods_claims, methods_page, small_dense

_KEY = ("method", "sparsity", "seed", "epochs", "examples")
_END_FRACTION = 0.75

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained on a data set, and how.

    Attributes:
        heading: Of the page.
        title: Of the plots.
        how: The first paragraph of the page, with `{seeds}` and `{epochs}`.
        network: Name of a builder of `models`.
        network_arguments: Of this builder.
        data: Name of the data set.
        pooled: Integer, images are made smaller by this number.
        methods: `{name in the table: (method, distribution)}`.
        sparsities, seeds, epochs: Those of the published table.
        fewer_seeds: `{(name in the table, multiplier): seeds}`, where not all.
        batch_size: Integer.
        learning_rate: Function of the number of steps: the schedule of SGD.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss.
        seconds: Function of the epochs: what a run takes.
        update_frequency: Integer, in steps.
        multipliers: `{name in the table: how many times --epochs it is trained}`, where not once.
        csr: Methods that train with `execution="csr"`: same masks, faster.
        searches_widths: Whether small-dense has the widths that `scripts.rigl.small_dense` found
            best, as its rows in the output directory say; else it is narrower by one factor.
        fit: Further arguments of `classifiers.fit`.
        timed: A sentence on the machine that the steps were timed on.
        keeps_loss: Whether a row has the last training loss.
        keeps_units: Whether a row has the units that are alive.
        claims: Of `scripts.rigl.methods_claims`.
    """

    heading: str
    title: str
    how: str
    network: str
    data: str
    methods: dict
    sparsities: tuple
    seeds: tuple
    epochs: int
    batch_size: int
    learning_rate: Callable
    l2: float
    seconds: Callable
    update_frequency: int = 100
    multipliers: dict = dataclasses.field(default_factory=dict)
    csr: tuple = ()
    fit: dict = dataclasses.field(default_factory=dict)
    searches_widths: bool = False
    timed: str = ""
    keeps_loss: bool = False
    keeps_units: bool = False
    network_arguments: dict = dataclasses.field(default_factory=dict)
    pooled: int = 1
    fewer_seeds: dict = dataclasses.field(default_factory=dict)
    claims: tuple = ()


def _cosine_after_warm_up(total_steps):
    return keras.optimizers.schedules.CosineDecay(
        0.02, total_steps, warmup_target=0.2, warmup_steps=total_steps // 10
    )


def _in_steps(total_steps):
    drops = [round(share * total_steps) for share in (0.4, 0.7, 0.9)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        drops, [0.1 / 5**drop for drop in range(4)]
    )


_PRUNING = "Pruning goes from dense to sparse between 30 % and 75 % of training."
_SMALL_DENSE = "Small-dense has as many kernel weights as the sparse networks active ones"
_MNIST = Setting(
    heading="MNIST, LeNet-300-100: accuracy over sparsity",
    title="MNIST, LeNet-300-100",
    how="mean ± standard deviation over seeds {seeds}. ERK, batch 100, {epochs} epochs, SGD 0.1, "
    "Nesterov momentum 0.9, cosine decay, L2 1e-4, masks "
    "updated every 100 steps until 75 % of training, drop fraction 0.3 (cosine). "
    f"{_PRUNING} SNIP and GraSP score the first 1000 training examples, kernel by kernel. "
    f"{_SMALL_DENSE}, its two widths are those that [small_dense.md](small_dense.md) found best. "
    "`2x` trains twice as long, all schedules stretched.",
    network="lenet_300_100",
    data="mnist",
    methods={name: (name, "erk") for name in methods.METHODS if name != "static_reinit"},
    sparsities=(0.8, 0.9, 0.95, 0.98, 0.99),
    seeds=(0, 1, 2, 3, 4),
    epochs=10,
    batch_size=lenet.BATCH_SIZE,
    learning_rate=lenet.learning_rate,
    l2=lenet.L2,
    seconds=lambda epochs: 6 + 1.2 * epochs,
    multipliers={
        "dense": (1, 5),
        "small_dense": (1, 5),
        **dict.fromkeys(("static", "set", "rigl", "snfs", "pruning", "dnw"), (1, 2, 5)),
    },
    csr=("static", "snip", "grasp", "set", "rigl_inverted", "rigl"),
    searches_widths=True,
    timed="One core for each run, two runs at a time, on machines of different speed, with other "
    "work beside them and with pauses: the time of a single seed can be several times too long.",
    keeps_units=True,
    claims=methods_claims.ON_LENET,
)
SETTINGS = {
    "mnist": _MNIST,
    "fashion_mnist": dataclasses.replace(
        _MNIST,
        heading=f"Fashion-{_MNIST.heading}",
        title=f"Fashion-{_MNIST.title}",
        data="fashion_mnist",
    ),
    "cifar10": Setting(
        heading="CIFAR-10, ResNet-20: accuracy of all methods, a short schedule",
        title="CIFAR-10, ResNet-20, a short schedule",
        how="seeds {seeds}. {epochs} epochs (the papers train 160 and more), batch 128, SGD, "
        "Nesterov momentum 0.9, learning rate 0.2 after a warm-up over a tenth of training, then a "
        "cosine to 0, L2 2e-4, shifts and flips. Masks are updated every 50 steps until 75 % of "
        f"training, drop fraction 0.3 (cosine). {_PRUNING} Each layer has the same sparsity, the "
        f"first is dense; or ERK. {_SMALL_DENSE}.",
        network="resnet20",
        data="cifar10",
        methods={
            **{name: (name, "uniform") for name in ("dense", "static", "set", "rigl", "pruning")},
            "rigl (erk)": ("rigl", "erk"),
            "small_dense": ("small_dense", "uniform"),
        },
        sparsities=(0.9, 0.8),
        seeds=(0,),
        epochs=6,
        batch_size=128,
        learning_rate=_cosine_after_warm_up,
        l2=1e-4,
        seconds=lambda epochs: 20 + 85 * epochs,
        update_frequency=50,
        fit={"augment": classifiers.shift_and_flip, "jit_compile": False},
        keeps_loss=True,
    ),
    "cifar10_small": Setting(
        heading="CIFAR-10 at 16 x 16 pixels, WRN-10-1 at 90 %",
        title="CIFAR-10 at 16 x 16 pixels, WRN-10-1",
        how="mean ± standard deviation over seeds {seeds}. {epochs} epochs, batch 128, SGD, "
        "Nesterov momentum 0.9, learning rate 0.1, a fifth of it after 40, 70 and 90 % of "
        "training, L2 5e-4, shifts by two pixels and flips. "
        "Masks are updated every 100 steps until 75 % of training, drop fraction 0.3 (cosine). "
        f"{_PRUNING} Each layer has the same sparsity, the first is dense; or ERK.",
        network="wide_resnet",
        network_arguments={"depth": 10, "widen": 1},
        data="cifar10",
        pooled=2,
        methods={
            "dense": ("dense", "uniform"),
            **{name: (name, "uniform") for name in ("static", "set", "rigl", "pruning")},
            **{f"{name} (erk)": (name, "erk") for name in ("static", "set", "rigl")},
        },
        sparsities=(0.9,),
        seeds=(0, 1, 2, 3, 4),
        fewer_seeds=dict.fromkeys(
            (("dense", 1), ("pruning", 1), ("set (erk)", 5), ("rigl (erk)", 5)), (0, 1, 2)
        ),
        multipliers={"set (erk)": (1, 5), "rigl (erk)": (1, 5)},
        epochs=30,
        batch_size=128,
        learning_rate=_in_steps,
        l2=2.5e-4,
        seconds=lambda epochs: 20 + 25 * epochs,
        fit={
            "augment": functools.partial(classifiers.shift_and_flip, most=2),
            "jit_compile": False,
        },
        claims=methods_claims.ON_CIFAR10,
    ),
}


def _define_flags():
    experiments.define_flags(epochs=None, seeds=())
    flags.DEFINE_enum("dataset", "mnist", list(SETTINGS), "Data to train on.")
    flags.DEFINE_list("methods", [], "Methods to run. Default: all methods of the table.")
    flags.DEFINE_list("sparsities", [], "Sparsities to run. Default: all.")
    flags.DEFINE_list(
        "multipliers", [], "Integers, factors of --epochs. Default: those of each method."
    )


def _given():
    """The `Setting`, with what the flags say in place of its own."""
    setting = SETTINGS[FLAGS.dataset]
    given = {
        "epochs": FLAGS.epochs,
        "seeds": tuple(map(int, FLAGS.seeds)),
        "sparsities": tuple(map(float, FLAGS.sparsities)),
    }
    return dataclasses.replace(setting, **{name: value for name, value in given.items() if value})


def _build(setting, run, data):
    """The model of a run, before it is compiled."""
    sparsity = run["sparsity"]
    method, distribution = setting.methods[run["method"]]
    arguments = {
        "input_shape": data.x_train.shape[1:],
        "l2": setting.l2,
        **setting.network_arguments,
    }
    if method == "small_dense" and setting.searches_widths:
        found = experiments.store(small_dense.NAME, small_dense.KEY).rows
        units = small_dense.best(found, FLAGS.dataset, sparsity, len(data.x_train))
        return models.build(setting.network, units=units, **arguments)
    seed = run["seed"]
    model = methods.build_model(
        method, setting.network, sparsity, distribution, seed, data, **arguments
    )
    return rigl_tf.with_execution(model, "csr") if method in setting.csr else model


def train(setting, data, run):
    """One run. Returns the columns of its row: the test accuracy in percent, and what it cost."""
    sparsity, seed, epochs = run["sparsity"], run["seed"], run["epochs"]
    method, distribution = setting.methods[run["method"]]
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    model = _build(setting, run, data)
    steps = classifiers.steps_per_epoch(data, setting.batch_size)
    total_steps = epochs * steps
    schedule = setting.learning_rate(total_steps)
    optimizer = methods.wrap_optimizer(
        method,
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True),
        total_steps,
        sparsity,
        distribution,
        end_fraction=_END_FRACTION,
        update_frequency=setting.update_frequency,
        seed=seed,
    )
    fit = {"jit_compile": method not in setting.csr, **setting.fit}
    times = costs.StepTime()
    history = classifiers.fit(
        model, optimizer, data, setting.batch_size, epochs, seed, callbacks=[times], **fit
    )
    columns = {"accuracy": classifiers.accuracy(model, data.x_test, data.y_test)}
    if setting.keeps_loss:
        columns["loss"] = round(history.history["loss"][-1], 4)
    if setting.keeps_units:
        live, firing = costs.units(model, data.x_train[:10_000])
        columns["live"], columns["firing"] = ("-".join(map(str, each)) for each in (live, firing))
    flops = costs.training_flops(
        model, method, total_steps, end_step(total_steps), setting.update_frequency
    )
    columns["gflops"] = round(setting.batch_size * flops / 1e9, 2)
    columns["kilobytes"] = round(costs.training_bytes(model) / 1000, 1)
    milliseconds = times.milliseconds(steps)
    columns["step_ms"] = "" if milliseconds is None else round(milliseconds, 3)
    return columns


def end_step(total_steps):
    """The step after which masks stay."""
    return math.ceil(_END_FRACTION * total_steps)


def _wanted(setting, num_examples):
    """The runs: for each seed the dense network, then a column of the table at a time."""
    names = FLAGS.methods or list(setting.methods)
    unknown = sorted(set(names) - set(setting.methods))
    if unknown:
        raise app.UsageError(
            f"--methods must be some of {', '.join(setting.methods)}. "
            f"Received: {', '.join(unknown)}"
        )
    dense = [("dense", 0.0)] if "dense" in names else []
    sparse = [(name, s) for s in setting.sparsities for name in names if name != "dense"]
    given = tuple(map(int, FLAGS.multipliers))
    return [
        {
            "method": name,
            "sparsity": sparsity,
            "seed": seed,
            "epochs": setting.epochs * multiplier,
            "examples": num_examples,
        }
        for seed in setting.seeds
        for name, sparsity in dense + sparse
        for multiplier in given or setting.multipliers.get(name, (1,))
        if seed in setting.fewer_seeds.get((name, multiplier), setting.seeds)
    ]


def main(_):
    setting = _given()
    data = experiments.load(setting.data)
    if setting.pooled > 1:
        data = datasets.pooled(data, setting.pooled)
    name = f"{FLAGS.dataset}_{setting.network}"
    rows = experiments.store(name, _KEY)
    wanted = _wanted(setting, len(data.x_train))
    experiments.run_all(
        rows,
        wanted,
        lambda run: train(setting, data, run),
        lambda run: setting.seconds(run["epochs"]),
    )
    missing = [run for run in wanted if run not in rows]
    whole = [row for row in rows.rows if row["examples"] == len(data.x_train)]
    shown = [row for row in whole if row["epochs"] % setting.epochs == 0]
    methods_page.write(setting, name, shown, missing)


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
