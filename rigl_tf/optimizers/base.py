"""SparseOptimizer: trains the active connections and, at update steps, moves them."""

import warnings
from numbers import Integral, Real

import keras
import tensorflow as tf

from rigl_tf import masks, schedules, selection
from rigl_tf.optimizers import kernels, limits
from rigl_tf.optimizers.slots import optimizers_within, recorded_slots
from rigl_tf.optimizers.wrapping import WrappingOptimizer


class SparseOptimizer(WrappingOptimizer):
    """Base class of the optimizers that train sparse models.

    It wraps another optimizer, as `keras.optimizers.LossScaleOptimizer` does. On ordinary steps
    the inner optimizer trains the active connections. On update steps, instead of a gradient step,
    each kernel drops the active connections with the lowest `drop_scores` and grows as many with
    the highest `grow_scores` (Evci et al., 2020, Algorithm 1). A subclass is a pair of scores:

    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class GrowLargeGradients(SparseOptimizer):
    ...     def grow_scores(self, kernel, mask, gradient):
    ...         return tf.abs(gradient)

    Dropped and grown connections start at zero, in the kernel and in every slot of the inner
    optimizer (or at the value with which the inner optimizer starts that slot). A connection that
    is dropped and grown again in the same update keeps its value.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights.
        end_step: Integer, in steps. No connection changes at or after it.
        begin_step: Integer, in steps. No connection changes before it, nor at step 0.
        update_frequency: Integer, the number of steps from one update to the next.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            its value at `begin_step`, from where it falls to 0 at `end_step` along a cosine; a
            `keras.optimizers.schedules.LearningRateSchedule` or another callable of the step (a
            scalar integer tensor) is taken as it is.
        seed: Integer. Random scores are a function of it, of the kernel's index and of the step.
        gradient_momentum: Float in `[0, 1)` or `None`. If given, `gradient` in the scores is the
            moving average `m * average + (1 - m) * gradient` over all steps.
        name: String.

    Attributes:
        trains_at_updates: Boolean, whether an update step is a gradient step, too; the masks are
            updated after it. False unless a subclass says so.

    Raises:
        ValueError: If an argument is out of its range; when it is built, if the model has no
            sparse kernel.
    """

    trains_at_updates = False

    def __init__(
        self,
        inner_optimizer,
        end_step,
        begin_step=0,
        update_frequency=100,
        drop_fraction=0.3,
        seed=0,
        gradient_momentum=None,
        name=None,
    ):
        inner_optimizer = keras.optimizers.get(inner_optimizer)
        if any(isinstance(each, SparseOptimizer) for each in optimizers_within(inner_optimizer)):
            raise ValueError(
                "`inner_optimizer` must be a dense optimizer. "
                f"Received: inner_optimizer={inner_optimizer!r}"
            )
        if not isinstance(seed, Integral):
            raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")
        schedules.check_update_steps(begin_step, end_step, update_frequency)
        drop_schedule = schedules.drop_fraction_schedule(drop_fraction, begin_step, end_step)
        average = gradient_momentum is not None
        if average and not (isinstance(gradient_momentum, Real) and 0 <= gradient_momentum < 1):
            raise ValueError(
                "`gradient_momentum` must be a number in [0, 1) or None. "
                f"Received: gradient_momentum={gradient_momentum!r}"
            )
        super().__init__(inner_optimizer, name=name)
        self.begin_step = begin_step
        self.end_step = end_step
        self.update_frequency = update_frequency
        self.drop_fraction = drop_fraction
        self._drop_schedule = drop_schedule
        self.seed = seed
        self.gradient_momentum = gradient_momentum
        self._kernel_index = None
        self._kernel_seed = None

    # What an algorithm decides.

    def drop_scores(self, kernel, mask, gradient):
        """Scores of the active connections; the lowest are dropped.

        Args:
            kernel: Tensor, the kernel.
            mask: Boolean tensor of the same shape, the active connections.
            gradient: Tensor of the same shape, the gradient of the loss with respect to all
                connections, inactive ones included, summed over the replicas.

        Returns:
            Tensor of the kernel's shape.
        """
        return tf.abs(kernel)

    def grow_scores(self, kernel, mask, gradient):
        """Scores of the connections that were not kept; the highest are grown.

        Arguments and result are those of `drop_scores`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `grow_scores`.")

    def random_uniform(self, kernel):
        """Random scores in `[0, 1)` of the kernel's shape, for use in a score.

        They are the same on every replica and in every run.
        """
        return tf.random.stateless_uniform(kernel.shape, self._kernel_seed)

    def new_mask(self, kernel, mask, gradient, step):
        """The mask after an update: drop and grow.

        Override it only for an algorithm that is no drop-and-grow. `step` is a scalar tensor.
        """
        num_active = tf.math.count_nonzero(mask, dtype=tf.int32)
        drop_fraction = tf.cast(self._drop_schedule(step), tf.float32)
        num_drop = tf.cast(tf.cast(num_active, tf.float32) * drop_fraction, tf.int32)
        new_mask, _ = selection.drop_and_grow(
            mask,
            self.drop_scores(kernel, mask, gradient),
            self.grow_scores(kernel, mask, gradient),
            num_drop,
        )
        return new_mask

    def is_update_step(self, step):
        """Whether masks are updated at `step`, a scalar integer tensor."""
        return schedules.is_update_step(step, self.begin_step, self.end_step, self.update_frequency)

    # What Keras calls.

    def build(self, variables):
        """Creates the state of this optimizer and of the inner one."""
        if self.built:
            return
        variables = list(variables)
        if not any(masks.mask_of(variable) is not None for variable in variables):
            raise ValueError(
                f"{type(self).__name__} needs a sparse model: make one with `rigl_tf.sparsify(model"
                ", sparsity=...)` and compile that. Received: variables="
                f"{[getattr(variable, 'path', variable.name) for variable in variables]}"
            )
        limits.check_unused(self.inner_optimizer)
        limits.warn_of_vanishing_squares(self.inner_optimizer)
        masks.settle(variables)
        super().build(variables)
        self.step = self._add_counter("step")
        self.num_skipped_updates = self._add_counter("num_skipped_updates")
        with recorded_slots(self.inner_optimizer) as slots:
            self.inner_optimizer.build(variables)
        sparse_kernels = [
            kernels.SparseKernel(
                kernel=kernel,
                mask=masks.mask_of(kernel),
                index=index,
                slots=slots.get(id(kernel), []),
                average=self._add_average(kernel),
            )
            for index, kernel in enumerate(variables)
            if masks.mask_of(kernel) is not None
        ]
        self._plan = kernels.Plan(variables, sparse_kernels)

    def _add_counter(self, name):
        return self.add_variable(
            shape=(), dtype="int64", aggregation="only_first_replica", name=name
        )

    def _add_average(self, kernel):
        if self.gradient_momentum is None:
            return None
        return self.add_variable_from_reference(kernel, name="gradient_average")

    @tf.autograph.experimental.do_not_convert
    def apply(self, grads, trainable_variables=None):
        """Trains the active connections or, at an update step, updates the masks."""
        if not self.built:
            if trainable_variables is None:
                raise ValueError(
                    "The first call of `apply` needs `trainable_variables`, or call "
                    "`optimizer.build(trainable_variables)` before. "
                    "Received: trainable_variables=None"
                )
            self.build(trainable_variables)
        variables = list(trainable_variables or self._plan.variables)
        self._plan.check_known(variables)
        context = tf.distribute.get_replica_context()
        if context is None:
            raise ValueError("`apply` must be called in a replica context, as in `strategy.run`.")

        def across_replicas(strategy, grads):
            self._apply_across_replicas(strategy, grads, variables)

        limits.check_strategy(self.inner_optimizer)
        grads = self._plan.dense_gradients(grads, variables)
        context.merge_call(across_replicas, args=(grads,))

    def _apply_across_replicas(self, strategy, grads, variables):
        """One step of all replicas. The `cond` must stand here, in cross-replica context."""
        pairs = [
            (self._plan.by_id[id(variable)], gradient)
            for gradient, variable in zip(grads, variables, strict=True)
            if gradient is not None and id(variable) in self._plan.by_id
        ]
        if self.gradient_momentum is not None:
            kernels.average_gradients(strategy, pairs, self.gradient_momentum)

        def train():
            strategy.extended.call_for_each_replica(self._train, args=(grads, variables))
            kernels.mask_weight_averages(strategy, self._plan)

        def update():
            if self.trains_at_updates:
                train()
            self._update_masks(strategy, pairs)

        step = tf.convert_to_tensor(self.step)
        is_update_step = self.is_update_step(step)
        if is_update_step is False:
            train()
        else:
            tf.cond(is_update_step, update, train)
        self.step.assign_add(1)

    def _train(self, grads, variables):
        """An ordinary step of one replica: the inner optimizer sees the active connections."""
        trained = []
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is None:
                trained.append(None)
            elif id(variable) in self._plan.by_id:
                trained.append(masks.masked(gradient, self._plan.by_id[id(variable)].mask))
            else:
                # Inside a `cond`, a gradient must be a tensor of this branch's graph.
                trained.append(tf.identity(gradient))
        self.inner_optimizer.apply(trained, trainable_variables=variables)

    def _update_masks(self, strategy, pairs):
        """An update step: one drop-and-grow per kernel, the same on every replica."""
        gradients = kernels.sum_over_replicas(strategy, pairs)

        def update():
            for (sparse, _), gradient in zip(pairs, gradients, strict=True):
                kernels.update_kernel(strategy, sparse, gradient, self.step, self._seeded_new_mask)

        finite = kernels.all_finite(strategy, gradients, pairs)
        tf.cond(finite, update, lambda: self._skip_update())

    def _skip_update(self):
        """NaN or infinite gradients say nothing about connections: leave the masks alone."""
        self.num_skipped_updates.assign_add(1)

    def _seeded_new_mask(self, index, kernel, mask, gradient, step):
        seed = tf.constant([self.seed, 0], tf.int64)
        for data in (index, step):
            seed = tf.random.experimental.stateless_fold_in(seed, data)
        self._kernel_index, self._kernel_seed = index, seed
        try:
            return self.new_mask(kernel, mask, gradient, step)
        finally:
            self._kernel_index = self._kernel_seed = None

    def finalize_variable_values(self, var_list):
        """Called by Keras when `fit` ends: writes averages back, tells of skipped updates."""
        super().finalize_variable_values(var_list)
        for variable in var_list:
            if masks.mask_of(variable) is not None:
                masks.apply_mask(variable)
        num_skipped = int(tf.convert_to_tensor(self.num_skipped_updates)) if self.built else 0
        if num_skipped:
            warnings.warn(
                f"{type(self).__name__} skipped {num_skipped} mask updates, because gradients or "
                "weights were not finite. The masks are as they were before.",
                stacklevel=2,
            )

    def get_config(self):
        return {
            **super().get_config(),
            "end_step": self.end_step,
            "begin_step": self.begin_step,
            "update_frequency": self.update_frequency,
            "drop_fraction": keras.saving.serialize_keras_object(self.drop_fraction),
            "seed": self.seed,
            "gradient_momentum": self.gradient_momentum,
        }
