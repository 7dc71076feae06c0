"""Grad-CAM: after training, a second model gives a layer's output beside the prediction.

- model = make_model()
+ model = rigl_tf.sparsify(make_model(), 0.8)
- model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
+ model.compile(rigl_tf.RigL("adam", 45, update_frequency=5), "sparse_categorical_crossentropy")
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(28)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32")


def make_model():
    inputs = keras.Input((8, 8, 1))
    x = layers.Rescaling(1 / 16)(inputs)
    for block in (1, 2):
        x = layers.Conv2D(16, 3, padding="same", use_bias=False, name=f"block{block}_conv")(x)
        x = layers.BatchNormalization(name=f"block{block}_bn")(x)
        x = layers.Activation("relu", name=f"block{block}_act")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    outputs = layers.Dense(10, activation="softmax", name="predictions")(x)
    return keras.Model(inputs, outputs)


def make_gradcam_heatmap(img_array, model, last_conv_layer_name, pred_index=None):
    grad_model = keras.models.Model(
        model.inputs, [model.get_layer(last_conv_layer_name).output, model.output]
    )
    with tf.GradientTape() as tape:
        last_conv_layer_output, preds = grad_model(img_array)
        if pred_index is None:
            pred_index = tf.argmax(preds[0])
        class_channel = preds[:, pred_index]
    grads = tape.gradient(class_channel, last_conv_layer_output)
    pooled_grads = tf.reduce_mean(grads, axis=(0, 1, 2))
    last_conv_layer_output = last_conv_layer_output[0]
    heatmap = tf.squeeze(last_conv_layer_output @ pooled_grads[..., tf.newaxis])
    heatmap = tf.maximum(heatmap, 0) / tf.math.reduce_max(heatmap)
    return preds.numpy(), heatmap.numpy()


model = make_model()
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(images[:800], labels[:800], batch_size=32, epochs=2)

sample = images[:1]
for name in ("block2_act", "block2_conv"):
    preds, heatmap = make_gradcam_heatmap(sample, model, name)
    print(np.array2string(heatmap, precision=1, suppress_small=True))
    assert np.allclose(preds, model.predict(sample), atol=1e-5)
    assert heatmap.shape == (8, 8)

# The same features, computed by a model without the top.
features = keras.Model(model.inputs, model.get_layer("avg_pool").output)
weights, bias = model.get_layer("predictions").get_weights()[:2]
probabilities = tf.nn.softmax(features(sample) @ weights + bias)
assert np.allclose(probabilities, model.predict(sample), atol=1e-5)
