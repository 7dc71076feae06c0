"""A model as a `.keras` file."""

import keras

from rigl_tf.artifacts.comparison import in_a_line


def run(path, batch):
    """The outputs of the model in a file."""
    return _load(path)(batch, training=False)


def _load(path):
    try:
        return keras.saving.load_model(path)
    except TypeError as error:
        raise ValueError(
            "A `.keras` file can be loaded if Keras knows all classes in it: decorate yours with "
            '`keras.saving.register_keras_serializable()`, or use `format="saved_model"`. '
            f"Received: {in_a_line(error)}"
        ) from error
