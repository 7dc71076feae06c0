"""Builds the operations of CSR kernels in C++, and says what was done: `python -m rigl_tf.engine`.

This is not needed: they are built when the first CSR kernel needs them. It is useful in the set-up
of a machine, and to see why a machine does not use them. The exit status is 0 if they can be used.
"""

import argparse
import os
import sys
import time

import numpy as np
import tensorflow as tf

from rigl_tf.execution import engine

_SHAPE = (64, 48)


def main() -> int:
    """Builds the operations, checks a product, and prints what was done.

    Returns:
        The exit status: 0 if CSR kernels use the operations in C++, otherwise 1.
    """
    path = engine.library_path()
    was_there, begun = path.exists(), time.perf_counter()
    try:
        path = engine._library()
        seconds = time.perf_counter() - begun
        operations = tf.load_op_library(str(path))
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        print(f"CSR kernels use TensorFlow's own operations, which are slower. Reason: {error}")
        if was_there:
            print("If this file is damaged, remove it, and it is built again.")
        return 1
    if was_there:
        print(f"Built before, for TensorFlow {tf.__version__}: {path}")
    else:
        compiler = " ".join(engine._compiler() or ())
        print(f"Built in {seconds:.0f} s by `{compiler}` for TensorFlow {tf.__version__}: {path}")
    error = _error(operations)
    if error > 1e-5:
        print(f"A product with a sparse kernel is wrong by {error:.2g}. Please report this.")
        return 1
    print(f"Checked: a product with a sparse kernel of shape {_SHAPE} is right.")
    if os.environ.get("RIGL_TF_NATIVE", "1") == "0":
        print("They are not used as long as the environment variable RIGL_TF_NATIVE is 0.")
        return 1
    return 0


def _error(operations):
    """The largest relative error of a product with a sparse kernel."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(_SHAPE) * (rng.random(_SHAPE) < 0.1)
    x = rng.standard_normal((40, _SHAPE[0])).astype("float32")
    places = np.flatnonzero(kernel)
    structure = engine.structure(places, _SHAPE)
    values = kernel.reshape(-1)[places].astype("float32")
    product = operations.rigl_matmul(x=x, values=values, bias=[], **structure._asdict()).numpy()
    expected = x @ kernel
    return float(np.abs(product - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    argparse.ArgumentParser("python -m rigl_tf.engine", description=__doc__).parse_args()
    sys.exit(main())
