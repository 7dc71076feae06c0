"""Dynamic sparse training: algorithms that drop weak connections and grow others."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import selection
from rigl_tf.checks import check_booleans, check_numbers
from rigl_tf.optimizers import redistribution
from rigl_tf.optimizers.drop_and_grow import SparseOptimizer, num_to_drop
from rigl_tf.optimizers.growth import mean_of_active


@keras.saving.register_keras_serializable(package="rigl_tf")
class RigL(SparseOptimizer):
    """Sparse training that grows the connections with the largest gradients.

    Every `update_frequency` steps a share of each kernel's weakest connections is dropped and as
    many are grown where the loss gradient is largest, so the number of parameters never changes.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), Algorithm 1

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after this step. The paper uses
            75 % of training: `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before this step or at step 0.
            Defaults to 0.
        update_frequency: Integer, the number of steps between mask updates. An update replaces a
            gradient step: with 1, no step from `begin_step` to `end_step` trains the weights.
            Defaults to 100.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            the share at `begin_step`; it falls to 0 at `end_step` along a cosine. Or a
            `keras.optimizers.schedules.LearningRateSchedule`, or another callable of the step (a
            scalar integer tensor), which returns the share. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values depend on it, on the index of the
            kernel and on the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)`, or `None`. If it is given, the scores get the moving
            average `m * average + (1 - m) * gradient` over all steps instead of the gradient.
            Defaults to `None`.
        grow_init: String, the first value of grown connections. Defaults to `"zeros"` (in the paper
            no other choice was better):

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

    >>> optimizer = RigL(keras.optimizers.SGD(0.1, momentum=0.9), end_step=25_000)
    """

    def grow_scores(self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        return tf.abs(gradient)

    def _places_to_grow(self, tiled, is_kept, num_grow):
        if type(self).grow_scores is not RigL.grow_scores:
            return super()._places_to_grow(tiled, is_kept, num_grow)
        return tiled.largest_gradients(~is_kept, num_grow)


@keras.saving.register_keras_serializable(package="rigl_tf")
class RigLInverted(SparseOptimizer):
    """Sparse training that grows the connections with the smallest gradients: a control for RigL.

    If its results were as good as those of `RigL`, gradients would not help to choose connections.

    Reference:

    - The authors' code of [Evci et al., 2020](https://arxiv.org/abs/1911.11134)

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after this step. A common choice is
            75 % of training:
            `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before this step or at step 0.
            Defaults to 0.
        update_frequency: Integer, the number of steps between mask updates. An update replaces a
            gradient step: with 1, no step from `begin_step` to `end_step` trains the weights.
            Defaults to 100.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            the share at `begin_step`; it falls to 0 at `end_step` along a cosine. Or a
            `keras.optimizers.schedules.LearningRateSchedule`, or another callable of the step (a
            scalar integer tensor), which returns the share. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values depend on it, on the index of the
            kernel and on the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)`, or `None`. If it is given, the scores get the moving
            average `m * average + (1 - m) * gradient` over all steps instead of the gradient.
            Defaults to `None`.
        grow_init: String, the first value of grown connections. Defaults to `"zeros"` (in the paper
            no other choice was better):

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

    >>> optimizer = RigLInverted("adam", end_step=25_000)
    """

    def grow_scores(self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        return -tf.abs(gradient)


@keras.saving.register_keras_serializable(package="rigl_tf")
class SET(SparseOptimizer):
    """Sparse training that grows connections at random.

    Reference:

    - [Mocanu et al., 2018](https://arxiv.org/abs/1707.04780), Sparse Evolutionary Training

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after this step. A common choice is
            75 % of training:
            `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before this step or at step 0.
            Defaults to 0.
        update_frequency: Integer, the number of steps between mask updates. An update replaces a
            gradient step: with 1, no step from `begin_step` to `end_step` trains the weights.
            Defaults to 100.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            the share at `begin_step`; it falls to 0 at `end_step` along a cosine. Or a
            `keras.optimizers.schedules.LearningRateSchedule`, or another callable of the step (a
            scalar integer tensor), which returns the share. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values depend on it, on the index of the
            kernel and on the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)`, or `None`. If it is given, the scores get the moving
            average `m * average + (1 - m) * gradient` over all steps instead of the gradient.
            Defaults to `None`.
        grow_init: String, the first value of grown connections. Defaults to `"zeros"` (in the paper
            no other choice was better):

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

    >>> optimizer = SET("adam", end_step=25_000, drop_fraction=0.1)
    """

    dense_gradients = "never"

    def grow_scores(self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        return self.random_uniform(kernel)

    def _places_to_grow(self, tiled, is_kept, num_grow):
        if type(self).grow_scores is not SET.grow_scores:
            return super()._places_to_grow(tiled, is_kept, num_grow)
        # For uniform numbers, a score that the wanted number of them exceeds is known in advance:
        # with a margin of ten standard deviations, enough of them do.
        num_places = math.prod(tiled.matrix_shape)
        kept = tf.boolean_mask(tiled.places, is_kept)
        num_others = num_places - tf.size(kept, tf.int64)
        share = tf.cast(num_grow, tf.float64) / tf.cast(tf.maximum(num_others, 1), tf.float64)
        num_reaching = share * num_places
        num_reaching += 10 * tf.sqrt(num_reaching) + 10
        least = tf.maximum(1 - num_reaching / num_places, 0)
        score = self._score("grow_scores")
        return tiled.largest(score, kept, num_grow, tf.cast(least, tf.float32))


@keras.saving.register_keras_serializable(package="rigl_tf")
class SNFS(SparseOptimizer):
    """Sparse training that grows the connections with the largest average gradients.

    Sparse Networks From Scratch: connections are grown by the magnitude of a moving average of the
    dense gradient. This needs one array of the kernel's size and, under `tf.distribute`, an
    all-reduce of the dense gradient in every step.

    With `redistribute=True` connections also move between kernels. The importance of a kernel is
    the mean magnitude of the average gradient over its active connections. In an update, the
    dropped connections of all kernels are distributed in proportion to this importance. A kernel
    grows at most 99 % of its inactive connections; what is left over is given to the other kernels
    in equal parts. The total over all kernels never changes. As in the authors' code, a kernel that
    is less than 20 % sparse and more important than the average drops no larger share of its
    connections than its sparsity.

    Reference:

    - [Dettmers and Zettlemoyer, 2019](https://arxiv.org/abs/1907.04840)
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), table 1: without redistribution

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after this step. A common choice is
            75 % of training:
            `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before this step or at step 0.
            Defaults to 0.
        update_frequency: Integer, the number of steps between mask updates. An update replaces a
            gradient step: with 1, no step from `begin_step` to `end_step` trains the weights.
            Defaults to 100.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            the share at `begin_step`; it falls to 0 at `end_step` along a cosine. Or a
            `keras.optimizers.schedules.LearningRateSchedule`, or another callable of the step (a
            scalar integer tensor), which returns the share. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values depend on it, on the index of the
            kernel and on the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)`, the momentum `m` of the moving average
            `m * average + (1 - m) * gradient` over all steps. Defaults to 0.9.
        grow_init: String, the first value of grown connections. Defaults to `"zeros"` (in the paper
            no other choice was better):

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
        redistribute: Boolean, whether important kernels get connections of other kernels.
            Defaults to `False`.
        name: String. Defaults to the name of the class in snake case, with a number.

    Raises:
        TypeError: If an argument is unknown.
        ValueError: If an argument is out of its range, or there is no update before `end_step`.
            When the optimizer is built: if the model has no sparse kernel that is trained.

    Example:

    >>> optimizer = SNFS("adam", end_step=25_000, gradient_momentum=0.99, redistribute=True)
    """

    dense_gradients = "always"

    @property
    def supports_structures(self) -> bool:
        return type(self).new_mask is SNFS.new_mask and not self.redistribute

    @property
    def _only_moves(self):
        return type(self).new_mask is SNFS.new_mask

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        end_step: int,
        begin_step: int = 0,
        update_frequency: int = 100,
        drop_fraction: float | Callable[[tf.Tensor], Any] = 0.3,
        seed: int = 0,
        gradient_momentum: float = 0.9,
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        track_exploration: bool = False,
        redistribute: bool = False,
        name: str | None = None,
    ) -> None:
        check_numbers("[0, 1)", gradient_momentum=gradient_momentum)
        check_booleans(redistribute=redistribute)
        super().__init__(
            inner_optimizer,
            end_step,
            begin_step,
            update_frequency,
            drop_fraction,
            seed,
            gradient_momentum,
            grow_init,
            grow_scale,
            track_exploration,
            name,
        )
        self.redistribute = bool(redistribute)

    def grow_scores(self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        return tf.abs(gradient)

    def _update_kernels(self, strategy, pairs, gradients):
        if self.redistribute and pairs:
            self._plan.num_moved = self._redistributed([sparse for sparse, _ in pairs])
        super()._update_kernels(strategy, pairs, gradients)
        self._plan.num_moved = {}  # these tensors are valid only in this branch of the graph

    def _redistributed(self, sparse_kernels):
        """`{index of a kernel: (number to drop, number to grow)}`."""
        masks = [tf.convert_to_tensor(each.mask) for each in sparse_kernels]
        averages = [tf.convert_to_tensor(each.average) for each in sparse_kernels]
        importance = tf.stack(
            [
                mean_of_active(tf.abs(tf.cast(average, tf.float32)), mask)
                for average, mask in zip(averages, masks, strict=True)
            ]
        )
        sizes = tf.constant([mask.shape.num_elements() for mask in masks])
        num_active = tf.stack([selection.num_true(mask) for mask in masks])
        sparsity = tf.cast(sizes - num_active, tf.float32) / tf.cast(sizes, tf.float32)
        fraction = tf.cast(self.drop_fraction_at(tf.convert_to_tensor(self.step)), tf.float32)
        filling_up = (sparsity < 0.2) & (importance * len(masks) > tf.reduce_sum(importance))
        fraction = tf.where(filling_up, tf.minimum(fraction, sparsity), fraction)
        num_drop = num_to_drop(num_active, fraction)
        num_grow = redistribution.num_to_grow(importance, num_drop, sizes - num_active + num_drop)
        moved = zip(tf.unstack(num_drop), tf.unstack(num_grow), strict=True)
        return {each.index: pair for each, pair in zip(sparse_kernels, moved, strict=True)}

    def new_mask(
        self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor
    ) -> tf.Tensor:
        if self._kernel_index not in self._plan.num_moved:
            return super().new_mask(kernel, mask, gradient, step)
        num_drop, num_grow = self._plan.num_moved[self._kernel_index]
        num_active = selection.num_true(mask)
        drop_scores = self._scores("drop_scores", kernel, mask, gradient)
        kept = selection.keep(mask, drop_scores, num_active - num_drop)
        grow_scores = self._scores("grow_scores", kernel, mask, gradient)
        return kept | selection.keep(~kept, grow_scores, num_grow)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "redistribute": self.redistribute}
