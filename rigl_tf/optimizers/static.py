"""Sparse training with fixed masks."""

import keras
import tensorflow as tf

from rigl_tf import selection
from rigl_tf.optimizers.drop_and_grow import SparseOptimizer, num_to_drop
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


@keras.saving.register_keras_serializable(package="rigl_tf")
class StaticReinit(SparseOptimizer):
    """Sparse training whose connections never change, but whose weakest weights restart.

    At update steps a share of each kernel's weakest connections restarts: the weight takes the
    value of `grow_init`, and every slot of the inner optimizer, such as a momentum, its first
    value. It is a control for algorithms that drop and grow: does it help to move connections, or
    only to begin anew?

    Reference:

    - The authors' code of [Evci et al., 2020](https://arxiv.org/abs/1911.11134):
      `SparseStaticOptimizer`

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection restarts at or after this step. A common choice
            is 75 % of training:
            `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection restarts before this step or at step 0.
            Defaults to 0.
        update_frequency: Integer, the number of steps between updates. An update replaces a
            gradient step: with 1, no step from `begin_step` to `end_step` trains the weights.
            Defaults to 100.
        drop_fraction: Share of the active connections that an update restarts. A float in `[0, 1]`
            is the share at `begin_step`; it falls to 0 at `end_step` along a cosine. Or a
            `keras.optimizers.schedules.LearningRateSchedule`, or another callable of the step (a
            scalar integer tensor), which returns the share. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values depend on it, on the index of the
            kernel and on the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)`, or `None`. If it is given, the scores get the moving
            average `m * average + (1 - m) * gradient` over all steps instead of the gradient.
            Defaults to `None`.
        grow_init: String, the value with which connections restart. Defaults to `"zeros"`:

            - `"zeros"`: zero.
            - `"initial_distribution"`: normally distributed with mean 0 and the standard deviation
              of the active weights at the beginning of training.
            - `"random_normal"`: normally distributed with mean 0 and the standard deviation of the
              active weights before the update.
            - `"random_uniform"`: uniform between minus and plus the mean magnitude of the active
              weights.
            - `"gradient"`: the `gradient` that the scores get.
            - `"gradient_sign"`: the sign of this gradient.
        grow_scale: Number by which these values are multiplied. With a negative number and
            `"gradient"`, a connection starts in the direction of descent. Defaults to 1.0.
        track_exploration: Boolean, whether `exploration_rate` and `turnover` are computed. It needs
            a boolean array of each kernel's size. Defaults to `False`.
        name: String. Defaults to the name of the class in snake case, with a number.

    Raises:
        TypeError: If an argument is unknown.
        ValueError: If an argument is out of its range, or there is no update before `end_step`.
            When the optimizer is built: if the model has no sparse kernel that is trained.

    Example:

    >>> optimizer = StaticReinit("adam", end_step=25_000)
    """

    dense_gradients = "never"

    @property
    def supports_structures(self) -> bool:
        return True

    def new_mask(
        self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor
    ) -> tf.Tensor:
        return mask

    def _kind_of(self, state):
        return state.sparse.shape, state.kernel.dtype

    def _updated(self, sparse, kernel, mask, gradient, step, initial_std):
        with self._drawing(sparse, step) as seed:
            num_active = selection.num_true(mask)
            num_drop = num_to_drop(num_active, self.drop_fraction_at(step))
            scores = self._scores("drop_scores", kernel, mask, gradient)
            kept = selection.keep(mask, scores, num_active - num_drop)
        values = self._grown_values(kernel, mask, gradient, initial_std, seed)
        return mask, values, mask & ~kept

    def _updated_places(self, sparse, tiled, step, initial_std):
        if self.grow_init != "zeros" or not self.elementwise:
            return super()._updated_places(sparse, tiled, step, initial_std)
        with self._drawing(sparse, step):
            is_kept, _ = self._kept(tiled, step)
        same = tf.range(tiled.places.shape[0], dtype=tf.int64)
        return tiled.places, tf.zeros([], tiled.values.dtype), same, is_kept
