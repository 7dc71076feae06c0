"""The networks of the protocols, and their training."""

import dataclasses
import functools

import keras
from absl import flags

import models
import rigl_tf
from rigl_tf import analysis
from scripts.common import classifiers, experiments

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on a data set, and how it is trained.

    Attributes:
        network: Name of a builder of `models`.
        dataset: Name of a data set.
        batch_size: Integer.
        learning_rate: Float, for SGD with momentum 0.9; it falls to 0 along a cosine. That of Adam
            is constant.
        seconds: Float, the approximate time of an epoch on one core.
        share: Float, multiplies `--epochs`.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss.
        num_seeds: Integer. Only seeds below this number are run.
        adam: Boolean, whether the optimizer is Adam.
        initializer: Name of the initializer of the kernels, or `None` for that of the network.
    """

    network: str
    dataset: str
    batch_size: int = 100
    learning_rate: float = 0.1
    seconds: float = 2.0
    share: float = 1.0
    l2: float = 5e-5
    num_seeds: int = 1000
    adam: bool = False
    initializer: str | None = None

    @property
    def epochs(self):
        return max(1, round(self.share * FLAGS.epochs))


SMALL_CASES = {
    "mnist_lenet_300_100": Case("lenet_300_100", "mnist"),
    "fashion_mnist_lenet_300_100": Case("lenet_300_100", "fashion_mnist"),
    # At 0.1 some sparse ones of these do not leave the start.
    "mnist_lenet5": Case("lenet5", "mnist", 100, 0.05, seconds=5.0, share=0.5),
    "fashion_mnist_lenet5": Case("lenet5", "fashion_mnist", 100, 0.05, seconds=5.0, share=0.5),
}
CASES = {
    **SMALL_CASES,
    # The setting of Maene et al.
    "mnist_lenet_maene": Case(
        "lenet_300_100",
        "mnist",
        60,
        1.2e-3,
        seconds=4.5,
        share=2.5,
        l2=0.0,
        adam=True,
        initializer="he_uniform",
    ),
    "cifar10_resnet20": Case(
        "resnet20", "cifar10", 128, 0.2, seconds=120.0, share=0.5, l2=1e-4, num_seeds=1
    ),
}


@functools.cache
def _load(name, max_examples):
    return experiments.load(name)


def data_of(case):
    """The data of a case, according to the flags. It is read once."""
    return _load(case.dataset, FLAGS.max_examples)


def setting(case):
    """The columns of a row that depend only on the flags."""
    return {"epochs": case.epochs, "examples": len(data_of(case).x_train)}


def build(case, seed, sparsity=None, **arguments):
    """A network with the initial weights of a seed: dense, or sparse if a sparsity is given.

    Do not use an earlier network after this call. It may be the same object, with new weights, so
    that its compiled training step is used again. This saves more time than a training takes.
    """
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    model = another(case, sparsity, **{"seed": seed, **arguments})
    if arguments or sparsity:
        return model
    first = _first.setdefault((case.network, case.dataset, case.l2, sparsity), model)
    first.set_weights(model.get_weights())
    return first


_first = {}


def another(case, sparsity=None, width=1.0, **sparsify_arguments):
    """A new network. Earlier networks can still be used."""
    data = data_of(case)
    model = models.build(case.network, input_shape=data.x_train.shape[1:], l2=case.l2, width=width)
    if case.initializer:
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                layer.kernel.assign(keras.initializers.get(case.initializer)(layer.kernel.shape))
    if sparsity is None:
        return model
    return rigl_tf.sparsify(model, sparsity, **sparsify_arguments)


def total_steps(case, epochs=None):
    """The number of steps of a training."""
    return (epochs or case.epochs) * classifiers.steps_per_epoch(data_of(case), case.batch_size)


def optimizer_of(case, learning_rate=None, epochs=None, warmup_epochs=0):
    """SGD with momentum: its learning rate falls along a cosine, maybe after a warm-up. Or Adam."""
    rate = case.learning_rate if learning_rate is None else learning_rate
    if case.adam:
        return keras.optimizers.Adam(rate)
    steps = total_steps(case, epochs)
    if not warmup_epochs:
        schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    else:
        warmup = total_steps(case, warmup_epochs)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, steps - warmup, warmup_target=rate, warmup_steps=warmup
        )
    return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)


def train(case, model, seed, optimizer=None, **arguments):
    """Like `fit`, but returns the test accuracy in percent."""
    fit(case, model, seed, optimizer, **arguments)
    return test_accuracy(case, model)


def fit(case, model, seed, optimizer=None, data=None, **fit_arguments):
    """Trains a network.

    Args:
        case: A `Case`.
        model: A `keras.Model`. It may be sparse and have a plain optimizer: the masks stay.
        seed: Integer, determines the order of the examples.
        optimizer: A `keras.optimizers.Optimizer`; by default `optimizer_of(case)`.
        data: A `scripts.common.datasets.Dataset`; by default the data of the case.
        **fit_arguments: See `scripts.common.classifiers.fit`.
    """
    is_convolutional = case.network != "lenet_300_100"
    fit_arguments = {"epochs": case.epochs, "batch_size": case.batch_size, **fit_arguments}
    if case.dataset == "cifar10":
        fit_arguments = {"augment": classifiers.shift_and_flip, **fit_arguments}
    classifiers.fit(
        model,
        optimizer or optimizer_of(case),
        data or data_of(case),
        seed=seed,
        jit_compile=not is_convolutional,
        **fit_arguments,
    )


def test_accuracy(case, model):
    """The test accuracy in percent."""
    data = data_of(case)
    return classifiers.accuracy(model, data.x_test, data.y_test)


def error_between(case, model):
    """The test error, in percent, of a network on the line between two others.

    The statistics of normalisation are computed again from training data, because the mean of two
    networks' statistics does not fit a network between them.
    """
    x, size = data_of(case).x_train, case.batch_size
    starts = range(0, min(len(x), 10 * size), size)
    analysis.estimate_statistics(model, [x[start : start + size] for start in starts])
    return 100 - test_accuracy(case, model)
