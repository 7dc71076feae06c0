"""SparseWrapper: a Keras layer whose kernels are sparse."""

import math

import keras
import tensorflow as tf

from rigl_tf import distributions, masks, selection

# Weights of two and more dimensions that are no connections between units, by parts of their name.
_DENSE_BY_NAME = {
    "bias": "bias",
    "gamma": "normalisation",
    "beta": "normalisation",
    "embeddings": "embedding",
    "depthwise_kernel": "depthwise",
}


def dense_reason(layer, weight):
    """Why a weight of a layer cannot be sparse; `"not wrapped"` if it could be.

    Sparse can be the trainable weights of two and more dimensions, except biases, the scale and
    offset of normalisations, embeddings, and depthwise kernels (which connect each channel with
    itself only, and hold few weights).
    """
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        return "depthwise"
    for part, reason in _DENSE_BY_NAME.items():
        if part in weight.name:
            return reason
    if len(weight.shape) < 2:
        return "fewer than two dimensions"
    if not weight.trainable:
        return "not trainable"
    return "not wrapped"


def eligible_kernels(layer):
    """The weights of a built layer that can be sparse, as `{name within the layer: kernel}`."""
    prefix = f"{layer.path}/"
    return {
        weight.path.removeprefix(prefix): weight
        for weight in layer.trainable_weights
        if dense_reason(layer, weight) == "not wrapped"
    }


@keras.saving.register_keras_serializable(package="rigl_tf")
class SparseWrapper(keras.layers.Wrapper):
    """Makes the kernels of a layer sparse.

    The wrapped layer computes as ever: its kernel *is* the sparse kernel, with zeros where the
    mask is `False`. The wrapper only holds the masks. They change when an optimizer of `rigl_tf`
    or `rigl_tf.set_masks` changes them; any other optimizer keeps the zeros where they are.

    Args:
        layer: The `keras.layers.Layer` to wrap, built or not. See `eligible_kernels`.
        sparsity: Share of zeros, in `[0, 1)`, of each of the layer's kernels.
        seed: Integer. The masks are a function of it and of the kernel's index in the layer.
        name: String. Defaults to the layer's name, so that a sparse model has the same layer
            names as the dense one.

    Raises:
        ValueError: If `sparsity` is outside `[0, 1)`, or (when it is built) the layer has no
            kernel that can be sparse.

    Example:

    >>> layer = SparseWrapper(keras.layers.Dense(4), sparsity=0.75)
    >>> outputs = layer(np.ones((2, 8)))
    >>> int(np.count_nonzero(layer.layer.kernel))
    8
    """

    def __init__(self, layer, sparsity=0.0, seed=0, name=None, **kwargs):
        if isinstance(layer, SparseWrapper):
            raise ValueError(f"A layer can be wrapped only once. Received: layer={layer}")
        distributions.check_sparsity(sparsity)
        if isinstance(layer, keras.layers.Layer):
            name = name or layer.name
            kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, name=name, **kwargs)
        self.sparsity = sparsity
        self.seed = seed
        self.supports_masking = layer.supports_masking
        self._masks = {}
        self._on_build = None

    @property
    def kernel_masks(self):
        """`{kernel name: boolean mask variable}`; empty until the layer is built."""
        return dict(self._masks)

    @property
    def kernel_mask(self):
        """The mask variable of a layer with one kernel."""
        if len(self._masks) != 1:
            raise AttributeError(
                "`kernel_mask` is there for a built layer with one kernel; see `kernel_masks`. "
                f"Received: kernels={list(self._masks)}"
            )
        return next(iter(self._masks.values()))

    def build(self, input_shape=None):
        # A model may be built while `fit` traces its step: variables belong outside of that.
        with tf.init_scope():
            self._build(input_shape)

    def _build(self, input_shape):
        if not self.layer.built:
            # The kernel keeps the path that it has in the dense model: without the wrapper's name.
            parent = self.path.rpartition("/")[0]
            with keras.name_scope(self.layer.name, caller=self.layer, override_parent=parent):
                self.layer.build(input_shape)
            self.layer.built = True
        kernels = eligible_kernels(self.layer)
        if not kernels:
            raise ValueError(
                "A SparseWrapper needs a layer with a trainable kernel of two or more dimensions. "
                f"Received: layer={self.layer}"
            )
        choices = [_MaskChoice(kernel) for kernel in kernels.values()]
        for name, choice in zip(kernels, choices, strict=True):
            self._masks[name] = self.add_weight(
                shape=choice.kernel.shape,
                dtype="bool",
                initializer=choice,
                trainable=False,
                name=f"{name.replace('/', '_')}_mask",
            )
            masks.link(choice.kernel, self._masks[name])
        if self._on_build is not None:
            self._on_build(self, choices)
        else:
            for index, choice in enumerate(choices):
                choice.choose(self.sparsity, (self.seed, index))

    def allocate_later(self, on_build):
        """Leaves `sparsity`, `seed` and masks to `on_build(wrapper, a _MaskChoice per kernel)`."""
        self._on_build = on_build

    def call(self, inputs, *args, **kwargs):
        return self.layer(inputs, *args, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_output_shape(self, *args, **kwargs):
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self):
        if self._on_build is not None and not self.built:
            raise ValueError(
                "The sparsity of a layer is known when its model is built: build the model before "
                f"it is saved or cloned. Received: layer={self.name!r}, not built"
            )
        return {**super().get_config(), "sparsity": self.sparsity, "seed": self.seed}


class _MaskChoice:
    """The first mask of a kernel: random, of a sparsity that may be known later than the mask.

    It is the mask variable's initializer. A model that is built inside `fit` gets its variables
    only after all of its layers are built; then the sparsity is known when Keras asks for the
    mask, and the kernel, which comes before its mask, is there to be zeroed.
    """

    def __init__(self, kernel):
        self.kernel = kernel
        self._sparsity = None
        self._seed = None

    def choose(self, sparsity, seed):
        """Decides on a random mask with `floor(sparsity * size)` zeros."""
        self._sparsity = sparsity
        self._seed = seed
        if sparsity and _is_initialized(masks.mask_of(self.kernel)):
            masks.assign(self.kernel, self._mask())

    def __call__(self, shape, dtype=None):
        if not self._sparsity:
            return tf.ones(shape, tf.bool)
        mask = self._mask()
        if _is_initialized(self.kernel):
            self.kernel.assign(masks.masked(self.kernel, mask))
        return mask

    def _mask(self):
        size = math.prod(self.kernel.shape)
        num_active = size - distributions.num_zeros(size, self._sparsity)
        return selection.random_mask(self.kernel.shape, num_active, self._seed)


def _is_initialized(variable):
    """Whether a Keras variable has its value; until then Keras gives a tensor as a stand-in."""
    return isinstance(variable.value, tf.Variable)
