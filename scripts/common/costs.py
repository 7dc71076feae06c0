"""What a training costs: FLOPs, memory, time of a step, and units that are alive at its end."""

import statistics
import time

import keras
import numpy as np

import rigl_tf

# What a method has beside the active weights while it trains, where accuracies are compared.
DENSE = {
    "snfs": "dense gradient in every step",
    "snfs_redistributed": "dense gradient in every step",
    "dnw": "dense weights and dense gradient in every step",
    "pruning": "dense weights until the end of pruning",
}
_COUNTED_AS = {"snfs_redistributed": "snfs"}


def training_flops(model, method, total_steps, end_step, update_frequency):
    """FLOPs of a training for one sample of each step, by appendix H of the RigL paper.

    Args:
        model: The model after training, sparse or not.
        method: One of `scripts.common.methods.METHODS`.
        total_steps: Integer.
        end_step: Integer, the step after which masks stay.
        update_frequency: Integer.
    """
    cost = rigl_tf.flops.count(model)
    dense, sparse = cost.dense_flops, cost.flops
    if method == "pruning":
        sparse = dense - (dense - sparse) * _mean_ramp(total_steps, end_step, update_frequency)
    method = _COUNTED_AS.get(method, method)

    def each(method):
        return rigl_tf.flops.training_flops(dense, sparse, method, update_frequency)

    algorithm = rigl_tf.optimizers.ALGORITHMS.get(method)
    if algorithm is not None and algorithm.dense_gradients == "at updates":
        return end_step * each(method) + (total_steps - end_step) * each("static")
    return total_steps * each(method)


def _mean_ramp(total_steps, end_step, update_frequency):
    """How far gradual pruning is, as a share of its last sparsity, on average over the steps."""
    begin_step = int(0.4 * end_step)
    steps = np.arange(total_steps)
    updated = begin_step + (steps - begin_step) // update_frequency * update_frequency
    left = 1 - np.clip((updated - begin_step) / (end_step - begin_step), 0, 1)
    return float(np.mean(1 - left**3))


def training_bytes(model):
    """Bytes of a compiled model's variables, its optimizer's, and gradients of the trainable ones.

    Activations are not counted, nor what a mask update needs for a moment.
    """
    held = [*model.variables, *model.optimizer.variables]
    return sum(map(_bytes, held)) + sum(map(_bytes, model.trainable_variables))


def _bytes(variable):
    size = np.dtype(keras.backend.standardize_dtype(variable.dtype)).itemsize
    return int(np.prod(variable.shape, dtype=np.int64)) * size


class StepTime(keras.callbacks.Callback):
    """Takes the time of the epochs; the first, which compiles the step, does not count."""

    def __init__(self):
        super().__init__()
        self._ends = []

    def on_epoch_end(self, epoch, logs=None):
        self._ends.append(time.perf_counter())

    def milliseconds(self, steps_per_epoch):
        """The median over the epochs of a step's time; `None` after one epoch."""
        if len(self._ends) < 2:
            return None
        return 1000 * float(statistics.median(np.diff(self._ends))) / steps_per_epoch


def units(model, x):
    """How many units of a network of Dense layers are alive, and how many of them fire.

    Args:
        model: A Functional model whose hidden Dense layers are `dense_1`, `dense_2` and so on.
        x: Array of inputs.

    Returns:
        Pair of lists: of the live units of the inputs and of each hidden layer, see
        `rigl_tf.live_units`; and of those in each hidden layer that are above 0 for any of `x`.
    """
    live = rigl_tf.live_units(model)[:-1]
    hidden = [layer for layer in model.layers if layer.name.startswith("dense_")]
    outputs = keras.Model(model.inputs, [layer.output for layer in hidden])
    values = outputs.predict(x, batch_size=min(1000, len(x)), verbose=0)
    firing = [
        int(np.any(each[:, places] > 0, axis=0).sum())
        for each, places in zip(values, live[1:], strict=True)
    ]
    return [len(places) for places in live], firing
