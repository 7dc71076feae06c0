"""The arithmetic of sparse convolutions, against TensorFlow's dense ones."""

import math

import numpy as np
import pytest
import tensorflow as tf

from rigl_tf.execution import convolutions, engine

# Kernel size, strides, dilations, padding, shape of the images, outputs.
CASES = [
    ((1,), (1,), (1,), "valid", (3, 5, 2), 3),
    ((4,), (3,), (1,), "same", (2, 17, 3), 4),
    ((3,), (2,), (1,), "causal", (2, 16, 5), 17),
    ((2,), (1,), (3,), "causal", (1, 9, 1), 1),
    ((3,), (1,), (1,), "same", (2, 300, 3), 4),  # several tiles
    ((1, 1), (2, 2), (1, 1), "same", (3, 5, 6, 20), 4),  # pixels that are not seen
    ((3, 3), (1, 1), (1, 1), "same", (9, 7, 7, 17), 18),  # several strips
    ((3, 3), (2, 2), (1, 1), "same", (2, 8, 9, 3), 5),
    ((2, 5), (3, 1), (1, 1), "valid", (2, 9, 20, 3), 5),
    ((3, 3), (1, 1), (2, 3), "same", (2, 7, 8, 3), 5),
    ((3, 2), (1, 1), (3, 2), "valid", (2, 9, 8, 16), 16),
    ((5, 5), (1, 1), (1, 1), "same", (3, 2, 3, 2), 3),  # mostly zeros
    ((3, 3), (1, 1), (1, 1), "valid", (2, 2, 9, 2), 3),  # no pixel
    ((3, 3), (1, 1), (1, 1), "same", (0, 7, 7, 2), 3),  # no image
    ((3, 2, 3), (1, 1, 1), (1, 1, 1), "same", (2, 4, 5, 6, 2), 4),
    ((2, 3, 1), (2, 1, 3), (1, 1, 1), "valid", (2, 5, 4, 7, 3), 4),
]


def example(kernel_size, images, outputs):
    """Images, places and values, all random."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(images).astype("float32")
    size = math.prod(kernel_size) * images[-1] * outputs
    places = np.flatnonzero(rng.random(size) < 0.3).astype("int64")
    return x, places, rng.standard_normal(len(places)).astype("float32")


def written_out(case):
    """`y`, `dx` and `dvalues`, one place of the kernel at a time."""
    kernel_size, strides, dilations, padding, images, outputs = case
    x, places, values = example(kernel_size, images, outputs)
    kernel = np.zeros((*kernel_size, images[-1], outputs))
    kernel.reshape(-1)[places] = values
    out, margins = [], []
    moves = zip(images[1:-1], kernel_size, strides, dilations, strict=True)
    for size, length, stride, dilation in moves:
        reach = (length - 1) * dilation + 1
        if padding == "valid":
            number, before = max(0, (size - reach) // stride + 1), 0
        elif padding == "causal":
            number, before = -(-size // stride), reach - 1
        else:
            number = -(-size // stride)
            before = max(0, (number - 1) * stride + reach - size) // 2
        out.append(number)
        margins.append((before, reach + stride))
    padded = np.pad(x.astype("float64"), [(0, 0), *margins, (0, 0)])
    y = np.zeros((len(x), *out, outputs))
    dy = gradient_of_output(y.shape)
    dpadded, dkernel = np.zeros_like(padded), np.zeros_like(kernel)
    for place in np.ndindex(kernel_size):
        seen = [slice(None)]
        for at, dilation, stride, number in zip(place, dilations, strides, out, strict=True):
            seen.append(slice(at * dilation, at * dilation + number * stride, stride))
        seen = tuple(seen)
        y += padded[seen] @ kernel[place]
        dpadded[seen] += dy @ kernel[place].T
        dkernel[place] = np.tensordot(padded[seen], dy, (range(dy.ndim - 1),) * 2)
    inside = [
        slice(before, before + size)
        for size, (before, _) in zip(images[1:-1], margins, strict=True)
    ]
    return y, dpadded[(slice(None), *inside)], dkernel.reshape(-1)[places]


def gradient_of_output(shape):
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


def computed(case, unknown=False):
    kernel_size, strides, dilations, padding, images, outputs = case
    x, places, values = map(tf.constant, example(kernel_size, images, outputs))
    structure = engine.structure(places, (math.prod(kernel_size) * images[-1], outputs))
    geometry = convolutions.Geometry(kernel_size, strides, dilations, padding)

    def convolve(x, values):
        with tf.GradientTape() as tape:
            tape.watch([x, values])
            y = convolutions.convolve(x, values, structure, outputs, geometry)
        dy = tf.numpy_function(lambda y: gradient_of_output(y.shape), [y], tf.float32)
        return y, *tape.gradient(y, [x, values], tf.ensure_shape(dy, y.shape))

    if unknown:
        pixels = tf.TensorSpec([None] * (len(images) - 1) + [images[-1]])
        convolve = tf.function(convolve, input_signature=[pixels, tf.TensorSpec([None])])
    return [each.numpy() for each in convolve(x, values)]


def check_close(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_a_convolution(case):
    check_close(computed(case), written_out(case))


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("case", [CASES[1], CASES[7], CASES[14]], ids=str)
def test_sizes_may_be_unknown(case):
    check_close(computed(case, unknown=True), written_out(case))


def test_patches_of_parts_of_the_batch(monkeypatch):
    monkeypatch.setenv("RIGL_TF_NATIVE", "0")
    monkeypatch.setattr(convolutions, "_MOST_FLOATS", 2 * 7 * 7 * 9 * 17)  # two images
    check_close(computed(CASES[6]), written_out(CASES[6]))


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("case", [CASES[4], CASES[6], CASES[7], CASES[10]], ids=str)
def test_threads_change_nothing(limits, case, lanes):
    limits(threads=1, lanes=lanes)
    alone = computed(case)
    limits(lanes=lanes)
    check_close(alone, written_out(case))
    for one, many in zip(alone, computed(case), strict=True):
        np.testing.assert_array_equal(one, many)


def test_more_images_than_are_packed_at_a_time(limits):
    limits()
    case = ((3, 3), (1, 1), (1, 1), "same", (3, 300, 200, 16), 2)
    for result, wanted in zip(computed(case), written_out(case), strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_gradient_of_the_data_may_be_unwanted(limits):
    limits()
    kernel_size, strides, dilations, padding, images, outputs = CASES[7]
    x, places, values = map(tf.constant, example(kernel_size, images, outputs))
    structure = engine.structure(places, (math.prod(kernel_size) * images[-1], outputs))
    geometry = convolutions.Geometry(kernel_size, strides, dilations, padding)
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = convolutions.convolve(x, values, structure, outputs, geometry)
    dvalues = tape.gradient(y, values, tf.constant(gradient_of_output(y.shape)))
    np.testing.assert_allclose(dvalues, written_out(CASES[7])[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": tf.zeros([2, 3, 4])}, "`x` must have rank 5"),
        ({"values": tf.zeros([4])}, "`rows` and `order` must have the shape of `values`"),
        ({"rows": tf.constant([0, 1, 18], tf.int32)}, "`rows` must be in \\[0, 18\\)"),
        ({"order": tf.constant([0, 1, 3], tf.int32)}, "`order` in \\[0, 3\\)"),
        ({"column_splits": tf.constant([0, 4, 3], tf.int64)}, "must ascend from 0 to the number"),
        ({"kernel_size": [1, 3]}, "`kernel_size` must be three integers >= 1"),
        ({"strides": [1, 0, 1]}, "`strides` must be three integers >= 1"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(limits, wrong, message):
    limits()
    structure = engine.structure(tf.constant([0, 5, 20], tf.int64), (18, 2))
    arguments = {
        "x": tf.zeros([1, 1, 4, 4, 2]),
        "values": tf.ones([3]),
        **structure._asdict(),
        "kernel_size": [1, 3, 3],
        "strides": [1, 1, 1],
        "dilations": [1, 1, 1],
        "padding": "SAME",
    }
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        engine.native().rigl_conv(**{**arguments, **wrong})


def test_a_wrong_gradient_is_refused(limits):
    limits()
    structure = engine.structure(tf.constant([0, 5, 20], tf.int64), (18, 2))
    arguments = {
        "x": tf.zeros([1, 1, 4, 4, 2]),
        "dy": tf.zeros([1, 1, 4, 4, 2]),
        "values": tf.ones([3]),
        **structure._asdict(),
        "kernel_size": [1, 3, 3],
        "strides": [1, 1, 1],
        "dilations": [1, 1, 1],
        "padding": "SAME",
    }
    for wrong, message in (
        ({"dy": tf.zeros([1, 1, 4, 3, 2])}, "`dy` must have the shape of the output"),
        ({"columns": tf.constant([0, 1, 2], tf.int32)}, "`columns` must be in \\[0, 2\\)"),
        ({"row_splits": structure.row_splits[:-1]}, "the number of inputs plus one, 19"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            engine.native().rigl_conv_grad(**{**arguments, **wrong})
