"""Discovering Neural Wirings: after each step, the largest of dense weights form the network."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import distributions, masks
from rigl_tf._types import Distribution
from rigl_tf.checks import check_booleans
from rigl_tf.optimizers import kernels, targets
from rigl_tf.optimizers.slots import optimizers_within


@keras.saving.register_keras_serializable(package="rigl_tf")
class DNW(targets.TargetSparsity):
    """Discovering Neural Wirings: trains dense weights, the largest of which form the network.

    The optimizer keeps a dense copy of each kernel, the latent weights. They are trained by the
    gradient with respect to all connections of the sparse kernel, including the inactive ones (a
    straight-through estimator). After each step, the latent weights with the largest magnitudes are
    copied to the kernel, and all others are zero in it. So memory and gradients cost as much as in
    dense training.

    The latent weights start at the values of the kernels when the optimizer is built. In the paper
    these are the weights of a dense network: make the model with `rigl_tf.sparsify(model, 0.0)`,
    and this optimizer makes it sparse in its first step. In a model that is sparse already, the
    inactive connections start at zero. After that, only the latent weights matter: other changes of
    a kernel or its mask, for example by `rigl_tf.set_masks`, last only until the next step.

    Reference:

    - [Wortsman et al., 2019](https://arxiv.org/abs/1906.00586)

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the latent weights, or its
            name. It must not be a `MultiOptimizer`. Do not use the callback
            `keras.callbacks.SwapEMAWeights`.
        sparsity: Share of zeros over all sparse kernels, in `[0, 1)`.
        distribution: How the kernels share the sparsity, a string or a function, see
            `rigl_tf.sparsify`. With the default `"erk"`, all kernels together reach `sparsity`.
            With `"uniform"` the first kernel stays dense, and a warning says which sparsity is
            reached. Each kernel has `size - floor(its sparsity * size)` active connections, in
            whole units of its structure.
        track_exploration: Boolean, whether `exploration_rate` and `turnover` are computed. It needs
            a boolean array of each kernel's size. Defaults to `False`.
        name: String. Defaults to the name of the class in snake case, with a number.

    Raises:
        TypeError: If an argument is unknown.
        ValueError: If an argument is out of its range. When the optimizer is built: if the model
            has no sparse kernel that is trained.

    Example:

    >>> model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> model.compile(DNW(keras.optimizers.SGD(0.1, momentum=0.9), sparsity=0.9), "mse")
    """

    dense_gradients = "always"
    supports_structures = True

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        sparsity: float,
        distribution: Distribution = "erk",
        track_exploration: bool = False,
        name: str | None = None,
    ) -> None:
        distributions.check_sparsity(sparsity)
        distributions.get(distribution)
        check_booleans(track_exploration=track_exploration)
        super().__init__(inner_optimizer, name)
        self.track_exploration = bool(track_exploration)
        if hasattr(self.inner_optimizer, "optimizers"):
            raise ValueError(
                "`inner_optimizer` must train all variables: a `MultiOptimizer` cannot find the "
                "latent weights by their paths. "
                f"Received: inner_optimizer={self.inner_optimizer.name!r}"
            )
        self.sparsity = sparsity
        self.distribution = distribution
        self._without_decay = ([], None)

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        # `SwapEMAWeights` would swap the latent weights, but not the kernels.
        raise AttributeError(f"{type(self).__name__} has no `optimizers`.")

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[keras.Variable] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        super().exclude_from_weight_decay(var_list, var_names)
        self._without_decay = (list(var_list or []), var_names)

    @property
    def _final_sparsity(self):
        return self.sparsity

    def _trained_variables(self, variables):
        twins = {
            id(variable): self._latent(variable)
            for variable in variables
            if masks.mask_of(variable) is not None
        }
        chosen, names = self._without_decay
        if chosen:
            chosen = [twins.get(id(variable), variable) for variable in chosen]
            for optimizer in optimizers_within(self.inner_optimizer):
                optimizer.exclude_from_weight_decay(chosen, names)
        return [twins.get(id(variable), variable) for variable in variables]

    def _latent(self, kernel):
        latent = self.add_variable_from_reference(
            kernel, name="latent", initializer=kernels.first_value(lambda: kernel)
        )
        # The user's own constraint applies to the weights that are trained.
        latent.constraint = masks.kernel_of(kernel).constraint
        return latent

    def _trained_gradient(self, gradient, sparse):
        return tf.identity(gradient)

    def _after_training(self, strategy):
        for sparse in self._plan.by_id.values():
            kernels.select_from(strategy, sparse, sparse.trained, self._largest)

    def _largest(self, sparse, latent, mask):
        """The mask of the largest latent weights; the old mask if they are not finite."""
        finite = tf.reduce_all(tf.math.is_finite(latent))
        scores = tf.where(finite, tf.abs(latent), tf.zeros([], latent.dtype))
        units = sparse.sparse.units
        largest = units.top(scores, int(units.count(sparse.sparsity)))
        return tf.where(finite, largest, mask)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        super().finalize_variable_values(var_list)
        if self.built:
            # Keras may have overwritten the latent weights with their averages.
            strategy = masks.strategy_of(self.step)
            with strategy.scope():
                self._after_training(strategy)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "track_exploration": self.track_exploration}
