"""What every protocol asks of `train`, and what it gets: one shape, described at `Run`."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras

from rigl_tf.checks import check_functions, is_number


class RewindPoint(keras.callbacks.Callback):
    """Where later trainings start: a callback for `model.fit`, if weights are rewound to a step.

    In the first training it takes the weights after `step` steps. It is among the callbacks of
    `model.fit`, or a custom loop calls `record` after each step.

    Attributes:
        step: Integer, the step to rewind to.
        start_step: Integer, the step that this training starts from: 0 in the first, `step` after
            it.
        num_steps: Integer, the steps that this training was seen to do.
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
        """Tells that the first training has done `num_steps` steps by now."""
        self.num_steps = num_steps
        if self._take is None or self.start_step or self.state is not None:
            return
        if num_steps == self.step:
            self.state = self._take()
        elif num_steps > self.step:
            raise ValueError(
                "The first training must stop over at `rewind_step`; with `steps_per_execution`, "
                "choose a multiple of it. Received: rewind_step="
                f"{self.step}, steps done={num_steps}"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._num_before = self.num_steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.record(self._num_before + batch + 1)


@dataclasses.dataclass(frozen=True)
class Run:
    """Which training a protocol asks for: every `train` is called as `train(model, run)`.

    It trains the model in place and to the end, from the weights and with the masks that the model
    has, and returns the test accuracy in percent, a number from 0 to 100. `find_ticket` and
    `prune_and_fine_tune` judge nothing: they keep what it returns, if JSON can hold it (numbers,
    in lists or dictionaries). `print(run)` shows name and seed.

    Attributes:
        name: String, what is trained, such as `"dense"`, `"LT-IMP"` or `"half data"`; each protocol
            says which names it has.
        level: Integer, how many times the network was pruned.
        seed: Integer, or `None` if the protocol has none. The order of the data should depend on
            it, and the like; the initial weights do already.
        learning_rate: Number, or `None` if the protocol leaves it to you.
        rewind: A `RewindPoint`, or `None` if no step is rewound to. Hand it to
            `model.fit(..., callbacks=[run.rewind])`, or call `run.rewind.record(num_steps)` after
            each step of your own loop; begin at `run.rewind.start_step`.

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
    except ValueError:  # it is not known what it takes
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise ValueError(
            f"`train` must take a model and a `rigl_tf.lottery.Run`. Received: train{signature}"
        ) from None


def accuracy_of(train, model, run):
    """What `train` returns, as a float; a `ValueError` if it is no accuracy in percent."""
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
