"""Finds the layers that an argument such as `dense_layers` names.

An entry is the name of a layer or of a nested model around it; the whole path of a kernel; a
compiled regular expression, which is searched in the paths of kernels; a layer; a class of layers;
or a predicate (a function of a layer that returns a boolean). All layers inside a named layer are
included.
"""

import re

import keras

from rigl_tf.checks import check_sparsity


class Selection:
    """The layers that an argument names.

    Args:
        argument: The name of the argument, for error messages.
        layers: Its value: an entry as described at the top of this module, or a list of entries.
    """

    def __init__(self, argument, layers):
        is_list = isinstance(layers, (list, tuple, set, frozenset))
        self._argument = argument
        self._layers = list(layers) if is_list else [layers]
        for each in self._layers:
            _check_entry(argument, each)
        self._waiting = [each for each in self._layers if not _is_predicate(each)]
        self._seen = _Names()

    def selects(self, layers, weight=None):
        """Whether an entry fits a weight, or one of the layers around it (outermost first)."""
        self._seen.add(layers, weight)
        met = [each for each in self._layers if _is_meant(each, layers, weight)]
        # By identity, because a layer may define `==` in any way.
        self._waiting = [each for each in self._waiting if not any(each is one for one in met)]
        return bool(met)

    def check_all_met(self):
        """Raises a `ValueError` for entries that no layer or weight has fitted."""
        if self._waiting:
            raise ValueError(
                f"`{self._argument}` must be {self._seen}. "
                f"Received: {[_shown(each) for each in self._waiting]}"
            )


class Shares:
    """The sparsities of kernels by a dictionary `{layer: sparsity}`.

    Kernels that no key names stay dense. If several keys name a kernel, the first one counts.
    """

    def __init__(self, sparsity):
        if not sparsity:
            raise ValueError(
                "A dictionary `sparsity` must name the layers to make sparse. "
                f"Received: sparsity={sparsity!r}"
            )
        for each, share in sparsity.items():
            _check_entry("sparsity", each)
            check_sparsity(share, f"sparsity[{_shown(each)!r}]")
        self._entries = list(sparsity.items())
        self._waiting = [each for each, _ in self._entries]
        self._seen = _Names()
        self._chosen = {}
        self._refused = {}

    def selects(self, layers, weight):
        """Whether a key names this weight, which can be sparse; the first such key counts."""
        self._seen.add(layers, weight)
        for each, share in self._entries:
            if _is_meant(each, layers, weight):
                self._waiting = [other for other in self._waiting if other is not each]
                # By its id alone: a weight would be kept that a CSR kernel replaces.
                self._chosen[id(weight)] = float(share)
                return True
        return False

    def refuse(self, layers, weight, reason):
        """Remembers that a weight stays dense for this reason, for error messages."""
        if any(_is_meant(each, layers, weight) for each, _ in self._entries):
            self._refused[weight.path] = reason

    def of(self, weight):
        """The sparsity of a weight that was selected."""
        return self._chosen[id(weight)]

    def check_all_met(self):
        """Raises a `ValueError` for keys that have selected no kernel."""
        if self._waiting:
            raise ValueError(
                "Each key of `sparsity` must name a kernel that can be sparse and that no earlier "
                f"key names; keys must be {self._seen}. {self._advice()}"
                f"Received: {[_shown(each) for each in self._waiting]}"
            )

    def _advice(self):
        if not self._refused:
            return ""
        refused = [f"{path} ({reason})" for path, reason in self._refused.items()]
        return f"To make these sparse, name their layers in `sparse_layers`, too: {refused}. "


class _Names:
    """All names that were possible, for error messages."""

    def __init__(self):
        self._layers = {}
        self._paths = {}

    def add(self, layers, weight):
        self._layers.update(dict.fromkeys(layer.name for layer in layers))
        if weight is not None and len(weight.shape) >= 2:
            self._paths[weight.path] = None

    def __str__(self):
        return (
            f"names of layers with weights, {list(self._layers)}, classes of these, or regular "
            f"expressions that are found in the path of a weight, {list(self._paths)}"
        )


def _check_entry(argument, each):
    is_class = isinstance(each, type)
    is_known = isinstance(each, (str, re.Pattern, keras.layers.Layer)) or callable(each)
    if not is_known or (is_class and not issubclass(each, keras.layers.Layer)):
        raise ValueError(
            f"`{argument}` must be names of layers, compiled regular expressions, layers, classes "
            f"of layers or predicates of a layer. Received: {each!r}"
        )


def _is_predicate(each):
    return not isinstance(each, (str, re.Pattern, keras.layers.Layer, type))


def _is_meant(each, layers, weight):
    """Whether an entry fits one of the layers around a weight, or its path."""
    if isinstance(each, str):
        return any(layer.name == each for layer in layers) or each in _paths(layers, weight)
    if isinstance(each, re.Pattern):
        return any(each.search(path) for path in _paths(layers, weight))
    if isinstance(each, type):
        return any(isinstance(layer, each) for layer in layers)
    if isinstance(each, keras.layers.Layer):
        return any(layer is each for layer in layers)
    return any(each(layer) for layer in layers if not isinstance(layer, keras.Model))


def _paths(layers, weight):
    """The path of a weight, and a path made of the names of the layers around it.

    They differ after a model was saved and loaded: the first one then lacks nested models.
    """
    if weight is None:
        return ()
    inside = layers[1:] if isinstance(layers[0], keras.Model) else layers
    return weight.path, "/".join([*(layer.name for layer in inside), weight.name])


def _shown(each):
    if isinstance(each, re.Pattern):
        return each.pattern
    if isinstance(each, type):
        return each.__name__
    return each.name if isinstance(each, keras.layers.Layer) else each
