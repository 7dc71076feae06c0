"""Tests of what an optimizer counts of its exploration, and of the callback that logs it."""

import csv
import itertools

import keras
import numpy as np
import pytest
from helpers import INNER, all_alike, drop_half, ends_early, mlp, rigl

import rigl_tf

optimizers = keras.optimizers
pytestmark = ends_early


class Masks(keras.callbacks.Callback):
    """Keeps the masks before training and after each step, each kernel's after the other's."""

    def on_train_begin(self, logs=None):
        self.history = [self.now()]

    def on_train_batch_end(self, batch, logs=None):
        self.history.append(self.now())

    def now(self):
        return np.concatenate([m.ravel() for m in rigl_tf.get_masks(self.model).values()])


def make_model():
    return rigl_tf.sparsify(mlp(), 0.7, all_alike)


def tracking_rigl(track_exploration=True):
    return rigl(INNER["sgd"](), 99, 3, drop_half, track_exploration=track_exploration)


def fit(model, optimizer, callbacks, epochs=4):
    x, y = np.random.default_rng(0).normal(size=(2, 16, 6)).astype("float32")
    model.compile(optimizer, "mse", run_eagerly=True)
    return model.fit(
        x, y[:, :3], batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks
    )


def want_of(history, num_epochs, is_update):
    """Exploration rate and turnover after each epoch of four steps, from the masks alone."""
    rates, turnovers = [], []
    for epoch in range(1, num_epochs + 1):
        masks = history[: 4 * epoch + 1]
        rates.append(np.any(masks, axis=0).mean())
        turnover = 0.0
        for step, (old, new) in enumerate(itertools.pairwise(masks)):
            if is_update(step):
                turnover = (new & ~old).sum() / new.sum()
        turnovers.append(turnover)
    return {"exploration_rate": rates, "turnover": turnovers}


def every_third(step):
    return step > 0 and step % 3 == 0


@pytest.mark.parametrize("around", [lambda inner: inner, optimizers.LossScaleOptimizer])
def test_exploration_is_logged(around, tmp_path):
    """Two updates in an epoch, at steps 12 and 15 of it, are not lost."""
    masks = Masks()
    path = tmp_path / "log.csv"
    callbacks = [masks, rigl_tf.callbacks.ExplorationLogger(), keras.callbacks.CSVLogger(path)]
    history = fit(make_model(), around(tracking_rigl()), callbacks).history
    want = want_of(masks.history, 4, every_third)
    assert 0.3 < want["exploration_rate"][0] < want["exploration_rate"][-1] < 1
    assert 0 < want["turnover"][0] < 0.5
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for name, values in want.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6)
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-6)


def test_exploration_of_dnw():
    masks = Masks()
    optimizer = rigl_tf.DNW(optimizers.SGD(0.3), 0.5, track_exploration=True)
    model = make_model()
    history = fit(model, optimizer, [masks, rigl_tf.callbacks.ExplorationLogger()], 2).history
    want = want_of(masks.history, 2, lambda step: True)
    assert want["turnover"][-1] > 0
    for name, values in want.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6)


def test_masks_that_the_user_sets_were_active_too():
    model, optimizer = make_model(), tracking_rigl()
    optimizer.build(model.trainable_weights)
    others = {path: ~mask for path, mask in rigl_tf.get_masks(model).items()}
    rigl_tf.set_masks(model, others)
    assert optimizer.exploration_rate() < 0.4
    # The first update drops half of them.
    fit(model, optimizer, [], epochs=1)
    assert optimizer.exploration_rate() == 1


def test_nothing_is_kept_unless_asked_for():
    plain, tracking = tracking_rigl(track_exploration=False), tracking_rigl()
    for optimizer in (plain, tracking):
        optimizer.build(make_model().trainable_weights)
    # Of each kernel: what was ever active, and how many were replaced.
    assert len(tracking.variables) == len(plain.variables) + 4
    assert tracking.exploration_rate() == pytest.approx((48 - 33 + 24 - 16) / 72)
    assert tracking.turnover() == 0
    for ask in (plain.exploration_rate, plain.turnover):
        with pytest.raises(ValueError, match=r"pass `track_exploration=True` to RigL\. Received"):
            ask()


def test_before_training():
    with pytest.raises(ValueError, match="only after training has begun, or `build`"):
        tracking_rigl().turnover()


@pytest.mark.parametrize(
    "optimizer", [lambda: tracking_rigl(track_exploration=False), optimizers.SGD]
)
def test_an_optimizer_that_does_not_count(optimizer):
    with pytest.raises(ValueError, match=r"`ExplorationLogger` needs .* Received: optimizer="):
        fit(make_model(), optimizer(), [rigl_tf.callbacks.ExplorationLogger()])


@pytest.mark.skipif(
    not hasattr(optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer"
)
def test_several_sparse_optimizers_count_together():
    model = make_model()
    first, second = (layer.layer.kernel.path for layer in model.layers)
    several = optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.SGD(), {first: tracking_rigl(), second: tracking_rigl()})
    )
    masks = Masks()
    history = fit(model, several, [masks, rigl_tf.callbacks.ExplorationLogger()]).history
    want = want_of(masks.history, 4, every_third)
    assert want["turnover"][0] > 0
    for name, values in want.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6)
