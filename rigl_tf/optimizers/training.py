"""The base class of all sparse optimizers: gradient steps, and the same updates on each replica."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.optimizers import csr_state, kernels, limits
from rigl_tf.optimizers.slots import is_elementwise, optimizers_within, recorded_slots
from rigl_tf.optimizers.wrapping import WrappingOptimizer, can_hold, created_once

# How often, in steps, it is checked whether other code has changed inactive connections.
_CHECK_FREQUENCY = 100


class SparseTraining(WrappingOptimizer):
    """Base class of all optimizers that train sparse models.

    It wraps another optimizer, which trains the active connections. A subclass decides in which
    steps the masks are updated (`is_update_step`), and how (`_update_masks`).

    Args:
        inner_optimizer: The dense `keras.optimizers.Optimizer` to wrap, or its name.
        name: String. Defaults to the name of the class in snake case, with a number.

    Attributes:
        trains_at_updates: Boolean, whether an update step is also a gradient step; then the masks
            are updated after it. False unless a subclass sets it.
        track_exploration: Boolean, whether `exploration_rate` and `turnover` are computed.
        dense_gradients: String, when the algorithm needs the gradients of inactive connections:
            `"never"`, `"at updates"` or `"always"`. The cost of training depends on it, see
            `rigl_tf.flops.training_flops`.
        supports_csr: Boolean, whether it can train CSR kernels.
        supports_structures: Boolean, whether its masks keep the structures of
            `rigl_tf.structures`.
    """

    dense_gradients = "never"
    supports_csr = False
    supports_structures = False
    trains_at_updates = False
    track_exploration = False
    _num_told = 0
    _has_told = False
    _has_begun = False
    _build_error = None

    def __init__(
        self, inner_optimizer: keras.optimizers.Optimizer | str, name: str | None = None
    ) -> None:
        super().__init__(inner_optimizer, name=name)
        within = optimizers_within(self.inner_optimizer)
        if any(isinstance(each, SparseTraining) for each in within):
            raise ValueError(
                "`inner_optimizer` must be a dense optimizer. "
                f"Received: inner_optimizer={self.inner_optimizer!r}"
            )

    # The decisions of a subclass.

    def is_update_step(self, step: tf.Tensor | int) -> tf.Tensor | bool:
        """Whether masks are updated in a step.

        Args:
            step: Integer or scalar integer tensor.

        Returns:
            Boolean or scalar boolean tensor.
        """
        return False

    def _update_masks(self, strategy, pairs, loss_scale):
        """An update step, in the same way on every replica.

        Args:
            strategy: The `tf.distribute.Strategy`. The method is called in its cross-replica
                context.
            pairs: List of `(KernelState, its gradient on each replica)`.
            loss_scale: As in `kernels.sum_over_replicas`.
        """

    def _before_step(self, strategy, pairs, loss_scale):
        """Called before every step, with the arguments of `_update_masks`."""

    def _begin(self):
        """Called once, before the first step of this object, and outside of its graph."""

    def _check_schedule(self):
        """Raises a `ValueError` unless the arguments of the schedule are right together."""

    def _allocate(self, kernels):
        """For each of these kernels, the sparsity that the optimizer gives to it, or `None`."""
        return [None] * len(kernels)

    def _state_of(self, kernel, index):
        """More variables for a kernel, by the names of the fields of `KernelState`."""
        return {}

    # State.

    def build(self, variables: Iterable[keras.Variable]) -> None:
        """Creates the state of this optimizer and of the inner one.

        Args:
            variables: The trainable variables of the model.

        Raises:
            ValueError: If none of the variables is a sparse kernel, the inner optimizer is not new,
                or an argument does not fit these kernels. Then the optimizer stays as it was. If it
                cannot be used any more, every later call raises the same error.
        """
        if self.built:
            return
        if self._build_error is not None:
            raise self._build_error
        variables = list(variables)
        if not variables:
            return  # Keras calls it without variables for models that have none outside of layers
        if tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context():
            raise ValueError(
                f"{type(self).__name__} must be built in the scope of the strategy: call "
                "`optimizer.build(model.trainable_variables)` there, before the first "
                "`strategy.run`"
            )
        sparse = [kernel for kernel in map(masks.kernel_of, variables) if kernel is not None]
        if not sparse:
            raise ValueError(
                f"{type(self).__name__} needs a sparse model with a sparse kernel that is not "
                "frozen: make one with `rigl_tf.sparsify(model, sparsity=...)` and compile it. If "
                "its layers are not built, and a step calls methods of theirs, call it once "
                "before. If it is loaded from a `.keras` file without its sparse layers, as of a "
                "subclassed model, load it with `compile=False`, then use `sparsify` and "
                "`load_weights` with this file. Or, if all sparse layers are frozen on purpose, "
                "compile the model with the inner optimizer alone. Received: variables="
                f"{[getattr(variable, 'path', variable.name) for variable in variables]}"
            )
        self.check_csr([kernel.path for kernel in sparse if kernel.execution == "csr"])
        self._check_structures(sparse)
        limits.check_unused(self.inner_optimizer)
        limits.warn_of_vanishing_squares(self.inner_optimizer)
        masks.settle(sparse)
        self._check_schedule()
        shares = self._allocate(sparse)
        try:
            with created_once():
                self._create_state(variables, shares)
        except Exception as error:
            self.built, self._build_error = False, error
            raise

    def check_csr(self, paths: Sequence[str]) -> None:
        """Raises a `ValueError` if this optimizer cannot train CSR kernels.

        Args:
            paths: The paths of the CSR kernels of the model.
        """
        if paths:
            limits.check_takes_values(self.inner_optimizer, paths)
        if paths and not self.supports_csr:
            raise ValueError(
                f"{type(self).__name__} with these arguments needs masked kernels: use "
                "`rigl_tf.with_execution(model, 'masked')` first, or `execution='masked'` in "
                f"`rigl_tf.sparsify`. Received: CSR kernels {paths}"
            )

    def _check_structures(self, sparse):
        structured = {
            each.path: str(each.units.structure) for each in sparse if each.units.structure
        }
        if structured and not self.supports_structures:
            raise ValueError(
                f"{type(self).__name__} with these arguments chooses single connections, which "
                "would break structures: use another algorithm, or `structure=None` in "
                f"`rigl_tf.sparsify`. Received: structures={structured}"
            )

    def _create_state(self, variables, shares):
        super().build(variables)
        self.step = self._add_scalar("step")
        self.num_skipped_updates = self._add_scalar("num_skipped_updates")
        trained = self._trained_variables(variables)
        with recorded_slots(self.inner_optimizer) as slots:
            self.inner_optimizer.build(trained)
        shares = iter(shares)
        sparse_kernels = [
            self._sparse_kernel(kernel, index, twin, slots.get(id(twin), []), next(shares))
            for index, (kernel, twin) in enumerate(zip(variables, trained, strict=True))
            if masks.kernel_of(kernel) is not None
        ]
        self._plan = kernels.Plan(
            variables,
            trained,
            sparse_kernels,
            is_elementwise(self.inner_optimizer),
            self._is_update_next,
        )
        with tf.init_scope():
            # TensorFlow may have restored the new variables already, from a checkpoint.
            self.start_from_state()

    def _start(self):
        with tf.init_scope():
            for variable in (self.step, self.num_skipped_updates):
                variable.assign(0)
            for sparse in self._plan.by_id.values():
                sparse.start()

    @property
    def model_variables(self) -> list[keras.Variable]:
        """The variables of the model with which the optimizer was built, in their order."""
        return list(self._plan.variables) if self.built else []

    def slots_of_kernels(self) -> dict[int, masks.SparseKernel]:
        """`{id of a slot's variable: SparseKernel}` for the slots of the inner optimizer."""
        return {
            id(slot.variable): state.sparse
            for state in self._plan.by_id.values()
            for slot in state.slots
        }

    def start_from_state(self) -> None:
        """Continues from a state that was set from outside, for example loaded from a file."""
        self._plan.is_suspect.assign(True)
        self._num_told = self._num_skipped()
        self._follow_scale()
        self._collect()

    def _trained_variables(self, variables):
        """For each variable of the model, the variable that the inner optimizer trains instead."""
        return variables

    def _sparse_kernel(self, kernel, index, trained, slots, sparsity):
        state = self._state_of(kernel, index)
        if self.track_exploration:
            sparse_kernel = masks.kernel_of(kernel)
            name = f"{sparse_kernel.path.replace('/', '_')}_ever_active"
            first_mask = kernels.first_value(lambda: sparse_kernel.mask)
            ever_active = self.add_variable(
                sparse_kernel.shape, first_mask, dtype="bool", name=name
            )
            num_replaced = self._add_scalar(f"num_replaced_{index}")
            state["explored"] = kernels.Explored(ever_active, num_replaced)
        return csr_state.state_of(masks.kernel_of(kernel), index, trained, slots, sparsity, **state)

    def _add_scalar(self, name, dtype="int64", initializer: Any = "zeros"):
        return self.add_variable(
            (), initializer, dtype=dtype, aggregation="only_first_replica", name=name
        )

    # Steps.

    @tf.autograph.experimental.do_not_convert
    def apply(
        self, grads: Iterable[Any], trainable_variables: Iterable[keras.Variable] | None = None
    ) -> None:
        """Trains the active connections or, in an update step, updates the masks.

        Args:
            grads: The gradients of the variables, `None` for variables without a gradient.
            trainable_variables: The variables. Defaults to all variables that `build` got.

        Raises:
            ValueError: If the optimizer is not built and no variables are given, variables are
                unknown, the number of gradients is wrong, or it is called outside of a replica
                context.
        """
        if not self.built:
            if trainable_variables is None:
                raise ValueError(
                    "The first call of `apply` needs `trainable_variables`; or call "
                    "`optimizer.build(trainable_variables)` first. "
                    "Received: trainable_variables=None"
                )
            self.build(trainable_variables)
        grads = list(grads)
        if not self.built and not grads:
            return  # the model has no weight to train
        variables = list(trainable_variables or self._plan.variables)
        self._plan.check_known(variables)
        if len(grads) != len(variables):
            raise ValueError(
                f"`grads` must have a gradient, or None, for each of the {len(variables)} "
                f"variables. Received: {len(grads)} gradients"
            )
        context = tf.distribute.get_replica_context()
        if context is None:
            raise ValueError("`apply` must be called in a replica context, as in `strategy.run`.")

        # XLA fuses constraints with other operations, so they cost less than a branch would.
        leaves_out = bool(self._plan.keep_zeros) and limits.is_known_to_run_without_xla()

        def across_replicas(strategy, grads):
            self._apply_across_replicas(strategy, grads, variables, leaves_out)

        limits.check_strategy(self.inner_optimizer)
        grads = self._plan.dense_gradients(grads, variables)
        context.merge_call(across_replicas, args=(grads,))

    def _apply_across_replicas(self, strategy, grads, variables, leaves_out):
        """One step of all replicas. The `cond` must be here, in the cross-replica context.

        With `leaves_out`, constraints are not applied where they would change nothing.
        """
        if not self._has_begun:
            self._has_begun = True
            with tf.init_scope():
                self._begin()
        pairs = [
            (self._plan.by_id[id(variable)], gradient)
            for gradient, variable in zip(grads, variables, strict=True)
            if gradient is not None and id(variable) in self._plan.by_id
        ]
        # The inner optimizer divides the gradients by this scale, and may change it in its step.
        loss_scale = self.inner_optimizer.scale_loss(1.0)
        if isinstance(loss_scale, float) and loss_scale == 1:
            loss_scale = None
        self._before_step(strategy, pairs, loss_scale)

        def train():
            with self._plan.without_constraints(leaves_out):
                strategy.extended.call_for_each_replica(self._train, args=(grads, variables))
            if leaves_out:
                tf.cond(
                    tf.convert_to_tensor(self._plan.moves_inactive),
                    lambda: self._plan.zero_inactive(strategy),
                    lambda: None,
                )
            self._after_training(strategy)

        def update():
            if self.trains_at_updates:
                train()
            self._update_masks(strategy, pairs, loss_scale)

        step = tf.convert_to_tensor(self.step)
        if leaves_out:
            is_suspect = tf.convert_to_tensor(self._plan.is_suspect)
            tf.cond(
                is_suspect | (step % _CHECK_FREQUENCY == 0),
                lambda: self._plan.look(strategy),
                lambda: None,
            )
        is_update_step = self.is_update_step(step)
        if isinstance(is_update_step, bool):
            update() if is_update_step else train()
        else:
            tf.cond(is_update_step, update, train)
        self.step.assign_add(1)
        self._follow_scale()
        self._collect()

    def _collect(self):
        """Tells the CSR kernels whether the next step is an update that needs dense gradients."""
        if self._needs_gradients:
            is_next = self._is_update_next()
            for sparse in self._plan.csr:
                sparse.collect(is_next)

    def _is_update_next(self):
        return self._needs_gradients and self.is_update_step(tf.convert_to_tensor(self.step))

    @property
    def _needs_gradients(self):
        """Whether mask updates need the gradients of inactive connections."""
        return self.dense_gradients != "never"

    def _train(self, grads, variables):
        """An ordinary gradient step on one replica."""
        trained = []
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is None:
                trained.append(None)
            elif id(variable) in self._plan.by_id:
                trained.append(self._trained_gradient(gradient, self._plan.by_id[id(variable)]))
            else:
                # Inside a `cond`, a gradient must be a tensor of this branch's graph.
                trained.append(tf.identity(gradient))
        self.inner_optimizer.apply(trained, trainable_variables=self._plan.trained(variables))

    def _trained_gradient(self, gradient, sparse):
        """The gradient of a kernel for the inner optimizer."""
        return sparse.trained_gradient(gradient)

    def _after_training(self, strategy):
        """Called after each gradient step, in cross-replica context."""
        kernels.mask_weight_averages(strategy, self._plan)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Finishes training; Keras calls it when `fit` ends.

        It copies averages of weights to the weights, if the inner optimizer keeps averages. It
        warns if mask updates were skipped since the last call. Once, it also warns if no mask was
        updated, or if `end_step` or the final sparsity was not reached.

        Args:
            var_list: The trainable variables of the model.
        """
        super().finalize_variable_values(self._plan.trained(var_list) if self.built else var_list)
        sparse = [kernel for kernel in map(masks.kernel_of, var_list) if kernel is not None]
        own = self._plan.by_id if self.built else {}
        lost = [each.path for each in sparse if id(each.variable) not in own and each.num_outside()]
        for kernel in sparse:
            kernel.zero_inactive()
        if lost:
            warnings.warn(
                "Weights outside of the masks were set to zero in kernels that "
                f"{type(self).__name__} does not train. If they follow other weights, as averages "
                "do, compute them for `weights`, where the masks are, not for "
                f"`trainable_variables`. Received: {len(lost)} such kernels {lost[:5]}",
                stacklevel=2,
            )
        if self.built:
            self._plan.is_suspect.assign(True)
        told, self._num_told = self._num_told, self._num_skipped()
        if self._num_told > told:
            warnings.warn(
                f"{type(self).__name__} skipped {self._num_told - told} mask updates, because "
                "gradients or weights were not finite. These updates changed no mask.",
                stacklevel=2,
            )
        if self.built and not self._has_told:
            message = self._unfinished(int(tf.convert_to_tensor(self.step)))
            if message:
                self._has_told = True
                limits.warn(message)

    def _unfinished(self, step):
        """A sentence on what was not reached when training ended at `step`, or `None`."""

    def _num_skipped(self):
        return int(tf.convert_to_tensor(self.num_skipped_updates)) if self.built else 0

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        super().load_own_variables(store)
        if self.built:
            self._load_counts(store)
            self.start_from_state()

    def _load_counts(self, store):
        """Loads the counters that all sparse optimizers have, from the state of any of them."""
        counts = (self.step, self.num_skipped_updates)
        own = [id(variable) for variable in self.variables]
        saved = {str(own.index(id(count))): count for count in counts}
        if all(name in store and can_hold(count, store[name]) for name, count in saved.items()):
            for name, count in saved.items():
                count.assign(store[name])

    # Exploration.

    def exploration_rate(self) -> float:
        """The share of all connections that have been active at some time during training.

        Reference:

        - [Liu et al., 2021](https://arxiv.org/abs/2102.02887), In-Time Over-Parameterization, its
          rate `R_s`

        Returns:
            Float in `[0, 1]`, over all sparse kernels together.

        Raises:
            ValueError: If the optimizer was not made with `track_exploration=True`, or is not built
                yet.
        """
        return kernels.exploration_rate(self._explored_kernels())

    def turnover(self) -> float:
        """The share of the active connections that the last mask update has grown.

        A connection that was dropped and grown again in this update does not count.

        Returns:
            Float in `[0, 1]`, over all sparse kernels together; 0 before the first update.

        Raises:
            ValueError: If the optimizer was not made with `track_exploration=True`, or is not built
                yet.
        """
        return kernels.turnover(self._explored_kernels())

    def _explored_kernels(self):
        if not self.track_exploration:
            raise ValueError(
                "Exploration must be switched on: pass `track_exploration=True` to "
                f"{type(self).__name__}. Received: track_exploration={self.track_exploration}"
            )
        if not self.built:
            raise ValueError("Exploration is known only after training has begun, or `build`.")
        return self._plan.by_id.values()
