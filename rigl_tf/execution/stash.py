"""The stash of a CSR kernel: what a mask update needs of the dense gradient.

No array has the shape of the dense gradient. In the step of a mask update, the backward pass stores
here the two factors of the gradient, which the optimizer multiplies tile by tile.
"""

import functools

import tensorflow as tf

# The uses of a layer whose rows are kept. A recurrent layer uses a kernel once in each step.
_MOST_BLOCKS = 256


class Stash:
    """The inputs of a layer and the gradients of its outputs, stored in the step of a mask update.

    Their product `x^T dy` is the gradient of the dense kernel. Each use of the layer adds a block
    of rows.
    """

    def __init__(self, matrix_shape):
        self.inputs, self.gradients, self.blocks = (
            tf.Variable(
                tf.zeros([0, *shape], dtype),
                shape=[None, *shape],
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
                name=name,
            )
            for name, shape, dtype in (
                ("inputs", matrix_shape[:1], "float32"),
                ("gradients", matrix_shape[1:], "float32"),
                ("blocks", (), "int32"),
            )
        )

    @property
    def _variables(self):
        return self.inputs, self.gradients, self.blocks

    # For use on one replica.

    def add(self, inputs, gradients):
        """Adds the rows of one use of the layer; returns the assignments."""
        blocks = self.blocks.read_value()
        block = 1 + tf.reduce_max(tf.concat([[-1], blocks], axis=0))
        # Without a training step, gradients of other uses would be kept for ever.
        first = tf.searchsorted(blocks, [block - _MOST_BLOCKS + 1])[0]
        new = (inputs, gradients, tf.fill(tf.shape(inputs)[:1], block))
        return [
            variable.assign(tf.concat([variable.read_value()[first:], rows], axis=0))
            for variable, rows in zip(self._variables, new, strict=True)
        ]

    def read(self):
        """The rows of all uses (inputs and gradients), and the block number of each row."""
        return tuple(variable.read_value() for variable in self._variables)

    def clear(self):
        for variable in self._variables:
            variable.assign(tf.zeros([0, *variable.shape[1:]], variable.dtype))


def collected(storage, x, product, as_rows):
    """Returns `product(x)`; backward passes add rows to a kernel's stash, if `collect` is true.

    `as_rows` converts `x` and a gradient of the product to matrices.
    """
    keep = _keeper(storage)
    if keep is None:
        return product(x)
    use = _Use(keep, as_rows)
    return use.end(product(use.begin(x)))


class _Use:
    """A product with a kernel, or with the transposed one, whose backward pass stores its rows.

    The backward pass of a product is a product with the transposed kernel, and the other way round.
    So a second derivative, such as that of a penalty on a gradient, trains a kernel through
    products that were made in a backward pass. Each of these is a use, too.

    Args:
        keep: What `_keeper` returns.
        as_rows: Function that converts an input of the kernel, and a gradient of its output, to
            matrices.
        is_transposed: Whether the kernel is transposed. Then its output is what the product gets.
    """

    def __init__(self, keep, as_rows, is_transposed=False):
        self._keep = keep
        self._as_rows = as_rows
        self._is_transposed = is_transposed
        self._backward_pass = None

    def begin(self, tensor):
        """Passes on what is multiplied."""
        self._multiplied = tensor
        return _passed_on(tensor, self._leave)

    def end(self, product):
        """Passes on the product."""
        return _passed_on(product, self._back)

    def _back(self, gradient):
        pair = (self._multiplied, gradient)
        rows = functools.partial(self._as_rows, *(reversed(pair) if self._is_transposed else pair))
        self._backward_pass = _Use(self._keep, self._as_rows, not self._is_transposed)
        return self._backward_pass.begin(self._keep(gradient, rows))

    def _leave(self, gradient):
        # It is called after `_back`, if the gradient comes from the product. It may also come from
        # the gradient of the values alone.
        backward_pass, self._backward_pass = self._backward_pass, None
        return gradient if backward_pass is None else backward_pass.end(gradient)


def _passed_on(tensor, gradient):
    """Returns a tensor; `gradient` is called with its gradient, and returns it."""

    @tf.custom_gradient
    def pass_on(tensor):
        return tf.identity(tensor), gradient

    return pass_on(tensor)


def collected_dense(storage, dense):
    """As `collected`, for a kernel that was made dense: its rows are the identity."""
    keep = _keeper(storage)
    if keep is None:
        return dense

    def rows(gradient):
        gradient = tf.reshape(tf.cast(gradient, tf.float32), storage.matrix_shape)
        return tf.eye(storage.matrix_shape[0]), gradient

    return _passed_on(dense, lambda gradient: keep(gradient, lambda: rows(gradient)))


def _keeper(storage):
    """A function for the backward pass, which is made in the forward pass.

    It returns a gradient, and adds the matrices of `rows` to the stash if `collect` is true. It is
    `None` if it would do nothing.
    """
    if tf.executing_eagerly() and not storage.collect.numpy():
        return None
    body = _control_flow_of(_graphs())

    def keep(gradient, rows):
        if _is_vectorized():
            return gradient
        if _is_written_to_a_file():
            raise ValueError(
                "A SavedModel cannot have CSR kernels: `rigl_tf.export(model, path)` writes one "
                "that loads anywhere; `rigl_tf.strip(model)` is a dense model for Keras's own "
                f"`export`. Received: the CSR kernel {storage.dense_path!r}"
            )
        if body is not None and body not in _graphs():  # The loop itself is differentiated.
            raise ValueError(
                "A CSR kernel cannot be trained inside a loop or a `tf.cond` of TensorFlow, such "
                "as the loop of `keras.layers.RNN`: use `execution='masked'`, or `unroll=True` of "
                f"`RNN`. Received: the CSR kernel {storage.dense_path!r}"
            )

        def add():
            # If only a part of a step is a `tf.function`, TensorFlow leaves out what no result of
            # its backward pass depends on.
            with tf.control_dependencies(storage.stash.add(*rows())):
                return tf.constant(True)

        is_done = tf.cond(tf.convert_to_tensor(storage.collect), add, lambda: tf.constant(False))
        with tf.control_dependencies([is_done]):
            return tf.identity(gradient)

    return keep


def _graphs():
    """The graph that is traced and those around it, the innermost first."""
    graphs = [tf.compat.v1.get_default_graph()]
    while getattr(graphs[-1], "outer_graph", None) is not None:
        graphs.append(graphs[-1].outer_graph)
    return graphs


def _control_flow_of(graphs):
    """The graph of the innermost body of a loop, or branch of a `tf.cond` or `tf.switch_case`."""
    kinds = ("WhileBodyFuncGraph", "CondBranchFuncGraph")
    inside = [each for each in graphs if type(each).__name__ in kinds]
    return inside[0] if inside else None


def _is_vectorized():
    """Whether this is traced by `tape.jacobian`, for all outputs at once."""
    scope = tf.compat.v1.get_default_graph().get_name_scope()
    return "loop_body" in scope.split("/")


def _is_written_to_a_file():
    """Whether this is a gradient that TensorFlow traces only to write it to a SavedModel."""
    graph = tf.compat.v1.get_default_graph()
    return str(getattr(graph, "name", "")).startswith("internal_grad_fn")
