"""A training run: prepares it from its settings, trains, and continues it after a stop."""

import dataclasses
import pathlib
import sys

import keras
import tensorflow as tf

import rigl_tf
from rigl_tf import multi_worker
from scripts.common import classifiers, datasets, methods
from scripts.train import runs, strategies
from scripts.train.finish import finish
from scripts.train.settings import (
    MAY_DIFFER,
    NAMES,
    Settings,
    check_settings,
    default_directory,
)

_MAX_STEPS_PER_EXECUTION = 50


@dataclasses.dataclass
class Training:
    """A run that is ready to start or to continue."""

    settings: Settings
    directory: runs.RunDirectory
    data: datasets.Dataset
    model: keras.Model
    strategy: tf.distribute.Strategy
    first_epoch: int = 0


def prepare(output_dir=None, resume=False, given=None, command=""):
    """Checks everything, and makes the run directory, or restores the run from it.

    Args:
        output_dir: The run directory; by default one in `runs/` with a name made from the settings.
        resume: Boolean, whether to continue the run in it.
        given: Dictionary, the settings that differ from the defaults. With `resume`: the settings
            that the user has given.
        command: String, the command for `config.json`.

    Returns:
        A `Training`, or `None` if the run is finished.

    Raises:
        ValueError, OSError: If something is wrong with the request.
    """
    settings = Settings(**(given or {}))
    directory = runs.RunDirectory(output_dir or default_directory(settings))
    if resume:
        config = directory.read_config()
        runs.check_same_settings(config["settings"], given or {}, NAMES, MAY_DIFFER)
        settings = Settings(**{**config["settings"], **(given or {})})
        if directory.is_finished:
            return None
    check_settings(settings)
    strategy = strategies.make(settings.strategy)
    strategies.check_batch_size(strategy, settings.batch_size)
    is_chief = strategies.is_chief(strategy)
    if is_chief and not resume:
        directory.check_free()
    data = datasets.load(settings.dataset, settings.data_dir)
    keras.backend.clear_session()
    with strategy.scope():
        model = _compiled_model(settings, data)
    training = Training(settings, directory, data, model, strategy)
    config_now = runs.describe(dataclasses.asdict(settings), data, command)
    config_now["versions"]["replicas"] = strategy.num_replicas_in_sync
    if resume:
        runs.check_same_circumstances(config, config_now)
        if is_chief:
            training.first_epoch = directory.restore(model, _steps_per_epoch(settings, data))
        if strategies.is_multi_worker(strategy):
            training.first_epoch = multi_worker.value_of_chief(strategy, training.first_epoch)
    elif is_chief:
        directory.create(config_now)
    return training


def train(training):
    """Trains all epochs that are not done yet, and writes a checkpoint after each."""
    settings, data, model = training.settings, training.data, training.model
    is_chief = strategies.is_chief(training.strategy)
    if training.first_epoch >= settings.epochs:
        return

    def save(epoch, logs):
        row = {
            "epoch": epoch + 1,
            **{name: float(logs[name]) for name in ("loss", "accuracy", "val_loss")},
            "val_accuracy": float(logs["val_accuracy"]),
            "sparsity": rigl_tf.sparsity_summary(model).sparsity,
            "learning_rate": float(model.optimizer.learning_rate),
            **{name: value for name, value in logs.items() if name.startswith("moved")},
        }
        training.directory.save_epoch(model, epoch + 1, row)

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=save)]
    if rigl_tf.masks.kernels_of(model):
        callbacks.insert(0, rigl_tf.callbacks.SparsityLogger())
    strategies.fit(
        model,
        batches(data, settings, training.first_epoch),
        initial_epoch=training.first_epoch,
        epochs=settings.epochs,
        steps_per_epoch=_steps_per_epoch(settings, data),
        validation_data=_test_batches(data),
        callbacks=callbacks if is_chief else [],
        verbose=("auto" if sys.stdout.isatty() else 2) if is_chief else 0,
    )


def batches(data, settings, first_epoch=0):
    """The training batches of all epochs from `first_epoch` on."""
    return classifiers.batches(
        data.x_train,
        data.y_train,
        settings.batch_size,
        settings.epochs,
        settings.seed,
        first_epoch,
    )


def _steps_per_execution(settings, steps_per_epoch):
    if settings.strategy == "mirrored":
        return 1  # TensorFlow fails if a loop of steps on several local replicas has a condition.
    # A divisor of the steps of an epoch, so that an execution never has batches of the next epoch.
    # It has at most one update, so that the logger sees each of them.
    most = min(_MAX_STEPS_PER_EXECUTION, settings.update_frequency)
    return max(n for n in range(1, most + 1) if steps_per_epoch % n == 0)


def _test_batches(data):
    with tf.device("CPU"):
        dataset = tf.data.Dataset.from_tensor_slices((data.x_test, data.y_test))
    return dataset.batch(min(1000, len(data.x_test)))


def _steps_per_epoch(settings, data):
    if settings.batch_size > len(data.x_train):
        raise ValueError(
            "`batch_size` must be at most the number of training examples, "
            f"{len(data.x_train)}. Received: batch_size={settings.batch_size}"
        )
    return len(data.x_train) // settings.batch_size


def _compiled_model(settings, data):
    """The built model and its optimizer. The same settings give the same bits."""
    keras.utils.set_random_seed(settings.seed)
    steps = _steps_per_epoch(settings, data)
    model = methods.build_model(
        settings.method,
        settings.model,
        settings.sparsity,
        settings.distribution,
        settings.seed,
        data,
        input_shape=data.x_train.shape[1:],
        num_classes=data.num_classes,
        l2=settings.l2,
    )
    if settings.execution != "masked":
        rigl_tf.with_execution(model, settings.execution)
    total = steps * settings.epochs
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, total)
    optimizer = methods.wrap_optimizer(
        settings.method,
        keras.optimizers.SGD(schedule, momentum=settings.momentum, nesterov=True),
        total,
        settings.sparsity,
        settings.distribution,
        settings.end_fraction,
        settings.update_frequency,
        settings.drop_fraction,
        settings.seed,
    )
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # Given by its name, it would be created in the first step, which is then traced twice.
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
        jit_compile=settings.jit_compile,
        steps_per_execution=_steps_per_execution(settings, steps),
    )
    optimizer.build(model.trainable_variables)
    return model


def refuse(error, code=2):
    """Prints one line. Returns the exit code."""
    print(f"{pathlib.Path(__file__).name}: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def run(output_dir=None, resume=False, given=None, command=""):
    """Prepares, trains and finishes. An error of the user is printed as one line on stderr.

    The arguments are those of `prepare`. Returns the exit code: 0, or 2 for a wrong request, or 3
    if another worker was lost.
    """
    try:
        return _run(output_dir, resume, given, command)
    except tf.errors.OpError as error:
        if not strategies.is_lost_worker(error):
            raise
        return refuse(
            "Another worker stopped or cannot be reached: end all workers and start all of them "
            "again with --resume, which continues from the last finished epoch",
            code=3,
        )


def _run(output_dir, resume, given, command):
    try:
        training = prepare(output_dir, resume, given, command)
    except (ValueError, OSError) as error:
        return refuse(error)
    if training is None:
        print("The run is finished already: there is nothing to resume")
        return 0
    try:
        train(training)
        if strategies.is_chief(training.strategy):
            finish(training.directory, training.settings, training.data, training.model, command)
    except OSError as error:
        return refuse(error)
    return 0
