"""Imbalanced classification: an initial bias, class weights, then sample weights.

- model = make_model()
+ model = rigl_tf.sparsify(make_model(), 0.8)
- optimizer=keras.optimizers.Adam(1e-2),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adam(1e-2), end_step=40, update_frequency=8),
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(42)
features, digits = load_digits(return_X_y=True)
targets = (digits == 8).astype("uint8")[:, np.newaxis]
num_val = 300
train_features, train_targets = features[:-num_val].astype("float32"), targets[:-num_val]
val_features, val_targets = features[-num_val:].astype("float32"), targets[-num_val:]

counts = np.bincount(train_targets[:, 0])
print(f"{counts[1]} of {len(train_targets)} training images are positive")
class_weight = {0: 1.0 / counts[0], 1: 1.0 / counts[1]}

mean, std = np.mean(train_features, axis=0), np.std(train_features, axis=0) + 1e-3
train_features = (train_features - mean) / std
val_features = (val_features - mean) / std


def make_model():
    initial_bias = keras.initializers.Constant(np.log(counts[1] / counts[0]))
    return keras.Sequential(
        [
            keras.Input(shape=train_features.shape[1:]),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(1, activation="sigmoid", bias_initializer=initial_bias),
        ]
    )


model = make_model()
metrics = [
    keras.metrics.FalsePositives(name="fp"),
    keras.metrics.Precision(name="precision"),
    keras.metrics.Recall(name="recall"),
]
model.compile(
    optimizer=keras.optimizers.Adam(1e-2),
    loss="binary_crossentropy",
    metrics=metrics,
    weighted_metrics=[keras.metrics.AUC(name="weighted_auc")],
)
model.fit(
    train_features,
    train_targets,
    batch_size=64,
    epochs=1,
    validation_data=(val_features, val_targets),
    class_weight=class_weight,
)

# What the model gets wrong weighs more in the second round.
wrong = np.abs(model.predict(train_features) - train_targets) > 0.5
sample_weight = np.where(wrong[:, 0], 2.0, 0.5)
model.fit(train_features, train_targets, 64, epochs=1, sample_weight=sample_weight)
print(model.evaluate(val_features, val_targets, return_dict=True))

sample = val_features[:4]
