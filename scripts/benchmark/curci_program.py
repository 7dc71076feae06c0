"""Trains by the program that Curci et al. published. It needs NumPy, SciPy and Numba alone.

    .venv-curci/bin/python scripts/benchmark/curci_program.py REQUEST

`scripts.benchmark.truly_sparse` starts it. `REQUEST` is the path of a JSON file: the `folder` of
the program, the file with the `data`, and the settings. It prints a row as JSON in its last line.
"""

import json
import os
import pathlib
import sys
import time
import types

import numpy as np


def train(folder, data, units, layers, epochs, seed, epsilon, slope, batch_size, **settings):
    """Trains the network of `set_mlp_sequential.py`. Returns what it found, as a dictionary."""
    # What it imports for other data sets, and to watch the memory, need not be installed.
    for name in ("utils.load_data", "wasap_sgd.train.monitor"):
        module = types.ModuleType(name)
        module.load_fashion_mnist_data = module.Monitor = None
        sys.modules[name] = module
    sys.path.insert(0, folder)
    import set_mlp_sequential as program

    with np.load(data) as file:
        x_train, y_train, x_test, y_test = (
            file[name] for name in ("x_train", "y_train", "x_test", "y_test")
        )
    y_train, y_test = (np.eye(int(y_train.max()) + 1)[each] for each in (y_train, y_test))
    np.random.seed(seed)
    signs = [-1 if layer % 2 == 0 else 1 for layer in range(layers)]
    network = program.SET_MLP(
        (x_train.shape[1], *[units] * layers, y_train.shape[1]),
        (*[program.AlternatedLeftReLU(sign * slope) for sign in signs], program.Softmax),
        epsilon=epsilon,
    )
    before = time.perf_counter()
    network.fit(
        x_train,
        y_train,
        x_test,
        y_test,
        loss=program.CrossEntropy,
        epochs=epochs,
        batch_size=batch_size,
        testing=False,
        monitor=False,
        save_filename=os.path.join(os.path.dirname(data), "curci"),
        **settings,
    )
    seconds = time.perf_counter() - before
    accuracy, _ = network.predict(x_test, y_test)
    kernels = sum(kernel.nnz for kernel in network.w.values())
    return {
        "weights": int(kernels + sum(bias.size for bias in network.b.values())),
        "accuracy": round(100 * float(accuracy), 2),
        "epoch_seconds": round(seconds / epochs, 2),
    }


if __name__ == "__main__":
    print(json.dumps(train(**json.loads(pathlib.Path(sys.argv[1]).read_text()))))
