"""Features that are callbacks of Keras."""

import pathlib

import keras
import numpy as np

from scripts.checks.keras_features.base import STEPS_PER_EPOCH, Feature, data, fit
from scripts.checks.keras_features.optimizers import inner_optimizers

optimizers, callbacks = keras.optimizers, keras.callbacks


def averaging():
    return optimizers.Adam(0.02, use_ema=True, ema_momentum=0.8)


def swapping(**kwargs):
    def arguments(directory):
        return {"callbacks": [callbacks.SwapEMAWeights(**kwargs)], "validation_data": data()}

    return arguments


def best_masks_are_back(model, watch):
    """The first of three epochs counts as the best one, and the second as no better."""
    assert len(watch.history) == 2 * STEPS_PER_EPOCH + 1
    for mask, want in zip(watch.masks, watch.history[STEPS_PER_EPOCH], strict=True):
        np.testing.assert_array_equal(mask, want)


class PowerFailure(callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch == 1:
            raise KeyboardInterrupt


def cut_off(model, watch, directory):
    """`fit` is cut off in its second epoch, and restored."""
    path = pathlib.Path(directory) / "backup"
    try:
        fit(model, watch, directory, callbacks=[callbacks.BackupAndRestore(path), PowerFailure()])
    except KeyboardInterrupt:
        fit(model, watch, directory, callbacks=[callbacks.BackupAndRestore(path)])


def checkpointed(model, watch, directory):
    path = pathlib.Path(directory) / "best.keras"
    fit(model, watch, directory, callbacks=[callbacks.ModelCheckpoint(path)])
    loaded = keras.models.load_model(path)
    for weight, want in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(weight, want)


CALLBACKS = [
    Feature("`SwapEMAWeights()`, with validation", averaging, fit=swapping()),
    Feature("`SwapEMAWeights(swap_on_epoch=True)`", averaging, fit=swapping(swap_on_epoch=True)),
    Feature(
        "`EarlyStopping(restore_best_weights=True)`",
        fit=lambda directory: {
            "epochs": 3,
            "callbacks": [
                callbacks.EarlyStopping("loss", mode="max", restore_best_weights=True, patience=1)
            ],
        },
        check=best_masks_are_back,
        remark="masks are weights: those of the best epoch come back",
    ),
    Feature("`ModelCheckpoint`, loaded again", train=checkpointed),
    Feature("`BackupAndRestore`, after a cut", train=cut_off),
    Feature(
        "`TensorBoard(histogram_freq=1)`",
        fit=lambda directory: {"callbacks": [callbacks.TensorBoard(directory, histogram_freq=1)]},
    ),
    Feature("`TerminateOnNaN`", fit=lambda directory: {"callbacks": [callbacks.TerminateOnNaN()]}),
]
if hasattr(optimizers, "MultiOptimizer"):
    CALLBACKS.append(
        Feature(
            "`SwapEMAWeights()` under `mixed_float16`",
            averaging,
            fit=swapping(),
            policy="mixed_float16",
        )
    )
if "Muon" in inner_optimizers():
    CALLBACKS.append(
        Feature(
            "`SwapEMAWeights()`, averages of `Muon`",
            lambda: optimizers.Muon(0.02, use_ema=True, ema_momentum=0.8),
            fit=swapping(),
            remark="Muon itself moves inactive connections; they are masked after it",
        )
    )
