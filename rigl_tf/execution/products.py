"""Which layers multiply their inputs with a kernel as a matrix, and how they do it in CSR."""

import contextlib
import functools
import gc
import inspect
import math

import keras
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.execution import convolutions, csr

_FREE_OF_OTHERS = (keras.constraints.NonNeg,)


def refusal(layer, variable):
    """Why a kernel cannot be stored as CSR, in a few words; `None` if it can.

    Args:
        layer: The built layer that holds the kernel, the innermost one.
        variable: The `keras.Variable`, a masked kernel.
    """
    if _attribute(layer, variable) is None:
        return "held by a layer in another way than as an attribute"
    if variable.dtype == "float64":
        return "float64"
    constraint = masks.kernel_of(variable).constraint
    if constraint is not None and not isinstance(constraint, _FREE_OF_OTHERS):
        return f"its constraint {type(constraint).__name__} needs the whole kernel"
    if getattr(layer, "quantization_mode", None) is not None:
        return "quantized"
    if getattr(layer, "lora_enabled", False):
        return "LoRA"
    if is_convolution(layer) and layer.groups > 1:
        return "grouped convolution"
    if is_convolution(layer) and layer.data_format != "channels_last":
        return layer.data_format
    if _num_summed_of(layer) is None:
        return f"{type(layer).__name__} is neither a matrix product nor a convolution"
    return None


def attach(layer, kernel):
    """Makes the masked kernel of a layer, which `refusal` has nothing against, a CSR kernel.

    From then on the layer computes with it, wherever it is used.

    Returns:
        The `csr.CSRKernel`.
    """
    variable = kernel.variable
    places = kernel.mask.reshape(-1).nonzero()[0]
    num_inputs = math.prod(variable.shape[: _num_summed_of(layer)])
    storage = csr.CSRStorage(
        kernel.path,
        tuple(variable.shape),
        num_inputs,
        places,
        variable.numpy().reshape(-1)[places],
        dtype=variable.dtype,
        trainable=variable.trainable,
        regularizer=variable.regularizer,
    )
    storage.values.constraint = result = csr.CSRKernel(storage, kernel.constraint)
    name = _attribute(layer, variable)
    with unlocked(layer):
        delattr(layer, name)
        setattr(layer, name, storage)
        layer.kernel_values = storage.values
        _put_last(layer, "bias")
    layer.supports_jit = False
    vars(layer).update(
        call=_call(layer, storage),
        save_own_variables=functools.partial(_save_own_variables, layer),
        load_own_variables=functools.partial(_load_own_variables, layer, storage),
    )
    return result


def detach(layer, storage):
    """Makes a CSR kernel of a layer a dense variable again, in its old place among the weights.

    Returns:
        The `keras.Variable`, without a mask.
    """
    for name in ("call", "save_own_variables", "load_own_variables"):
        del vars(layer)[name]
    layer.supports_jit = True
    name = _attribute(layer, storage)
    outer, _, own_name = storage.dense_path.rpartition("/")
    with unlocked(layer) as tracker:
        delattr(layer, name)
        del layer.kernel_values
        tracker.untrack(storage)
        with keras.name_scope(layer.name, override_parent=outer.rpartition("/")[0]):
            variable = layer.add_weight(
                shape=storage.shape,
                dtype=storage.values.dtype,
                initializer=lambda shape, dtype=None: tf.cast(storage.dense(), dtype),
                trainable=storage.values.trainable,
                regularizer=storage.values.regularizer,
                constraint=storage.constraint.constraint,
                name=own_name,
            )
        setattr(layer, name, variable)
        _put_last(layer, "bias")
    return variable


def _put_last(layer, name):
    """Puts a variable behind the kernel, in the list of a layer's weights."""
    variable = getattr(layer, name)
    if variable is not None:
        delattr(layer, name)
        setattr(layer, name, variable)


@contextlib.contextmanager
def unlocked(layer):
    """Lets a built layer have another variable, for which Keras has no public way."""
    tracker = vars(layer)["_tracker"]
    tracker.unlock()
    # `del layer.kernel` of Keras collects all garbage, each time.
    gc.freeze()
    try:
        yield tracker
    finally:
        gc.unfreeze()
        tracker.lock()


def _attribute(layer, value):
    """The name of the attribute in which a layer holds a kernel, if it holds it in one."""
    names = [name for name, each in vars(layer).items() if each is value]
    return names[0] if len(names) == 1 else None


_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def is_convolution(layer):
    """Whether what a layer computes is Keras's own convolution."""
    own = type(layer)
    return any(
        isinstance(layer, each)
        and own.call is each.call
        and own.convolution_op is each.convolution_op
        for each in _CONVOLUTIONS
    )


def _num_summed_of(layer):
    """Over how many of the first dimensions of its kernel a layer sums.

    `None` if what it computes is neither a product of matrices nor a convolution.
    """
    call = type(layer).call
    if isinstance(layer, keras.layers.Dense) and call is keras.layers.Dense.call:
        return 1
    if isinstance(layer, keras.layers.EinsumDense) and call is keras.layers.EinsumDense.call:
        return _num_summed(layer.equation)
    return layer.rank + 1 if is_convolution(layer) else None


def _num_summed(equation):
    """Over how many of the last dimensions an equation sums, `None` if it does something else.

    >>> _num_summed("abc,cde->abde"), _num_summed("...x,xy->...y"), _num_summed("abc,dc->abd")
    (1, 1, None)
    """
    inputs, kernel, outputs = equation.replace(" ", "").replace("->", ",").split(",")
    summed = "".join(letter for letter in kernel if letter not in outputs)
    free = "".join(letter for letter in kernel if letter in outputs)
    batch = inputs.removesuffix(summed)
    is_product = (
        summed
        and free
        and kernel == summed + free
        and inputs == batch + summed
        and outputs == batch + free
        and not set(batch) & set(kernel)
    )
    return len(summed) if is_product else None


def _call(layer, storage):
    """What stands in the place of a layer's `call`."""
    compute = _convolution(layer, storage) if is_convolution(layer) else _product(layer, storage)

    @functools.wraps(layer.call)
    def call(inputs, training=None):
        if isinstance(inputs, keras.KerasTensor):
            return type(layer).call(layer, inputs)  # shapes and types alone
        x = compute(tf.convert_to_tensor(inputs))
        if layer.bias is not None:
            x = keras.ops.add(x, layer.bias)
        if layer.activation is not None:
            x = layer.activation(x)
        return x

    call.__signature__ = inspect.signature(layer.call)
    return call


def _product(layer, storage):
    num_summed = _num_summed_of(layer)
    free = storage.shape[num_summed:]

    def compute(inputs):
        num_batch = inputs.shape.rank - num_summed
        x = csr.matmul(storage, tf.reshape(inputs, [-1, storage.matrix_shape[0]]))
        x = tf.reshape(x, tf.concat([tf.shape(inputs)[:num_batch], free], axis=0))
        x.set_shape([*inputs.shape[:num_batch], *free])
        return x

    return compute


def _convolution(layer, storage):
    geometry = convolutions.Geometry(
        layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding
    )

    def compute(inputs):
        x = csr.convolve(storage, inputs, geometry)
        x.set_shape(layer.compute_output_shape(inputs.shape))
        return x

    return compute


def _save_own_variables(layer, store):
    # The kernel has a place of its own, as it is in a layer of its own.
    if layer.bias is not None:
        store["1"] = layer.bias.numpy()


def _load_own_variables(layer, storage, store):
    if layer.bias is not None:
        layer.bias.assign(store["1"])
    if "0" in store:  # that of a dense or a masked kernel
        storage.assign(store["0"])
