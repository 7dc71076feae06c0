"""What gradients are taken of: the mean loss of a model over data, in a state that stays."""

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import keras
import tensorflow as tf

from rigl_tf import layers, masks


class Batch(NamedTuple):
    """One batch of the data; targets are tensors, `share` that of all examples."""

    inputs: object
    targets: object
    share: float


def batches(data):
    """`data`, a pair `(inputs, targets)` or an iterable of such batches, as a list of `Batch`.

    A tuple of two is a pair, whatever is in it: give two batches as a list. Targets of several
    outputs are a tuple, a dictionary, or a list of arrays.

    Raises:
        ValueError: If there is none, or no end of them, or something that is no such pair.

    Example:

    >>> [batch.share for batch in batches([(np.ones((3, 2)), [0, 1, 2]), (np.ones((1, 2)), [0])])]
    [0.75, 0.25]
    """
    is_dataset = isinstance(data, tf.data.Dataset)
    if is_dataset and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("`data` must end. Received: a data set that is repeated without end")
    if not isinstance(data, Iterable) or isinstance(data, (str, dict)):
        raise ValueError(
            "`data` must be a pair `(inputs, targets)`, or batches that are such pairs. "
            f"Received: {type(data).__name__}"
        )
    is_pair = isinstance(data, tuple) and len(data) == 2
    pairs = [_pair(batch) for batch in ([data] if is_pair else data)]
    if not pairs:
        raise ValueError("`data` must have a batch at least. Received: none")
    sizes = [_num_examples(inputs, targets) for inputs, targets in pairs]
    return [Batch(*pair, size / sum(sizes)) for pair, size in zip(pairs, sizes, strict=True)]


def _pair(batch):
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise ValueError(
            "`data` must be a pair `(inputs, targets)`, or batches that are such pairs. "
            f"Received: a batch of type {type(batch).__name__}"
            + (f" and length {len(batch)}" if isinstance(batch, tuple) else "")
        )
    inputs, targets = batch
    is_structure = isinstance(targets, (tuple, dict)) or (
        isinstance(targets, list) and any(getattr(each, "shape", ()) for each in targets)
    )
    try:
        if is_structure:
            return inputs, tf.nest.map_structure(tf.convert_to_tensor, targets)
        return inputs, tf.convert_to_tensor(targets)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Targets must be arrays. Received: {type(targets).__name__}") from error


def _num_examples(inputs, targets):
    shapes = [tf.shape(each).numpy().tolist() for each in tf.nest.flatten(targets)]
    shapes += [list(x.shape) for x in tf.nest.flatten(inputs) if getattr(x, "shape", ())]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "A batch must have an example at least, and the same number of inputs and targets. "
            f"Received: shapes={shapes}"
        )
    return sizes.pop()


def mean_loss(loss):
    """A function of targets and outputs: the mean of `loss` over the examples of a batch.

    It is the same on a replica, where Keras divides its losses by the number of replicas, and
    whatever the reduction of the loss is.

    Args:
        loss: A Keras loss, its name, or a function of targets and outputs; or a list or dictionary
            of one, as a model may be compiled with.

    Raises:
        ValueError: If it is something else. When it is called, if a Keras loss meets several
            outputs.

    Example:

    >>> float(mean_loss(keras.losses.MeanSquaredError("sum"))(np.zeros((4, 1)), np.ones((4, 1))))
    1.0
    """
    if isinstance(loss, (list, tuple, dict)) and len(loss) == 1:
        (loss,) = loss.values() if isinstance(loss, dict) else loss
    if not isinstance(loss, str) and not callable(loss):
        raise ValueError(
            "`loss` must be a Keras loss, its name, or a function of targets and outputs; for "
            f"several outputs, a function of all of them. Received: loss={loss!r}"
        )
    is_own = not isinstance(loss, (str, keras.losses.Loss))
    loss = keras.losses.get(loss)

    def mean(targets, outputs):
        if not is_own and tf.nest.is_nested(outputs):
            raise ValueError(
                "The loss of a model with several outputs must be a function of all targets and "
                f"outputs. Received: loss={getattr(loss, 'name', loss)!r}"
            )
        if not isinstance(loss, keras.losses.Loss):
            return tf.reduce_mean(loss(targets, outputs))
        value = _reduced("sum_over_batch_size", loss, targets, outputs)
        num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
        # Keras scales what it has reduced itself.
        is_scaled = num_replicas > 1 and _reduced(None, loss, targets, outputs).shape.rank > 0
        return value * num_replicas if is_scaled else value

    return mean


def _reduced(reduction, loss, targets, outputs):
    own, loss.reduction = loss.reduction, reduction
    try:
        return loss(targets, outputs)
    finally:
        loss.reduction = own


def on_a_replica(function, *arguments):
    """What a function of tensors returns, tensors too; within the scope of a strategy as well.

    There variables have gradients only on replicas: all do the same, and the first one's counts.
    """
    if not tf.distribute.in_cross_replica_context():
        return function(*arguments)
    strategy = tf.distribute.get_strategy()
    results = strategy.run(function, arguments)
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], results)


@contextlib.contextmanager
def untouched_state(model):
    """Gives moving statistics, seeds and the like their values back; masks never change here."""
    of_masks = {id(masks.mask_of(k)) for k in masks.sparse_kernels(model).values()}
    state = [each for each in model.non_trainable_variables if id(each) not in of_masks]
    for layer in layers.all_layers(model):
        if getattr(layer, "stateful", False):  # the states of recurrent layers are no weights
            state += keras.tree.flatten(getattr(layer, "states", None) or [])
    before = [tf.identity(each.value) for each in state]
    try:
        yield
    finally:
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
