"""Fine-tuning: the base is made sparse before it is frozen, and trained again when unfrozen.

- base_model = pretrained_base()
+ base_model = rigl_tf.sparsify(pretrained_base(), 0.5, distribution="uniform")
- fine_tuning = keras.optimizers.Adam(1e-4)
+ fine_tuning = rigl_tf.RigL(keras.optimizers.Adam(1e-4), end_step=20, update_frequency=5)
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(11)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
is_even = labels % 2 == 0


def pretrained_base():
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", name="block1_conv"),
            layers.BatchNormalization(name="block1_bn"),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", name="block2_conv"),
            layers.BatchNormalization(name="block2_bn"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(name="avg_pool"),
        ],
        name="tiny_net",
    )
    pretraining = keras.Sequential([base, layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    pretraining.compile(keras.optimizers.Adam(1e-2), loss)
    pretraining.fit(images[is_even][:320], labels[is_even][:320], epochs=1)
    return base


def build_model(base, num_classes):
    inputs = layers.Input(shape=(8, 8, 1))
    x = base(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.2, name="top_dropout")(x)
    outputs = layers.Dense(num_classes, activation="softmax", name="pred")(x)
    return keras.Model(inputs, outputs)


def unfreeze_top(base):
    base.trainable = True
    for layer in base.layers[:4]:
        layer.trainable = False
    for layer in base.layers:
        if "bn" in layer.name:
            layer.trainable = False


x_train, y_train = images[~is_even][:640], labels[~is_even][:640] // 2

base_model = pretrained_base()
base_model.trainable = False
model = build_model(base_model, num_classes=5)
model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, y_train, epochs=1, batch_size=32)

unfreeze_top(base_model)
fine_tuning = keras.optimizers.Adam(1e-4)
model.compile(fine_tuning, "sparse_categorical_crossentropy", metrics=["accuracy"])
lower = base_model.get_layer("block1_conv").get_weights()[0]
upper = base_model.get_layer("block2_conv").get_weights()[0]
model.fit(x_train, y_train, epochs=1, batch_size=32)
assert (lower == base_model.get_layer("block1_conv").get_weights()[0]).all()
assert (upper != base_model.get_layer("block2_conv").get_weights()[0]).any()

sample = x_train[:4]
