"""The programs of other libraries: torch, sparselab (torch) and TFMOT (tf_keras).

    .venv-torch/bin/python -m scripts.benchmark.opponents sparselab

`scripts.benchmark.execution` starts this in the environment of the library and sends it requests,
see `scripts.benchmark.serving`. Network and data are those of `keras_programs`: three hidden layers
with the same sparsity, a dense last layer, SGD with momentum.
"""

import os
import sys

from scripts.benchmark import serving

_HIDDEN = 3


def torch_dense():
    """A dense network in torch."""
    import torch

    return _torch_program(lambda sparsity: torch.nn.Linear), f"torch {torch.__version__}"


def sparselab():
    """A network of sparselab's layers in torch. They store and multiply only active weights."""
    import functools

    import sparselab
    import torch

    versions = f"sparselab {sparselab.__version__}, torch {torch.__version__}"
    return (
        _torch_program(
            lambda sparsity: functools.partial(sparselab.SparseLinear, sparsity=sparsity)
        ),
        versions,
    )


def _torch_program(hidden_layer):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def make(sparsity, width, batch):
        torch.manual_seed(0)
        layers, inputs = [], 784
        for _ in range(_HIDDEN):
            layers += [hidden_layer(sparsity)(inputs, width), torch.nn.ReLU()]
            inputs = width
        model = torch.nn.Sequential(*layers, torch.nn.Linear(inputs, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        loss_of = torch.nn.CrossEntropyLoss()
        x, y = torch.randn(batch, 784), torch.randint(0, 10, (batch,))

        def step():
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.item()

        return serving.Model(step)

    return make


def tfmot():
    """Magnitude pruning of TensorFlow Model Optimization, at its final sparsity from the start."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_model_optimization as optimization
    import tf_keras

    pruning = optimization.sparsity.keras

    def make(sparsity, width, batch):
        # It updates its masks in the first step, and not again.
        schedule = pruning.ConstantSparsity(sparsity, begin_step=1, frequency=10**6)
        layers = [
            pruning.prune_low_magnitude(
                tf_keras.layers.Dense(width, activation="relu"), pruning_schedule=schedule
            )
            for _ in range(_HIDDEN)
        ]
        inputs = tf_keras.layers.InputLayer((784,))
        model = tf_keras.Sequential([inputs, *layers, tf_keras.layers.Dense(10)])
        model.compile(
            tf_keras.optimizers.SGD(0.01, momentum=0.9),
            tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        generator = np.random.default_rng(0)
        x = generator.normal(size=(batch, 784)).astype("float32")
        y = generator.integers(0, 10, batch)
        callbacks = [pruning.UpdatePruningStep()]
        model.fit(x, y, batch_size=batch, callbacks=callbacks, verbose=0)
        kernels = [layer.layer.kernel.numpy() for layer in model.layers[:_HIDDEN]]
        zeros = [float((kernel == 0).mean()) for kernel in kernels]
        if not np.allclose(zeros, sparsity, atol=0.05):
            raise RuntimeError(f"the layers have {zeros} zeros, not {sparsity}")
        batches = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
        train = model.make_train_function()

        def step():
            tf.nest.map_structure(np.asarray, train(batches))

        return serving.Model(step)

    versions = f"tensorflow-model-optimization {optimization.__version__}"
    return make, f"{versions}, tf_keras {tf_keras.__version__}, tensorflow {tf.__version__}"


PROGRAMS = {"torch": torch_dense, "sparselab": sparselab, "tfmot": tfmot}

if __name__ == "__main__":
    serving.serve(PROGRAMS[sys.argv[1]])
