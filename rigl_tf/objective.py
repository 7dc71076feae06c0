"""The mean loss of a model over data, for its gradients; the state of the model is not changed."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from rigl_tf import masks, walk


class Batch(NamedTuple):
    """One batch of the data. Targets and weights of examples (or `None`) are tensors."""

    inputs: Any
    targets: Any
    sample_weight: Any
    num_examples: int


def read_batches(data):
    """An iterator over `data` that yields a `Batch` at a time, so only one is in memory.

    Args:
        data: A pair `(inputs, targets)` or a triple `(inputs, targets, sample_weight)`; or an
            iterable of such batches: a list, a `tf.data.Dataset`, a `keras.utils.PyDataset`. A
            tuple with two or three entries is always taken as one batch, so put two batches into a
            list. The targets of several outputs are a tuple, a dictionary, or a list of arrays.

    Raises:
        ValueError: If `data` is endless. When it is read: if it is empty, or not made of such
            batches.

    Example:

    >>> data = [(np.ones((3, 2)), [0, 1, 2]), (np.ones((1, 2)), [0])]
    >>> [batch.num_examples for batch in read_batches(data)]
    [3, 1]
    """
    if not isinstance(data, Iterable) or isinstance(data, (str, dict)):
        raise ValueError(f"`data` must be {_BATCHES}. Received: {type(data).__name__}")
    check_ends(data)
    return _read([data] if _is_batch(data) else data)


def batches(data):
    """The list of `read_batches(data)`, for code that reads the same batches several times.

    Raises:
        ValueError: As `read_batches`; or if the number of batches is unknown, because they could
            fill the memory.
    """
    found = read_batches(data)
    if not _is_batch(data) and _length(data) is None:
        raise ValueError(
            "`data` is read several times and kept in memory, so its number of batches must be "
            "known: pass a list, such as `list(data.take(10))` for a data set. "
            f"Received: {type(data).__name__} of unknown length"
        )
    return list(found)


def check_ends(data):
    """Raises a `ValueError` if it is known that the batches never end."""
    if _length(data) == math.inf:
        raise ValueError("`data` must end. Received: a data set that is repeated endlessly")


def mean_over(some_batches: Iterable["Batch"], function: Callable[..., Any]) -> list[Any]:
    """The mean over all examples of a function of batches.

    Args:
        some_batches: Iterable of `Batch`.
        function: Function `function(inputs, targets, sample_weight)` that returns a list of tensors
            or arrays, which are means over the examples of the batch.

    Returns:
        List of tensors or arrays.
    """
    means: Any = None
    num_examples = 0
    for inputs, targets, sample_weight, size in some_batches:
        found = function(inputs, targets, sample_weight)
        num_examples += size
        share = size / num_examples
        before = found if means is None else means
        means = [a + share * (b - a) for a, b in zip(before, found, strict=True)]
    return means


_BATCHES = (
    "a pair `(inputs, targets)` or a triple `(inputs, targets, sample_weight)`, or an iterable of "
    "such batches"
)


def _is_batch(data):
    return isinstance(data, tuple) and len(data) in (2, 3)


def _length(data):
    """The number of batches: `math.inf` if they never end, `None` if it is unknown."""
    if isinstance(data, tf.data.Dataset):
        length = int(data.cardinality())
        known = {tf.data.INFINITE_CARDINALITY: math.inf, tf.data.UNKNOWN_CARDINALITY: None}
        return known.get(length, length)
    if isinstance(data, keras.utils.PyDataset):
        length = data.num_batches
        return math.inf if length is None else length
    try:
        return len(data)
    except TypeError:
        return None


def _read(data):
    is_empty = True
    for batch in data:
        yield _batch(batch)
        is_empty = False
    if is_empty:
        raise ValueError("`data` must have at least one batch. Received: none")


def _batch(batch):
    if not _is_batch(batch):
        raise ValueError(
            f"`data` must be {_BATCHES}. Received: a batch of type {type(batch).__name__}"
            + (f" and length {len(batch)}" if isinstance(batch, tuple) else "")
        )
    inputs, targets, sample_weight = (*batch, None)[:3]
    is_structure = isinstance(targets, (tuple, dict)) or (
        isinstance(targets, list) and any(getattr(each, "shape", ()) for each in targets)
    )
    try:
        if is_structure:
            targets = tf.nest.map_structure(tf.convert_to_tensor, targets)
        else:
            targets = tf.convert_to_tensor(targets)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Targets must be arrays. Received: {type(targets).__name__}") from error
    if sample_weight is not None:
        sample_weight = _weights(sample_weight)
    return Batch(inputs, targets, sample_weight, _num_examples(inputs, targets, sample_weight))


def _weights(sample_weight):
    try:
        weights = None if isinstance(sample_weight, tuple) else tf.convert_to_tensor(sample_weight)
    except (TypeError, ValueError):
        weights = None
    if weights is None or weights.dtype == tf.string:
        raise ValueError(
            "The weights of examples must be one array of numbers, for all outputs together. "
            f"Received: sample_weight of type {type(sample_weight).__name__}"
        )
    return tf.cast(weights, keras.config.floatx())


def _num_examples(inputs, targets, sample_weight):
    tensors = tf.nest.flatten(targets) + ([] if sample_weight is None else [sample_weight])
    shapes = [tf.shape(each).numpy().tolist() for each in tensors]
    shapes += [list(x.shape) for x in tf.nest.flatten(inputs) if getattr(x, "shape", ())]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "A batch must have at least one example, and the same number of inputs, targets and "
            f"weights of examples. Received: shapes={shapes}"
        )
    return sizes.pop()


def mean_loss(loss):
    """Returns a function of targets, outputs and weights of examples: the mean loss over a batch.

    The mean is the sum over the examples, each with its weight, divided by their number. It does
    not depend on the reduction of the loss, and is the same on a replica, where Keras divides its
    losses by the number of replicas. As in `model.fit`, masked timesteps, such as the end of a
    short sequence, do not count.

    Args:
        loss: A Keras loss, its name, or a function of targets and outputs. It may also be in a list
            or dictionary with one entry, as a model may be compiled.

    Returns:
        Function `mean(targets, outputs, sample_weight=None)`.

    Raises:
        ValueError: If `loss` is something else. When the result is called: if a Keras loss gets
            several outputs, or there are weights but the loss has no value for each example.

    Example:

    >>> float(mean_loss(keras.losses.MeanSquaredError("sum"))(np.zeros((4, 1)), np.ones((4, 1))))
    1.0
    >>> float(mean_loss("mse")(np.zeros((4, 1)), np.ones((4, 1)), [0.0, 0.0, 1.0, 3.0]))
    1.0
    """
    if isinstance(loss, (list, tuple, dict)) and len(loss) == 1:
        (loss,) = loss.values() if isinstance(loss, dict) else loss
    if not isinstance(loss, str) and not callable(loss):
        received = repr(loss) if not hasattr(loss, "shape") else f"{type(loss).__name__} of numbers"
        raise ValueError(
            "`loss` must be a Keras loss, its name, or a function of targets and outputs (of all "
            f"of them, if there are several outputs). Received: loss={received}"
        )
    is_own = not isinstance(loss, (str, keras.losses.Loss))
    name, loss = getattr(loss, "name", loss), keras.losses.get(loss)
    if not isinstance(loss, keras.losses.Loss):
        loss = _Function(loss)

    def mean(targets, outputs, sample_weight=None):
        if not is_own and tf.nest.is_nested(outputs):
            raise ValueError(
                "The loss of a model with several outputs must be a function of all targets and "
                f"outputs. Received: loss={name!r}"
            )
        keras_loss = loss
        if isinstance(loss, _Function) and any(map(tf.nest.is_nested, (targets, outputs))):
            keras_loss = _Values(tf.convert_to_tensor(loss.function(targets, outputs)))
            targets = keras_loss.values
        num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
        shape = ()
        if num_replicas > 1 or sample_weight is not None:
            shape = _reduced(None, keras_loss, targets, outputs).shape
        if sample_weight is not None:
            _check_fits(sample_weight, shape, name)
        value = _reduced("sum_over_batch_size", keras_loss, targets, outputs, sample_weight)
        # Keras divides by the number of replicas if it has reduced the loss itself.
        return value * num_replicas if len(shape) else value

    return mean


def _check_fits(sample_weight, shape, name):
    received, shape = tf.convert_to_tensor(sample_weight).shape, tf.TensorShape(shape)
    num_shared = min(received.rank, shape.rank)
    fits = received[:num_shared].is_compatible_with(shape[:num_shared])
    if not num_shared or not fits or any(size != 1 for size in received[num_shared:]):
        raise ValueError(
            "If examples have weights, a loss must have a value for each of them. "
            f"Received: loss={name!r} with values of shape {tuple(shape)}, and weights of shape "
            f"{tuple(received)}"
        )


class _Function(keras.losses.Loss):
    """A loss that is a function, which gets the targets and outputs as in `model.fit`.

    They are converted to the dtype of losses, and an axis of size 1 that only one of them has is
    added to the other or removed.
    """

    def __init__(self, function):
        super().__init__(name="loss")
        self.function = function

    def call(self, targets, outputs):
        ranks = len(targets.shape), len(outputs.shape)
        if ranks[0] == ranks[1] + 1 and targets.shape[-1] == 1:
            targets, outputs = _of_one_rank(targets, outputs)
        elif ranks[1] == ranks[0] + 1 and outputs.shape[-1] == 1:
            outputs, targets = _of_one_rank(outputs, targets)
        return self.function(targets, outputs)


def _of_one_rank(longer, shorter):
    if len(shorter.shape) == 1:
        return longer, tf.expand_dims(shorter, axis=-1)
    return tf.squeeze(longer, axis=-1), shorter


class _Values(keras.losses.Loss):
    """A loss of given values, so that Keras reduces them as its own losses."""

    def __init__(self, values):
        super().__init__(name="values", dtype=values.dtype.name)
        self.values = values

    def call(self, targets, outputs):
        return self.values


def _reduced(reduction, loss, *arguments):
    own, loss.reduction = loss.reduction, reduction
    try:
        return loss(*arguments)
    finally:
        loss.reduction = own


def on_a_replica(function, *arguments):
    """Calls a function of tensors that returns tensors, also within the scope of a strategy.

    In a scope, variables have gradients only on replicas. So all replicas compute the same, and the
    result of the first one is returned.
    """
    if not tf.distribute.in_cross_replica_context():
        return function(*arguments)
    strategy = tf.distribute.get_strategy()
    results = strategy.run(function, arguments)
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], results)


class MeanGradients:
    """A function that computes the gradients of the mean loss over batches; it is traced once.

    The network computes as in training, for example with dropout. Its state, such as moving
    averages, is restored afterwards.

    Args:
        model: A built `keras.Model`.
        loss: As in `mean_loss`.
        variables: The Keras variables to differentiate by, frozen or not.
    """

    def __init__(self, model, loss, variables):
        self._model = model
        self._mean_loss = mean_loss(loss)
        self._variables = list(variables)
        self._of_batch = tf.function(
            functools.partial(on_a_replica, self._gradients), reduce_retracing=True
        )

    def __call__(self, some_batches):
        """List of tensors: the gradient by each variable, 0 where the loss does not depend on it.

        Args:
            some_batches: Iterable of `Batch`.
        """
        with untouched_state(self._model):
            return mean_over(some_batches, self._of_batch)

    def _gradients(self, inputs, targets, sample_weight):
        values = [variable.value for variable in self._variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            outputs = self._model(inputs, training=True)
            loss = self._mean_loss(targets, outputs, sample_weight)
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        return [tf.convert_to_tensor(each) for each in gradients]


@contextlib.contextmanager
def untouched_state(model):
    """A context that restores moving statistics, random seeds and other states at its end."""
    state = masks.without_masks(model, model.non_trainable_variables)
    state += walk.recurrent_states(model)
    before = [tf.identity(each.value) for each in state]
    try:
        yield
    finally:
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
