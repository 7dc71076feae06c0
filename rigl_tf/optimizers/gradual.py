"""Gradual pruning: from dense to sparse while the network trains."""

import itertools
import math
from numbers import Real

import keras
import tensorflow as tf

from rigl_tf import distributions, schedules, selection
from rigl_tf.optimizers.base import SparseOptimizer
from rigl_tf.optimizers.wrapping import serialized


@keras.saving.register_keras_serializable(package="rigl_tf")
class GradualPruning(SparseOptimizer):
    """Gradual magnitude pruning: a dense network loses its weakest connections while it trains.

    At update steps, after the gradient step, each kernel keeps the connections with the largest
    weights: so many that it has the sparsity `s * (1 - (1 - p) ** power)`, where `s` is its final
    sparsity and `p` goes from 0 at `begin_step` to 1 at the last update. What is pruned does not
    come back.

    Reference:

    - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878), equation 1

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights.
        end_step: Integer, in steps. No connection changes at or after it.
        sparsity: Share of zeros over all sparse kernels in the end, in `[0, 1)`. Or a list of it
            after each update, which does not fall; or a function of the step that gives it, such
            as a `tfmot.sparsity.keras.PruningSchedule` (which gives a pair, the sparsity last). It
            is asked at each update step, and `power` is not used.
        begin_step: Integer, in steps. No connection changes before it, nor at step 0.
        update_frequency: Integer, the number of steps from one update to the next.
        power: Number > 0. The paper uses 3.
        distribution: How the kernels share the sparsity, see `rigl_tf.sparsify`.
        name: String.

    Raises:
        ValueError: If an argument is out of its range; when it is built, if the model has no
            sparse kernel, or there is no update between `begin_step` and `end_step`.

    Example:

    >>> model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> model.compile(GradualPruning("adam", end_step=10_000, sparsity=0.9), "mse")
    """

    trains_at_updates = True

    def __init__(
        self,
        inner_optimizer,
        end_step,
        sparsity,
        begin_step=0,
        update_frequency=100,
        power=3,
        distribution="uniform",
        name=None,
    ):
        distributions.get(distribution)
        if not isinstance(power, Real) or isinstance(power, bool) or not power > 0:
            raise ValueError(f"`power` must be a number > 0. Received: power={power!r}")
        super().__init__(inner_optimizer, end_step, begin_step, update_frequency, name=name)
        self.power = power
        self.distribution = distribution
        if not self._steps:
            raise ValueError(
                "There must be an update between `begin_step` and `end_step`. Received: begin_step="
                f"{begin_step}, end_step={end_step}, update_frequency={update_frequency}"
            )
        self.sparsity = _at_each(self._steps, sparsity) if callable(sparsity) else sparsity
        self._sparsities()  # raises

    @property
    def _steps(self):
        return schedules.update_steps(self.begin_step, self.end_step, self.update_frequency)

    def _sparsities(self):
        """The sparsity of all kernels together after each update."""
        if isinstance(self.sparsity, (list, tuple)):
            if len(self.sparsity) != len(self._steps):
                raise ValueError(
                    f"`sparsity` must have an entry for each of the {len(self._steps)} updates. "
                    f"Received: sparsity={self.sparsity}"
                )
            values = [distributions.check_sparsity(value) for value in self.sparsity]
            # What a schedule computes in float32 may fall in the last digits.
            if any(later < value - 1e-6 for value, later in itertools.pairwise(values)):
                raise ValueError(
                    "`sparsity` must not fall from one update to the next: what is pruned does "
                    f"not come back. Received: sparsity={values}"
                )
            return values
        final = distributions.check_sparsity(self.sparsity)
        last = self._steps[-1]
        begin = min(self.begin_step, last - 1)  # a single update prunes all at once
        progress = [(step - begin) / (last - begin) for step in self._steps]
        return [final * (1 - (1 - share) ** self.power) for share in progress]

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._plan.sparsity = self._plan.allocate(self.distribution, max(self._sparsities()))

    def _counts(self, size, sparsity):
        """The number of active connections of a kernel, whose final sparsity it is, over time."""
        sparsities = self._sparsities()
        highest = max(sparsities) or 1.0
        return [
            size - distributions.num_zeros(size, sparsity * (overall / highest))
            for overall in sparsities
        ]

    def _update_kernels(self, strategy, pairs, gradients):
        # A kernel without a gradient is pruned, too: that of zeros is not used.
        known = {sparse.index for sparse, _ in pairs}
        others = [each for each in self._plan.by_id.values() if each.index not in known]
        zeros = [tf.zeros(each.kernel.shape, each.kernel.dtype) for each in others]
        pairs = [*pairs, *((each, None) for each in others)]
        super()._update_kernels(strategy, pairs, [*gradients, *zeros])

    def new_mask(self, kernel, mask, gradient, step):
        size = math.prod(kernel.shape)
        counts = self._counts(size, self._plan.sparsity[self._kernel_index])
        counts = tf.constant(counts, tf.int32)
        # Not `counts[...]`: XLA would compile a slice anew for every step.
        num_active = tf.gather(counts, (step - self._steps[0]) // self.update_frequency)
        scores = self._scores("drop_scores", kernel, mask, gradient)
        return selection.keep(mask, scores, num_active)

    def get_config(self):
        config = super().get_config()
        names = ("inner_optimizer", "end_step", "begin_step", "update_frequency", "name")
        return {
            **{name: config[name] for name in names},
            "sparsity": self.sparsity,
            "power": self.power,
            "distribution": serialized("distribution", self.distribution),
        }


def _at_each(steps, schedule):
    """The sparsity that a schedule gives at each step."""
    return [_number(step, schedule(tf.constant(step, tf.int64))) for step in steps]


def _number(step, value):
    try:
        return float(value[-1] if isinstance(value, (list, tuple)) else value)
    except (TypeError, ValueError):
        raise ValueError(
            "`sparsity`, as a function of the step, must give a number, or a pair of which it is "
            f"the last. Received: sparsity({step})={value!r}"
        ) from None
