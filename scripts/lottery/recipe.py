"""LeNet-5 by the recipe of "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win".

    python -m scripts.lottery --protocol=recipe --seeds=0,1,2,3,4 --data_dir=DATA

trains five networks that are pruned, and from the masks of each: a ticket (the weights that pruning
began with), the same masks on new weights (scratch), and RigL that begins with these masks and new
weights; the new weights with and without sparsity-aware initialisation. Of the first pruned network
there are five tickets and five scratch trainings (sparsity-aware), each in another order of the
data, of the others two. 46 rows, each a training of 25 epochs. Expect the ticket to be as accurate
as the pruned network and to agree with it, and the other ones to be worse.

The numbers of the recipe are those of the authors' code (google-research/rigl, `rigl_tf2`, the
files `configs/prune.gin`, `lottery.gin`, `scratch.gin` and `rigl.gin`); what differs is said on the
page.
"""

import base64
import math
import zlib

import keras
import numpy as np
import tensorflow as tf

import rigl_tf
from rigl_tf import distributions
from rigl_tf.initializers import SparseVarianceScaling, initialize
from scripts.common import classifiers, experiments
from scripts.lottery import networks

NAME = "lottery_recipe"
KEY = ("case", "seed", "network", "order", "epochs", "examples")
NETWORKS = ("pruned", "ticket", "scratch", "scratch_aware", "rigl", "rigl_aware")
SPARSITY = 0.95
STEPS = 11719  # 25 epochs of 60,000 images in batches of 128
PRUNING = (3000, 7000)  # the first and the last step of it
FREQUENCY = 100  # of pruning and of RigL
DROP_FRACTION = 0.3
# Keras adds l2 * sum(w ** 2), without a half.
CASES = {
    "mnist_lenet5": networks.Case(
        "lenet5", "mnist", 128, 0.05, seconds=4.0, share=2.5, l2=5e-4, num_seeds=5
    )
}
ORDERS = {"ticket": 2, "scratch_aware": 2}  # in how many orders of the data each is trained
ORDERS_OF_FIRST = {"ticket": 5, "scratch_aware": 5}  # of the first pruned network
PARTS = 63  # how finely probabilities are kept, so that a row has 15 kB and not twice as much
_OTHER = 1000  # apart are the seeds of orders, and those of new weights
_AWARE = SparseVarianceScaling(2.0, "fan_in", "normal", "neuron")


def wanted(case, seed):
    orders = ORDERS if seed else ORDERS_OF_FIRST
    return [
        {"case": case, "seed": seed, "network": network, "order": order}
        | networks.setting(CASES[case])
        for network in NETWORKS
        for order in range(orders.get(network, 1))
    ]


def seconds(run):
    case = CASES[run["case"]]
    return 10 + case.seconds * case.epochs


def total_steps(case):
    """The steps of a training: 11,719 of 25 epochs, which is 25.04 times the whole batches."""
    return math.ceil(case.epochs * len(networks.data_of(case).x_train) / case.batch_size)


def run(run):
    case, seed, network = CASES[run["case"]], run["seed"], run["network"]
    if network == "pruned":
        model = networks.build(case, seed, 0.0)
        return _train(case, model, network, order=seed)
    masks = np.unpackbits(unpack(_pruned(run)["masks"])).astype(bool)
    new = 0 if network == "ticket" else _OTHER
    model = networks.build(case, seed + new, 0.0)
    rigl_tf.set_masks(model, _split(masks, model))
    if network.endswith("aware"):
        initialize(model, _AWARE, seed + new)
    # Pruning had the order `seed`.
    return _train(case, model, network, order=seed + _OTHER * (run["order"] + 1))


def _pruned(run):
    """The row of the pruned network whose masks a run begins with."""
    wanted = {**run, "network": "pruned", "order": 0}
    for row in experiments.store(NAME, KEY).rows:
        if all(row[name] == wanted[name] for name in KEY):
            return row
    raise ValueError(
        "The network that is pruned must be trained before its masks are used; with `--part`, give "
        f"each process seeds of its own instead. Received: {run}"
    )


def _train(case, model, network, order):
    """Trains a network; returns the columns of its row."""
    data, total = networks.data_of(case), total_steps(case)
    classifiers.fit(
        model,
        _optimizer(case, network, total, order),
        data,
        case.batch_size,
        epochs=math.ceil(total / classifiers.steps_per_epoch(data, case.batch_size)),
        seed=order,
        steps=(0, total),
        jit_compile=False,
        steps_per_execution=min(50, total),
    )
    logits = model.predict(data.x_test, batch_size=1000, verbose=0)
    masks = rigl_tf.get_masks(model).values()
    flat = np.concatenate([np.ravel(mask) for mask in masks])
    return {
        "accuracy": round(100 * float(np.mean(logits.argmax(axis=1) == data.y_test)), 3),
        "sparsity": round(1 - float(flat.mean()), 6),
        "probabilities": pack(to_bytes(logits)),
        "masks": pack(np.packbits(flat)) if network == "pruned" else "",
    }


def _optimizer(case, network, total, seed):
    schedule = keras.optimizers.schedules.CosineDecay(case.learning_rate, total)
    sgd = keras.optimizers.SGD(schedule, momentum=0.9)
    frequency = at(FREQUENCY, total)
    if network == "pruned":
        first, last = (at(step, total) for step in PRUNING)
        return rigl_tf.GradualPruning(
            sgd, last + 1, SPARSITY, first, frequency, distribution=everywhere
        )
    if not network.startswith("rigl"):
        return rigl_tf.StaticSparse(sgd)
    # Its share falls along the cosine of the learning rate, to the end of the training.
    return rigl_tf.RigL(
        sgd, total, update_frequency=frequency, drop_fraction=DROP_FRACTION, seed=seed
    )


def at(step, total):
    """A step of the recipe in a training of `total` steps.

    Example:

    >>> at(3000, STEPS), at(3000, 100)
    (3000, 26)
    """
    return max(1, round(step * total / STEPS))


def everywhere(shapes, sparsity):
    """The distribution of the authors' pruning: the first kernel has this sparsity, too."""
    return distributions.uniform(shapes, sparsity, dense_first=False)


def _split(flat, model):
    """Flat masks of all kernels as `{path: mask}`; `flat` may have some bits more."""
    masks, start = {}, 0
    for path, mask in rigl_tf.get_masks(model).items():
        masks[path] = flat[start : start + mask.size].reshape(mask.shape)
        start += mask.size
    return masks


def to_bytes(logits):
    """The probabilities times `PARTS`, rounded; the largest number is that of one class alone.

    Args:
        logits: Array of shape `(examples, classes)`.

    Returns:
        Bytes of the same shape.
    """
    numbers = np.rint(PARTS * tf.nn.softmax(tf.constant(logits, tf.float64)).numpy())
    top = np.max(numbers, axis=1, keepdims=True)
    is_first = np.arange(logits.shape[1]) == logits.argmax(axis=1)[:, None]
    return np.where(is_first, top, np.minimum(numbers, top - 1)).astype(np.uint8)


def pack(numbers):
    """Bytes as text."""
    return base64.b64encode(zlib.compress(numbers.tobytes(), 9)).decode()


def unpack(text):
    """The bytes of `pack`, flat."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
