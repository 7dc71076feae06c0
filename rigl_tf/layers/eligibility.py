"""Decides which weights of a layer can be sparse; users can override it."""

from collections.abc import Mapping

import keras

from rigl_tf.layers.named import Selection, Shares
from rigl_tf.layers.weight_names import meaning
from rigl_tf.masks import mask_of
from rigl_tf.walk import layers_of_weights

# Weights with two or more dimensions that do not connect units, by a part of their name.
_DENSE_BY_NAME = {
    "lora_kernel": "LoRA adapter",
    "lora_embeddings": "LoRA adapter",
    "bias": "bias",
    "gamma": "normalisation",
    "beta": "normalisation",
}

# Built-in layers whose weights never connect units.
_NORMALISATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)

# Reasons that `sparse_layers` cannot override.
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
    """Why a weight of a layer stays dense by default, or `None` if it can be sparse.

    Trainable weights with two or more dimensions can be sparse. The exceptions are biases, scale
    and offset of normalisations, slopes of activations, LoRA adapters, embeddings, depthwise
    kernels (each channel is connected only with itself, and they hold few weights), and weights
    that are no kernels by their name or shape: positions, tokens, learned queries (see
    `rigl_tf.layers.weight_names`).
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
        # A state of the layer, such as the vector of a `SpectralNormalization`; or it is frozen.
        return meaning(layer, weight) or "not trainable" if layer.trainable else "frozen"
    if isinstance(layer, keras.layers.Embedding) or "embed" in weight.name:
        return "embedding"
    if isinstance(layer, _OPTIONAL_LAYERS) or "depthwise_kernel" in weight.name:
        return "depthwise"
    return meaning(layer, weight)


def reason_within(layers, weight):
    """`dense_reason` of a weight inside these layers, one of which may be frozen.

    In Keras the `trainable` of the weight itself counts. So a layer in a frozen model is trained if
    it was made trainable after the model was frozen, as in fine-tuning. Weights that a frozen layer
    creates when it is built are trainable, too; these count as frozen here.
    """
    reason = dense_reason(layers[-1], weight)
    inside = [layer for layer in layers[1:] if not isinstance(layer, keras.Model)]
    if reason in _FIRM or all(layer.trainable for layer in (layers[0], *inside)):
        return reason
    return "frozen"


class Choice:
    """A user's choice of kernels: the rule of `dense_reason`, and the exceptions to it.

    Args:
        dense_layers: Layers that stay dense, written as described in `rigl_tf.layers.named`.
        sparse_layers: Layers whose embeddings, depthwise kernels, positions and so on are sparse,
            too; written in the same way.
        sparsity: A dictionary `{layers: sparsity}` with keys written in the same way. Kernels that
            no key names stay dense; if several keys name a kernel, the first one counts. With any
            other value, a distribution decides the sparsity of the kernels.
    """

    def __init__(self, dense_layers=(), sparse_layers=(), sparsity=None):
        self._dense = Selection("dense_layers", dense_layers)
        self._sparse = Selection("sparse_layers", sparse_layers)
        self._shares = Shares(sparsity) if isinstance(sparsity, Mapping) else None
        self._reasons = {}

    def select(self, layer, containers=()):
        """For each of `layer.weights`, whether it becomes sparse.

        Args:
            layer: A built layer.
            containers: The models around the layer.
        """
        return [
            self._is_sparse(weight, (*containers, *inner))
            for weight, inner in layers_of_weights(layer)
        ]

    def _is_sparse(self, weight, layers):
        # Both are always called, because each remembers the layers that it has seen.
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
        """Whether a layer that is not built yet may get sparse kernels when it is built."""
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
        # A user's layer may create weights in `build`, or hold layers with weights.
        return not isinstance(layer, keras.layers.InputLayer)

    def sparsities(self, kernels):
        """The sparsity of each kernel by the dictionary `sparsity`, or `None` without a dictionary.

        Args:
            kernels: `{path: kernel}` of the kernels that `select` has selected.

        Returns:
            `{path: sparsity}` in the same order.
        """
        if self._shares is None:
            return None
        return {path: self._shares.of(kernel) for path, kernel in kernels.items()}

    def advice(self):
        """A sentence on what to do if nothing was selected, for error messages."""
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
            advice += f"These are frozen; set `trainable` of their layers first: {frozen}. "
        return advice

    def check_all_met(self):
        """Raises a `ValueError` for an entry that fits nothing in the model, such as a typo."""
        self._dense.check_all_met()
        self._sparse.check_all_met()
        if self._shares is not None:
            self._shares.check_all_met()
