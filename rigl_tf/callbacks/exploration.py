"""Logs how many of the connections an optimizer has tried."""

from typing import Any

import keras

from rigl_tf.optimizers import SparseTraining, kernels
from rigl_tf.optimizers.slots import optimizers_within


class ExplorationLogger(keras.callbacks.Callback):
    """Puts the optimizer's `exploration_rate` and `turnover` into the logs of each epoch.

    So they are in the `History`, and callbacks after this one can write them, such as
    `keras.callbacks.CSVLogger` and `keras.callbacks.TensorBoard`.

    The model's optimizer must be a `rigl_tf.SparseOptimizer` with `track_exploration=True`. A
    `keras.optimizers.MultiOptimizer` must contain at least one such optimizer. The numbers are then
    those of all kernels of such optimizers together.

    Raises:
        ValueError: When training begins, if there is no such optimizer.

    Example:

    >>> optimizer = rigl_tf.RigL("adam", end_step=25_000, track_exploration=True)
    >>> callbacks = [ExplorationLogger(), keras.callbacks.CSVLogger("training.csv")]
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        optimizers = optimizers_within(self.model.optimizer)
        sparse = [each for each in optimizers if isinstance(each, SparseTraining)]
        self._optimizers = [each for each in sparse if each.track_exploration]
        if not self._optimizers:
            raise ValueError(
                "`ExplorationLogger` needs a sparse optimizer with `track_exploration=True`. "
                f"Received: optimizer={self.model.optimizer.name!r}"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            explored = kernels.explored_by(self._optimizers)
            logs["exploration_rate"] = kernels.exploration_rate(explored)
            logs["turnover"] = kernels.turnover(explored)
