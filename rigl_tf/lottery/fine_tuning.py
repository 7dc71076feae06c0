"""Pruning and fine-tuning, the alternative to a lottery ticket; pruning by ADMM."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import distributions, masks, structures
from rigl_tf._types import Distribution
from rigl_tf.checks import check_choice, check_integers, check_numbers
from rigl_tf.lottery.levels import Records, restore, shapes_of, trained_state
from rigl_tf.lottery.run import Run, check_train
from rigl_tf.lottery.tickets import check_sparsity_is_free, optimizer_reset
from rigl_tf.pruning import magnitude_masks


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """The result of `prune_and_fine_tune`.

    Attributes:
        masks: `{kernel path: mask}`, the final masks.
        metrics: `{name: result of train}`, in the order of the trainings.
    """

    masks: dict[str, np.ndarray] = dataclasses.field(repr=False)
    metrics: dict[str, Any]


def prune_and_fine_tune(
    model: keras.Model,
    train: Callable[[keras.Model, Run], Any],
    sparsity: float,
    pruning: str = "iterative",
    *,
    distribution: Distribution = "uniform",
    prune_fraction: float = 0.2,
    num_updates: int = 10,
    rho: float = 1e-3,
    directory: str | os.PathLike[str] | None = None,
) -> FineTuned:
    """Trains, prunes the smallest weights, and continues with the trained weights (P&F).

    A lottery ticket is trained from its initial weights again instead. Compare both with the same
    `pruning` and the same total number of epochs. There are three ways of pruning, with these
    trainings:

    - `"one_shot"`: `"dense"`; pruning to `sparsity`; `"fine_tune"`.
    - `"iterative"`: `"dense"`; pruning of the share `prune_fraction` of the active weights;
      `"iterative_1"`; pruning again; `"iterative_2"` and so on. The last pruning reaches
      `sparsity`, and the training after it is `"fine_tune"`. The numbers of active connections may
      differ a little from those of `find_ticket`, which rounds at each level. A structure that sets
      the sparsity, such as `rigl_tf.structures.NM`, can be pruned only once, so it is refused.
    - `"admm"`: `"dense"`; `"admm_1"` to `"admm_<num_updates>"` with the penalty of `ADMM`, which is
      updated after each; pruning to `sparsity`; `"fine_tune"`.

    If the model is compiled, the optimizer starts each training in the state that it had when this
    function was called.

    Reference:

    - [Liu et al., 2021](https://arxiv.org/abs/2102.11068): `"fine_tune"` uses the epochs and the
      learning rates of `"dense"`. The paper does not say how many epochs the trainings between them
      have.

    Args:
        model: A built sparse `keras.Model`, made with `sparsify(model, 0.0)`. No kernel may be
            sparser than after the first pruning. At the end it has the fine-tuned weights.
        train: Function `train(model, run)`, see `rigl_tf.lottery.Run`. It may return any metrics.
            `run.name` is one of the names above. Trainings with other names than `"dense"` and
            `"fine_tune"` may be shorter.
        sparsity: Share of zeros, in `(0, 1)`, see `rigl_tf.sparsify`.
        pruning: String: `"iterative"`, `"one_shot"` or `"admm"`.
        distribution: See `rigl_tf.sparsify`. In the paper, as with `"uniform"`, all layers except
            the first have the same sparsity. If the first kernel is a large part of the model, as
            in an MLP, its sparsity is then far below `sparsity`, and there is a warning: `"erk"`
            reaches it.
        prune_fraction: Number in `(0, 1)`, for `"iterative"`.
        num_updates: Integer >= 1, the number of updates of the penalty, for `"admm"`.
        rho: Number > 0, the strength of the penalty, for `"admm"`, see `ADMM`.
        directory: Path, or `None`. The weights after each training are saved there, and finished
            trainings are not repeated.

    Returns:
        A `FineTuned`, with `masks` and `metrics`.

    Raises:
        ValueError: If an argument is out of its range, the model has no sparse kernel or is too
            sparse already, a structure sets another sparsity, a training ends with weights that
            are not finite, or `directory` has results of other settings.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> def train(model, run):
    ...     model.compile(keras.optimizers.SGD(0.1), "mse")
    ...     return model.fit(np.ones((20, 8)), np.zeros((20, 4)), verbose=0).history["loss"][-1]
    >>> result = prune_and_fine_tune(model, train, sparsity=0.3)
    >>> list(result.metrics)
    ['dense', 'iterative_1', 'fine_tune']
    """
    _check(model, sparsity, pruning, prune_fraction, num_updates, rho)
    check_train(train)
    levels = _levels(sparsity, prune_fraction) if pruning == "iterative" else []
    if levels:
        check_sparsity_is_free(model, '`pruning="iterative"`')
    # The sparsity of each kernel, in the order of the prunings.
    shares = [_shares(model, distribution, level) for level in (*levels, sparsity)]
    _tell_missed("`prune_and_fine_tune`", model, shares[-1], sparsity, distribution)
    settings = {
        "pruning": pruning,
        "sparsity": float(sparsity),
        "shares": [list(each.values()) for each in shares],
        "shapes": shapes_of(model),
    }
    if pruning == "admm":
        settings |= {"num_updates": int(num_updates), "rho": float(rho)}
    records = Records(directory, settings)
    reset_optimizer = optimizer_reset(model)
    metrics = {}

    def trained(name):
        if name == "dense":  # only then, because a continued run loads its masks from files
            _check_density(model, shares[0])
        returned = train(model, Run(name))
        return {**trained_state(model, repr(name)), "metrics": returned}

    def run(name):
        reset_optimizer()
        record = records.once(name, functools.partial(trained, name))
        restore(model, record["weights"], record["masks"])
        metrics[name] = record["metrics"]

    def prune(number):
        masks.set_masks(model, magnitude_masks(model, sparsity, _Given(shares[number])))

    run("dense")
    for number in range(len(levels)):
        prune(number)
        run(f"iterative_{number + 1}")
    if pruning == "admm":
        with ADMM(model, sparsity, _Given(shares[-1]), rho) as admm:
            for number in range(num_updates):
                run(f"admm_{number + 1}")
                admm.update()
    prune(-1)
    run("fine_tune")
    return FineTuned(masks.get_masks(model), metrics)


class ADMM:
    """A penalty that pulls weights towards a sparse network during training.

    It is a context manager. Inside the context, it adds `rho / 2 * sum((W - Z + U) ** 2)` for each
    sparse kernel `W` to the model's losses. `model.fit` and `model.evaluate` use these losses; a
    custom loop must add `model.losses`. `update` is the second half of the method: `Z` becomes
    `W + U`, pruned, and `W - Z` is added to `U`. At first, `Z` is the pruned `W`, and `U` is 0. In
    kernels with a structure (`rigl_tf.structures`), whole units are pruned, as they will be then.
    After the context, prune with `rigl_tf.pruning.magnitude_masks`.

    Reference:

    - [Zhang et al., 2018](https://arxiv.org/abs/1804.03294). The authors' code for LeNet-5 uses
      `rho=1e-4` and Adam, with an update every few epochs.

    Args:
        model: A built sparse `keras.Model`. Its masks are not changed.
        sparsity: Share of zeros of `Z`, in `[0, 1)`.
        distribution: How the kernels share the sparsity, see `rigl_tf.sparsify`. Kernels with the
            sparsity 0 have no penalty: with `"uniform"` the first one. There is a warning if the
            total is not `sparsity`.
        rho: Number > 0, the strength of the penalty.

    Raises:
        ValueError: If an argument is out of its range, a structure sets another sparsity, or the
            model has no sparse kernel.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> model.compile("adam", "mse")
    >>> with ADMM(model, sparsity=0.75, rho=0.1) as admm:
    ...     for _ in range(3):
    ...         history = model.fit(np.ones((20, 8)), np.zeros((20, 4)), verbose=0)
    ...         admm.update()
    >>> rigl_tf.set_masks(model, rigl_tf.pruning.magnitude_masks(model, 0.75))
    """

    def __init__(
        self,
        model: keras.Model,
        sparsity: float,
        distribution: Distribution = "uniform",
        rho: float = 1e-3,
    ) -> None:
        kernels = masks.check_sparse(model, "`ADMM`")
        masks.check_masked(model, "`ADMM`")
        check_numbers("(0, inf)", rho=rho)
        shares = _shares(model, distribution, sparsity)
        if not isinstance(distribution, _Given):
            _tell_missed("`ADMM`", model, shares, sparsity, distribution)
        self._model = model
        self._splits = [
            _Split(kernel, shares[path], rho) for path, kernel in kernels.items() if shares[path]
        ]

    def __enter__(self) -> "ADMM":
        for split in self._splits:
            split.variable.regularizer = split
        self._trace_anew()
        return self

    def __exit__(self, *_: Any) -> None:
        for split in self._splits:
            split.variable.regularizer = split.regularizer
        self._trace_anew()

    def update(self) -> None:
        """Updates `Z` and `U`, after the weights were trained for a while."""
        for split in self._splits:
            split.update()

    def gap(self) -> float:
        """The relative distance of the weights from a sparse network: `norm(W - Z) / norm(W)`.

        Returns:
            Float, over all kernels with a penalty together; 0 if there are none.
        """
        pairs = [(split.values(), split.sparse) for split in self._splits]
        far = sum(np.sum((values - sparse) ** 2, dtype="float64") for values, sparse in pairs)
        whole = sum(np.sum(values**2, dtype="float64") for values, _ in pairs)
        return math.sqrt(far / whole) if far else 0.0

    def _trace_anew(self):
        # Steps that were traced before do not know that the penalty was added or removed.
        self._model.train_function = None
        self._model.test_function = None


class _Split(keras.regularizers.Regularizer):
    """The variables `Z` and `U` of one kernel; it is the regularizer of the kernel."""

    def __init__(self, kernel, sparsity, rho):
        self.kernel, self.variable = kernel, kernel.variable
        self.regularizer = self.variable.regularizer
        self.rho = rho
        self.num_active = int(kernel.units.count(sparsity))
        self.sparse = self._projected(self.values())
        self.dual = np.zeros_like(self.sparse)
        with masks.strategy_of(self.variable).scope():
            self.target = keras.Variable(self.sparse, trainable=False, dtype=self.sparse.dtype.name)

    def __call__(self, kernel):
        far = tf.cast(kernel, self.target.dtype) - tf.convert_to_tensor(self.target)
        penalty = self.rho / 2 * tf.reduce_sum(far**2)
        return penalty if self.regularizer is None else penalty + self.regularizer(kernel)

    def values(self):
        values = keras.ops.convert_to_numpy(self.variable)
        return values if values.dtype == "float64" else values.astype("float32")

    def update(self):
        values = self.values()
        self.sparse = self._projected(values + self.dual)
        self.dual = self.dual + values - self.sparse
        self.target.assign(self.sparse - self.dual)

    def _projected(self, values):
        # As `magnitude_masks` prunes: inactive connections come last.
        scores = np.where(self.kernel.mask, np.abs(values), -np.inf)
        return np.where(self.kernel.units.top(scores, self.num_active), values, 0)


def _units(model):
    return {path: kernel.units for path, kernel in masks.kernels_of(model).items()}


def _shares(model, distribution, sparsity):
    return structures.allocate(distribution, _units(model), sparsity)


@dataclasses.dataclass(frozen=True)
class _Given:
    """The distribution that gives these shares."""

    shares: dict[str, float]

    def __call__(self, shapes, sparsity):
        return {path: self.shares[path] for path in shapes}


def _tell_missed(caller, model, shares, sparsity, distribution):
    """Warns if the shares of the kernels are not the sparsity that was asked for."""
    structures.warn_if_missed(caller, _units(model), shares, sparsity, distribution)


def _levels(sparsity, prune_fraction):
    """The sparsities before the last one; each keeps `1 - prune_fraction` of the one before."""
    levels = []
    share = prune_fraction
    while share < sparsity * (1 - 1e-9):  # `1 - 0.8**2` is less than 0.36
        levels.append(share)
        share = 1 - (1 - prune_fraction) ** (len(levels) + 1)
    return levels


def _check(model, sparsity, pruning, prune_fraction, num_updates, rho):
    masks.check_sparse(model, "`prune_and_fine_tune`", "`rigl_tf.sparsify(model, 0.0)`")
    masks.check_masked(model, "`prune_and_fine_tune`")
    if not distributions.check_sparsity(sparsity) > 0:
        raise ValueError(f"`sparsity` must be above 0. Received: sparsity={sparsity!r}")
    check_choice(("iterative", "one_shot", "admm"), pruning=pruning)
    check_numbers("(0, 1)", prune_fraction=prune_fraction)
    check_integers(1, num_updates=num_updates)
    check_numbers("(0, inf)", rho=rho)


def _check_density(model, shares):
    """Raises a `ValueError` if a kernel has fewer connections than pruning would leave."""
    for path, kernel in masks.kernels_of(model).items():
        num_left = int(kernel.units.count(shares[path])) * kernel.units.unit_size
        if kernel.num_active < num_left:
            raise ValueError(
                "`model` must not be sparser than after the first pruning: make it with "
                f"`rigl_tf.sparsify(model, 0.0)`. Received: {path!r} with {kernel.num_active} "
                f"active connections, but pruning would leave {num_left}"
            )
