"""Any optimizer of Keras inside a sparse one: what it does, what is reset, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    EXECUTIONS,
    WORLDS,
    assert_same_model,
    drop_half,
    ends_early,
    halves,
    masks_of,
    mlp,
    random_gradients,
    rigl,
    strategy_of,
    values,
)

import rigl_tf

optimizers = keras.optimizers
pytestmark = ends_early


def every_inner_optimizer():
    """`{name: function that makes it}` of the optimizers of Keras that train weights."""
    wrappers = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    names = [
        name
        for name, value in sorted(vars(optimizers).items())
        if isinstance(value, type)
        and issubclass(value, optimizers.Optimizer)
        and name not in wrappers
        # In Keras 3.12, the last for Python 3.10, Muon fails with any model on TensorFlow.
        and not (name == "Muon" and keras.__version__.startswith("3.12."))
    ]
    arguments = {"Adafactor": {"epsilon_1": 1e-15}}
    return {
        name: lambda name=name: getattr(optimizers, name)(0.02, **arguments.get(name, {}))
        for name in names
    }


def no_decay_of_biases():
    optimizer = optimizers.AdamW(0.02, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


EVERY = every_inner_optimizer()
WITH_ARGUMENTS = {
    **EVERY,
    "clipnorm": lambda: optimizers.SGD(0.1, clipnorm=0.3),
    "global_clipnorm": lambda: optimizers.SGD(0.1, global_clipnorm=0.3),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=0.05),
    "weight_decay": lambda: optimizers.Adam(0.02, weight_decay=0.5),
    "no decay of biases": no_decay_of_biases,
    "ema": lambda: optimizers.Adam(0.02, use_ema=True, ema_momentum=0.8),
    "ema_overwrite": lambda: optimizers.Adam(0.02, use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
    "loss_scale_factor": lambda: optimizers.SGD(0.1, loss_scale_factor=64.0),
}
multi_optimizer = pytest.mark.skipif(
    not hasattr(optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer"
)


def sparse_model():
    return rigl_tf.sparsify(mlp(), 0.5)


def every_third(inner, drop_fraction=drop_half):
    return rigl(inner, 99, 3, drop_fraction)


def train(model, optimizer, steps):
    for step in range(*steps):
        gradients = random_gradients(model.trainable_variables, step)
        optimizer.apply(gradients, model.trainable_variables)


def assert_close(ones, others):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


# What it does.


TO_VALUES = ["Adam", "Lamb", "Ftrl", "clipnorm", "no decay of biases", "ema", "accumulation"]


@pytest.mark.parametrize("name", TO_VALUES)
def test_csr_kernels_are_trained_as_masked_ones(name):
    x, y = halves(12, 4)
    models = []
    for execution in EXECUTIONS:
        keras.utils.set_random_seed(0)
        models.append(rigl_tf.sparsify(mlp(), 0.5, execution=execution))
        models[-1].compile(every_third(WITH_ARGUMENTS[name]()), "mse", run_eagerly=True)
        models[-1].fit(x, y, batch_size=2, shuffle=False, verbose=0)
    assert_same_model(*models)


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_trains_as_the_plain_optimizer_with_gradients_masked_by_hand(name):
    """The reference is a dense model with zeros; its gradients and kernels are masked by hand."""
    sparse = sparse_model()
    masks = masks_of(sparse)
    by_shape = {mask.shape: mask for mask in masks}
    dense = mlp()
    dense.set_weights(values(sparse.trainable_variables))
    train(sparse, optimizer := rigl_tf.StaticSparse(WITH_ARGUMENTS[name]()), (0, 4))
    optimizer.finalize_variable_values(sparse.trainable_variables)

    variables, optimizer = dense.trainable_variables, WITH_ARGUMENTS[name]()

    def mask_by_hand():
        for variable in variables:
            variable.assign(variable * by_shape.get(tuple(variable.shape), 1))

    for step in range(4):
        gradients = [g * by_shape.get(tuple(g.shape), 1) for g in random_gradients(variables, step)]
        optimizer.apply(gradients, variables)
        mask_by_hand()
    optimizer.finalize_variable_values(variables)
    mask_by_hand()
    assert_close(values(sparse.trainable_variables), values(variables))
    moved = np.abs(np.asarray(variables[0]) - np.asarray(sparse_model().layers[0].layer.kernel))
    assert moved.max() > 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_an_update_resets_the_slots_of_moved_connections_only(name):
    make = EVERY[name]
    model, optimizer = sparse_model(), every_third(make())
    train(model, optimizer, (0, 3))
    inner, weights = optimizer.inner_optimizer.variables, model.trainable_variables
    old_masks, old_inner, old_weights = masks_of(model), values(inner), values(weights)
    train(model, optimizer, (3, 4))
    changed = {old.shape: old != new for old, new in zip(old_masks, masks_of(model), strict=True)}
    assert all(change.any() for change in changed.values())
    # A slot starts as it does beside a kernel of zeros.
    start = make()
    start.build([keras.Variable(tf.zeros(v.shape), name=v.name) for v in weights])
    for variables, olds, starts in (
        (inner, old_inner, values(start.variables)),
        (weights, old_weights, [np.zeros(v.shape) for v in weights]),
    ):
        for variable, old, begin in zip(variables, olds, starts, strict=True):
            want = np.where(changed.get(old.shape, False), begin, old)
            np.testing.assert_array_equal(variable, want, variable.path)


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_config_round_trip(name):
    optimizer = every_third(WITH_ARGUMENTS[name](), drop_fraction=0.5)
    copy = rigl_tf.RigL.from_config(optimizer.get_config())
    # Which variables do not decay is in no config of Keras.
    assert copy.get_config() == optimizer.get_config()


# Averages of weights.


@pytest.mark.parametrize("name", sorted({"Adam", "Muon"} & EVERY.keys()))
def test_averages_are_as_sparse_as_the_kernels(name):
    model = sparse_model()
    optimizer = every_third(getattr(optimizers, name)(0.02, use_ema=True))
    train(model, optimizer, (0, 5))
    kernel = model.layers[0].layer.kernel
    mask = masks_of(model)[0]
    rigl_tf.set_masks(model, {kernel.path: np.roll(mask, 1, axis=1)})
    train(model, optimizer, (5, 6))
    mask = masks_of(model)[0]
    (average,) = [
        np.asarray(v)
        for v in optimizer.variables
        if v.name.endswith(f"{kernel.name}_average") and v.shape == kernel.shape
    ]
    assert not average[~mask].any()
    assert average[mask].any()


# The gradient of a kernel that is read by rows.


@pytest.mark.parametrize("algorithm", [rigl_tf.RigL, rigl_tf.SNFS, rigl_tf.StaticSparse])
def test_a_gradient_by_rows_is_as_good_as_a_dense_one(algorithm):
    rows = tf.IndexedSlices(
        values=tf.constant([[1.0, -2.0], [3.0, 0.5], [0.25, 4.0]]),
        indices=tf.constant([2, 0, 2]),  # a row twice
        dense_shape=tf.constant([4, 2]),
    )
    dense = tf.constant([[3.0, 0.5], [0.0, 0.0], [1.25, 2.0], [0.0, 0.0]])
    ends = []
    for gradient in (rows, dense):
        kernel = keras.Variable(np.arange(1.0, 9.0, dtype="float32").reshape(4, 2))
        mask = keras.Variable(np.eye(2, dtype=bool).repeat(2, axis=0), dtype="bool")
        rigl_tf.masks.link(kernel, mask)
        rigl_tf.masks.kernel_of(kernel).zero_inactive()
        moving = {} if algorithm is rigl_tf.StaticSparse else {"end_step": 9, "update_frequency": 2}
        optimizer = algorithm(optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0), **moving)
        for _ in range(4):
            optimizer.apply([gradient], [kernel])
        ends.append([np.asarray(kernel), np.asarray(mask), *values(optimizer.variables)])
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


# Several optimizers inside.


def map_of_two():
    others = {".*bias": optimizers.SGD(0.5)}
    return optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.Adam(0.02), others))


@multi_optimizer
def test_the_slots_inside_a_multi_optimizer_are_reset():
    model, optimizer = sparse_model(), every_third(map_of_two())
    train(model, optimizer, (0, 3))
    before = masks_of(model)[0]
    train(model, optimizer, (3, 4))
    changed = before != masks_of(model)[0]
    slots = [np.asarray(v) for v in optimizer.variables if v.shape == changed.shape]
    assert len(slots) == 2
    for slot in slots:
        assert changed.any()
        assert not slot[changed].any()
        assert slot[before & ~changed].all()


@multi_optimizer
def test_callbacks_find_each_learning_rate():
    model = sparse_model()
    model.compile(every_third(map_of_two()), "mse", run_eagerly=True)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model.fit(*halves(32), verbose=0, callbacks=[halve])
    rates = [float(each.learning_rate) for each in model.optimizer.optimizers]
    np.testing.assert_allclose(rates, [0.25, 0.01])
    assert not hasattr(every_third("adam"), "optimizers")


@multi_optimizer
def test_a_model_with_a_multi_optimizer_is_saved_and_loaded(tmp_path):
    model = sparse_model()
    model.compile(every_third(map_of_two(), drop_fraction=0.5), "mse", run_eagerly=True)
    model.fit(*halves(32), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    for each in (loaded, model):
        train(each, each.optimizer, (4, 8))
    assert_close(values(loaded.weights), values(model.weights))


@multi_optimizer
def test_a_multi_optimizer_that_makes_its_optimizers_late():
    late = optimizers.MultiOptimizer(lambda variable: optimizers.SGD(0.1))
    with pytest.raises(ValueError, match=r"must get a .*OptimizerMap.*created by a function"):
        every_third(late).build(sparse_model().trainable_variables)


@multi_optimizer
def test_one_of_several_inner_optimizers_was_in_use():
    used = optimizers.Adam()
    used.build(mlp().trainable_variables)
    several = optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(), {"x": used}))
    with pytest.raises(ValueError, match=r"must be new.*inner_optimizer='adam'"):
        every_third(several).build(sparse_model().trainable_variables)


def test_a_sparse_optimizer_deep_inside():
    with pytest.raises(ValueError, match="must be a dense optimizer"):
        every_third(optimizers.LossScaleOptimizer(every_third("sgd")))


# Calls and settings that reach the inner optimizer, or are refused.


def test_a_loss_is_scaled_once():
    keras.config.set_dtype_policy("mixed_float16")
    model = sparse_model()
    optimizer = every_third(optimizers.LossScaleOptimizer(optimizers.SGD()))
    with pytest.raises(ValueError, match=r"scaled only once.*auto_scale_loss=False"):
        model.compile(optimizer, "mse")
    model.compile(optimizer, "mse", auto_scale_loss=False)
    assert model.optimizer is optimizer


def test_exclude_from_weight_decay_comes_before_build():
    model, optimizer = sparse_model(), every_third("adamw")
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="before the optimizer is built"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])


def test_variables_excluded_from_weight_decay_by_the_sparse_optimizer():
    """With gradients of zero, decay is all that happens: `1 - 0.5 * 0.1` in each step."""
    model = sparse_model()
    optimizer = every_third(optimizers.SGD(0.5, weight_decay=0.1))
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    first, second = model.trainable_variables[:2]
    second.assign(np.ones(8))
    before = np.asarray(first)
    zeros = [tf.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    np.testing.assert_allclose(first, 0.95 * before, rtol=1e-6)
    np.testing.assert_array_equal(second, np.ones(8))


def test_apply_gradients_returns_the_iterations():
    model, optimizer = sparse_model(), every_third("sgd")
    variables = model.trainable_variables
    for step, want in enumerate([1, 2, 3, 3, 4]):  # step 3 is an update
        pairs = zip(random_gradients(variables, step), variables, strict=True)
        assert int(optimizer.apply_gradients(pairs)) == want


def test_adafactor_that_squares_its_epsilon_to_zero():
    """Keras's own Adafactor: a row and a column without gradients make every weight NaN."""
    model = sparse_model()
    with pytest.warns(UserWarning, match=r"pass `epsilon_1=1e-15`.*epsilon_1=1e-30"):
        every_third(optimizers.Adafactor()).build(model.trainable_variables)
    gradient = np.ones((3, 4), "float32")
    gradient[0] = gradient[:, 0] = 0
    for epsilon, broken in ((1e-30, True), (1e-15, False)):
        variable = keras.Variable(np.ones((3, 4), "float32"))
        optimizers.Adafactor(epsilon_1=epsilon).apply([tf.constant(gradient)], [variable])
        assert np.isnan(np.asarray(variable)).all() == broken


# A loss that is scaled: only what the inner optimizer sees of the gradients is.

SCALED = {
    "a number": lambda: optimizers.SGD(0.0, loss_scale_factor=1024.0),
    "inside": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.0), initial_scale=2.0**17),
    "deep inside": lambda: optimizers.LossScaleOptimizer(
        optimizers.LossScaleOptimizer(optimizers.SGD(0.0)), initial_scale=1024.0
    ),
}
if hasattr(optimizers, "MultiOptimizer"):
    SCALED["several"] = lambda: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.SGD(0.0), {".*bias": optimizers.SGD(0.0)}),
        loss_scale_factor=1024.0,
    )


def grown_by(algorithm, inner, around=lambda optimizer: optimizer, **kwargs):
    keras.utils.set_random_seed(0)
    model = sparse_model()
    sparse = algorithm(
        inner, 9, update_frequency=2, drop_fraction=lambda _: 0.5, grow_init="gradient", **kwargs
    )
    model.compile(around(sparse), "mse", auto_scale_loss=False, run_eagerly=True)
    x, y = halves(32)
    for _ in range(3):
        model.train_on_batch(x[:8], y[:8])
    assert int(sparse.step) == 3
    return values(model.weights)


@pytest.mark.parametrize("algorithm", [rigl_tf.RigL, rigl_tf.SNFS])
@pytest.mark.parametrize("scaled", SCALED)
def test_a_loss_scale_is_not_in_the_gradients_of_an_update(scaled, algorithm):
    """The scales are powers of two: nothing is rounded."""
    want = grown_by(algorithm, optimizers.SGD(0.0))
    for one, other in zip(grown_by(algorithm, SCALED[scaled]()), want, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_scale_around_the_sparse_optimizer():
    want = grown_by(rigl_tf.SNFS, optimizers.SGD(0.0))
    got = grown_by(rigl_tf.SNFS, optimizers.SGD(0.0), optimizers.LossScaleOptimizer)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.built_in_fit
@pytest.mark.parametrize("world", ["XLA", "two replicas"])
def test_a_loss_scale_that_changes_in_a_graph(world):
    strategy = strategy_of(world)
    results = []
    for make in (
        lambda: optimizers.SGD(0.01),
        lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.01), 1024.0, 2),
    ):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model, inner = sparse_model(), make()
            optimizer = rigl_tf.SNFS(inner, 9, update_frequency=3, grow_init="gradient")
            model.compile(optimizer, "mse", auto_scale_loss=False, **WORLDS[world])
        model.fit(*halves(32), batch_size=8, epochs=4, shuffle=False, verbose=0)
        results.append(values(model.weights))
        assert int(np.asarray(optimizer.step)) > 3
    assert float(keras.ops.convert_to_numpy(inner.dynamic_scale)) > 1024
    assert_close(*results)


def test_a_loss_scale_that_changes_in_a_function_that_was_traced_before():
    """A second trace must not create variables."""
    x, y = halves(8)
    results = []
    for make in (
        lambda: optimizers.SGD(0.01),
        lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.01), 1024.0, 2),
    ):
        keras.utils.set_random_seed(0)
        model, inner = sparse_model(), make()
        optimizer = rigl_tf.SET(inner, 9, update_frequency=3)

        @tf.function
        def step(trains, model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2)
                scaled = optimizer.scale_loss(loss) if trains else loss
            if trains:
                weights = model.trainable_variables
                optimizer.apply(tape.gradient(scaled, weights), weights)
            return loss

        step(False)
        results.append([float(step(True)) for _ in range(8)])
    assert float(keras.ops.convert_to_numpy(inner.dynamic_scale)) > 1024
    np.testing.assert_allclose(*results, rtol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: rigl_tf.RigL(None, end_step=999), lambda: rigl_tf.StaticSparse(None)]
)
def test_no_inner_optimizer(make):
    with pytest.raises(ValueError, match=r"`inner_optimizer` must be .* inner_optimizer=None"):
        make()
