"""Stopped and resumed is the same, bit for bit, as never stopped."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    ALGORITHMS,
    INNER,
    assert_equal,
    assert_same_state,
    dense_weights,
    differ,
    ends_early,
    masks_of,
    numbers,
    state_of,
)

import rigl_tf

layers = keras.layers
pytestmark = ends_early


def make(algorithm="RigL", inner="adam", execution="masked", **kwargs):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    dense = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dense(3),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.5, execution=execution)
    model.compile(ALGORITHMS[algorithm](INNER[inner](), drop_fraction=0.5), "mse", **kwargs)
    return model


def fit(model, epochs, initial_epoch=0, callbacks=()):
    model.fit(
        numbers((12, 6)),
        numbers((12, 3), seed=1),
        batch_size=4,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )


def assert_same(model, other):
    assert_same_state(state_of(model), state_of(other))


@pytest.mark.parametrize(
    ("algorithm", "inner"),
    [
        ("RigL", "momentum"),
        ("RigL", "adam"),
        ("SET", "adam"),
        ("SNFS", "momentum"),
        ("StaticSparse", "adam"),
    ],
)
def test_save_load_continue_is_uninterrupted(algorithm, inner, tmp_path):
    uninterrupted = make(algorithm, inner, run_eagerly=True)
    fit(uninterrupted, 2)

    stopped = make(algorithm, inner, run_eagerly=True)
    fit(stopped, 1)  # three steps: one update has been, one is to come
    path = tmp_path / "model.keras"
    stopped.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is type(stopped.optimizer)
    assert_same(loaded, stopped)
    loaded.run_eagerly = True
    fit(loaded, 2, initial_epoch=1)
    assert_same(loaded, uninterrupted)
    assert differ(masks_of(loaded), masks_of(stopped)) == (algorithm != "StaticSparse")


def test_save_load_continue_in_a_graph(tmp_path):
    uninterrupted = make("SNFS", "adam")
    fit(uninterrupted, 2)
    stopped = make("SNFS", "adam")
    fit(stopped, 1)
    stopped.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fit(loaded, 2, initial_epoch=1)
    assert_same(loaded, uninterrupted)


def test_weights_alone(tmp_path):
    model, other = make(run_eagerly=True), make(run_eagerly=True)
    fit(model, 1)
    other.optimizer.build(other.trainable_variables)  # there is state for it in the file
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    other.load_weights(path)
    for weight, same in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(weight, same)
    fit(other, 2)  # a loaded mask is the mask in use
    for weight in other.weights:
        mask = rigl_tf.get_masks(other).get(weight.path)
        if mask is not None:
            assert not weight.numpy()[~mask].any()


def test_a_loaded_model_predicts_the_same(tmp_path):
    model = make("RigL", "ema", run_eagerly=True)
    fit(model, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(1).normal(size=(5, 6))
    np.testing.assert_array_equal(loaded(x), model(x))


def test_saved_before_it_is_built():
    model = rigl_tf.sparsify(keras.Sequential([layers.Dense(3)]), 0.5)
    with pytest.raises(ValueError, match="build the model before it is saved"):
        model.get_config()


class Stop(keras.callbacks.Callback):
    """The power fails after the second batch of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch and batch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("inner", "execution"), [("momentum", "masked"), ("adam", "masked"), ("adam", "csr")]
)
def test_backup_and_restore_is_uninterrupted(inner, execution, tmp_path):
    uninterrupted = make("RigL", inner, execution, run_eagerly=True)
    fit(uninterrupted, 2)

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    stopped = make("RigL", inner, execution, run_eagerly=True)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, 2, callbacks=[backup, Stop(1)])

    resumed = make("RigL", inner, execution, run_eagerly=True)
    resumed.layers[0].layer.kernel.assign(np.full((6, 8), 7.0))  # all of it is restored
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    fit(resumed, 2, callbacks=[backup])
    assert_same(resumed, uninterrupted)


# State that does not fit.


def store_of(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def built(algorithm):
    model = make(algorithm)
    model.optimizer.build(model.trainable_variables)
    return model.optimizer


def test_what_fits_of_the_state_of_another_sparse_optimizer():
    """The counts are those of every sparse optimizer; the averages of SNFS are left out."""
    snfs, rigl = built("SNFS"), built("RigL")
    snfs.step.assign(7)
    with pytest.warns(UserWarning, match="state, of 6 variables, does not fit this RigL, of 4"):
        rigl.load_own_variables(store_of(snfs))
    assert int(rigl.step) == 7
    rigl.step.assign(5)
    with pytest.warns(UserWarning, match="state, of 4 variables, does not fit this SNFS, of 6"):
        snfs.load_own_variables(store_of(rigl))
    assert int(snfs.step) == 5


@pytest.mark.parametrize("value", [np.zeros((2, 2), "float32"), np.zeros((8, 3), "int64")])
def test_state_of_another_shape_or_type(value):
    """Nothing of it is loaded but the counts; the averages start at zero again."""
    optimizer = built("SNFS")
    averages = [v for v in optimizer.variables if v.name.endswith("gradient_average")]
    for average in averages:
        average.assign(np.ones(average.shape))
    optimizer.step.assign(7)
    store = store_of(optimizer)
    store[max(store, key=int)] = value
    optimizer.step.assign(3)
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer 'snfs'"):
        optimizer.load_own_variables(store)
    assert len(averages) == 2
    assert not any(np.any(average) for average in averages)
    assert int(optimizer.step) == 7


@pytest.mark.built_in_fit
def test_weights_into_a_model_whose_optimizer_is_not_built(tmp_path):
    """As with any Keras optimizer: a warning about the optimizer, and the weights are there."""
    trained = make("RigL")
    fit(trained, 1)
    trained.save_weights(tmp_path / "trained.weights.h5")
    fresh = make("RigL")
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        fresh.load_weights(tmp_path / "trained.weights.h5")
    for ours, theirs in zip(fresh.weights, trained.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def stored(execution, **arguments):
    dense = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(3, **arguments)])
    return rigl_tf.sparsify(dense, 0.5, dict.fromkeys, execution=execution)


def test_csr_kernels_take_their_values_from_the_dense_models_weights():
    dense = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(3)])
    csr, masked = stored("csr"), stored("masked")
    for model in (csr, masked):
        model.set_weights(dense.get_weights())
    assert_equal(masks_of(csr), masks_of(masked))
    assert_equal(dense_weights(csr), dense_weights(masked))
    csr.layers[0].set_weights(dense.layers[0].get_weights())
    assert_equal(dense_weights(csr), dense_weights(masked))
    other = stored("csr")
    other.set_weights(csr.get_weights())
    assert_equal(dense_weights(other), dense_weights(csr))


def test_weights_of_another_execution_are_refused():
    csr, masked = stored("csr"), stored("masked")
    for model, other in ((csr, masked), (masked, csr)):
        with pytest.raises(ValueError, match=r"the same `execution`.*Received: [0-9]+ arrays"):
            model.set_weights(other.get_weights())


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_file_of_csr_kernels_is_refused_by_masked_ones(use_bias, tmp_path):
    stored("csr", use_bias=use_bias).save_weights(tmp_path / "csr.weights.h5")
    with pytest.raises(ValueError, match=r"load it into a model with `execution='csr'`, then"):
        stored("masked", use_bias=use_bias).load_weights(tmp_path / "csr.weights.h5")


def tower():
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(4, name="out")(layers.Dense(5, name="in")(inputs)))


class Towers(layers.Layer):
    """Two towers with the same names, and a layer whose name Keras numbers."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.end = tower(), tower(), layers.Dense(3)

    def call(self, x):
        return self.end(self.one(x) - self.other(x))


def towers(execution, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    dense = keras.Model(inputs, layers.Dense(2)(Towers()(inputs)))
    return rigl_tf.sparsify(dense, 0.5, dict.fromkeys, seed=seed, execution=execution)


@pytest.mark.parametrize("execution", ["masked", "csr"])
def test_a_checkpoint_goes_by_objects_not_by_names(execution, tmp_path):
    saved, other = towers(execution, 0), towers(execution, 1)
    kinds = {kernel.execution for kernel in rigl_tf.sparsity_summary(saved).kernels}
    assert kinds == {execution}
    assert differ(masks_of(saved), masks_of(other))
    path = tf.train.Checkpoint(model=saved).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    assert_equal(masks_of(other), masks_of(saved))
    assert_equal(dense_weights(other), dense_weights(saved))
    # So it is after all kernels were stored otherwise and back.
    another = "csr" if execution == "masked" else "masked"
    back = rigl_tf.with_execution(rigl_tf.with_execution(saved, another), execution)
    tf.train.Checkpoint(model=back).read(path).assert_consumed()
    assert_equal(masks_of(back), masks_of(saved))


def test_a_checkpoint_that_is_read_before_the_model_is_built(tmp_path):
    def make(seed):
        dense = keras.Sequential([layers.Dense(8), layers.Dense(3)])
        return rigl_tf.sparsify(dense, 0.5, seed=seed)

    saved, other = make(0), make(1)
    saved.build((None, 6))
    path = tf.train.Checkpoint(model=saved).write(str(tmp_path / "checkpoint"))
    status = tf.train.Checkpoint(model=other).read(path)
    other.build((None, 6))
    status.assert_consumed()
    assert_equal(masks_of(other), masks_of(saved))
    assert_equal(dense_weights(other), dense_weights(saved))
