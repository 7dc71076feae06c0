"""The methods that the scripts compare: the model and the optimizer of each."""

import functools
import math
from collections.abc import Callable

import keras

import models
import rigl_tf
from rigl_tf.optimizers import ALGORITHMS

_DYNAMIC: dict[str, Callable[..., rigl_tf.SparseOptimizer]] = {
    "snfs_redistributed": functools.partial(rigl_tf.SNFS, redistribute=True),
    **{
        name: each for name, each in ALGORITHMS.items() if issubclass(each, rigl_tf.SparseOptimizer)
    },
}
_IN_ORDER = (
    "dense",
    "static",
    "static_reinit",
    "snip",
    "grasp",
    "set",
    "snfs",
    "snfs_redistributed",
    "rigl_inverted",
    "rigl",
    "pruning",
    "dnw",
    "small_dense",
)
METHODS = tuple(dict.fromkeys((*_IN_ORDER, *_DYNAMIC)))
_AT_INITIALISATION = {"snip": rigl_tf.pruning.snip_masks, "grasp": rigl_tf.pruning.grasp_masks}
_NUM_SCORED = 1000


def check_method(method):
    """Raises a `ValueError` that lists the methods, if `method` is not one of them."""
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}. Received: method={method!r}")


def build_model(method, name, sparsity, distribution="erk", seed=0, data=None, **model_arguments):
    """The model that `method` trains: dense, sparse, or a small dense one with as many weights.

    `"pruning"` and `"dnw"` start with all connections. `"snip"` and `"grasp"` choose theirs with
    the first 1000 training examples; the distribution gives the number in each kernel.

    Args:
        method: One of `METHODS`.
        name: Name of a builder in `models`.
        sparsity: Share of zeros, in `[0, 1)`. The small dense model has at most as many kernel
            weights as a sparse model of this sparsity has active ones.
        distribution, seed: See `rigl_tf.sparsify`.
        data: The `scripts.common.datasets.Dataset` of a classifier, for `"snip"` and `"grasp"`.
        **model_arguments: Arguments of the builder.
    """
    check_method(method)
    model = models.build(name, **model_arguments)
    if method != "small_dense":
        return sparsify(method, model, sparsity, distribution, seed, data)
    num_kernel_weights = models.count_kernel_weights(model)
    masks = rigl_tf.get_masks(rigl_tf.sparsify(model, sparsity, distribution, seed=seed))
    num_sparse = sum(mask.size for mask in masks.values())
    num_active = sum(int(mask.sum()) for mask in masks.values())
    num_dense = num_kernel_weights - num_sparse
    builder = models.BUILDERS[name]
    width = models.small_dense_width(builder, num_active + num_dense, **model_arguments)
    return models.build(name, width=width, **model_arguments)


def sparsify(method, model, sparsity, distribution="erk", seed=0, data=None):
    """Makes the model with which `method` starts. For the arguments see `build_model`.

    It uses the layers of the given model, see `rigl_tf.sparsify`. So each method needs a new model.
    """
    if method == "dense":
        return model
    if method not in ("pruning", "dnw", *_AT_INITIALISATION):
        return rigl_tf.sparsify(model, sparsity, distribution, seed=seed)
    sparse = rigl_tf.sparsify(model, 0.0)
    if method in _AT_INITIALISATION:
        examples = data.x_train[:_NUM_SCORED], data.y_train[:_NUM_SCORED]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        masks = _AT_INITIALISATION[method](sparse, examples, sparsity, loss, distribution)
        rigl_tf.set_masks(sparse, masks)
    return sparse


def wrap_optimizer(
    method,
    inner_optimizer,
    total_steps,
    sparsity,
    distribution="erk",
    end_fraction=0.75,
    update_frequency=100,
    drop_fraction=0.3,
    seed=0,
    **dynamic_arguments,
):
    """Returns `inner_optimizer` for the dense methods, else the method's optimizer around it.

    Masks change until `end_fraction` of `total_steps`. Pruning starts at 40 % of this time, as in
    the paper's runs on ImageNet. `sparsity` and `distribution` are only used by pruning and DNW,
    `dynamic_arguments` only by those that drop and grow.
    """
    check_method(method)
    if method in ("dense", "small_dense"):
        return inner_optimizer
    if method in ("static", *_AT_INITIALISATION):
        return rigl_tf.StaticSparse(inner_optimizer)
    if method == "dnw":
        return rigl_tf.DNW(inner_optimizer, sparsity, distribution)
    end_step = math.ceil(end_fraction * total_steps)
    if method == "pruning":
        return rigl_tf.GradualPruning(
            inner_optimizer,
            end_step,
            sparsity,
            begin_step=int(0.4 * end_step),
            update_frequency=update_frequency,
            distribution=distribution,
        )
    return _DYNAMIC[method](
        inner_optimizer,
        end_step,
        update_frequency=update_frequency,
        drop_fraction=drop_fraction,
        seed=seed,
        **dynamic_arguments,
    )
