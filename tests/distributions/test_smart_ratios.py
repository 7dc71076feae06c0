"""Tests of `rigl_tf.distributions.smart_ratio`: by hand, and against the authors' steps."""

import functools
import math
import re

import keras
import numpy as np
import pytest

import models
import rigl_tf
from rigl_tf import distributions
from rigl_tf.distributions import smart_ratio

# Sizes 2000, 1000 and 100, together 3100.
SMALL = {"conv1": (2, 10, 100), "conv2": (2, 5, 100), "dense": (10, 10)}


def num_active(shapes, result):
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    return {
        path: sizes[path] - distributions.num_zeros(sizes[path], result[path]) for path in sizes
    }


def counts(sparsity, **arguments):
    return list(num_active(SMALL, smart_ratio(SMALL, sparsity, **arguments)).values())


class TestByHand:
    """At 0.9 there are 310 active weights; the dense layer has 30 of them, 280 are left."""

    def test_residual(self):
        # n = 3: raw 3 * 3 + 3 = 12 and 2 * 2 + 2 = 6; 12 * 2000 + 6 * 1000 = 30000.
        # 280 / 30000 * 24000 = 224 and 280 / 30000 * 6000 = 56.
        assert counts(0.9, residual=True) == [224, 56, 30]

    def test_without_residual_connections(self):
        # raw 12 and 6 / 4; 24000 + 1500 = 25500; 280 / 25500 times 24000 and 1500: 263.5, 16.5.
        assert counts(0.9, residual=False) == [263, 16, 30]

    @pytest.mark.parametrize(
        ("decay", "expected"),
        [
            ("linear", [210, 70, 30]),  # raw 3 and 2: 6000 + 2000; 280 / 8000 of each
            ("cubic", [243, 36, 30]),  # raw 27 and 8: 54000 + 8000; 243.9 and 36.1
            ("ascending", [112, 168, 30]),  # raw 2 and 6: 4000 + 6000
            ("uniform", [186, 93, 30]),  # 280 / 3000 of each: 186.7 and 93.3
        ],
    )
    def test_ablations(self, decay, expected):
        assert counts(0.9, residual=True, decay=decay) == expected
        if decay == "uniform":
            assert counts(0.9, residual=False, decay=decay) == expected

    def test_an_overflow_of_the_first_layer_goes_to_the_next(self):
        # At 0.2: 2480 - 30 = 2450. 2450 / 30000 times 24000: 1960; times 6000: 490.
        assert counts(0.2, residual=True) == [1960, 490, 30]
        # At 0.1: 2790 - 30 = 2760. 2208 of 2000, so 208 go on; 552 + 208 = 760.
        assert counts(0.1, residual=True) == [2000, 760, 30]

    def test_linear_layers_are_taken_away_together(self):
        # 4 + 4 weights of 15 + 15, but int(30 * 0.3) = 9 are taken away: int(1030 * 0.5) - 9 = 506.
        shapes = {"conv": (10, 10, 10), "dense1": (3, 5), "dense2": (5, 3)}
        got = num_active(shapes, smart_ratio(shapes, 0.5, True))
        assert list(got.values()) == [506, 4, 4]

    def test_an_overflow_fills_several_layers(self):
        # Sizes 100, 100, 1000, 10; n = 4; raw 20, 12, 6, and the last is linear: 3 of 10.
        # At 0.6: int(1210 * 0.4) - 3 = 481; 2000 + 1200 + 6000 = 9200.
        # 481 / 9200 times 2000 = 104.57 (4 over), 1200 = 62.74 (67 after it), 6000 = 313.70.
        shapes = {"a": (1, 10, 10), "b": (1, 10, 10), "c": (10, 10, 10), "d": (2, 5)}
        got = num_active(shapes, smart_ratio(shapes, 0.6, True))
        assert list(got.values()) == [100, 66, 313, 3]
        # At 0.2: 968 - 3 = 965. 965 / 9200 times 2000 = 209.78: 109 over. 1200 = 125.87: 25 over,
        # 134 in all. 6000 = 629.35, and 134 more.
        got = num_active(shapes, smart_ratio(shapes, 0.2, True))
        assert list(got.values()) == [100, 100, 763, 3]

    def test_an_overflow_that_begins_later_is_lost(self):
        # A dense layer first: raw 6 and 2; 12000 + 2000 = 14000. At 0.1: 2790 - 30 = 2760.
        # 2760 / 14000 times 12000 = 2365.7 of 2000; times 2000 = 394.3, to which nothing is added.
        shapes = {"dense": (10, 10), "conv1": (2, 10, 100), "conv2": (2, 5, 100)}
        got = num_active(shapes, smart_ratio(shapes, 0.1, True))
        assert list(got.values()) == [30, 2000, 394]
        # Ascending: raw 2 and 6. At 0.3: int(3100 * 0.7) - 30 = 2140; 4000 + 6000 = 10000.
        # 0.214 times 4000 = 856; times 6000 = 1284 of 1000, and 284 of the 2140 are lost.
        assert counts(0.3, residual=True, decay="ascending") == [856, 1000, 30]

    def test_linear_density(self):
        # 310 - 50 = 260: 260 / 30000 times 24000 and 6000.
        assert counts(0.9, residual=True, linear_density=0.5) == [208, 52, 50]
        # As convolutions: raw 12, 6 and 2; 24000 + 6000 + 200 = 30200; 310 / 30200 of each.
        assert counts(0.9, residual=True, linear_density=None) == [246, 61, 2]

    def test_a_kernel_is_never_emptied(self):
        # raw 6 and 2; 60000 + 2 = 60002; int(10001 * 0.01) = 100: 99.997 and 0.003.
        shapes = {"large": (100, 10, 10), "small": (1, 1, 1)}
        assert list(num_active(shapes, smart_ratio(shapes, 0.99, True)).values()) == [99, 1]


def by_the_code(shapes, sparsity, residual, decay, number):
    """The steps of the authors' code, in its order; `number` is its type, `np.float32`."""
    sizes = np.array([math.prod(shape) for shape in shapes.values()], number)
    is_linear = [len(shape) == 2 for shape in shapes.values()]
    n = len(sizes)
    ratio = np.zeros(n, number)
    for k in range(1, n + 1):
        raw = {"quadratic": k**2 + k, "linear": k, "cubic": k**3}
        ratio[n - k] = {**raw, "ascending": (n - k + 1) ** 2 + (n - k + 1)}[decay]
    test, linear = 0, 0
    for i in range(n):
        if is_linear[i]:
            linear += sizes[i]
        else:
            test += int(sizes[i] * ratio[i] / (1 if residual else number((i + 1) ** 2)))
    goal = int(sum(sizes, number(0)) * number(1 - sparsity)) - int(number(0.3) * linear)
    for i in range(n):
        if not is_linear[i]:
            ratio[i] = ratio[i] * number(goal / test) / (1 if residual else (i + 1) ** 2)
    extra = 0
    for i in range(n):
        if not is_linear[i]:
            if ratio[i] >= 1:
                extra += int((ratio[i] - 1) * sizes[i])
                ratio[i] = 1
            else:
                rest = int((1 - ratio[i]) * sizes[i])
                if rest >= extra:
                    ratio[i] += extra / sizes[i]
                    extra = 0
                else:
                    extra -= rest
                    ratio[i] = 1
        if extra == 0:
            break
    kept = [size if r >= 1 else int(r * size) for r, size in zip(ratio, sizes, strict=True)]
    for i in range(n):
        if is_linear[i]:
            kept[i] = int(number(0.3) * sizes[i])
    return np.array(kept, int)


@functools.cache
def shapes_of(name):
    """The kernels of the paper's networks, in the order of the forward pass."""
    model = {
        "resnet32": lambda: models.resnet32(width=2.0),
        "vgg19": models.vgg19,
    }[name]()
    kernels = [weight for weight in model.trainable_weights if weight.path.endswith("kernel")]
    return {kernel.path: tuple(kernel.shape) for kernel in kernels}


@pytest.mark.parametrize("decay", ["quadratic", "linear", "cubic", "ascending"])
@pytest.mark.parametrize("name", ["resnet32", "vgg19"])
def test_the_networks_of_the_paper(name, decay):
    shapes = shapes_of(name)
    assert len(shapes) == {"resnet32": 32, "vgg19": 17}[name]
    num_inputs = [shape[-2] for shape in shapes.values()]
    assert num_inputs == sorted(num_inputs)  # In the order of the forward pass.
    sizes = [math.prod(shape) for shape in shapes.values()]
    for sparsity in (0.5, 0.9, 0.95, 0.98):
        # Where many layers overflow, the code's float32 loses single weights of two million.
        number = np.float32 if decay == "quadratic" and sparsity > 0.5 else np.float64
        expected = by_the_code(shapes, sparsity, name == "resnet32", decay, number)
        result = smart_ratio(shapes, sparsity, name == "resnet32", decay=decay)
        got = list(num_active(shapes, result).values())
        np.testing.assert_allclose(got, expected, rtol=0, atol=1)
        if decay != "ascending":
            # All that overflows is passed on; each kernel rounds by less than one weight.
            assert abs(sum(sizes) * (1 - sparsity) - sum(got)) <= len(sizes)


def test_as_the_distribution_of_a_model():
    def build():
        return keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Conv2D(4, 3, name="conv1"),
                keras.layers.Conv2D(8, 3, name="conv2"),
                keras.layers.Flatten(),
                keras.layers.Dense(10, name="dense"),
            ]
        )

    # Sizes 108, 288 and 1280; at 0.7 active: int(502.8) = 502, of which 384 in the dense layer.
    # 118: raw 12 and 6, 1296 + 1728 = 3024; 50.6 and 67.4.
    distribution = functools.partial(smart_ratio, residual=True)
    sparse = rigl_tf.sparsify(build(), 0.7, distribution)
    got = [int(mask.sum()) for mask in rigl_tf.get_masks(sparse).values()]
    assert got == [50, 67, 384]
    with pytest.raises(ValueError, match="linear layers alone would keep 384"):
        rigl_tf.sparsify(build(), 0.8, distribution)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "Received: sparsity=1.0"),
        ({"residual": None}, "Received: residual=None"),
        ({"residual": "vgg"}, "Received: residual='vgg'"),
        ({"linear_density": 0}, "Received: linear_density=0"),
        ({"linear_density": True}, "Received: linear_density=True"),
        ({"decay": "steep"}, "Received: decay='steep'"),
        ({"sparsity": 0.995}, "Received: sparsity=0.995, linear_density=0.3"),
        ({"shapes": {}}, "Received: {}"),
        ({"shapes": {"dense": (3, 4)}}, "Received: shapes={'dense': (3, 4)}"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        smart_ratio(**{"shapes": SMALL, "sparsity": 0.9, "residual": True, **arguments})


def test_one_layer_and_no_zeros():
    assert smart_ratio({"conv": (3, 3, 4)}, 0.0, False) == {"conv": 0.0}
