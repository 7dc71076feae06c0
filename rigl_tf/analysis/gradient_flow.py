"""Gradient flow: the gradient norm of active connections, and how mask updates change it."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from rigl_tf import masks
from rigl_tf._types import Data, Loss
from rigl_tf.checks import check_booleans, check_integers
from rigl_tf.objective import MeanGradients, batches, read_batches
from rigl_tf.optimizers import SparseTraining
from rigl_tf.optimizers.slots import optimizers_within


class GradientNorms(NamedTuple):
    """L2 norms of gradients.

    Attributes:
        total: Float, the norm of all gradients together.
        by_weight: `{path: norm}` for each trainable weight.
    """

    total: float
    by_weight: dict[str, float]


def gradient_norms(model: keras.Model, data: Data, loss: Loss) -> GradientNorms:
    """Computes the norms of the gradients of the mean loss over `data`, of active connections only.

    The network computes as in training (batch normalisation uses the statistics of each batch), but
    its state is restored at the end. Regularisation losses of the model are not used.

    Reference:

    - [Evci et al., 2022](https://arxiv.org/abs/2010.03533), section 4; the authors measure on 1000
      held-out examples

    Args:
        model: A built `keras.Model`, sparse or dense.
        data: A pair `(inputs, targets)` or a triple `(inputs, targets, sample_weight)`; or an
            iterable of such batches. With `mixed_float16`, the gradients of a mean over thousands
            of examples may become 0; then use smaller batches.
        loss: A Keras loss, its name, or a function of targets and outputs. It is averaged over the
            examples, each with its weight if there are weights, as in `model.fit`. It gets targets
            and outputs in float32, as there. For a model with several outputs it must be a function
            of all targets and all outputs, which it gets as they are.

    Returns:
        A `GradientNorms`, with `total` and `by_weight`.

    Raises:
        ValueError: If `data` is empty, endless or not made of such batches, `loss` is not a loss,
            or the model has no trainable weight.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.zeros((2, 1))])
    >>> gradient_norms(model, (np.array([[3.0, 4.0]]), np.array([[0.5]])), "mse").total
    5.0
    """
    return _Measure(model, read_batches(data), loss)()


class GradientFlow(keras.callbacks.Callback):
    """Measures the gradient norm during training, and right before and after each mask update.

    All norms are measured on the same data. An update step of RigL, SET and others is not a
    gradient step, so the norm changes only because of the update. An update step of
    `rigl_tf.GradualPruning` and `rigl_tf.DNW` is also a gradient step, so the difference contains
    both.

    The logs of each epoch contain the last norm as `"gradient_norm"`. The model must be compiled
    with `steps_per_execution=1`, because nothing can be measured between the steps of an execution.

    Reference:

    - [Evci et al., 2022](https://arxiv.org/abs/2010.03533), section 4

    Args:
        data: Data that is not used for training, see `gradient_norms`. It is kept in memory, so its
            number of batches must be known.
        loss: See `gradient_norms`. With `None` it is the loss that the model was compiled with,
            without `loss_weights`.
        every: Integer >= 1. The norm is measured before each step that is a multiple of it.
        around_updates: Boolean, whether the norm is measured before and after mask updates.

    Attributes:
        history: List of pairs `(step, GradientNorms)`, measured before that step.
        updates: List of triples `(step, before, after)`, with the `GradientNorms` before and after
            the mask update in that step.

    Raises:
        ValueError: If an argument is out of its range. When training begins: if the model was
            compiled with `steps_per_execution` above 1.

    Example:

    >>> x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model = rigl_tf.sparsify(model, 0.5)
    >>> model.compile(rigl_tf.RigL("sgd", end_step=6, update_frequency=2), "mse")
    >>> flow = GradientFlow((x, y), every=3)
    >>> history = model.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[flow])
    >>> [step for step, _ in flow.history]
    [0, 3, 6]
    >>> [step for step, before, after in flow.updates]
    [2, 4]
    """

    def __init__(
        self, data: Data, loss: Loss | None = None, every: int = 100, around_updates: bool = True
    ) -> None:
        super().__init__()
        check_integers(1, every=every)
        check_booleans(around_updates=around_updates)
        self._data = batches(data)
        self._loss = loss
        self._every = every
        self._around_updates = around_updates
        self._before = None
        self.history = []
        self.updates = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.model.steps_per_execution != 1:
            raise ValueError(
                "`GradientFlow` measures between steps: compile with `steps_per_execution=1`. "
                f"Received: steps_per_execution={self.model.steps_per_execution}"
            )
        optimizers = optimizers_within(self.model.optimizer)
        self._sparse = [each for each in optimizers if isinstance(each, SparseTraining)]
        loss = self.model.loss if self._loss is None else self._loss
        self._measure = _Measure(self.model, self._data, loss)
        self._last_step = -1

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step = self._step()
        is_new = step != self._last_step  # it does not change while gradients are accumulated
        is_regular = is_new and not step % self._every
        is_update = self._around_updates and self._is_update(step)
        self._last_step = step
        if not is_update and not is_regular:
            return
        norms = self._measure()
        if is_regular:
            self.history.append((step, norms))
        if is_update:
            self._before = norms

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # A step that overflows in float16 does not count, and its update will come later.
        if self._before is not None and self._step() > self._last_step:
            self.updates.append((self._last_step, self._before, self._measure()))
        self._before = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None and self.history:
            logs["gradient_norm"] = self.history[-1][1].total

    def _is_update(self, step):
        return any(bool(each.is_update_step(step)) for each in self._sparse)

    def _step(self):
        if not self._sparse:
            return int(tf.convert_to_tensor(self.model.optimizer.iterations))
        # Not their `iterations`, which do not count update steps. (Several sparse optimizers step
        # together; an optimizer without variables in this model is never built.)
        steps = [int(tf.convert_to_tensor(each.step)) for each in self._sparse if each.built]
        return max(steps, default=0)


class _Measure:
    """The gradient norms of one model on some batches, as a function to call again."""

    def __init__(self, model, data, loss):
        if not model.trainable_variables:
            raise ValueError(
                "Gradients need a built model with trainable weights. "
                f"Received: model={model.name!r}, without"
            )
        self._data = data
        self._weights = model.trainable_variables
        # (A CSR kernel has the path of its layer's kernel, not that of its values.)
        paths = {
            id(kernel): path
            for path, kernel in masks.by_path(map(_kernel_or_self, model.weights)).items()
        }
        self._paths = [paths[id(_kernel_or_self(each))] for each in self._weights]
        self._gradients = MeanGradients(model, loss, self._weights)

    def __call__(self):
        gradients = map(active_only, self._gradients(self._data), self._weights)
        by_weight = {
            path: float(tf.norm(tf.cast(gradient, tf.float32)))
            for path, gradient in zip(self._paths, gradients, strict=True)
        }
        return GradientNorms(float(tf.norm(list(by_weight.values()))), by_weight)


def _kernel_or_self(weight):
    return masks.kernel_of(weight) or weight


def active_only(values: tf.Tensor, weight: keras.Variable) -> tf.Tensor:
    """`values` of a weight, zero where the connections of a sparse kernel are inactive."""
    mask = masks.mask_of(weight)
    return values if mask is None else masks.masked(values, mask)
