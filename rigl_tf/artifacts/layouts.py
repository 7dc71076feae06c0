"""Finds the kernels of a model among the weights of a file."""

import itertools
import re

import numpy as np

from rigl_tf.walk import all_layers


def matched(kernels, operations):
    """The operations that multiply by each kernel, found by the places of its zeros.

    Converters rename weights, turn them around, scale them by a normalisation that follows, and
    round them; the zeros stay.

    Args:
        kernels: Dictionary `{path: array}` in the layout of Keras.
        operations: `Operation`s of a file.

    Returns:
        Dictionary `{path: list of operations}`; a kernel that is not found has an empty list.
    """
    groups = {}
    for operation in operations:
        if operation.weights is not None:
            groups.setdefault(operation.weights.index, []).append(operation)
    found = {path: [] for path in kernels}
    # The sparser a kernel, the less its zeros are those of another one by chance.
    for path in sorted(kernels, key=lambda path: np.count_nonzero(kernels[path])):
        mask = np.asarray(kernels[path]) != 0
        best, agreement = None, 0.5
        for index, group in groups.items():
            weights = group[0].weights
            score = _agreement(mask, weights) if np.prod(weights.shape) == mask.size else 0.0
            if score > agreement:
                best, agreement = index, score
            if score == 1:
                break
        found[path] = groups.pop(best, [])
    return found


def namer(model, operations):
    """A function that gives the name of an operation's layer.

    Args:
        model: The model.
        operations: `Operation`s of its file.

    Returns:
        Function of an `Operation`. Where the layer is not known, it gives the kind of operation.
    """
    weights = {each.path: each.numpy() for each in model.weights if len(each.shape) > 1}
    uses = matched(weights, operations)
    owners = {id(each): path for path, found in uses.items() for each in found}
    layer_names = {layer.name for layer in all_layers(model)}

    def name(operation):
        if id(operation) in owners:
            # The paths of a Sequential begin with its name, those of a Functional do not.
            return owners[id(operation)].rsplit("/", 1)[0].removeprefix(f"{model.name}/")
        # The converter joins what it merged, the first operation at the end.
        for place in reversed(operation.outputs[0].name.split(";")):
            scopes = place.split("/")
            # TensorFlow numbers scopes that it has seen before, all of them or none.
            if scopes[0] != model.name:
                scopes = [re.sub(r"_\d+$", "", scope) for scope in scopes]
            known = [scope for scope in scopes[1:] if scope in layer_names]
            if known:
                return known[-1]
        return operation.name

    return name


def _agreement(mask, weights):
    """The share of active places in common among all that are active in one of two."""
    active = np.asarray(weights.array != 0)
    return max(
        (
            np.count_nonzero(active & each) / max(1, np.count_nonzero(active | each))
            for each in _layouts(mask, active.shape)
        ),
        default=0.0,
    )


def _layouts(mask, shape):
    """A mask turned around in each way that gives a shape."""
    matrix = mask.reshape(-1, mask.shape[-1])
    sources = [mask, matrix] + ([mask.reshape(mask.shape[0], -1)] if mask.ndim > 2 else [])
    squeezed = tuple(size for size in shape if size != 1)
    seen = set()
    for source in sources:
        source = np.squeeze(source)
        for order in itertools.permutations(range(source.ndim)):
            turned = source.transpose(order)
            if turned.shape == squeezed and turned.tobytes() not in seen:
                seen.add(turned.tobytes())
                yield turned.reshape(shape)
