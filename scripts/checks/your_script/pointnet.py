"""Classification of point clouds with PointNet: a regularizer object of the script's own.

- model = keras.Model(inputs=inputs, outputs=outputs, name="pointnet")
+ model = rigl_tf.sparsify(keras.Model(inputs, outputs, name="pointnet"), 0.8)
- optimizer=keras.optimizers.Adam(learning_rate=0.001),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adam(0.001), end_step=30, update_frequency=5),
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

NUM_POINTS = 32
NUM_CLASSES = 3

keras.utils.set_random_seed(32)
rng = np.random.default_rng(32)
labels = rng.integers(0, NUM_CLASSES, 480)
points = rng.normal(size=(480, NUM_POINTS, 3))
norms = np.stack([np.abs(points).max(-1), np.linalg.norm(points, axis=-1), np.abs(points).sum(-1)])
# Cubes, spheres, octahedra.
points = (points / norms[labels, np.arange(480)][..., np.newaxis]).astype("float32")


def augment(points, label):
    points += keras.random.uniform(points.shape, -0.01, 0.01, dtype="float32")
    return points, label


train_dataset = tf.data.Dataset.from_tensor_slices((points[:400], labels[:400]))
train_dataset = train_dataset.shuffle(400, seed=1).map(augment).batch(20)
test_dataset = tf.data.Dataset.from_tensor_slices((points[400:], labels[400:])).batch(20)


def conv_bn(x, filters):
    x = layers.Conv1D(filters, kernel_size=1, padding="valid")(x)
    x = layers.BatchNormalization(momentum=0.0)(x)
    return layers.Activation("relu")(x)


def dense_bn(x, filters):
    x = layers.Dense(filters)(x)
    x = layers.BatchNormalization(momentum=0.0)(x)
    return layers.Activation("relu")(x)


class OrthogonalRegularizer(keras.regularizers.Regularizer):
    def __init__(self, num_features, l2reg=0.001):
        self.num_features = num_features
        self.l2reg = l2reg
        self.eye = ops.eye(num_features)

    def __call__(self, x):
        x = ops.reshape(x, (-1, self.num_features, self.num_features))
        xxt = ops.tensordot(x, x, axes=(2, 2))
        xxt = ops.reshape(xxt, (-1, self.num_features, self.num_features))
        return ops.sum(self.l2reg * ops.square(xxt - self.eye))


def tnet(inputs, num_features):
    bias = keras.initializers.Constant(np.eye(num_features).flatten())
    reg = OrthogonalRegularizer(num_features)

    x = conv_bn(inputs, 16)
    x = conv_bn(x, 32)
    x = layers.GlobalMaxPooling1D()(x)
    x = dense_bn(x, 16)
    x = layers.Dense(
        num_features * num_features,
        kernel_initializer="zeros",
        bias_initializer=bias,
        activity_regularizer=reg,
    )(x)
    feat_T = layers.Reshape((num_features, num_features))(x)
    return layers.Dot(axes=(2, 1))([inputs, feat_T])


inputs = keras.Input(shape=(NUM_POINTS, 3))
x = tnet(inputs, 3)
x = conv_bn(x, 16)
x = tnet(x, 16)
x = conv_bn(x, 32)
x = layers.GlobalMaxPooling1D()(x)
x = dense_bn(x, 32)
x = layers.Dropout(0.3)(x)
outputs = layers.Dense(NUM_CLASSES, activation="softmax")(x)

model = keras.Model(inputs=inputs, outputs=outputs, name="pointnet")
model.compile(
    loss="sparse_categorical_crossentropy",
    optimizer=keras.optimizers.Adam(learning_rate=0.001),
    metrics=["sparse_categorical_accuracy"],
)
model.fit(train_dataset, epochs=2, validation_data=test_dataset)

sample = points[400:404]
