"""The arithmetic of kernels without zeros, against sums written out in float64."""

import itertools
import sys

import numpy as np
import pytest
import tensorflow as tf

import rigl_tf.engine
from rigl_tf.execution import engine


def example(batch, shape, n, seed=0):
    """Inputs, gradients of outputs, values and places, all random."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, shape[0])).astype("float32")
    dy = rng.standard_normal((batch, shape[1])).astype("float32")
    values = rng.standard_normal(n).astype("float32")
    places = np.sort(rng.choice(shape[0] * shape[1], n, replace=False)).astype("int64")
    return x, dy, values, places


def written_out(x, dy, values, places, shape):
    """`y`, `dx` and `dvalues`, one place at a time."""
    x, dy, values = (np.asarray(each, "float64") for each in (x, dy, values))
    y, dx, dvalues = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(values.shape)
    for i, (c, o) in enumerate(zip(*np.divmod(places, shape[1]), strict=True)):
        y[:, o] += x[:, c] * values[i]
        dx[:, c] += dy[:, o] * values[i]
        dvalues[i] = np.sum(x[:, c] * dy[:, o])
    return y, dx, dvalues


def computed(x, dy, values, places, shape):
    structure = engine.structure(tf.constant(places), shape)
    x, values = tf.constant(x), tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch([x, values])
        y = engine.matmul(x, values, structure, shape)
    return [each.numpy() for each in (y, *tape.gradient(y, [x, values], tf.constant(dy)))]


def with_bias(x, dy, values, places, shape):
    """The product with a bias, and the gradient of the bias."""
    structure, bias = engine.structure(tf.constant(places), shape), tf.constant(bias_of(shape))
    with tf.GradientTape() as tape:
        tape.watch(bias)
        y = engine.matmul(tf.constant(x), tf.constant(values), structure, shape, bias)
    return [each.numpy() for each in (y, tape.gradient(y, bias, tf.constant(dy)))]


def bias_of(shape):
    return np.linspace(-1, 1, shape[1], dtype="float32")


def assert_close(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=2e-5)


CASES = [
    # batch, (inputs, outputs), n
    (1, (1, 1), 1),
    (1, (1, 1), 0),
    (0, (3, 4), 5),
    (5, (7, 11), 30),
    (16, (1, 50), 20),
    (17, (50, 1), 20),
    (31, (64, 64), 1),
    (64, (16, 32), 512),
    (129, (37, 41), 300),
    (203, (67, 131), 900),
]


@pytest.mark.parametrize(("batch", "shape", "n"), CASES)
def test_products_are_those_of_the_dense_kernel(either, monkeypatch, batch, shape, n):
    monkeypatch.setattr(engine, "_TILE", 2000)
    arrays = example(batch, shape, n)
    assert_close(computed(*arrays, shape), written_out(*arrays, shape))


@pytest.mark.parametrize(("batch", "shape", "n"), CASES)
def test_a_bias_is_added(either, batch, shape, n):
    arrays = example(batch, shape, n)
    expected = written_out(*arrays, shape)[0] + bias_of(shape), arrays[1].sum(axis=0)
    assert_close(with_bias(*arrays, shape), expected)


def test_the_gradient_of_a_bias_can_be_differentiated(either):
    shape, weights = (7, 11), tf.range(11.0)
    x, dy, values, places = map(tf.constant, example(5, shape, 30))
    structure, bias = engine.structure(places, shape), tf.constant(bias_of(shape))
    with tf.GradientTape() as outer:
        outer.watch([x, values, bias])
        with tf.GradientTape() as inner:
            inner.watch([values, bias])
            y = engine.matmul(x, values, structure, shape, bias)
            loss = tf.reduce_sum(y**3 * dy)
        dvalues, dbias = inner.gradient(loss, [values, bias])
        total = tf.reduce_sum(dvalues**2) + tf.reduce_sum(dbias * weights)
    results = outer.gradient(total, [x, values, bias])
    rows, columns = np.divmod(places.numpy(), shape[1])
    with tf.GradientTape() as outer:
        outer.watch([x, values, bias])
        with tf.GradientTape() as inner:
            inner.watch([values, bias])
            kernel = tf.scatter_nd(np.stack([rows, columns], axis=1), values, shape)
            loss = tf.reduce_sum((x @ kernel + bias) ** 3 * dy)
        dvalues, dbias = inner.gradient(loss, [values, bias])
        total = tf.reduce_sum(dvalues**2) + tf.reduce_sum(dbias * weights)
    for result, wanted in zip(results, outer.gradient(total, [x, values, bias]), strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-3)


def test_a_batch_may_be_larger_than_what_is_transposed_at_a_time(limits):
    shape = (120, 30)
    arrays = example(40_003, shape, 100)
    expected = written_out(*arrays, shape)
    dbias = with_bias(*arrays, shape)[1]
    np.testing.assert_allclose(dbias, arrays[1].sum(axis=0), atol=0.02)
    for lanes in (8, 16):
        limits(0, lanes)
        y, dx, dvalues = computed(*arrays, shape)
        assert_close((y, dx), expected[:2])
        np.testing.assert_allclose(
            dvalues, expected[2], atol=0.02
        )  # Of 200, the size of such sums.
        limits(1, lanes)
        for result, other in zip(computed(*arrays, shape), (y, dx, dvalues), strict=True):
            np.testing.assert_array_equal(result, other)


def test_rows_and_columns_may_be_empty_or_full(either):
    shape = (40, 24)
    x, dy, _, _ = example(9, shape, 0)
    kernel = np.zeros(shape, bool)
    kernel[17, :] = kernel[:, 3] = True
    kernel[39] = False
    places = np.flatnonzero(kernel)
    values = np.random.default_rng(1).standard_normal(len(places)).astype("float32")
    arrays = x, dy, values, places
    assert_close(computed(*arrays, shape), written_out(*arrays, shape))


def test_places_may_lie_beyond_32_bits(either):
    shape = (60_000, 50_000)
    places = np.array([0, 2**31 - 1, 2**31, 2_999_999_999])
    x, dy = np.zeros((2, shape[0]), "float32"), np.zeros((2, shape[1]), "float32")
    for i, (c, o) in enumerate(zip(*np.divmod(places, shape[1]), strict=True)):
        x[:, c], dy[:, o] = (i + 1, 1), (1, i + 2)
    values = np.array([1.0, 2.0, 3.0, 4.0], "float32")
    arrays = x, dy, values, places
    expected = written_out(*arrays, shape)
    if engine.is_native():
        assert_close(computed(*arrays, shape), expected)
    else:  # The gradient by tiles of a dense one takes seconds.
        y = engine.matmul(x, values, engine.structure(tf.constant(places), shape), shape)
        assert_close([y], expected[:1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_come_through(either, bad):
    shape = (20, 30)
    x, dy, values, places = example(70, shape, 100)
    x[3, places[10] // 30] = bad
    dy[69, places[20] % 30] = bad
    values[50] = bad
    with np.errstate(invalid="ignore"):
        expected = written_out(x, dy, values, places, shape)
    for result, wanted in zip(computed(x, dy, values, places, shape), expected, strict=True):
        np.testing.assert_array_equal(np.isnan(result), np.isnan(wanted))
        np.testing.assert_array_equal(np.isinf(result), np.isinf(wanted))
        finite = np.isfinite(wanted)
        np.testing.assert_allclose(result[finite], wanted[finite], rtol=1e-5, atol=2e-5)


def test_batches_of_any_size_go_through_one_graph(either):
    shape = (13, 29)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 13]),
            tf.TensorSpec([None, 29]),
            tf.TensorSpec([None]),
            tf.TensorSpec([None], tf.int64),
        ]
    )
    def gradients(x, dy, values, places):
        structure = engine.structure(places, shape)
        with tf.GradientTape() as tape:
            tape.watch([x, values])
            y = engine.matmul(x, values, structure, shape)
        assert y.shape.as_list() == [None, 29]
        return y, *tape.gradient(y, [x, values], dy)

    for batch, n in [(0, 3), (1, 377), (66, 50)]:
        arrays = example(batch, shape, n)
        assert_close(gradients(*map(tf.constant, arrays)), written_out(*arrays, shape))


def test_a_gradient_of_the_data_is_computed_only_if_it_is_wanted(monkeypatch):
    monkeypatch.setenv("RIGL_TF_NATIVE", "1")
    if not engine.is_native():
        pytest.skip("There is no C++ compiler.")
    shape = (8, 9)
    x, dy, values, places = example(4, shape, 20)
    structure = engine.structure(places, shape)

    @tf.function
    def gradient(values, hidden):
        with tf.GradientTape() as tape:
            tape.watch([values, hidden])
            y = engine.matmul(tf.constant(x), values, structure, shape, bias_of(shape))
            z = engine.matmul(hidden, values, structure, shape)
        return tape.gradient([y, z], [values, hidden], [tf.constant(dy)] * 2)

    graph = gradient.get_concrete_function(tf.TensorSpec([20]), tf.TensorSpec([4, 8])).graph
    backward = [each for each in graph.get_operations() if each.type == "RiglMatmulGrad"]
    assert sorted(each.get_attr("input_gradient") for each in backward) == [False, True]
    assert not any(each.get_attr("bias_gradient") for each in backward)
    result, _ = gradient(tf.constant(values), tf.constant(x))
    expected = written_out(x, dy, values, places, shape)[2]
    np.testing.assert_allclose(result, 2 * expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_goes_in_and_comes_out(either, dtype):
    shape = (10, 12)
    x, _, values, places = example(6, shape, 40)
    half, structure = tf.cast(x, dtype), engine.structure(places, shape)
    with tf.GradientTape() as tape:
        tape.watch(half)
        y = engine.matmul(half, tf.cast(values, dtype), structure, shape)
    assert y.dtype == tape.gradient(y, half).dtype == dtype
    np.testing.assert_allclose(
        tf.cast(y, "float32"), written_out(x, y, values, places, shape)[0], atol=0.1
    )


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_results_do_not_depend_on_the_number_of_threads(limits, lanes):
    shape = (210, 170)
    for batch in (7, 64, 330):
        arrays = example(batch, shape, 4000)
        all_results = []
        for threads in (1, 2, 0):
            limits(threads, lanes)
            structure = engine.structure(arrays[3], shape)
            chosen = engine.largest_gradients(
                *arrays[:2], structure, shape, 500, arrays[2], arrays[2] > 0
            )
            products = [*computed(*arrays, shape), *with_bias(*arrays, shape)]
            all_results.append([*products, *chosen])
        assert_close(all_results[0][:3], written_out(*arrays, shape))
        for results in all_results[1:]:
            for result, other in zip(results, all_results[0], strict=True):
                np.testing.assert_array_equal(result, other)


def test_a_row_of_the_batch_does_not_depend_on_the_others(limits):
    shape = (50, 60)
    x, _, values, places = example(150, shape, 700)
    structure = engine.structure(places, shape)
    together = engine.matmul(x, values, structure, shape)
    for first, last in [(0, 1), (60, 97), (149, 150)]:
        alone = engine.matmul(x[first:last], values, structure, shape)
        np.testing.assert_array_equal(alone, together[first:last])


def test_many_calls_at_once(either):
    shape = (90, 110)
    arrays = example(70, shape, 1500)
    x, dy, values, places = arrays
    structure = engine.structure(tf.constant(places), shape)

    @tf.function
    def many(x, values):
        all_results = []
        for factor in range(1, 9):
            with tf.GradientTape() as tape:
                tape.watch([x, values])
                y = engine.matmul(factor * x, values, structure, shape)
            all_results.append((y / factor, *tape.gradient(y, [x, values], dy / factor)))
        return all_results

    expected = written_out(*arrays, shape)
    for results in many(tf.constant(x), tf.constant(values)):
        assert_close((results[0], results[2]), (expected[0], expected[2]))
        np.testing.assert_allclose(results[1], expected[1], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (1, 9), (9, 1), (30, 20)])
def test_structures_of_arrays_and_tensors_agree(either, shape):
    size = shape[0] * shape[1]
    for n in {0, 1, size // 2, size}:
        places = np.sort(np.random.default_rng(n).choice(size, n, replace=False))
        arrays, tensors = engine.structure(places, shape), engine.structure(list(places), shape)
        for array, tensor in zip(arrays, tensors, strict=True):
            assert array.dtype == tensor.dtype.as_numpy_dtype
            np.testing.assert_array_equal(array, tensor)
        rows, columns = np.divmod(places, shape[1])
        np.testing.assert_array_equal(arrays.columns, columns)
        np.testing.assert_array_equal(arrays.order, np.lexsort((rows, columns)))
        np.testing.assert_array_equal(arrays.rows, rows[arrays.order])
        np.testing.assert_array_equal(np.diff(arrays.row_splits), np.bincount(rows, None, shape[0]))
        by_outputs = np.bincount(columns, None, shape[1])
        np.testing.assert_array_equal(np.diff(arrays.column_splits), by_outputs)


def largest_inactive(x, dy, structure, shape, k):
    """The largest gradients of connections that are not active."""
    n = len(structure.columns)
    return engine.largest_gradients(x, dy, structure, shape, k, np.ones(n), np.zeros(n, bool))


def largest_by_sorting(gradient, left_out, k):
    magnitudes = np.abs(gradient).reshape(-1)
    eligible = np.setdiff1d(np.arange(magnitudes.size), left_out)
    order = np.lexsort((eligible, -magnitudes[eligible]))
    return np.sort(eligible[order[:k]])


@pytest.mark.parametrize(("batch", "shape", "n"), CASES)
def test_largest_gradients_are_found_exactly(either, monkeypatch, batch, shape, n):
    monkeypatch.setattr(engine, "_TILE", 2000)
    # Small integers: sums are exact, and there are many ties.
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (batch, shape[0])).astype("float32")
    dy = rng.integers(-1, 2, (batch, shape[1])).astype("float32")
    places = example(batch, shape, n)[3]
    gradient = x.T @ dy
    of_active = rng.integers(-9, 10, n).astype("float32")
    gradient.reshape(-1)[places] = of_active
    structure = engine.structure(places, shape)
    for is_eligible in (np.zeros(n, bool), np.arange(n) % 3 > 0, np.ones(n, bool)):
        eligible = gradient.size - np.count_nonzero(~is_eligible)
        for k in {0, min(1, eligible), eligible // 3, eligible}:
            found, values, is_finite = engine.largest_gradients(
                x, dy, structure, shape, k, of_active, is_eligible
            )
            left_out = places[~is_eligible]
            np.testing.assert_array_equal(found, largest_by_sorting(gradient, left_out, k))
            np.testing.assert_array_equal(values, gradient.reshape(-1)[found.numpy()])
            assert is_finite
            assert found.dtype == tf.int64


def test_the_search_keeps_few_candidates_and_still_finds_all(either):
    # Wider than one tile; more candidates than are kept at a time; the largest come last.
    shape, k = (100, 5000), 700
    x = np.linspace(1, 2, shape[0], dtype="float32")[np.newaxis]
    dy = np.linspace(-1, 1, shape[1], dtype="float32")[np.newaxis]
    places = np.arange(0, shape[0] * shape[1], 7)
    search = tf.function(
        lambda k: largest_inactive(x, dy, engine.structure(places, shape), shape, k)
    )
    found, _, is_finite = search(tf.constant(k))
    assert is_finite
    np.testing.assert_array_equal(found, largest_by_sorting(x.T * dy, places, k))


def test_the_search_finds_its_way_among_ties(either):
    # All gradients are 1 or 0, far more of either than are kept at a time.
    shape, k = (120, 3000), 1000
    x, dy = np.ones((1, shape[0]), "float32"), np.zeros((1, shape[1]), "float32")
    dy[:, 1500:] = 1
    structure = engine.structure(np.arange(0, 360_000, 1501), shape)
    expected = np.setdiff1d(np.arange(1500, 3000), np.arange(0, 3000, 1501))
    found, gradients, _ = largest_inactive(x, dy, structure, shape, k)
    np.testing.assert_array_equal(found, expected[:k])
    np.testing.assert_array_equal(gradients, 1)
    found, _, _ = largest_inactive(0 * x, dy, structure, shape, k)
    np.testing.assert_array_equal(found, np.setdiff1d(np.arange(k + 1), [0]))


@pytest.mark.parametrize("large", ["seldom", "in_the_sample", "outside_the_sample"])
def test_the_search_may_misjudge_how_large_gradients_are(limits, large):
    """It looks at the first inputs of some blocks, which may be unlike the others."""
    shape, k = (48 * 20, 70), 300
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, shape[0])), rng.standard_normal((2, shape[1]))
    is_in_sample = np.arange(shape[0]) % 48 < 12
    x *= {"seldom": 1, "in_the_sample": is_in_sample, "outside_the_sample": ~is_in_sample}[large]
    x, dy = x.astype("float32"), dy.astype("float32")
    places = np.arange(0, shape[0] * shape[1], 9)
    structure = engine.structure(places, shape)
    for k in (1, 300, shape[0] * shape[1] // 2):
        found, gradients, _ = largest_inactive(x, dy, structure, shape, k)
        np.testing.assert_allclose(gradients, (x.T @ dy).reshape(-1)[found.numpy()], rtol=1e-4)
        least = np.sort(np.abs(np.delete((x.T @ dy).reshape(-1), places)))[-k]
        assert np.abs(gradients).min() >= least * (1 - 1e-5)
        assert len(np.unique(found)) == k


def test_the_search_reports_gradients_that_are_not_finite(either):
    shape = (12, 80)
    x, dy, _, places = example(5, shape, 100)
    structure = engine.structure(places, shape)
    for bad in (np.nan, np.inf, 3e38):
        spoilt = dy.copy()
        spoilt[:, 79] = bad
        found, _, is_finite = largest_inactive(4 * x, spoilt, structure, shape, 10)
        assert not is_finite
        assert len(found) == 10
        of_active = np.where(np.arange(100) == 30, bad * 4, 1)
        assert not engine.largest_gradients(x, dy, structure, shape, 10, of_active, of_active < 2)[
            2
        ]


def test_wrong_shapes_are_refused(either):
    x, dy, values, places = example(4, (6, 5), 10)
    structure = engine.structure(places, (6, 5))
    with pytest.raises(ValueError, match="`x` must be"):
        engine.matmul(x[:, :5], values, structure, (6, 5))
    with pytest.raises(ValueError, match="`bias` must be"):
        engine.matmul(x, values, structure, (6, 5), np.ones(4))
    with pytest.raises(ValueError, match="not that of a kernel of shape"):
        engine.matmul(x, values, engine.structure(places, (6, 6)), (6, 5))
    with pytest.raises(ValueError, match="`shape` must be two integers"):
        engine.structure(places, (0, 5))
    with pytest.raises(ValueError, match="`shape` must be two integers"):
        engine.structure(places, (5, 2**31))
    with pytest.raises(ValueError, match="`dy` must be"):
        largest_inactive(x, dy[:, :4], structure, (6, 5), 1)
    for k in (-1, 21):
        with pytest.raises(tf.errors.InvalidArgumentError, match="`k` must be"):
            largest_inactive(x, dy, structure, (6, 5), k)


@pytest.mark.parametrize("places", [[2, 1], [1, 1], [-1, 1], [1, 30]])
def test_places_must_ascend_inside_the_kernel(either, places):
    for given, error in [
        (np.array(places), ValueError),
        (places, tf.errors.InvalidArgumentError),
    ]:
        with pytest.raises(error, match="`places` must"):
            engine.structure(given, (6, 5))


@pytest.mark.parametrize(
    ("name", "entry", "wrong"),
    [
        ("row_splits", 0, 1),
        ("row_splits", 3, 99),
        ("columns", 2, 5),
        ("columns", 2, -1),
        ("column_splits", 5, 9),
        ("column_splits", 1, -1),
        ("rows", 0, 6),
        ("rows", 9, -1),
        ("order", 4, 10),
    ],
)
def test_a_structure_that_does_not_fit_is_refused_before_it_is_used(limits, name, entry, wrong):
    shape = (6, 5)
    x, dy, values, places = example(4, shape, 10)
    structure = engine.structure(places, shape)
    getattr(structure, name)[entry] = wrong
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{name}`"):
        computed_with(structure, x, dy, values, shape)


def computed_with(structure, x, dy, values, shape):
    values = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = engine.matmul(x, values, structure, shape)
    return tape.gradient(y, values, tf.constant(dy))


def test_without_a_compiler_there_is_one_warning_and_the_right_result(monkeypatch, tmp_path):
    monkeypatch.setenv("RIGL_TF_NATIVE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine._loaded.cache_clear()
    shape = (6, 5)
    arrays = example(4, shape, 10)
    try:
        monkeypatch.setattr(engine, "_compiler", lambda: None)
        with pytest.warns(UserWarning, match="Install a C\\+\\+ compiler"):
            results = computed(*arrays, shape)
        assert_close(results, written_out(*arrays, shape))
        assert not engine.is_native()
        engine._loaded.cache_clear()
        monkeypatch.setattr(engine, "_compiler", lambda: [sys.executable])  # It knows no flag.
        with pytest.warns(UserWarning, match="python.* failed"):
            assert not engine.is_native()
    finally:
        engine._loaded.cache_clear()
    assert not list(itertools.chain(tmp_path.rglob("*.so"), tmp_path.rglob(".building*")))


@pytest.mark.parametrize(
    ("library", "says", "status"),
    [
        ("there", "Built before", 0),
        ("wrong", "wrong by", 1),
        ("damaged", "If this file is damaged, remove it", 1),
        ("not wanted", "RIGL_TF_NATIVE is 0", 1),
        ("no compiler", "no C++ compiler was found", 1),
    ],
)
def test_the_command_says_what_it_did(limits, monkeypatch, tmp_path, capsys, library, says, status):
    there = engine.library_path()
    if library in ("damaged", "no compiler"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(engine, "_compiler", lambda: None)
    if library == "damaged":
        engine.library_path().parent.mkdir()
        engine.library_path().write_bytes(there.read_bytes()[:100])
    if library == "not wanted":
        monkeypatch.setenv("RIGL_TF_NATIVE", "0")
    if library == "wrong":
        monkeypatch.setattr(rigl_tf.engine, "_error", lambda operations: 0.1)
    assert rigl_tf.engine.main() == status
    assert says in capsys.readouterr().out


def test_places_are_replaced(either):
    rng = np.random.default_rng(0)
    for num_places, num_kept, num_grown in [(1, 0, 1), (40, 40, 0), (40, 0, 40), (40, 25, 30)]:
        places = np.sort(rng.choice(100, num_places, replace=False))
        is_kept = np.zeros(num_places, bool)
        is_kept[rng.choice(num_places, num_kept, replace=False)] = True
        open_places = np.setdiff1d(np.arange(100), places[is_kept])
        grown = np.sort(rng.choice(open_places, num_grown, replace=False))
        new, before, was_there = (each.numpy() for each in engine.replaced(places, is_kept, grown))
        np.testing.assert_array_equal(new, np.union1d(places[is_kept], grown))
        np.testing.assert_array_equal(was_there, np.isin(new, places))
        np.testing.assert_array_equal(places[before] == new, was_there)
        assert set(before) <= set(range(num_places))


@pytest.mark.parametrize(
    ("places", "is_kept", "grown", "message"),
    [
        ([1, 2], [True], [3], "`is_kept` must have the shape of `places`"),
        ([1, 2], [True, True], [2], "what is kept cannot grow"),
        ([1, 2], [True, True], [5, 4], "must ascend"),
        ([2, 1], [True, True], [4], "must ascend"),
        ([1, 2], [True, True], [-1], "must ascend"),
        ([1, 2], [True, True], [[3]], "rank 1"),
    ],
)
def test_places_that_cannot_be_replaced(limits, places, is_kept, grown, message):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        engine.replaced(places, is_kept, grown)
