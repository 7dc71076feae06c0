"""SparseWrapper: a Keras layer whose kernels are sparse."""

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
from rigl_tf.execution.products import born_sparse
from rigl_tf.layers.axes import axes_of
from rigl_tf.layers.building import (
    build_by_call,
    build_signature,
    builds_by_call,
    symbolic_arguments,
    without_build_configs,
)
from rigl_tf.layers.eligibility import Choice
from rigl_tf.layers.first_masks import Allocation, MaskChoice, when_initialized
from rigl_tf.layers.storage import check_execution, csr_storages, store
from rigl_tf.walk import all_layers, layers_of_weights, unbuilt

# Where the masks stand among the attributes of a wrapper: Keras loads these in alphabetical order,
# and the masks must come after the kernels.
_MASKS = "~masks"

# The default sparsity, told by its identity from a 0.0 that is given.
_LEFT_OUT = float("0")


@keras.saving.register_keras_serializable(package="rigl_tf")
class SparseWrapper(keras.layers.Wrapper):
    """Makes the kernels of a layer sparse.

    The wrapped layer computes as ever: its kernel *is* the sparse kernel, with zeros where the
    mask is `False`. The wrapper only holds the masks. They change when an optimizer of `rigl_tf`
    or `rigl_tf.set_masks` changes them; any other optimizer keeps the zeros where they are.

    It is used as the layer is: it takes the same arguments, and public attributes that are not its
    own are the layer's, so `wrapper.units` works, and so does setting `wrapper.activation`. Its
    weights are those of the layer, in their order, then the masks. In files of weights the layer's
    stand where they would stand without the wrapper, so that such a file fits the sparse and the
    dense model.

    Args:
        layer: The `keras.layers.Layer` to wrap, built or not. See `rigl_tf.layers.eligibility`.
        sparsity: Share of zeros, in `[0, 1)`, of each of the layer's kernels; or a list with an
            entry for each of `layer.weights`, `None` for those that stay dense. Defaults to that
            of the structure, if it has but one, else to 0.
        seed: Integer, or `None` for a random one, as in Keras's initializers:
            `keras.utils.set_random_seed` makes it the same in every run. The masks are a function
            of it and of the kernel's index in the layer.
        name: String. Defaults to the layer's name, so that a sparse model has the same layer
            names as the dense one.
        structure: What is active or inactive together, a value of `rigl_tf.structures`, or `None`
            for single weights. Such kernels are always masked.
        execution: String, how the kernels are stored and multiplied: `"masked"` (with their
            zeros), `"csr"` (only their active values, see `rigl_tf.execution`), or `"auto"`. Those
            that cannot be CSR stay masked; `rigl_tf.sparsity_summary` says why. Defaults to
            `"masked"`. A CSR kernel of more than 67 million weights is never made dense, also not
            when it is built; its values are then drawn from the distribution of the layer's
            initializer, but are not those of the dense kernel.

    Raises:
        ValueError: If `sparsity` is outside `[0, 1)`, the layer has LoRA adapters, or (when it is
            built) it has no kernel that can be sparse; or (when it is called) if it makes kernels
            that neither its `build` nor its first call made.

    Example:

    >>> layer = SparseWrapper(keras.layers.Dense(4), sparsity=0.75)
    >>> outputs = layer(np.ones((2, 8)))
    >>> int(np.count_nonzero(layer.layer.kernel))
    8
    """

    @property
    def __class__(self):
        # By the name of this class, Keras finds the place of a layer's weights in a file.
        layer = vars(self).get("layer")
        return SparseWrapper if layer is None else _class_named(type(layer).__name__)

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
        if isinstance(layer, keras.layers.Layer):
            name = name or layer.name
            kwargs.setdefault("dtype", layer.dtype_policy)
            kwargs.setdefault("autocast", layer.autocast)
            _check_no_lora(layer)
            self._take_signatures(layer)
        super().__init__(layer, name=name, **kwargs)
        self.sparsity: Any = sparsity
        self.seed = random.randint(0, 2**31 - 1) if seed is None else seed
        self.execution = execution
        self.structure = structure
        self.supports_masking = layer.supports_masking
        setattr(self, _MASKS, masks.MaskVariables(name="masks"))
        self._chosen: Any = None  # until all that the layer makes is there
        self._build_shapes = None
        self._is_called = False
        self._allocation: Any = None  # what decides on the first masks, if the wrapper does not
        self._select: Any = None
        self._is_constructed = True

    def _take_signatures(self, layer):
        """Keras reads in a signature which arguments are inputs, masks, or shapes to build with."""

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
        # Keras saves the layers in the attributes that it finds here: those inside the layer.
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
        """`{kernel name: boolean mask variable}`; empty until the layer is built.

        A CSR kernel has no such variable: `rigl_tf.get_masks` makes its mask.
        """
        return dict(getattr(self, _MASKS).by_kernel)

    def use_execution(self, execution: str, tied: Collection[int] = ()) -> None:
        """Stores the kernels in another way, which the layer computes with from then on.

        Args:
            execution: As the argument of this class.
            tied: The identities of variables that layers outside hold, too: they stay as they are.
        """
        check_execution(execution)
        self.execution = execution
        if self._chosen is not None:
            kernels = getattr(self, _MASKS).kernels().values()
            variables = [] if execution == "masked" else [each.variable for each in kernels]
            when_initialized(
                variables, lambda: store(self.layer, getattr(self, _MASKS), execution, tied)
            )

    @property
    def kernel_mask(self) -> keras.Variable:
        """The mask variable of a layer with one kernel."""
        if len(self.kernel_masks) != 1:
            raise AttributeError(
                "`kernel_mask` is there for a built layer with one kernel; see `kernel_masks`. "
                f"Received: kernels={list(self.kernel_masks)}"
            )
        return next(iter(self.kernel_masks.values()))

    def masked_copy(self) -> "SparseWrapper":
        """A copy of this built layer with masked kernels: other variables of the same values."""
        layer = type(self.layer).from_config(self.layer.get_config())
        parent = self.layer.path.rpartition("/")[0]
        with keras.name_scope(layer.name, caller=layer, override_parent=parent):
            layer.build_from_config(self.layer.get_build_config())
        layer.trainable = self.layer.trainable
        sparsity = self.get_config()["sparsity"]
        copy = SparseWrapper(layer, sparsity, self.seed, self.name, structure=self.structure)
        copy.take_built()
        weights, copies = (masks.without_masks(each, each.weights) for each in (self, copy))
        for weight, copied in zip(weights, copies, strict=True):
            kernel = masks.kernel_of(weight)
            if kernel is None:
                copied.assign(weight)
            else:
                masks.kernel_of(copied).set_mask(kernel.mask)
                masks.kernel_of(copied).assign(kernel.numpy())
        return copy

    @property
    def has_csr(self) -> bool:
        """Whether a kernel is stored as CSR."""
        return bool(csr_storages(self.layer))

    def build(self, *args: Any, **kwargs: Any) -> None:
        shapes = inspect.signature(self.build).bind(*args, **kwargs).arguments
        # A model may be built while `fit` traces its step: variables belong outside of that.
        with tf.init_scope():
            if not self.layer.built or unbuilt(self.layer):
                self._build_layer(shapes)
            if self.layer.built and not unbuilt(self.layer):
                self._add_masks()
        self._build_shapes = dict(shapes)

    def take_built(self) -> None:
        """Gives the layer, which is built, its masks, as `build` does without shapes."""
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
        """Where it is known how sparse a kernel is to be that is too large to be made dense."""
        is_masked = self.execution == "masked" or self.structure is not None
        if is_masked or self._allocation is not None:
            return contextlib.nullcontext()

        def places(shape):
            shares = self.sparsity if isinstance(self.sparsity, list) else [self.sparsity]
            share = next(each for each in shares if each is not None)
            size = math.prod(shape)
            num_active = size - distributions.num_zeros(size, share)
            return selection.random_places(size, num_active, (self.seed, 0))

        return born_sparse(self.layer, places)

    def _layer_scope(self):
        # The kernels keep the paths that they have in the dense model: without the wrapper's name.
        # (A layer that calls its inner one by `call`, without `build`, has opened no scope for it.)
        parent = (self.path or self.layer.path or "").rpartition("/")[0]
        return keras.name_scope(self.layer.name, caller=self.layer, override_parent=parent)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._is_called = True  # what its `build` leaves open comes with the arguments
        return super().__call__(*args, **kwargs)

    def _complete(self, args, kwargs):
        """Builds what only a call of the layer makes or builds, before the first one computes."""
        if self._chosen is None:
            with tf.init_scope():
                with self._layer_scope():
                    build_by_call(self.layer, args, kwargs)
                self._add_masks()

    def _add_masks(self):
        if self.has_csr:  # it was born sparse
            weights = masks.without_masks(self.layer, self.layer.weights)
            self._chosen = [masks.kernel_of(weight) is not None for weight in weights]
            return
        weights = self.layer.weights
        self._chosen = self._choose(weights)
        kernels = [weight for weight, chosen in zip(weights, self._chosen, strict=True) if chosen]
        units = self._units(kernels)
        choices = [MaskChoice(kernel) for kernel in kernels]
        for choice in choices:
            name = choice.kernel.path.removeprefix(f"{self.layer.path}/")
            mask = getattr(self, _MASKS).add(name, choice.kernel, choice)
            settle = None if self._allocation is None else self._allocation.settle
            masks.link(choice.kernel, mask, settle, units.get(id(choice.kernel)))
        if self._allocation is not None:
            self._allocation.add(self, choices)
            return
        for index, (choice, share) in enumerate(zip(choices, self._shares(), strict=True)):
            choice.choose(share, (self.seed, index))
        self.use_execution(self.execution)

    def _units(self, kernels):
        """`{identity of a kernel: its units}`, if they have a structure."""
        if self.structure is None:
            return {}
        owners = {id(weight): layers[-1] for weight, layers in layers_of_weights(self.layer)}
        return {
            id(each): self.structure.units(each.shape, axes_of(owners[id(each)], each), each.path)
            for each in kernels
        }

    def _choose(self, weights):
        """For each weight of the built layer, whether it is a kernel that gets a mask."""
        if self._allocation is not None:
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
        """Raises an error if a call made kernels that are not sparse, as they came too late.

        Warns if the layer has other kernels than those with the masks.
        """
        weights = self.layer.weights
        if getattr(self, _MASKS).have_lost(weights):
            warnings.warn(
                f"The masks of layer {self.name!r} hold for kernels that it no longer has, as "
                "`quantize` takes their place: use `rigl_tf.strip` on the model before that.",
                stacklevel=2,
            )
            return
        is_listed = self._allocation is None and isinstance(self.sparsity, list)
        if self.has_csr:
            return  # in the place of kernels that were there
        if len(weights) == len(self._chosen) or is_listed:
            return
        chosen = [] if self._allocation is None else self._select(self.layer)
        if len(chosen) != len(weights):  # chosen by position, among those that there were
            chosen = Choice().select(self.layer)
        late = [
            weight.path
            for weight, is_chosen in zip(weights, chosen, strict=True)
            if is_chosen and masks.mask_of(weight) is None
        ]
        if late:
            raise ValueError(
                "A sparse layer must make all of its kernels in its `build` or its first call. "
                f"Received: layer={self.layer.name!r}, whose later call made {late}"
            )

    def _shares(self):
        """The sparsity of each kernel with a mask."""
        if isinstance(self.sparsity, list):
            return [share for share in self.sparsity if share is not None]
        return [self.sparsity] * sum(self._chosen)

    def leave_masks_to(
        self, allocation: Allocation, select: Callable[[keras.layers.Layer], list[bool]]
    ) -> None:
        """Leaves to others which kernels are sparse, and how sparse.

        Args:
            allocation: A `rigl_tf.layers.first_masks.Allocation`, which is told of the kernels when
                they are built.
            select: Gets the built layer, returns for each of its weights whether it is sparse.
        """
        self._allocation = allocation
        self._select = select

    def keep_sparsity(self, shares: Iterable[float], seed: int) -> None:
        """Remembers the sparsity of each kernel with a mask, for copies made from the config."""
        shares = iter(shares)
        self.sparsity = [next(shares) if chosen else None for chosen in self._chosen]
        self.seed = seed

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Refuses what would make the kernels dense: use it on the result of `rigl_tf.strip`."""
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
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_mask(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        if self._allocation is not None and self._chosen is None:
            raise ValueError(
                "The sparsity of a layer is known when its model is built: build the model before "
                f"it is saved or cloned. Received: layer={self.name!r}, not built"
            )
        sparsity = self.sparsity
        if self._chosen is not None:
            # By position: the rule could choose others, if weights were frozen meanwhile.
            kernels = masks.kernels_of(self).values()
            shares = map(_share, kernels, self._shares())
            sparsity = [next(shares) if chosen else None for chosen in self._chosen]
        config = without_build_configs(super().get_config())
        structure = self.structure and keras.saving.serialize_keras_object(self.structure)
        return {
            **config,
            "sparsity": sparsity,
            "seed": self.seed,
            "execution": self.execution,
            "structure": structure,
        }

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Sets the weights of the layer, and its masks if they are there; keeps the zeros."""
        masks.set_weights(self, weights)

    # In files the layer's variables stand at the wrapper's place, the masks in one of their own.

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        self.layer.save_own_variables(store)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        self.layer.load_own_variables(store)

    def get_build_config(self) -> dict[str, Any] | None:
        return {"shapes": self._build_shapes} if self.built and self._build_shapes else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        self.build(**config["shapes"])


def _share(kernel, sparsity):
    """The sparsity with which a kernel is made again: of CSR its exact number of zeros."""
    if kernel.execution == "masked":
        return sparsity
    num_zeros = kernel.size - kernel.num_active
    share = num_zeros / kernel.size
    is_exact = distributions.num_zeros(kernel.size, share) == num_zeros
    return share if is_exact else math.nextafter(share, 1.0)


def _check_no_lora(layer):
    adapted = [each.name for each in all_layers(layer) if getattr(each, "lora_enabled", False)]
    if adapted:
        raise ValueError(
            "A SparseWrapper needs a layer without LoRA adapters: they make its kernel dense. "
            f"Received: layer={layer.name!r} with LoRA in {adapted}"
        )


@functools.cache
def _class_named(name):
    """A subclass of `SparseWrapper` with the name of a class of layers.

    Keras writes the weights of a layer in a list to a place that it names by the class. So those of
    a sparse layer stand where a dense model looks for them, and the other way around.
    """
    named = type(name, (SparseWrapper,), {"__module__": __name__, "__doc__": SparseWrapper.__doc__})
    registered = keras.saving.get_registered_name(SparseWrapper)
    package, _, registered_name = registered.partition(">")
    keras.saving.register_keras_serializable(package=package, name=registered_name)(named)
    keras.saving.get_custom_objects()[registered] = SparseWrapper  # it stays what is loaded
    return named
