"""Sparse training with fixed masks."""

import keras

from rigl_tf.optimizers.training import SparseTraining


@keras.saving.register_keras_serializable(package="rigl_tf")
class StaticSparse(SparseTraining):
    """Sparse training whose connections never change.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        name: String. Defaults to the name of the class in snake case, with a number.

    Raises:
        TypeError: If an argument is unknown.
        ValueError: When the optimizer is built, if the model has no sparse kernel that is trained.

    Example:

    >>> optimizer = StaticSparse(keras.optimizers.Adam())
    """

    supports_csr = True
    supports_structures = True
