"""The FLOPs and bytes of a network at a sparsity, by `rigl_tf.flops` and by the authors' rules.

The authors count with the rules of the MicroNet challenge, see `Authors`. Both are computed from
the shapes and a distribution. No mask is made.
"""

import dataclasses
import math

from rigl_tf import distributions, flops

# Shares of zeros that the DSR paper shows in a figure, as read from it in the authors' notebook.
_DSR = {
    0.8: """0 0 .15 .5 .425 .575 .55 .425 .32 .44 .15
    0 .15 .55 .6 .8 .65 .75 .65 .65 .65 .55 .65 .7
    0 .35 .65 .85 .9 .8 .85 .85 .8 .85 .85 .85 .85 .8 .8 .9 .75 .8 .85
    0 .65 .85 .95 .85 .8 .9 .65 .9 .8 .8""",
    0.9: """0 0 .4 .6 .65 .65 .6 .6 .5 .6 .45
    0 .4 .7 .8 .9 .8 .85 .8 .75 .8 .7 .8 .8
    0 .6 .8 .95 .95 .9 .95 .9 .9 .95 .9 .9 .95 .9 .9 .95 .85 .85 .9
    0 .8 .95 .95 .9 .9 .95 .8 .95 .9 .9""",
}


def shares(scheme, shapes, sparsity, erk=distributions.erk):
    """`{path: sparsity}` of the kernels in `shapes`.

    Args:
        scheme: `"dense"`, `"uniform"` (first layer dense), `"ER"`, `"ERK"`, `"STR"`, `"DSR"`,
            `"uniform, first layer sparse"`, `"uniform, depthwise dense"`,
            `"ERK, first layer dense"` or `"ERK, depthwise dense"`.
        shapes, sparsity: See `rigl_tf.distributions`.
        erk: The function that computes `"ERK"`.
    """
    kind, _, exception = scheme.partition(", ")
    dense = []
    if exception == "first layer dense":
        dense = [next(iter(shapes))]
    elif exception == "depthwise dense":
        dense = [path for path, shape in shapes.items() if shape[-1] == 1]
    custom = dict.fromkeys(dense, 0.0)
    if kind == "uniform":
        dense_first = exception != "first layer sparse"
        return distributions.uniform(shapes, sparsity, dense_first=dense_first, custom=custom)
    if kind == "ERK":
        return erk(shapes, sparsity, custom=custom)
    if kind == "DSR":
        return dict(zip(shapes, map(float, _DSR[sparsity].split()), strict=True))
    others = {"ER": distributions.erdos_renyi, "STR": distributions.str_resnet50}
    return dict.fromkeys(shapes, 0.0) if kind == "dense" else others[kind](shapes, sparsity)


def erk_of_the_authors(shapes, sparsity, custom):
    """ERK that rounds the zeros of each kernel up in the budget.

    The last digits of the published sizes show that their code did this. The authors' public code
    rounds down, as `rigl_tf.distributions.erk` does.
    """
    result = distributions.erk(shapes, sparsity, custom=custom)
    sizes = {path: math.prod(shape) for path, shape in shapes.items() if path not in custom}
    surplus = sum(math.ceil(sparsity * n) - math.floor(sparsity * n) for n in sizes.values())
    active = sum((1 - result[path]) * n for path, n in sizes.items() if result[path] > 0)
    return {
        path: 1 - (1 - share) * (1 - surplus / active) if share > 0 else share
        for path, share in result.items()
    }


class Ours:
    """Counts with `rigl_tf.flops.count`: the multiply-adds of kernels, and every stored weight.

    Args:
        builder: A function of `width` that returns a model.
    """

    def __init__(self, builder):
        self._builder = builder
        self._costs = {}

    def dense(self, width=1.0):
        """The `rigl_tf.flops.Cost` of the dense network."""
        if width not in self._costs:
            self._costs[width] = flops.count(self._builder(width=width))
        return self._costs[width]

    def __call__(self, scheme, sparsity, width=1.0):
        """`(FLOPs, megabytes)` at a sparsity that the kernels share as `scheme` says."""
        cost = self.dense(width)
        shapes = {kernel.path: kernel.shape for kernel in cost.kernels}
        sparsities = shares(scheme, shapes, sparsity)
        kernels = tuple(
            dataclasses.replace(
                kernel,
                num_active=kernel.size
                - distributions.num_zeros(kernel.size, sparsities[kernel.path]),
            )
            for kernel in cost.kernels
        )
        cost = dataclasses.replace(cost, kernels=kernels)
        return cost.flops, cost.num_bytes / 1e6


class Authors:
    """Counts the same network as the authors do.

    An output of a layer with `n` active inputs costs `n` multiplications, `n - 1` additions, one
    addition for the bias, and one operation for the ReLU, which every layer is assumed to have: `2
    n + 1`. Stored are the active weights, a bit mask if there are zeros, and one bit for each
    output channel. Numbers of active weights are not rounded. A wider network has the sparsities of
    the network of width 1.

    Args:
        cost: The `rigl_tf.flops.Cost` of the dense network of width 1.
        positions: `{path: output positions}` of the layers for which the authors count other
            numbers. They assume a padding of `size // 2` on each side, even if the input is already
            padded.
    """

    def __init__(self, cost, positions):
        self._shapes = {kernel.path: kernel.shape for kernel in cost.kernels}
        self._positions = {kernel.path: kernel.num_uses for kernel in cost.kernels} | positions

    def __call__(self, scheme, sparsity, width=1.0):
        """`(FLOPs, megabytes)` at a sparsity that the kernels share as `scheme` says."""
        num_flops = bits = 0
        sparsities = shares(scheme, self._shapes, sparsity, erk_of_the_authors)
        for path, share in sparsities.items():
            *window, inputs, outputs = self._scaled(path, width)
            fan_in = math.prod(window) * inputs
            num_flops += self._positions[path] * outputs * (2 * fan_in * (1 - share) + 1)
            bits += fan_in * outputs * (32 * (1 - share) + (share > 0)) + 32 * outputs
        return num_flops, bits / 8e6

    def _scaled(self, path, width):
        """Channels times the width, rounded down, but not of images, classes, depthwise kernels."""
        *window, inputs, outputs = self._shapes[path]
        paths = list(self._shapes)
        if path != paths[0] and inputs != 1:
            inputs = int(inputs * width)
        if path != paths[-1] and outputs != 1:
            outputs = int(outputs * width)
        return (*window, inputs, outputs)


def pruning_sparsity(sparsity, step, begin_step=10_000, end_step=25_000):
    """The sparsity of gradual pruning at a step."""
    progress = min(max(step - begin_step, 0) / (end_step - begin_step), 1)
    return sparsity * (1 - (1 - progress) ** 3)


def pruning_flops(count, scheme, sparsity, steps):
    """FLOPs of inference of a network that is pruned gradually: the mean over `steps`."""
    values = [count(scheme, pruning_sparsity(sparsity, step))[0] for step in steps]
    return sum(values) / len(values)
