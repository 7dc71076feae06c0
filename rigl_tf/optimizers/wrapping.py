"""An optimizer around another one, to which it leaves all but the training steps."""

import functools
import inspect
import warnings
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from rigl_tf.checks import check_keras_3
from rigl_tf.optimizers.slots import optimizers_within

if TYPE_CHECKING:
    from typing_extensions import Self


def serialized(name, value):
    """The config of an argument that may be a function, `None` or a number.

    Raises:
        ValueError: If Keras cannot write it into a file, as a `functools.partial`.
    """
    try:
        return keras.saving.serialize_keras_object(value)
    except TypeError as error:
        raise ValueError(
            f"To be saved, `{name}` must be a function that is decorated with "
            "`keras.saving.register_keras_serializable`, or an object with `get_config`. "
            f"Received: {name}={value!r}"
        ) from error


def naming_its_arguments(init):
    """`init`, an `__init__`, that tells which arguments there are when it is called with others."""
    signature = inspect.signature(init)
    names = [name for name in signature.parameters if name != "self"]

    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"{type(self).__name__}: {error}; its arguments are {', '.join(names)}."
            ) from None
        init(self, *args, **kwargs)

    return __init__


class WrappingOptimizer(keras.optimizers.Optimizer):
    """Base class of optimizers that wrap another one, as `keras.optimizers.LossScaleOptimizer`.

    Learning rate, iterations and loss scale are the inner optimizer's. The variables are its own,
    then those of the inner optimizer.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, or what `keras.optimizers.get`
            makes one of.
        name: String.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = naming_its_arguments(cls.__init__)

    def __init__(
        self, inner_optimizer: keras.optimizers.Optimizer | str, name: str | None = None
    ) -> None:
        check_keras_3(inner_optimizer=inner_optimizer)
        optimizer = keras.optimizers.get(inner_optimizer)
        if optimizer is None:
            raise ValueError(
                "`inner_optimizer` must be a `keras.optimizers.Optimizer`, or what "
                "`keras.optimizers.get` makes one of. Received: inner_optimizer=None"
            )
        # The learning rate is the inner optimizer's; this value is never used.
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = optimizer

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of this optimizer, then those of the inner one."""
        return super().variables + self.inner_optimizer.variables

    @property
    def learning_rate(self) -> Any:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> keras.Variable:
        """The number of gradient steps; it stands still at update steps."""
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self) -> Any:
        inner: Any = vars(self).get("inner_optimizer")
        if isinstance(inner, keras.optimizers.LossScaleOptimizer):
            # Never `None`, which another `LossScaleOptimizer` sets: Keras sets only what changes.
            return inner.dynamic_scale if inner.built else inner.initial_scale
        return None if inner is None else inner.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: Any) -> None:
        if "inner_optimizer" not in vars(self):
            return
        # What a `LossScaleOptimizer` does to the optimizer that it is put around.
        if isinstance(self.inner_optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "A loss can be scaled only once: put the `LossScaleOptimizer` around this "
                "optimizer, or compile with `auto_scale_loss=False`. "
                f"Received: inner_optimizer={self.inner_optimizer.name!r}, a LossScaleOptimizer"
            )
        self.inner_optimizer.loss_scale_factor = value

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """The inner optimizers that callbacks of Keras must find one by one.

        Those of a `keras.optimizers.MultiOptimizer`, whose learning rates differ; else the one
        whose averages `keras.callbacks.SwapEMAWeights` swaps. There is no such attribute if the
        inner optimizer is neither.
        """
        if hasattr(self.inner_optimizer, "optimizers"):
            return self.inner_optimizer.optimizers
        averaging = [each for each in optimizers_within(self.inner_optimizer) if each.use_ema]
        if not averaging:
            raise AttributeError(
                "`optimizers` is there around a `MultiOptimizer` or an optimizer with "
                f"`use_ema=True`. Received: inner_optimizer={self.inner_optimizer.name!r}"
            )
        return averaging

    def scale_loss(self, loss: Any) -> Any:
        return self.inner_optimizer.scale_loss(loss)

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[keras.Variable] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Tells the inner optimizer which variables do not decay."""
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay` must be called before the optimizer is built."
            )
        for optimizer in optimizers_within(self.inner_optimizer):
            optimizer.exclude_from_weight_decay(var_list, var_names)

    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Any, keras.Variable]]
    ) -> keras.Variable:
        """As `apply`; returns `iterations`, as every Keras optimizer."""
        super().apply_gradients(grads_and_vars)
        return self.iterations

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    # Saving. The inner optimizer is an attribute, so Keras saves its variables by itself.

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        for index, variable in enumerate(super().variables):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Loads the state of this optimizer; one that does not fit is left out, with a warning."""
        own = super().variables
        if _fits(store, own):
            for index, variable in enumerate(own):
                variable.assign(store[str(index)])
            return
        if self.built:
            self._start_anew(len(store.keys()), len(own))
            return
        warnings.warn(
            f"Skipping variable loading for optimizer {self.name!r}, because it is not built: call "
            "`optimizer.build(model.trainable_variables)` before, to go on where the saved "
            "training stopped.",
            stacklevel=2,
        )

    def _start_anew(self, num_saved, num_variables):
        warnings.warn(
            f"Skipping variable loading for optimizer {self.name!r}, because the saved state, of "
            f"{num_saved} variables, is not that of this {type(self).__name__}, of "
            f"{num_variables}: it is that of another optimizer, or of one that had not begun to "
            "train. What does not fit starts anew.",
            stacklevel=3,
        )
        self._start()

    def _start(self):
        """Gives the state of this optimizer, once it is built, the values it begins with."""

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Sets all variables: this optimizer's, then the inner one's, as `variables` lists them.

        Arrays that are not those of all variables are left out, with a warning.

        Args:
            weights: List of arrays.

        Raises:
            ValueError: If the optimizer is not built.
        """
        if not self.built:
            raise ValueError(
                "`set_weights` needs an optimizer that is built: call `optimizer.build(model."
                f"trainable_variables)` before. Received: optimizer={self.name!r}, not built"
            )
        variables = self.variables
        shapes = [tuple(variable.shape) for variable in variables]
        if [tuple(weight.shape) for weight in weights] != shapes:
            self._start_anew(len(weights), len(variables))
            return
        for variable, weight in zip(variables, weights, strict=True):
            variable.assign(weight)

    def get_config(self) -> dict[str, Any]:
        inner_optimizer = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner_optimizer}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> "Self":
        # Numbers and None come back as they are.
        arguments = {
            name: keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
            for name, value in config.items()
        }
        return cls(**arguments)


def _fits(store, variables):
    """Whether `store` holds a value for each of these variables, and for no other."""
    names = [str(index) for index in range(len(variables))]
    return set(store.keys()) == set(names) and all(
        can_hold(variable, store[name]) for variable, name in zip(variables, names, strict=True)
    )


def can_hold(variable, value):
    """Whether `value`, from a file, has the shape of `variable`, and is of integers if it is."""
    of_integers = keras.backend.is_int_dtype(str(value.dtype))
    return tuple(value.shape) == tuple(variable.shape) and of_integers == (
        keras.backend.is_int_dtype(variable.dtype)
    )
