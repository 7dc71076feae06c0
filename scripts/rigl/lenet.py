"""How the experiments train LeNet-300-100 on MNIST and Fashion-MNIST."""

import keras

DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
BATCH_SIZE = 100
# The paper's coefficient 1e-4 is of TF1, which halves the sum of squares.
L2 = 5e-5


def learning_rate(total_steps, first=0.1):
    """A cosine from `first` to 0 at the last step."""
    return keras.optimizers.schedules.CosineDecay(first, total_steps)


def sgd(total_steps):
    """SGD with this learning rate and Nesterov's momentum."""
    return keras.optimizers.SGD(learning_rate(total_steps), momentum=0.9, nesterov=True)
