"""Transfer learning: a frozen base below a new head, then the whole is fine-tuned.

- model = keras.Model(inputs, outputs)
+ model = rigl_tf.sparsify(keras.Model(inputs, outputs), 0.8)
- optimizer = keras.optimizers.Adam(learning_rate)
+ optimizer = rigl_tf.RigL(keras.optimizers.Adam(learning_rate), end_step=15, update_frequency=4)
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(10)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32")
is_small = labels < 5


def create_base():
    inputs = keras.Input(shape=(8, 8, 1))
    x = inputs
    for filters in (8, 16):
        x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.MaxPooling2D(2)(x)
    return keras.Model(inputs, x, name="base")


# In place of a pretrained base: one that tells the digits 0 to 4 apart.
base_model = create_base()
pretraining = keras.Sequential([base_model, layers.Flatten(), layers.Dense(5)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
pretraining.compile("adam", loss)
pretraining.fit(images[is_small][:320], labels[is_small][:320], epochs=1)

x_train, y_train = images[~is_small][:480], labels[~is_small][:480] - 5
base_model.trainable = False

inputs = keras.Input(shape=(8, 8, 1))
scale_layer = layers.Rescaling(scale=1 / 8, offset=-1)
x = scale_layer(layers.RandomTranslation(0.1, 0.1)(inputs))
# The base contains batch normalisation, which is to run in inference mode.
x = base_model(x, training=False)
x = layers.Flatten()(x)
x = layers.Dropout(0.2)(x)
x = layers.Dense(32, activation="relu")(x)
outputs = layers.Dense(5)(x)
model = keras.Model(inputs, outputs)


def compile_and_fit(learning_rate):
    optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    model.fit(x_train, y_train, batch_size=32, epochs=1)


compile_and_fit(1e-2)
assert not model.get_layer("base").trainable_weights

base_model.trainable = True
model.summary(show_trainable=True)
before = [weight.numpy() for weight in base_model.trainable_weights]
compile_and_fit(1e-3)
for old, weight in zip(before, base_model.trainable_weights, strict=True):
    assert (old != weight.numpy()).any(), f"{weight.path} was to be fine-tuned"

sample = x_train[:4]
