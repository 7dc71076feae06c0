"""The interface of the `train` function of all protocols, see `Run`."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras

from rigl_tf.checks import check_functions, is_number


class RewindPoint(keras.callbacks.Callback):
    """The step to which weights are rewound: a callback for `model.fit`.

    In the first training it copies the weights after `step` steps; later trainings start from them.
    Add it to the callbacks of `model.fit`, or call `record` after each step of a custom loop.

    Args:
        step: Integer, the step to rewind to.
        start_step: Integer, the step from which this training starts.
        take: Function that returns the state of the model, or `None` if no weights are rewound.

    Attributes:
        step: Integer, the step to rewind to.
        start_step: Integer, the step from which this training starts: 0 in the first training,
            `step` in all others.
        num_steps: Integer, the number of steps of this training so far.
    """

    def __init__(
        self, step: int, start_step: int, take: Callable[[], dict[str, Any]] | None
    ) -> None:
        super().__init__()
        self.step = step
        self.start_step = start_step
        self.state = None
        self._take = take  # `None` if no weights are rewound
        self._num_before = 0
        self.num_steps = 0

    def record(self, num_steps: int) -> None:
        """Records the progress of the first training; a custom loop calls it after each step.

        Args:
            num_steps: Integer, the number of steps that are done.

        Raises:
            ValueError: If the step to rewind to was skipped.
        """
        self.num_steps = num_steps
        if self._take is None or self.start_step or self.state is not None:
            return
        if num_steps == self.step:
            self.state = self._take()
        elif num_steps > self.step:
            raise ValueError(
                "The first training must not skip `rewind_step`; with `steps_per_execution`, use a "
                "multiple of it. Received: rewind_step="
                f"{self.step}, steps done={num_steps}"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._num_before = self.num_steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.record(self._num_before + batch + 1)


@dataclasses.dataclass(frozen=True)
class Run:
    """Describes one training of a protocol: a protocol calls `train(model, run)`.

    `train` must train the model in place to the end of the schedule, starting with the current
    weights and masks. It returns the test accuracy in percent, a number from 0 to 100.
    `find_ticket` and `prune_and_fine_tune` only save the result, so it may be anything that JSON
    can save (numbers, in lists or dictionaries). `print(run)` shows name and seed.

    Attributes:
        name: String, what is trained, such as `"dense"`, `"LT-IMP"` or `"half data"`. Each protocol
            lists its names.
        level: Integer, how many times the network was pruned.
        seed: Integer, or `None` if the protocol has no seeds. The data order and other random
            choices of `train` should depend on it. The initial weights already do.
        learning_rate: Number, or `None` if `train` chooses it.
        rewind: A `RewindPoint`, or `None` if weights are not rewound to a later step. Pass it to
            `model.fit(..., callbacks=[run.rewind])`, or call `run.rewind.record(num_steps)` after
            each step of your own loop. Start at step `run.rewind.start_step`.

    Example:

    >>> print(Run("half data", seed=3))
    half data, seed 3
    """

    name: str
    level: int = 0
    seed: int | None = None
    learning_rate: float | None = None
    rewind: RewindPoint | None = None

    def __str__(self):
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"


def check_train(train):
    """Raises a `ValueError` unless `train` is a function that can be called with a model and a run.

    Example:

    >>> check_train(lambda model: 0)
    Traceback (most recent call last):
        ...
    ValueError: `train` must take a model and a `rigl_tf.lottery.Run`. Received: train(model)
    """
    check_functions(train=train)
    try:
        signature = inspect.signature(train)
    except ValueError:  # its arguments are unknown
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise ValueError(
            f"`train` must take a model and a `rigl_tf.lottery.Run`. Received: train{signature}"
        ) from None


def accuracy_of(train, model, run):
    """Calls `train`, and returns the accuracy as a float; a `ValueError` if it is not one."""
    accuracy = train(model, run)
    if not is_number(accuracy) or not 0 <= accuracy <= 100:
        raise ValueError(
            "`train` must return the test accuracy, a number from 0 to 100 in percent. "
            f"Received: {accuracy!r} for {str(run)!r}"
        )
    return float(accuracy)


def check_percent(values, what="Accuracies"):
    """Raises a `ValueError` if these accuracies look like shares of 1."""
    if max(values) <= 1:
        raise ValueError(
            f"{what} must be in percent, not shares of 1: multiply them by 100. "
            f"Received: none above {max(values):g}"
        )
