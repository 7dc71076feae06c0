"""Gradual pruning: a dense network becomes sparse during training."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import distributions, schedules
from rigl_tf._types import Distribution
from rigl_tf.checks import check_numbers
from rigl_tf.optimizers import kernels, targets
from rigl_tf.optimizers.scheduled import ScheduledUpdates


@keras.saving.register_keras_serializable(package="rigl_tf")
class GradualPruning(targets.TargetSparsity, ScheduledUpdates):
    """Gradual magnitude pruning: a dense network loses its weakest connections during training.

    In an update step, after the gradient step, each kernel keeps the connections with the largest
    weights, so that its sparsity is `s + (i - s) * (1 - p) ** power`. Here `s` is its final
    sparsity, `i` its initial one, and `p` rises from 0 at `begin_step` to 1 at the last update.
    Pruned connections do not come
    back. There is a warning, when the optimizer is built or when `fit` ends, if the final sparsity
    differs from `sparsity`.

    Reference:

    - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878), equation 1

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after this step. The last update
            before it reaches the final sparsity, so train for more steps than this. A common choice
            is `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        sparsity: Final share of zeros over all sparse kernels, in `[0, 1)`. Or a list of the shares
            after each update, which must not fall. Or a function of the step (a scalar int64
            tensor) that returns the share, such as a `tfmot.sparsity.keras.PruningSchedule` (it
            returns a pair, of which the last is the sparsity). The function is called for each
            update step. With a list or a function, `power` and `initial_sparsity` are not used.
        begin_step: Integer, in steps. No connection changes before this step or at step 0.
            Defaults to 0.
        update_frequency: Integer, the number of steps between mask updates. Every step trains the
            weights, update steps too. Defaults to 100.
        power: Number > 0. Defaults to 3, as in the paper.
        distribution: How the kernels share the sparsity, a string or a function, see
            `rigl_tf.sparsify`. With the default `"erk"`, all kernels together reach `sparsity`.
            With `"uniform"` the first kernel stays dense, and a warning says which sparsity is
            reached.
        initial_sparsity: Share of zeros over all sparse kernels from which the sparsity rises, in
            `[0, sparsity]`. The first update jumps to it, or to a little more. Defaults to 0.0.
        name: String. Defaults to the name of the class in snake case, with a number.

    Raises:
        TypeError: If an argument is unknown.
        ValueError: If an argument is out of its range, or there is no update before `end_step`.
            When the optimizer is built: if the model has no sparse kernel that is trained.

    Example:

    >>> model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> model.compile(GradualPruning("adam", end_step=10_000, sparsity=0.9), "mse")
    """

    trains_at_updates = True
    _keeps_zeros = True

    @property
    def supports_structures(self) -> bool:
        return type(self).new_mask is GradualPruning.new_mask

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        end_step: int,
        sparsity: float | Sequence[float] | Callable[[tf.Tensor], Any],
        begin_step: int = 0,
        update_frequency: int = 100,
        power: float = 3,
        distribution: Distribution = "erk",
        initial_sparsity: float = 0.0,
        name: str | None = None,
    ) -> None:
        distributions.get(distribution)
        check_numbers("(0, inf)", power=power)
        check_numbers("[0, 1)", initial_sparsity=initial_sparsity)
        super().__init__(inner_optimizer, end_step, begin_step, update_frequency, name)
        self.power = power
        self.distribution = distribution
        self.initial_sparsity = initial_sparsity
        self.sparsity: Any = _at_each(self._steps, sparsity) if callable(sparsity) else sparsity
        self._check_schedule()

    @property
    def _steps(self):
        return schedules.update_steps(self.begin_step, self.end_step, self.update_frequency)

    def _check_schedule(self):
        super()._check_schedule()
        sparsity = getattr(self, "sparsity", None)
        if isinstance(sparsity, (list, tuple)):
            _check_list(sparsity, len(self._steps))
        elif sparsity is not None:
            distributions.check_sparsity(sparsity)
            if self.initial_sparsity > sparsity:
                raise ValueError(
                    "`initial_sparsity` must be at most `sparsity`. "
                    f"Received: initial_sparsity={self.initial_sparsity}, sparsity={sparsity}"
                )

    @property
    def _final_sparsity(self):
        listed = isinstance(self.sparsity, (list, tuple))
        return float(max(self.sparsity) if listed else self.sparsity)

    def _create_state(self, variables, shares):
        super()._create_state(variables, shares)
        # Variables, because the steps may be changed later. (Those of `add_variable` have a fixed
        # shape.)
        self._plan.counts = {
            index: tf.Variable(
                counts,
                shape=[None],
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for index, counts in self._counts().items()
        }

    def _changed(self, name, before):
        super()._changed(name, before)
        with tf.init_scope():
            for index, counts in self._counts().items():
                self._plan.counts[index].assign(counts)

    def _counts(self):
        """The number of active units after each update, as `{index: array}`."""
        progress = self._progress()
        result = {}
        for sparse in self._plan.by_id.values():
            counts = sparse.sparse.units.count(sparse.sparsity * progress)
            result[sparse.index] = counts.astype("int32")
        return result

    def _progress(self):
        """The sparsity of a kernel after each update, as a share of its final one, in `[0, 1]`."""
        if isinstance(self.sparsity, (list, tuple)):
            return np.array(self.sparsity) / (self._final_sparsity or 1.0)
        first, last = self._steps[0], self._steps[-1]
        begin = min(self.begin_step, last - 1)  # a single update prunes all at once
        steps = np.arange(first, last + 1, self.update_frequency)
        left = 1 - (steps - begin) / (last - begin)
        if self.power == int(self.power):
            # By multiplication, which is exact if the result is exact; a power may be rounded.
            left = functools.reduce(np.multiply, [left] * int(self.power))
        else:
            left = left**self.power
        return 1 - left + left * (self.initial_sparsity / (self._final_sparsity or 1.0))

    def _update_masks(self, strategy, pairs, loss_scale):
        # Magnitudes need no gradient, so it is not summed over replicas and may be infinite.
        if type(self).drop_scores is ScheduledUpdates.drop_scores:
            pairs = []
        gradients = kernels.sum_over_replicas(strategy, pairs, loss_scale)
        # A kernel without a gradient is pruned, too; the zeros for its gradient are not used.
        known = {sparse.index for sparse, _ in pairs}
        others = [each for each in self._plan.by_id.values() if each.index not in known]
        zeros = [tf.zeros(each.kernel.shape, each.kernel.dtype) for each in others]
        pairs = [*pairs, *((each, None) for each in others)]
        self._update_if_finite(strategy, pairs, [*gradients, *zeros])

    def new_mask(
        self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor
    ) -> tf.Tensor:
        begin = self._numbers.tensor("begin_step")
        frequency = self._numbers.tensor("update_frequency")
        number = (step - tf.where(begin > 0, begin, frequency)) // frequency
        # Not `counts[...]`: XLA would compile a new slice for every step.
        num_active = tf.gather(self._plan.counts[self._kernel_index], number)
        scores = self._scores("drop_scores", kernel, mask, gradient)
        return self._units.keep(mask, scores, num_active)

    def _unfinished(self, step):
        steps = self.update_steps()  # `None` if a subclass has its own schedule
        if steps is None or step == 0 or step > steps[-1]:
            return None
        sparse = [each.sparse for each in self._plan.by_id.values()]
        now = 1 - sum(each.num_active for each in sparse) / sum(each.size for each in sparse)
        return (
            f"{type(self).__name__} has reached a sparsity of {now:.3f} of {self._final_sparsity}: "
            f"training ended after {step} steps, and the last update is at {steps[-1]}."
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "power": self.power,
            "initial_sparsity": self.initial_sparsity,
        }


def _at_each(steps, schedule):
    """The sparsities that a schedule returns at these steps."""
    return [_number(step, schedule(tf.constant(step, tf.int64))) for step in steps]


def _check_list(sparsities, num_updates):
    """Raises a `ValueError` unless there is a sparsity for each update, and they do not fall."""
    if len(sparsities) != num_updates:
        raise ValueError(
            f"`sparsity` must have an entry for each of the {num_updates} updates. "
            f"Received: sparsity={sparsities}"
        )
    values = [distributions.check_sparsity(value) for value in sparsities]
    # A schedule that computes in float32 may fall in the last digits.
    if any(later < value - 1e-6 for value, later in itertools.pairwise(values)):
        raise ValueError(
            "`sparsity` must not fall from one update to the next: pruned connections do not come "
            f"back. Received: sparsity={values}"
        )


def _number(step, value):
    try:
        return float(value[-1] if isinstance(value, (list, tuple)) else value)
    except (TypeError, ValueError):
        raise ValueError(
            "`sparsity`, as a function of the step, must return a number, or a pair that ends with "
            f"it. Received: sparsity({step})={value!r}"
        ) from None
