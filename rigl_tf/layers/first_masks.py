"""The first masks of a model, and the sparsity of each of them.

The sparsity of a kernel may be known only after the kernel was created, because it depends on all
kernels of the model, and some of them may be built later.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import initializers, masks, structures


class FirstMask:
    """The first mask of a kernel: a random one, whose sparsity may be decided later.

    It is the initializer of the mask variable. If a model is built inside `fit`, Keras gives values
    to its variables only after all layers are built. By then the sparsity is known. The kernel gets
    its value before its mask, so its inactive connections can be set to zero.
    """

    def __init__(self, kernel):
        self.kernel = kernel
        self._sparsity = None
        self._seed: Any = None
        self._draw = None

    def decide(self, sparsity, seed, draw=None):
        """Decides on a random mask with `floor(sparsity * size)` zeros, in whole units.

        Args:
            sparsity: Share of zeros, in `[0, 1)`.
            seed: Pair of integers.
            draw: `None`, or a function of the mask that returns new values for the kernel.
        """
        units = masks.kernel_of(self.kernel).units
        units.check_sparsity(sparsity)
        kernel_mask = masks.mask_of(self.kernel)
        is_drawn_now = is_initialized(kernel_mask)
        if draw and not is_drawn_now:
            draw(self._mask(sparsity, seed))  # for its errors: later, Keras would hide them
        units.start_with(sparsity)
        self._sparsity = sparsity
        self._seed = seed
        self._draw = draw
        if (sparsity or draw) and is_drawn_now:
            with tf.init_scope():
                if not tf.reduce_all(tf.convert_to_tensor(kernel_mask)):
                    return  # `tf.train.Checkpoint` has restored it when it was created
                mask = self._mask(sparsity, seed)
                values = self._values(mask)
                _assign_now(kernel_mask, mask)
                _assign_now(self.kernel, values)

    def __call__(self, shape, dtype=None):
        mask = self._mask(self._sparsity, self._seed)
        if (self._sparsity or self._draw) and is_initialized(self.kernel):
            self.kernel.assign(self._values(mask))
        return mask

    def _values(self, mask):
        return self._draw(mask) if self._draw else masks.masked(self.kernel, mask)

    def _mask(self, sparsity, seed):
        if not sparsity:
            return tf.ones(self.kernel.shape, tf.bool)
        units = masks.kernel_of(self.kernel).units
        return units.random_mask(units.count(sparsity), seed)


def _assign_now(variable, value):
    """Assigns a value, also while Keras builds a model, when its own `assign` has no effect."""
    if is_initialized(variable):
        variable.value.assign(tf.cast(value, variable.value.dtype))
    else:  # In mixed precision its `value` is a copy in the type of the computation.
        variable.assign(value)


def is_initialized(variable):
    """Whether a Keras variable has its value. (Until then, its `value` is only a tensor.)"""
    return isinstance(variable.value, tf.Variable)


def when_initialized(variables, act):
    """Calls `act` as soon as these Keras variables, and all variables created before, have values.

    When `fit` builds a model, its variables get their values later, in the order of their creation.
    In this case one more variable is created here, and its initializer calls `act`.
    """
    if all(map(is_initialized, variables)):
        act()
        return

    def first_value(shape, dtype=None):
        act()
        return tf.zeros(shape, dtype)

    keras.Variable(first_value, (), trainable=False, name="when_initialized")


NO_KERNEL = (
    "`sparsify` needs a model with a layer whose kernel can be sparse: a trainable weight of two "
    "or more dimensions that is no bias, normalisation, embedding or depthwise kernel, and not in "
    "`dense_layers`. "
)


class FirstMasks:
    """Distributes the sparsity among the kernels, when the last of the wrapped layers is built.

    If the whole model was called before, or training starts, it is distributed among the layers
    that are built. Layers that are built later get the overall sparsity.

    Args:
        distribution: See `rigl_tf.sparsify`.
        sparsity: See `rigl_tf.sparsify`.
        seed: See `rigl_tf.sparsify`.
        choice: The `Choice` of kernels. A name in it that fits no layer is an error.
        initializer: See `rigl_tf.sparsify`.
        execution: See `rigl_tf.sparsify`.

    Attributes:
        execution: String, see above.
        on_shared_out: Function that is called after the sparsity was distributed, or `None`.
    """

    def __init__(self, distribution, sparsity, seed, choice, initializer=None, execution="masked"):
        self.on_shared_out: Callable[[], Any] | None = None
        self._distribution = distribution
        self._sparsity = sparsity
        self._seed = seed
        self._choice = choice
        self._initializer = initializer
        self.execution = execution
        self._num_layers = 0
        self._wrappers = []  # those that are built
        self._undecided = []  # (`FirstMask`, its wrapper), until the sparsity is distributed
        self._num_decided = 0
        self._is_shared_out = False
        self._holds = {}
        self._error: Any = None

    def expect(self, num_layers):
        """Announces that `num_layers` more layers will be built."""
        self._num_layers += num_layers

    def check_any(self, name):
        """Raises a `ValueError` if a model, all layers of which are known, has no kernel.

        Args:
            name: The name of the model.
        """
        if not self._num_layers:
            self._choice.check_all_met()
            raise ValueError(
                f"{NO_KERNEL}{self._choice.advice()}Received: model={name!r}, without such layers"
            )

    def add(self, wrapper, first_masks):
        """Adds the kernels of a wrapper that was just built, a `FirstMask` for each."""
        if self._is_shared_out:
            kernels = masks.by_path(each.kernel for each in first_masks)
            by_layer = self._choice.sparsities(kernels)
            shares = list((by_layer or dict.fromkeys(kernels, self._sparsity)).values())
            wrapper.keep_sparsity(shares)
            last = self._num_decided + len(first_masks)
            wrapper.keep_seed(self._seed, range(self._num_decided, last))
            for each, share in zip(first_masks, shares, strict=True):
                self._decide(each, wrapper, share, self._num_decided)
                self._num_decided += 1
            wrapper.use_execution(self.execution)
        else:
            self._wrappers.append(wrapper)
            self._undecided += [(each, wrapper) for each in first_masks]
            self._share_out_if_complete()

    def hold(self, part):
        """Delays the distribution until `release` of this object, because more layers may follow.

        Args:
            part: The model, or any other object.
        """
        self._holds[id(part)] = part

    def release(self, part):
        """Ends what `hold` began, if this is not done yet."""
        self._holds.pop(id(part), None)

    @contextlib.contextmanager
    def held(self):
        """Delays the distribution until the end of this context."""
        context = object()
        self.hold(context)
        try:
            yield
        finally:
            self.release(context)
        self._share_out_if_complete()

    def _share_out_if_complete(self):
        are_built = self._wrappers and len(self._wrappers) >= self._num_layers
        if are_built and not self._holds:
            self._share_out()

    def share_out(self):
        """Call after the whole model was called: the layers that it uses are built.

        (Unless a part of it was not called, or a name in `choice` fits no layer so far, as one that
        is used only in training. Then training will build it, or else there is an error.)
        """
        if not self._undecided or self._holds:
            return
        try:
            self._choice.check_all_met()
        except ValueError:
            return
        self._share_out()

    def settle(self):
        """Distributes the sparsity among the kernels that exist now, if this is not done yet."""
        self.check()
        if self._is_shared_out:
            return
        if self.execution != "masked":
            raise ValueError(
                f"`execution={self.execution!r}` needs a model whose layers are all built before "
                f"the optimizer is. Received: {self._num_layers - len(self._wrappers)} layers that "
                "are not built"
            )
        self._share_out()

    def check(self):
        """Raises the error with which the distribution ended, if it did.

        Keras may hide it the first time, and call the layers all the same.
        """
        if self._error is not None:
            raise self._error

    def _share_out(self):
        self.check()
        if self._is_shared_out:
            return
        try:
            self._decide_all()
        except Exception as error:
            self._error = error
            raise
        for wrapper in self._wrappers:
            wrapper.use_execution(self.execution)
        if self.on_shared_out is not None:
            self.on_shared_out()

    def _decide_all(self):
        self._choice.check_all_met()
        kernels = masks.by_path(each.kernel for each, _ in self._undecided)
        if not kernels:
            raise ValueError(
                f"{NO_KERNEL}{self._choice.advice()}"
                "Received: a model whose layers have none when built"
            )
        shares = self._choice.sparsities(kernels)
        if shares is None:
            units = {path: masks.kernel_of(kernel).units for path, kernel in kernels.items()}
            shares = structures.allocate(self._distribution, units, self._sparsity)
        shares = shares.values()
        first, indices = {}, {}
        for index, ((each, wrapper), share) in enumerate(zip(self._undecided, shares, strict=True)):
            # A network and its clone (a target network, for example) get the same masks.
            twin = first.setdefault((each.kernel.path, tuple(each.kernel.shape)), index)
            indices.setdefault(id(wrapper), (wrapper, []))[1].append(twin)
            self._decide(each, wrapper, share, twin)
        for wrapper, of_kernels in indices.values():
            wrapper.keep_seed(self._seed, of_kernels)
        self._is_shared_out = True
        self._num_decided = len(self._undecided)
        self._keep(shares)
        self._undecided.clear()  # because kernels may be replaced

    def _decide(self, first_mask, wrapper, sparsity, index):
        seed = (self._seed, index)
        draw = None
        if self._initializer is not None:
            draw = functools.partial(
                initializers.draw, self._initializer, wrapper, first_mask.kernel, seed
            )
        first_mask.decide(sparsity, seed, draw)

    def take_zeros(self):
        """Sets the masks of all kernels to `True` where the weights are not zero."""
        kernels = [each for one in self._wrappers for each in masks.kernels_of(one).values()]
        values = [kernel.numpy() != 0 for kernel in kernels]
        for kernel, mask in zip(kernels, values, strict=True):
            if not mask.any():
                raise ValueError(
                    "With `from_zeros=True` every kernel must have a weight that is not zero: name "
                    f"its layer in `dense_layers`. Received: {kernel.path!r}, all zeros"
                )
            kernel.units.check(mask, kernel.path)
        for kernel, mask in zip(kernels, values, strict=True):
            kernel.set_mask(mask)
        self._keep([1 - mask.mean() for mask in values])

    def _keep(self, shares):
        shares = iter(shares)
        for wrapper in self._wrappers:
            wrapper.keep_sparsity([float(next(shares)) for _ in masks.kernels_of(wrapper)])
