"""Cross-validation: for each fold the model is built anew, and so is its optimizer.

- model = build_model()
+ model = rigl_tf.sparsify(build_model(), 0.8)
- model.compile(optimizer="rmsprop", loss="mse", metrics=["mae"])
+ model.compile(rigl_tf.RigL("rmsprop", 18, update_frequency=5), loss="mse", metrics=["mae"])
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_diabetes

keras.utils.set_random_seed(39)
data, targets = load_diabetes(return_X_y=True)
data = (data - data.mean(axis=0)) / data.std(axis=0)
targets = (targets - targets.mean()) / targets.std()

k = 3
num_epochs = 2
num_val_samples = len(data) // k


def build_model():
    return keras.Sequential(
        [
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(1),
        ]
    )


all_scores = []
for i in range(k):
    print(f"Processing fold #{i}")
    fold = slice(i * num_val_samples, (i + 1) * num_val_samples)
    val_data, val_targets = data[fold], targets[fold]
    partial_data = np.delete(data, fold, axis=0)
    partial_targets = np.delete(targets, fold, axis=0)

    model = build_model()
    model.compile(optimizer="rmsprop", loss="mse", metrics=["mae"])
    model.fit(partial_data, partial_targets, epochs=num_epochs, batch_size=16, verbose=0)
    val_mse, val_mae = model.evaluate(val_data, val_targets, verbose=0)
    all_scores.append(val_mae)

print("mean absolute error of each fold:", np.round(all_scores, 3), "mean:", np.mean(all_scores))

sample = data[:4]
