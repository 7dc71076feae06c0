"""What the names of a weight and of its layer say: is it a kernel, or something else?

A kernel connects units. Other weights of two and more dimensions are vectors that a network adds,
attends to or looks up: positions, tokens, learned queries, codebooks. Keras knows no difference,
but those who name weights do.
"""

import re

# A weight with one of these words is a kernel: `query_kernel`, `token_proj`.
_KERNEL = {"kernel", "proj", "projection", "matrix"}
_POSITION = {"pos", "position", "positions", "positional", "pe", "ape", "rpe"}
# So is one with these, `W_query`; but `rel_pos_w` is for the positions along a width.
_WEIGHT = {"w", "weight", "weights"}

_OTHERS = {
    "token": {"token", "tokens", "cls", "prompt", "prompts"},
    "query": {"query", "queries", "latent", "latents", "inducing", "probe"},
    "embedding": {"emb", "embs"},
    "codebook": {"codebook", "codebooks", "prototypes", "centroids"},
    "table": {"table", "tables"},
}

# The words of a user's class or of the name of such a layer, whose weights are called anything.
_LAYERS = {
    "position": re.compile(r"\b(pos|position|positional) (emb|enc)"),
    "token": re.compile(r"\btokens?$"),
    "codebook": re.compile(r"\b(codebook|(vector )?quanti[sz]er)\b"),
}

# What Keras calls a weight that was given no name.
_AUTOMATIC = re.compile(r"variable(_\d+)?")


def meaning(layer, weight):
    """What a weight is by the names, `None` if these say nothing else than that it is a kernel.

    Args:
        layer: The layer that made the weight. If the weight has no name, that of the layer's
            attribute counts.
        weight: A `keras.Variable` of two or more dimensions.

    Returns:
        `"position"`, `"token"`, `"query"`, `"embedding"`, `"codebook"`, `"table"`; `"vector"` if
        one dimension at most is above 1 and the weight is not called a kernel; or `None`.

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
