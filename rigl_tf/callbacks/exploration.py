"""How much of the kernels an optimizer has tried, in the logs of `fit`."""

from typing import Any

import keras

from rigl_tf.optimizers import SparseTraining, kernels
from rigl_tf.optimizers.slots import optimizers_within


class ExplorationLogger(keras.callbacks.Callback):
    """Puts the optimizer's `exploration_rate` and `turnover` into the logs of each epoch.

    So they are in the `History`, and in what the callbacks after this one write, such as
    `keras.callbacks.CSVLogger` and `keras.callbacks.TensorBoard`. The model's optimizer must be a
    `rigl_tf.SparseOptimizer` with `track_exploration=True`; of several, in a
    `keras.optimizers.MultiOptimizer`, the kernels of those that have it count together.

    Raises:
        ValueError: When training begins, if the optimizer is another.

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
            explored = [each for o in self._optimizers for each in o._explored_kernels()]
            logs["exploration_rate"] = kernels.exploration_rate(explored)
            logs["turnover"] = kernels.turnover(explored)
