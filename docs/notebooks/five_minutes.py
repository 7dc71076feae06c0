# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Train a sparse network in five minutes
#
# A network that reads handwritten digits, with 90 % of its weights zero from the first step on.
# This page is the file `docs/notebooks/five_minutes.py` of the repository, and
# `jupytext --to ipynb docs/notebooks/five_minutes.py` makes a notebook of it. It needs `rigl_tf`,
# `scikit-learn` (for the digits) and `matplotlib`.

# %%
import keras
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

import rigl_tf

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
x_train, y_train, x_test, y_test = images[:1437], labels[:1437], images[1437:], labels[1437:]

# %% [markdown]
# ## The model
#
# Any Keras model will do. `sparsify` puts a mask on each kernel. The default distribution, ERK,
# keeps small kernels denser than large ones.


# %%
def network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(300, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


sparse = rigl_tf.sparsify(network(), 0.9)
print(rigl_tf.sparsity_summary(sparse))

# %% [markdown]
# ## Training
#
# RigL goes around the optimizer. Ten epochs of 45 steps are 450 steps; connections move in the
# first three quarters of them.

# %%
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
optimizer = rigl_tf.RigL(keras.optimizers.Adam(0.003), end_step=337, update_frequency=25)
sparse.compile(optimizer, loss, metrics=["accuracy"])
data = {"batch_size": 32, "epochs": 10, "validation_data": (x_test, y_test), "verbose": 0}
history = sparse.fit(x_train, y_train, **data).history

dense = network()
dense.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"])
dense_history = dense.fit(x_train, y_train, **data).history

plt.figure(figsize=(6, 3))
plt.plot(dense_history["val_accuracy"], label="dense")
plt.plot(history["val_accuracy"], label="RigL, 90 % sparse")
plt.xlabel("epoch")
plt.ylabel("test accuracy")
plt.legend()
plt.show()

# %% [markdown]
# ## Which pixels does it read?
#
# The masks are arrays. Here: how many filters of the convolution look at each of its nine places.

# %%
masks = rigl_tf.get_masks(sparse)
for path, mask in masks.items():
    print(f"{path}: {mask.sum()} of {mask.size} active")
first = next(iter(masks.values()))
print(first.sum(axis=(2, 3)))

# %% [markdown]
# ## What is it worth?
#
# The FLOPs of one image, and a file that other programs can load. `export` runs the file and
# compares its outputs with those of the model.

# %%
print(rigl_tf.flops.count(sparse))
print(rigl_tf.export(sparse, "export/digits"))
