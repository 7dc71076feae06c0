"""Contrastive pretraining with an encoder and a projection head, then a linear probe.

- model = ContrastiveModel()
+ model = rigl_tf.sparsify(ContrastiveModel(), 0.8)
- contrastive_optimizer=keras.optimizers.Adam(),
+ contrastive_optimizer=rigl_tf.RigL(keras.optimizers.Adam(), end_step=30, update_frequency=5),
"""

import keras
import tensorflow as tf
from keras import layers, ops
from sklearn.datasets import load_digits

width = 24
temperature = 0.1

keras.utils.set_random_seed(25)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32")
unlabeled = tf.data.Dataset.from_tensor_slices(images[:960]).batch(48)
labeled = tf.data.Dataset.from_tensor_slices((images[960:1360], labels[960:1360])).batch(20)
train_dataset = tf.data.Dataset.zip((unlabeled, labeled)).prefetch(buffer_size=2)


def get_augmenter(min_area, brightness):
    zoom_factor = 1.0 - min_area**0.5
    return keras.Sequential(
        [
            layers.Rescaling(1 / 16),
            layers.RandomTranslation(zoom_factor / 2, zoom_factor / 2),
            layers.RandomContrast(brightness),
        ]
    )


def get_encoder():
    return keras.Sequential(
        [
            layers.Conv2D(width, kernel_size=3, strides=2, activation="relu"),
            layers.Conv2D(width, kernel_size=3, strides=1, activation="relu"),
            layers.Flatten(),
            layers.Dense(width, activation="relu"),
        ],
        name="encoder",
    )


class ContrastiveModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.temperature = temperature
        self.contrastive_augmenter = get_augmenter(0.5, 0.6)
        self.classification_augmenter = get_augmenter(0.8, 0.3)
        self.encoder = get_encoder()
        self.projection_head = keras.Sequential(
            [
                keras.Input(shape=(width,)),
                layers.Dense(width, activation="relu"),
                layers.Dense(width),
            ],
            name="projection_head",
        )
        self.linear_probe = keras.Sequential(
            [layers.Input(shape=(width,)), layers.Dense(10)], name="linear_probe"
        )

    def call(self, images):
        return self.linear_probe(self.encoder(self.classification_augmenter(images)))

    def compile(self, contrastive_optimizer, probe_optimizer, **kwargs):
        super().compile(**kwargs)
        self.contrastive_optimizer = contrastive_optimizer
        self.probe_optimizer = probe_optimizer
        self.probe_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.contrastive_loss_tracker = keras.metrics.Mean(name="c_loss")
        self.probe_accuracy = keras.metrics.SparseCategoricalAccuracy(name="p_acc")

    @property
    def metrics(self):
        return [self.contrastive_loss_tracker, self.probe_accuracy]

    def contrastive_loss(self, projections_1, projections_2):
        projections_1 = ops.normalize(projections_1, axis=1)
        projections_2 = ops.normalize(projections_2, axis=1)
        similarities = ops.matmul(projections_1, ops.transpose(projections_2)) / self.temperature
        labels = ops.arange(ops.shape(projections_1)[0])
        loss = keras.losses.sparse_categorical_crossentropy
        both = (similarities, ops.transpose(similarities))
        return sum(ops.mean(loss(labels, each, from_logits=True)) for each in both) / 2

    def train_step(self, data):
        unlabeled_images, (labeled_images, labels) = data
        images = ops.concatenate((unlabeled_images, labeled_images), axis=0)
        views = [self.contrastive_augmenter(images, training=True) for _ in range(2)]
        with tf.GradientTape() as tape:
            projections = [self.projection_head(self.encoder(view)) for view in views]
            contrastive_loss = self.contrastive_loss(*projections)
        trained = self.encoder.trainable_weights + self.projection_head.trainable_weights
        gradients = tape.gradient(contrastive_loss, trained)
        self.contrastive_optimizer.apply_gradients(zip(gradients, trained, strict=True))
        self.contrastive_loss_tracker.update_state(contrastive_loss)

        inputs = self.classification_augmenter(labeled_images, training=True)
        with tf.GradientTape() as tape:
            class_logits = self.linear_probe(self.encoder(inputs, training=False))
            probe_loss = self.probe_loss(labels, class_logits)
        gradients = tape.gradient(probe_loss, self.linear_probe.trainable_weights)
        self.probe_optimizer.apply_gradients(
            zip(gradients, self.linear_probe.trainable_weights, strict=True)
        )
        self.probe_accuracy.update_state(labels, class_logits)
        return {m.name: m.result() for m in self.metrics}


model = ContrastiveModel()
model.compile(
    contrastive_optimizer=keras.optimizers.Adam(),
    probe_optimizer=keras.optimizers.Adam(1e-2),
)
model.fit(train_dataset, epochs=2)

sample = images[1360:1364]
