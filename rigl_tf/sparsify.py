"""From a dense Keras model to a sparse one, and back to plain Keras layers."""

import functools

import keras

from rigl_tf import distributions, initializers, masks
from rigl_tf.allocation import NO_KERNEL, Allocation
from rigl_tf.checks import check_integers
from rigl_tf.copies import check_tied
from rigl_tf.eligibility import Choice
from rigl_tf.layers import all_layers
from rigl_tf.rebuild import (
    build_like,
    copy_of_layer,
    copy_of_subclassed,
    copy_state,
    exchange_in_place,
    is_clonable,
    leaves,
    rebuild,
)
from rigl_tf.wrapper import SparseWrapper


def sparsify(
    model,
    sparsity=None,
    distribution="erk",
    *,
    dense_layers=(),
    sparse_layers=(),
    from_zeros=False,
    initializer=None,
    seed=0,
):
    """Makes a sparse model out of a dense one.

    Every layer with kernels is put inside a `SparseWrapper`. Kernels are the trainable weights of
    two and more dimensions, except biases, the scale and offset of normalisations, the slopes of
    PReLU, embeddings and depthwise kernels. The masks are random, with exact counts.
    `rigl_tf.sparsity_summary` lists what was done.

    A Sequential or Functional model is not changed: the result is a copy with its weights, nested
    models and all. A model that is not built yet gets its masks when it is. A *subclassed* model
    that is not built is changed in place: the layers that its attributes hold are wrapped, and the
    result is the model itself. One that is built is copied by `from_config`, then wrapped.

    Args:
        model: A `keras.Model`.
        sparsity: Share of zeros over all wrapped kernels, in `[0, 1)`.
        distribution: How the kernels share the sparsity: `"uniform"`, `"erdos_renyi"`, `"erk"`,
            `"str_resnet50"`, or a callable `fn(shapes, sparsity) -> {path: sparsity}`, see
            `rigl_tf.distributions`.
        dense_layers: Layers that stay dense, and are no part of `sparsity`: a layer's name (or a
            nested model's), a compiled regular expression that is searched in the paths of
            kernels, a predicate that gets a layer, or a list of these. What is inside a layer
            goes with it.
        sparse_layers: Layers whose embeddings or depthwise kernels become sparse too; given like
            `dense_layers`, which have the last word.
        from_zeros: Whether the model is sparse already: the masks are `True` where its weights are
            not zero, and `sparsity` and `distribution` are left out.
        initializer: `None`, or what gives the sparse kernels new values by their masks: see
            `rigl_tf.initializers`. Biases and dense weights stay as they are.
        seed: Integer. The masks are a function of it, of each kernel's index and of its shape; so
            are the values that `initializer` draws.

    Returns:
        An uncompiled model of the same structure, layer names and (without `initializer`) weights;
        in a Sequential or Functional model the paths of the kernels are the same, too, but for
        `keras.name_scope`s.

    Raises:
        ValueError: If an argument is out of its range, the model has wrapped layers already, LoRA
            or no kernel, or cannot be copied.

    Example:

    >>> dense = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> sparse = sparsify(dense, sparsity=0.9)
    >>> int((sparse.layers[0].layer.kernel.numpy() == 0).sum())
    7056
    """
    _check_arguments(model, sparsity, distribution, from_zeros, seed)
    if initializer is not None:
        initializers.check(initializer)
    choice = Choice(dense_layers, sparse_layers)
    is_copied_first = model.built and not is_clonable(model)
    dense = copy_of_subclassed(model, "sparsify") if is_copied_first else model
    chosen = _choose(model, choice)
    if is_copied_first:
        chosen = _chosen_in_copy(dense, model, chosen)
    allocation = Allocation(distribution, sparsity or 0.0, seed, choice, len(chosen), initializer)
    wrap = functools.partial(_wrap, chosen=chosen, allocation=allocation)
    if is_clonable(dense):
        sparse, pairs = _copy(dense, wrap)
        check_tied(pairs)
    else:
        sparse = dense
        exchange_in_place(sparse, functools.cache(lambda layer: wrap(layer, layer)))
    if is_copied_first:
        build_like(sparse, model)
        allocation.share_out()
    if from_zeros:
        allocation.take_zeros()
    for kernel in masks.sparse_kernels(sparse).values():
        masks.apply_mask(kernel)
    if initializer is not None and model.built:  # else it is done when it is built
        initializers.initialize(sparse, initializer, seed)
    return sparse


def strip(model):
    """A model of plain Keras layers that predicts what the sparse model predicts.

    The zeros are in the kernels; masks and wrappers are gone, so the model can be saved and loaded
    without `rigl_tf`. Only a layer of your own class whose constructor wraps layers keeps them so.

    Args:
        model: A built `keras.Model`. It is not changed. Without sparse layers, the result is a
            copy. Of a subclassed model another one is made by `from_config`.

    Returns:
        A new, uncompiled model of the same structure and layer names.

    Raises:
        ValueError: If the model is not built, has LoRA, or cannot be copied.
    """
    _check_model(model, "strip")
    if not model.built:
        raise ValueError(f"`strip` needs a built model. Received: model={model.name!r}, not built")
    for kernel in masks.sparse_kernels(model).values():
        masks.apply_mask(kernel)
    if is_clonable(model):
        return _copy(model, lambda layer, copy: copy, plain=True)[0]
    plain = copy_of_subclassed(model, "strip")
    exchange_in_place(plain, functools.cache(_plain))
    build_like(plain, model)
    return plain


def _check_model(model, caller):
    if not isinstance(model, keras.Model):
        raise ValueError(f"`{caller}` takes a `keras.Model`. Received: {model!r}")
    layers = [_inner(layer) for layer in all_layers(model)]
    with_lora = {each.name for each in layers if getattr(each, "lora_enabled", False)}
    if with_lora:
        raise ValueError(
            f"`{caller}` must be used without LoRA: put the merged kernels into a model that never "
            f"had it, before. Received: model={model.name!r} with LoRA in {sorted(with_lora)}"
        )


def _check_arguments(model, sparsity, distribution, from_zeros, seed):
    _check_model(model, "sparsify")
    if from_zeros:
        if sparsity is not None:
            raise ValueError(
                "With `from_zeros=True` the sparsity is that of the weights: leave `sparsity` out. "
                f"Received: sparsity={sparsity!r}"
            )
        if not model.built:
            raise ValueError(
                "`from_zeros=True` needs the weights: build the model before. "
                f"Received: model={model.name!r}, not built"
            )
    else:
        distributions.check_sparsity(sparsity)
    distributions.get(distribution)
    check_integers(seed=seed)
    wrapped = any(isinstance(layer, SparseWrapper) for layer, _ in leaves(model))
    if wrapped or masks.sparse_kernels(model):
        raise ValueError(
            "`sparsify` takes a dense model: this one is sparse already. Change its masks with "
            f"`rigl_tf.set_masks`. Received: model={model.name!r}"
        )


def _choose(model, choice):
    """The layers to wrap: `{id: fn}`, where `fn(built layer)` tells which weights are sparse.

    Raises:
        ValueError: If there is none.
    """
    chosen = {}
    for layer, containers in leaves(model):
        if not layer.built:
            if choice.may_have_kernels(layer, containers):
                chosen[id(layer)] = functools.partial(choice.select, containers=containers)
            continue
        selected = choice.select(layer, containers)
        if any(selected):
            # By position: a copy has other names inside, and forgets which of these are frozen.
            chosen[id(layer)] = lambda _, selected=selected: selected
    if not chosen:
        choice.check_all_met()
        kinds = sorted({type(layer).__name__ for layer, _ in leaves(model)})
        raise ValueError(f"{NO_KERNEL}Received: model={model.name!r} with layers {kinds}")
    return chosen


def _chosen_in_copy(copy, model, chosen):
    """What `_choose` returns for a subclassed model, for the layers of its copy, not yet built."""
    pairs = list(zip(leaves(model), leaves(copy), strict=False))
    if not any(id(layer) in chosen for (layer, _), _ in pairs):
        raise ValueError(
            "The constructor of a model that is copied must make its layers: in its copy, which "
            f"is not built yet, is none to wrap. Received: model={model.name!r} of class "
            f"{type(model).__name__}"
        )
    return {id(new): chosen[id(old)] for (old, _), (new, _) in pairs if id(old) in chosen}


def _wrap(layer, copy, chosen, allocation):
    """What takes the place of a layer: its copy, wrapped if the layer is chosen."""
    if id(layer) not in chosen:
        return copy
    wrapper = SparseWrapper(copy)
    wrapper.allocate_later(chosen[id(layer)], allocation.add, allocation.share_out)
    return wrapper


def _copy(model, exchange, plain=False):
    """A copy of a Sequential or Functional model, weights and all, with layers exchanged.

    Args:
        model: The model.
        exchange: Gets a layer and its copy, returns what to put in its place in the new model.
        plain: Whether the copies are made without the `SparseWrapper`s inside of layers.

    Returns:
        The copy, and a list of `(layer, its copy)`.
    """
    pairs = []

    def exchange_copy(layer):
        inner = _inner(layer)
        copy = copy_of_layer(inner, plain)
        if isinstance(inner, keras.layers.Layer):  # and no operation such as slicing
            pairs.append((inner, copy))
        return exchange(layer, copy)

    new = rebuild(model, exchange_copy)
    for layer, copy in pairs:
        copy_state(layer, copy)
    return new, pairs


def _plain(layer):
    """A layer that is not built, out of its wrapper and without wrappers inside."""
    inner = _inner(layer)
    is_plain = not any(isinstance(each, SparseWrapper) for each in all_layers(inner))
    return inner if is_plain else copy_of_layer(inner, plain=True)


def _inner(layer):
    return layer.layer if isinstance(layer, SparseWrapper) else layer
