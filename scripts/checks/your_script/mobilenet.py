"""A small MobileNetV2: inverted residuals with depthwise convolutions, the classifier stays dense.

- model = mobilenet_v2((8, 8, 1), num_classes=10, alpha=0.5)
+ model = rigl_tf.sparsify(mobilenet_v2((8, 8, 1), 10, alpha=0.5), 0.8, dense_layers="predictions")
- optimizer=keras.optimizers.RMSprop(3e-3, momentum=0.9),
+ optimizer=rigl_tf.RigL(keras.optimizers.RMSprop(3e-3, momentum=0.9), 30, update_frequency=5),
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(27)
x_train, y_train = load_digits(return_X_y=True)
x_train = x_train.reshape(-1, 8, 8, 1).astype("float32") / 8 - 1


def correct_pad(x, kernel_size):
    adjust = 1 - x.shape[1] % 2, 1 - x.shape[2] % 2
    correct = kernel_size // 2
    return ((correct - adjust[0], correct), (correct - adjust[1], correct))


def inverted_res_block(x, expansion, stride, alpha, filters, block_id):
    in_channels = x.shape[-1]
    pointwise_filters = max(8, int(filters * alpha) // 8 * 8)
    prefix = f"block_{block_id}_"
    inputs = x
    if block_id:
        x = layers.Conv2D(expansion * in_channels, 1, use_bias=False, name=prefix + "expand")(x)
        x = layers.BatchNormalization(momentum=0.9, name=prefix + "expand_BN")(x)
        x = layers.ReLU(6.0, name=prefix + "expand_relu")(x)
    if stride == 2:
        x = layers.ZeroPadding2D(padding=correct_pad(x, 3), name=prefix + "pad")(x)
    x = layers.DepthwiseConv2D(
        kernel_size=3,
        strides=stride,
        use_bias=False,
        padding="same" if stride == 1 else "valid",
        name=prefix + "depthwise",
    )(x)
    x = layers.BatchNormalization(momentum=0.9, name=prefix + "depthwise_BN")(x)
    x = layers.ReLU(6.0, name=prefix + "depthwise_relu")(x)
    x = layers.Conv2D(pointwise_filters, 1, use_bias=False, name=prefix + "project")(x)
    x = layers.BatchNormalization(momentum=0.9, name=prefix + "project_BN")(x)
    if in_channels == pointwise_filters and stride == 1:
        return layers.Add(name=prefix + "add")([inputs, x])
    return x


def mobilenet_v2(input_shape, num_classes, alpha):
    inputs = layers.Input(shape=input_shape)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="Conv1")(inputs)
    x = layers.BatchNormalization(momentum=0.9, name="bn_Conv1")(x)
    x = layers.ReLU(6.0, name="Conv1_relu")(x)
    x = inverted_res_block(x, filters=16, alpha=alpha, stride=1, expansion=1, block_id=0)
    x = inverted_res_block(x, filters=32, alpha=alpha, stride=2, expansion=4, block_id=1)
    x = inverted_res_block(x, filters=32, alpha=alpha, stride=1, expansion=4, block_id=2)
    x = layers.Conv2D(32, kernel_size=1, use_bias=False, name="Conv_1")(x)
    x = layers.BatchNormalization(momentum=0.9, name="Conv_1_bn")(x)
    x = layers.ReLU(6.0, name="out_relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(num_classes, activation="softmax", name="predictions")(x)
    return keras.Model(inputs, outputs, name=f"mobilenetv2_{alpha:0.2f}")


model = mobilenet_v2((8, 8, 1), num_classes=10, alpha=0.5)
model.compile(
    optimizer=keras.optimizers.RMSprop(3e-3, momentum=0.9),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(k=3)],
)
model.fit(x_train[:640], y_train[:640], batch_size=32, epochs=2)

sample = x_train[:4]
