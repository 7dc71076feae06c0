# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Is my ticket a winner?
#
# Train a network, keep its largest weights, set them back to where they started, train again.
# [The lottery-ticket paper](https://arxiv.org/abs/1803.03635) says: such a *ticket* learns as well
# as the whole network. Is that so for yours? This page is the file
# `docs/notebooks/ticket.py` of the repository, and `jupytext --to ipynb docs/notebooks/ticket.py`
# makes a notebook of it. It needs `rigl_tf` and `scikit-learn` (for the digits).

# %%
import keras
from sklearn.datasets import load_digits

import rigl_tf

images, labels = load_digits(return_X_y=True)
images = images.astype("float32") / 16
x_train, y_train, x_test, y_test = images[:1437], labels[:1437], images[1437:], labels[1437:]

# %% [markdown]
# ## Three functions
#
# `small_dense` makes your network with a share of its hidden units. `build` makes the whole
# network, with masks that are full. `train` trains a model to the end and returns its test
# accuracy in percent.


# %%
def small_dense(width, seed):
    keras.utils.set_random_seed(seed)
    hidden = keras.layers.Dense(max(1, int(300 * width)), "relu")
    return keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(10, "softmax")])


def build(seed):
    return rigl_tf.sparsify(small_dense(1.0, seed), 0.0)


def train(model, run):
    keras.utils.set_random_seed(run.seed or 0)  # `None` where a protocol leaves it to you
    optimizer = keras.optimizers.SGD(run.learning_rate or 0.1, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x_train, y_train, epochs=10, verbose=0)
    return 100 * model.evaluate(x_test, y_test, verbose=0)[1]


# %% [markdown]
# ## The ticket alone
#
# Two levels: each prunes 80 % of the weights that are left, so that 4 % of them remain.

# %%
ticket = rigl_tf.lottery.find_ticket(build(0), train, levels=2, prune_fraction=0.8)
for level in ticket:
    print(level)

# %% [markdown]
# ## The judgement
#
# A ticket that learns well is not enough. The same connections with new weights, and a small dense
# network, must be worse. [Ma et al.](https://arxiv.org/abs/2107.00166) give five conditions; the
# protocol trains what they need, at each learning rate, and judges.

# %%
levels = rigl_tf.lottery.jackpot_protocol(
    build, train, small_dense, [0.1, 0.01], "jackpot", levels=2, prune_fraction=0.8, seeds=[0]
)
for level in levels[1:]:
    print(level["verdicts"]["IMP"])

# %% [markdown]
# Take three seeds and ten levels of 20 % for a result that you want to publish.
# `jackpot/report.md` has the whole table. A run that was stopped goes on where it was.
