"""Computes the norms of the gradients of active and of inactive connections on given data."""

import tensorflow as tf

from rigl_tf.callbacks.watching import squared_norm
from rigl_tf.objective import MeanGradients, batches


class GradientNorms:
    """A function that computes the norms of the gradients of a model's sparse kernels.

    It can be called again and again during training.

    Args:
        model: A built `keras.Model`.
        data, loss: See `rigl_tf.analysis.gradient_norms`.
        kernels: `{path: SparseKernel}`.

    Raises:
        ValueError: If the first batch of `data` does not fit the model.
    """

    def __init__(self, model, data, loss, kernels):
        self._data = batches(data)
        self._kernels = kernels
        variables = [kernel.variable for kernel in kernels.values()]
        self._gradients = MeanGradients(model, loss, variables)
        try:
            self._gradients(self._data[:1])
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            inputs, targets = map(_shapes, self._data[0][:2])
            raise ValueError(
                "`data` must fit the model and its loss, see the error above. "
                f"Received: inputs of shape {inputs} and targets of shape {targets}"
            ) from error

    def __call__(self):
        """`{path: (norm over the active connections, norm over the inactive connections)}`.

        For a CSR kernel the second norm is `None`, because its backward pass does not compute the
        gradient of inactive connections.
        """
        norms = {}
        gradients = self._gradients(self._data)
        for (path, kernel), gradient in zip(self._kernels.items(), gradients, strict=True):
            parts = kernel.split(gradient)
            norms[path] = [None if each is None else squared_norm(each) ** 0.5 for each in parts]
        return norms


def _shapes(tensors):
    return tf.nest.map_structure(lambda tensor: tuple(tensor.shape), tensors)
