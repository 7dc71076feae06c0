"""The strategies of `tf.distribute` that the scripts train with."""

import functools
import json
import os

import tensorflow as tf

from rigl_tf import multi_worker

STRATEGIES = ("none", "mirrored", "multi_worker")


def check_strategy(name, jit_compile=False):
    """Raises a `ValueError` if the strategy is unknown, or cannot be used here."""
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {list(STRATEGIES)}. Received: strategy={name!r}"
        )
    on_cpus = not tf.config.list_physical_devices("GPU")
    if jit_compile and (name == "multi_worker" or (name == "mirrored" and on_cpus)):
        raise ValueError(
            "`jit_compile` must be false with the strategy multi_worker and, on CPUs, with mirrored"
            f". Received: strategy={name!r}, jit_compile={jit_compile}"
        )
    if name == "multi_worker":
        _check_tf_config(os.environ.get("TF_CONFIG"))


def make(name):
    """Makes the strategy. For `"multi_worker"`, it waits until all workers have called this.

    `"mirrored"` uses all GPUs or, if there are none, all logical CPUs.
    """
    if name == "mirrored":
        return mirrored("GPU" if tf.config.list_logical_devices("GPU") else "CPU")
    if name == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


@functools.cache
def mirrored(device_type):
    """The `MirroredStrategy` on all logical devices of a type. It is always the same object.

    With two such strategies in one process, TensorFlow mixes up their sums.
    """
    devices = tf.config.list_logical_devices(device_type)
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def is_multi_worker(strategy):
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy):
    """Whether this process is the one that writes files."""
    return not is_multi_worker(strategy) or multi_worker.is_chief(strategy)


def check_batch_size(strategy, batch_size):
    """Raises a `ValueError` if the replicas cannot share a batch evenly."""
    num_replicas = strategy.num_replicas_in_sync
    if batch_size % num_replicas:
        raise ValueError(
            f"`batch_size` must be divisible by the number of replicas, {num_replicas}. "
            f"Received: batch_size={batch_size}"
        )


def fit(model, dataset, **arguments):
    """`model.fit` with a `tf.data.Dataset`. It also works where `fit` of Keras fails."""
    if is_multi_worker(model.distribute_strategy):
        return multi_worker.fit(model, dataset, **arguments)
    return model.fit(dataset, shuffle=False, **arguments)


def is_lost_worker(error):
    """Whether a `tf.errors.OpError` means that another worker died or is not reachable."""
    kinds = (
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
        tf.errors.UnavailableError,
    )
    return isinstance(error, kinds) and "Collective ops is aborted" in error.message


def _check_tf_config(text):
    try:
        config = json.loads(text or "")
        workers = config["cluster"]["worker"]
        task = config["task"]
        is_right = (
            set(config["cluster"]) == {"worker"}
            and all(isinstance(worker, str) and ":" in worker for worker in workers)
            and task["type"] == "worker"
            and isinstance(task["index"], int)
            and 0 <= task["index"] < len(workers)
        )
    except (ValueError, KeyError, TypeError):
        is_right = False
    if not is_right:
        raise ValueError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, as in "
            '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", '
            f'"index": 0}}}}, with the index of this worker. Received: TF_CONFIG={text}'
        )
