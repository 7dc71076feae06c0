"""When the optimizers of a model update masks, and how long such a step takes."""

import math
import time
from typing import NamedTuple

import tensorflow as tf

from rigl_tf.optimizers import SparseTraining
from rigl_tf.optimizers.scheduled import ScheduledUpdates
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
        self._updating = [each for each in self.optimizers if has_updates(each)]
        self.step = self._read()
        self.last_update = None
        self.seconds = float("nan")
        self._batch = self._quiet_until = 0
        self._begun = self._before = None
        self._has_run = False

    def begin_epoch(self):
        self.step, self._batch = self._read(self.step), 0
        self._quiet_until = 0  # schedules may be set anew
        self._begun = self._before = None

    def before_batch(self, batch):
        """Whether masks were updated in the last batch. `batch` is the first step of the next."""
        self.step += batch - self._batch
        self._batch = batch
        size = self._model.steps_per_execution
        if self.step + 2 * size <= self._quiet_until:  # most often there is nothing to do
            self._has_run = True
            return False
        is_done = self._finish(self._begun, True) if self._begun is not None else False
        if self._updates(self.step, self.step + size):
            self.step = self._read(self.step)
            now = time.perf_counter()
            before = None if self._before is None else (now - self._before) / size
            self._begun = _Begun(now, self.step, before, self._has_run)
        elif size > 1 and self._has_run and self._updates(self.step, self.step + 2 * size):
            # How long the steps beside an update take is what the execution before it takes.
            self._read(self.step)
            self._before = time.perf_counter()
        elif self._begun is None:
            ends = [_quiet_until(each, self.step) for each in self._updating]
            self._quiet_until = min(ends, default=math.inf)
        self._has_run = True
        return is_done

    def end_epoch(self):
        """Whether masks were updated in the last batch, or where steps are not counted."""
        is_done = self._finish(self._begun, False) if self._begun is not None else False
        self.step = self._read(self.step + self._model.steps_per_execution)
        return is_done

    def _finish(self, begun, time_counts):
        """Whether masks were updated since an execution has `_Begun`."""
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
        # Below 0 it is less than what the ordinary steps vary by.
        self.seconds = seconds if seconds > 0 else float("nan")
        return True

    def _updates(self, first, stop):
        """The steps with an update from `first` on and before `stop`."""
        found = set()
        for optimizer in self._updating:
            found.update(_updates_of(optimizer, first, stop))
        return sorted(found)

    def _read(self, otherwise=0):
        """The step of the optimizers, or a number where there is none that counts steps."""
        counts = [each.step for each in self.optimizers if each.built]
        if not self.optimizers and self._model.optimizer is not None:
            counts = [self._model.optimizer.iterations]
        return max((int(tf.convert_to_tensor(each)) for each in counts), default=otherwise)


def _known_updates(optimizer, first):
    """The updates from `first` on as a range, `None` if they must be found by trying."""
    steps = optimizer._update_steps() if isinstance(optimizer, ScheduledUpdates) else None
    if steps is None:
        return None
    start = steps.start
    if first > start:
        start += -((start - first) // steps.step) * steps.step
    return range(start, steps.stop, steps.step)


def _updates_of(optimizer, first, stop):
    """The steps from `first` on, and before `stop`, with an update."""
    if not optimizer.built:
        return []
    known = _known_updates(optimizer, first)
    if known is None:
        return [step for step in range(first, stop) if optimizer.is_update_step(step)]
    return range(known.start, min(stop, known.stop), known.step)


def _quiet_until(optimizer, first):
    """A step up to which there is no update from `first` on, the later the better."""
    known = _known_updates(optimizer, first) if optimizer.built else None
    if known is None:
        return first
    return known.start if known else math.inf


class _Begun(NamedTuple):
    """An execution of steps with an update that has begun."""

    time: float
    step: int
    ordinary: float | None  # the seconds of a step without an update, if they are known
    is_compiled: bool  # whether a step was executed before
