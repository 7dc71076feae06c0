"""The first mask of a kernel, which may be drawn after the kernel and its mask are there."""

import math

import tensorflow as tf

from rigl_tf import distributions, masks, selection


class MaskChoice:
    """The first mask of a kernel: random, of a sparsity that may be known later than the mask.

    It is the mask variable's initializer. A model that is built inside `fit` gets its variables
    only after all of its layers are built; then the sparsity is known when Keras asks for the
    mask, and the kernel, which comes before its mask, is there to be zeroed.
    """

    def __init__(self, kernel):
        self.kernel = kernel
        self._sparsity = None
        self._seed = None
        self._draw = None

    def choose(self, sparsity, seed, draw=None):
        """Decides on a random mask with `floor(sparsity * size)` zeros.

        With `draw`, a function of the mask, the kernel gets the values that it returns.
        """
        self._sparsity = sparsity
        self._seed = seed
        self._draw = draw
        if (sparsity or draw) and _is_initialized(masks.mask_of(self.kernel)):
            with tf.init_scope():
                mask = self._mask()
                masks.mask_of(self.kernel).assign(mask)
                self.kernel.assign(self._values(mask))

    def __call__(self, shape, dtype=None):
        mask = self._mask()
        if (self._sparsity or self._draw) and _is_initialized(self.kernel):
            self.kernel.assign(self._values(mask))
        return mask

    def _values(self, mask):
        return self._draw(mask) if self._draw else masks.masked(self.kernel, mask)

    def _mask(self):
        if not self._sparsity:
            return tf.ones(self.kernel.shape, tf.bool)
        size = math.prod(self.kernel.shape)
        num_active = size - distributions.num_zeros(size, self._sparsity)
        return selection.random_mask(self.kernel.shape, num_active, self._seed)


def _is_initialized(variable):
    """Whether a Keras variable has its value; until then Keras gives a tensor as a stand-in."""
    return isinstance(variable.value, tf.Variable)
