"""Which weights of a layer can be sparse, and how a user overrides that."""

from collections.abc import Mapping

import keras

from rigl_tf.layers.named import Selection, Shares
from rigl_tf.layers.weight_names import meaning
from rigl_tf.masks import mask_of
from rigl_tf.walk import layers_of_weights

# Weights of two and more dimensions that are no connections between units, by parts of their name.
_DENSE_BY_NAME = {
    "lora_kernel": "LoRA adapter",
    "lora_embeddings": "LoRA adapter",
    "bias": "bias",
    "gamma": "normalisation",
    "beta": "normalisation",
}

# Built-in layers whose weights are none either, of whatever shape.
_NORMALISATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)

# Reasons that `sparse_layers` does not override.
_FIRM = ("fewer than two dimensions", *_DENSE_BY_NAME.values(), "activation")

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
    offset of normalisations, the slopes of activations, LoRA adapters, embeddings, depthwise
    kernels (which connect each channel with itself only, and hold few weights), and what is no
    kernel by its name or shape, see `rigl_tf.layers.weight_names`: positions, tokens, learned
    queries.
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
    if not weight.trainable:
        # What a layer keeps for itself, the vector of a `SpectralNormalization` say, or frozen.
        return meaning(layer, weight) or "not trainable" if layer.trainable else "frozen"
    if isinstance(layer, keras.layers.Embedding) or "embed" in weight.name:
        return "embedding"
    if isinstance(layer, _OPTIONAL_LAYERS) or "depthwise_kernel" in weight.name:
        return "depthwise"
    return meaning(layer, weight)


def reason_within(layers, weight):
    """`dense_reason` of a weight with these layers around it, one of which may be frozen.

    Keras trains what is trainable in itself: a layer in a frozen model, if it was set to be
    trainable after that, as in fine-tuning. It also trains what a frozen layer makes when it is
    built, which nobody wants.
    """
    reason = dense_reason(layers[-1], weight)
    inside = [layer for layer in layers[1:] if not isinstance(layer, keras.Model)]
    if reason in _FIRM or all(layer.trainable for layer in (layers[0], *inside)):
        return reason
    return "frozen"


class Choice:
    """A user's choice of kernels: the rule of `dense_reason`, and the exceptions from it.

    Args:
        dense_layers: Layers that stay dense, given as in `rigl_tf.layers.named`.
        sparse_layers: Layers of which also those weights are sparse that the rule takes for
            embeddings, depthwise kernels, positions and the like; likewise.
        sparsity: A dictionary `{layers, given likewise: sparsity}`: what it does not name stays
            dense; where several keys name a kernel, the first one counts. Anything else leaves
            the sparsity of kernels to a distribution.
    """

    def __init__(self, dense_layers=(), sparse_layers=(), sparsity=None):
        self._dense = Selection("dense_layers", dense_layers)
        self._sparse = Selection("sparse_layers", sparse_layers)
        self._shares = Shares(sparsity) if isinstance(sparsity, Mapping) else None
        self._reasons = {}

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
        # All are asked, so that each remembers what it met.
        is_sparse = self._sparse.selects(layers, weight)
        is_dense = self._dense.selects(layers, weight)
        reason = reason_within(layers, weight)
        if reason is not None:
            self._reasons[weight.path] = reason
        # A weight that has a mask belongs to another wrapper.
        if is_dense or mask_of(weight) is not None:
            return False
        if not weight.trainable or reason == "frozen" or reason in _FIRM:
            return False
        if reason is not None and not is_sparse:
            if self._shares is not None:
                self._shares.refuse(layers, weight, reason)
            return False
        return self._shares is None or self._shares.selects(layers, weight)

    def may_have_kernels(self, layer, containers=()):
        """Whether a layer that is not built yet may get such kernels when it is."""
        if self._dense.selects((*containers, layer)) or not layer.trainable:
            return False
        if isinstance(layer, (keras.layers.Wrapper, keras.layers.Bidirectional)):
            inner = getattr(layer, "forward_layer", None) or layer.layer
            return self.may_have_kernels(inner, (*containers, layer))
        if isinstance(layer, _OPTIONAL_LAYERS):
            is_sparse = self._sparse.selects((*containers, layer))
            is_embedding = isinstance(layer, keras.layers.Embedding)
            self._reasons[layer.name] = "embedding" if is_embedding else "depthwise"
            return is_sparse
        if type(layer).__module__.partition(".")[0] == "keras":
            return isinstance(layer, _WITH_KERNELS)
        # A user's layer makes weights in `build`, or in the layers that it holds.
        return not isinstance(layer, keras.layers.InputLayer)

    def sparsities(self, kernels):
        """The sparsity of each kernel by the dictionary `sparsity`, `None` if there is none.

        Args:
            kernels: `{path: kernel}`, kernels that `select` said are sparse.

        Returns:
            `{path: sparsity}` in the same order.
        """
        if self._shares is None:
            return None
        return {path: self._shares.of(kernel) for path, kernel in kernels.items()}

    def advice(self):
        """What to do if nothing was selected: which weights `sparse_layers` would make sparse."""
        left = [
            f"{path} ({reason})"
            for path, reason in self._reasons.items()
            if reason not in (*_FIRM, "frozen", "not trainable")
        ]
        frozen = [path for path, reason in self._reasons.items() if reason == "frozen"]
        advice = ""
        if left:
            advice += f"To make these sparse, name their layers in `sparse_layers`: {left}. "
        if frozen:
            advice += f"These are frozen, set `trainable` of their layers before: {frozen}. "
        return advice

    def check_all_met(self):
        """Raises a `ValueError` for an entry that fits nothing in the model: a typing error."""
        self._dense.check_all_met()
        self._sparse.check_all_met()
        if self._shares is not None:
            self._shares.check_all_met()
