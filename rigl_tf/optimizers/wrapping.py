"""The base class of optimizers that wrap another one and forward everything but training steps."""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.checks import check_keras_3
from rigl_tf.optimizers.slots import optimizers_within

if TYPE_CHECKING:
    from typing_extensions import Self


@keras.saving.register_keras_serializable(package="rigl_tf")
class Partial(functools.partial):
    """A `functools.partial` that Keras can save, if it can save what is in it."""

    def __eq__(self, other):
        return isinstance(other, functools.partial) and (
            (self.func, self.args, self.keywords) == (other.func, other.args, other.keywords)
        )

    __hash__ = functools.partial.__hash__

    def get_config(self) -> dict[str, Any]:
        parts = {"func": self.func, "args": list(self.args), "keywords": dict(self.keywords)}
        return keras.saving.serialize_keras_object(parts)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Partial":
        parts = keras.saving.deserialize_keras_object(config)
        return cls(parts["func"], *parts["args"], **parts["keywords"])


def serialized(name, value):
    """The config of an argument that may be a function, `None` or a number.

    Raises:
        ValueError: If Keras cannot save it in a file, such as a `lambda` in a `functools.partial`.
    """
    if type(value) is functools.partial:
        value = Partial(value.func, *value.args, **value.keywords)
    try:
        return keras.saving.serialize_keras_object(value)
    except TypeError as error:
        raise ValueError(
            f"To be saved, `{name}` must be a function decorated with "
            "`keras.saving.register_keras_serializable`, or an object with `get_config`. "
            f"Received: {name}={value!r}"
        ) from error


def naming_its_arguments(init):
    """An `__init__` that does the same, but lists its arguments if it gets unknown ones."""
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
    """Base class of optimizers that wrap another one, as `LossScaleOptimizer` of Keras does.

    Learning rate, iterations and loss scale are those of the inner optimizer. The variables are
    those of this optimizer, then those of the inner one.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, or any argument of
            `keras.optimizers.get`, such as a name.
        name: String. Defaults to the name of the class in snake case, with a number.
    """

    _first_scale: Any = None

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
                "`inner_optimizer` must be a `keras.optimizers.Optimizer`, or an argument of "
                "`keras.optimizers.get`. Received: inner_optimizer=None"
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
        """The learning rate of the inner optimizer."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> keras.Variable:
        """The number of gradient steps, a variable. Update steps are not counted."""
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self) -> Any:
        """The loss scale of the inner optimizer, or `None`."""
        inner: Any = vars(self).get("inner_optimizer")
        if isinstance(inner, keras.optimizers.LossScaleOptimizer):
            # Never `None`: an outer `LossScaleOptimizer` sets `None`, and Keras sets only values
            # that differ.
            return inner.dynamic_scale if inner.built else inner.initial_scale
        return None if inner is None else inner.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: Any) -> None:
        if "inner_optimizer" not in vars(self):
            return
        # A `LossScaleOptimizer` around this optimizer sets this attribute.
        if isinstance(self.inner_optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "A loss can be scaled only once: put the `LossScaleOptimizer` around this "
                "optimizer, or compile with `auto_scale_loss=False`. "
                f"Received: inner_optimizer={self.inner_optimizer.name!r}, a LossScaleOptimizer"
            )
        self.inner_optimizer.loss_scale_factor = value

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """The inner optimizers that some callbacks of Keras need.

        These are the optimizers of an inner `keras.optimizers.MultiOptimizer`, whose learning rates
        differ; or else the optimizer with `use_ema=True`, whose averages the callback
        `keras.callbacks.SwapEMAWeights` swaps. For other inner optimizers, this attribute does not
        exist.
        """
        if hasattr(self.inner_optimizer, "optimizers"):
            return self.inner_optimizer.optimizers
        averaging = [each for each in optimizers_within(self.inner_optimizer) if each.use_ema]
        if not averaging:
            raise AttributeError(
                "`optimizers` exists if the inner optimizer is a `MultiOptimizer` or has "
                f"`use_ema=True`. Received: inner_optimizer={self.inner_optimizer.name!r}"
            )
        return averaging

    def scale_loss(self, loss: Any) -> Any:
        """Scales the loss as the inner optimizer does."""
        if self._is_scale_constant():
            with created_once():
                scale = float(self.inner_optimizer.scale_loss(1.0))
                # (Set in this way, it is no part of checkpoints.)
                self.__dict__["_first_scale"] = tf.Variable(scale, trainable=False)
        if self._first_scale is None:
            return self.inner_optimizer.scale_loss(loss)
        return keras.ops.multiply(loss, self._first_scale)

    def _is_scale_constant(self):
        """Whether a trace would hold the first scale of a `LossScaleOptimizer` that is not built.

        Instead of it, there is a variable that follows the scale.
        """
        if self._first_scale is not None or self.inner_optimizer.built:
            return False
        if tf.executing_eagerly() or tf.distribute.has_strategy():
            return False
        return any(
            isinstance(each, keras.optimizers.LossScaleOptimizer)
            for each in optimizers_within(self.inner_optimizer)
        )

    def _follow_scale(self):
        """Called after each step, and when a state was loaded."""
        if self._first_scale is not None:
            self._first_scale.assign(self.inner_optimizer.scale_loss(1.0))

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[keras.Variable] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Excludes variables from the weight decay of the inner optimizer.

        Args:
            var_list: The variables to exclude, or `None`.
            var_names: Names or parts of names of variables to exclude, or `None`.

        Raises:
            ValueError: If the optimizer is built already.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay` must be called before the optimizer is built."
            )
        for optimizer in optimizers_within(self.inner_optimizer):
            optimizer.exclude_from_weight_decay(var_list, var_names)

    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Any, keras.Variable]]
    ) -> keras.Variable:
        """Calls `apply` with pairs of gradients and variables.

        Args:
            grads_and_vars: Pairs `(gradient, variable)`.

        Returns:
            `iterations`, as for every Keras optimizer.
        """
        super().apply_gradients(grads_and_vars)
        return self.iterations

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    # Saving. The inner optimizer is an attribute, so Keras saves its variables by itself.

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        for index, variable in enumerate(super().variables):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Loads the state of this optimizer; if it does not fit, it is ignored with a warning."""
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
            "`optimizer.build(model.trainable_variables)` first, to continue the saved training.",
            stacklevel=2,
        )

    def _start_anew(self, num_saved, num_variables):
        warnings.warn(
            f"Skipping variable loading for optimizer {self.name!r}, because the saved state, of "
            f"{num_saved} variables, does not fit this {type(self).__name__}, of "
            f"{num_variables}: it was saved by another optimizer, or by one that had not begun to "
            "train. What does not fit starts from its first values.",
            stacklevel=3,
        )
        self._start()

    def _start(self):
        """Sets the state of this optimizer, after it is built, to its first values."""

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Sets all variables: those of this optimizer, then those of the inner one.

        If the arrays do not fit, they are ignored with a warning.

        Args:
            weights: List of arrays, in the order of `variables`.

        Raises:
            ValueError: If the optimizer is not built.
        """
        if not self.built:
            raise ValueError(
                "`set_weights` needs an optimizer that is built: call `optimizer.build(model."
                f"trainable_variables)` first. Received: optimizer={self.name!r}, not built"
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
        # Numbers and `None` are not changed by this.
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
    """Whether `value`, from a file, has the shape of `variable`, and both or none are integers."""
    of_integers = keras.backend.is_int_dtype(str(value.dtype))
    return tuple(value.shape) == tuple(variable.shape) and of_integers == (
        keras.backend.is_int_dtype(variable.dtype)
    )


@contextlib.contextmanager
def created_once():
    """Variables are created at once, also while a step is traced.

    TensorFlow would trace the whole step a second time after one that created variables, and refuse
    to create them in a later trace. (Strategies create variables in their own ways.)
    """
    if tf.distribute.has_strategy():
        yield
        return

    def create(next_creator, **settings):
        return next_creator(**{**settings, "experimental_enable_variable_lifting": False})

    with tf.init_scope(), tf.variable_creator_scope(create):
        yield
