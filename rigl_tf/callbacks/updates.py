"""Finds out when the optimizers of a model update masks, and how long such a step takes."""

import math
import time
from typing import NamedTuple

import tensorflow as tf

from rigl_tf.optimizers import SparseTraining
from rigl_tf.optimizers.scheduled import ScheduledUpdates
from rigl_tf.optimizers.slots import optimizers_within


def has_updates(optimizer):
    """Whether the optimizer updates masks at certain steps only."""
    return type(optimizer).is_update_step is not SparseTraining.is_update_step


class UpdateClock:
    """Counts the steps of `fit`, and says before each batch whether an update was done.

    The step counter of the optimizer is read only around an update, because to read it means to
    wait for the step. Between two readings the batches are counted instead. The optimizer may have
    made fewer steps than that (a step that overflows in float16 does not count), but never more.

    Args:
        model: A `keras.Model` that is being trained.

    Attributes:
        step: Integer, the number of the next step.
        last_update: Integer, the last step with an update; `None` if there was none so far.
        seconds: Float, the duration of this step; NaN if it is not known.
        last_quiet_batch: Integer. Up to this batch of the epoch, nothing is to be done.
    """

    def __init__(self, model):
        self._model = model
        found = optimizers_within(model.optimizer) if model.optimizer is not None else ()
        self.optimizers = [each for each in found if isinstance(each, SparseTraining)]
        self._updating = [each for each in self.optimizers if has_updates(each)]
        self.step = self._read()
        self.last_update = None
        self.seconds = float("nan")
        self._batch, self.last_quiet_batch = 0, -1
        self._begun = self._before = None
        self._has_run = False

    def begin_epoch(self):
        self.step, self._batch = self._read(self.step), 0
        self.last_quiet_batch = -1  # The schedule may have been changed between epochs.
        self._begun = self._before = None

    def before_batch(self, batch):
        """Returns whether the last batch updated masks. `batch` is the number of the next one."""
        self.step += batch - self._batch
        self._batch = batch
        size = self._model.steps_per_execution
        if batch <= self.last_quiet_batch:
            return False
        is_done = self._finish(self._begun, True) if self._begun is not None else False
        if self._updates(self.step, self.step + size):
            self.step = self._read(self.step)
            now = time.perf_counter()
            before = None if self._before is None else (now - self._before) / size
            self._begun = _Begun(now, self.step, before, self._has_run)
        elif size > 1 and self._has_run and self._updates(self.step, self.step + 2 * size):
            # The execution before the update is timed, to know how long ordinary steps take.
            self._read(self.step)
            self._before = time.perf_counter()
        elif self._begun is None and self._model.optimizer is not None:
            ends = [_quiet_until(each, self.step) for each in self._updating]
            self.last_quiet_batch = batch + min(ends, default=math.inf) - self.step - 2 * size
        self._has_run = True
        return is_done

    def end_epoch(self):
        """Returns whether masks were updated in the last batch."""
        is_done = self._finish(self._begun, False) if self._begun is not None else False
        self.step = self._read(self.step + self._model.steps_per_execution)
        return is_done

    def _finish(self, begun, time_counts):
        """Returns whether masks were updated since an execution has `_Begun`."""
        self._begun = self._before = None
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
        # If it is below 0, the update took less time than ordinary steps vary.
        self.seconds = seconds if seconds > 0 else float("nan")
        return True

    def _updates(self, first, stop):
        """The steps with an update, from `first` to before `stop`."""
        found = set()
        for optimizer in self._updating:
            found.update(_updates_of(optimizer, first, stop))
        return sorted(found)

    def _read(self, otherwise=0):
        """The step counter of the optimizers, or `otherwise` if none of them counts steps."""
        counts = [each.step for each in self.optimizers if each.built]
        if not self.optimizers and self._model.optimizer is not None:
            counts = [self._model.optimizer.iterations]
        return max((int(tf.convert_to_tensor(each)) for each in counts), default=otherwise)


def _known_updates(optimizer, first):
    """The steps of updates from `first` on, as a range; `None` if each step must be tried."""
    steps = optimizer._update_steps() if isinstance(optimizer, ScheduledUpdates) else None
    if steps is None:
        return None
    start = steps.start
    if first > start:
        start += -((start - first) // steps.step) * steps.step
    return range(start, steps.stop, steps.step)


def _updates_of(optimizer, first, stop):
    """The steps with an update, from `first` to before `stop`, of one optimizer."""
    if not optimizer.built:
        return []
    known = _known_updates(optimizer, first)
    if known is None:
        return [step for step in range(first, stop) if optimizer.is_update_step(step)]
    return range(known.start, min(stop, known.stop), known.step)


def _quiet_until(optimizer, first):
    """A step up to which there is no update from `first` on, as late as it is known."""
    known = _known_updates(optimizer, first) if optimizer.built else None
    if known is None:
        return first
    return known.start if known else math.inf


class _Begun(NamedTuple):
    """An execution of steps, with an update in it, that has begun."""

    time: float
    step: int
    ordinary: float | None  # the seconds of a step without an update, if they are known
    is_compiled: bool  # whether a step was executed before
