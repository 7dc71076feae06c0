"""Tests of `rigl_tf.selection`: by hand, and against NumPy in eager mode, graphs and XLA."""

import numpy as np
import pytest
import reference
import tensorflow as tf
from helpers import ON_ONE_DEVICE, in_world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rigl_tf import selection

pytestmark = pytest.mark.optimized_graphs
SHAPE = (6, 7)
SIZE = 42
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def random_scores(rng, shape=SHAPE):
    """Scores of one of the kinds that have broken selections elsewhere."""
    kind = rng.integers(6)
    if kind == 0:  # plain
        return rng.normal(size=shape).astype("float32")
    if kind == 1:  # almost all tie
        return rng.integers(-1, 2, size=shape).astype("float32")
    if kind == 2:  # all tie
        return np.full(shape, rng.choice([0.0, -0.0, 1.0, -3.5]), "float32")
    if kind == 3:  # both zeros, which tie
        return rng.choice([0.0, -0.0, 1.0, -1.0], size=shape).astype("float32")
    if kind == 4:  # from tiny to huge
        exponents = rng.uniform(-37, 38, size=shape)
        return (rng.choice([-1, 1], size=shape) * 10.0**exponents).astype("float32")
    # neighbours, which differ in the last bit
    return (1 + rng.integers(0, 4, size=shape) * np.finfo("float32").eps).astype("float32")


def random_case(rng, shape=SHAPE):
    mask = rng.random(shape) < rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    num_active = int(mask.sum())
    num_drop = int(rng.choice([0, num_active, rng.integers(num_active + 1)]))
    return mask, random_scores(rng, shape), random_scores(rng, shape), num_drop


@pytest.fixture(params=["bisection", "histograms"])
def way(request, monkeypatch):
    """How the k-th largest score is found, whatever the size."""
    if request.param == "histograms":
        monkeypatch.setattr(selection, "_ROW", 0)


# By hand.


def test_drop_and_grow_by_hand():
    mask = [[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    # The two weakest of the six active connections are the 1 in row 0 and the 2 in row 1. The
    # large scores of inactive connections do not count.
    drop_scores = [[5, 1, 9, 9], [6, 9, 2, 9], [9, 7, 9, 8]]
    # Candidates are the eight that were not kept; the two best of them are the 8, which was
    # dropped just now and so comes back, and the 7. The 9s belong to kept connections.
    grow_scores = [[9, 8, 1, 2], [9, 3, 0, 4], [5, 9, 7, 9]]
    new_mask, grown = selection.drop_and_grow(
        tf.constant(np.array(mask, bool)),
        tf.constant(drop_scores, "float32"),
        tf.constant(grow_scores, "float32"),
        2,
    )
    assert new_mask.numpy().astype(int).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1]]
    assert grown.numpy().astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_top_k_mask_by_hand():
    scores = tf.constant([[1.0, 3.0, 2.0], [3.0, 0.0, 3.0]])
    assert selection.top_k_mask(scores, 2).numpy().astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert selection.top_k_mask(scores, 4).numpy().astype(int).tolist() == [[0, 1, 1], [1, 0, 1]]


def test_an_inactive_connection_never_ties_with_an_active_zero():
    # rigl and rigl-torch keep inactive entries here: their score is 0 as well.
    mask = tf.constant([False, False, True, True])
    zeros = tf.zeros([4])
    new_mask, grown = selection.drop_and_grow(mask, zeros, zeros, 0)
    assert new_mask.numpy().tolist() == mask.numpy().tolist()
    assert not grown.numpy().any()


def test_kept_connections_are_told_from_huge_scores():
    # "max + eps" is no order: in float32, 300 + 1e-5 == 300.
    mask = tf.constant([True, True, False, False])
    new_mask, _ = selection.drop_and_grow(
        mask, tf.constant([1.0, 2.0, 0.0, 0.0]), tf.constant([300.0, 300.0, 300.0, 3e38]), 1
    )
    assert new_mask.numpy().tolist() == [False, True, False, True]


# Against the reference.


@pytest.mark.parametrize(("world", "cases"), [("eager", 80), ("graph", 600), ("XLA", 400)])
def test_drop_and_grow_is_the_reference(world, cases, way):
    rng = np.random.default_rng(0)
    fn = in_world(world, selection.drop_and_grow)
    for case in range(cases):
        mask, drop_scores, grow_scores, num_drop = random_case(rng)
        new_mask, grown = fn(mask, drop_scores, grow_scores, tf.constant(num_drop))
        want_mask, want_grown = reference.drop_and_grow(mask, drop_scores, grow_scores, num_drop)
        np.testing.assert_array_equal(new_mask, want_mask, err_msg=f"case {case}")
        np.testing.assert_array_equal(grown, want_grown, err_msg=f"case {case}")
        assert np.count_nonzero(new_mask) == np.count_nonzero(mask)


@pytest.mark.parametrize(("world", "cases"), [("eager", 60), ("graph", 500), ("XLA", 400)])
def test_top_k_mask_is_the_reference(world, cases, way):
    rng = np.random.default_rng(1)
    fn = in_world(world, selection.top_k_mask)
    for case in range(cases):
        scores, k = random_scores(rng), int(rng.integers(SIZE + 1))
        want = reference.top_k_mask(scores, k)
        np.testing.assert_array_equal(fn(scores, tf.constant(k)), want, err_msg=f"case {case}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float_type(dtype, way):
    rng = np.random.default_rng(2)
    fn = tf.function(selection.drop_and_grow)
    for _ in range(150):
        mask, drop_scores, grow_scores, num_drop = random_case(rng)
        # float16 makes ties and infinities of what is different in float32.
        drop_scores, grow_scores = (
            tf.cast(tf.clip_by_value(scores, -6e4, 6e4), dtype)
            for scores in (drop_scores, grow_scores)
        )
        new_mask, _ = fn(mask, drop_scores, grow_scores, tf.constant(num_drop))
        want, _ = reference.drop_and_grow(
            mask,
            drop_scores.numpy().astype("float64"),
            grow_scores.numpy().astype("float64"),
            num_drop,
        )
        np.testing.assert_array_equal(new_mask, want)


def test_float64_is_not_rounded():
    scores = tf.constant([1.0, 1.0 + 1e-15, 1.0 + 2e-15], "float64")
    assert selection.top_k_mask(scores, 1).numpy().tolist() == [False, False, True]


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 1), (3, 3, 2, 4), (1, 300), (300, 3)])
def test_every_shape(shape, world, way):
    rng = np.random.default_rng(3)
    fn = in_world(world, selection.drop_and_grow)
    for _ in range(4):
        mask, drop_scores, grow_scores, num_drop = random_case(rng, shape)
        new_mask, _ = fn(mask, drop_scores, grow_scores, tf.constant(num_drop))
        want, _ = reference.drop_and_grow(mask, drop_scores, grow_scores, num_drop)
        np.testing.assert_array_equal(new_mask, want)


def test_a_large_kernel():
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(700, 900)).astype("float32").round(2)  # about a thousand values
    order = np.argsort(-scores, axis=None, kind="stable")
    fn = tf.function(selection.top_k_mask)
    for k in (0, 1, 12_345, 629_999, 630_000):
        want = np.zeros(scores.size, bool)
        want[order[:k]] = True
        np.testing.assert_array_equal(fn(scores, tf.constant(k)), want.reshape(scores.shape))


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
def test_infinite_scores(world, way):
    fn = in_world(world, selection.top_k_mask)
    inf = np.inf
    scores = tf.constant([inf, 1.0, -inf, 3e38, -3e38, inf])
    for k in range(7):
        want = reference.top_k_mask(scores.numpy(), k)
        np.testing.assert_array_equal(fn(scores, tf.constant(k)), want)


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
def test_denormal_scores(world, way):
    fn = in_world(world, selection.top_k_mask)
    scores = np.array([0.0, 1e-45, -1e-45, 1e-39, -1e-39, -0.0, 1e-30], "float32")
    for k in range(8):
        want = reference.top_k_mask(scores, k)
        np.testing.assert_array_equal(fn(tf.constant(scores), tf.constant(k)), want)


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
def test_both_zeros_tie(world, way):
    # `score + 0.0` makes them equal in eager mode; a graph optimizes the addition away.
    fn = in_world(world, selection.top_k_mask)
    got = fn(tf.constant([-0.0, 0.0, -0.0, 0.0, -1.0]), tf.constant(2))
    assert got.numpy().tolist() == [True, True, False, False, False]


# Counts.


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
def test_random_mask_has_the_exact_count(world, way):
    fn = in_world(world, lambda k, seed: selection.random_mask(SHAPE, k, seed))
    seen = set()
    for k in range(SIZE + 1):
        mask = fn(tf.constant(k), tf.constant([0, k])).numpy()
        assert mask.sum() == k
        seen.add(mask.tobytes())
    assert len(seen) == SIZE + 1


def test_random_mask_is_a_function_of_its_seed_in_every_world():
    masks = [
        in_world(world, lambda seed: selection.random_mask(SHAPE, 10, seed))(tf.constant([3, 4]))
        for world in ON_ONE_DEVICE
    ]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])
    other = selection.random_mask(SHAPE, 10, (3, 5))
    assert (masks[0].numpy() != other.numpy()).any()


@pytest.fixture
def small_tiles(monkeypatch):
    """All that has more than 16 entries is looked at tile by tile."""
    monkeypatch.setattr(selection, "_ROW", 0)
    monkeypatch.setattr(selection, "_TILE", 16)
    monkeypatch.setattr(selection, "_DRAWS", 16)
    selection._traced_top_k.cache_clear()
    yield
    selection._traced_top_k.cache_clear()


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
def test_tiles_select_what_the_whole_does(world, small_tiles):
    rng = np.random.default_rng(0)
    for shape in ((4, 4), (1, 17), (5, 13)):
        scores = [random_scores(rng, shape) for _ in range(6)]

        def select(*scores):
            return [selection.top_k_mask(each, 7) for each in scores]

        for each, mask in zip(scores, in_world(world, select)(*scores), strict=True):
            np.testing.assert_array_equal(mask, reference.top_k_mask(each, 7))


@pytest.mark.parametrize("size", [1, 16, 17, 1000])
def test_random_places_are_those_of_the_random_mask(size, small_tiles):
    draws = tf.random.stateless_uniform([size], (3, 5), None, None, tf.int64)
    order = np.argsort(~draws.numpy(), kind="stable")
    for num_active in {0, size // 10, size // 2, size}:
        places = selection.random_places(size, num_active, seed=(3, 5))
        np.testing.assert_array_equal(places, np.sort(order[:num_active]))
        mask = selection.random_mask((size,), num_active, seed=(3, 5))
        np.testing.assert_array_equal(np.flatnonzero(mask), places)


def test_random_places_when_the_draws_are_far_from_what_is_expected(small_tiles, monkeypatch):
    whole = selection.random_places(1000, 100, seed=(0, 1))
    first, thresholds = selection._quantile, []

    def much_too_high(share):
        thresholds.append(share)
        return first(share + 0.3 if len(thresholds) <= 2 else share)

    monkeypatch.setattr(selection, "_quantile", much_too_high)
    np.testing.assert_array_equal(selection.random_places(1000, 100, seed=(0, 1)), whole)
    assert len(thresholds) == 4


def test_random_mask_is_uniform():
    # Each of 42 entries is active in 1/3 of 600 masks: 200 times, give or take 5 * 12.
    fn = tf.function(lambda seed: selection.random_mask(SHAPE, SIZE // 3, seed))
    times = sum(fn(tf.constant([7, i])).numpy().astype(int) for i in range(600))
    assert times.sum() == 600 * SIZE // 3
    assert (np.abs(times - 200) < 60).all()


@pytest.mark.parametrize(("k", "count"), [(-3, 0), (0, 0), (42, 42), (99, 42)])
def test_k_is_clipped(k, count, way):
    assert selection.top_k_mask(tf.zeros(SHAPE), k).numpy().sum() == count


def test_num_drop_is_clipped():
    mask = tf.constant([True, True, False, False])
    scores = tf.constant([1.0, 2.0, 3.0, 4.0])
    new_mask, grown = selection.drop_and_grow(mask, scores, scores, 5)
    assert new_mask.numpy().tolist() == [False, False, True, True]
    assert grown.numpy().tolist() == [False, False, True, True]


_GRAPH = tf.function(selection.drop_and_grow)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_counts_and_kept_connections(data):
    shape = (3, 4)
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)

    def scores():
        return np.reshape(data.draw(st.lists(floats, min_size=12, max_size=12)), shape).astype(
            "float32"
        )

    mask = np.reshape(data.draw(st.lists(st.booleans(), min_size=12, max_size=12)), shape)
    drop_scores, grow_scores = scores(), scores()
    num_drop = data.draw(st.integers(0, int(mask.sum())))
    new_mask, grown = (
        t.numpy() for t in _GRAPH(mask, drop_scores, grow_scores, tf.constant(num_drop))
    )
    want, _ = reference.drop_and_grow(mask, drop_scores, grow_scores, num_drop)
    np.testing.assert_array_equal(new_mask, want)
    assert new_mask.sum() == mask.sum()
    assert (mask & ~new_mask).sum() == grown.sum() <= num_drop
    assert not (grown & mask).any()


@pytest.mark.parametrize("world", ["eager", "graph", "XLA"])
def test_scores_that_are_no_numbers_cost_no_connection(world):
    """-inf and NaN are the lowest scores, but never below those of an inactive connection."""
    mask = tf.constant([False, True, True, True, False])
    drop_scores = tf.constant([9.0, -np.inf, np.nan, 1.0, 9.0])
    grow_scores = tf.constant([np.nan, 0.0, 0.0, 0.0, -np.inf])
    new_mask, grown = in_world(world, selection.drop_and_grow)(mask, drop_scores, grow_scores, 1)
    # Kept: the 1.0, and of the two lowest the first. Grown: the dropped one's 0.0 is the largest.
    assert new_mask.numpy().tolist() == [False, True, True, True, False]
    assert not grown.numpy().any()


@pytest.mark.parametrize("dtype", [bool, "int32", "uint8"])
def test_scores_that_are_not_floating_point(dtype):
    mask = tf.constant([True, True, False, False])
    drop, grow = np.array([1, 0, 1, 0], dtype), np.array([0, 0, 0, 1], dtype)
    new_mask, _ = selection.drop_and_grow(mask, tf.constant(drop), tf.constant(grow), 1)
    assert new_mask.numpy().tolist() == [True, False, False, True]
