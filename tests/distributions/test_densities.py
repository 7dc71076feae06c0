"""Tests of `rigl_tf.distributions`: by hand, against the reference, and by its properties."""

import math
import re

import numpy as np
import pytest
import reference

import models
import rigl_tf
from rigl_tf import distributions

LENET = {"fc1": (784, 300), "fc2": (300, 100), "fc3": (100, 10)}
NAMES = ["uniform", "erdos_renyi", "erk"]


def received(text):
    """A pattern for the end of an error message."""
    return re.escape(f"Received: {text}")


def size_of(shape):
    return math.prod(int(dim) for dim in shape)


def num_active(shapes, result):
    return {
        path: size_of(shape) - distributions.num_zeros(size_of(shape), result[path])
        for path, shape in shapes.items()
    }


def random_shapes(rng, two_dimensional=False):
    """One to twelve layers, some of equal shape, from a handful to millions of weights."""
    shapes = []
    for _ in range(rng.integers(1, 13)):
        if shapes and rng.random() < 0.2:
            shapes.append(shapes[rng.integers(len(shapes))])
            continue
        dense = tuple(int(2 ** rng.uniform(0, 10)) for _ in range(2))
        kernel = int(rng.choice([1, 3, 5, 7]))
        is_conv = rng.random() < 0.5 and not two_dimensional
        shapes.append((kernel, kernel, *dense) if is_conv else dense)
    return {f"layer_{index}/kernel": shape for index, shape in enumerate(shapes)}


def random_sparsity(rng):
    """Anywhere in [0, 1), with one case in two close to an end."""
    near = float(10.0 ** rng.uniform(-9, -1))
    return [float(rng.random()), float(rng.random()), near, 1 - near][rng.integers(4)]


def random_custom(rng, shapes):
    return {path: float(rng.random()) for path in shapes if rng.random() < 0.3}


class TestByHand:
    def test_erk_lenet(self):
        # Sizes 235200, 30000, 1000; at 0.9 the active weights are 23520 + 3000 + 100 = 26620.
        # size * sum / prod = sum(shape): 1084, 400, 110, together 1594.
        # First pass:  epsilon = 26620 / 1594 = 16.70; fc3 would be 110 / 1000 * 16.70 = 1.84
        #              dense, the largest and above 1: it stays dense and takes 1000.
        # Second pass: epsilon = (26620 - 1000) / (1084 + 400) = 25620 / 1484;
        #              fc2 is 400 / 30000 * 17.26 = 0.230, below 1: done.
        epsilon = 25620 / 1484
        expected = {
            "fc1": 1 - epsilon * 1084 / 235200,  # 0.92043
            "fc2": 1 - epsilon * 400 / 30000,  # 0.76981
            "fc3": 0.0,
        }
        result = distributions.erk(LENET, 0.9)
        assert result == pytest.approx(expected, abs=1e-12)
        assert list(result) == list(LENET)
        # 25620 * 1084 / 1484 = 18714.3 and 25620 * 400 / 1484 = 6905.7, rounded up.
        assert num_active(LENET, result) == {"fc1": 18715, "fc2": 6906, "fc3": 1000}

    def test_erk_counts_the_kernel_window_and_er_does_not(self):
        # Sizes 3*3*16*32 = 4608 and 320; zeros at 0.8: floor(3686.4) and 256; active 922 + 64.
        # ERK: epsilon = 986 / (54 + 42); density 54 / 4608 and 42 / 320 times epsilon, and the
        #      second, 1.348, exceeds 1: dense, leaving 986 - 320 = 666 of 4608.
        # ER:  ratios 48 / 512 and 42 / 320, sizes 4608 and 320: epsilon = 986 / (432 + 42).
        shapes = {"conv": (3, 3, 16, 32), "dense": (32, 10)}
        assert distributions.erk(shapes, 0.8) == pytest.approx({"conv": 1 - 666 / 4608, "dense": 0})
        expected = {"conv": 1 - 986 / 474 * 48 / 512, "dense": 1 - 986 / 474 * 42 / 320}
        assert distributions.erdos_renyi(shapes, 0.8) == pytest.approx(expected)

    def test_ties_become_dense_together(self):
        # Sizes 10000, 20, 20; active at 0.9: 1000 + 2 + 2. epsilon = 1004 / (200 + 12 + 12),
        # and 12 / 20 times it is 2.7: both small ones are dense; 1004 - 40 of 10000 are left.
        shapes = {"a": (2, 10), "big": (100, 100), "b": (2, 10)}
        result = distributions.erk(shapes, 0.9)
        assert result == pytest.approx({"a": 0.0, "big": 1 - 0.0964, "b": 0.0})

    @pytest.mark.parametrize(
        ("sparsity", "density_a", "density_b"),
        [
            (0.72, 19 / 20, 19 / 20 * 16 / 60),  # zeros 2 + 43, active 19
            (0.71, 1.0, 16 / 60),  # zeros 2 + 42, active 20: exactly 1
            (0.6875, 1.0, 17 / 60),  # zeros 2 + 41, active 21: 1.05, so 4 of the 21 are for "a"
        ],
    )
    def test_around_a_density_of_one(self, sparsity, density_a, density_b):
        # Sizes 4 and 60, sums 4 and 16: epsilon = active / 20, the densities 1 and 16 / 60 of it.
        result = distributions.erk({"a": (2, 2), "b": (6, 10)}, sparsity)
        assert result == pytest.approx({"a": 1 - density_a, "b": 1 - density_b})

    def test_custom_is_left_out_of_the_budget(self):
        # Without fc1: active 3000 + 100 = 3100, epsilon = 3100 / 510, and fc3 would be
        # 0.11 * 6.08 = 0.67 dense: below 1, so now nothing is dense.
        expected = {"fc1": 0.5, "fc2": 1 - 3100 / 510 * 400 / 30000, "fc3": 1 - 3100 / 510 * 0.11}
        for value in (0.0, 0.5, 0.99):
            result = distributions.erk(LENET, 0.9, custom={"fc1": value})
            assert result == pytest.approx(expected | {"fc1": value})
            assert distributions.erdos_renyi(LENET, 0.9, custom={"fc1": value}) == result

    def test_power(self):
        # Sum / prod = 1 and 1 / 2, squares 1 and 1 / 4; sizes 4 and 16; zeros at 0.9: 3 and 14;
        # active 3: epsilon = 3 / (4 + 4).
        shapes = {"a": (2, 2), "b": (4, 4)}
        expected = {"a": 1 - 3 / 8, "b": 1 - 3 / 32}
        assert distributions.erk(shapes, 0.9, power=2) == pytest.approx(expected)
        assert distributions.erk(shapes, 0.9, power=0) == pytest.approx({"a": 0.85, "b": 0.85})

    def test_num_zeros(self):
        assert distributions.num_zeros(1000, 0.9) == 900
        assert distributions.num_zeros(100, 0.29) == 28  # 0.29 * 100 = 28.999999999999996
        assert distributions.num_zeros(7, 0.5) == 3
        assert distributions.num_zeros(np.int64(10), np.float32(0.5)) == 5
        assert [distributions.num_zeros(n, math.nextafter(1, 0)) for n in (1, 5, 10**9)] == [
            0,
            4,
            10**9 - 1,
        ]


class TestUniform:
    def test_first_is_dense(self):
        assert distributions.uniform(LENET, 0.9) == {"fc1": 0.0, "fc2": 0.9, "fc3": 0.9}

    def test_first_is_dense_only_if_wanted(self):
        expected = {"fc1": 0.9, "fc2": 0.9, "fc3": 0.9}
        assert distributions.uniform(LENET, 0.9, dense_first=False) == expected

    def test_the_only_kernel_is_sparse(self):
        assert distributions.uniform({"fc": (4, 4)}, 0.5) == {"fc": 0.5}

    def test_custom_goes_before_dense_first(self):
        result = distributions.uniform(LENET, 0.9, custom={"fc3": 0.25, "fc1": 0.5})
        assert list(result.items()) == [("fc1", 0.5), ("fc2", 0.9), ("fc3", 0.25)]


class TestProperties:
    def test_erk_equals_the_reference(self):
        rng = np.random.default_rng(0)
        num_mixed = num_custom = 0
        for _ in range(3000):
            shapes = random_shapes(rng)
            sparsity = random_sparsity(rng)
            power = [0.0, 1.0, 2.0, float(rng.uniform(0, 2))][rng.integers(4)]
            custom = random_custom(rng, shapes) if rng.random() < 0.3 else None
            result = distributions.erk(shapes, sparsity, power=power, custom=custom)
            expected = reference.erk(shapes, sparsity, power, custom)
            assert result == pytest.approx(expected, abs=1e-12, rel=0), (shapes, sparsity)
            assert num_active(shapes, result) == num_active(shapes, expected)
            assert list(result) == list(shapes)
            assert all(type(value) is float and 0 <= value < 1 for value in result.values())
            num_mixed += 0 in result.values() and max(result.values()) > 0
            num_custom += bool(custom)
        assert num_mixed > 1000  # the cases did reach the dense passes
        assert num_custom > 300

    @pytest.mark.parametrize("name", ["erk", "erdos_renyi"])
    def test_the_budget_is_met_to_one_weight_per_kernel(self, name):
        rng = np.random.default_rng(1)
        for _ in range(1000):
            shapes = random_shapes(rng)
            sparsity = random_sparsity(rng)
            sizes = [size_of(shape) for shape in shapes.values()]
            budget = sum(size - distributions.num_zeros(size, sparsity) for size in sizes)
            active = num_active(shapes, distributions.get(name)(shapes, sparsity))
            assert budget <= sum(active.values()) <= budget + len(shapes), (shapes, sparsity)
            assert min(active.values()) >= 1

    def test_densities_are_proportional_to_the_ratio_or_one(self):
        """The solution of ERK without its algorithm: `density = min(1, epsilon * ratio)`."""
        rng = np.random.default_rng(2)
        for _ in range(1000):
            shapes = random_shapes(rng)
            result = distributions.erk(shapes, float(rng.uniform(0.3, 0.99)))
            ratios = np.array([sum(shape) / size_of(shape) for shape in shapes.values()])
            densities = 1 - np.array([result[path] for path in shapes])
            epsilons = (densities / ratios)[densities < 1]
            if len(epsilons):
                np.testing.assert_allclose(epsilons, epsilons[0], rtol=1e-9)
                expected = np.minimum(1, epsilons[0] * ratios)
                np.testing.assert_allclose(densities, expected, rtol=1e-9)

    def test_er_equals_erk_on_two_dimensions(self):
        rng = np.random.default_rng(3)
        for _ in range(300):
            shapes = random_shapes(rng, two_dimensional=True)
            sparsity = random_sparsity(rng)
            custom = random_custom(rng, shapes)
            result = distributions.erdos_renyi(shapes, sparsity, custom=custom)
            assert result == distributions.erk(shapes, sparsity, custom=custom)

    def test_power_zero_is_uniform_up_to_whole_weights(self):
        result = distributions.erk(LENET, 0.9, power=0)
        assert result == pytest.approx(dict.fromkeys(LENET, 0.9))


class TestDegenerate:
    """Requests at which the published loop divides by zero or leaves `[0, 1)`."""

    @pytest.mark.parametrize("sparsity", [0, 0.0, 1e-300, 1e-7])
    @pytest.mark.parametrize("name", ["erk", "erdos_renyi"])
    def test_no_zero_to_place_makes_all_dense(self, name, sparsity):
        # 1e-7 of 235200 weights is less than one.
        assert distributions.get(name)(LENET, sparsity) == dict.fromkeys(LENET, 0.0)

    def test_sparsity_zero_is_exactly_zero(self):
        # 1 - epsilon * ratio is up to 2e-16 off, which would count as a sparse kernel.
        rng = np.random.default_rng(4)
        for _ in range(300):
            shapes = random_shapes(rng)
            assert distributions.erk(shapes, 0.0) == dict.fromkeys(shapes, 0.0)
            assert distributions.erdos_renyi(shapes, 0.0) == dict.fromkeys(shapes, 0.0)

    def test_one_zero_to_place_goes_to_the_largest(self):
        # 5e-6 * 235200 = 1.18, so one zero: fc3, then fc2 are dense, fc1 is 1 short of full.
        result = distributions.erk(LENET, 5e-6)
        assert result == pytest.approx({"fc1": 1 / 235200, "fc2": 0.0, "fc3": 0.0}, abs=1e-15)

    def test_one_kernel_gets_the_sparsity(self):
        for name in NAMES:
            assert distributions.get(name)({"a": (10, 10)}, 0.9)["a"] == pytest.approx(0.9)

    def test_largest_sparsity_keeps_one_weight_in_every_kernel(self):
        result = distributions.erk(LENET, math.nextafter(1, 0), power=2)
        assert set(num_active(LENET, result).values()) <= {1, 2}
        assert max(result.values()) < 1

    def test_a_vanishing_density_keeps_one_weight(self):
        # The ratios are 1 and 0.004, to the power 10 1e-24: 1 - 1e-24 is 1 in floats.
        shapes = {"small": (2, 2), "big": (500, 500)}
        result = distributions.erk(shapes, 0.99999, power=10)
        assert num_active(shapes, result) == {"small": 4, "big": 1}

    def test_all_custom(self):
        custom = {"fc3": 0.25, "fc2": 0.0, "fc1": 0.5}
        for name in NAMES:
            result = distributions.get(name)(LENET, 0.9, custom=custom)
            assert list(result.items()) == [("fc1", 0.5), ("fc2", 0.0), ("fc3", 0.25)]

    def test_one_dimension_has_the_ratio_one(self):
        # Active 5 + 50 of 10 + 100; ratios 1 and 0.2, times sizes 10 and 20: epsilon = 55 / 30,
        # so the vector is dense and the matrix has the other 45.
        shapes = {"vector": (10,), "matrix": (10, 10)}
        for name in ("erk", "erdos_renyi"):
            result = distributions.get(name)(shapes, 0.5)
            assert result == pytest.approx({"vector": 0.0, "matrix": 0.55})

    def test_numpy_arguments_give_python_floats(self):
        shapes = {path: np.array(shape) for path, shape in LENET.items()}
        for name in NAMES:
            result = distributions.get(name)(shapes, np.float64(0.9))
            assert result == distributions.get(name)(LENET, 0.9)
            assert {type(value) for value in result.values()} == {float}


BAD_NUMBERS = [1, 1.0, -0.1, math.nan, math.inf, True, False, "0.5", None, 1j, [0.5]]


class TestErrors:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
    def test_sparsity(self, name, value):
        pattern = received(f"sparsity={value!r}")
        with pytest.raises(ValueError, match=pattern):
            distributions.get(name)(LENET, value)
        with pytest.raises(ValueError, match=pattern):
            distributions.get(name)({"a": (4, 4)}, value, custom={"a": 0.5})
        with pytest.raises(ValueError, match=pattern):
            distributions.num_zeros(10, value)
        with pytest.raises(ValueError, match=pattern):
            distributions.allocate(name, LENET, value)

    def test_the_message_states_the_rule_first(self):
        message = r"^A sparsity must be a real number in \[0, 1\)\. Received: sparsity=1\.0$"
        with pytest.raises(ValueError, match=message):
            distributions.erk(LENET, 1.0)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        "shape", [(), (3, 0), (3, -1), (3, None), (3, 2.0), (True, 4), 3, None, "33"]
    )
    def test_shape(self, name, shape):
        with pytest.raises(ValueError, match=received(f"shapes['b']={shape!r}")):
            distributions.get(name)({"a": (4, 4), "b": shape}, 0.5)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("shapes", [{}, [], [(3, 3)], None])
    def test_shapes(self, name, shapes):
        with pytest.raises(ValueError, match=received(repr(shapes))):
            distributions.get(name)(shapes, 0.5)

    @pytest.mark.parametrize("name", NAMES)
    def test_unknown_custom_path(self, name):
        known = re.escape("['fc1', 'fc2', 'fc3']")
        pattern = f"`custom`.*{known}.*" + received("['fc4', 'x']")
        with pytest.raises(ValueError, match=pattern):
            distributions.get(name)(LENET, 0.5, custom={"fc4": 0.5, "fc1": 0.5, "x": 0.1})

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
    def test_custom_value(self, name, value):
        with pytest.raises(ValueError, match=received(f"'fc2'={value!r}")):
            distributions.get(name)(LENET, 0.5, custom={"fc2": value})

    @pytest.mark.parametrize("custom", [["fc1"], 0, "fc1"])
    def test_custom_is_a_mapping(self, custom):
        with pytest.raises(ValueError, match="`custom` must map.*" + received(repr(custom))):
            distributions.erk(LENET, 0.5, custom=custom)

    @pytest.mark.parametrize("power", [-1, math.nan, math.inf, True, "1", None, 500])
    def test_power(self, power):
        with pytest.raises(ValueError, match=received(f"power={power!r}")):
            distributions.erk(LENET, 0.5, power=power)

    @pytest.mark.parametrize("size", [-1, 2.0, None])
    def test_size(self, size):
        with pytest.raises(ValueError, match=received(f"size={size!r}")):
            distributions.num_zeros(size, 0.5)


@pytest.fixture(scope="module")
def resnet50_shapes():
    model = models.resnet50()
    return {each.path: each.shape for each in rigl_tf.flops.count(model).kernels}


STR_KEYS = [0.7955, 0.8127, 0.877, 0.9023, 0.9055, 0.948, 0.9503, 0.9515]
STR_KEYS += [0.9611, 0.9653, 0.9778, 0.9805, 0.9822, 0.9879, 0.9898, 0.991]


class TestSTR:
    @pytest.mark.parametrize("sparsity", STR_KEYS)
    def test_the_overall_sparsity_is_the_published_one(self, resnet50_shapes, sparsity):
        result = distributions.allocate("str_resnet50", resnet50_shapes, sparsity)
        assert list(result) == list(resnet50_shapes)
        size = sum(map(size_of, resnet50_shapes.values()))
        assert size == 25_502_912  # As STR's tables say.
        active = sum(num_active(resnet50_shapes, result).values())
        # Published to 0.01 %, the layers too, which is rounded twice.
        assert 1 - active / size == pytest.approx(sparsity, abs=1e-4)

    def test_the_layers_that_the_paper_names(self, resnet50_shapes):
        # The first and last columns of the tables: conv1, layer1.0.conv3 and its downsample,
        # layer4.2.conv2, fc.
        names = ["conv_1", "stage1_block1_conv3", "stage1_block1_shortcut", "stage4_block3_conv2"]
        paths = [f"{name}/kernel" for name in [*names, "classifier"]]
        for sparsity, expected in (
            (0.7955, [0.5146, 0.7481, 0.7095, 0.7357, 0.5065]),
            (0.991, [0.7775, 0.9847, 0.9772, 0.99, 0.9287]),
        ):
            result = distributions.str_resnet50(resnet50_shapes, sparsity)
            assert [result[path] for path in paths] == expected

    def test_the_order_of_shortcuts_does_not_matter_after_the_first_stage(self, resnet50_shapes):
        moved = [path for path in resnet50_shapes if re.match("stage[234].*_shortcut", path)]
        order = [*moved, *(path for path in resnet50_shapes if path not in moved)]
        expected = distributions.str_resnet50(resnet50_shapes, 0.9023)
        result = distributions.str_resnet50({p: resnet50_shapes[p] for p in order}, 0.9023)
        assert list(result) == order
        assert result == expected

    @pytest.mark.parametrize("sparsity", [0.8, 0.0, 0.91, 0.9910001])
    def test_there_is_nothing_in_between(self, resnet50_shapes, sparsity):
        pattern = re.escape(str(STR_KEYS)) + ".*" + received(f"sparsity={sparsity!r}")
        with pytest.raises(ValueError, match=pattern):
            distributions.str_resnet50(resnet50_shapes, sparsity)

    def test_another_network(self, resnet50_shapes):
        with pytest.raises(ValueError, match=r"54 kernels of ResNet-50.*Received: 3 kernels"):
            distributions.str_resnet50(LENET, 0.9023)
        ten_classes = resnet50_shapes | {"classifier/kernel": (2048, 10)}
        difference = "{(2048, 1000): -1, (2048, 10): 1}"
        with pytest.raises(ValueError, match=re.escape(f"negative): {difference}")):
            distributions.str_resnet50(ten_classes, 0.9023)


class TestGetAndAllocate:
    def test_get(self):
        for name in NAMES:
            assert distributions.get(name) is getattr(distributions, name)
        assert distributions.get(distributions.erk) is distributions.erk

    @pytest.mark.parametrize("identifier", ["ERK", "", None, 3, ["erk"]])
    def test_unknown(self, identifier):
        known = re.escape("['uniform', 'erdos_renyi', 'erk', 'str_resnet50']")
        pattern = known + ".*" + received(f"identifier={identifier!r}")
        with pytest.raises(ValueError, match=pattern):
            distributions.get(identifier)
        with pytest.raises(ValueError, match=pattern):
            distributions.allocate(identifier, LENET, 0.5)

    def test_allocate_by_name(self):
        for name in NAMES:
            expected = distributions.get(name)(LENET, 0.9)
            assert distributions.allocate(name, LENET, 0.9) == expected

    def test_allocate_restores_order_and_floats(self):
        def backwards(shapes, sparsity):
            return {path: np.float32(sparsity) for path in reversed(shapes)}

        result = distributions.allocate(backwards, LENET, 0.5)
        assert list(result.items()) == [("fc1", 0.5), ("fc2", 0.5), ("fc3", 0.5)]
        assert {type(value) for value in result.values()} == {float}

    def test_a_distribution_cannot_change_the_shapes_of_its_caller(self):
        shapes = dict(LENET)

        def greedy(shapes, sparsity):
            return {path: sparsity for path in list(shapes) if shapes.pop(path)}

        assert list(distributions.allocate(greedy, shapes, 0.5)) == list(LENET)
        assert shapes == LENET

    def test_missing_path(self):
        pattern = received("['fc1', 'fc3'], without ['fc2']")
        with pytest.raises(ValueError, match=pattern):
            distributions.allocate(lambda *_: {"fc3": 0.5, "fc1": 0.5}, LENET, 0.5)

    def test_unknown_path(self):
        with pytest.raises(ValueError, match=received("['fc4']")):
            distributions.allocate(lambda *_: dict.fromkeys([*LENET, "fc4"], 0.5), LENET, 0.5)

    @pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
    def test_value(self, value):
        with pytest.raises(ValueError, match=received(f"'fc2'={value!r}")):
            distributions.allocate(
                lambda *_: {**dict.fromkeys(LENET, 0.5), "fc2": value}, LENET, 0.5
            )

    @pytest.mark.parametrize("result", [None, 0.5, [0.5, 0.5, 0.5]])
    def test_no_mapping(self, result):
        with pytest.raises(ValueError, match=received(repr(result))):
            distributions.allocate(lambda *_: result, LENET, 0.5)
