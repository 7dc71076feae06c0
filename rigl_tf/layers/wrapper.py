"""`SparseWrapper`, a Keras layer that makes the kernels of another layer sparse."""

import contextlib
import functools
import inspect
import math
import random
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import distributions, masks, selection, structures
from rigl_tf.checks import check_seed
from rigl_tf.execution.products import born_sparse
from rigl_tf.layers.axes import axes_of
from rigl_tf.layers.building import (
    build_by_call,
    build_signature,
    builds_by_call,
    builds_itself,
    symbolic_arguments,
    without_build_configs,
)
from rigl_tf.layers.eligibility import Choice
from rigl_tf.layers.first_masks import FirstMask, FirstMasks, when_initialized
from rigl_tf.layers.storage import check_execution, csr_storages, store
from rigl_tf.walk import all_layers, held_twice, layers_by_weight, unbuilt

# The attribute of a wrapper with the masks. Keras loads attributes in alphabetical order, and the
# masks must come after the kernels.
_MASKS = "~masks"

# The default sparsity. It is compared by identity, so it differs from a 0.0 given by the user.
_LEFT_OUT = float("0")


@keras.saving.register_keras_serializable(package="rigl_tf")
class SparseWrapper(keras.layers.Wrapper):
    """Makes the kernels of a layer sparse.

    The wrapped layer computes as before: its kernel *is* the sparse kernel, with zeros where the
    mask is `False`. The wrapper only holds the masks. They are changed by the optimizers of
    `rigl_tf` and by `rigl_tf.set_masks`; any other optimizer keeps the zeros where they are.

    The wrapper is used like the layer. It takes the same inputs. Public attributes that the wrapper
    does not have are those of the layer: `wrapper.units` works, and so does setting
    `wrapper.activation`. Its weights are the weights of the layer in the same order, then the
    masks. In a file, the weights of the layer have the same place with and without the wrapper, so
    the file of a sparse model can be loaded into the dense model, and the other way round. (Not if
    it has CSR kernels: `rigl_tf.with_execution(model, "masked")` converts them.)

    Args:
        layer: The `keras.layers.Layer` to wrap, built or not. Which of its weights are kernels is
            described in `rigl_tf.sparsify`.
        sparsity: Share of zeros of each kernel of the layer, in `[0, 1)`. Or a list with an entry
            for each of `layer.weights`, `None` for those that stay dense. Defaults to the sparsity
            of the structure if it sets one (as `NM` does), else to 0.
        seed: Integer, or `None` for a random one. As for the initializers of Keras,
            `keras.utils.set_random_seed` makes a random seed the same in every run. The masks
            depend on it and on the index of the kernel in the layer, or in the model that
            `rigl_tf.sparsify` made.
        name: String. Defaults to the name of the layer, so that the sparse model has the same layer
            names as the dense one.
        execution: String, how the kernels are stored and multiplied: `"masked"` (with their zeros),
            `"csr"` (only their active values) or `"auto"`, see `rigl_tf.sparsify`. Kernels that
            cannot be stored as CSR stay masked; `rigl_tf.sparsity_summary` says why. Defaults to
            `"masked"`. A CSR kernel with more than 67 million weights is never made dense, not
            even when it is built. Its first values are drawn from the distribution of the layer's
            initializer, but they are not the values of the dense kernel.
        structure: A value of `rigl_tf.structures` that says which weights are active or inactive
            together, or `None`: then each weight stands alone. Kernels with a structure are always
            masked.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If `sparsity` is outside of `[0, 1)` or the layer has LoRA adapters. When the
            layer is built: if it has no kernel that can be sparse. When it is called: if it
            creates kernels that neither its `build` nor its first call has created.

    Example:

    >>> layer = SparseWrapper(keras.layers.Dense(4), sparsity=0.75)
    >>> outputs = layer(np.ones((2, 8)))
    >>> int(np.count_nonzero(layer.layer.kernel))
    8
    """

    @property
    def __class__(self):
        # Keras finds the place of a layer's weights in a file by the name of this class.
        layer = vars(self).get("layer")
        return SparseWrapper if layer is None else _class_like(type(layer))

    def __init__(
        self,
        layer: keras.layers.Layer,
        sparsity: float | list[float | None] | tuple[float | None, ...] = _LEFT_OUT,
        seed: int | None = None,
        name: str | None = None,
        execution: str = "masked",
        structure: structures.Structure | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(layer, SparseWrapper):
            raise ValueError(f"A layer can be wrapped only once. Received: layer={layer}")
        if "go_backwards" in kwargs:
            raise ValueError(
                "`Bidirectional` must be inside of the `SparseWrapper`, not around it. "
                f"Received: layer={layer}"
            )
        structure = structures.get(structure)
        if sparsity is _LEFT_OUT and structure is not None:
            sparsity = structure.sparsity or 0.0
        if isinstance(sparsity, (list, tuple)):
            sparsity = list(sparsity)
            for share in sparsity:
                distributions.check_sparsity(share or 0.0)
        else:
            distributions.check_sparsity(sparsity)
        check_execution(execution)
        if seed is not None:
            check_seed(seed)
        if isinstance(layer, keras.layers.Layer):
            name = name or layer.name
            kwargs.setdefault("dtype", _plain_policy(layer))
            kwargs.setdefault("autocast", layer.autocast)
            _check_no_lora(layer)
            self._take_signatures(layer)
        super().__init__(layer, name=name, **kwargs)
        self.sparsity: Any = sparsity
        self.seed = random.randint(0, 2**31 - 1) if seed is None else seed
        self.execution = execution
        self.mask_indices: Any = None  # of its kernels in the model, for the seeds of their masks
        self._stored: Any = None  # until the layer is built: what was chosen before, in a file
        self.structure = structure
        self.supports_masking = layer.supports_masking
        setattr(self, _MASKS, masks.MaskVariables(name="masks"))
        self._chosen: Any = None  # until the layer has created all of its weights
        self._build_shapes = None
        self._is_called = False
        self._first_masks: Any = None  # decides on the first masks, or `None`: the wrapper does
        self._select: Any = None
        self.supports_jit = self._stays_masked(execution)
        self._is_constructed = True

    def _stays_masked(self, execution):
        return execution == "masked" or self.structure is not None

    def _take_signatures(self, layer):
        """Takes the layer's signatures: there Keras reads which inputs and shapes it takes."""

        @functools.wraps(layer.call)
        def call(*args, **kwargs):
            self._complete(args, kwargs)
            outputs = self.layer(*args, **kwargs)
            self._check_complete()
            return outputs

        self.call = call
        vars(self.build)["__signature__"] = build_signature(layer)

    def __getattr__(self, name):
        layer = vars(self).get("layer")
        is_private = name.startswith("_") and name not in vars(layer or self)
        if layer is None or is_private or hasattr(type(self), name):
            return super().__getattribute__(name)  # raises the error
        return getattr(layer, name)

    def __dir__(self):
        # Keras saves the layers in these attributes: so those inside the wrapped layer are saved.
        own = set(super().__dir__())
        layer = vars(self).get("layer")
        return sorted(own if layer is None else own - {"layer"} | set(dir(layer)))

    def __repr__(self):
        return f"<SparseWrapper {self.layer!r}>"

    def __setattr__(self, name, value):
        is_own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if is_own or "_is_constructed" not in vars(self) or not hasattr(self.layer, name):
            super().__setattr__(name, value)
        else:
            setattr(self.layer, name, value)

    @property
    def kernel_masks(self) -> dict[str, keras.Variable]:
        """`{kernel name: boolean mask variable}`, empty until the layer is built.

        A CSR kernel has no such variable; `rigl_tf.get_masks` returns its mask.
        """
        return dict(getattr(self, _MASKS).by_kernel)

    def use_execution(self, execution: str, tied: Collection[int] = ()) -> None:
        """Changes how the kernels are stored and multiplied.

        Kernels that several layers inside hold are not changed.

        Args:
            execution: `"masked"`, `"csr"` or `"auto"`, as the argument of this class.
            tied: The ids of variables that layers outside of this one hold, too. These kernels are
                not changed either.
        """
        check_execution(execution)
        self.execution = execution
        self.supports_jit = self._stays_masked(execution)
        stored, self._stored = self._stored, None
        if self._chosen is not None:
            self.supports_jit = True  # the layers inside say whether they do
            kernels = getattr(self, _MASKS).kernels().values()
            variables = [] if execution == "masked" else [each.variable for each in kernels]
            tied = {*tied, *held_twice(self.layer)}
            when_initialized(
                variables, lambda: store(self.layer, getattr(self, _MASKS), execution, tied, stored)
            )

    @property
    def kernel_mask(self) -> keras.Variable:
        """The mask variable of a built layer with one kernel; else an `AttributeError`."""
        if len(self.kernel_masks) != 1:
            raise AttributeError(
                "`kernel_mask` needs a built layer with one masked kernel; see `kernel_masks`. "
                f"Received: kernels={list(self.kernel_masks)}"
            )
        return next(iter(self.kernel_masks.values()))

    def separate(self) -> None:
        """Call on a shallow copy: from now on its calls and its masks are its own."""
        self._take_signatures(self.layer)
        getattr(self, _MASKS).separate()

    @property
    def has_csr(self) -> bool:
        """Whether a kernel is stored as CSR."""
        return bool(csr_storages(self.layer))

    def build(self, *args: Any, **kwargs: Any) -> None:
        shapes = inspect.signature(self.build).bind(*args, **kwargs).arguments
        # `fit` may build a model while it traces its step; variables must not be in that graph.
        with tf.init_scope():
            if not self.layer.built or unbuilt(self.layer):
                self._build_layer(shapes)
            if self.layer.built and not unbuilt(self.layer):
                self._add_masks()
        self._build_shapes = dict(shapes)

    def take_built(self) -> None:
        """Adds the masks if the layer is built already; like `build`, but without shapes."""
        with tf.init_scope():
            self._add_masks()
        self.built = True

    def _build_layer(self, shapes):
        with self._layer_scope(), self._born_sparse():
            if not builds_by_call(self.layer):
                if not self.layer.built:
                    self.layer.build(**shapes)
                    self.layer.built = True
            elif not self._is_called:
                build_by_call(self.layer, (), symbolic_arguments(self.layer, shapes))

    def _born_sparse(self):
        """A context in which a kernel that is too large to be made dense is created as CSR."""
        if self._stays_masked(self.execution) or self._first_masks is not None:
            return contextlib.nullcontext()

        def places(shape):
            shares = self.sparsity if isinstance(self.sparsity, list) else [self.sparsity]
            share = next(each for each in shares if each is not None)
            size = math.prod(shape)
            num_active = size - distributions.num_zeros(size, share)
            return selection.random_places(size, num_active, (self.seed, self._indices(1)[0]))

        return born_sparse(self.layer, places)

    def _layer_scope(self):
        # The kernels have the same paths as in the dense model, without the name of the wrapper.
        # (An outer layer that only calls the wrapper, without `build`, has opened no name scope.)
        parent = (self.path or self.layer.path or "").rpartition("/")[0]
        return keras.name_scope(self.layer.name, caller=self.layer, override_parent=parent)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._is_called = True  # what `build` cannot build will be built with these arguments
        return super().__call__(*args, **kwargs)

    def _complete(self, args, kwargs):
        """Builds, before the first call, what only a call of the layer creates or builds."""
        if self._first_masks is not None:
            self._first_masks.check()
        if self._chosen is None:
            with tf.init_scope():
                with self._layer_scope():
                    build_by_call(self.layer, args, kwargs)
                self._add_masks()

    def _add_masks(self):
        if self.has_csr:  # its kernel was created as CSR
            weights = masks.without_masks(self.layer, self.layer.weights)
            self._chosen = [masks.kernel_of(weight) is not None for weight in weights]
            return
        weights = self.layer.weights
        self._chosen = self._choose(weights)
        kernels = [weight for weight, chosen in zip(weights, self._chosen, strict=True) if chosen]
        units = self._units(kernels)
        first_masks = [FirstMask(kernel) for kernel in kernels]
        for first in first_masks:
            name = first.kernel.path.removeprefix(f"{self.layer.path}/")
            mask = getattr(self, _MASKS).add(name, first.kernel, first)
            settle = None if self._first_masks is None else self._first_masks.settle
            masks.link(first.kernel, mask, settle, units.get(id(first.kernel)))
        if self._first_masks is not None:
            self._first_masks.add(self, first_masks)
            return
        indices = self._indices(len(first_masks))
        for first, share, index in zip(first_masks, self._shares(), indices, strict=True):
            first.decide(share, (self.seed, index))
        self.use_execution(self.execution)

    def _indices(self, num_kernels):
        indices = self.mask_indices or []
        return indices if len(indices) == num_kernels else range(num_kernels)

    def _units(self, kernels):
        """`{id of a kernel: its units}`, empty without a structure."""
        if self.structure is None:
            return {}
        around = layers_by_weight(self.layer)
        return {
            id(each): self.structure.units(
                each.shape, axes_of(around[id(each)][-1], each), each.path
            )
            for each in kernels
        }

    def _choose(self, weights):
        """For each weight of the built layer, whether it is a kernel that gets a mask."""
        if self._first_masks is not None:
            return self._select(self.layer)
        if isinstance(self.sparsity, list):
            if len(self.sparsity) != len(weights):
                raise ValueError(
                    "`sparsity` must have an entry for each weight of the layer, "
                    f"{[weight.name for weight in weights]}. Received: sparsity={self.sparsity}"
                )
            return [share is not None for share in self.sparsity]
        chosen = Choice().select(self.layer)
        if not any(chosen):
            raise ValueError(
                "A SparseWrapper needs a layer with a trainable kernel of two or more dimensions. "
                f"Received: layer={self.layer}; not built in it: {unbuilt(self.layer)}"
            )
        return chosen

    def _check_complete(self):
        """Raises a `ValueError` if a later call has created kernels, which are not sparse.

        Warns if the kernels with masks are no longer weights of the layer.
        """
        weights = self.layer.weights
        if getattr(self, _MASKS).have_lost(weights):
            warnings.warn(
                f"The masks of layer {self.name!r} belong to kernels that it no longer has: "
                "`quantize` has replaced them: use `rigl_tf.strip` on the model before that.",
                stacklevel=2,
            )
            return
        is_listed = self._first_masks is None and isinstance(self.sparsity, list)
        if self.has_csr:
            return  # it replaced a kernel that was there before
        if len(weights) == len(self._chosen) or is_listed:
            return
        chosen = [] if self._first_masks is None else self._select(self.layer)
        if len(chosen) != len(weights):  # chosen by position, among fewer weights
            chosen = Choice().select(self.layer)
        late = [
            weight.path
            for weight, is_chosen in zip(weights, chosen, strict=True)
            if is_chosen and masks.mask_of(weight) is None
        ]
        if late:
            raise ValueError(
                "A sparse layer must create all of its kernels in its `build` or its first call. "
                f"Received: layer={self.layer.name!r}, where a later call has created {late}"
            )

    def _shares(self):
        """The sparsity of each kernel with a mask."""
        if isinstance(self.sparsity, list):
            return [share for share in self.sparsity if share is not None]
        return [self.sparsity] * sum(self._chosen)

    def leave_masks_to(
        self, first_masks: FirstMasks, select: Callable[[keras.layers.Layer], list[bool]]
    ) -> None:
        """Lets `rigl_tf.sparsify` decide which kernels are sparse, and how sparse they are.

        Args:
            first_masks: A `rigl_tf.layers.first_masks.FirstMasks`. The kernels are added to it when
                they are built.
            select: Function of the built layer that returns for each of its weights whether it is
                sparse.
        """
        self._first_masks = first_masks
        self._select = select
        self.supports_jit = self._stays_masked(first_masks.execution)

    def keep_sparsity(self, shares: Iterable[float]) -> None:
        """Stores the sparsity of each kernel with a mask, for copies made from the config."""
        shares = iter(shares)
        self.sparsity = [next(shares) if chosen else None for chosen in self._chosen]

    def keep_seed(self, seed: int, indices: Iterable[int] | None) -> None:
        """Stores what the first masks were drawn from, for copies made from the config.

        Args:
            seed: Integer, that of the model.
            indices: The index of each kernel with a mask in the model. With `None`, those in the
                layer.
        """
        indices = [] if indices is None else list(indices)
        self.seed = seed
        self.mask_indices = None if indices == list(range(len(indices))) else indices

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raises a `ValueError`, as LoRA needs dense kernels: use `rigl_tf.strip` first."""
        raise ValueError(
            "`enable_lora` needs a layer that is not sparse: use `rigl_tf.strip` on the model "
            f"first. Received: layer={self.name!r}"
        )

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        self._complete(args, kwargs)
        outputs = self.layer.compute_output_spec(*args, **kwargs)
        self._check_complete()
        return outputs

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        # `Model.summary` gives the arguments of `build` by name.
        args, kwargs = kwargs.pop("args", args), kwargs.pop("kwargs", kwargs)
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_mask(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        if self._first_masks is not None and self._chosen is None:
            raise ValueError(
                "The sparsity of a layer is known only after its model is built: build the model "
                f"before it is saved or cloned. Received: layer={self.name!r}, not built"
            )
        sparsity = self.sparsity
        if self._chosen is not None:
            # By position: if weights were frozen since, the rule would choose other ones.
            kernels = masks.kernels_of(self).values()
            shares = map(_share, kernels, self._shares())
            sparsity = [next(shares) if chosen else None for chosen in self._chosen]
        config = without_build_configs(super().get_config())
        structure = self.structure and keras.saving.serialize_keras_object(self.structure)
        stored = self._stored
        if self._chosen is not None and self.execution != "masked":
            stored = [kernel.execution for kernel in masks.kernels_of(self).values()]
        return {
            **config,
            **({} if stored is None else {"stored": stored}),
            # (As an attribute, a list refers to the layer.)
            **({} if self.mask_indices is None else {"mask_indices": list(self.mask_indices)}),
            "sparsity": sparsity,
            "seed": self.seed,
            "execution": self.execution,
            "structure": structure,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> "SparseWrapper":
        config = dict(config)
        stored, indices = config.pop("stored", None), config.pop("mask_indices", None)
        if "_is_only_shown" in vars(cls):
            cls = SparseWrapper
        wrapper = super().from_config(config, custom_objects)
        wrapper._stored, wrapper.mask_indices = stored, indices
        return wrapper

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Sets the weights of the layer, and keeps inactive connections at zero.

        Args:
            weights: List of arrays: the weights of the layer, with or without the masks.
        """
        masks.set_weights(self, weights)

    # In a file, the layer's variables are at the place of the wrapper, the masks at another place.

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        for storage, _ in csr_storages(self.layer):
            vars(storage)["is_saved_alone"] = True  # until Keras saves the layer that holds it
        self.layer.save_own_variables(store)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        try:
            self.layer.load_own_variables(store)
        except ValueError as error:
            # A CSR kernel has its own place in a file, so only the bias is here, if there is one.
            if self.has_csr or not set(store.keys()) <= {"1"}:
                raise
            raise ValueError(
                "The file has no dense kernel for this layer. If the saved kernels were CSR, load "
                "it into a model with `execution='csr'`, then use "
                f"`rigl_tf.with_execution(model, 'masked')`. Received: layer={self.name!r}"
            ) from error

    def get_build_config(self) -> dict[str, Any] | None:
        own = self.layer.get_build_config() if builds_itself(self.layer) else None
        if self.built and own is not None:
            return {"of_layer": own}
        return {"shapes": self._build_shapes} if self.built and self._build_shapes else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        if "shapes" in config:
            self.build(**config["shapes"])
            return
        with tf.init_scope(), self._layer_scope():
            self.layer.build_from_config(config["of_layer"])
            self.layer.built = True
        self.take_built()


def _share(kernel, sparsity):
    """The sparsity for the config; that of a CSR kernel gives its exact number of zeros."""
    if kernel.execution == "masked":
        return sparsity
    num_zeros = kernel.size - kernel.num_active
    share = num_zeros / kernel.size
    is_exact = distributions.num_zeros(kernel.size, share) == num_zeros
    return share if is_exact else math.nextafter(share, 1.0)


def _plain_policy(layer):
    """The dtype policy of a layer, without its quantization: only the layer itself quantizes."""
    policy = layer.dtype_policy
    if getattr(policy, "quantization_mode", None) is None:
        return policy
    is_mixed = policy.compute_dtype != policy.variable_dtype
    return "mixed_" * is_mixed + policy.compute_dtype


def _check_no_lora(layer):
    adapted = [each.name for each in all_layers(layer) if getattr(each, "lora_enabled", False)]
    if adapted:
        raise ValueError(
            "A SparseWrapper needs a layer without LoRA adapters: they make its kernel dense. "
            f"Received: layer={layer.name!r} with LoRA in {adapted}"
        )


def _new_wrapper(cls, *args, **kwargs):
    """`__new__` of the classes of `_class_like`: copying such an object gives a `SparseWrapper`."""
    return SparseWrapper.__new__(SparseWrapper, *args, **kwargs)


@functools.cache
def _class_like(layer_class):
    """A subclass of `SparseWrapper` with the name of a class of layers.

    If layers are in a list, Keras names the places of their weights in a file by their classes. So
    a sparse layer has the same place as the dense layer. If the class is the user's own, and not
    derived from a layer of Keras, `isinstance(wrapper, layer_class)` is true, as in scripts that
    look for the layers of this class.
    """
    bases = {each for each in layer_class.__mro__ if each.__module__.partition(".")[0] == "keras"}
    is_own = bases <= set(keras.layers.Layer.__mro__) and layer_class is not keras.layers.Layer
    body = {
        "__module__": __name__,
        "__doc__": SparseWrapper.__doc__,
        "__new__": _new_wrapper,
        "_is_only_shown": True,
    }
    try:
        parents = (SparseWrapper, layer_class) if is_own else (SparseWrapper,)
        named = type(layer_class.__name__, parents, dict(body))
    except TypeError:  # the class cannot be derived from in this way
        named = type(layer_class.__name__, (SparseWrapper,), dict(body))
    registered = keras.saving.get_registered_name(SparseWrapper)
    package, _, registered_name = registered.partition(">")
    keras.saving.register_keras_serializable(package=package, name=registered_name)(named)
    keras.saving.get_custom_objects()[registered] = SparseWrapper  # files still load this class
    return named
