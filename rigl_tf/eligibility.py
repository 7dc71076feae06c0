"""Which weights of a layer can be sparse, and how a user overrides that."""

import re

import keras

from rigl_tf.layers import layers_of_weights
from rigl_tf.masks import mask_of

# Weights of two and more dimensions that are no connections between units, by parts of their name.
_DENSE_BY_NAME = {
    "lora_kernel": "LoRA adapter",
    "lora_embeddings": "LoRA adapter",
    "bias": "bias",
    "gamma": "normalisation",
    "beta": "normalisation",
    "embed": "embedding",
    "depthwise_kernel": "depthwise",
}

# Built-in layers whose weights are none either, of whatever shape.
_NORMALISATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)

# What `sparse_layers` can make sparse.
_OPTIONAL = ("embedding", "depthwise")

# Built-in layers with kernels, for layers that are not built yet.
_WITH_KERNELS = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    keras.layers.RNN,
    keras.layers.SimpleRNNCell,
    keras.layers.GRUCell,
    keras.layers.LSTMCell,
    keras.layers.StackedRNNCells,
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)
_OPTIONAL_LAYERS = (
    keras.layers.Embedding,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)


def dense_reason(layer, weight):
    """Why a weight of a layer stays dense by the rule, `None` if it can be sparse.

    Sparse can be the trainable weights of two and more dimensions, except biases, the scale and
    offset of normalisations, the slopes of activations, LoRA adapters, embeddings, and depthwise
    kernels (which connect each channel with itself only, and hold few weights).
    """
    if len(weight.shape) < 2:
        return "fewer than two dimensions"
    for part, reason in _DENSE_BY_NAME.items():
        if part in weight.name:
            return reason
    if isinstance(layer, keras.layers.PReLU):
        return "activation"
    if isinstance(layer, _NORMALISATIONS):
        return "normalisation"
    if isinstance(layer, _OPTIONAL_LAYERS):
        return "embedding" if isinstance(layer, keras.layers.Embedding) else "depthwise"
    return None if weight.trainable else "not trainable"


class Choice:
    """A user's choice of kernels: the rule of `dense_reason`, and the exceptions from it.

    Args:
        dense_layers: Layers that stay dense: a name, a compiled regular expression, a predicate
            of a layer, or a list of these.
        sparse_layers: Layers whose embeddings and depthwise kernels are sparse too; likewise.
    """

    def __init__(self, dense_layers=(), sparse_layers=()):
        self._dense = _Selection("dense_layers", dense_layers)
        self._sparse = _Selection("sparse_layers", sparse_layers)

    def select(self, layer, containers=()):
        """For each of `layer.weights`, whether it is to be sparse.

        Args:
            layer: A built layer.
            containers: The models that the layer is in.
        """
        return [
            self._is_sparse(weight, (*containers, *inner))
            for weight, inner in layers_of_weights(layer)
        ]

    def _is_sparse(self, weight, layers):
        # Both are asked, so that each remembers what it met.
        is_sparse = self._sparse.selects(layers, weight)
        is_dense = self._dense.selects(layers, weight)
        reason = dense_reason(layers[-1], weight)
        # A weight that has a mask belongs to another wrapper.
        if is_dense or mask_of(weight) is not None or not weight.trainable:
            return False
        if not all(layer.trainable for layer in layers):
            return False
        return reason is None or (is_sparse and reason in _OPTIONAL and len(weight.shape) >= 2)

    def may_have_kernels(self, layer, containers=()):
        """Whether a layer that is not built yet may get such kernels when it is."""
        if self._dense.selects((*containers, layer)) or not layer.trainable:
            return False
        if isinstance(layer, (keras.layers.Wrapper, keras.layers.Bidirectional)):
            inner = getattr(layer, "forward_layer", None) or layer.layer
            return self.may_have_kernels(inner, (*containers, layer))
        if isinstance(layer, _OPTIONAL_LAYERS):
            return self._sparse.selects((*containers, layer))
        if type(layer).__module__.partition(".")[0] == "keras":
            return isinstance(layer, _WITH_KERNELS)
        # A user's layer makes weights in `build`, or in the layers that it holds.
        return not isinstance(layer, keras.layers.InputLayer)

    def check_all_met(self):
        """Raises a `ValueError` for a name or pattern that no layer had: a typing error."""
        self._dense.check_all_met()
        self._sparse.check_all_met()


class _Selection:
    """The layers that an argument stands for."""

    def __init__(self, argument, layers):
        is_list = isinstance(layers, (list, tuple, set, frozenset))
        self._argument = argument
        self._layers = list(layers) if is_list else [layers]
        for each in self._layers:
            is_known = isinstance(each, (str, re.Pattern)) or callable(each)
            if not is_known or isinstance(each, keras.layers.Layer):
                raise ValueError(
                    f"`{argument}` must be names of layers, compiled regular expressions or "
                    f"predicates of a layer. Received: {each!r}"
                )
        self._waiting = [each for each in self._layers if not callable(each)]
        self._seen = {}

    def selects(self, layers, weight=None):
        """Whether one of the layers around a weight, from the outside in, is meant."""
        self._seen.update(dict.fromkeys(layer.name for layer in layers))
        met = [each for each in self._layers if self._matches(each, layers, weight)]
        self._waiting = [each for each in self._waiting if each not in met]
        return bool(met)

    def _matches(self, each, layers, weight):
        if isinstance(each, str):
            return any(layer.name == each for layer in layers)
        if isinstance(each, re.Pattern):
            return weight is not None and each.search(weight.path) is not None
        return any(each(layer) for layer in layers if not isinstance(layer, keras.Model))

    def check_all_met(self):
        if self._waiting:
            raise ValueError(
                f"`{self._argument}` must be names of layers of the model, {list(self._seen)}, or "
                "regular expressions that are found in the path of a weight. "
                f"Received: {[getattr(each, 'pattern', each) for each in self._waiting]}"
            )
