"""Decides by the names of a weight and of its layer whether the weight is a kernel.

A kernel connects units. Other weights with two or more dimensions are vectors that a network adds,
attends to or looks up: positions, tokens, learned queries, codebooks. Keras does not tell them
apart, but their names usually do.
"""

import re

# A weight with one of these words is a kernel: `query_kernel`, `token_proj`.
_KERNEL = {"kernel", "proj", "projection", "matrix"}
_POSITION = {"pos", "position", "positions", "positional", "pe", "ape", "rpe"}
# A weight with one of these words is a kernel, too: `W_query`. But `rel_pos_w` is a position.
_WEIGHT = {"w", "weight", "weights"}

_OTHERS = {
    "token": {"token", "tokens", "cls", "prompt", "prompts"},
    "query": {"query", "queries", "latent", "latents", "inducing", "probe"},
    "embedding": {"emb", "embs"},
    "codebook": {"codebook", "codebooks", "prototypes", "centroids"},
    "table": {"table", "tables"},
}

# Words in the class or name of a user's layer. Its weights may have any name.
_LAYERS = {
    "position": re.compile(r"\b(pos|position|positional) (emb|enc)"),
    "token": re.compile(r"\btokens?$"),
    "codebook": re.compile(r"\b(codebook|(vector )?quanti[sz]er)\b"),
}

# The name that Keras gives a weight without a name.
_AUTOMATIC = re.compile(r"variable(_\d+)?")


def meaning(layer, weight):
    """What a weight is by its name and its layer, or `None` if it is a kernel.

    Args:
        layer: The layer that created the weight. If the weight has no name, the name of the
            layer's attribute counts.
        weight: A `keras.Variable` with two or more dimensions.

    Returns:
        `"position"`, `"token"`, `"query"`, `"embedding"`, `"codebook"` or `"table"`; `"vector"` if
        at most one dimension is above 1 and the weight is not named a kernel; or `None`.

    Example:

    >>> class Encoder(keras.layers.Layer):
    ...     def build(self, shape):
    ...         self.cls_token = self.add_weight(shape=(2, 8))
    ...         self.query = self.add_weight(shape=(8, 8), name="query_kernel")
    >>> layer = Encoder()
    >>> layer.build((None, 8))
    >>> meaning(layer, layer.cls_token), meaning(layer, layer.query)
    ('token', None)
    """
    names = [weight.name]
    if _AUTOMATIC.fullmatch(weight.name):
        names = [name for name, value in vars(layer).items() if value is weight]
    words = {word for name in names for word in _words(name)}
    if words & _KERNEL:
        return None
    if words & _POSITION:
        return "position"
    is_called_weight = bool(words & _WEIGHT)
    if not is_called_weight and sum(dim > 1 for dim in weight.shape) <= 1:
        return "vector"
    for what, of_it in _OTHERS.items():
        if words & of_it and not is_called_weight:
            return what
    if type(layer).__module__.partition(".")[0] == "keras":
        return None
    called = [" ".join(_words(name)) for name in (type(layer).__name__, layer.name)]
    for what, pattern in _LAYERS.items():
        if any(pattern.search(name) for name in called):
            return what
    return None


def _words(name):
    """`"CLSToken_2"` -> `["cls", "token"]`."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.findall(r"[a-z]+", parts.lower())
