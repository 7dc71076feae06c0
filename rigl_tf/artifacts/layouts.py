"""Finds out which weights of a file are which kernels of the model."""

import itertools
import math
import re

import numpy as np

from rigl_tf.walk import all_layers


def matched(kernels, operations):
    """Finds the operations that multiply by each kernel, by the positions of the zeros.

    Converters rename weights, transpose them, scale them (if a normalisation follows) and round
    them. But the zeros stay zeros. A kernel may also be cut along its last axis, such as that of a
    recurrent layer into its gates.

    Args:
        kernels: Dictionary `{path: array}` in the layout of Keras.
        operations: The `Operation`s of a file.

    Returns:
        Dictionary `{path: list of operations}`. A kernel that is not found has an empty list.
    """
    groups = {}
    for operation in operations:
        if operation.weights is not None:
            groups.setdefault(operation.weights.index, []).append(operation)
    found = {path: [] for path in kernels}
    # The sparsest kernel first: it is the least likely to match other weights by chance.
    for path in sorted(kernels, key=lambda path: np.count_nonzero(kernels[path])):
        mask = np.asarray(kernels[path]) != 0
        best, agreement = None, 0.5
        for index, group in groups.items():
            weights = group[0].weights
            score = _agreement(mask, weights) if math.prod(weights.shape) == mask.size else 0.0
            if score > agreement:
                best, agreement = index, score
            if score == 1:
                break
        found[path] = groups.pop(best, [])
    for path in kernels:
        found[path] = found[path] or _parts(np.asarray(kernels[path]) != 0, groups)
    return found


def _parts(mask, groups):
    """The operations whose weights together are the kernel, cut along its last axis; or `[]`."""
    found, start = [], 0
    while start < mask.shape[-1]:
        best, agreement, length = None, 0.5, 0
        for index, group in groups.items():
            weights = group[0].weights
            width, rest = divmod(math.prod(weights.shape), math.prod(mask.shape[:-1]))
            if rest or not 0 < width <= mask.shape[-1] - start or index in found:
                continue
            score = _agreement(mask[..., start : start + width], weights)
            if score > agreement:
                best, agreement, length = index, score, width
        if best is None:
            return []
        found.append(best)
        start += length
    return [operation for index in found for operation in groups.pop(index)]


def namer(model, operations):
    """Makes a function that returns the name of an operation's layer.

    Args:
        model: The model.
        operations: The `Operation`s of its file.

    Returns:
        Function of an `Operation`. If the layer is not known, it returns the kind of operation.
    """
    weights = {each.path: each.numpy() for each in model.weights if len(each.shape) > 1}
    uses = matched(weights, operations)
    owners = {id(each): path for path, found in uses.items() for each in found}
    layer_names = {layer.name for layer in all_layers(model)}

    def name(operation):
        if id(operation) in owners:
            # Paths begin with the name of the model in a Sequential, but not in a Functional model.
            return owners[id(operation)].rsplit("/", 1)[0].removeprefix(f"{model.name}/")
        # If the converter merged operations it joins their names. The first one is at the end.
        for place in reversed(operation.outputs[0].name.split(";")):
            scopes = place.split("/")
            # TensorFlow adds a number to names of scopes that it has seen before: to all or none.
            if scopes[0] != model.name:
                scopes = [re.sub(r"_\d+$", "", scope) for scope in scopes]
            known = [scope for scope in scopes[1:] if scope in layer_names]
            if known:
                return known[-1]
        return operation.name

    return name


def _agreement(mask, weights):
    """Number of places that are active in both, divided by the number active in at least one."""
    active = np.asarray(weights.array != 0)
    return max(
        (
            np.count_nonzero(active & each) / max(1, np.count_nonzero(active | each))
            for each in _layouts(mask, active.shape)
        ),
        default=0.0,
    )


def _layouts(mask, shape):
    """The mask in each order of its axes that gives this shape."""
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
