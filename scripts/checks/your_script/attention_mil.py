"""Attention-based multiple instance learning: a layer with weights of its own, bags of inputs.

- model = create_model(instance_shape)
+ model = rigl_tf.sparsify(create_model(instance_shape), 0.7)
- optimizer = keras.optimizers.Adam(0.003)
+ optimizer = rigl_tf.RigL(keras.optimizers.Adam(0.003), end_step=30, update_frequency=5)
"""

import keras
import numpy as np
from keras import layers, ops
from sklearn.datasets import load_digits

BAG_SIZE, BAG_COUNT, POSITIVE_CLASS = 3, 640, 8
instance_shape = (8, 8)

keras.utils.set_random_seed(47)
rng = np.random.default_rng(47)
images, digits = load_digits(return_X_y=True)
images = images.reshape(-1, *instance_shape).astype("float32") / 16
weights = np.where(digits == POSITIVE_CLASS, 3.0, 1.0)
drawn = rng.choice(len(images), size=(BAG_COUNT, BAG_SIZE), p=weights / weights.sum())
train_data = [images[column] for column in drawn.T]
train_labels = (digits[drawn] == POSITIVE_CLASS).any(axis=1).astype("int")


class MILAttentionLayer(layers.Layer):
    def __init__(
        self,
        weight_params_dim,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        use_gated=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.weight_params_dim = weight_params_dim
        self.use_gated = use_gated
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.v_init = self.w_init = self.u_init = self.kernel_initializer
        self.v_regularizer = self.w_regularizer = self.u_regularizer = self.kernel_regularizer

    def build(self, input_shape):
        input_dim = input_shape[0][1]
        self.v_weight_params = self.add_weight(
            shape=(input_dim, self.weight_params_dim),
            initializer=self.v_init,
            name="v",
            regularizer=self.v_regularizer,
            trainable=True,
        )
        self.w_weight_params = self.add_weight(
            shape=(self.weight_params_dim, 1),
            initializer=self.w_init,
            name="w",
            regularizer=self.w_regularizer,
            trainable=True,
        )
        if self.use_gated:
            self.u_weight_params = self.add_weight(
                shape=(input_dim, self.weight_params_dim),
                initializer=self.u_init,
                name="u",
                regularizer=self.u_regularizer,
                trainable=True,
            )
        else:
            self.u_weight_params = None
        self.input_built = True

    def call(self, inputs):
        scores = [self.compute_attention_scores(instance) for instance in inputs]
        alpha = ops.softmax(ops.stack(scores), axis=0)
        return [alpha[i] for i in range(alpha.shape[0])]

    def compute_attention_scores(self, instance):
        original = instance
        instance = ops.tanh(ops.dot(instance, self.v_weight_params))
        if self.use_gated:
            instance = instance * ops.sigmoid(ops.dot(original, self.u_weight_params))
        return ops.dot(instance, self.w_weight_params)


def create_model(instance_shape):
    inputs, embeddings = [], []
    shared_dense_layer_1 = layers.Dense(32, activation="relu")
    shared_dense_layer_2 = layers.Dense(16, activation="relu")
    for _ in range(BAG_SIZE):
        inp = layers.Input(instance_shape)
        flatten = layers.Flatten()(inp)
        dense_2 = shared_dense_layer_2(shared_dense_layer_1(flatten))
        inputs.append(inp)
        embeddings.append(dense_2)
    alpha = MILAttentionLayer(
        weight_params_dim=16,
        kernel_regularizer=keras.regularizers.L2(0.01),
        use_gated=True,
        name="alpha",
    )(embeddings)
    multiply_layers = [layers.multiply([alpha[i], embeddings[i]]) for i in range(len(alpha))]
    concat = layers.concatenate(multiply_layers, axis=1)
    output = layers.Dense(2, activation="softmax")(concat)
    return keras.Model(inputs, output)


model = create_model(instance_shape)
optimizer = keras.optimizers.Adam(0.003)
model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(train_data, train_labels, batch_size=32, epochs=2, class_weight={0: 1.0, 1: 1.2})

sample = [images[column] for column in drawn[:4].T]
intermediate_model = keras.Model(model.input, model.get_layer("alpha").output)
attention = np.swapaxes(intermediate_model.predict(sample), 0, 1)
print("attention of the instances of a bag:", attention[0, :, 0])
assert np.allclose(attention.sum(axis=1), 1, atol=1e-5)
