"""Computes the norms of the gradients of active and of inactive connections on given data."""

import tensorflow as tf

from rigl_tf import masks
from rigl_tf.callbacks.watching import squared_norm
from rigl_tf.objective import batches, mean_loss, mean_over, on_a_replica, untouched_state


class GradientNorms:
    """A function that computes the norms of the gradients of a model's sparse kernels.

    It can be called again and again during training. The network computes as in training, for
    example with dropout. Its state, such as moving averages, is restored afterwards.

    Args:
        model: A built `keras.Model`.
        data, loss: See `rigl_tf.analysis.gradient_norms`.
        kernels: `{path: SparseKernel}`.
    """

    def __init__(self, model, data, loss, kernels):
        self._model = model
        self._data = batches(data)
        self._mean_loss = mean_loss(loss)
        self._kernels = kernels
        self._of_batch = tf.function(
            lambda *batch: on_a_replica(self._gradients, *batch), reduce_retracing=True
        )

    def __call__(self):
        """`{path: (norm over the active connections, norm over the inactive connections)}`.

        For a CSR kernel the second norm is `None`, because its backward pass does not compute the
        gradient of inactive connections.
        """
        with untouched_state(self._model):
            gradients = mean_over(self._data, self._of_batch)
        norms = {}
        for (path, kernel), gradient in zip(self._kernels.items(), gradients, strict=True):
            if kernel.execution == "csr":
                norms[path] = squared_norm(gradient) ** 0.5, None
                continue
            active = masks.masked(gradient, kernel.kernel_mask)
            inactive = gradient - active
            norms[path] = tuple(squared_norm(each) ** 0.5 for each in (active, inactive))
        return norms

    def _gradients(self, inputs, targets, sample_weight):
        values = [kernel.variable.value for kernel in self._kernels.values()]
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = self._model(inputs, training=True)
            loss = self._mean_loss(targets, outputs, sample_weight)
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        return [tf.convert_to_tensor(each) for each in gradients]
