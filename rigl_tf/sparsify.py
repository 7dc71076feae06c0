"""From a dense Keras model to a sparse one, and back to plain Keras layers."""

import functools
from numbers import Integral

import keras

from rigl_tf import distributions, masks
from rigl_tf.eligibility import Choice
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
    seed=0,
):
    """Makes a sparse model out of a dense one.

    Every layer with kernels is put inside a `SparseWrapper`. Kernels are the trainable weights of
    two and more dimensions, except biases, the scale and offset of normalisations, embeddings and
    depthwise kernels. The masks are random, with exact counts. `rigl_tf.sparsity_summary` lists
    what was done.

    A Sequential or Functional model is not changed: the result is a copy with its weights, nested
    models and all. A model that is not built yet gets its masks when it is. A *subclassed* model
    that is not built is changed in place: the layers that its attributes hold are wrapped, and the
    result is the model itself. One that is built is copied by `from_config`, then wrapped.

    Args:
        model: A `keras.Model`.
        sparsity: Share of zeros over all wrapped kernels, in `[0, 1)`.
        distribution: How the kernels share the sparsity: `"uniform"`, `"erdos_renyi"`, `"erk"`,
            or a callable `fn(shapes, sparsity) -> {path: sparsity}`, see `rigl_tf.distributions`.
        dense_layers: Layers that stay dense, and are no part of `sparsity`: a layer's name (or a
            nested model's), a compiled regular expression that is searched in the paths of
            kernels, a predicate that gets a layer, or a list of these. What is inside a layer
            goes with it.
        sparse_layers: Layers whose embeddings or depthwise kernels become sparse too; given like
            `dense_layers`, which have the last word.
        from_zeros: Whether the model is sparse already: the masks are `True` where its weights are
            not zero, and `sparsity` and `distribution` are left out.
        seed: Integer. The masks are a function of it, of each kernel's index and of its shape.

    Returns:
        An uncompiled model of the same structure, layer names, kernel paths and weights.

    Raises:
        ValueError: If an argument is out of its range, the model has wrapped layers already or no
            kernel, or cannot be copied.

    Example:

    >>> dense = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> sparse = sparsify(dense, sparsity=0.9)
    >>> int((sparse.layers[0].layer.kernel.numpy() == 0).sum())
    7056
    """
    _check_arguments(model, sparsity, distribution, from_zeros, seed)
    allocation = _Allocation(distribution, sparsity, seed)
    choice = Choice(dense_layers, sparse_layers)
    if is_clonable(model):
        chosen = _choose(model, choice)
        allocation.expect(chosen, choice)
        wrap = functools.partial(_wrap, chosen=chosen, allocation=allocation)
        sparse = _copy(model, exchange=wrap)
    else:
        sparse = copy_of_subclassed(model, "sparsify") if model.built else model
        chosen = _choose(sparse, choice)
        allocation.expect(chosen, choice)
        wrap = functools.partial(_wrap, chosen=chosen, allocation=allocation)
        exchange_in_place(sparse, functools.cache(lambda layer: wrap(layer, layer)))
        if sparse is not model:
            build_like(sparse, model)
    if from_zeros:
        allocation.take_zeros()
    for kernel in masks.sparse_kernels(sparse).values():
        masks.apply_mask(kernel)
    return sparse


def strip(model):
    """A model of plain Keras layers that predicts what the sparse model predicts.

    The zeros are in the kernels; masks and wrappers are gone, so the model can be saved and loaded
    without `rigl_tf`.

    Args:
        model: A built `keras.Model`. It is not changed. Without sparse layers, the result is a
            copy. Of a subclassed model another one is made by `from_config`.

    Returns:
        A new, uncompiled model of the same structure and layer names.

    Raises:
        ValueError: If the model is not built, or cannot be copied.
    """
    _check_model(model, "strip")
    if not model.built:
        raise ValueError(f"`strip` needs a built model. Received: model={model.name!r}, not built")
    for kernel in masks.sparse_kernels(model).values():
        masks.apply_mask(kernel)
    if is_clonable(model):
        return _copy(model, exchange=lambda layer, copy: copy)
    plain = copy_of_subclassed(model, "strip")
    exchange_in_place(plain, functools.cache(_inner))
    build_like(plain, model)
    return plain


class _Allocation:
    """Shares the sparsity out once the last of the wrapped layers is built.

    If training starts before that, the layers that are built share it; others get the overall
    sparsity when they are built.
    """

    def __init__(self, distribution, sparsity, seed):
        self._distribution = distribution
        self._sparsity = 0.0 if sparsity is None else sparsity
        self._seed = seed
        self._built = []
        self._is_shared_out = False

    def expect(self, chosen, choice):
        """`chosen` layers will be built; names in `choice` that no layer had are errors."""
        self._num_layers = len(chosen)
        self._choice = choice

    def add(self, wrapper, choices):
        """Called by a wrapper when it is built, with a `_MaskChoice` for each of its kernels."""
        self._built.append((wrapper, choices))
        if self._is_shared_out:
            for index, choice in enumerate(choices):
                choice.choose(self._sparsity, (self._seed, len(self._built), index))
            wrapper.keep([self._sparsity] * len(choices), self._seed)
        elif len(self._built) == self._num_layers:
            self.share_out()

    def share_out(self):
        """Decides on the sparsity of all kernels that there are."""
        if self._is_shared_out:
            return
        self._is_shared_out = True
        self._choice.check_all_met()
        choices = {id(choice.kernel): choice for _, choices in self._built for choice in choices}
        kernels = masks.by_path(choice.kernel for choice in choices.values())
        if not kernels:
            raise ValueError(_NO_KERNEL)
        shapes = {path: tuple(kernel.shape) for path, kernel in kernels.items()}
        shares = distributions.allocate(self._distribution, shapes, self._sparsity).values()
        for index, (choice, share) in enumerate(zip(choices.values(), shares, strict=True)):
            choice.choose(share, (self._seed, index))
        self._keep(shares)

    def take_zeros(self):
        """Masks of what is not zero, in all kernels that there are."""
        kernels = [choice.kernel for _, choices in self._built for choice in choices]
        values = [kernel.numpy() != 0 for kernel in kernels]
        for kernel, mask in zip(kernels, values, strict=True):
            if not mask.any():
                raise ValueError(
                    "With `from_zeros=True` every kernel must have a weight that is not zero: name "
                    f"its layer in `dense_layers`. Received: {kernel.path!r}, all zeros"
                )
        for kernel, mask in zip(kernels, values, strict=True):
            masks.assign(kernel, mask)
        self._keep([1 - mask.mean() for mask in values])

    def _keep(self, shares):
        shares = iter(shares)
        for wrapper, choices in self._built:
            wrapper.keep([float(next(shares)) for _ in choices], self._seed)


_NO_KERNEL = (
    "`sparsify` needs a model with a layer whose kernel can be sparse: a trainable weight of two "
    "or more dimensions that is no bias, normalisation, embedding or depthwise kernel. "
)


def _check_model(model, caller):
    if not isinstance(model, keras.Model):
        raise ValueError(f"`{caller}` takes a `keras.Model`. Received: {model!r}")


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
    if not isinstance(seed, Integral):
        raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")
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
        raise ValueError(f"{_NO_KERNEL}Received: model={model.name!r} with layers {kinds}")
    return chosen


def _wrap(layer, copy, chosen, allocation):
    """What takes the place of a layer: its copy, wrapped if the layer is chosen."""
    if id(layer) not in chosen:
        return copy
    wrapper = SparseWrapper(copy)
    wrapper.allocate_later(chosen[id(layer)], allocation.add, allocation.share_out)
    return wrapper


def _copy(model, exchange):
    """A copy of a Sequential or Functional model, weights and all, with layers exchanged.

    Args:
        model: The model.
        exchange: Gets a layer and its copy, returns what to put in its place in the new model.
    """
    pairs = []

    def exchange_copy(layer):
        inner = _inner(layer)
        copy = copy_of_layer(inner)
        pairs.append((inner, copy))
        return exchange(layer, copy)

    new = rebuild(model, exchange_copy)
    for layer, copy in pairs:
        copy_state(layer, copy)
    return new


def _inner(layer):
    return layer.layer if isinstance(layer, SparseWrapper) else layer
