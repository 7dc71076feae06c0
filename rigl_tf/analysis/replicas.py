"""Gradients within the scope of a `tf.distribute.Strategy`."""

import tensorflow as tf


def on_a_replica(function, *arguments):
    """What a function of tensors returns, tensors too; within the scope of a strategy as well.

    There variables have gradients only on replicas: all do the same, and the first one's counts.
    """
    if not tf.distribute.in_cross_replica_context():
        return function(*arguments)
    strategy = tf.distribute.get_strategy()
    results = strategy.run(function, arguments)
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], results)
