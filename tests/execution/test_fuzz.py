"""Operations in C++ with random and wrong arguments: one sentence or the right result, no crash.

`make sanitize` runs these tests with operations that watch their own memory.
"""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from rigl_tf.execution import engine

SETTINGS = hypothesis.settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
REFUSED = (tf.errors.InvalidArgumentError, ValueError)
EXTREME = {np.int32: [-(2**31), 2**31 - 1], np.int64: [-(2**63), 2**63 - 1, 2**31, 2**33]}


@pytest.fixture(scope="module")
def operations():
    found = engine.native()
    if found is None:
        pytest.skip("There is no C++ compiler.")
    return found


@st.composite
def spoilt(draw, array):
    """An array as it is, or with a wrong entry, a wrong length, or in another order."""
    how = draw(st.sampled_from(["kept"] * 6 + ["entry", "longer", "shorter", "order", "rank"]))
    kind = array.dtype.type
    if how == "entry" and len(array):
        values = st.integers(-2, 40) | st.sampled_from(EXTREME[kind])
        array = array.copy()
        array[draw(st.integers(0, len(array) - 1))] = draw(values)
    elif how == "longer":
        array = np.append(array, array[-1:] if len(array) else kind(0))
    elif how == "shorter":
        array = array[: draw(st.integers(0, max(0, len(array) - 1)))]
    elif how == "order":
        array = array[::-1].copy()
    elif how == "rank":
        array = array.reshape(-1, 1)
    return array


@st.composite
def kernels(draw):
    """The shape of a kernel, its values, and a structure that may be wrong."""
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    places = np.flatnonzero(rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
    structure = engine.structure(places, shape)._asdict()
    structure = {name: draw(spoilt(array)) for name, array in structure.items()}
    values = rng.standard_normal(len(places) + draw(st.sampled_from([0] * 8 + [1, -1])) % 2**10)
    return shape, values.astype("float32"), structure


def result(function, **arguments):
    """What an operation gives as NumPy arrays; `None` if one clear sentence refuses it."""
    try:
        outputs = function(**arguments)
    except REFUSED as error:
        said = getattr(error, "message", None) or str(error)
        assert 10 < len(said) < 400, said
        assert "\n" not in said.strip(), said
        return None
    return [np.asarray(each) for each in (outputs if isinstance(outputs, tuple) else [outputs])]


def normal(shape):
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


@SETTINGS
@hypothesis.given(kernels(), st.integers(0, 70), st.integers(-1, 1), st.integers(-1, 1))
def test_products(operations, kernel, batch, wrong_inputs, wrong_outputs):
    (inputs, outputs), values, structure = kernel
    x = normal((batch, max(0, inputs + wrong_inputs * (batch % 3 == 0))))
    bias = normal(0 if batch % 2 else outputs + wrong_outputs * (batch % 5 == 0))
    found = result(operations.rigl_matmul, x=x, values=values, bias=bias, **structure)
    if found is not None:
        y = np.zeros((batch, len(structure["column_splits"]) - 1)) + (bias if bias.size else 0)
        for o in range(y.shape[1]):
            for j in range(*structure["column_splits"][o : o + 2]):
                y[:, o] += x[:, structure["rows"][j]] * values[structure["order"][j]]
        np.testing.assert_allclose(found[0], y, rtol=1e-4, atol=1e-4)
    dy = normal((batch, max(0, outputs + wrong_outputs * (batch % 3 == 1))))
    found = result(
        operations.rigl_matmul_grad, x=x, dy=dy, values=values, bias_gradient=True, **structure
    )
    if found is not None:
        np.testing.assert_allclose(found[2], dy.sum(axis=0), rtol=1e-4, atol=1e-4)
        dx, dvalues = np.zeros(x.shape), np.zeros(values.shape)
        for c in range(x.shape[1]):
            for i in range(*structure["row_splits"][c : c + 2]):
                dx[:, c] += dy[:, structure["columns"][i]] * values[i]
                dvalues[i] = x[:, c] @ dy[:, structure["columns"][i]]
        np.testing.assert_allclose(found[0], dx, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1], dvalues, rtol=1e-4, atol=1e-4)


@SETTINGS
@hypothesis.given(kernels(), st.integers(0, 40), st.integers(-3, 900), st.integers(-1, 1))
def test_the_search(operations, kernel, batch, k, wrong):
    (inputs, outputs), of_active, structure = kernel
    x, dy = normal((batch, inputs)), normal((batch, max(0, outputs + wrong * (batch % 4 == 0))))
    found = result(
        operations.rigl_largest_gradients,
        x=x,
        dy=dy,
        row_splits=structure["row_splits"],
        columns=structure["columns"],
        of_active=of_active,
        is_eligible=of_active[: len(of_active) - (batch % 5 == 0)] > 0,
        k=np.int64(k),
    )
    if found is not None:
        places, gradients, is_finite = found
        assert is_finite
        assert len(set(places)) == k
        dense = (x.T @ dy).reshape(-1)
        active = result(
            operations.rigl_places,
            row_splits=structure["row_splits"],
            columns=structure["columns"],
            outputs=outputs,
        )
        dense[active] = of_active
        np.testing.assert_allclose(gradients, dense[places], rtol=1e-4, atol=1e-4)


@SETTINGS
@hypothesis.given(
    st.lists(st.integers(-2, 50) | st.sampled_from(EXTREME[np.int64]), max_size=30),
    st.booleans(),
    st.sampled_from([1, 5, 2**62]),
    st.sampled_from([1, 7, 2**62]),
)
def test_structures(operations, places, is_sorted, inputs, outputs):
    places = np.array(sorted(set(places)) if is_sorted else places, "int64")
    found = result(operations.rigl_structure, places=places, inputs=inputs, outputs=outputs)
    assert found is None or max(inputs, outputs) < 2**31
    if found is not None:
        for array, wanted in zip(found, engine.structure(places, (inputs, outputs)), strict=True):
            np.testing.assert_array_equal(array, wanted)


@SETTINGS
@hypothesis.given(st.data())
def test_convolutions(operations, data):
    draw = data.draw
    sizes = st.lists(st.integers(1, 3), min_size=3, max_size=3)
    wrong = st.lists(st.integers(-1, 3) | st.sampled_from(EXTREME[np.int64]), max_size=4)
    attributes = {
        name: draw(sizes if draw(st.integers(0, 5)) else wrong)
        for name in ("kernel_size", "strides", "dilations")
    }
    attributes["padding"] = draw(st.sampled_from(["VALID", "SAME", "CAUSAL"]))
    pixels, channels = draw(st.tuples(*[st.integers(0, 6)] * 3)), draw(st.integers(1, 4))
    (_, outputs), values, structure = draw(kernels())
    if draw(st.integers(0, 4)):  # a kernel that fits
        fitting = max(1, int(np.prod([max(1, min(s, 3)) for s in attributes["kernel_size"]])))
        shape = fitting * channels, outputs
        places = np.flatnonzero(np.random.default_rng(2).random(shape) < 0.3)
        structure, values = engine.structure(places, shape)._asdict(), normal(len(places))
        name = draw(st.sampled_from(list(structure)))
        structure[name] = draw(spoilt(structure[name]))
    x = normal((draw(st.integers(0, 3)), *pixels, channels))
    found = result(operations.rigl_conv, x=x, values=values, **structure, **attributes)
    size = (1, 1, 1) if found is None else found[0].shape[1:4]
    dy = normal((len(x), *size, max(0, outputs - (draw(st.integers(0, 9)) == 0))))
    both = result(operations.rigl_conv_grad, x=x, dy=dy, values=values, **structure, **attributes)
    if both is not None:
        assert [each.shape for each in both] == [x.shape, values.shape]
        assert all(np.isfinite(each).all() for each in both)


@SETTINGS
@hypothesis.given(kernels(), st.sampled_from([1, 5, 2**31 - 1, 2**62]))
def test_places(operations, kernel, outputs):
    _, _, structure = kernel
    row_splits, columns = structure["row_splits"], structure["columns"]
    found = result(operations.rigl_places, row_splits=row_splits, columns=columns, outputs=outputs)
    if found is not None:
        rows = np.repeat(np.arange(len(row_splits) - 1), np.diff(row_splits))
        np.testing.assert_array_equal(found[0], rows * outputs + columns)


@SETTINGS
@hypothesis.given(
    st.lists(st.tuples(st.integers(-1, 40), st.booleans()), max_size=20),
    st.lists(st.integers(-1, 45) | st.sampled_from(EXTREME[np.int64]), max_size=20),
    st.booleans(),
)
def test_replaced_places(operations, places, grown, is_sorted):
    if is_sorted:
        places = sorted(dict(places).items())
        grown = sorted(set(grown) - {place for place, is_kept in places if is_kept})
    is_kept = np.array([kept for _, kept in places], bool)
    places, grown = (np.array(each, "int64") for each in ([p for p, _ in places], grown))
    found = result(operations.rigl_replace, places=places, is_kept=is_kept, grown=grown)
    if found is not None:
        np.testing.assert_array_equal(found[0], np.union1d(places[is_kept], grown))
        if len(places):
            was_there = np.isin(found[0], places)
            np.testing.assert_array_equal(places[found[1]] == found[0], was_there)
            np.testing.assert_array_equal(found[2], was_there)
