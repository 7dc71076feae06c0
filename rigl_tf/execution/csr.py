"""CSR kernels: they store only the values of the active connections and their places.

CSR, "compressed sparse rows", is the usual name of this format. No variable has the shape of the
dense kernel; the dense kernel is computed only on request.
"""

import functools
import math
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.execution import convolutions, engine, stash


class CSRStorage(keras.layers.Layer):
    """Replaces the kernel variable of a layer, and holds the active values.

    Where a tensor or an array is needed, it is converted to the dense kernel. So code that does not
    know CSR kernels still computes the right result, and the gradient reaches the values.

    Args:
        path: String, the path of the dense kernel.
        shape: Tuple of integers, the shape of the dense kernel.
        num_inputs: Integer, the number of rows of the kernel as a matrix.
        places: Sorted array of `n` integers, the indices of the active connections in the flattened
            kernel.
        initial_values: Array of `n` numbers.
        dtype: String, the type of the values.
        regularizer: `keras.regularizers.Regularizer` of the values, or `None`.
        constraint: The user's own constraint of each value, or `None`.

    Attributes:
        values: Trainable `keras.Variable` of shape `(n,)`.
        collect: Boolean variable, whether a backward pass must store the parts of the dense
            gradient, because the step is a mask update.
    """

    only_stores = True  # for `rigl_tf.walk`: the layer that holds it computes

    def __init__(
        self,
        path,
        shape,
        num_inputs,
        places,
        initial_values,
        dtype,
        regularizer,
        constraint,
    ):
        super().__init__(name=path.rpartition("/")[2], dtype=dtype)
        size = math.prod(shape)
        self.__dict__.update(dense_path=path, shape=tuple(shape))
        self.__dict__["matrix_shape"] = (num_inputs, size // num_inputs)
        structure = engine.structure(tf.constant(places, tf.int64), self.matrix_shape)
        *outer, layer_name, _ = ["", *path.split("/")]
        with keras.name_scope(layer_name or self.name, override_parent="/".join(outer)):
            self.values = self.add_weight(
                shape=np.shape(places),
                initializer=_constant(initial_values),
                regularizer=regularizer,
                name=f"{self.name}_values",  # code may look for kernels by their names
            )
            self.collect = self.add_weight(
                shape=(), dtype="bool", initializer="zeros", trainable=False, name="collect"
            )
            for name, tensor in structure._asdict().items():
                variable = self.add_weight(
                    shape=tensor.shape,
                    dtype=keras.backend.standardize_dtype(tensor.dtype),
                    initializer=_constant(tensor.numpy()),
                    trainable=False,
                    name=name,
                )
                setattr(self, name, variable)
                _check_assigned(self, variable)
        self.supports_jit = False
        self.built = True
        self.__dict__["stash"] = stash.Stash(self.matrix_shape)
        self.values.constraint = CSRKernel(self, constraint)
        self._let_slots_follow()

    def _let_slots_follow(self):
        """Tells the kernel when code outside of a step sets the places.

        It may be Keras's `set_weights`, which assigns the variables one by one, in this order, and
        `collect` before them.
        """
        first, *_, last = self.structure_variables
        assign_first, assign_last = first.assign, last.assign

        def begin(value):
            if self.constraint.is_trained and tf.executing_eagerly():
                self.__dict__["places_before"] = self.places().numpy()
            return assign_first(value)

        def end(value):
            assigned = assign_last(value)
            if "places_before" in self.__dict__:
                self.constraint.follow(self.__dict__.pop("places_before"))
            return assigned

        first.assign, last.assign = begin, end

    def quantize(self, *args, **kwargs):
        """Does nothing: the layer that has this kernel refuses to be quantized."""

    @property
    def constraint(self):
        """The `CSRKernel`, in the same attribute as for the variable of a masked kernel."""
        return self.values.constraint

    @property
    def structure_variables(self):
        """The integer variables with the places of the values, as an `engine.Structure`."""
        return engine.Structure(*(getattr(self, name) for name in engine.Structure._fields))

    def structure(self):
        """The places of the values, as an `engine.Structure` of tensors."""
        return engine.Structure(*map(tf.convert_to_tensor, self.structure_variables))

    def places(self):
        """The places of the active connections in the flattened kernel, a sorted int64 tensor."""
        return self.places_of(self.structure_variables)

    def places_of(self, structure):
        """As `places`, for the copies of `structure_variables` on a replica."""
        places = engine.places_of(engine.Structure(*structure), self.matrix_shape)
        return tf.ensure_shape(places, self.values.shape)

    def put(self, places, values):
        """Sets places and values: arrays with as many entries as before."""
        structure = engine.structure(tf.constant(places, tf.int64), self.matrix_shape)
        for variable, tensor in zip(self.structure_variables, structure, strict=True):
            variable.assign(tensor)
        self.values.assign(values)

    # Use as a dense kernel.

    def dense(self):
        """The dense kernel as a tensor of the dtype of the values."""
        dense = scatter(self.places(), tf.convert_to_tensor(self.values), self.shape)
        return stash.collected_dense(self, dense)

    @property
    def _unique_id(self):
        # Optimizers identify a variable by it, for example to exclude it from weight decay.
        return self.values.value._unique_id

    @property
    def _id(self):
        # A tape identifies what it differentiates by it.
        raise AttributeError(
            f"A tape has no gradient for the CSR kernel {self.dense_path!r}, which is dense only "
            "on demand: use `kernel.values`, or the `trainable_variables` of the model. Received: "
            "the kernel itself"
        )

    @property
    def value(self):
        """The dense kernel as a tensor."""
        return self.dense()

    @property
    def ndim(self):
        return len(self.shape)

    def __tf_tensor__(self, dtype=None, name=None):
        dense = self.dense()
        return dense if dtype is None else tf.cast(dense, dtype)

    def __array__(self, dtype=None, copy=None):
        return self.numpy().astype(dtype or self.values.dtype)

    def numpy(self):
        """The dense kernel as an array."""
        kernel = np.zeros(math.prod(self.shape), self.values.dtype)
        kernel[self.places().numpy()] = self.values.numpy()
        return kernel.reshape(self.shape)

    def assign(self, weights):
        """Sets the active values to those of a dense kernel."""
        if np.shape(weights) != self.shape:
            raise ValueError(
                f"The weights of {self.dense_path!r} must have its shape {self.shape}. "
                f"Received: shape={np.shape(weights)}"
            )
        flat = tf.reshape(tf.convert_to_tensor(weights, self.values.dtype), [-1])
        return self.values.assign(tf.gather(flat, self.places()))

    def assign_add(self, change):
        """Adds the entries of a dense tensor, of any shape that can be broadcast, to the values."""
        return self.assign(self.dense() + tf.convert_to_tensor(change, self.values.dtype))

    def assign_sub(self, change):
        """As `assign_add`, with the opposite sign."""
        return self.assign_add(-tf.convert_to_tensor(change, self.values.dtype))

    def load_dense(self, weights):
        """Sets the active values from a dense kernel in a file, which has no CSR data."""
        self.assign(weights)
        self.__dict__["is_loaded"] = True

    # Files contain the values, and their places as rows of columns.

    def save_own_variables(self, store):
        for name in _SAVED:
            store[name] = getattr(self, name).numpy()

    def load_own_variables(self, store):
        if not store.keys() and self.__dict__.pop("is_loaded", False):
            return
        # After an error Keras tries again with an empty store, and shows the second error.
        known = self.__dict__.pop("shape_in_file", None)
        shape = tuple(store["values"].shape) if "values" in store else known
        if shape != tuple(self.values.shape):
            self.__dict__["shape_in_file"] = shape
            raise ValueError(
                f"The file must contain {self.values.shape[0]:,} active values of "
                f"{self.dense_path!r} and their places, as saved by a model of the same sparsity "
                "with `execution='csr'`. Received: "
                + ("none of these" if shape is None else f"an array of shape {shape}")
            )
        self.put(self.places_in(*(store[name] for name in _SAVED[1:])), store["values"])

    def places_in(self, row_splits, columns):
        """The places that two arrays of a `engine.Structure` stand for, an array."""
        splits, columns = np.asarray(row_splits, np.int64), np.asarray(columns, np.int64)
        rows = np.repeat(np.arange(self.matrix_shape[0]), np.diff(splits))
        return rows * self.matrix_shape[1] + columns


def _check_assigned(storage, variable):
    """Makes a variable of places refuse floating-point values, unless they equal its places.

    Averages are such values.
    """
    assign = variable.assign

    def assign_places(value):
        value = tf.convert_to_tensor(value)
        if value.dtype.is_integer:
            return assign(value)
        if tf.executing_eagerly():
            _check_places(storage, variable, value)
            return variable.value
        check = tf.debugging.Assert(_are_same(variable, value), [_refusal(storage, variable)])
        with tf.control_dependencies([check]):
            return tf.identity(variable.value)

    variable.assign = assign_places


def _check_places(storage, variable, value):
    """Raises a `ValueError` if floating-point values differ from the variable's places."""
    value = tf.convert_to_tensor(value)
    if not value.dtype.is_integer and not _are_same(variable, value):
        raise ValueError(f"{_refusal(storage, variable)}, of type {value.dtype.name}")


def _are_same(variable, value):
    """Whether numbers are the places of before, as an average of equal ones is, up to rounding."""
    places = tf.cast(variable.value, value.dtype)
    return tf.reduce_all(tf.abs(value - places) <= 1e-3 + 1e-6 * places)


def _refusal(storage, variable):
    return (
        f"The places of the connections of the CSR kernel {storage.dense_path!r} cannot be "
        "averaged or scaled: use `rigl_tf.with_execution(model, 'masked')` on models whose weights "
        f"are. Received: other numbers than before for {variable.name!r}"
    )


_SAVED = ("values", "row_splits", "columns")


def _operator(name):
    def of_dense(storage, *others):
        return getattr(storage.dense(), name)(*others)

    return of_dense


# As with a variable: `kernel * 2`, `kernel[0]`. But `==` compares objects, as for any layer.
for _name in tf.Tensor.OVERLOADABLE_OPERATORS - {"__eq__", "__ne__"}:
    if hasattr(tf.Tensor, _name):
        setattr(CSRStorage, _name, _operator(_name))


def _constant(value):
    return lambda shape, dtype=None: tf.constant(value, dtype)


def matmul(storage, inputs, bias=None):
    """Multiplies inputs with a CSR kernel, both as matrices, and adds a bias.

    Args:
        storage: A `CSRStorage`.
        inputs: Tensor of shape `[batch, num_inputs]`, of any type of numbers.
        bias: Tensor of shape `[num_outputs]`, or `None`.

    Returns:
        Tensor of shape `[batch, num_outputs]`, computed in float32, with the dtype that Keras gives
        such a product.
    """
    x, values, dtype = _operands(inputs, storage)

    is_inside = dtype == "float32"  # else it is added in this type, as Keras does

    def product(x):
        added = bias if is_inside else None
        return engine.matmul(x, values, storage.structure(), storage.matrix_shape, added)

    y = tf.cast(stash.collected(storage, x, product, lambda *rows: rows), dtype)
    return y if is_inside or bias is None else keras.ops.add(y, bias)


def convolve(storage, inputs, geometry):
    """Convolves images with a CSR kernel.

    Args:
        storage: A `CSRStorage`.
        inputs: Floating-point tensor of shape `[batch, *pixels, channels]`.
        geometry: A `convolutions.Geometry`.

    Returns:
        Tensor of shape `[batch, *pixels, outputs]`, computed in float32, with the dtype that Keras
        gives such a convolution.
    """
    x, values, dtype = _operands(inputs, storage)
    outputs = storage.matrix_shape[1]

    def product(x):
        return convolutions.convolve(x, values, storage.structure(), outputs, geometry)

    as_rows = functools.partial(convolutions.rows, geometry=geometry)
    return tf.cast(stash.collected(storage, x, product, as_rows), dtype)


def _operands(inputs, storage):
    """The inputs and the values in float32, and the dtype that Keras gives their product."""
    values = tf.convert_to_tensor(storage.values)
    dtype = keras.backend.result_type(inputs.dtype.name, values.dtype.name)
    return tf.cast(inputs, tf.float32), tf.cast(values, tf.float32), dtype


class CSRKernel(masks.SparseKernel):
    """A sparse kernel of which only the active values are stored.

    Args:
        storage: The `CSRStorage` in its layer.
        constraint: The user's own constraint of each weight, or `None`.

    Attributes:
        plans: The `Plan`s of the optimizers that train the kernel. Their slots belong to its
            active values.
    """

    execution = "csr"

    def __init__(self, storage, constraint=None):
        super().__init__(storage.values)
        self.storage = storage
        self.constraint = constraint
        self.plans = weakref.WeakSet()
        self._is_trained_by_keras = False
        self.mask_variables = (*storage.structure_variables, storage.collect)

    @property
    def path(self):
        return self.storage.dense_path

    @property
    def shape(self):
        return self.storage.shape

    @property
    def num_active(self):
        return self.variable.shape[0]

    @property
    def mask(self):
        mask = np.zeros(self.size, bool)
        mask[self.storage.places().numpy()] = True
        return mask.reshape(self.shape)

    def numpy(self):
        return self.storage.numpy()

    def dense(self, values):
        return scatter(self.storage.places(), tf.convert_to_tensor(values), self.shape)

    def is_active(self):
        return tf.ones(self.variable.shape, tf.bool)

    def split(self, gradient):
        return gradient, None

    def counts(self, axes):
        num_rows, num_units = self.storage.matrix_shape
        rows, units = np.divmod(self.storage.places().numpy(), num_units)
        of_inputs = masks.by_input(np.bincount(rows, minlength=num_rows), self.shape, axes)
        return of_inputs, np.bincount(units, minlength=num_units)

    def assign(self, weights):
        with tf.init_scope():
            self.storage.assign(weights)

    def set_mask(self, mask):
        places = np.flatnonzero(mask)
        if len(places) != self.num_active:
            raise ValueError(
                "The number of active connections of a CSR kernel cannot change: use "
                "`rigl_tf.with_execution(model, 'masked')` first. Received: a mask with "
                f"{len(places):,} for {self.path!r}, which has {self.num_active:,}"
            )
        with tf.init_scope():
            self.storage.put(places, self.numpy().reshape(-1)[places])

    def check_given(self, arrays):
        structure = self.storage.structure_variables
        given = [arrays[id(each)] for each in structure if id(each) in arrays]
        if not given:
            return
        for variable, array in zip(structure, given, strict=True):
            _check_places(self.storage, variable, array)
        given = engine.Structure(*(np.rint(each).astype(np.int64) for each in given))
        try:
            places = self.storage.places_in(given.row_splits, given.columns)
            want = engine.structure(places, self.storage.matrix_shape)
        except ValueError:
            want = [None]
        if not all(map(np.array_equal, given, want)):
            raise ValueError(
                f"The arrays for the CSR kernel {self.path!r} must be those that `get_weights()` "
                "has given, of this model or of another one. Received: integers that are not the "
                f"places of {self.num_active:,} connections"
            )

    @property
    def is_trained(self):
        """Whether an optimizer may have slots for the active values."""
        return bool(self.plans) or self._is_trained_by_keras

    def follow(self, before):
        """Moves the slots of optimizers with their connections, whose places were `before`."""
        is_next = [bool(plan.is_update_next()) for plan in list(self.plans)]
        self.storage.collect.assign(any(is_next))
        places = self.storage.places().numpy()
        if np.array_equal(before, places):
            return
        if not self.plans:
            warnings.warn(
                f"Connections of the CSR kernel {self.path!r} were exchanged, but the slots of "
                "Keras's own optimizer were not, so they belong to other connections now: compile "
                "the model again before it is trained, or train it with `rigl_tf.StaticSparse`.",
                stacklevel=2,
            )
        index = np.minimum(np.searchsorted(before, places), len(before) - 1)
        for plan in list(self.plans):
            for slot in plan.by_id[id(self.variable)].slots:
                moved = slot.moved(slot.variable, index, before[index] == places)
                slot.variable.assign(moved)

    def __call__(self, values):
        self._is_trained_by_keras |= not self.plans
        # An optimizer of Keras trains it now, which would never empty the stash. (The optimizers of
        # `rigl_tf` set `collect` again after each step.)
        if not tf.distribute.has_strategy():
            self.storage.collect.assign(False)
        return self._constrained(values)


def scatter(places, values, shape):
    """A dense tensor with these values at these places, and zeros elsewhere."""
    flat = tf.scatter_nd(places[:, tf.newaxis], values, [math.prod(shape)])
    return tf.reshape(flat, shape)
