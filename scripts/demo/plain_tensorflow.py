"""Runs a SavedModel with TensorFlow alone and prints one line of JSON.

    python scripts/demo/plain_tensorflow.py SAVED_MODEL DATA.npz

`DATA.npz` holds `inputs`, `labels` and the `expected` outputs.
"""

import json
import sys

import numpy as np
import tensorflow as tf


def main(saved_model, data):
    """Prints the accuracy, and the largest difference to the expected outputs."""
    arrays = np.load(data)
    outputs = tf.saved_model.load(saved_model).signatures["serving_default"](
        tf.constant(arrays["inputs"])
    )
    (logits,) = (value.numpy() for value in outputs.values())
    result = {
        "accuracy": float((logits.argmax(axis=1) == arrays["labels"]).mean()),
        "max_difference": float(np.abs(logits - arrays["expected"]).max()),
        "knows_rigl_tf": "rigl_tf" in sys.modules,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
