"""When the optimizers of a model update masks, and how long such a step takes."""

import time
from typing import NamedTuple

import tensorflow as tf

from rigl_tf.optimizers import SparseTraining
from rigl_tf.optimizers.slots import optimizers_within


def has_updates(optimizer):
    """Whether masks are updated at certain steps."""
    return type(optimizer).is_update_step is not SparseTraining.is_update_step


class UpdateClock:
    """Follows the steps of `fit`: asked before each batch, it tells of updates that were done.

    The optimizer's own count of steps is read only around an update, so that a step need not be
    waited for. Between two readings the steps are counted: there may be fewer of them, as a step
    that overflows in float16 is none, and never more.

    Args:
        model: A `keras.Model` that is being trained.

    Attributes:
        step: Integer, the step that comes next.
        last_update: Integer, the last step with an update; `None` before one is seen.
        seconds: Float, how long that step took, NaN if that is not known.
    """

    def __init__(self, model):
        self._model = model
        found = optimizers_within(model.optimizer) if model.optimizer is not None else ()
        self.optimizers = [each for each in found if isinstance(each, SparseTraining)]
        self.step = self._read()
        self.last_update = None
        self.seconds = float("nan")
        self._batch = 0
        self._begun = self._before = None
        self._has_run = False

    def begin_epoch(self):
        self.step, self._batch = self._read(self.step), 0
        self._begun = self._before = None

    def before_batch(self, batch):
        """Whether masks were updated in the last batch. `batch` is the first step of the next."""
        self.step += batch - self._batch
        self._batch = batch
        is_done = self._finish(time_counts=True) if self._begun is not None else False
        size = self._model.steps_per_execution
        if self._updates(self.step, self.step + size):
            self.step = self._read(self.step)
            now = time.perf_counter()
            before = None if self._before is None else (now - self._before) / size
            self._begun = _Begun(now, self.step, before, self._has_run)
        elif size > 1 and self._has_run and self._updates(self.step, self.step + 2 * size):
            # How long the steps beside an update take is what the execution before it takes.
            self._read(self.step)
            self._before = time.perf_counter()
        self._has_run = True
        return is_done

    def end_epoch(self):
        """Whether masks were updated in the last batch, or where steps are not counted."""
        is_done = self._finish(time_counts=False) if self._begun is not None else False
        self.step = self._read(self.step + self._model.steps_per_execution)
        return is_done

    def _finish(self, time_counts):
        begun, self._begun, self._before = self._begun, None, None
        self.step = self._read(self.step)
        elapsed = time.perf_counter() - begun.time
        done = self._updates(begun.step, self.step)
        if not done:
            return False
        self.last_update = done[-1]
        num_others = self.step - begun.step - len(done)
        seconds = float("nan")
        if time_counts and begun.is_compiled and (begun.ordinary is not None or not num_others):
            seconds = (elapsed - num_others * (begun.ordinary or 0.0)) / len(done)
        # Below 0 it is less than what the ordinary steps vary by.
        self.seconds = seconds if seconds > 0 else float("nan")
        return True

    def _updates(self, first, stop):
        return [
            step
            for step in range(first, stop)
            if any(each.built and bool(each.is_update_step(step)) for each in self.optimizers)
        ]

    def _read(self, otherwise=0):
        """The step of the optimizers, or a number where there is none that counts steps."""
        counts = [each.step for each in self.optimizers if each.built]
        if not self.optimizers and self._model.optimizer is not None:
            counts = [self._model.optimizer.iterations]
        return max((int(tf.convert_to_tensor(each)) for each in counts), default=otherwise)


class _Begun(NamedTuple):
    """An execution of steps with an update that has begun."""

    time: float
    step: int
    ordinary: float | None  # the seconds of a step without an update, if they are known
    is_compiled: bool  # whether a step was executed before
