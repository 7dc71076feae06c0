"""Makes a sparse model out of a dense Keras model, and plain Keras layers out of a sparse one."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import distributions, initializers, masks, structures
from rigl_tf._types import Distribution, Layers
from rigl_tf.checks import check_booleans, check_keras_3, check_seed
from rigl_tf.layers import summary
from rigl_tf.layers.building import build_by_call
from rigl_tf.layers.eligibility import Choice
from rigl_tf.layers.first_masks import NO_KERNEL, FirstMasks
from rigl_tf.layers.storage import check_execution
from rigl_tf.layers.wrapper import SparseWrapper
from rigl_tf.transforms.configs import watch_config
from rigl_tf.transforms.rebuild import as_masked, is_clonable, leaves, with_layers
from rigl_tf.walk import all_layers, held_twice, unbuilt


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

    Every layer with kernels is put inside a `SparseWrapper`. A kernel is a trainable weight with
    two or more dimensions. These weights stay dense: biases, scale and offset of normalisations,
    slopes of PReLU, embeddings, depthwise kernels, and weights that are vectors, positions, tokens
    or learned queries by their name or shape. `rigl_tf.sparsity_summary` lists what is sparse, and
    why the rest is not.

    The masks are random, whatever the weights are, and the numbers of active connections are exact.
    So with a *trained* model, `sparsify(model, 0.9)` loses most of what the model has learned. To
    prune a trained model, use `sparsify(model, 0.0)`, which keeps all weights. Then train it with
    `rigl_tf.GradualPruning`, or call `rigl_tf.set_masks` with the masks of
    `rigl_tf.pruning.magnitude_masks`.

    The sparse model uses the layers of the given model, so both models share their weights. Train,
    save and export the sparse model. If you also need the dense model, build it a second time (or
    use `keras.models.clone_model` first).

    The result is a new model with the same layers; nested models are treated in the same way. Two
    kinds of models are changed in place instead, and returned: *subclassed* models, and Sequential
    models that do not know their input shape yet. In a subclassed model, layers in attributes,
    lists, tuples, sets and dictionaries are wrapped. Layers that are not built yet get their masks
    when they are built. So do layers that a subclassed model creates in `build` or in its first
    call. If a layer is still not built after the first call of the whole model, the sparsity is
    shared among the others, and this layer gets the overall sparsity later.

    Args:
        model: A `keras.Model`.
        sparsity: Share of zeros over all wrapped kernels, in `[0, 1)`. (With `"uniform"` it is the
            share in each kernel but the first, which stays dense.) Or a dictionary
            `{layers: share}` with a share for each kernel; its keys are written as in
            `dense_layers`. Kernels that no key names stay dense. If several keys name a kernel, the
            first one counts. With a dictionary, `distribution` is not used.
        distribution: How the kernels share the sparsity: `"uniform"`, `"erdos_renyi"`, `"erk"`,
            `"str_resnet50"`, or a callable `fn(shapes, sparsity) -> {path: sparsity}`. See
            `rigl_tf.distributions`.
        dense_layers: Layers that stay dense and do not count in `sparsity`. One of these, or a list
            of them: the name of a layer or nested model; the whole path of a kernel; a compiled
            regular expression, which is searched in the paths of the kernels; a layer; a class of
            layers; a function that takes a layer and returns whether it stays dense. All layers
            inside such a layer stay dense, too.
        sparse_layers: Layers whose embeddings, depthwise kernels, positions, tokens and learned
            queries become sparse, too. Written like `dense_layers`. If a layer is named in both,
            it stays dense.
        from_zeros: Boolean, whether the model already has zeros that must be kept. Then the masks
            are `True` where the weights are not zero, and `sparsity` and `distribution` are not
            used. If no weight is zero, there is a warning.
        initializer: `None`, or a function that gives the sparse kernels new values that fit their
            masks, see `rigl_tf.initializers`. Biases and dense weights stay as they are.
        structure: A value of `rigl_tf.structures` that says which weights are active or inactive
            together: `Block((4, 1))`, `NM(2, 4)`, `ConstantFanIn()` or `Channels()`. With `None`
            each weight stands alone. The sparsity of each kernel is rounded to whole units. `NM`
            sets the sparsity itself, so leave `sparsity` out. Kernels with a structure are always
            stored with their zeros.
        execution: String, how the kernels are stored and multiplied:

            - `"masked"`: as dense kernels with zeros. This works everywhere and is never faster
              than dense.
            - `"csr"`: only the active values and their places ("compressed sparse rows"). Time and
              memory of a step depend on the number of active weights. This works on CPUs, without
              XLA, for Dense, Conv1D to Conv3D, and for EinsumDense layers that are matrix products
              (such as those in MultiHeadAttention). Other kernels stay masked, and
              `rigl_tf.sparsity_summary` says why.
            - `"auto"`: `"csr"` where it is faster. This is on CPUs, where there is a C++ compiler,
              for kernels that are at least 80 % sparse: matrices of 131,072 weights, with 96 of
              them for each input and output; convolutions of 32 filters, with 64 weights for each
              channel. A saved model keeps what was chosen when it was built.
        seed: Integer. The masks depend on it, on the index of each kernel and on its shape. So do
            the values that `initializer` draws.

    Returns:
        An uncompiled model of the same structure, with the same names and paths.

    Raises:
        ValueError: If an argument is out of its range, the layers of the model are sparse already,
            the model has LoRA adapters or has no kernel, a kernel does not fit the structure, or
            the model was not made in the scope of the current strategy.

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
        first_masks = FirstMasks(
            distribution,
            sparsity or 0.0,
            seed,
            choice,
            initializer,
            "masked" if has_weights else execution,
        )
        first_masks.expect(len(chosen))
        parts = [each for each in models_in(model) if not each.built]
        try:
            with first_masks.held():
                wrapping = functools.partial(
                    _wrapping, first_masks=first_masks, structure=structure
                )
                sparse = with_layers(model, wrapping(chosen), in_place=True)
            for part in parts:
                _wrap_later(part, sparse, choice, first_masks, wrapping)
            if model.built:
                _take_built(sparse)
            if has_weights:
                first_masks.settle()
            if from_zeros:
                first_masks.take_zeros()
            if has_weights:
                use_execution(sparse, execution)
        except Exception:
            _undo(model)
            raise
    kernels = masks.kernels_of(sparse).values()
    if from_zeros and all(kernel.num_active == kernel.size for kernel in kernels):
        warnings.warn(
            "With `from_zeros=True` a connection is inactive where a weight is zero, and no weight "
            f"is: all connections are active. Received: model={model.name!r}, without zeros",
            stacklevel=2,
        )
    _tell_lost_outputs(sparse)
    if not isinstance(sparsity, Mapping):
        if has_weights:
            _tell_coverage(sparse)
        else:
            first_masks.on_shared_out = functools.partial(_tell_coverage, sparse)
    forget_training(model)
    if not is_clonable(sparse):
        sparse.compiled = False
    # The method of Keras needs the masks among the weights; here they may be missing.
    vars(sparse)["set_weights"] = functools.partial(masks.set_weights, sparse)
    for part in models_in(sparse):
        if type(part).__module__.partition(".")[0] != "keras":
            watch_config(part)
    return sparse


def strip(model: keras.Model) -> keras.Model:
    """Makes a model of plain Keras layers out of a sparse model.

    The result predicts the same as the sparse model and shares its weights (but CSR kernels, which
    are copied). The kernels still have their zeros, but masks and wrappers are gone. So the model
    can be saved and loaded without `rigl_tf`. The sparse model is not changed.

    Args:
        model: A built `keras.Model`. For a subclassed model, the result is another object of the
            same class with the same attributes.

    Returns:
        An uncompiled model with the same structure and layer names.

    Raises:
        ValueError: If the model is not built, or has LoRA adapters.

    Example:

    >>> dense = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> plain = strip(sparsify(dense, sparsity=0.9))
    >>> type(plain.layers[0]).__name__, int((plain.layers[0].kernel.numpy() == 0).sum())
    ('Dense', 7056)
    """
    check_built(model, "strip")
    return with_layers(as_masked(model), _inner)


def check_built(model: keras.Model, caller: str) -> None:
    """Raises a `ValueError`, with the name of the caller, if `strip` does not take a model."""
    _check_model(model, caller)
    # A model without `call`, which only has methods of its own, never counts as built.
    if not model.built and (not model.weights or unbuilt(model)):
        raise ValueError(
            f"`{caller}` needs a built model: call it on a batch first. "
            f"Received: model={model.name!r}, not built"
        )


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
    check_booleans(from_zeros=from_zeros)
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
    check_seed(seed)
    wrapped = any(isinstance(layer, SparseWrapper) for layer, _ in leaves(model))
    if wrapped or any(masks.kernel_of(weight) is not None for weight in model.weights):
        raise ValueError(
            "`sparsify` takes a dense model, and the layers of this one are sparse already: a "
            "sparse model shares the layers of the model that it was made of. Make the dense model "
            "anew for each sparse one (or `keras.models.clone_model` before the first), or change "
            "the masks with `rigl_tf.set_masks`. Around new layers of a model that is sparse, such "
            f"as a new head, put a `rigl_tf.SparseWrapper`. Received: model={model.name!r}"
        )


def _scope(model):
    """The scope of the strategy in which a model was made.

    Raises:
        ValueError: If the caller is in the scope of another strategy.
    """
    made = {getattr(each.value, "distribute_strategy", None) for each in model.variables}
    current = tf.distribute.get_strategy()
    # Variables of a one-device strategy do not say to which strategy they belong.
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
    """As `_chosen`, but raises a `ValueError` if the model can have no kernel."""
    chosen = _chosen(model, choice)
    if not chosen and (model.built or is_clonable(model)):
        choice.check_all_met()
        kinds = sorted({type(layer).__name__ for layer, _ in leaves(model)})
        raise ValueError(
            f"{NO_KERNEL}{choice.advice()}Received: model={model.name!r} with layers {kinds}"
        )
    return chosen


def _chosen(model, choice):
    """The layers to wrap: `{id: fn}`, where `fn(built layer)` says which weights are sparse."""
    chosen, taken = {}, set()
    for layer, containers in leaves(model):
        if isinstance(layer, SparseWrapper):
            continue
        # Keras marks a layer as built when another layer calls it, even if inner layers are not.
        if not layer.built or (unbuilt(layer) and not layer.weights):
            if choice.may_have_kernels(layer, containers):
                chosen[id(layer)] = functools.partial(choice.select, containers=containers)
            continue
        # If several layers hold a kernel, the first of them gets its mask.
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


def _wrapping(chosen, first_masks, structure):
    """A function of a layer that returns it, inside a wrapper if it is in `chosen`."""

    def wrap(layer):
        if id(layer) not in chosen:
            return layer
        # `FirstMasks` sets the right seed and sparsity later.
        wrapper = SparseWrapper(layer, 0.0, seed=0, structure=structure)
        wrapper.leave_masks_to(first_masks, chosen[id(layer)])
        return wrapper

    return wrap


def _take_built(model):
    """Gives masks to wrappers whose layers are built already, so that no call builds them."""
    for layer, _ in leaves(model):
        if isinstance(layer, SparseWrapper) and layer.layer.built and not layer.built:
            layer.take_built()


def use_execution(model, execution):
    """Stores the sparse kernels of a model for an `execution`, where that is possible."""
    tied = held_twice(model)
    for layer in all_layers(model):
        if isinstance(layer, SparseWrapper):
            layer.use_execution(execution, tied)


def _undo(model):
    """Makes the layers of a model dense again, after `sparsify` failed."""
    for kernel in model.weights:
        if masks.kernel_of(kernel) is not None:
            masks.unlink(kernel)
    for part in models_in(model):
        for name in ("call", "build"):
            hook = vars(part).get(name)
            if hasattr(hook, "undo"):
                hook.undo()
    with_layers(model, _inner, in_place=True)


def models_in(model):
    """A model and all models inside it, each once."""
    return [each for each in all_layers(model) if isinstance(each, keras.Model)]


def _wrap_later(part, model, choice, first_masks, wrapping):
    """Wraps the layers that a model creates later, in `build` or in its first call.

    `part` is `model` or a model inside it. The layers are wrapped before the first call computes
    anything. A Sequential model creates no layers, but the sparsity can be shared among the kernels
    only when all of its layers are built.
    """
    build = part.build
    if is_clonable(part):

        @functools.wraps(build)
        def build_all(*args, **kwargs):
            vars(part)["build"] = build
            with first_masks.held():
                build(*args, **kwargs)
                _take_built(part)
            if part is model:
                first_masks.share_out()

        vars(build_all)["undo"] = functools.partial(vars(part).update, build=build)
        vars(part)["build"] = build_all
        return
    if part is not model:
        first_masks.hold(part)  # until all layers of this part are known

    def wrap_new():
        new = {id(layer) for layer, _ in leaves(part) if not isinstance(layer, SparseWrapper)}
        chosen = {key: value for key, value in _chosen(model, choice).items() if key in new}
        first_masks.expect(len(chosen))
        with_layers(part, wrapping(chosen), in_place=True)
        _take_built(part)

    @functools.wraps(build)
    def first_build(*args, **kwargs):
        vars(part)["build"] = build
        # `fit` may build the model while it traces its step; variables must not be in that graph.
        with tf.init_scope(), first_masks.held():
            build(*args, **kwargs)
            wrap_new()

    @functools.wraps(part.call)
    def first_call(*args, **kwargs):
        del vars(part)["call"]
        try:
            with tf.init_scope(), first_masks.held():
                build_by_call(part.call, args, kwargs)
                if part is not model:
                    first_masks.release(part)
                wrap_new()
            if part is model:
                first_masks.check_any(model.name)
                with tf.init_scope():
                    first_masks.share_out()
        except Exception:
            vars(part)["call"] = first_call  # Keras may only warn of the first error
            raise
        return part.call(*args, **kwargs)

    vars(first_build)["undo"] = functools.partial(vars(part).update, build=build)
    vars(first_call)["undo"] = functools.partial(vars(part).pop, "call")
    vars(part).update(build=first_build, call=first_call)


def _tell_coverage(model):
    """Warns if the sparsity applies to fewer weights than a user may expect."""
    told = summary.coverage(model)
    if told.is_surprising:
        warnings.warn(str(told), stacklevel=3)


def _tell_lost_outputs(model):
    """Warns if whole channels of a model's last layer, which are its outputs, are inactive."""
    outputs = getattr(model, "outputs", None) if is_clonable(model) else None
    last = [tensor._keras_history.operation for tensor in outputs or ()]
    lost = {
        path: f"{(kernel.size - kernel.num_active) // kernel.units.unit_size} of {kernel.shape[-1]}"
        for layer in last
        if isinstance(layer, SparseWrapper) and type(layer.layer) is keras.layers.Dense
        for path, kernel in masks.kernels_of(layer).items()
        if kernel.units.structure == structures.Channels() and kernel.num_active < kernel.size
    }
    if lost:
        warnings.warn(
            "Outputs of the model have lost all their connections, as `Channels()` applies to its "
            "last layer, too: if each of them is needed, as classes are, name this layer in "
            f"`dense_layers`. Received: outputs without connections: {lost}",
            stacklevel=3,
        )


def forget_training(model):
    """Makes a model, and the models inside it, trace their steps again.

    The steps traced before do not know the masks, or how kernels are stored now.
    """
    for part in models_in(model):
        for name in ("train_function", "test_function", "predict_function"):
            setattr(part, name, None)


def _inner(layer):
    return layer.layer if isinstance(layer, SparseWrapper) else layer
