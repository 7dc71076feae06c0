"""The Functional API: an autoencoder of two models, and an ensemble that shares a network.

- ensemble_model = keras.Model(inputs=inputs, outputs=[outputs, decoded])
+ ensemble_model = rigl_tf.sparsify(keras.Model(inputs=inputs, outputs=[outputs, decoded]), 0.75)
- optimizer = keras.optimizers.SGD(learning_rate=0.02, momentum=0.9, nesterov=True)
+ optimizer = rigl_tf.RigL(keras.optimizers.SGD(0.02, 0.9, True), end_step=30, update_frequency=5)
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(9)
x_train, y_train = load_digits(return_X_y=True)
x_train = x_train.reshape(-1, 8, 8, 1).astype("float32") / 16

encoder_input = keras.Input(shape=(8, 8, 1), name="original_img")
x = layers.Conv2D(8, 3, activation="relu")(encoder_input)
x = layers.Conv2D(16, 3, activation="relu")(x)
encoder_output = layers.GlobalMaxPooling2D()(x)
encoder = keras.Model(encoder_input, encoder_output, name="encoder")

decoder_input = keras.Input(shape=(16,), name="encoded_img")
x = layers.Reshape((4, 4, 1))(decoder_input)
x = layers.Conv2DTranspose(16, 3, activation="relu")(x)
decoder_output = layers.Conv2DTranspose(1, 3)(x)
decoder = keras.Model(decoder_input, decoder_output, name="decoder")


class Head(keras.Model):
    """A subclassed model inside of a Functional one."""

    def __init__(self, num_classes):
        super().__init__()
        self.hidden = layers.Dense(32, activation="relu")
        self.classify = layers.Dense(num_classes)

    def call(self, x):
        return self.classify(self.hidden(x))


def get_model():
    inputs = keras.Input(shape=(16,))
    return keras.Model(inputs, layers.Dense(10)(inputs))


inputs = keras.Input(shape=(8, 8, 1), name="img")
encoded = encoder(inputs)
# The same encoder sees the image and its mirror image.
mirrored = encoder(inputs[:, :, ::-1])
decoded = decoder(encoded)
both = layers.maximum([encoded, mirrored])
outputs = layers.average([get_model()(both), get_model()(both), Head(10)(both)])
ensemble_model = keras.Model(inputs=inputs, outputs=[outputs, decoded])

optimizer = keras.optimizers.SGD(learning_rate=0.02, momentum=0.9, nesterov=True)
ensemble_model.compile(
    optimizer=optimizer,
    loss=[keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"],
)
ensemble_model.fit(x_train[:640], [y_train[:640], x_train[:640]], batch_size=32, epochs=2)

# The script's own names are those of the trained model.
codes = encoder.predict(x_train[:4])
assert abs(decoder.predict(codes) - ensemble_model.predict(x_train[:4])[1]).max() < 1e-5

model, sample = ensemble_model, x_train[:4]
