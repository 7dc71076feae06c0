"""From a dense Keras model to a sparse one, and back to plain Keras layers."""

import contextlib
from numbers import Integral

import keras
import tensorflow as tf

from rigl_tf import distributions, masks
from rigl_tf.wrapper import SparseWrapper, eligible_kernels

# Layers whose kernels can be told to be eligible before they are built.
_KNOWN_LAYERS = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)

# Models with known structure; a Functional model is a `keras.Function` of its inputs.
_CLONABLE = (keras.Sequential, keras.Function)


def sparsify(model, sparsity, distribution="erk", *, dense_layers=(), seed=0):
    """Makes a sparse model out of a dense one.

    Every layer with eligible kernels (Dense, Conv1D/2D/3D and their transposes) is put inside a
    `SparseWrapper`; biases, normalisations, embeddings and depthwise kernels stay dense. The
    masks are random, with exact counts. `rigl_tf.sparsity_summary` lists what was done.

    Args:
        model: A Sequential or Functional `keras.Model`, nested ones and pretrained weights
            included. It is not changed. One that is not built yet gets its masks when the sparse
            model is built.
        sparsity: Share of zeros over all wrapped kernels, in `[0, 1)`.
        distribution: How the kernels share the sparsity: `"uniform"`, `"erdos_renyi"`, `"erk"`,
            or a callable `fn(shapes, sparsity) -> {path: sparsity}`, see `rigl_tf.distributions`.
        dense_layers: Names of layers that stay dense. They are no part of `sparsity`.
        seed: Integer. The masks are a function of it, of each kernel's index and of its shape.

    Returns:
        A new, uncompiled model of the same structure, layer names, kernel paths and weights.

    Raises:
        ValueError: If an argument is out of its range, the model is sparse already, is neither
            Sequential nor Functional, or has no eligible kernel.

    Example:

    >>> dense = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> sparse = sparsify(dense, sparsity=0.9)
    >>> int((sparse.layers[0].layer.kernel.numpy() == 0).sum())
    7056
    """
    _check_clonable(model, "sparsify")
    distributions.check_sparsity(sparsity)
    distributions.get(distribution)
    if not isinstance(seed, Integral):
        raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")
    layers = list(_leaves(model))
    if any(isinstance(layer, SparseWrapper) for layer in layers):
        raise ValueError(
            "`sparsify` takes a dense model: this one is sparse already. Change its masks with "
            f"`rigl_tf.set_masks`. Received: model={model.name!r}"
        )
    chosen = _choose(layers, dense_layers)
    if not chosen:
        raise ValueError(
            "`sparsify` needs a model with a layer whose kernel can be sparse (Dense, Conv1D/2D/3D "
            f"or their transposes). Received: model={model.name!r} with layers "
            f"{sorted({type(layer).__name__ for layer in layers})}"
        )
    allocation = _Allocation(distribution, sparsity, seed, len(chosen))
    chosen_ids = {id(layer) for layer in chosen}

    def replace(layer):
        copy = layer.__class__.from_config(layer.get_config())
        if id(layer) not in chosen_ids:
            return copy, copy
        wrapper = SparseWrapper(copy)
        wrapper.allocate_later(allocation.add)
        return wrapper, copy

    sparse = _rebuild(model, replace, original=lambda layer: layer)
    for kernel in masks.sparse_kernels(sparse).values():
        masks.apply_mask(kernel)
    return sparse


def strip(model):
    """A model of plain Keras layers that predicts what the sparse model predicts.

    The zeros are in the kernels; masks and wrappers are gone, so the model can be saved and loaded
    without `rigl_tf`.

    Args:
        model: A Sequential or Functional `keras.Model`, built. It is not changed. Without sparse
            layers, the result is a copy.

    Returns:
        A new, uncompiled model of the same structure and layer names.

    Raises:
        ValueError: If the model is neither Sequential nor Functional, or is not built.
    """
    _check_clonable(model, "strip")
    if not model.built:
        raise ValueError(f"`strip` needs a built model. Received: model={model.name!r}, not built")

    def inner(layer):
        return layer.layer if isinstance(layer, SparseWrapper) else layer

    def replace(layer):
        layer = inner(layer)
        copy = layer.__class__.from_config(layer.get_config())
        return copy, copy

    for kernel in masks.sparse_kernels(model).values():
        masks.apply_mask(kernel)
    return _rebuild(model, replace, original=inner)


class _Allocation:
    """Shares the sparsity out once the last of the wrapped layers is built."""

    def __init__(self, distribution, sparsity, seed, num_layers):
        self.distribution = distribution
        self.sparsity = sparsity
        self.seed = seed
        self.num_layers = num_layers
        self.layers = []

    def add(self, wrapper, choices):
        self.layers.append((wrapper, choices))
        if len(self.layers) == self.num_layers:
            self._allocate()

    def _allocate(self):
        choices = [choice for _, choices in self.layers for choice in choices]
        shapes = {choice.kernel.path: tuple(choice.kernel.shape) for choice in choices}
        sparsities = distributions.allocate(self.distribution, shapes, self.sparsity)
        for index, choice in enumerate(choices):
            choice.choose(sparsities[choice.kernel.path], (self.seed, index))
        # A layer keeps its share (the lowest of several kernels), so that a copy made from its
        # config alone is sparse too.
        for wrapper, choices in self.layers:
            wrapper.sparsity = min(sparsities[choice.kernel.path] for choice in choices)
            wrapper.seed = self.seed


def _check_clonable(model, caller):
    if not isinstance(model, keras.Model):
        raise ValueError(f"`{caller}` takes a `keras.Model`. Received: {model!r}")
    if not isinstance(model, _CLONABLE):
        raise ValueError(
            f"`{caller}` takes Sequential and Functional models, whose layers can be exchanged. In "
            "a subclassed model wrap the layers by hand with `rigl_tf.SparseWrapper`. "
            f"Received: model={model.name!r} of class {type(model).__name__}"
        )


def _leaves(model):
    """The layers of a model, with those of nested models in their place, each one once."""
    seen = set()

    def walk(model):
        for layer in model.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if isinstance(layer, _CLONABLE):
                yield from walk(layer)
            else:
                yield layer

    return walk(model)


def _choose(layers, dense_layers):
    """The layers to wrap."""
    dense_layers = {dense_layers} if isinstance(dense_layers, str) else set(dense_layers)
    unknown = dense_layers - {layer.name for layer in layers}
    if unknown:
        raise ValueError(
            "`dense_layers` must be names of layers of the model: "
            f"{[layer.name for layer in layers]}. Received: {sorted(unknown)}"
        )
    return [
        layer
        for layer in layers
        if layer.name not in dense_layers
        and isinstance(layer, _KNOWN_LAYERS)
        and (not layer.built or eligible_kernels(layer))
    ]


def _rebuild(model, replace, original):
    """A copy of a model with each layer exchanged; weights copied, uncompiled.

    `replace(layer)` gives the layer to put in its place, and the one that takes the weights of
    `original(layer)`.
    """
    pairs = []

    def clone(layer):
        new_layer, takes_weights = replace(layer)
        pairs.append((original(layer), takes_weights))
        return new_layer

    with _uncompiled(model):
        copy = keras.models.clone_model(
            model, input_tensors=_new_inputs(model), clone_function=clone, recursive=True
        )
    for old_layer, new_layer in pairs:
        if old_layer.built and old_layer.weights:
            new_layer.set_weights(old_layer.get_weights())
    return copy


def _new_inputs(model):
    """Inputs like those of a Functional model; `clone_model` forgets names it was not given."""
    if isinstance(model, keras.Sequential):
        return None
    names = {
        id(layer.output): layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    }
    return tf.nest.map_structure(
        lambda tensor: keras.Input(
            batch_shape=tensor.shape, dtype=tensor.dtype, name=names.get(id(tensor), tensor.name)
        ),
        model.input,
    )


@contextlib.contextmanager
def _uncompiled(model):
    """Hides that a model is compiled: `clone_model` would compile its copy, optimizer and all."""
    compiled = model.compiled
    model.compiled = False
    try:
        yield
    finally:
        model.compiled = compiled
