"""Decides which kernels can be stored as CSR, and makes their layers compute with CSR kernels."""

import contextlib
import functools
import inspect
import math
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.execution import convolutions, csr

# Kernels with more weights than this are never made dense: they take 256 MB in float32.
LARGEST_DENSE = 1 << 26

# Constraints and regularizers that treat each weight by itself and keep zeros. So they can be
# applied to the active values only.
_FREE_OF_OTHERS = (
    keras.constraints.NonNeg,
    keras.regularizers.L1,
    keras.regularizers.L2,
    keras.regularizers.L1L2,
)
_OF_EACH_WEIGHT = (
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Constant,
    keras.initializers.Zeros,
    keras.initializers.Ones,
)


def refusal(layer, variable):
    """Why a kernel cannot be stored as CSR, in a few words, or `None` if it can.

    Args:
        layer: The innermost built layer that holds the kernel.
        variable: The `keras.Variable` of a masked kernel.
    """
    if _attribute(layer, variable) is None:
        return "not an attribute of its layer"
    if variable.dtype == "float64":
        return "float64"
    kernel = masks.kernel_of(variable)
    if kernel.num_active == 0:
        return "no active connection"
    if kernel.num_active == kernel.size:
        return "no zeros"
    for kind, each in (("constraint", kernel.constraint), ("regularizer", variable.regularizer)):
        if not _is_free(each):
            name = getattr(each, "__name__", type(each).__name__)
            return f"its {kind} {name} needs the whole kernel"
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


def _is_free(each):
    """Whether a constraint or regularizer (or `None`) can be applied to the active values only."""
    return each is None or type(each) in _FREE_OF_OTHERS


def attach(layer, kernel):
    """Makes a masked kernel, for which `refusal` is `None`, a CSR kernel.

    After that, the layer computes with the CSR kernel, wherever the layer is used.

    Returns:
        The `csr.CSRKernel`.
    """
    variable = kernel.variable
    places = kernel.mask.reshape(-1).nonzero()[0]
    storage = csr.CSRStorage(
        kernel.path,
        tuple(variable.shape),
        math.prod(variable.shape[: _num_summed_of(layer)]),
        places,
        variable.numpy().reshape(-1)[places],
        dtype=variable.dtype,
        regularizer=variable.regularizer,
        constraint=kernel.constraint,
    )
    name = _attribute(layer, variable)
    with unlocked(layer):
        delattr(layer, name)
        setattr(layer, name, storage)
        layer.kernel_values = storage.values
        _put_last(layer, "bias")
    storage.values.trainable = variable.trainable
    _compute_with(layer, storage)
    return storage.constraint


def _compute_with(layer, storage):
    """Makes a layer use a CSR kernel in its calls and in files."""
    layer.supports_jit = False
    methods = (
        _call(layer, storage),
        functools.partial(_save_own_variables, layer, storage),
        functools.partial(_load_own_variables, layer, storage),
        functools.partial(_refuse_lora, storage),
    )
    vars(layer).update(zip(_REPLACED, methods, strict=True))


@contextlib.contextmanager
def born_sparse(layer, choose):
    """A context in which a layer is built, and creates its kernel as CSR if the kernel is large.

    The kernel is never dense. Its values are drawn from the distribution of the layer's
    initializer.

    Args:
        layer: The layer. If it cannot have a CSR kernel, it is built as usual.
        choose: Function of the kernel's shape that returns the sorted places of the active
            connections.
    """
    add_weight = layer.add_weight
    storages = []

    def add(*args, name=None, **kwargs):
        shape = tuple(kwargs.get("shape", args[0] if args else ()))
        constraint, regularizer = kwargs.get("constraint"), kwargs.get("regularizer")
        is_free = _is_free(constraint) and _is_free(regularizer)
        if name != "kernel" or math.prod(shape) <= LARGEST_DENSE or not is_free:
            return add_weight(*args, name=name, **kwargs)
        places = choose(shape)
        storage = csr.CSRStorage(
            f"{layer.path}/{name}",
            shape,
            math.prod(shape[: _num_summed_of(layer)]),
            places,
            drawn_values(kwargs["initializer"], shape, len(places)),
            dtype=layer.variable_dtype,
            regularizer=regularizer,
            constraint=constraint,
        )
        layer.kernel_values = storage.values
        storages.append(storage)
        return storage

    can_be = _num_summed_of(layer) is not None and layer.variable_dtype != "float64"
    if not can_be:
        yield
        return
    vars(layer)["add_weight"] = add
    try:
        yield
    finally:
        del vars(layer)["add_weight"]
    if storages:
        _compute_with(layer, storages[0])


def drawn_values(initializer, shape, num):
    """Draws `num` weights as an initializer draws those of a kernel of this shape.

    Raises:
        ValueError: If the weights of this initializer depend on each other, or it is unknown.
    """
    if isinstance(initializer, keras.initializers.VarianceScaling):
        receptive = math.prod(shape[:-2])
        fans = {"fan_in": shape[-2] * receptive, "fan_out": shape[-1] * receptive}
        fans["fan_avg"] = sum(fans.values()) / 2
        config = keras.initializers.VarianceScaling.get_config(initializer)
        # Drawn as a kernel of one unit with `num` inputs, scaled to the variance of the kernel.
        config["scale"] *= num / max(1.0, fans[config["mode"]])
        config["mode"] = "fan_in"
        return keras.initializers.VarianceScaling.from_config(config)((num, 1))[:, 0]
    if isinstance(initializer, _OF_EACH_WEIGHT):
        return initializer((num,))
    raise ValueError(
        f"A kernel of {math.prod(shape):,} weights is too large to be made dense, so its "
        "initializer must draw each weight alone: a `VarianceScaling` (such as GlorotUniform), "
        f"or one of {[each.__name__ for each in _OF_EACH_WEIGHT]}. Received: {initializer!r}"
    )


def detach(layer, storage):
    """Makes a CSR kernel a dense variable again, at its old place among the layer's weights.

    Returns:
        The `keras.Variable`, without a mask.
    """
    for name in _REPLACED:
        vars(layer).pop(name, None)  # a copy of a layer has not all of them
    layer.supports_jit = True
    name = _attribute(layer, storage)
    outer, _, own_name = storage.dense_path.rpartition("/")
    with unlocked(layer) as tracker:
        delattr(layer, name)
        del layer.kernel_values
        tracker.untrack(storage)
        parent = outer.rpartition("/")[0]
        with keras.name_scope(layer.name, caller=layer, override_parent=parent):
            variable = layer.add_weight(
                shape=storage.shape,
                dtype=storage.values.dtype,
                initializer=lambda shape, dtype=None: tf.cast(storage.dense(), dtype),
                regularizer=storage.values.regularizer,
                constraint=storage.constraint.constraint,
                name=own_name,
            )
        setattr(layer, name, variable)
        _put_last(layer, "bias")
    variable.trainable = storage.values.trainable
    return variable


def _put_last(layer, name):
    """Moves a variable to the end of the list of a layer's weights, after the kernel."""
    variable = getattr(layer, name)
    if variable is not None:
        trainable = variable.trainable
        delattr(layer, name)
        variable.trainable = True  # Keras never trains again what it tracks while this is False.
        setattr(layer, name, variable)
        variable.trainable = trainable


@contextlib.contextmanager
def unlocked(layer):
    """A context in which variables can be added to a built layer; Keras has no public way."""
    tracker = vars(layer)["_tracker"]
    tracker.unlock()
    try:
        with masks.cheap_deletions():
            yield tracker
    finally:
        tracker.lock()


def _attribute(layer, value) -> Any:
    """The name of the attribute in which a layer holds a kernel, or `None`."""
    names = [name for name, each in vars(layer).items() if each is value]
    return names[0] if len(names) == 1 else None


# The methods of a layer that are others while its kernel is CSR.
_REPLACED = ("call", "save_own_variables", "load_own_variables", "enable_lora")
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def is_convolution(layer):
    """Whether a layer computes the convolution of Keras."""
    own = type(layer)
    return any(
        _computes_as(layer, each) and own.convolution_op is each.convolution_op
        for each in _CONVOLUTIONS
    )


def _num_summed_of(layer):
    """The number of first dimensions of the kernel over which a layer sums.

    It is `None` if the layer computes neither a matrix product nor a convolution.
    """
    if _computes_as(layer, keras.layers.Dense):
        return 1
    if _computes_as(layer, keras.layers.EinsumDense):
        return _num_summed(layer.equation)
    return layer.rank + 1 if is_convolution(layer) else None


def channels(layer, shape):
    """How many numbers a layer reads and writes for each row or pixel: two integers.

    Args:
        layer: A layer for which `refusal` is `None`.
        shape: The shape of its dense kernel.
    """
    num_summed = _num_summed_of(layer) or 0
    first = num_summed - 1 if is_convolution(layer) else 0
    return math.prod(shape[first:num_summed]), math.prod(shape[num_summed:])


def _computes_as(layer, kind):
    """Whether a layer is of a class of Keras, without changing what this class computes."""
    own = type(layer)
    return isinstance(layer, kind) and own.call is kind.call and own.kernel is kind.kernel


def _num_summed(equation):
    """The number of last dimensions of the inputs over which an equation sums.

    It is `None` if the equation is not a matrix product.

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
    """The function that replaces the `call` of a layer."""
    compute = _convolution(layer, storage) if is_convolution(layer) else _product(layer, storage)

    @functools.wraps(layer.call)
    def call(inputs, training=None):
        if isinstance(inputs, keras.KerasTensor):
            return type(layer).call(layer, inputs)  # only shapes and types
        if isinstance(inputs, tf.SparseTensor):
            inputs = tf.sparse.to_dense(inputs)
        x = compute(tf.convert_to_tensor(inputs))
        if layer.activation is not None:
            x = layer.activation(x)
        return x

    vars(call)["__signature__"] = inspect.signature(layer.call)
    return call


def _product(layer, storage):
    num_summed = _num_summed_of(layer)
    free = storage.shape[num_summed:]

    def compute(inputs):
        num_batch = inputs.shape.rank - num_summed
        bias, is_of_outputs = layer.bias, False
        if bias is not None and tuple(bias.shape) == free:
            bias, is_of_outputs = tf.reshape(bias, [-1]), True
        x = csr.matmul(
            storage,
            tf.reshape(inputs, [-1, storage.matrix_shape[0]]),
            bias if is_of_outputs else None,
        )
        x = tf.reshape(x, tf.concat([tf.shape(inputs)[:num_batch], free], axis=0))
        x.set_shape([*inputs.shape[:num_batch], *free])
        return x if bias is None or is_of_outputs else keras.ops.add(x, bias)

    return compute


def _convolution(layer, storage):
    geometry = convolutions.Geometry(
        layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding
    )

    def compute(inputs):
        x = csr.convolve(storage, inputs, geometry)
        x.set_shape(layer.compute_output_shape(inputs.shape))
        return x if layer.bias is None else keras.ops.add(x, layer.bias)

    return compute


def _refuse_lora(storage, *args, **kwargs):
    raise ValueError(
        "`enable_lora` needs a masked kernel: use `rigl_tf.with_execution(model, 'masked')` first. "
        f"Received: the CSR kernel {storage.dense_path!r}"
    )


def _save_own_variables(layer, storage, store):
    # In a sparse model, the `CSRStorage` saves the kernel. But the layer may also belong to a dense
    # model, such as the encoder that a script has made: a file of that one has a dense kernel.
    if not vars(storage).pop("is_saved_alone", False):
        if math.prod(storage.shape) > LARGEST_DENSE:
            raise ValueError(
                "Only the sparse model can be saved: in the file of a part of it, kernels are "
                "dense, and this one is too large for that. Received: the CSR kernel "
                f"{storage.dense_path!r} of shape {storage.shape}"
            )
        store["0"] = storage.numpy()
    if layer.bias is not None:
        store["1"] = layer.bias.numpy()


def _load_own_variables(layer, storage, store):
    if layer.bias is not None:
        if "1" not in store:
            raise ValueError(
                f"The file does not fit {layer.name!r}, whose kernel is CSR: it must be of a model "
                f"with the same CSR kernels. Received: {len(store.keys())} arrays for this layer"
            )
        layer.bias.assign(store["1"])
    if "0" in store:  # the file has a dense or a masked kernel
        storage.load_dense(store["0"])
