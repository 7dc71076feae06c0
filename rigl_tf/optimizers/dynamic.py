"""Dynamic sparse training: algorithms that drop weak connections and grow others."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import selection
from rigl_tf.checks import check_numbers
from rigl_tf.execution import engine
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
        end_step: Integer, in steps. No connection changes at or after it; the paper uses 75 % of
            training: `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before it or at step 0. Defaults to 0.
        update_frequency: Integer, the number of steps from one mask update to the next. Defaults to
            100. An update replaces a gradient step: with 1, no step from `begin_step` to `end_step`
            trains the weights.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            its value at `begin_step`, from where it falls to 0 at `end_step` along a cosine; a
            `keras.optimizers.schedules.LearningRateSchedule` or another callable of the step (a
            scalar integer tensor) is taken as it is. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values are a function of it, of the
            kernel's index and of the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)` or `None`. If given, `gradient` in the scores is the
            moving average `m * average + (1 - m) * gradient` over all steps. Defaults to `None`.
        grow_init: Where grown connections start, a string. Defaults to `"zeros"` (the paper found
            none better):

            - `"zeros"`;
            - `"initial_distribution"`: normally distributed about 0, with the standard deviation
              that the active weights of the kernel had when training began;
            - `"random_normal"`: the same, with that of the active weights before the update;
            - `"random_uniform"`: between plus and minus the mean magnitude of the active weights;
            - `"gradient"`: the `gradient` of the scores;
            - `"gradient_sign"`: its sign.
        grow_scale: Number, the factor of these values; below 0 a connection starts in the
            direction in which the gradient descends. Defaults to 1.0.
        track_exploration: Boolean, whether `exploration_rate` and `turnover` are counted. It costs
            a boolean array of each kernel's size. Defaults to `False`.
        name: String. Defaults to the class's name in snake case, with a number.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument is out of its range, or no update is before `end_step`; when it
            is built, if the model has no sparse kernel that is trained.

    Example:

    >>> optimizer = RigL(keras.optimizers.SGD(0.1, momentum=0.9), end_step=25_000)
    """

    def grow_scores(self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        return tf.abs(gradient)

    def _places_to_grow(self, tiled, kept, num_grow):
        if type(self).grow_scores is not RigL.grow_scores or tiled.gradient is not None:
            return super()._places_to_grow(tiled, kept, num_grow)
        x, dy = tiled.rows
        return engine.largest_inactive(x, dy, None, tiled.matrix_shape, num_grow, kept)[0]


@keras.saving.register_keras_serializable(package="rigl_tf")
class RigLInverted(SparseOptimizer):
    """Sparse training that grows the connections with the smallest gradients: a control for RigL.

    If it were as good as `RigL`, the gradients would say nothing about where to grow.

    Reference:

    - The authors' code of [Evci et al., 2020](https://arxiv.org/abs/1911.11134)

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after it; often 75 % of training:
            `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before it or at step 0. Defaults to 0.
        update_frequency: Integer, the number of steps from one mask update to the next. Defaults to
            100. An update replaces a gradient step: with 1, no step from `begin_step` to `end_step`
            trains the weights.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            its value at `begin_step`, from where it falls to 0 at `end_step` along a cosine; a
            `keras.optimizers.schedules.LearningRateSchedule` or another callable of the step (a
            scalar integer tensor) is taken as it is. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values are a function of it, of the
            kernel's index and of the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)` or `None`. If given, `gradient` in the scores is the
            moving average `m * average + (1 - m) * gradient` over all steps. Defaults to `None`.
        grow_init: Where grown connections start, a string. Defaults to `"zeros"` (the paper found
            none better):

            - `"zeros"`;
            - `"initial_distribution"`: normally distributed about 0, with the standard deviation
              that the active weights of the kernel had when training began;
            - `"random_normal"`: the same, with that of the active weights before the update;
            - `"random_uniform"`: between plus and minus the mean magnitude of the active weights;
            - `"gradient"`: the `gradient` of the scores;
            - `"gradient_sign"`: its sign.
        grow_scale: Number, the factor of these values; below 0 a connection starts in the
            direction in which the gradient descends. Defaults to 1.0.
        track_exploration: Boolean, whether `exploration_rate` and `turnover` are counted. It costs
            a boolean array of each kernel's size. Defaults to `False`.
        name: String. Defaults to the class's name in snake case, with a number.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument is out of its range, or no update is before `end_step`; when it
            is built, if the model has no sparse kernel that is trained.

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
        end_step: Integer, in steps. No connection changes at or after it; often 75 % of training:
            `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before it or at step 0. Defaults to 0.
        update_frequency: Integer, the number of steps from one mask update to the next. Defaults to
            100. An update replaces a gradient step: with 1, no step from `begin_step` to `end_step`
            trains the weights.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            its value at `begin_step`, from where it falls to 0 at `end_step` along a cosine; a
            `keras.optimizers.schedules.LearningRateSchedule` or another callable of the step (a
            scalar integer tensor) is taken as it is. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values are a function of it, of the
            kernel's index and of the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)` or `None`. If given, `gradient` in the scores is the
            moving average `m * average + (1 - m) * gradient` over all steps. Defaults to `None`.
        grow_init: Where grown connections start, a string. Defaults to `"zeros"` (the paper found
            none better):

            - `"zeros"`;
            - `"initial_distribution"`: normally distributed about 0, with the standard deviation
              that the active weights of the kernel had when training began;
            - `"random_normal"`: the same, with that of the active weights before the update;
            - `"random_uniform"`: between plus and minus the mean magnitude of the active weights;
            - `"gradient"`: the `gradient` of the scores;
            - `"gradient_sign"`: its sign.
        grow_scale: Number, the factor of these values; below 0 a connection starts in the
            direction in which the gradient descends. Defaults to 1.0.
        track_exploration: Boolean, whether `exploration_rate` and `turnover` are counted. It costs
            a boolean array of each kernel's size. Defaults to `False`.
        name: String. Defaults to the class's name in snake case, with a number.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument is out of its range, or no update is before `end_step`; when it
            is built, if the model has no sparse kernel that is trained.

    Example:

    >>> optimizer = SET("adam", end_step=25_000, drop_fraction=0.1)
    """

    dense_gradients = "never"

    def grow_scores(self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        return self.random_uniform(kernel)

    def _places_to_grow(self, tiled, kept, num_grow):
        if type(self).grow_scores is not SET.grow_scores:
            return super()._places_to_grow(tiled, kept, num_grow)
        # Of uniform numbers it is known how many reach a score, up to ten standard deviations.
        num_places = math.prod(tiled.matrix_shape)
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
    dense gradient, which costs one array of the kernel's size and, under `tf.distribute`, an
    all-reduce of the dense gradient in every step.

    With `redistribute=True` connections move between kernels, too: of all that an update drops,
    each kernel grows the share that the mean magnitude of its active connections' average gradient
    has in the sum over the kernels, at most 99 % of those it could grow; what a kernel cannot take
    goes to the others in equal parts. The total over all kernels never changes. As in the authors'
    code, a kernel that is less than 20 % sparse, and has more than an equal share, drops no larger
    share of its connections than its sparsity.

    Reference:

    - [Dettmers and Zettlemoyer, 2019](https://arxiv.org/abs/1907.04840)
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), table 1: without redistribution

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after it; often 75 % of training:
            `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before it or at step 0. Defaults to 0.
        update_frequency: Integer, the number of steps from one mask update to the next. Defaults to
            100. An update replaces a gradient step: with 1, no step from `begin_step` to `end_step`
            trains the weights.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            its value at `begin_step`, from where it falls to 0 at `end_step` along a cosine; a
            `keras.optimizers.schedules.LearningRateSchedule` or another callable of the step (a
            scalar integer tensor) is taken as it is. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values are a function of it, of the
            kernel's index and of the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)`, the momentum `m` of the moving average `m * average +
            (1 - m) * gradient` over all steps. Defaults to 0.9.
        grow_init: Where grown connections start, a string. Defaults to `"zeros"` (the paper found
            none better):

            - `"zeros"`;
            - `"initial_distribution"`: normally distributed about 0, with the standard deviation
              that the active weights of the kernel had when training began;
            - `"random_normal"`: the same, with that of the active weights before the update;
            - `"random_uniform"`: between plus and minus the mean magnitude of the active weights;
            - `"gradient"`: the `gradient` of the scores;
            - `"gradient_sign"`: its sign.
        grow_scale: Number, the factor of these values; below 0 a connection starts in the
            direction in which the gradient descends. Defaults to 1.0.
        track_exploration: Boolean, whether `exploration_rate` and `turnover` are counted. It costs
            a boolean array of each kernel's size. Defaults to `False`.
        redistribute: Boolean, whether kernels grow as many connections as they are important.
            Defaults to `False`.
        name: String. Defaults to the class's name in snake case, with a number.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument is out of its range, or no update is before `end_step`; when it
            is built, if the model has no sparse kernel that is trained.

    Example:

    >>> optimizer = SNFS("adam", end_step=25_000, gradient_momentum=0.99, redistribute=True)
    """

    dense_gradients = "always"

    @property
    def supports_structures(self) -> bool:
        return type(self).new_mask is SNFS.new_mask and not self.redistribute

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
        self._plan.num_moved = {}  # tensors of this branch of the graph

    def _redistributed(self, sparse_kernels):
        """`{index: (number to drop, number to grow)}`."""
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
        fraction = tf.cast(self._drop_fraction_at(tf.convert_to_tensor(self.step)), tf.float32)
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
