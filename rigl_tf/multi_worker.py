"""`fit` and `evaluate` for `MultiWorkerMirroredStrategy`, where those of Keras fail for any model.

With this strategy, `model.fit` of Keras 3.12 to 3.15 cannot build a model from a distributed batch,
and cannot reduce scalar logs. The loops here use the same `train_step`, callbacks and metrics. They
will not be needed when `model.fit` works; `tests/test_multi_worker.py` checks this.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.checks import check_integers


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one worker that should write files.

    Args:
        strategy: A `tf.distribute.MultiWorkerMirroredStrategy`.

    Returns:
        Boolean, whether the task in `TF_CONFIG` is the chief, or worker 0 if there is no chief.

    Example:

    >>> rigl_tf.multi_worker.is_chief(tf.distribute.MultiWorkerMirroredStrategy())
    True
    """
    resolver = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id in (None, 0))


def value_of_chief(strategy: tf.distribute.Strategy, value: int) -> int:
    """Sends an integer from the chief to all workers. Every worker must call this function.

    Args:
        strategy: A `tf.distribute.MultiWorkerMirroredStrategy`.
        value: Integer below `2**31`. Only the value of the chief is used.

    Returns:
        Integer, the value of the chief.

    Example:

    >>> rigl_tf.multi_worker.value_of_chief(tf.distribute.MultiWorkerMirroredStrategy(), 7)
    7
    """
    return int(_array_of_chief(strategy, np.array([value], "int32"))[0])


def fit(
    model: keras.Model,
    dataset: tf.data.Dataset,
    *,
    epochs: int = 1,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_data: tf.data.Dataset | None = None,
    validation_steps: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    verbose: int | str = "auto",
) -> keras.callbacks.History:
    """Trains a model as `model.fit` does, together with the other workers in `TF_CONFIG`.

    Every worker calls it with the same arguments. After `on_train_begin` of the callbacks, all
    workers take the weights, the optimizer's state and the first epoch of the chief. So only the
    chief needs a backup to restore. Loss and metrics are computed over all workers.

    Callbacks run on every worker and get the same logs. If a callback stops training on one worker,
    training stops on all workers. A callback that writes files needs a different path on each
    worker that is not the chief (see `is_chief`).

    Args:
        model: A `keras.Model`, built and compiled in the scope of a
            `tf.distribute.MultiWorkerMirroredStrategy`. Its own `train_step` and `test_step`,
            `steps_per_execution` and `run_eagerly` are used.
        dataset: A `tf.data.Dataset` of batches, the same on every worker. Each batch is divided
            among the replicas. If its size is unknown in advance, the parts may differ; the loss is
            the mean of the means of the replicas.
        epochs: Integer, the number of epochs.
        initial_epoch: Integer, the epoch to start with.
        steps_per_epoch: Integer, needed if the length of `dataset` is unknown. If it is given, the
            dataset is continued from epoch to epoch.
        validation_data: A `tf.data.Dataset` of batches, or `None`.
        validation_steps: Integer, the number of batches of `validation_data`, needed if its length
            is unknown.
        callbacks: List of `keras.callbacks.Callback`, or `None`.
        verbose: See `model.fit`. With `"auto"` there is a progress bar on the chief only.

    Returns:
        The `keras.callbacks.History`.

    Raises:
        ValueError: If the model was not made in the scope of such a strategy, is not built and
            compiled, or uses `jit_compile`; if a dataset has an unknown length or ends too early;
            or if its batch size is known and not divisible by the number of replicas.

    Example:

    >>> strategy = tf.distribute.MultiWorkerMirroredStrategy()
    >>> with strategy.scope():
    ...     dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    ...     model = rigl_tf.sparsify(dense, sparsity=0.5)
    ...     model.compile(rigl_tf.RigL("sgd", end_step=1000), "mse")
    >>> dataset = tf.data.Dataset.from_tensors((tf.ones((8, 4)), tf.ones((8, 2))))
    >>> history = rigl_tf.multi_worker.fit(model, dataset, epochs=3, verbose=0)
    >>> len(history.history["loss"])
    3
    """
    check_integers(0, epochs=epochs, initial_epoch=initial_epoch)
    strategy = _strategy_of(model)
    train = _Loop(model, model.train_step, dataset, steps_per_epoch, "steps_per_epoch")
    validate = None
    if validation_data is not None:
        validate = _Loop(
            model, model.test_step, validation_data, validation_steps, "validation_steps"
        )
    called = _callback_list(model, callbacks, verbose, epochs, train.steps)
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
    model.stop_training = False
    called.on_train_begin()
    # `BackupAndRestore` stores the epoch to continue from only in this attribute.
    first_epoch = getattr(model, "_initial_epoch", None) or initial_epoch
    first_epoch = value_of_chief(strategy, first_epoch)
    _copy_state_of_chief(strategy, [*model.variables, *model.optimizer.variables])
    train.make_metrics()
    is_stopped = _any_worker(strategy, lambda: model.stop_training)
    logs = {}
    for epoch in range(first_epoch, epochs):
        called.on_epoch_begin(epoch)
        logs = train.run(called.on_train_batch_begin, called.on_train_batch_end, is_stopped)
        if validate is not None:
            results = _evaluate(validate, called)
            logs = {**logs, **{f"val_{name}": value for name, value in results.items()}}
        called.on_epoch_end(epoch, logs)
        if is_stopped():
            break
    with strategy.scope():
        model.optimizer.finalize_variable_values(model.trainable_weights)
    called.on_train_end(logs)
    return model.history


def evaluate(
    model: keras.Model,
    dataset: tf.data.Dataset,
    *,
    steps: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    verbose: int | str = "auto",
) -> dict[str, float]:
    """Computes loss and metrics over all workers, as `model.evaluate(..., return_dict=True)`.

    Args:
        model: See `fit`.
        dataset: A `tf.data.Dataset` of batches, the same on every worker.
        steps: Integer, the number of batches, needed if the length of `dataset` is unknown.
        callbacks: List of `keras.callbacks.Callback`, or `None`.
        verbose: See `fit`.

    Returns:
        Dictionary `{name: float}` of the loss and the metrics.

    Raises:
        ValueError: As `fit`.
    """
    _strategy_of(model)
    loop = _Loop(model, model.test_step, dataset, steps, "steps")
    return _evaluate(loop, _callback_list(model, callbacks, verbose, 1, loop.steps, history=False))


class _Loop:
    """Passes over a distributed dataset with a step of the model, which is compiled once."""

    def __init__(self, model, step, dataset, steps, steps_name):
        self._model = model
        self._strategy = model.distribute_strategy
        self._steps_name = steps_name
        _check_batches(dataset, self._strategy.num_replicas_in_sync)
        self._starts_anew = steps is None
        if steps is not None:
            check_integers(1, **{steps_name: steps})
        self.steps = int(dataset.cardinality()) if steps is None else steps
        if self.steps < 1:
            raise ValueError(
                f"`{steps_name}` must be given for a dataset whose length is not known. "
                f"Received: {steps_name}=None"
            )
        self._dataset = self._strategy.experimental_distribute_dataset(dataset)
        self._iterator = None
        self._execute = self._make_execute(tf.autograph.experimental.do_not_convert(step))

    def make_metrics(self):
        """Creates the variables of the metrics.

        A compiled step that creates variables is traced twice. So this is done with the test step,
        which is shorter than the training step.
        """
        kind = type(self._model)
        if (kind.train_step, kind.test_step) == (keras.Model.train_step, keras.Model.test_step):
            test_step = self._model.test_step
            test = tf.function(lambda batch: self._strategy.run(test_step, args=(batch,)))
            test.get_concrete_function(self._dataset.element_spec)

    def _make_execute(self, step):
        model, strategy = self._model, self._strategy

        def execute(iterator, num_steps):
            for _ in tf.range(num_steps - 1):
                strategy.run(step, args=(next(iterator),))
            logs = strategy.run(step, args=(next(iterator),))
            metrics = model.get_metrics_result()
            if logs.keys() == metrics.keys():
                return metrics
            return keras.tree.map_structure(
                lambda value: strategy.reduce("MEAN", value, axis=None), logs
            )

        return execute if model.run_eagerly else tf.function(execute)

    def run(self, on_batch_begin, on_batch_end, is_stopped=lambda: False):
        """Takes all steps, or stops after a step if `is_stopped()`; returns the last logs."""
        model = self._model
        if self._iterator is None or self._starts_anew:
            self._iterator = iter(self._dataset)
        model.reset_metrics()
        for start in range(0, self.steps, model.steps_per_execution):
            num_steps = min(model.steps_per_execution, self.steps - start)
            on_batch_begin(start)
            try:
                logs = self._execute(self._iterator, tf.constant(num_steps))
            except (tf.errors.OutOfRangeError, StopIteration) as error:
                raise ValueError(
                    f"The dataset must have a batch for each step of all epochs: `.repeat()` it. "
                    f"Received: {self._steps_name}={self.steps} and a dataset that ended"
                ) from error
            on_batch_end(start + num_steps - 1, logs)
            if is_stopped():
                break
        return keras.tree.map_structure(lambda value: np.asarray(value).tolist(), logs)


def _evaluate(loop, callbacks):
    callbacks.on_test_begin()
    logs = loop.run(callbacks.on_test_batch_begin, callbacks.on_test_batch_end)
    callbacks.on_test_end(logs)
    return logs


def _strategy_of(model):
    strategy = model.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise ValueError(
            "The model must be made in the scope of a MultiWorkerMirroredStrategy; use `model.fit` "
            f"for other strategies. Received: a model of {type(strategy).__name__}"
        )
    if not (model.built and model.compiled and model.optimizer is not None):
        raise ValueError(
            "The model must be built and compiled with an optimizer. "
            f"Received: built={model.built}, compiled={model.compiled}"
        )
    if model.jit_compile:
        raise ValueError(
            "`jit_compile` must be False: XLA cannot compile the sums over workers on CPUs, and it "
            f"was not tried on other devices. Received: jit_compile={model.jit_compile}"
        )
    return strategy


def _check_batches(dataset, num_replicas):
    for spec in tf.nest.flatten(dataset.element_spec):
        size = spec.shape[0]
        if size is not None and size % num_replicas:
            raise ValueError(
                "The batch size must be divisible by the number of replicas, "
                f"{num_replicas}. Received: batches of {size}"
            )


def _callback_list(model, callbacks, verbose, epochs, steps, history=True):
    if verbose == "auto":
        verbose = int(is_chief(model.distribute_strategy))
    return keras.callbacks.CallbackList(
        callbacks,
        add_history=history,
        add_progbar=verbose != 0,
        model=model,
        verbose=verbose,
        epochs=epochs,
        steps=steps,
    )


def _any_worker(strategy, flag):
    """A function that returns on every worker whether `flag()` is true on any worker."""

    @tf.function
    def count(is_true):
        return strategy.reduce("SUM", strategy.run(lambda: is_true), axis=None)

    return lambda: int(count(tf.constant(int(flag())))) > 0


def _array_of_chief(strategy, array):
    """The chief's int32 `array`, on every worker."""

    def value(context):
        is_first = context.replica_id_in_sync_group == 0
        return tf.constant(array if is_first else np.zeros_like(array))

    values = strategy.experimental_distribute_values_from_function(value)
    return strategy.reduce("SUM", values, axis=None).numpy()


def _copy_state_of_chief(strategy, variables):
    """Copies the chief's values of `variables` to all workers, bit for bit, one after another."""
    for variable in variables:
        array = variable.numpy()
        mine = array.tobytes()
        padded = np.frombuffer(mine + bytes(-len(mine) % 4), "int32")
        state = _array_of_chief(strategy, padded)
        if not np.array_equal(state, padded):
            value = np.frombuffer(state.tobytes(), array.dtype, array.size).reshape(array.shape)
            variable.assign(value)
