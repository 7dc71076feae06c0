"""What each kind of layer does with units, the entries along the last axis; smaller copies of it.

There are three kinds of layers with weights: layers with a kernel, which compute new units from
their inputs (`Kernel`); layers with weights for each unit or block of units (`Unitwise`); and all
others, about which nothing is known (`None`).
"""

import functools
import math
import warnings
from typing import Any

import keras
import numpy as np

from rigl_tf import masks
from rigl_tf.layers.building import without_build_configs
from rigl_tf.layers.wrapper import SparseWrapper

_OBJECTS = ("activation", "initializer", "regularizer", "constraint")


def inner_of(layer):
    """The layer inside a `SparseWrapper`, or the layer itself if it is not wrapped."""
    return layer.layer if isinstance(layer, SparseWrapper) else layer


def kind_of(layer, rank):
    """The `Kernel` or `Unitwise` of a built layer, or `None` if it is neither.

    Args:
        layer: The layer, with or without a `SparseWrapper`.
        rank: Integer, the number of axes of its inputs, including the batch.
    """
    inner = inner_of(layer)
    kind = _KINDS.get(type(inner))
    is_changed = getattr(inner, "lora_enabled", False) or getattr(inner, "quantization_mode", None)
    if kind is None or is_changed or getattr(inner, "data_format", None) == "channels_first":
        return None
    if getattr(inner, "groups", 1) != 1 and kind is Convolution:
        kind = GroupedConvolution
    found = kind(layer)
    return found if found.is_supported(rank) else None


def treats_units_alike(function, *shapes):
    """Whether each output unit is the same function of one input unit.

    This is tried with random numbers: if the inputs are shifted by a unit, so must be the outputs.

    Args:
        function: Layer or function of tensors. It may change all axes but the last one, the units.
        *shapes: Tuples of integers, the shape of one example of each tensor. A tensor whose last
            axis is 1 is combined with all units.
    """
    generator = np.random.default_rng(0)
    x = [generator.normal(size=(2, *shape)).astype("float32") for shape in shapes]
    num_units = max(shape[-1] for shape in shapes)
    first = [np.full((*each.shape[:-1], 1), 9, "float32") for each in x]
    shifted = [
        np.concatenate([before, each[..., :-1]], axis=-1) if each.shape[-1] > 1 else each
        for before, each in zip(first, x, strict=True)
    ]
    y, z = (as_array(function(*values)) for values in (x, shifted))
    has_all = y.shape[-1:] == (num_units,)
    return has_all and _are_close(y[..., :-1], z[..., 1:])


def works_without_a_unit(function, *shapes):
    """Whether the other outputs stay the same without the first unit, and without the last one.

    The arguments are those of `treats_units_alike`.
    """
    generator = np.random.default_rng(1)
    x = [generator.normal(size=(2, *shape)).astype("float32") for shape in shapes]
    y = as_array(function(*x))
    if y.shape[-1] < 2:
        return True
    for part in (slice(1, None), slice(None, -1)):
        fewer = [each[..., part] if each.shape[-1] > 1 else each for each in x]
        if not _are_close(y[..., part], as_array(function(*fewer))):
            return False
    return True


def as_array(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def _are_close(one, other):
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-6)


class _Kind:
    """A layer and its weights as arrays; the weights of inactive connections are zero.

    Attributes:
        layer: The layer, with its wrapper if it has one.
        inner: The layer without its wrapper.
    """

    def __init__(self, layer):
        self.layer = layer
        self.inner = inner_of(layer)

    def is_supported(self, rank):
        """Whether this class describes the layer fully, for inputs with `rank` axes."""
        return True

    def array(self, name) -> tuple[Any, Any]:
        """The weight in an attribute of the layer, and its mask or `None`."""
        variable = getattr(self.inner, name)
        value = keras.ops.convert_to_numpy(variable)
        sparse = masks.kernel_of(variable)
        if sparse is None:
            return value, None
        return np.where(sparse.mask, value, 0), sparse.mask

    def active(self, name):
        """Which connections are active: those in the mask; without a mask, those not zero."""
        value, mask = self.array(name)
        return value != 0 if mask is None else mask

    def copy(self, **changes):
        """A new layer like this one, not built, and wrapped if this one is."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*includes a `lambda`")
            config = without_build_configs(self.inner.get_config())
        # As objects, because a user's own functions, such as a lambda, have no config.
        for name in list(config):
            if name.endswith(_OBJECTS) and hasattr(self.inner, name):
                config[name] = getattr(self.inner, name)
        new = type(self.inner).from_config({**config, **changes})
        if self.inner is self.layer:
            return new
        shares = [None if masks.kernel_of(each) is None else 0.0 for each in self.inner.weights]
        if changes.get("use_bias", False) and not self.inner.use_bias:
            shares.append(None)
        if changes.get("bias_axes") and not self.inner.bias_axes:
            shares.append(None)
        wrapper = SparseWrapper(new, shares, name=self.layer.name)
        wrapper.keep_seed(self.layer.seed, self.layer.mask_indices)
        return wrapper


def fill(new_layer, values):
    """Sets the weights and masks of a new layer that is built by now.

    Args:
        new_layer: A layer of `smaller`.
        values: `{name of the attribute: (weight, mask or None)}`.
    """
    inner = inner_of(new_layer)
    shares = {}
    for name, (value, mask) in values.items():
        variable = getattr(inner, name)
        # A layer without a wrapper is plain, even if its kernel has the mask of a sparse model.
        if mask is not None and inner is not new_layer:
            masks.kernel_of(variable).set_mask(mask)
            # For copies made from the config, which always have a sparsity below 1.
            shares[id(variable)] = float(min(1 - mask.mean(), math.nextafter(1.0, 0.0)))
        variable.assign(value)
    if inner is not new_layer:
        chosen = [shares[id(each)] for each in inner.weights if id(each) in shares]
        new_layer.keep_sparsity(chosen)


class Kernel(_Kind):
    """A layer whose units are weighted sums of its inputs, optionally with an activation.

    Attributes:
        is_padded: Whether the inputs are padded with zeros, or the sums have fewer terms at the
            borders. Then a constant input other than 0 adds different values at different
            positions.
        can_merge: Whether one constant input can replace all constant inputs in this case.
    """

    size = "units"
    axes = (-2, -1)  # of the kernel: those of the inputs and of the units
    kernel_name = "kernel"
    is_padded = False
    can_merge = True
    num_kernels = 1

    def is_supported(self, rank):
        # An activation may be a layer with its own weights, which are created in its first call.
        activation: Any = getattr(self.inner, "activation", None)
        if isinstance(activation, keras.layers.Layer) and not activation.built:
            return False
        return len(self.inner.weights) == self.num_kernels + self._has_bias

    @functools.cached_property
    def mixes_units(self):
        """Whether the activation uses several units together, as softmax does."""
        activation = getattr(self.inner, "activation", None)
        return activation is not None and not treats_units_alike(activation, (self.num_units,))

    @property
    def num_units(self):
        return getattr(self.inner, self.kernel_name).shape[self.axes[1]]

    @functools.cached_property
    def connections(self):
        """Boolean array `(inputs, units)`: whether there is an active connection between them."""
        return self._by_units(self.active(self.kernel_name)).any(axis=0)

    def norms(self, gradients=None):
        """The saliency of each unit by its incoming weights.

        Args:
            gradients: Array of the kernel's shape, or `None`.

        Returns:
            Array with a number for each unit: the sum of the squared weights, or with `gradients`
            the sum of `|gradient * weight|`.
        """
        kernel, _ = self.array(self.kernel_name)
        kernel = kernel.astype("float64")
        scores = kernel**2 if gradients is None else np.abs(gradients * kernel)
        return self._by_units(scores).sum(axis=(0, 1))

    def without(self, rows):
        """The kernel's variable, and its value without connections from the inputs `rows`."""
        kernel = self.array(self.kernel_name)[0].copy()
        np.moveaxis(kernel, self.axes[0], 0)[rows] = 0
        return getattr(self.inner, self.kernel_name), kernel

    def sums_of(self, rows, values):
        """What the constant inputs `rows` with these values add to the units, shaped as a bias."""
        kernel, _ = self.array(self.kernel_name)
        kernel = np.take(kernel, rows, axis=self.axes[0]).astype("float64")
        return np.einsum("kio,i->o", self._by_units(kernel), values)

    def smaller(self, rows, columns, live_rows, live_columns, constants, stand_in=None):
        """Makes a smaller layer, and the values to `fill` it with.

        Args:
            rows: Array of integers, the inputs that are left.
            columns: Array of integers, the units that are left.
            live_rows: Boolean array, which of all inputs are live. Others may be left as well,
                because each layer keeps at least one unit.
            live_columns: Boolean array, which of all units are live.
            constants: Array of shape `(inputs,)`: the values of constant inputs that must be added
                to the biases, 0 for all others.
            stand_in: `None`, or a pair of an input and its constant value, which replaces these
                constants instead of the biases.
        """
        folded = np.flatnonzero(constants)
        if stand_in is not None:
            row, value = stand_in
            self._let_stand(row, value, folded, constants[folded])
            folded = folded[:0]
        sums = self.sums_of(folded, constants[folded]) if len(folded) else None
        biases = self._biases(sums)
        if biases is not None and not self._has_bias:
            new = biases[..., columns] if biases.shape[-1] > 1 else biases
            biases = biases if np.any(new) else None
        values = self._kernels(rows, columns, live_rows, live_columns)
        if biases is not None:
            chosen = biases[..., columns] if biases.shape[-1] == self.num_units else biases
            values["bias"] = (chosen, None)
        return self.copy(**self._changes(columns, biases)), values

    _has_bias = property(lambda self: getattr(self.inner, "use_bias", False))

    def _biases(self, sums) -> Any:
        own = self.array("bias")[0].astype("float64") if self._has_bias else None
        return sums if own is None else own if sums is None else own + sums

    def _changes(self, columns, biases):
        return {self.size: len(columns), "use_bias": biases is not None}

    def _kernels(self, rows, columns, live_rows, live_columns):
        def left(array):
            array = np.take(np.take(array, rows, self.axes[0]), columns, self.axes[1])
            np.moveaxis(array, self.axes[0], 0)[~live_rows[rows]] = 0
            np.moveaxis(array, self.axes[1], 0)[~live_columns[columns]] = 0
            return array

        kernel, mask = self._merged or self.array(self.kernel_name)
        return {self.kernel_name: (left(kernel), None if mask is None else left(mask))}

    _merged: Any = None

    def _let_stand(self, row, value, rows, values):
        """Adds the weights of constant inputs to those of one input, scaled by their values."""
        kernel, mask = self.array(self.kernel_name)
        kernel, mask = kernel.copy(), None if mask is None else mask.copy()
        by_row = np.moveaxis(kernel, self.axes[0], 0)
        shares = values / value
        by_row[row] += np.tensordot(shares, by_row[rows].astype("float64"), 1).astype(kernel.dtype)
        if mask is not None:
            by_row = np.moveaxis(mask, self.axes[0], 0)
            by_row[row] |= by_row[rows].any(axis=0)
        self._merged = kernel, mask

    def _by_units(self, array):
        """An array of the kernel's shape as `(places, inputs, units)`."""
        array = np.moveaxis(array, self.axes, (-2, -1))
        return array.reshape(-1, *array.shape[-2:])


class Convolution(Kernel):
    size = "filters"

    @property
    def is_padded(self):
        return self.inner.padding != "valid" and math.prod(self.inner.kernel_size) > 1


class TransposedConvolution(Convolution):
    axes = (-1, -2)

    @property
    def is_padded(self):
        return math.prod(self.inner.kernel_size) > 1 or math.prod(self.inner.strides) > 1


class SeparableConvolution(Convolution):
    """A depthwise convolution followed by a 1x1 convolution: together they act as one kernel."""

    kernel_name = "pointwise_kernel"
    can_merge = False
    num_kernels = 2

    @property
    def _multiplier(self):
        return self.inner.depth_multiplier

    @functools.cached_property
    def connections(self):
        depthwise = self.active("depthwise_kernel")
        depthwise = depthwise.reshape(-1, *depthwise.shape[-2:]).any(axis=0)
        return (depthwise[..., np.newaxis] & self._pointwise(self.active(self.kernel_name))).any(1)

    def without(self, rows):
        kernel = self.array(self.kernel_name)[0].copy()
        self._pointwise(kernel)[rows] = 0
        return self.inner.pointwise_kernel, kernel

    def sums_of(self, rows, values):
        depthwise, pointwise = (
            self.array(name)[0].astype("float64") for name in ("depthwise_kernel", self.kernel_name)
        )
        sums = depthwise.reshape(-1, *depthwise.shape[-2:]).sum(axis=0)[rows]
        return np.einsum("im,imo,i->o", sums, self._pointwise(pointwise)[rows], values)

    def _kernels(self, rows, columns, live_rows, live_columns):
        places = (rows[:, np.newaxis] * self._multiplier + np.arange(self._multiplier)).ravel()
        live_places = np.repeat(live_rows, self._multiplier)
        values = super()._kernels(places, columns, live_places, live_columns)
        depthwise, mask = self.array("depthwise_kernel")
        mask = None if mask is None else mask[..., rows, :]
        return {"depthwise_kernel": (depthwise[..., rows, :], mask), **values}

    def _pointwise(self, kernel):
        return kernel.reshape(-1, self._multiplier, kernel.shape[-1])


class Einsum(Kernel):
    """An EinsumDense that sums over the last axis of its inputs and adds a new last axis."""

    def __init__(self, layer):
        super().__init__(layer)
        equation = self.inner.equation.replace(" ", "").replace("...", "0")
        self._inputs, rest = equation.split(",")
        self._kernel, self._outputs = rest.split("->")

    def is_supported(self, rank):
        read, made = self._inputs[-1:], self._outputs[-1:]
        parts = (self._inputs, self._kernel, self._outputs)
        are_sums = read in self._kernel and read not in self._outputs
        return (
            super().is_supported(rank)
            and all(len(set(part)) == len(part) for part in parts)
            and are_sums
            and made in self._kernel
            and made not in self._inputs
        )

    @property
    def axes(self):
        return self._kernel.index(self._inputs[-1]), self._kernel.index(self._outputs[-1])

    _has_bias = property(lambda self: self.inner.bias_axes is not None)

    def sums_of(self, rows, values):
        kernel, _ = self.array("kernel")
        kernel = np.take(kernel, rows, axis=self.axes[0]).astype("float64")
        letters = self._letters
        sums = np.einsum(f"{self._kernel},{self._inputs[-1]}->{letters}", kernel, values)
        sizes = dict(zip(letters, sums.shape, strict=True))
        after = self._outputs[self._outputs.index(letters[0]) :]
        return sums.reshape([sizes.get(letter, 1) for letter in after])

    @property
    def _letters(self):
        """The axes of the outputs that come from the kernel."""
        return "".join(letter for letter in self._outputs if letter in self._kernel)

    def _changes(self, columns, biases):
        *sizes, _ = np.atleast_1d(np.array(self.inner.get_config()["output_shape"], object))
        axes = self.inner.bias_axes or ""
        if biases is not None and (not axes or biases.shape != tuple(self.inner.bias.shape)):
            axes = "".join(each for each in self._outputs if each in axes + self._letters)
        return {"output_shape": (*sizes, len(columns)), "bias_axes": axes or None}


class Embedding(Kernel):
    """An embedding: its units are the columns of a table, and it reads no units."""

    size = "output_dim"
    kernel_name = "embeddings"
    _has_bias = False

    @property
    def connections(self):
        return np.zeros((0, self.num_units), bool)

    def constants(self):
        """The values of units that are the same for all tokens, NaN for other units."""
        table, _ = self.array("embeddings")
        return np.where((table == table[:1]).all(axis=0), table[0], np.nan)

    def smaller(self, rows, columns, live_rows, live_columns, constants, stand_in=None):
        table, mask = self.array("embeddings")
        mask = None if mask is None else mask[:, columns]
        return self.copy(output_dim=len(columns)), {"embeddings": (table[:, columns], mask)}


class Unitwise(_Kind):
    """A layer with weights for each unit, or for each block of units.

    Attributes:
        block: Integer, how many input units must be kept or removed together.
    """

    block = 1
    names = ()

    def made_of(self, inputs):
        """For each output unit, the entry of `inputs` for the input unit that it comes from."""
        return inputs

    def is_constant(self, is_given):
        """Which output units are constant, given which input units are; boolean arrays."""
        return is_given

    def smaller(self, rows, columns):
        """Makes a smaller layer and the values to `fill` it with; see `Kernel.smaller`."""
        values = {}
        for name, axis, chosen in self._weights(rows, columns):
            if getattr(self.inner, name, None) is not None:
                value, mask = self.array(name)
                mask = None if mask is None else np.take(mask, chosen, axis)
                values[name] = np.take(value, chosen, axis), mask
        return self.copy(**self._changes(rows)), values

    def _weights(self, rows, columns):
        """`(name, axis, places)` of each weight."""
        return [(name, -1, columns) for name in self.names]

    def _changes(self, rows):
        return {}

    def _is_scaled(self, name="gamma"):
        scale = getattr(self.inner, name, None)
        return True if scale is None else keras.ops.convert_to_numpy(scale) != 0


class BatchNormalization(Unitwise):
    names = ("gamma", "beta", "moving_mean", "moving_variance")

    def is_supported(self, rank):
        return self.inner.axis in (-1, rank - 1)

    def is_constant(self, is_given):
        return is_given | ~np.broadcast_to(self._is_scaled(), is_given.shape)


class GroupNormalization(Unitwise):
    """Each group is normalised by itself, so whole groups can be removed."""

    names = ("gamma", "beta")

    def is_supported(self, rank):
        return self.inner.axis in (-1, rank - 1)

    @property
    def num_groups(self):
        return self._num_units if self.inner.groups == -1 else self.inner.groups

    @property
    def _num_units(self):
        weight = self.inner.gamma if self.inner.scale else self.inner.beta
        return weight.shape[-1]

    @property
    def block(self):
        return self._num_units // self.num_groups

    def is_constant(self, is_given):
        whole = is_given.reshape(-1, self.block).all(axis=1)
        return np.repeat(whole, self.block) | ~np.broadcast_to(self._is_scaled(), is_given.shape)

    def _changes(self, rows):
        return {"groups": -1 if self.inner.groups == -1 else len(rows) // self.block}


class PReLU(Unitwise):
    names = ("alpha",)

    def is_supported(self, rank):
        return rank - 1 not in (self.inner.shared_axes or [])


class DepthwiseConvolution(Unitwise):
    def made_of(self, inputs):
        return np.repeat(inputs, self.inner.depth_multiplier)

    def is_constant(self, is_given):
        active = self.active("kernel")
        is_used = active.reshape(-1, active.shape[-2] * active.shape[-1]).any(axis=0)
        return self.made_of(is_given) | ~is_used

    def _weights(self, rows, columns):
        return [("kernel", -2, rows), ("bias", -1, columns)]


class GroupedConvolution(Unitwise):
    """Whole groups of filters can be removed, together with their inputs."""

    @property
    def block(self):
        return self.inner.kernel.shape[-2]

    def made_of(self, inputs):
        return np.repeat(inputs[:: self.block], self._group_size)

    @property
    def _group_size(self):
        return self.inner.filters // self.inner.groups

    def is_constant(self, is_given):
        whole = np.repeat(is_given.reshape(-1, self.block).all(axis=1), self._group_size)
        active = self.active("kernel")
        return whole | ~active.reshape(-1, active.shape[-1]).any(axis=0)

    def _weights(self, rows, columns):
        return [("kernel", -1, columns), ("bias", -1, columns)]

    def _changes(self, rows):
        num_groups = len(rows) // self.block
        return {"groups": num_groups, "filters": num_groups * self._group_size}


class FeatureNormalization(Unitwise):
    """`Normalization` with the mean and variance of each feature that `adapt` computed."""

    names = ("adapt_mean", "adapt_variance")

    def is_supported(self, rank):
        is_last = tuple(self.inner.axis) in ((-1,), (rank - 1,))
        return is_last and self.inner.input_mean is None


_KINDS = {
    keras.layers.Dense: Kernel,
    keras.layers.EinsumDense: Einsum,
    keras.layers.Conv1D: Convolution,
    keras.layers.Conv2D: Convolution,
    keras.layers.Conv3D: Convolution,
    keras.layers.Conv1DTranspose: TransposedConvolution,
    keras.layers.Conv2DTranspose: TransposedConvolution,
    keras.layers.Conv3DTranspose: TransposedConvolution,
    keras.layers.SeparableConv1D: SeparableConvolution,
    keras.layers.SeparableConv2D: SeparableConvolution,
    keras.layers.DepthwiseConv1D: DepthwiseConvolution,
    keras.layers.DepthwiseConv2D: DepthwiseConvolution,
    keras.layers.Embedding: Embedding,
    keras.layers.BatchNormalization: BatchNormalization,
    keras.layers.GroupNormalization: GroupNormalization,
    keras.layers.Normalization: FeatureNormalization,
    keras.layers.PReLU: PReLU,
}
