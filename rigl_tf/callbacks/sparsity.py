"""Logs the sparsity of a model while it trains: for TensorBoard, CSV files, progress bars."""

import math
import os
import pathlib
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import multi_worker
from rigl_tf._types import Data, Loss
from rigl_tf.callbacks.board import Board
from rigl_tf.callbacks.gradients import GradientNorms
from rigl_tf.callbacks.updates import UpdateClock, has_updates
from rigl_tf.callbacks.watching import squared_norm, value_of, watch
from rigl_tf.checks import check_booleans, check_integers
from rigl_tf.optimizers import DNW, GradualPruning, SparseOptimizer, kernels

_NAN = float("nan")
Logs = dict[str, Any] | None


class SparsityLogger(keras.callbacks.Callback):
    """Logs how sparse the kernels are while a model trains, and how their connections move.

    At the end of each epoch, these numbers are added to the logs of `fit`. So they are in the
    `History`, and callbacks after this one can write them, such as `keras.callbacks.CSVLogger`.
    With a `log_dir`, they are also written for TensorBoard, as often as `every` says.

    | name | number |
    | --- | --- |
    | `sparsity` | share of zeros in all sparse kernels, in `[0, 1)` |
    | `moved` | number of connections that became active; in the logs: in this epoch |
    | `turnover` | share of the active connections that the last update grew |
    | `drop_fraction` | share of the active connections that the last update had to drop |
    | `exploration_rate` | share of all connections that this callback has seen active so far |
    | `dead_units` | share of the units without an active connection |
    | `weight_norm` | L2 norm of the weights of all sparse kernels |
    | `gradient_norm_active`, `gradient_norm_inactive` | L2 norms of the loss gradient on `data` |
    | `seconds_per_update` | duration of the last step with an update |

    `sparsity/PATH` and `moved/PATH` are the numbers of each kernel. In TensorBoard there are also
    `turnover/PATH`, `dead_units/PATH`, `weight_norm/PATH` and the norms of the gradients of each
    kernel. A number that is not known yet, such as the `turnover` before the first update, is NaN.
    A number that can never be known is left out: `drop_fraction` if the method has none, and the
    norms of gradients without `data`. `gradient_norm_inactive` is also left out if a kernel is CSR,
    because the gradient of its inactive connections is not computed.

    If several optimizers drop connections, each has a number of its own: `drop_fraction`,
    `drop_fraction_2` and so on. An update that is skipped, because gradients are not finite, does
    not count. The optimizers are those in `model.optimizer` and, for a model with a `train_step` of
    its own, those in attributes of the model. If one makes several steps in a batch, its step
    counter is read before each batch.

    While the sparsity changes, as in gradual pruning, the progress bar shows it.

    Masks are read after updates. If there are several updates between two readings, as with
    `compile(steps_per_execution=...)` or with an integer `every`, then `moved`, `turnover` and
    `exploration_rate` compare the masks that were read. So a connection that was dropped and grown
    again in between counts as unchanged. If the optimizer has `track_exploration=True`, it counts
    each update itself, and `turnover` and `exploration_rate` are its numbers. `rigl_tf.DNW` updates
    masks in every step; its masks are read only at the end of an epoch, unless `every` is an
    integer.

    `seconds_per_update` is the time from the beginning of the step to the beginning of the next
    step, including other callbacks. With `steps_per_execution` above 1, the time of the other steps
    in the same execution is subtracted. It is NaN if this time is not known, and for an update in
    the last batch of an epoch.

    The callback works with masked and CSR kernels, with any optimizer and under any strategy. With
    several workers, only the chief writes for TensorBoard. It keeps two booleans in memory for each
    connection. For a CSR kernel it keeps the places of the active connections, and for one of at
    most 4,194,304 connections two bytes for each connection, active or not.

    Args:
        log_dir: Path of the folder for TensorBoard, or `None` to write nothing. This needs the
            package `tensorboard`. Without it there is a warning, and the logs have all numbers.
        every: When masks are read: `"update"`, after each step with an update; or an integer of at
            least 1, the number of steps between two readings (rounded up to a whole execution).
            Masks are always read at the end of an epoch, too. Defaults to `"update"`.
        masks: Boolean, whether pictures of the masks are written for TensorBoard when training
            begins and after each epoch. They have a row for each input and a column for each unit,
            or at most 256 x 256 cells; a cell is the brighter the more of its connections are
            active. Defaults to `False`.
        data: Data for the norms of the gradients: a pair `(inputs, targets)`, or a list of such
            batches. Each reading computes the gradients again, which costs a training step for each
            batch. Defaults to `None`.
        loss: The loss of these gradients, see `rigl_tf.analysis.gradient_norms`. Defaults to the
            loss with which the model was compiled, which must then be one loss, not one for each
            output.
        kernels: Boolean, whether the logs have the numbers of each kernel. Keras prints all logs
            at the end of its progress bar, which becomes long for a model with many layers.
            Defaults to `True`.

    Attributes:
        history: List with a dictionary for each reading. It has all numbers that are written for
            TensorBoard, and the `step`.

    Raises:
        ValueError: If an argument is out of its range. When training begins: if the model has no
            sparse kernel.

    Example:

    >>> x, y = np.ones((32, 8), "float32"), np.ones((32, 4), "float32")
    >>> inputs = keras.Input((8,))
    >>> dense = keras.Model(inputs, keras.layers.Dense(4, name="last")(inputs))
    >>> model = rigl_tf.sparsify(dense, 0.5)
    >>> model.compile(rigl_tf.SET("sgd", end_step=8, update_frequency=2), "mse")
    >>> history = model.fit(x, y, epochs=8, verbose=0, callbacks=[SparsityLogger()]).history
    >>> history["sparsity"][-1], history["sparsity/last/kernel"][-1]
    (0.5, 0.5)
    >>> sum(history["moved"]) > 0
    True
    """

    # At the end of a batch only a known number is added to the logs. So Keras need not wait for the
    # results of the batch.
    async_safe = True

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        every: str | int = "update",
        masks: bool = False,
        *,
        data: Data | None = None,
        loss: Loss | None = None,
        kernels: bool = True,
    ) -> None:
        super().__init__()
        check_booleans(masks=masks, kernels=kernels)
        if every != "update":
            if isinstance(every, str):
                raise ValueError(
                    f"`every` must be 'update' or an integer >= 1. Received: every={every!r}"
                )
            check_integers(1, every=every)
        if masks and log_dir is None:
            raise ValueError(
                "`masks=True` writes pictures for TensorBoard, so it needs a `log_dir`. "
                f"Received: masks={masks}, log_dir=None"
            )
        if log_dir is not None and not _may_be_folder(log_dir):
            raise ValueError(
                f"`log_dir` must be the path of a folder. Received: log_dir={log_dir!r}"
            )
        self._log_dir = log_dir
        self._every = None if every == "update" else int(every)
        self._shows_masks = bool(masks)
        self._data = data
        self._loss = loss
        self._logs_kernels = bool(kernels)
        self._watched = {}
        self._turnover = _NAN
        self.history = []

    # The methods that Keras calls.

    def on_train_begin(self, logs: Logs = None) -> None:
        self._has_begun = False
        self._first_sparsity = self._sparsity = None
        self._shows_sparsity = False
        self._board: Any = None  # until the model is known to be sparse
        self._is_first_epoch = True
        if self.model.built:
            self._begin()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        if self._has_begun:
            step = self._clock.step
            self._clock.begin_epoch()
            if self._is_first_epoch and self._clock.step != step:
                self._watched = {}  # Another callback has loaded a training, so masks are others.
                self._begin()
        self._is_first_epoch = False
        self._moved = dict.fromkeys(self._watched, 0)

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if not self._has_begun:
            if not self.model.built:
                return
            self._begin()
        if self._every is None and self._clock.is_quiet(batch):
            return
        has_updated = self._clock.before_batch(batch)
        self._has_updated |= has_updated
        if has_updated if self._every is None else self._clock.step >= self._next_step:
            self._look()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if self._shows_sparsity and logs is not None:
            logs["sparsity"] = self._sparsity

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if not self._has_begun:
            self._begin()
        self._has_updated |= self._clock.end_epoch()
        numbers = self._look()
        if self._shows_masks and self._board.is_open:
            self._write_masks()
        self._board.flush()
        if logs is not None:
            paths = list(self._watched) if self._logs_kernels else ()
            logs.update(self._of_all(numbers, sum(self._moved.values())))
            logs.update({f"sparsity/{path}": numbers[f"sparsity/{path}"] for path in paths})
            logs.update({f"moved/{path}": self._moved[path] for path in paths})

    def on_train_end(self, logs: Logs = None) -> None:
        if self._board is not None:
            self._board.close()

    # The beginning, when the model is built.

    def _begin(self):
        self._has_begun = True
        watched = watch(self.model, self._watched)
        if not watched:
            raise ValueError(
                "`SparsityLogger` needs a model with sparse kernels: make one with "
                "`rigl_tf.sparsify`. "
                f"Received: model={self.model.name!r}, without sparse kernels"
            )
        strategy = self.model.distribute_strategy
        is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        is_chief = not is_multi_worker or multi_worker.is_chief(strategy)
        if self._board is None:
            self._board = Board(self._log_dir if is_chief else None)
        self._clock = UpdateClock(self.model)
        self._gradients = None
        if self._data is not None:
            kernels_of = {path: each.kernel for path, each in watched.items()}
            loss = self.model.loss if self._loss is None else self._loss
            self._gradients = GradientNorms(self.model, self._data, loss, kernels_of)
        if watched != self._watched:  # Otherwise another `fit` trains the same kernels.
            self._turnover = _NAN
        self._watched, self._moved = watched, dict.fromkeys(watched, 0)
        self._has_updated, self._dropped = False, {}
        seen = {path: each.look() for path, each in watched.items()}
        self._last_step = self._clock.step
        self._note_sparsity(_sparsity(seen.values()))
        if self._every is not None:
            self._next_step = self._clock.step + self._every
        if self._shows_masks and self._board.is_open:
            self._write_masks()

    def _note_sparsity(self, sparsity):
        self._sparsity = sparsity
        if self._first_sparsity is None:
            self._first_sparsity = sparsity
        ramps = any(isinstance(each, GradualPruning) for each in self._clock.optimizers)
        self._shows_sparsity = ramps or sparsity != self._first_sparsity

    # One reading of all masks.

    def _look(self):
        """Reads all masks, and writes the numbers for TensorBoard. Returns `{name: number}`."""
        seen = {path: each.look() for path, each in self._watched.items()}
        step, last_step = self._clock.step, self._last_step
        self._last_step = step
        if step > last_step and any(isinstance(each, DNW) for each in self._clock.optimizers):
            self._has_updated = True  # Each of its steps is an update.
        if self._every is not None:
            self._next_step = step - step % self._every + self._every
        self._note_sparsity(_sparsity(seen.values()))
        num_grown = sum(each.num_grown for each in seen.values())
        if self._has_updated or num_grown:  # else the number of the last update stays
            self._turnover = num_grown / max(1, sum(each.num_active for each in seen.values()))
        is_news, self._has_updated = self._has_updated or num_grown > 0, False
        squares = {
            path: squared_norm(value_of(watched.kernel.variable))
            for path, watched in self._watched.items()
        }
        units = sum(each.num_units for each in seen.values())
        numbers = {
            "sparsity": self._sparsity,
            "moved": num_grown,
            **({"turnover": self._own_or("turnover", self._turnover)} if self._moves() else {}),
            **self._drop_fractions(),
            "exploration_rate": self._own_or(
                "exploration_rate",
                sum(each.num_ever for each in seen.values())
                / sum(each.size for each in seen.values()),
            ),
            "dead_units": sum(each.num_dead for each in seen.values()) / max(1, units),
            "weight_norm": math.sqrt(sum(squares.values())),
            **self._gradient_norms(),
        }
        if any(map(has_updates, self._clock.optimizers)):
            numbers["seconds_per_update"] = self._clock.seconds
        for path, each in seen.items():
            self._moved[path] += each.num_grown
            numbers[f"sparsity/{path}"] = 1 - each.num_active / each.size
            numbers[f"moved/{path}"] = each.num_grown
            numbers[f"turnover/{path}"] = each.num_grown / max(1, each.num_active)
            numbers[f"dead_units/{path}"] = each.num_dead / max(1, each.num_units)
            numbers[f"weight_norm/{path}"] = math.sqrt(squares[path])
        news = numbers
        if not is_news:  # At the end of an epoch without a new update: these were written before.
            old = ("moved", "turnover/")
            news = {name: x for name, x in numbers.items() if not name.startswith(old)}
        self.history.append({"step": step, **news})
        self._board.write(step, news)
        return numbers

    def _of_all(self, numbers, num_moved):
        own = {name: number for name, number in numbers.items() if "/" not in name}
        return {**own, "moved": num_moved}

    def _own_or(self, name, seen):
        """The number that the optimizers count themselves, if all do; else the number `seen`."""
        optimizers = [each for each in self._clock.optimizers if each.built]
        if not optimizers or not all(each.track_exploration for each in optimizers):
            return seen
        explored = kernels.explored_by(optimizers)
        if len(explored) < len(self._watched):  # Another optimizer trains some of the kernels.
            return seen
        return getattr(kernels, name)(explored)

    def _moves(self):
        return any(isinstance(o, DNW) or has_updates(o) for o in self._clock.optimizers)

    def _drop_fractions(self):
        """`{name: number}`, with one number for each optimizer that drops connections."""
        dropping = [each for each in self._clock.optimizers if isinstance(each, SparseOptimizer)]
        result = {}
        for number, optimizer in enumerate(dropping, 1):
            step = self._clock.last_update(optimizer)
            if self._dropped.get(number, (None,))[0] != step:  # A schedule may take long.
                value = float(optimizer.drop_fraction_at(step))
                self._dropped[number] = step, value
            value = _NAN if step is None else self._dropped[number][1]
            result["drop_fraction" if number == 1 else f"drop_fraction_{number}"] = value
        return result

    def _gradient_norms(self):
        if self._gradients is None:
            return {}
        norms = self._gradients()
        result = {}
        for index, kind in enumerate(("active", "inactive")):
            values = {path: pair[index] for path, pair in norms.items()}
            if None not in values.values():
                result[f"gradient_norm_{kind}"] = math.hypot(*values.values())
                result |= {f"gradient_norm_{kind}/{path}": v for path, v in values.items()}
        return result

    def _write_masks(self):
        images = {f"mask/{path}": each.image() for path, each in self._watched.items()}
        self._board.write(self._clock.step, {}, images)


def _may_be_folder(path):
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        return False
    try:
        return not pathlib.Path(path).is_file()
    except OSError:  # such as a name that is too long
        return False


def _sparsity(seen):
    seen = list(seen)
    return 1 - sum(each.num_active for each in seen) / sum(each.size for each in seen)
