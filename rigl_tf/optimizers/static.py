"""Sparse training with the masks that there are."""

import keras

from rigl_tf.optimizers.training import SparseTraining


@keras.saving.register_keras_serializable(package="rigl_tf")
class StaticSparse(SparseTraining):
    """Sparse training whose connections never change.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        name: String. Defaults to the class's name in snake case, with a number.

    Raises:
        TypeError: If there is no such argument.
        ValueError: When it is built, if the model has no sparse kernel that is trained.

    Example:

    >>> optimizer = StaticSparse(keras.optimizers.Adam())
    """

    supports_csr = True
    supports_structures = True
