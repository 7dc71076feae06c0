"""Finds the slots of any optimizer: the variables that it keeps for each weight."""

import contextlib
import dataclasses

import keras
import tensorflow as tf

_ELEMENTWISE = (
    keras.optimizers.SGD,
    keras.optimizers.RMSprop,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Adadelta,
    keras.optimizers.Adagrad,
    keras.optimizers.Adamax,
    keras.optimizers.Nadam,
    keras.optimizers.Lion,
)
# Keras has `MultiOptimizer` since 3.15.
_AROUND_OTHERS = tuple(
    getattr(keras.optimizers, name)
    for name in ("LossScaleOptimizer", "MultiOptimizer")
    if hasattr(keras.optimizers, name)
)


@dataclasses.dataclass(eq=False)
class Slot:
    """A variable that an optimizer keeps for one variable of the model."""

    variable: keras.Variable
    initializer: keras.initializers.Initializer
    is_weight_average: bool  # what `use_ema=True` keeps

    def moved(self, variable, before, was_there):
        """The values for a CSR kernel whose active connections are exchanged for others.

        Args:
            variable: The variable, or its copy on a replica.
            before: For each new connection, its index among the old ones, if it was there.
            was_there: Boolean, whether it was there. If it was not, it gets what slots begin with.
        """
        start = self.initializer(variable.shape, dtype=variable.dtype)
        kept = tf.gather(tf.convert_to_tensor(variable), before)
        return tf.where(was_there, kept, start)


def optimizers_within(optimizer):
    """`optimizer` and those inside it, as in `LossScaleOptimizer` and `MultiOptimizer`."""
    yield optimizer
    if hasattr(optimizer, "inner_optimizer"):
        yield from optimizers_within(optimizer.inner_optimizer)
    elif hasattr(optimizer, "optimizers"):
        for child in optimizer.optimizers:
            yield from optimizers_within(child)


def is_elementwise(optimizer):
    """Whether an entry stays 0 if its weight, gradient and slots are 0, whatever the other entries.

    This is known for the optimizers of Keras that treat each entry by itself. It does not hold if
    they average weights.
    """
    return all(
        type(each) in _ELEMENTWISE and not each.use_ema and getattr(each, "epsilon", 1) > 0
        for each in optimizers_within(optimizer)
        if type(each) not in _AROUND_OTHERS
    )


@contextlib.contextmanager
def recorded_slots(optimizer):
    """Collects `{id(variable): [Slot]}` while `optimizer` is built.

    Every Keras optimizer, those inside it too, creates its slots through the public method
    `add_variable_from_reference`.

    Raises:
        ValueError: If a `MultiOptimizer` creates its optimizers only while it is built.
    """
    slots = {}
    recorded = list(optimizers_within(optimizer))
    for each in recorded:
        each.add_variable_from_reference = _recording(each, slots)
    try:
        yield slots
    finally:
        for each in recorded:
            del each.add_variable_from_reference
    late = [each for each in optimizers_within(optimizer) if each not in recorded]
    if late:
        raise ValueError(
            "A `MultiOptimizer` inside a sparse optimizer must get a "
            "`keras.optimizers.OptimizerMap`: the slots of optimizers that a function creates are "
            f"not known. Received: optimizers {[each.name for each in late]} created by a function"
        )


def _recording(optimizer, slots):
    create = optimizer.add_variable_from_reference

    def add_variable_from_reference(reference_variable, name=None, initializer="zeros"):
        variable = create(reference_variable, name=name, initializer=initializer)
        slot = Slot(
            variable,
            keras.initializers.get(initializer),
            # The name that the base class of Keras uses for these averages.
            is_weight_average=optimizer.use_ema and name == "average",
        )
        slots.setdefault(id(reference_variable), []).append(slot)
        return variable

    return add_variable_from_reference
