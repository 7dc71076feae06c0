"""The state of a sparse optimizer where it does not fit: what fits is loaded, and a warning tells.

As with every Keras optimizer, a state that is not that of the optimizer is no error: training goes
on with what there is.
"""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ALGORITHMS, INNER, all_alike, assert_equal, ends_early, mlp, numbers, values

import rigl_tf

layers, optimizers = keras.layers, keras.optimizers
pytestmark = [
    ends_early,
    pytest.mark.built_in_fit,
    # State is the same in a graph, and there are many small trainings here.
    pytest.mark.usefixtures("eagerly"),
    # Of TensorFlow, on this fixture; and of Keras, which says of the inner optimizer, too, what the
    # tests expect of the sparse one.
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer '(sgd|adam)"),
]

# 4 steps an epoch: two updates in the first one.
TIMES = {"end_step": 7, "update_frequency": 2}


@keras.saving.register_keras_serializable(package="rigl_tf_tests")
class GrowEverywhere(rigl_tf.SparseOptimizer):
    def grow_scores(self, kernel, mask, gradient):
        return tf.ones_like(kernel)


OPTIMIZERS = {
    **{
        name: ALGORITHMS[name] for name in ("RigL", "SNFS", "StaticSparse", "GradualPruning", "DNW")
    },
    "a user's": GrowEverywhere,
}


every_optimizer = pytest.mark.parametrize("algorithm", OPTIMIZERS)


def make(algorithm="RigL", inner=INNER["momentum"], seed=0):
    keras.utils.set_random_seed(seed)
    model = rigl_tf.sparsify(mlp(8, 8, 4), 0.0 if algorithm == "GradualPruning" else 0.5, all_alike)
    optimizer = inner()
    if algorithm in OPTIMIZERS:
        times = TIMES if algorithm == "a user's" else {**TIMES, "drop_fraction": 0.5}
        optimizer = OPTIMIZERS[algorithm](optimizer, **times)
    model.compile(optimizer, keras.losses.MeanSquaredError())
    return model


def fit(model, epochs=1):
    x = numbers((16, 8))
    model.fit(x, x[:, :4], batch_size=4, epochs=epochs, shuffle=False, verbose=0)


def assert_same(ones, others):
    assert_equal(values(ones), values(others))


def warns_of(name):
    return pytest.warns(UserWarning, match=f"Skipping variable loading for optimizer '{name}'")


def name_of(model):
    return model.optimizer.name


# Saved before it is built.


@every_optimizer
def test_an_untrained_model_is_saved_loaded_and_trained(algorithm, tmp_path):
    model = make(algorithm)
    model.save(tmp_path / "model.keras")
    with warns_of(name_of(model)):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        fit(each, 2)
    assert_same(model.weights, loaded.weights)
    assert_same(model.optimizer.variables, loaded.optimizer.variables)


def test_fit_of_no_epoch(tmp_path):
    model = make()
    fit(model, epochs=0)
    model.save(tmp_path / "model.keras")
    with warns_of(name_of(model)):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    fit(loaded)
    assert int(loaded.optimizer.step) == 4


@every_optimizer
def test_weights_saved_before_fit_are_loaded_after_it(algorithm, tmp_path):
    """As for k folds: the second training is the first one again."""
    model = make(algorithm, inner=lambda: optimizers.SGD(0.1))
    model.save_weights(tmp_path / "start.weights.h5")
    fit(model, 2)
    first = values(model.weights)
    with warns_of(name_of(model)):
        model.load_weights(tmp_path / "start.weights.h5")
    assert int(model.optimizer.step) == 0
    fit(model, 2)
    assert_same(model.weights, first)
    assert int(model.optimizer.step) == 8


@every_optimizer
def test_weights_of_a_trained_model_into_one_that_is_not_built(algorithm, tmp_path):
    """The learning rate was overwritten by a count, once."""
    trained, fresh = make(algorithm), make(algorithm)
    fit(trained)
    trained.save_weights(tmp_path / "trained.weights.h5")
    with warns_of(name_of(fresh)):
        fresh.load_weights(tmp_path / "trained.weights.h5")
    assert float(fresh.optimizer.learning_rate) == pytest.approx(0.1)
    assert int(fresh.optimizer.iterations) == 0
    assert_same(trained.weights, fresh.weights)
    fit(fresh)
    assert int(fresh.optimizer.step) == 4


def test_weights_into_a_model_that_was_built_for_it(tmp_path):
    trained, fresh = make(), make()
    fit(trained)
    trained.save_weights(tmp_path / "trained.weights.h5")
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "trained.weights.h5")
    assert_same(trained.optimizer.variables, fresh.optimizer.variables)


# Copies.


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_of_an_optimizer_in_use_starts_anew(copied):
    model = make()
    fit(model)
    with warns_of(name_of(model)):
        optimizer = copied(model.optimizer)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    assert not optimizer.built
    other = make()
    other.compile(optimizer, "mse")
    fit(other)
    assert int(optimizer.step) == 4


def test_a_copy_of_a_model():
    model = make()
    with warns_of(name_of(model)):
        copied = copy.deepcopy(model)
    for each in (model, copied):
        fit(each)
    assert_same(model.weights, copied.weights)
    assert_same(model.optimizer.variables, copy.deepcopy(model).optimizer.variables)


# Of another optimizer.


@pytest.mark.parametrize("algorithm", ["RigL", "SNFS", "DNW"])
@pytest.mark.parametrize("saved", ["Adam", "SGD"])
def test_the_state_of_a_dense_optimizer(saved, algorithm, tmp_path):
    inner = {"Adam": lambda: optimizers.Adam(0.01), "SGD": INNER["momentum"]}[saved]
    other, model = make("none", inner), make(algorithm, inner, seed=1)
    for each in (other, model):
        fit(each)
    other.save_weights(tmp_path / "other.weights.h5")
    with warns_of(name_of(model)):
        model.load_weights(tmp_path / "other.weights.h5")
    assert int(model.optimizer.step) == 0
    assert_same(model.weights, other.weights)
    fit(model)
    for kernel in rigl_tf.masks.sparse_kernels(model).values():
        assert not kernel.numpy()[~rigl_tf.masks.mask_of(kernel).numpy()].any()


def test_as_many_variables_of_other_shapes():
    """An SGD with momentum of two weights: iteration, learning rate, and two arrays."""
    model = make()
    model.optimizer.build(model.trainable_variables)
    model.optimizer.step.assign(3)
    store = {"0": np.int64(7), "1": np.float32(0.5), "2": np.ones((2, 3)), "3": np.ones(3)}
    with warns_of("rig_l"):
        model.optimizer.load_own_variables(store)
    assert int(model.optimizer.step) == 0


def test_the_state_of_a_sparse_optimizer_into_one_of_keras(tmp_path):
    sparse, plain = make("RigL"), make("none")
    for each in (sparse, plain):
        fit(each)
    sparse.save_weights(tmp_path / "sparse.weights.h5")
    with warns_of(name_of(plain)):
        plain.load_weights(tmp_path / "sparse.weights.h5")
    assert_same(plain.weights, sparse.weights)
    fit(plain)


def test_the_counts_of_another_sparse_optimizer(tmp_path):
    """SET counts as RigL does and keeps nothing else; SNFS keeps averages, too."""
    saved = make("RigL")
    fit(saved)
    saved.save_weights(tmp_path / "saved.weights.h5")
    model = make("none", lambda: rigl_tf.SET(INNER["momentum"](), drop_fraction=0.5, **TIMES))
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "saved.weights.h5")
    assert_same(model.optimizer.variables, saved.optimizer.variables)
    model = make("SNFS")
    model.optimizer.build(model.trainable_variables)
    with warns_of("snfs"):
        model.load_weights(tmp_path / "saved.weights.h5")
    assert int(model.optimizer.step) == 4
    assert_same(
        model.optimizer.inner_optimizer.variables, saved.optimizer.inner_optimizer.variables
    )


def test_dnw_trains_on_from_what_was_loaded(tmp_path):
    """Its latent weights are the weights that were loaded, not those of before."""
    model = make("DNW", lambda: optimizers.SGD(0.0))
    fit(model)
    other = make("none", seed=1)
    other.save_weights(tmp_path / "other.weights.h5")
    with warns_of("dnw"):
        model.load_weights(tmp_path / "other.weights.h5")
    fit(model)
    assert_same(model.weights, other.weights)


# `set_weights`, and the legacy format, which uses it.


def test_set_weights_sets_those_of_the_inner_optimizer_too():
    model, other = make(), make(seed=1)
    for each in (model, other):
        fit(each)
    other.optimizer.set_weights(values(model.optimizer.variables))
    assert_same(model.optimizer.variables, other.optimizer.variables)
    with warns_of(name_of(other)):
        other.optimizer.set_weights(values(model.optimizer.variables)[:4])
    assert int(other.optimizer.step) == 0


def test_set_weights_of_an_optimizer_that_is_not_built():
    with pytest.raises(ValueError, match=r"optimizer\.build\(.*Received: optimizer='rig_l', not"):
        make().optimizer.set_weights([])


@pytest.mark.parametrize(
    ("algorithm", "epochs"), [("RigL", 0), *[(algorithm, 1) for algorithm in OPTIMIZERS]]
)
def test_a_legacy_file(algorithm, epochs, tmp_path):
    """Keras builds the optimizer of such a file with no variable, so its state starts anew."""
    model = make(algorithm)
    fit(model, epochs)
    model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5")
    assert_same(loaded.weights, model.weights)
    fit(loaded)
    assert int(loaded.optimizer.step) == 4


# A build that fails.


def test_a_build_that_failed_says_the_same_again():
    late = optimizers.MultiOptimizer(lambda variable: optimizers.SGD(0.1))
    model = make("RigL", lambda: late)
    messages = []
    for _ in range(2):
        with pytest.raises(ValueError, match="must get a") as error:
            model.optimizer.build(model.trainable_variables)
        messages.append(str(error.value))
        assert not model.optimizer.built
    assert messages[0] == messages[1]


@pytest.mark.parametrize("algorithm", ["GradualPruning", "DNW"])
def test_a_build_that_failed_before_it_made_anything_can_be_tried_again(algorithm):
    def none(shapes, sparsity):
        return {}

    model = make(algorithm)
    model.optimizer.distribution = none
    for _ in range(2):
        with pytest.raises(ValueError, match="must have a sparsity for every kernel"):
            model.optimizer.build(model.trainable_variables)
    model.optimizer.distribution = "erk"
    fit(model)
    assert int(model.optimizer.step) == 4


def test_an_optimizer_that_met_a_dense_model_first():
    model = make()
    dense = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    with pytest.raises(ValueError, match="needs a sparse model"):
        model.optimizer.build(dense.trainable_variables)
    fit(model)


# Frozen kernels.


def test_all_sparse_kernels_are_frozen():
    model = make()
    for layer in model.layers:
        layer.trainable = False
    head = keras.Sequential([keras.Input((8,)), model, layers.Dense(4)])
    head.compile(rigl_tf.RigL(INNER["momentum"](), **TIMES), "mse")
    with pytest.raises(
        ValueError, match=r"if all sparse layers are frozen on purpose.*inner optimizer"
    ):
        fit(head)
    head.compile(INNER["momentum"](), "mse")
    before = values(model.weights)
    fit(head)
    assert_same(model.weights, before)


def test_a_model_without_a_weight_to_train():
    model = make()
    model.trainable = False
    optimizer = model.optimizer
    optimizer.apply([], [])
    assert not optimizer.built
