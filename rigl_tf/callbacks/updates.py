"""Finds out when the optimizers of a model update masks, and how long such a step takes."""

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import keras

from rigl_tf.callbacks.watching import value_of
from rigl_tf.optimizers import SparseTraining, changeable
from rigl_tf.optimizers.scheduled import ScheduledUpdates
from rigl_tf.optimizers.slots import optimizers_within


def has_updates(optimizer):
    """Whether the optimizer updates masks at certain steps only."""
    return type(optimizer).is_update_step is not SparseTraining.is_update_step


def sparse_optimizers_of(model):
    """The sparse optimizers of a model: in `model.optimizer`, and in attributes of a script's own.

    A model with a `train_step` of its own, such as a GAN, may have an optimizer for each part.
    """
    held = []
    for value in (getattr(model, "optimizer", None), *vars(model).values()):
        if isinstance(value, Mapping):
            value = tuple(value.values())
        held += value if isinstance(value, (list, tuple)) else [value]
    optimizers = [each for each in held if isinstance(each, keras.optimizers.Optimizer)]
    found = [each for optimizer in optimizers for each in optimizers_within(optimizer)]
    return list(dict.fromkeys(each for each in found if isinstance(each, SparseTraining)))


class UpdateClock:
    """Counts the steps of `fit`, and says before each batch whether an update was done.

    The step counters of the optimizers are read only around an update, because to read one means to
    wait for the step. Between two readings the batches are counted instead. An optimizer may have
    made fewer steps than that (a step that overflows in float16 does not count). If it made more,
    as in a `train_step` with several steps, the counters are read before every batch from then on.

    Args:
        model: A `keras.Model` that is being trained.

    Attributes:
        optimizers: List of the sparse optimizers of the model.
        step: Integer, the number of the next step.
        seconds: Float, the duration of the last step with an update; NaN if it is not known.
    """

    def __init__(self, model):
        self._model = model
        self._counters = [_Counter(each) for each in sparse_optimizers_of(model)]
        self.optimizers = [each.optimizer for each in self._counters]
        self.step = self._next_step(0)
        self.seconds = float("nan")
        self._batch, self._latest, self._last_quiet_batch = 0, 0, -1
        self._begun = self._before = None
        self._has_run = self._is_checked = self._reads_all = False

    def last_update(self, optimizer):
        """The last step in which an optimizer updated masks; `None` if there was none so far."""
        return self._counters[self.optimizers.index(optimizer)].last_update

    def begin_epoch(self):
        """Prepares for an epoch, between steps."""
        self._read()
        self._batch, self._latest, self._last_quiet_batch = 0, 0, -1
        self._begun = self._before = None

    def is_quiet(self, batch):
        """Notes that a batch begins, quickly. Returns whether nothing is to be done before it."""
        self._latest = batch
        return batch <= self._last_quiet_batch and not any(
            map(_Counter.has_changed, self._counters)
        )

    def before_batch(self, batch):
        """Returns whether masks were updated. `batch` is the number of the next batch."""
        is_quiet = self.is_quiet(batch)
        self._count_batches(0)
        if is_quiet:
            return False
        self._last_quiet_batch = -1
        is_done = False
        if self._begun is not None or self._reads_all or (self._has_run and not self._is_checked):
            # After the first batch, too, to see how many steps a batch has.
            self._is_checked = all(each.is_known for each in self._counters)
            is_done = self._finish(True)
        size = self._size()
        if self._updates_within(size):
            self._read()
            now = time.perf_counter()
            before = None if self._before is None else (now - self._before) / size
            self._begun = _Begun(now, self.step, before, self._has_run)
        elif size > 1 and self._has_run and self._updates_within(2 * size):
            # The execution before the update is timed, to know how long ordinary steps take.
            self._read()
            self._before = time.perf_counter()
        elif self._is_checked and not self._reads_all:
            quiet = min((each.num_quiet_steps() for each in self._counters), default=math.inf)
            self._last_quiet_batch = batch + quiet - 2 * size
        self._has_run = True
        return is_done

    def end_epoch(self):
        """Returns whether masks were updated since the last time that this was asked."""
        self._count_batches(self._size())
        return self._finish(False)

    def _size(self):
        return getattr(self._model, "steps_per_execution", 1)

    def _count_batches(self, num_done):
        """Counts the batches before the latest one, and so many from it on."""
        num_batches = self._latest - self._batch + num_done
        self._batch = self._latest + num_done
        self.step += num_batches
        for each in self._counters:
            each.step += num_batches

    def _finish(self, time_counts):
        """Returns whether masks were updated since the last reading; notes how long it took."""
        begun, self._begun, self._before = self._begun, None, None
        num_updates = self._read()
        now = time.perf_counter()
        if not num_updates:
            return False
        self.seconds = float("nan")
        if time_counts and begun is not None and begun.is_compiled:
            num_others = max(0, self.step - begun.step - num_updates)
            if begun.ordinary is not None or not num_others:
                others = num_others * (begun.ordinary or 0.0)
                seconds = (now - begun.time - others) / num_updates
                # If it is below 0, the update took less time than ordinary steps vary.
                self.seconds = seconds if seconds > 0 else float("nan")
        return True

    def _updates_within(self, num_steps):
        return any(each.updates_within(num_steps) for each in self._counters)

    def _read(self):
        """Reads all counters. Returns in how many steps there were updates since the last time."""
        updates = set()
        for each in self._counters:
            updates.update(each.read())
            self._reads_all |= each.runs_ahead
        self.step = self._next_step(self.step)
        return len(updates)

    def _next_step(self, otherwise):
        """The number of the next step, or `otherwise` if no optimizer counts steps."""
        counts = [each.step for each in self._counters if each.optimizer.built]
        optimizer = getattr(self._model, "optimizer", None)
        if not self._counters and optimizer is not None:
            counts = [_value(optimizer.iterations)]
        return max(counts, default=otherwise)


class _Counter:
    """Counts the steps of a sparse optimizer.

    Args:
        optimizer: The optimizer.

    Attributes:
        step: Integer, the number of the next step: as it was read, and the batches since then.
        last_update: Integer, the last step with an update; `None` if there was none so far.
        is_known: Boolean, whether the counter has been read.
        runs_ahead: Boolean, whether a batch had more than one step.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.is_known, self.runs_ahead = optimizer.built, False
        self.step = self._start = self._num_skipped = 0
        if optimizer.built:
            self.step = self._start = _value(optimizer.step)
            self._num_skipped = _value(optimizer.num_skipped_updates)
        self._changes = changeable.num_changes(optimizer)
        known = self._known_updates(0)
        past = known and range(known.start, min(self._start, known.stop), known.step)
        self.last_update = past[-1] if past else None

    def has_changed(self):
        """Whether an attribute of the optimizer was set since the last reading."""
        return self._changes != changeable.num_changes(self.optimizer)

    def read(self):
        """Reads the counter. Returns the steps with updates since the last time."""
        self._changes = changeable.num_changes(self.optimizer)
        if not self.optimizer.built:
            return []
        expected, self.step = self.step, _value(self.optimizer.step)
        if self.is_known:
            self.runs_ahead |= self.step > expected
        else:  # It may have been restored when it was built.
            self.is_known, self._start = True, max(0, self.step - expected)
        updates, self._start = self._updates(self._start, self.step), self.step
        if updates:
            before = self._num_skipped
            self._num_skipped = _value(self.optimizer.num_skipped_updates)
            updates = updates[self._num_skipped - before :]
        if updates:
            self.last_update = updates[-1]
        return updates

    def updates_within(self, num_steps):
        """Whether there is an update in the next steps."""
        return len(self._updates(self.step, self.step + num_steps)) > 0

    def num_quiet_steps(self):
        """How many of the next steps have no update, as far as it is known."""
        if not has_updates(self.optimizer):
            return math.inf
        known = self._known_updates(self.step)
        if known is None:
            return 0
        return known.start - self.step if known else math.inf

    def _updates(self, first, stop):
        """The steps with an update, from `first` to before `stop`."""
        if not has_updates(self.optimizer) or not self.optimizer.built:
            return []
        known = self._known_updates(first)
        if known is None:
            return [step for step in range(first, stop) if self.optimizer.is_update_step(step)]
        return range(known.start, min(stop, known.stop), known.step)

    def _known_updates(self, first):
        """The steps of updates from `first` on, a range; `None` if each step must be tried."""
        is_scheduled = isinstance(self.optimizer, ScheduledUpdates) and self.optimizer.built
        steps = self.optimizer.update_steps() if is_scheduled else None
        if steps is None:
            return None
        start = steps.start
        if first > start:
            start += -((start - first) // steps.step) * steps.step
        return range(start, steps.stop, steps.step)


def _value(variable):
    return int(value_of(variable))


class _Begun(NamedTuple):
    """An execution of steps, with an update in it, that has begun."""

    time: float
    step: int
    ordinary: float | None  # the seconds of a step without an update, if they are known
    is_compiled: bool  # whether a step was executed before
