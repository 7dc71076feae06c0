"""Image classification with an MLP-Mixer.

- mlpmixer_classifier = build_classifier(mlpmixer_blocks)
+ mlpmixer_classifier = rigl_tf.sparsify(build_classifier(mlpmixer_blocks), 0.8)
- optimizer = keras.optimizers.Adam(learning_rate=0.003)
+ optimizer = rigl_tf.RigL(keras.optimizers.Adam(0.003), end_step=30, update_frequency=5)
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

patch_size = 2
num_patches = 16
embedding_dim = 24
num_blocks = 2
dropout_rate = 0.1

keras.utils.set_random_seed(4)
x_train, y_train = load_digits(return_X_y=True)
x_train = x_train.reshape(-1, 8, 8, 1).astype("float32")

data_augmentation = keras.Sequential(
    [layers.Normalization(), layers.RandomFlip("vertical")], name="augmentation"
)
data_augmentation.layers[0].adapt(x_train)


class Patches(layers.Layer):
    def __init__(self, patch_size, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size

    def call(self, x):
        patches = keras.ops.image.extract_patches(x, self.patch_size)
        batch_size = keras.ops.shape(patches)[0]
        num_patches = keras.ops.shape(patches)[1] * keras.ops.shape(patches)[2]
        return keras.ops.reshape(patches, (batch_size, num_patches, self.patch_size**2))


class MLPMixerLayer(layers.Layer):
    def __init__(self, num_patches, hidden_units, dropout_rate, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mlp1 = keras.Sequential(
            [
                layers.Dense(units=num_patches, activation="gelu"),
                layers.Dense(units=num_patches),
                layers.Dropout(rate=dropout_rate),
            ]
        )
        self.mlp2 = keras.Sequential(
            [
                layers.Dense(units=hidden_units, activation="gelu"),
                layers.Dense(units=hidden_units),
                layers.Dropout(rate=dropout_rate),
            ]
        )
        self.normalize = layers.LayerNormalization(epsilon=1e-6)

    def build(self, input_shape):
        return super().build(input_shape)

    def call(self, inputs):
        x = self.normalize(inputs)
        channels = keras.ops.transpose(x, axes=(0, 2, 1))
        mixed = keras.ops.transpose(self.mlp1(channels), axes=(0, 2, 1))
        x = mixed + inputs
        return x + self.mlp2(self.normalize(x))


def build_classifier(blocks):
    inputs = layers.Input(shape=(8, 8, 1))
    patches = Patches(patch_size)(data_augmentation(inputs))
    x = layers.Dense(units=embedding_dim)(patches)
    x = blocks(x)
    representation = layers.GlobalAveragePooling1D()(x)
    representation = layers.Dropout(rate=dropout_rate)(representation)
    return keras.Model(inputs=inputs, outputs=layers.Dense(10)(representation))


mlpmixer_blocks = keras.Sequential(
    [MLPMixerLayer(num_patches, embedding_dim, dropout_rate) for _ in range(num_blocks)]
)
mlpmixer_classifier = build_classifier(mlpmixer_blocks)
optimizer = keras.optimizers.Adam(learning_rate=0.003)
mlpmixer_classifier.compile(
    optimizer=optimizer,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=[keras.metrics.SparseCategoricalAccuracy(name="acc")],
)
reduce_lr = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=5)
mlpmixer_classifier.fit(
    x_train[:700],
    y_train[:700],
    batch_size=32,
    epochs=2,
    validation_split=0.1,
    callbacks=[reduce_lr],
)

model, sample = mlpmixer_classifier, x_train[:4]
