"""An optimizer around another one: what it delegates, and how it finds the other's slots."""

import contextlib

import keras


class WrappingOptimizer(keras.optimizers.Optimizer):
    """Base class of optimizers that wrap another one, as `keras.optimizers.LossScaleOptimizer`.

    Learning rate, iterations and loss scale are the inner optimizer's. The variables are its own,
    then those of the inner optimizer.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, or what `keras.optimizers.get`
            makes one of.
        name: String.
    """

    def __init__(self, inner_optimizer, name=None):
        inner_optimizer = keras.optimizers.get(inner_optimizer)
        # The learning rate is the inner optimizer's; this value is never used.
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

    @property
    def variables(self):
        """The variables of this optimizer, then those of the inner one."""
        return super().variables + self.inner_optimizer.variables

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        """The number of gradient steps; it stands still at update steps."""
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self):
        return self.inner_optimizer.loss_scale_factor if "inner_optimizer" in vars(self) else None

    @loss_scale_factor.setter
    def loss_scale_factor(self, value):
        if "inner_optimizer" in vars(self):
            self.inner_optimizer.loss_scale_factor = value

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    # Saving. The inner optimizer is an attribute, so Keras saves its variables by itself.

    def save_own_variables(self, store):
        for index, variable in enumerate(super().variables):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store):
        own = super().variables
        if self.built and len(store.keys()) != len(own):
            raise ValueError(
                f"The saved state of an optimizer must be that of a {type(self).__name__}, with "
                f"{len(own)} variables of its own. Received: {len(store.keys())} variables"
            )
        if not self.built:
            # As every Keras optimizer: a warning that there is nothing to load into yet.
            super().load_own_variables(store)
            return
        for index, variable in enumerate(own):
            variable.assign(store[str(index)])

    def get_config(self):
        inner_optimizer = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner_optimizer}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # Numbers and None come back as they are.
        arguments = {
            name: keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
            for name, value in config.items()
        }
        return cls(**arguments)


@contextlib.contextmanager
def recorded_slots(optimizer):
    """Collects `{id(variable): [(slot, initializer)]}` while `optimizer` is built.

    Every Keras optimizer, wrapped ones too, creates its slots through the public method
    `add_variable_from_reference`; so nothing need be known of the optimizer's kind.
    """
    slots = {}
    optimizers = []

    def record(optimizer):
        create = optimizer.add_variable_from_reference

        def recording(reference_variable, name=None, initializer="zeros"):
            slot = create(reference_variable, name=name, initializer=initializer)
            entry = (slot, keras.initializers.get(initializer))
            slots.setdefault(id(reference_variable), []).append(entry)
            return slot

        optimizer.add_variable_from_reference = recording
        optimizers.append(optimizer)

    while optimizer is not None:
        record(optimizer)
        optimizer = getattr(optimizer, "inner_optimizer", None)
    try:
        yield slots
    finally:
        for optimizer in optimizers:
            del optimizer.add_variable_from_reference
