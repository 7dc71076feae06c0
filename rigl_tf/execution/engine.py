"""The arithmetic of CSR kernels, which consist of their active values only.

A kernel of shape `[inputs, outputs]` is a vector of its active values, sorted by their places, and
a `Structure` with these places. The place of a value is `input * outputs + output`. Neither the
kernel nor its gradient is ever made dense.

The operations are written in C++ for CPUs, in `engine.cc`. They are compiled when they are first
needed, which takes about ten seconds, and stored in the user's cache folder. Without a compiler,
TensorFlow's own operations are used, which are slower. They are also used if the environment
variable `RIGL_TF_NATIVE` is `0`.
"""

import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import threading
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

_SOURCE = pathlib.Path(__file__).with_name("engine.cc")
_FLAGS = ("-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-w")
_LOADING = threading.Lock()
# The number of floats in a tile of a dense gradient, if TensorFlow's own operations are used.
_TILE = 1 << 22


class Structure(NamedTuple):
    """The places of the `n` active values of a kernel of shape `[inputs, outputs]`.

    All are tensors, or all NumPy arrays.

    Attributes:
        row_splits: int64, `[inputs + 1]`. The values of input `c` are those from `row_splits[c]` to
            `row_splits[c + 1]`.
        columns: int32, `[n]`, the output of each value.
        column_splits: int64, `[outputs + 1]`, as `row_splits`, but for the values in another order:
            sorted by outputs first.
        rows: int32, `[n]`: the input of each value, in this other order.
        order: int32, `[n]`: the index of each value, in this other order.
    """

    row_splits: tf.Tensor
    columns: tf.Tensor
    column_splits: tf.Tensor
    rows: tf.Tensor
    order: tf.Tensor


def is_native():
    """Whether the operations in C++ are used; compiles them if this is not done yet."""
    return native() is not None


def native() -> Any:
    """The module of the operations in C++, or `None` if they are not available or not wanted."""
    if os.environ.get("RIGL_TF_NATIVE", "1") == "0":
        return None
    with _LOADING:
        return _loaded()


def structure(places, shape):
    """Makes the `Structure` of active values, which products need.

    Args:
        places: int64 tensor or NumPy array, `[n]`: `input * outputs + output` of each active value,
            in ascending order.
        shape: Pair of integers, `(inputs, outputs)`, each in `[1, 2**31)`.

    Returns:
        `Structure` of tensors, or of NumPy arrays if `places` is a NumPy array.

    Raises:
        ValueError: If NumPy places do not ascend, or are outside of the kernel. For tensors, a
            `tf.errors.InvalidArgumentError` is raised when the operation runs.

    Example:

    >>> structure(np.array([1, 2, 5]), (2, 3)).columns.tolist()
    [1, 2, 2]
    """
    inputs, outputs = _checked_shape(shape)
    if isinstance(places, np.ndarray):
        return _structure_of_array(places, inputs, outputs)
    places = tf.convert_to_tensor(places, tf.int64)
    operations = native()
    if operations is not None:
        return Structure(*operations.rigl_structure(places=places, inputs=inputs, outputs=outputs))
    size = inputs * outputs
    bounded = tf.concat([[tf.constant(-1, tf.int64)], places, [size]], axis=0)
    check = tf.debugging.assert_less(
        bounded[:-1], bounded[1:], f"`places` must ascend in [0, {inputs} * {outputs})."
    )
    with tf.control_dependencies(_operations(check)):
        columns = tf.cast(places % outputs, tf.int32)
    order = tf.argsort(columns, stable=True)
    borders = tf.range(inputs + 1, dtype=tf.int64) * outputs
    sorted_columns = tf.gather(columns, order)
    return Structure(
        row_splits=tf.searchsorted(places, borders, out_type=tf.int64),
        columns=columns,
        column_splits=tf.searchsorted(sorted_columns, tf.range(outputs + 1), out_type=tf.int64),
        rows=tf.cast(tf.gather(places, order) // outputs, tf.int32),
        order=order,
    )


def matmul(x, values, structure, shape, bias=None):
    """Multiplies a batch with a sparse kernel: `x @ kernel + bias`.

    It can be differentiated, also several times, with respect to `x`, `values` and `bias`. The
    gradient of the values is computed only at their places. Sums are computed in float32 and do not
    depend on the number of threads.

    Args:
        x: Floating-point tensor, `[batch, inputs]`; the batch size may be unknown or 0.
        values: Floating-point tensor, `[n]`: the active values, sorted by place.
        structure: The `Structure` of their places.
        shape: Pair of integers, `(inputs, outputs)`.
        bias: Floating-point tensor, `[outputs]`, or `None`.

    Returns:
        Tensor of shape `[batch, outputs]` with the dtype of `x`.

    Raises:
        ValueError: If a shape does not fit.
        tf.errors.InvalidArgumentError: When it runs, if the structure does not fit. Without the
            operations in C++, not all of this is checked.
    """
    inputs, outputs = _checked_shape(shape)
    x = tf.convert_to_tensor(x)
    values = tf.convert_to_tensor(values)
    if not x.shape.is_compatible_with([None, inputs]):
        raise ValueError(f"`x` must be [batch, {inputs}]. Received: x.shape={x.shape}")
    _check_structure(structure, inputs, outputs)
    if bias is not None:
        bias = tf.cast(bias, tf.float32)
        if not bias.shape.is_compatible_with([outputs]):
            raise ValueError(f"`bias` must be [{outputs}]. Received: bias.shape={bias.shape}")
    operands = tf.cast(x, tf.float32), tf.cast(values, tf.float32), *map(_tensor, structure)
    if native() is not None:
        y = _native_matmul(*operands, bias=tf.zeros([0]) if bias is None else bias)
    else:
        y = _matmul_of_tensorflow(*operands)
        y = y if bias is None else y + bias
    y.set_shape([x.shape[0], outputs])
    return tf.cast(y, x.dtype)


def places_of(structure, shape):
    """The sorted places of a `Structure`, an int64 tensor of shape `[n]`.

    Example:

    >>> places_of(structure(np.array([1, 2, 5]), (2, 3)), (2, 3)).numpy().tolist()
    [1, 2, 5]
    """
    _, outputs = _checked_shape(shape)
    row_splits, columns = _tensor(structure.row_splits), _tensor(structure.columns)
    operations = native()
    if operations is not None:
        return operations.rigl_places(row_splits=row_splits, columns=columns, outputs=outputs)
    # The row of a value is the number of rows that end before or at its index.
    ends = row_splits[1:-1, tf.newaxis]
    num_ends = tf.scatter_nd(ends, tf.ones_like(ends[:, 0]), row_splits[-1:] + 1)
    return tf.cumsum(num_ends)[:-1] * outputs + tf.cast(columns, tf.int64)


def replaced(places, is_kept, grown):
    """Exchanges active places for others.

    Args:
        places: Sorted int64 tensor of shape `[n]`, the active places.
        is_kept: Boolean tensor of shape `[n]`.
        grown: Sorted int64 tensor of shape `[m]`, places that become active. None of them is kept.

    Returns:
        Three tensors: the places that are kept or grown, int64, sorted; for each of them its index
        in `places`, int64, or any index if it is not there; and whether it is there, boolean.

    Example:

    >>> merged, before, was_there = replaced([2, 5, 7], [True, False, True], [4, 5])
    >>> merged.numpy().tolist(), was_there.numpy().tolist()
    ([2, 4, 5, 7], [True, False, True, True])
    """
    operations = native()
    if operations is not None:
        return operations.rigl_replace(places=places, is_kept=is_kept, grown=grown)
    places, grown = (tf.convert_to_tensor(each, tf.int64) for each in (places, grown))
    new = tf.sort(tf.concat([tf.boolean_mask(places, is_kept), grown], axis=0))
    last = tf.maximum(tf.shape(places, tf.int64)[0] - 1, 0)
    before = tf.minimum(tf.searchsorted(places, new, out_type=tf.int64), last)
    # With one place more, so that there is a place to compare with.
    return new, before, tf.gather(tf.concat([places, [-1]], axis=0), before) == new


def gradient_of_values(x, dy, structure, shape):
    """The entries of `x^T dy` at the places of the active values.

    Args:
        x: Float32 tensor of shape `[batch, inputs]`.
        dy: Float32 tensor of shape `[batch, outputs]`.
        structure: The `Structure` of the places.
        shape: Pair of integers, `(inputs, outputs)`.

    Returns:
        Float32 tensor of shape `[n]`.
    """
    values = tf.zeros(tf.shape(structure.columns))
    operations = native()
    if operations is not None:
        return operations.rigl_matmul_grad(x, dy, values, *structure, input_gradient=False).dvalues
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = matmul(x, values, structure, shape)
    return tape.gradient(y, values, dy)


def largest_gradients(x, dy, structure, shape, k, of_active, is_eligible):
    """Finds the places where the gradient of a dense kernel is largest.

    The gradient is `x^T @ dy` where the kernel is not active, and given where it is. It is computed
    tile by tile and never stored. The result is exact; ties go to the lower place. The result must
    not be used if the gradient is not finite everywhere.

    Args:
        x: Floating-point tensor, `[batch, inputs]`.
        dy: Floating-point tensor, `[batch, outputs]`, the gradient of the layer's output.
        structure: The `Structure` of the `n` active places.
        shape: Pair of integers, `(inputs, outputs)`.
        k: Integer or scalar integer tensor, how many places are wanted, at most the number of
            eligible places.
        of_active: Floating-point tensor, `[n]`, the gradient of the active values.
        is_eligible: Boolean tensor, `[n]`, which active places can be chosen. Of the other places,
            all can be chosen.

    Returns:
        Three tensors: the places, int64, `[k]`, ascending; the gradient there, float32, `[k]`; and
        a boolean scalar, whether the whole gradient is finite.

    Raises:
        ValueError: If a shape does not fit.
        tf.errors.InvalidArgumentError: If there are fewer than `k` eligible places.
    """
    inputs, outputs = _checked_shape(shape)
    x = tf.cast(tf.convert_to_tensor(x), tf.float32)
    dy = tf.cast(tf.convert_to_tensor(dy), tf.float32)
    if not x.shape.is_compatible_with([None, inputs]):
        raise ValueError(f"`x` must be [batch, {inputs}]. Received: x.shape={x.shape}")
    if not dy.shape.is_compatible_with([None, outputs]):
        raise ValueError(f"`dy` must be [batch, {outputs}]. Received: dy.shape={dy.shape}")
    _check_structure(structure, inputs, outputs)
    arguments = {
        "row_splits": _tensor(structure.row_splits),
        "columns": _tensor(structure.columns),
        "of_active": tf.cast(of_active, tf.float32),
        "is_eligible": _tensor(is_eligible),
        "k": tf.cast(k, tf.int64),
    }
    operations = native()
    if operations is not None:
        return tuple(operations.rigl_largest_gradients(x=x, dy=dy, **arguments))
    return _largest_gradients(x, dy, inputs, outputs, **arguments)


# Arguments.


def _checked_shape(shape):
    inputs, outputs = (int(size) for size in shape)
    if not (1 <= inputs < 2**31 and 1 <= outputs < 2**31):
        raise ValueError(f"`shape` must be two integers in [1, 2**31). Received: shape={shape}")
    return inputs, outputs


def _check_structure(structure, inputs, outputs):
    """Raises a `ValueError` if a static length does not fit."""
    for splits, size in (("row_splits", inputs), ("column_splits", outputs)):
        length = getattr(structure, splits).shape[0]
        if length not in (None, size + 1):
            raise ValueError(
                f"The structure is not that of a kernel of shape {(inputs, outputs)}: "
                f"`{splits}` must have {size + 1} entries. Received: {length} entries"
            )


def _tensor(array):
    return tf.convert_to_tensor(array)


def _structure_of_array(places, inputs, outputs):
    places = places.astype(np.int64, copy=False)
    bounded = np.concatenate([[-1], places, [inputs * outputs]])
    if places.ndim != 1 or not np.all(bounded[:-1] < bounded[1:]):
        raise ValueError(
            f"`places` must be one-dimensional and ascend in [0, {inputs} * {outputs}). "
            f"Received: places={places!r}"
        )
    rows, columns = np.divmod(places, outputs)
    order = np.argsort(columns, kind="stable")
    return Structure(
        row_splits=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=inputs))]),
        columns=columns.astype(np.int32),
        column_splits=np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=outputs))]),
        rows=rows[order].astype(np.int32),
        order=order.astype(np.int32),
    )


# Products.


def _native_matmul(*operands, bias=()):
    return native().rigl_matmul(*operands, bias=bias)


@tf.RegisterGradient("RiglMatmul")
def _gradient_of_matmul(operation, dy):
    is_bias_wanted = operation.inputs[-1].shape[0] != 0 and _is_wanted(operation, 7)
    return gradients_of_product(
        native().rigl_matmul_grad, operation, dy, bias_gradient=is_bias_wanted
    )


@tf.RegisterGradient("RiglMatmulGrad")
def _gradient_of_matmul_grad(operation, of_dx, of_dvalues, of_dbias):
    dy = operation.inputs[1]
    to_x, to_dy, *others = gradients_of_gradient(
        _native_matmul, native().rigl_matmul_grad, operation, of_dx, of_dvalues
    )
    if operation.get_attr("bias_gradient") and not _is_zero(of_dbias):
        of_rows = tf.broadcast_to(of_dbias, tf.shape(dy))
        to_dy = of_rows if to_dy is None else to_dy + of_rows
    return [to_x, to_dy, *others]


def gradients_of_product(backward, operation, dy, **attributes):
    """The gradients of the inputs of a product: a matrix product or a convolution.

    Args:
        backward: The operation that computes them.
        operation: The product.
        dy: The gradient of its result.
        attributes: Those of both operations.
    """
    x, values, *structure = operation.inputs[:7]
    wanted = _is_wanted(operation, 0)
    dx, dvalues, *others = backward(x, dy, values, *structure, input_gradient=wanted, **attributes)
    return [dx if wanted else None, dvalues, *[None] * len(structure), *others]


def gradients_of_gradient(forward, backward, operation, of_dx, of_dvalues, **attributes):
    """The gradients of the inputs of the operation `backward`.

    A product is linear in `x` and in the values, so these gradients are products again.

    Args:
        forward: The operation that computes the product.
        backward: The operation that computes its gradients.
        operation: One of the latter.
        of_dx: The gradient of its first result.
        of_dvalues: The gradient of its second result.
        attributes: Those of all these operations.
    """
    x, dy, values, *structure = operation.inputs
    to_x = to_values = None
    to_dy = []
    if not _is_zero(of_dvalues):
        if _is_wanted(operation, 0):
            to_x = backward(x, dy, of_dvalues, *structure, input_gradient=True, **attributes)[0]
        to_dy.append(forward(x, of_dvalues, *structure, **attributes))
    if operation.get_attr("input_gradient") and not _is_zero(of_dx):
        to_values = backward(of_dx, dy, values, *structure, input_gradient=False, **attributes)[1]
        to_dy.append(forward(of_dx, values, *structure, **attributes))
    to_dy = tf.add_n(to_dy) if to_dy else None
    return [to_x, to_dy, to_values, *[None] * len(structure)]


def _is_zero(gradient):
    """Whether a gradient is known to be zero, as that of a result that is not used in a graph."""
    if tf.executing_eagerly() or gradient.op.type != "Fill":
        return False
    return tf.get_static_value(gradient.op.inputs[1]) == 0


def _is_wanted(operation, index):
    """Whether the gradient of an input is needed; that of the data in the first layer is not."""
    return index not in (getattr(operation, "skip_input_indices", None) or ())


@tf.custom_gradient
def _matmul_of_tensorflow(x, values, row_splits, columns, column_splits, rows, order):
    inputs, outputs = tf.size(row_splits) - 1, tf.size(column_splits) - 1
    indices = tf.stack([_repeated(row_splits, tf.int64), tf.cast(columns, tf.int64)], axis=1)
    shape = tf.cast(tf.stack([inputs, outputs]), tf.int64)

    def times(other, by_inputs):
        product = tf.raw_ops.SparseTensorDenseMatMul(
            a_indices=indices,
            a_values=values,
            a_shape=shape,
            b=other,
            adjoint_a=by_inputs,
            adjoint_b=True,
        )
        return tf.transpose(product)

    def gradient(dy):
        def at_places(start, gradient):
            end = tf.minimum(start + tf.shape(gradient)[0], inputs)
            first, last = row_splits[start], row_splits[end]
            row = _repeated(row_splits[start : end + 1] - first, tf.int32)
            return tf.gather_nd(gradient, tf.stack([row, columns[first:last]], axis=1))

        dvalues = tf.reshape(_for_tiles_of_gradient(x, dy, at_places), tf.shape(values))
        return times(dy, False), dvalues, *[None] * 5

    return times(x, True), gradient


def _repeated(splits, dtype):
    """The row of each entry, given the limits of the rows."""
    rows = tf.range(tf.size(splits) - 1)
    return tf.cast(tf.repeat(rows, splits[1:] - splits[:-1]), dtype)


def _for_tiles_of_gradient(x, dy, function):
    """Calls a function for tiles of the dense gradient, and concatenates its results in a vector.

    The function gets the index of the first input of a tile, and the gradient of the tile, of shape
    `[inputs of the tile, outputs]`.
    """
    inputs, outputs = tf.shape(x)[1], tf.shape(dy)[1]
    height = tf.maximum(_TILE // tf.maximum(outputs, 1), 1)
    num_tiles = (inputs + height - 1) // height
    parts = tf.TensorArray(tf.float32, num_tiles, infer_shape=False, element_shape=[None])

    def body(tile, parts):
        start = tile * height
        gradient = tf.matmul(x[:, start : start + height], dy, transpose_a=True)
        return tile + 1, parts.write(tile, function(start, gradient))

    _, parts = tf.while_loop(lambda tile, _: tile < num_tiles, body, (0, parts))
    return parts.concat()


def _largest_gradients(x, dy, inputs, outputs, row_splits, columns, of_active, is_eligible, k):
    num_left_out = tf.math.count_nonzero(~is_eligible)
    num_candidates = inputs * outputs - num_left_out
    check = tf.debugging.Assert(
        (k >= 0) & (k <= num_candidates),
        ["`k` must be at most the number of places to choose from", num_candidates, "Received:", k],
    )
    with tf.control_dependencies(_operations(check)):
        k = tf.cast(k, tf.int32)
    height = max(_TILE // outputs, 1)

    def body(start, is_finite, magnitudes, gradients, places):
        end = tf.minimum(start + height, inputs)
        first, last = row_splits[start], row_splits[end]
        row = _repeated(row_splits[start : end + 1] - first, tf.int32)
        active = tf.stack([row, columns[first:last]], axis=1)
        gradient = tf.matmul(x[:, start:end], dy, transpose_a=True)
        gradient = tf.tensor_scatter_nd_update(gradient, active, of_active[first:last])
        is_finite &= tf.reduce_all(tf.math.is_finite(gradient))
        magnitude = tf.where(tf.math.is_nan(gradient), np.inf, tf.abs(gradient))
        left_out = tf.boolean_mask(active, ~is_eligible[first:last])
        lowest = tf.fill(tf.shape(left_out)[:1], -1.0)
        magnitude = tf.tensor_scatter_nd_update(magnitude, left_out, lowest)
        first_place = tf.cast(start, tf.int64) * outputs
        new_places = first_place + tf.range(tf.size(gradient, tf.int64), dtype=tf.int64)
        # Places found before are lower and come first, so they win ties.
        magnitudes, chosen = tf.math.top_k(
            tf.concat([magnitudes, tf.reshape(magnitude, [-1])], axis=0), k
        )
        gradients = tf.gather(tf.concat([gradients, tf.reshape(gradient, [-1])], axis=0), chosen)
        places = tf.gather(tf.concat([places, new_places], axis=0), chosen)
        return end, is_finite, magnitudes, gradients, places

    # First values with a lower magnitude than any place.
    start = (0, True, tf.fill([k], -2.0), tf.zeros([k]), tf.zeros([k], tf.int64))
    vector = tf.TensorShape([None])
    _, is_finite, _, gradients, places = tf.while_loop(
        lambda start, *_: start < inputs,
        body,
        tuple(tf.convert_to_tensor(each) for each in start),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([]), vector, vector, vector),
    )
    order = tf.argsort(places)
    return tf.gather(places, order), tf.gather(gradients, order), is_finite


def _operations(check):
    """A check as a list, for control dependencies. In eager mode, it has run already."""
    return [] if check is None else [check]


# Loading.


@functools.cache
def _loaded():
    try:
        return tf.load_op_library(str(_library()))
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        warnings.warn(
            "Sparse kernels are computed with TensorFlow's own operations, so training is slower "
            'than it could be, and `execution="auto"` leaves them masked. Install a C++ compiler, '
            "such as the package `g++`, or set the environment variable CXX to one; "
            f"RIGL_TF_NATIVE=0 silences this warning. Reason: {error}",
            stacklevel=4,
        )
        return None


def library_path():
    """Where the compiled operations are, or will be."""
    prebuilt = _SOURCE.with_name(f"engine-tf{tf.__version__}-{platform.machine()}.so")
    return prebuilt if prebuilt.exists() else _cache_folder() / f"engine-{_key()}.so"


def _library():
    """The path of the compiled operations; compiles them if this is not done yet."""
    path = library_path()
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            path = pathlib.Path(tempfile.mkdtemp(prefix="rigl_tf_")) / path.name
        build(path)
    return path


def build(path):
    """Compiles the operations in C++ to a library for the installed version of TensorFlow.

    A library next to `engine.cc` with the name `engine-tf<version>-<machine>.so`, such as
    `engine-tf2.21.0-x86_64.so`, is used by all users of an installation, without a compiler.

    Args:
        path: Path of the library. An existing file is replaced when the new one is complete.

    Raises:
        RuntimeError: If there is no compiler, or it fails.
    """
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError("no C++ compiler was found: neither $CXX, nor g++, nor clang++.")
    path = pathlib.Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as folder:
        built = pathlib.Path(folder) / path.name
        command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(built)]
        command += [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            raise RuntimeError(
                f"{compiler[0]} failed: {(said or [done.stderr.strip()[-200:] or 'silently'])[0]}"
            )
        os.replace(built, path)


def _compiler():
    """The command of a C++ compiler as a list, or `None`."""
    wanted = os.environ.get("CXX", "").split()
    for command in filter(None, (wanted, ["g++"], ["clang++"])):
        if shutil.which(command[0]):
            return command
    return None


def _cache_folder():
    cache = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(cache) if cache else pathlib.Path.home() / ".cache") / "rigl_tf"


def _key():
    """A key for all that a compiled library depends on."""
    binary = [flag for flag in tf.sysconfig.get_compile_flags() if not flag.startswith("-I")]
    said = [tf.version.VERSION, tf.version.GIT_VERSION, platform.system(), platform.machine()]
    said += [*(_compiler() or ["none"]), *_FLAGS, *binary]
    digest = hashlib.sha256(_SOURCE.read_bytes() + "\n".join(said).encode())
    return digest.hexdigest()[:24]
