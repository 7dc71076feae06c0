"""Changes how the sparse kernels of a model are stored, and changes it back."""

import keras
import numpy as np

from rigl_tf import masks
from rigl_tf.checks import check_keras_3
from rigl_tf.layers.storage import check_execution
from rigl_tf.optimizers import limits
from rigl_tf.optimizers.slots import optimizers_within, recorded_slots
from rigl_tf.optimizers.training import SparseTraining
from rigl_tf.transforms.sparsify import forget_training, models_in, use_execution


def with_execution(model: keras.Model, execution: str) -> keras.Model:
    """Stores the sparse kernels of a model in another way, with the same weights and masks.

    The model and its layers are changed in place. If the model is compiled and has been trained, it
    gets a new optimizer with the same settings and the same state. Other models that share its
    layers (the dense model that it was made of, or models of its inner outputs) must be compiled
    again, because a `predict` or `fit` that they have traced still has the old kernels.

    XLA cannot compile CSR kernels. If the model was compiled with `jit_compile=True`, this is
    turned off with a warning.

    Args:
        model: A built sparse `keras.Model`.
        execution: `"masked"`, `"csr"` or `"auto"`, see `rigl_tf.sparsify`. Kernels that cannot be
            stored as CSR stay masked; `rigl_tf.sparsity_summary` says why.

    Returns:
        The model.

    Raises:
        ValueError: If the model has no sparse kernel, or its optimizer needs masked kernels or has
            a state that cannot be converted (that of Muon and Adafactor).

    Example:

    >>> sparse = sparsify(keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)]), 0.9)
    >>> with_execution(sparse, "csr").layers[0].layer.kernel.values.shape
    TensorShape([784])
    """
    check_keras_3(model=model)
    check_execution(execution)
    kernels = masks.check_sparse(model, "`with_execution`")
    if not isinstance(model, keras.Model):
        raise ValueError(f"`with_execution` needs a whole model. Received: model={model!r}")
    optimizer = getattr(model, "optimizer", None)
    if execution != "masked" and optimizer is not None:
        for each in optimizers_within(optimizer):
            if isinstance(each, SparseTraining):
                each.check_csr(list(kernels))
    state, trained = None, []
    if optimizer is not None and optimizer.built:
        limits.check_converts(optimizer)
        trained = _trained_by(optimizer, model)
        state = [variable.numpy() for variable in optimizer.variables]
    masks.settle(kernels.values())
    paths = {id(kernel.variable): path for path, kernel in kernels.items()}
    with masks.strategy_of(next(iter(kernels.values())).variable).scope():
        use_execution(model, execution)
        if state is not None:
            new = masks.sparse_kernels(model)
            trained = [new[paths[id(v)]] if id(v) in paths else v for v in trained]
            model.optimizer = _rebuilt(optimizer, trained, state)
    for part in models_in(model):
        if part.compiled and part.jit_compile:
            # When it is set anew, Keras keeps it off if a layer does not support it, and says so.
            part.jit_compile = False
            part.jit_compile = True
    forget_training(model)
    return model


def _trained_by(optimizer, model):
    """The variables with which an optimizer was built, in their order.

    It need not be the model's: a `train_step` may train a part of the model, or begin with the last
    layers.
    """
    sparse = [each for each in optimizers_within(optimizer) if isinstance(each, SparseTraining)]
    if len(sparse) == 1:
        return sparse[0].model_variables
    again = type(optimizer).from_config(optimizer.get_config())
    again.build(model.trainable_variables)
    names, expected = ([v.path.partition("/")[2] for v in o.variables] for o in (optimizer, again))
    if names != expected:
        raise ValueError(
            "`with_execution` cannot convert the state of an optimizer of Keras that was not built "
            "with `model.trainable_variables`, in their order: set `model.optimizer = None` before "
            f"it, and compile the model anew afterwards. Received: optimizer={optimizer.name!r}"
        )
    return model.trainable_variables


def _rebuilt(optimizer, variables, state):
    """A new optimizer with the settings and state of another one, for new variables."""
    new = type(optimizer).from_config(optimizer.get_config())
    sparse = [each for each in optimizers_within(new) if isinstance(each, SparseTraining)]
    if sparse:
        new.build(variables)
        slots = sparse[0].slots_of_kernels()
    else:
        with recorded_slots(new) as recorded:
            new.build(variables)
        slots = {
            id(slot.variable): masks.kernel_of(variable)
            for variable in variables
            if masks.kernel_of(variable) is not None
            for slot in recorded.get(id(variable), [])
        }
    for variable, value in zip(new.variables, state, strict=True):
        if tuple(variable.shape) == value.shape:
            variable.assign(value)
        else:
            variable.assign(_converted(value, slots[id(variable)]))
    for each in sparse:
        each.start_from_state()
    return new


def _converted(value, kernel):
    """A slot in the form of its kernel: one value per active connection, or one for each."""
    if kernel.execution == "csr":
        return value.reshape(-1)[np.flatnonzero(kernel.mask)]
    dense = np.zeros(kernel.shape, value.dtype)
    dense[kernel.mask] = value
    return dense
