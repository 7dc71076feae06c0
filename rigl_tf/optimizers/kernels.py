"""The state that an optimizer keeps for each sparse kernel, and how it updates a kernel."""

import contextlib
import dataclasses

import keras
import tensorflow as tf

from rigl_tf import masks, selection
from rigl_tf.optimizers import growth

_SMALL = 1024  # entries of a kernel whose temporary arrays are not worth waiting for


@dataclasses.dataclass(eq=False)
class Explored:
    """Which connections of one kernel have been active so far."""

    ever_active: keras.Variable
    num_replaced: keras.Variable  # by the last update


@dataclasses.dataclass(eq=False)
class KernelState:
    """The state of one sparse kernel, in an object whose attributes Keras does not track."""

    sparse: masks.SparseKernel
    index: int
    trained: keras.Variable  # the variable that the inner optimizer trains, usually the kernel
    slots: list  # of `Slot`, the slots of the inner optimizer
    sparsity: float | None  # the sparsity that the optimizer gives to it, if it does
    average: keras.Variable | None = None  # moving average of the dense gradient
    initial_std: keras.Variable | None = None  # of the active weights when training begins
    explored: Explored | None = None

    @property
    def kernel(self):
        return self.sparse.variable

    @property
    def mask(self):
        return self.sparse.kernel_mask

    def start(self):
        """Sets this state to its first values, from the current kernel and mask."""
        kernel = tf.convert_to_tensor(self.kernel)
        if self.trained is not self.kernel:
            self.trained.assign(kernel)
        if self.average is not None:
            self.average.assign(tf.zeros_like(kernel))
        if self.initial_std is not None:
            self.initial_std.assign(std_of_active(self.sparse))
        if self.explored is not None:
            self.explored.ever_active.assign(self.sparse.mask)
            self.explored.num_replaced.assign(0)

    def trained_gradient(self, gradient):
        """The gradient for the inner optimizer: zero for inactive connections."""
        return masks.masked(gradient, self.mask)

    def note_exploration(self, old, new, ever_active, num_replaced):
        """Records a mask update, if `explored` is kept.

        The last two arguments are the variables of `explored` on one replica.
        """
        if self.explored is not None:
            ever_active.assign(ever_active | old | new)
            num_replaced.assign(tf.math.count_nonzero(new & ~old, dtype=tf.int64))

    def explored_values(self):
        """The variables of `explored`, as arguments of `strategy.extended.update`."""
        if self.explored is None:
            return None, None
        return self.explored.ever_active.value, self.explored.num_replaced.value

    def slot_values(self):
        """The variables of `slots`, as arguments of `strategy.extended.update`."""
        return [slot.variable.value for slot in self.slots]

    def restart_slots(self, variables, where):
        """Resets slots (`slot_values` on a replica) to their first values where `where` is true."""
        for variable, slot in zip(variables, self.slots, strict=True):
            start = slot.initializer(variable.shape, dtype=variable.dtype)
            variable.assign(tf.where(where, start, variable))

    def zero_inactive(self, strategy):
        """Zeroes the inactive connections."""

        def zero_one(kernel, mask):
            kernel.assign(masks.masked(kernel, mask))

        args = (self.mask.value,)
        strategy.extended.update(self.kernel.value, zero_one, args=args, group=False)

    def moves_inactive(self):
        """Whether slots, such as a momentum, would move inactive connections."""
        inactive = tf.logical_not(tf.convert_to_tensor(self.mask))
        slots = [(tf.convert_to_tensor(slot.variable), slot.initializer) for slot in self.slots]
        moved = [slot != start(slot.shape, dtype=slot.dtype) for slot, start in slots]
        return tf.reduce_any([False, *(tf.reduce_any(each & inactive) for each in moved)])

    def update(self, strategy, gradient, step, updated, previous=()):
        """Applies a mask update to the kernel, in the same way on every replica.

        Dropped connections become zero. Where connections are dropped or grown, every slot is
        reset. The user's own constraint is applied, as after a gradient step.

        Args:
            updated: Function `updated(state, kernel, mask, gradient, step, initial_std)` that
                returns the new mask, the first values of grown connections, and the connections
                that restart with such a value, or `None`. All arguments after the first are
                tensors.
            previous: What this method returned for another kernel: this update begins after that
                one. XLA would otherwise work on all kernels at the same time, and need memory for
                the temporary arrays of all of them. Small kernels do not wait.

        Returns:
            A scalar integer tensor for each replica of this worker. It is always 0, but known only
            after the new mask. For small kernels, `previous`.
        """
        waits = self.sparse.size > _SMALL
        zeros = iter(previous if waits else ())

        def update_one(kernel, gradient, mask, step, average, initial_std, slots, explored):
            # XLA ignores control dependencies, so the arguments are computed with this zero.
            zero = next(zeros, 0)
            old = tf.convert_to_tensor(mask) & tf.equal(zero, 0)
            new, values, restarted = updated(
                self,
                tf.convert_to_tensor(kernel),
                old,
                gradient if average is None else tf.convert_to_tensor(average),
                tf.convert_to_tensor(step) + tf.cast(zero, step.dtype),
                None if initial_std is None else tf.convert_to_tensor(initial_std),
            )
            changed = self.sparse.replace((kernel, mask), new, values, restarted)
            self.restart_slots(slots, changed)
            self.note_exploration(old, new, *explored)
            # XLA does not know that the sum is never negative. (If only a part of the mask was
            # summed, XLA would compute this part of all masks before again for each kernel.)
            return tf.minimum(selection.num_true(new), 0)

        def value(variable):
            return None if variable is None else variable.value

        args = (
            gradient,
            self.mask.value,
            step.value,
            value(self.average),
            value(self.initial_std),
            self.slot_values(),
            self.explored_values(),
        )
        done = strategy.extended.update(self.kernel.value, update_one, args=args, group=False)
        return done if waits else previous


def first_value(compute):
    """An initializer that calls `compute`, which returns an array, a tensor or a variable.

    A value that is assigned later would replace the one that TensorFlow restores from a checkpoint
    when the variable is created.
    """
    return lambda shape, dtype=None: tf.cast(tf.convert_to_tensor(compute()), dtype)


def std_of_active(sparse):
    """Standard deviation of the active weights of a `masks.SparseKernel`."""
    return growth.std_of_active(tf.convert_to_tensor(sparse.variable), sparse.is_active())


class Plan:
    """The variables that an optimizer trains, and its sparse kernels by the ids of their variables.

    Args:
        variables: The variables of the model that the optimizer trains.
        trained: For each of them, the variable that the inner optimizer trains instead.
        kernels: List of `KernelState`.
        is_elementwise: Whether the inner optimizer treats each entry of a variable by itself.
        is_update_next: Function without arguments: whether the next step is an update that needs
            the gradients of inactive connections.
    """

    def __init__(self, variables, trained, kernels, is_elementwise, is_update_next):
        self.variables = variables
        self.by_id = {id(sparse.kernel): sparse for sparse in kernels}
        self._trained_by_id = {
            id(variable): twin for variable, twin in zip(variables, trained, strict=True)
        }
        # Data of some algorithms for each kernel, by its index. (As an attribute of the optimizer,
        # a dictionary with integer keys could not be saved in a checkpoint of TensorFlow.)
        self.num_moved, self.counts = {}, {}
        # Pairs (sparse kernel, average of its weights), if the inner optimizer has `use_ema=True`.
        self.weight_averages = [
            (sparse, slot.variable)
            for sparse in kernels
            for slot in sparse.slots
            if slot.is_weight_average and sparse.sparse.execution == "masked"
        ]
        self.csr = [sparse for sparse in kernels if sparse.sparse.execution == "csr"]
        self.is_update_next = is_update_next
        for sparse in self.csr:
            sparse.sparse.plans.add(self)
        # Kernels whose zeros no gradient step changes, if their slots are zero there as well.
        self.keep_zeros = [
            sparse
            for sparse in kernels
            if is_elementwise
            and sparse.sparse.execution == "masked"
            and sparse.trained is sparse.kernel
            and sparse.sparse.constraint is None
        ]
        # Whether other code may have changed masks, weights or slots; and whether there are slots
        # that move inactive connections. These variables are not part of the saved state.
        self.is_suspect, self.moves_inactive = (
            keras.Variable(
                True, dtype="bool", trainable=False, aggregation="only_first_replica", name=name
            )
            for name in ("is_suspect", "moves_inactive")
        )
        for sparse in self.keep_zeros:
            sparse.sparse.watchers.append(self.is_suspect)

    def zero_inactive(self, strategy):
        """Zeroes the inactive connections of the kernels in `keep_zeros`."""
        for sparse in self.keep_zeros:
            sparse.zero_inactive(strategy)

    def look(self, strategy):
        """Sets inactive connections to zero, and looks for slots that would move them."""
        self.zero_inactive(strategy)
        self.moves_inactive.assign(
            tf.reduce_any([sparse.moves_inactive() for sparse in self.keep_zeros])
        )
        self.is_suspect.assign(False)

    @contextlib.contextmanager
    def without_constraints(self, leaves_out):
        """Removes the constraints of the kernels in `keep_zeros` for a while, if `leaves_out`.

        A constraint reads and writes each whole kernel, and here it would change nothing.
        """
        kernels = [sparse.kernel for sparse in self.keep_zeros] if leaves_out else []
        kernels += [sparse.kernel for sparse in self.csr if sparse.sparse.constraint is None]
        constraints = [kernel.constraint for kernel in kernels]
        try:
            for kernel in kernels:
                kernel.constraint = None
            yield
        finally:
            for kernel, constraint in zip(kernels, constraints, strict=True):
                kernel.constraint = constraint

    def trained(self, variables):
        """For each variable, the variable that the inner optimizer trains instead."""
        return [self._trained_by_id.get(id(variable), variable) for variable in variables]

    def check_known(self, variables):
        """Raises a `ValueError` if a variable is not one of those that `build` got."""
        known = {id(variable) for variable in self.variables}
        unknown = [variable for variable in variables if id(variable) not in known]
        if unknown:
            raise ValueError(
                "An optimizer trains the variables that it was built with: make a new one for "
                "another model, or after `rigl_tf.with_execution`, which only converts "
                "`model.optimizer`. Received: variables="
                f"{[getattr(variable, 'path', variable.name) for variable in unknown]}"
            )

    def dense_gradients(self, gradients, variables):
        """The gradients; those of sparse kernels are converted to tensors.

        (The gradient of an embedding, which is read by rows, is a `tf.IndexedSlices`.)
        """
        return [
            tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
            if isinstance(gradient, tf.IndexedSlices) and id(variable) in self.by_id
            else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]


def sum_over_replicas(strategy, pairs, loss_scale=None):
    """The gradients of the kernels, summed over the replicas: the gradient of the global batch.

    Args:
        loss_scale: Number or scalar tensor by which the loss was multiplied, or `None`.
    """
    if not pairs:
        return []
    gradients = [gradient for _, gradient in pairs]
    if loss_scale is not None:
        args = (gradients, tf.cast(loss_scale, tf.float32))
        gradients = strategy.extended.call_for_each_replica(_unscaled, args=args)
    destinations = [sparse.kernel.value for sparse, _ in pairs]
    return strategy.extended.batch_reduce_to(
        tf.distribute.ReduceOp.SUM, list(zip(gradients, destinations, strict=True))
    )


def _unscaled(gradients, loss_scale):
    # As Keras does: in float32, because float16 cannot hold every scale.
    return [
        tf.cast(keras.ops.divide(gradient, loss_scale), gradient.dtype) for gradient in gradients
    ]


def all_finite(strategy, gradients, pairs):
    """Whether the (reduced) gradients and the kernels of `pairs` are finite everywhere."""
    first = [strategy.experimental_local_results(gradient)[0] for gradient in gradients]
    tensors = first + [tf.convert_to_tensor(sparse.kernel) for sparse, _ in pairs]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])


def average_gradients(strategy, pairs, momentum, loss_scale=None):
    """Updates the moving average of each kernel's gradient; see `sum_over_replicas`."""

    def average_one(kernel, gradient, average):
        new = momentum * average + (1 - momentum) * gradient
        # A gradient that overflowed must not stay in the average for ever.
        average.assign(tf.where(tf.math.is_finite(new), new, average))

    gradients = sum_over_replicas(strategy, pairs, loss_scale)
    for (sparse, _), gradient in zip(pairs, gradients, strict=True):
        strategy.extended.update(
            sparse.kernel.value, average_one, args=(gradient, sparse.average.value)
        )


def mask_weight_averages(strategy, plan):
    """Sets the averages of inactive connections to zero.

    Keras computes the average of a kernel before it applies the constraint, and does not see
    changes by `set_masks`.
    """

    def mask_one(average, mask):
        average.assign(masks.masked(average, mask))

    for sparse, average in plan.weight_averages:
        strategy.extended.update(average.value, mask_one, args=(sparse.mask.value,))


def select_from(strategy, sparse, latent, select):
    """Sets a kernel to the part of `latent`, dense weights, that a new mask selects.

    Args:
        select: Function `select(sparse, latent, mask)` that returns the new mask, a tensor.
    """

    def select_one(kernel, latent, mask, explored):
        latent, old = tf.convert_to_tensor(latent), tf.convert_to_tensor(mask)
        new = select(sparse, latent, old)
        sparse.sparse.put((kernel, mask), new, latent)
        sparse.note_exploration(old, new, *explored)

    args = (latent.value, sparse.mask.value, sparse.explored_values())
    strategy.extended.update(sparse.kernel.value, select_one, args=args, group=False)


def explored_by(optimizers):
    """The states of all kernels of some sparse optimizers, which must track the exploration."""
    return [each for optimizer in optimizers for each in optimizer._explored_kernels()]


def exploration_rate(explored):
    """The share of all connections of these kernels that have been active at some time."""
    ever = [tf.convert_to_tensor(each.explored.ever_active) for each in explored]
    num_ever = sum(int(tf.math.count_nonzero(each)) for each in ever)
    return num_ever / sum(each.sparse.size for each in explored)


def turnover(explored):
    """The share of the active connections of these kernels that their last update grew."""
    num_replaced = sum(
        int(keras.ops.convert_to_numpy(sparse.explored.num_replaced)) for sparse in explored
    )
    return num_replaced / max(sum(each.sparse.num_active for each in explored), 1)
