"""From a dense Keras model to a sparse one, and back to plain Keras layers."""

import collections
import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import distributions, initializers, masks, structures
from rigl_tf._types import Distribution, Layers
from rigl_tf.checks import check_integers, check_keras_3
from rigl_tf.layers import summary
from rigl_tf.layers.building import build_by_call
from rigl_tf.layers.eligibility import Choice
from rigl_tf.layers.first_masks import NO_KERNEL, Allocation
from rigl_tf.layers.storage import check_execution
from rigl_tf.layers.wrapper import SparseWrapper
from rigl_tf.transforms.rebuild import is_clonable, leaves, with_layers
from rigl_tf.walk import all_layers, unbuilt


def sparsify(
    model: keras.Model,
    sparsity: float | Mapping[Any, float] | None = None,
    distribution: Distribution = "erk",
    *,
    dense_layers: Layers = (),
    sparse_layers: Layers = (),
    from_zeros: bool = False,
    initializer: Callable[..., Any] | None = None,
    structure: structures.Structure | None = None,
    execution: str = "masked",
    seed: int = 0,
) -> keras.Model:
    """Makes a sparse model out of a dense one.

    Every layer with kernels is put inside a `SparseWrapper`. Kernels are the trainable weights of
    two and more dimensions, except biases, the scale and offset of normalisations, the slopes of
    PReLU, embeddings, depthwise kernels, and what its name or shape shows to be a vector, a
    position, a token or a learned query. The masks are random, with exact counts.
    `rigl_tf.sparsity_summary` lists what was done.

    The sparse model is made of the very layers of the given one, so the two share their weights:
    train, save and export the sparse one, and make the dense one twice (or
    `keras.models.clone_model` it before) if you need it as well. The result is a new model around
    the same layers, nested models and all. Only a *subclassed* model, and a Sequential one that
    does not know its inputs yet, is changed in place: the layers in its attributes, in lists and
    dictionaries too, are wrapped, and the result is the model itself. What is not built yet gets
    its masks when it is, also what a subclassed model makes in `build` or in its first call.

    Args:
        model: A `keras.Model`.
        sparsity: Share of zeros over all wrapped kernels, in `[0, 1)`; or a dictionary
            `{layers: share}`, with keys as in `dense_layers`, that gives each kernel its own. What
            it does not name stays dense; where several keys name a kernel, the first one counts;
            `distribution` is left out.
        distribution: How the kernels share the sparsity: `"uniform"`, `"erdos_renyi"`, `"erk"`,
            `"str_resnet50"`, or a callable `fn(shapes, sparsity) -> {path: sparsity}`, see
            `rigl_tf.distributions`.
        dense_layers: Layers that stay dense, and are no part of `sparsity`: a layer's name (or a
            nested model's), the whole path of a kernel, a compiled regular expression that is
            searched in the paths of kernels, a layer, a class of layers, a predicate that gets a
            layer, or a list of these. What is inside a layer goes with it.
        sparse_layers: Layers of which also those weights become sparse that the rule takes for no
            kernels: embeddings, depthwise kernels, positions, tokens, learned queries. Given like
            `dense_layers`, which have the last word.
        from_zeros: Whether the model is sparse already: the masks are `True` where its weights are
            not zero, and `sparsity` and `distribution` are left out.
        initializer: `None`, or what gives the sparse kernels new values by their masks: see
            `rigl_tf.initializers`. Biases and dense weights stay as they are.
        structure: What is active or inactive together, a value of `rigl_tf.structures`:
            `Block((4, 1))`, `NM(2, 4)`, `ConstantFanIn()`, `Channels()`. `None`: single weights.
            The sparsity of each kernel is rounded to whole units. With `NM` it is given by that,
            so leave `sparsity` out. Such kernels are always stored with their zeros.
        execution: How the kernels are stored and multiplied, a string:

            - `"masked"`: as dense kernels with zeros. Works everywhere, and is never faster than
              dense;
            - `"csr"`: only the active values, and where they are ("compressed sparse rows"). Time
              and memory of a step follow the active weights. For Dense, Conv1D to Conv3D, and
              EinsumDense that is a product of matrices (as those in MultiHeadAttention), on CPUs,
              without XLA; other kernels stay masked, and the summary says why;
            - `"auto"`: `"csr"` where that is faster: on CPUs, kernels that are 80 % sparse and not
              small (for convolutions: if a weight meets many pixels).
        seed: Integer. The masks are a function of it, of each kernel's index and of its shape; so
            are the values that `initializer` draws.

    Returns:
        An uncompiled model of the same structure, with the same names and paths.

    Raises:
        ValueError: If an argument is out of its range, the model's layers are sparse already, it
            has LoRA or no kernel, or one that does not have the structure, or was not made in the
            scope of the strategy.

    Example:

    >>> dense = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> sparse = sparsify(dense, sparsity=0.9)
    >>> int((sparse.layers[0].layer.kernel.numpy() == 0).sum())
    7056
    """
    structure = structures.get(structure)
    if sparsity is None and structure is not None and not from_zeros:
        sparsity = structure.sparsity
    _check_arguments(model, sparsity, distribution, from_zeros, seed)
    check_execution(execution)
    if initializer is not None:
        initializers.check(initializer)
    choice = Choice(dense_layers, sparse_layers, sparsity)
    # A Sequential model may say that it is built, though Keras could not build its layers.
    has_weights = model.built and bool(model.weights)
    with _scope(model):
        chosen = _choose(model, choice)
        allocation = Allocation(
            distribution,
            sparsity or 0.0,
            seed,
            choice,
            initializer,
            "masked" if has_weights else execution,
        )
        allocation.expect(len(chosen))
        parts = [each for each in _models_in(model) if not each.built]
        try:
            with allocation.held():
                wrapping = functools.partial(_wrapping, allocation=allocation, structure=structure)
                sparse = with_layers(model, wrapping(chosen), in_place=True)
            for part in parts:
                _wrap_later(part, sparse, choice, allocation, wrapping)
            if model.built:
                _take_built(sparse)
            if has_weights:
                allocation.settle()
            if from_zeros:
                allocation.take_zeros()
            if has_weights:
                use_execution(sparse, execution)
        except Exception:
            _undo(model)
            raise
    if not isinstance(sparsity, Mapping):
        if has_weights:
            _tell_coverage(sparse)
        else:
            allocation.on_shared_out = functools.partial(_tell_coverage, sparse)
    forget_training(model)
    if not is_clonable(sparse):
        sparse.compiled = False
    # Keras's own wants the masks among the weights.
    vars(sparse)["set_weights"] = functools.partial(masks.set_weights, sparse)
    return sparse


def strip(model: keras.Model) -> keras.Model:
    """A model of plain Keras layers around the layers of the sparse model.

    It predicts what the sparse model predicts, and shares its weights (of layers with CSR kernels
    it has copies). The zeros are in the kernels; masks and wrappers are gone, so the model can be
    saved and loaded without `rigl_tf`. Nothing in the sparse model is changed.

    Args:
        model: A built `keras.Model`. Of a subclassed model the result is a twin: another model of
            its class with the same attributes.

    Returns:
        An uncompiled model of the same structure and layer names.

    Raises:
        ValueError: If the model is not built, or has LoRA.
    """
    _check_model(model, "strip")
    if not model.built:
        raise ValueError(f"`strip` needs a built model. Received: model={model.name!r}, not built")
    return with_layers(model, _plain)


def _check_model(model, caller):
    check_keras_3(model=model)
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
    elif not isinstance(sparsity, Mapping):  # a `Choice` checks that
        distributions.check_sparsity(sparsity)
    distributions.get(distribution)
    check_integers(seed=seed)
    wrapped = any(isinstance(layer, SparseWrapper) for layer, _ in leaves(model))
    if wrapped or any(masks.kernel_of(weight) is not None for weight in model.weights):
        raise ValueError(
            "`sparsify` takes a dense model, and the layers of this one are sparse already: a "
            "sparse model shares the layers of the model that it was made of. Make the dense model "
            "anew for each sparse one (or `keras.models.clone_model` before the first), or change "
            f"the masks with `rigl_tf.set_masks`. Received: model={model.name!r}"
        )


def _scope(model):
    """The scope of the strategy under which a model was made.

    Raises:
        ValueError: If it is another one than that of the caller.
    """
    made = {getattr(each.value, "distribute_strategy", None) for each in model.variables}
    current = tf.distribute.get_strategy()
    # The variables of one device know nothing of their strategy.
    mirrors = tf.distribute.has_strategy() and not isinstance(
        current, tf.distribute.OneDeviceStrategy
    )
    if mirrors and made - {current}:
        raise ValueError(
            "Under a strategy the model must be made in its scope, as everywhere in Keras. "
            f"Received: model={model.name!r}, made outside of `strategy.scope()`"
        )
    strategy = next(iter(made - {None}), None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _choose(model, choice):
    """As `_chosen`; a `ValueError` if it is known that there is none."""
    chosen = _chosen(model, choice)
    if not chosen and (model.built or is_clonable(model)):
        choice.check_all_met()
        kinds = sorted({type(layer).__name__ for layer, _ in leaves(model)})
        raise ValueError(
            f"{NO_KERNEL}{choice.advice()}Received: model={model.name!r} with layers {kinds}"
        )
    return chosen


def _chosen(model, choice):
    """The layers to wrap: `{id: fn}`, where `fn(built layer)` tells which weights are sparse."""
    chosen, taken = {}, set()
    for layer, containers in leaves(model):
        if isinstance(layer, SparseWrapper):
            continue
        # Keras takes a layer for built that is called by another one, whatever is inside of it.
        if not layer.built or (unbuilt(layer) and not layer.weights):
            if choice.may_have_kernels(layer, containers):
                chosen[id(layer)] = functools.partial(choice.select, containers=containers)
            continue
        # A kernel that several layers hold gets its mask in the first.
        selected = [
            is_chosen and id(weight) not in taken
            for weight, is_chosen in zip(
                layer.weights, choice.select(layer, containers), strict=True
            )
        ]
        if any(selected):
            taken.update(
                id(weight) for weight, each in zip(layer.weights, selected, strict=True) if each
            )
            chosen[id(layer)] = lambda _, selected=selected: selected
    return chosen


def _wrapping(chosen, allocation, structure):
    """What takes the place of a layer: a function that puts those in `chosen` in a wrapper."""

    def wrap(layer):
        if id(layer) not in chosen:
            return layer
        # `Allocation` gives it the right seed and sparsity.
        wrapper = SparseWrapper(layer, 0.0, seed=0, structure=structure)
        wrapper.leave_masks_to(allocation, chosen[id(layer)])
        return wrapper

    return wrap


def _take_built(model):
    """Gives masks to wrappers that no call builds, as their layers were built before."""
    for layer, _ in leaves(model):
        if isinstance(layer, SparseWrapper) and layer.layer.built and not layer.built:
            layer.take_built()


def use_execution(model, execution):
    """Stores the sparse kernels of a model as an execution wants it, those that can be."""
    layers = all_layers(model)
    held = [
        id(value)
        for layer in layers
        for value in vars(layer).values()
        if isinstance(value, keras.Variable)
    ]
    tied = {each for each, number in collections.Counter(held).items() if number > 1}
    for layer in layers:
        if isinstance(layer, SparseWrapper):
            layer.use_execution(execution, tied)


def _undo(model):
    """Makes the layers of a model, which were dense, dense again."""
    for kernel in model.weights:
        if masks.mask_of(kernel) is not None:
            masks.unlink(kernel)
    for part in _models_in(model):
        for name in ("call", "build"):
            hook = vars(part).get(name)
            if hasattr(hook, "undo"):
                hook.undo()
    with_layers(model, _inner, in_place=True)


def _models_in(model):
    """A model and those in it, each once."""
    return [each for each in all_layers(model) if isinstance(each, keras.Model)]


def _wrap_later(part, model, choice, allocation, wrapping):
    """Wraps what a subclassed model, a part of `model` or itself, makes in `build` or in a call.

    That is its first call, before it computes anything. A Sequential model makes no layers, but the
    sparsity is shared out when all of them are built.
    """
    build = part.build
    if is_clonable(part):

        @functools.wraps(build)
        def build_all(*args, **kwargs):
            vars(part)["build"] = build
            with allocation.held():
                build(*args, **kwargs)
                _take_built(part)

        vars(build_all)["undo"] = functools.partial(vars(part).update, build=build)
        vars(part)["build"] = build_all
        return
    if part is not model:
        allocation.hold()  # until it is known what is in this part

    def wrap_new():
        new = {id(layer) for layer, _ in leaves(part) if not isinstance(layer, SparseWrapper)}
        chosen = {key: value for key, value in _chosen(model, choice).items() if key in new}
        allocation.expect(len(chosen))
        with_layers(part, wrapping(chosen), in_place=True)
        _take_built(part)

    @functools.wraps(build)
    def first_build(*args, **kwargs):
        vars(part)["build"] = build
        # `fit` may build the model while it traces its step: variables belong outside of that.
        with tf.init_scope(), allocation.held():
            build(*args, **kwargs)
            wrap_new()

    @functools.wraps(part.call)
    def first_call(*args, **kwargs):
        del vars(part)["call"]
        with tf.init_scope(), allocation.held():
            build_by_call(part.call, args, kwargs)
            if part is not model:
                allocation.release()
            wrap_new()
        return part.call(*args, **kwargs)

    vars(first_build)["undo"] = functools.partial(vars(part).update, build=build)
    vars(first_call)["undo"] = functools.partial(vars(part).pop, "call")
    vars(part).update(build=first_build, call=first_call)


def _tell_coverage(model):
    """Warns if the sparsity is a share of less than a user may think."""
    told = summary.coverage(model)
    if told.is_surprising:
        warnings.warn(str(told), stacklevel=3)


def forget_training(model):
    """Lets a model that was in use trace its steps anew: they know nothing of the masks."""
    for name in ("train_function", "test_function", "predict_function"):
        setattr(model, name, None)


def _inner(layer):
    return layer.layer if isinstance(layer, SparseWrapper) else layer


def _plain(layer):
    """The layer in a wrapper; if it computes with CSR kernels, a copy that does not."""
    is_csr = isinstance(layer, SparseWrapper) and layer.has_csr
    return _inner(layer.masked_copy() if is_csr else layer)
