"""The Functional API: a toy ResNet, and a second model that extracts all intermediate features.

- model = keras.Model(inputs, outputs, name="toy_resnet")
+ model = rigl_tf.sparsify(keras.Model(inputs, outputs, name="toy_resnet"), 0.9)
- optimizer=keras.optimizers.RMSprop(1e-3),
+ optimizer=rigl_tf.RigL(keras.optimizers.RMSprop(1e-3), end_step=30, update_frequency=5),
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(8)
x_train, y_train = load_digits(return_X_y=True)
x_train = x_train.reshape(-1, 8, 8, 1).astype("float32") / 16
y_train = keras.utils.to_categorical(y_train, 10)

inputs = keras.Input(shape=(8, 8, 1), name="img")
x = layers.Conv2D(8, 3, activation="relu", padding="same")(inputs)
x = layers.Conv2D(16, 3, activation="relu", padding="same")(x)
block_1_output = layers.MaxPooling2D(2)(x)

x = layers.Conv2D(16, 3, activation="relu", padding="same")(block_1_output)
x = layers.Conv2D(16, 3, activation="relu", padding="same")(x)
block_2_output = layers.add([x, block_1_output])

x = layers.Conv2D(16, 3, activation="relu", padding="same")(block_2_output)
x = layers.Conv2D(16, 3, activation="relu", padding="same")(x)
block_3_output = layers.add([x, block_2_output])

# Slices and arithmetic of tensors are operations of the graph, too.
x = layers.Conv2D(16, 3, activation="relu")(block_3_output[:, :4, :4, :])
x = layers.GlobalAveragePooling2D()(x) * 2.0
x = layers.Dense(32, activation="relu")(x)
x = layers.Dropout(0.2)(x)
outputs = layers.Dense(10)(x)

model = keras.Model(inputs, outputs, name="toy_resnet")
model.summary()
model.compile(
    optimizer=keras.optimizers.RMSprop(1e-3),
    loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    metrics=["acc"],
)
model.fit(x_train[:640], y_train[:640], batch_size=32, epochs=2, validation_split=0.1)

features_list = [layer.output for layer in model.layers]
feat_extraction_model = keras.Model(inputs=model.input, outputs=features_list)
extracted_features = feat_extraction_model(x_train[:4])
difference = abs(extracted_features[-1] - model(x_train[:4])).numpy().max()
print(len(extracted_features), "features; the last is the output, but for", difference)
assert difference < 1e-5

sample = x_train[:4]
