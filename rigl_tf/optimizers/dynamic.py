"""Dynamic sparse training: algorithms that drop weak connections and grow others."""

import keras
import tensorflow as tf

from rigl_tf.optimizers.base import SparseOptimizer


@keras.saving.register_keras_serializable(package="rigl_tf")
class RigL(SparseOptimizer):
    """Sparse training that grows the connections with the largest gradients.

    Every `update_frequency` steps a share of each kernel's weakest connections is dropped and as
    many are grown where the loss gradient is largest, so the number of parameters never changes.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), Algorithm 1

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights.
        end_step: Integer, in steps. No connection changes at or after it; the paper uses 75 % of
            training.
        begin_step, update_frequency, drop_fraction, seed, name: See `rigl_tf.SparseOptimizer`.

    Example:

    >>> optimizer = RigL(keras.optimizers.SGD(0.1, momentum=0.9), end_step=25_000)
    """

    def grow_scores(self, kernel, mask, gradient):
        return tf.abs(gradient)


@keras.saving.register_keras_serializable(package="rigl_tf")
class RigLInverted(SparseOptimizer):
    """Sparse training that grows the connections with the smallest gradients: a control for RigL.

    If it were as good as `RigL`, the gradients would say nothing about where to grow.

    Reference:

    - The authors' code of [Evci et al., 2020](https://arxiv.org/abs/1911.11134)

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights.
        end_step: Integer, in steps. No connection changes at or after it.
        begin_step, update_frequency, drop_fraction, seed, name: See `rigl_tf.SparseOptimizer`.

    Example:

    >>> optimizer = RigLInverted("adam", end_step=25_000)
    """

    def grow_scores(self, kernel, mask, gradient):
        return -tf.abs(gradient)


@keras.saving.register_keras_serializable(package="rigl_tf")
class SET(SparseOptimizer):
    """Sparse training that grows connections at random.

    Reference:

    - [Mocanu et al., 2018](https://arxiv.org/abs/1707.04780), Sparse Evolutionary Training

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights.
        end_step: Integer, in steps. No connection changes at or after it.
        begin_step, update_frequency, drop_fraction, seed, name: See `rigl_tf.SparseOptimizer`.

    Example:

    >>> optimizer = SET("adam", end_step=25_000, drop_fraction=0.1)
    """

    def grow_scores(self, kernel, mask, gradient):
        return self.random_uniform(kernel)


@keras.saving.register_keras_serializable(package="rigl_tf")
class SNFS(SparseOptimizer):
    """Sparse training that grows the connections with the largest average gradients.

    Sparse Networks From Scratch, without redistribution between kernels: connections are grown by
    the magnitude of a moving average of the dense gradient, which costs one array of the kernel's
    size and, under `tf.distribute`, an all-reduce of the dense gradient in every step.

    Reference:

    - [Dettmers and Zettlemoyer, 2019](https://arxiv.org/abs/1907.04840)
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), table 1

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights.
        end_step: Integer, in steps. No connection changes at or after it.
        gradient_momentum: Float in `[0, 1)`, the momentum of the average.
        begin_step, update_frequency, drop_fraction, seed, name: See `rigl_tf.SparseOptimizer`.

    Example:

    >>> optimizer = SNFS("adam", end_step=25_000, gradient_momentum=0.99)
    """

    def __init__(self, inner_optimizer, end_step, *args, gradient_momentum=0.9, **kwargs):
        super().__init__(
            inner_optimizer, end_step, *args, gradient_momentum=gradient_momentum, **kwargs
        )

    def grow_scores(self, kernel, mask, gradient):
        return tf.abs(gradient)


@keras.saving.register_keras_serializable(package="rigl_tf")
class StaticSparse(SparseOptimizer):
    """Sparse training whose connections never change.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights.
        name: String.

    Example:

    >>> optimizer = StaticSparse(keras.optimizers.Adam())
    """

    def __init__(self, inner_optimizer, name=None):
        super().__init__(inner_optimizer, end_step=1, name=name)

    def is_update_step(self, step):
        return False

    def get_config(self):
        config = super().get_config()
        return {name: config[name] for name in ("inner_optimizer", "name")}
