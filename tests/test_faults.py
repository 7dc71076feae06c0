"""What goes wrong in training: a clear error or correct behaviour, never silent damage."""

import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import all_alike, dense_weights, ends_early, in_every_execution, masks_of, updates_only

import rigl_tf

layers, optimizers = keras.layers, keras.optimizers
pytestmark = [ends_early, updates_only]

# Active connections of 6x8 and 8x3.
HALF = [24, 12]


def data(num=16):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, 6)).astype("float32")
    return x, rng.normal(size=(num, 3)).astype("float32")


def dense_model():
    hidden = layers.Dense(8, activation="tanh", name="hidden")
    return keras.Sequential(
        [
            keras.Input((6,)),
            hidden,
            layers.BatchNormalization(name="norm"),
            layers.Dense(3, name="outputs"),
        ]
    )


def rigl(inner=None, update_frequency=2):
    inner = inner or optimizers.SGD(0.1, momentum=0.9)
    return rigl_tf.RigL(inner, 100, update_frequency=update_frequency, drop_fraction=0.5)


def make(
    sparsity=0.5,
    distribution=all_alike,
    seed=0,
    optimizer=None,
    run_eagerly=True,
    execution="masked",
):
    keras.utils.set_random_seed(seed)
    model = rigl_tf.sparsify(dense_model(), sparsity, distribution, seed=seed, execution=execution)
    model.compile(optimizer or rigl(), "mse", run_eagerly=run_eagerly)
    return model


class Watch(keras.callbacks.Callback):
    """After every batch: zeros are zeros, and counts are those that were there before."""

    def on_train_begin(self, logs=None):
        self.counts = counts(self.model)

    def on_train_batch_end(self, batch, logs=None):
        assert_zeros(self.model)
        assert counts(self.model) == self.counts


def fit(model, epochs=1, callbacks=(), x=None):
    inputs, targets = data()
    model.fit(
        inputs if x is None else x,
        targets,
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[Watch(), *callbacks],
    )


def counts(model):
    return [int(mask.sum()) for mask in rigl_tf.get_masks(model).values()]


def kernels(model):
    return {path: each.numpy() for path, each in rigl_tf.masks.kernels_of(model).items()}


def assert_zeros(model):
    masks = rigl_tf.get_masks(model)
    for path, kernel in kernels(model).items():
        assert not np.any(kernel[~masks[path]]), path  # NaN is true


def same(arrays, others):
    return all(np.array_equal(a, b) for a, b in zip(arrays, others, strict=True))


def values(model):
    return [weight.numpy() for weight in model.weights]


# Numbers that are not finite. (Those that an update step meets: see test_dynamic.py.)


def bad_data(batch, value):
    x = data()[0]
    x[4 * batch : 4 * batch + 4] = value
    return x


@pytest.mark.parametrize("make_optimizer", [rigl, lambda: optimizers.Adam(0.01)])
@in_every_execution
def test_nan_spoils_the_active_connections_alone(execution, make_optimizer):
    """As in any Keras model, NaN stays in the weights; but only where there are connections."""
    is_csr = execution == "csr"
    model = make(optimizer=make_optimizer(), run_eagerly=is_csr, execution=execution)
    before = masks_of(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RigL skipped 1 mask updates")
        fit(model, x=bad_data(1, np.nan))  # the update would be at step 2
    assert same(before, masks_of(model))
    for kernel, mask in zip(kernels(model).values(), before, strict=True):
        assert np.isnan(kernel[mask]).all()
        assert (kernel[~mask] == 0).all()


@in_every_execution
def test_loss_scaling_skips_infinite_gradients(execution):
    """Such a step is none: not for the inner optimizer, nor for the count of steps to an update."""
    keras.config.set_dtype_policy("mixed_float16")
    model = make(optimizer=rigl(update_frequency=1), execution=execution)
    assert isinstance(model.optimizer, optimizers.LossScaleOptimizer)
    fit(model)
    ours = model.optimizer.inner_optimizer
    scale, step = float(model.optimizer.dynamic_scale), int(ours.step)
    trained = [v.numpy() for v in [*model.trainable_weights, *ours.variables]] + masks_of(model)
    for value in (np.inf, 1e30):
        model.train_on_batch(np.full((4, 6), value), data()[1][:4])
    now = [v.numpy() for v in [*model.trainable_weights, *ours.variables]] + masks_of(model)
    assert same(trained, now)
    assert int(ours.step) == step
    assert float(model.optimizer.dynamic_scale) == scale / 4
    before = masks_of(model)
    # There is NaN in the averages of the normalisation, as in any Keras model.
    model.layers[1].set_weights([np.ones(8), np.zeros(8), np.zeros(8), np.ones(8)])
    model.train_on_batch(data()[0][:4], data()[1][:4])
    assert int(ours.step) == step + 1  # an update, as all steps from 1 on
    assert not same(before, masks_of(model))
    assert counts(model) == HALF
    assert_zeros(model)


def test_terminate_on_nan():
    model = make()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*skipped.*")
        fit(model, epochs=3, x=bad_data(1, np.nan), callbacks=[keras.callbacks.TerminateOnNaN()])
    assert int(model.optimizer.step) == 2
    assert counts(model) == HALF


# Another optimizer in the middle of training.


@pytest.mark.parametrize(
    "following",
    [
        lambda old: rigl_tf.SET(optimizers.Adam(0.01), 100, update_frequency=2),
        lambda old: rigl_tf.StaticSparse("sgd"),
        lambda old: optimizers.Adam(0.01),
        lambda old: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        lambda old: old,
    ],
    ids=["SET", "StaticSparse", "Adam", "SGD", "the same"],
)
@in_every_execution
def test_another_optimizer_trains_on(execution, following):
    model = make(execution=execution)
    fit(model)
    before, weights = masks_of(model), dense_weights(model)
    optimizer = following(model.optimizer)
    step = int(getattr(optimizer, "step", optimizer.iterations))
    model.compile(optimizer, "mse", run_eagerly=True)
    assert same(weights, dense_weights(model))
    fit(model)
    assert counts(model) == HALF
    assert int(getattr(optimizer, "step", optimizer.iterations)) == step + 4
    assert not same(weights, dense_weights(model))
    moves = isinstance(optimizer, (rigl_tf.RigL, rigl_tf.SET))
    assert same(before, masks_of(model)) != moves


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_an_optimizer_of_another_model_is_refused(run_eagerly):
    model = make()
    fit(model)
    other = make(seed=1, optimizer=model.optimizer, run_eagerly=run_eagerly)
    trained, before = values(model), values(other)[:3]
    with pytest.raises(ValueError, match=r"make a new one for another model.*hidden/kernel"):
        fit(other)
    assert same(trained, values(model))
    assert same(before, values(other)[:3])  # mask, kernel and bias of the first layer
    # Step 4 is an update step, which trains no variable: it is refused all the same.
    with pytest.raises(ValueError, match="make a new one for another model"):
        model.optimizer.apply(other.trainable_weights, other.trainable_weights)


# Masks that are set by hand while there is momentum.


def momentum_of(model, index):
    """The momentum of a kernel; the inner optimizer's variables are iteration, rate, slots."""
    return model.optimizer.inner_optimizer.variables[2 + index].numpy()


def test_masks_set_by_hand_change_the_counts():
    model = make()
    fit(model)
    path = next(iter(rigl_tf.get_masks(model)))
    old, before = rigl_tf.get_masks(model)[path], kernels(model)[path]
    new = old.copy()
    removed, added = np.argwhere(old)[:5], np.argwhere(~old)[:7]
    new[tuple(removed.T)], new[tuple(added.T)] = False, True
    rigl_tf.set_masks(model, {path: new})
    np.testing.assert_array_equal(kernels(model)[path], np.where(new & old, before, 0))
    assert counts(model) == [24 - 5 + 7, 12]
    fit(model)  # `Watch`: these counts stay
    assert not np.array_equal(rigl_tf.get_masks(model)[path], new)


@pytest.mark.parametrize("value", [True, False])
def test_masks_set_by_hand_to_all_or_none(value):
    model = make()
    fit(model)
    masks = rigl_tf.get_masks(model)
    rigl_tf.set_masks(model, {path: np.full(mask.shape, value) for path, mask in masks.items()})
    fit(model)
    assert counts(model) == ([48, 24] if value else [0, 0])


def test_momentum_of_connections_that_are_set_by_hand():
    """New ones have none; one that was trained, taken away and given back has what is left."""
    model = make(optimizer=rigl_tf.StaticSparse(optimizers.SGD(0.1, momentum=0.5)))
    path = next(iter(rigl_tf.get_masks(model)))
    first = rigl_tf.get_masks(model)[path]
    fit(model)
    momentum = momentum_of(model, 0)
    assert np.count_nonzero(momentum[first]) > 12  # not of units without connection to the output
    assert (momentum[~first] == 0).all()
    rigl_tf.set_masks(model, {path: ~first})
    model.train_on_batch(data()[0][:4], data()[1][:4])
    assert_zeros(model)
    np.testing.assert_allclose(momentum_of(model, 0)[first], 0.5 * momentum[first], rtol=1e-6)
    rigl_tf.set_masks(model, {path: first})
    assert not kernels(model)[path].any()


# Weights of another model.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that was trained, as files; with `tf.train.Checkpoint` too."""
    model = make()
    fit(model)
    directory = tmp_path_factory.mktemp("trained")
    model.save(directory / "sparse.keras")
    model.save_weights(directory / "sparse.weights.h5")
    tf.train.Checkpoint(model=model).write(str(directory / "checkpoint"))
    dense = dense_model()
    dense.save(directory / "dense.keras")
    dense.save_weights(directory / "dense.weights.h5")
    return directory, values(model), masks_of(model), int(model.optimizer.step)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("sparse.keras", {"sparsity": 0.9}),
        ("sparse.keras", {"sparsity": 0.0}),
        ("sparse.weights.h5", {"distribution": "erk"}),
        ("sparse.weights.h5", {"seed": 7}),
        ("checkpoint", {"sparsity": 0.9}),
        ("checkpoint", {"seed": 7}),
    ],
)
def test_loaded_masks_win(name, other, trained):
    directory, weights, masks, step = trained
    model = make(**other)
    assert not same(masks, masks_of(model))
    model.optimizer.build(model.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if name == "checkpoint":
            status = tf.train.Checkpoint(model=model).read(str(directory / name))
            status.assert_existing_objects_matched()
        else:
            model.load_weights(directory / name)
    assert same(weights, values(model))
    assert same(masks, masks_of(model))
    assert_zeros(model)
    assert int(model.optimizer.step) == step
    fit(model)
    assert counts(model) == HALF


def test_a_backup_of_another_sparsity_wins(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    model = make()
    with pytest.raises(KeyboardInterrupt):
        fit(model, 2, [keras.callbacks.BackupAndRestore(tmp_path), Stop()])
    other = make(sparsity=0.9, distribution="erk", seed=7)
    fit(model)
    inputs, targets = data()
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    other.fit(inputs, targets, 4, epochs=2, shuffle=False, verbose=0, callbacks=[backup])
    assert same(values(model), values(other))
    assert_zeros(other)


@pytest.mark.parametrize("name", ["dense.keras", "dense.weights.h5"])
def test_dense_weights_into_a_sparse_model(name, trained):
    """They are taken where the masks are `True`, and the masks stay."""
    model = rigl_tf.sparsify(dense_model(), 0.5, all_alike)
    masks = masks_of(model)
    model.load_weights(trained[0] / name)
    dense = keras.models.load_model(trained[0] / "dense.keras")
    want = [
        np.where(mask, dense.layers[i].kernel, 0) for mask, i in zip(masks, (0, 2), strict=True)
    ]
    assert same(want, kernels(model).values())
    assert same(masks, masks_of(model))
    model.compile(rigl(), "mse", run_eagerly=True)
    fit(model)


@pytest.mark.parametrize("name", ["sparse.keras", "sparse.weights.h5"])
def test_sparse_weights_into_a_dense_model(name, trained):
    """They are loaded as those of the dense model, without the masks."""
    model = dense_model()
    model.load_weights(trained[0] / name)
    assert same([value for value in trained[1] if value.dtype != bool], values(model))
    for index, mask in zip((0, 2), trained[2], strict=True):
        assert not model.layers[index].kernel.numpy()[~mask].any()


def test_masks_without_their_kernels(tmp_path):
    """A layer without bias has other variables: its mask is loaded, its kernel is not."""

    def layer(use_bias, seed):
        dense = keras.Sequential([keras.Input((6,)), layers.Dense(3, use_bias=use_bias)])
        return rigl_tf.sparsify(dense, 0.5, seed=seed)

    source, model = layer(False, 0), layer(True, 1)
    source.save_weights(tmp_path / "source.weights.h5")
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(tmp_path / "source.weights.h5", skip_mismatch=True)
    assert same(masks_of(source), masks_of(model))
    assert_zeros(model)


def test_weights_that_are_set_past_the_masks():
    """They count until the next step; `set_masks` with the masks that are there zeroes at once."""
    model = make()
    for step in (
        lambda: fit(model),
        lambda: rigl_tf.set_masks(model, rigl_tf.get_masks(model)),
    ):
        for weight in model.weights:
            if weight.dtype == "float32":
                weight.assign(np.ones(weight.shape))
        outputs = model.predict(np.ones((1, 6)), verbose=0)
        # tanh(6 + 1) = 1 in each of 8 units, (1 - 1) / sqrt(1 + 0.001) + 1 after the norm.
        np.testing.assert_allclose(outputs, np.full((1, 3), 9), rtol=1e-5)
        step()
        assert_zeros(model)
        assert counts(model) == HALF


# Files that are damaged, and files that cannot be written.


@pytest.mark.parametrize("kind", ["empty", "garbage", "truncated"])
@pytest.mark.parametrize("name", ["sparse.keras", "sparse.weights.h5"])
def test_damaged_weights(name, kind, trained, tmp_path):
    whole = (trained[0] / name).read_bytes()
    damaged = {"empty": b"", "garbage": b"\x00garbage" * 999, "truncated": whole[: len(whole) // 2]}
    (tmp_path / name).write_bytes(damaged[kind])
    model = make(seed=1)
    before = values(model)
    with pytest.raises((OSError, zipfile.BadZipFile), match=r"zip file|signature|truncated"):
        model.load_weights(tmp_path / name)
    assert same(before, values(model))


@pytest.mark.parametrize(("name", "format"), [("export", "saved_model"), ("a.keras", "keras")])
def test_export_to_a_full_disk(name, format, tmp_path, no_space):
    wide = rigl_tf.sparsify(keras.Sequential([keras.Input((99,)), layers.Dense(99)]), 0.5)
    rigl_tf.export(wide, tmp_path / name, format)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    no_space(20_000)
    for target in (tmp_path / name, tmp_path / f"new-{name}"):
        with pytest.raises(OSError, match="File too large"):
            rigl_tf.export(wide, target, format)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("path", ["/dev/full", "/dev/full/export", "/proc/none/export"])
def test_export_to_where_nothing_can_be(path):
    with pytest.raises((ValueError, OSError), match=path.removesuffix("/export")):
        rigl_tf.export(make(), path)
