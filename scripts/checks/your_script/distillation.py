"""Knowledge distillation: a sparse student learns from a dense teacher.

- student = create_student()
+ student = rigl_tf.sparsify(create_student(), 0.8, distribution="uniform")
- optimizer=keras.optimizers.Adam(),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adam(), end_step=30, update_frequency=5),
"""

import keras
import numpy as np
from keras import layers, ops
from sklearn.datasets import load_digits

keras.utils.set_random_seed(24)
x_train, y_train = load_digits(return_X_y=True)
x_train = x_train.reshape(-1, 8, 8, 1).astype("float32") / 16
x_test, y_test = x_train[640:800], y_train[640:800]
x_train, y_train = x_train[:640], y_train[:640]


class Distiller(keras.Model):
    def __init__(self, student, teacher):
        super().__init__()
        self.teacher = teacher
        self.teacher.trainable = False
        self.student = student

    def compile(
        self, optimizer, metrics, student_loss_fn, distillation_loss_fn, alpha=0.1, temperature=3
    ):
        super().compile(optimizer=optimizer, metrics=metrics)
        self.student_loss_fn = student_loss_fn
        self.distillation_loss_fn = distillation_loss_fn
        self.alpha = alpha
        self.temperature = temperature

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, allow_empty=False, training=None
    ):
        teacher_pred = self.teacher(x, training=False)
        student_loss = self.student_loss_fn(y, y_pred)
        distillation_loss = self.distillation_loss_fn(
            ops.softmax(teacher_pred / self.temperature, axis=1),
            ops.softmax(y_pred / self.temperature, axis=1),
        ) * (self.temperature**2)
        return self.alpha * student_loss + (1 - self.alpha) * distillation_loss

    def call(self, x):
        return self.student(x)


def create(filters, name):
    return keras.Sequential(
        [
            keras.Input(shape=(8, 8, 1)),
            layers.Conv2D(filters, (3, 3), strides=(2, 2), padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.MaxPooling2D(pool_size=(2, 2), strides=(1, 1), padding="same"),
            layers.Conv2D(2 * filters, (3, 3), strides=(2, 2), padding="same"),
            layers.Flatten(),
            layers.Dense(10),
        ],
        name=name,
    )


def create_student():
    return create(8, "student")


teacher = create(24, "teacher")
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
teacher.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss)
teacher.fit(x_train, y_train, epochs=2)

student = create_student()
# A student that learns from scratch starts with the same weights: a clone.
student_scratch = keras.models.clone_model(student)

distiller = Distiller(student=student, teacher=teacher)
distiller.compile(
    optimizer=keras.optimizers.Adam(),
    metrics=[keras.metrics.SparseCategoricalAccuracy()],
    student_loss_fn=loss,
    distillation_loss_fn=keras.losses.KLDivergence(),
)
teachers_weights = [weight.numpy() for weight in teacher.weights]
distiller.fit(x_train, y_train, epochs=2)
distiller.evaluate(x_test, y_test)
for before, weight in zip(teachers_weights, teacher.weights, strict=True):
    np.testing.assert_array_equal(before, weight.numpy())
print("agreement:", np.mean(student.predict(x_test).argmax(1) == teacher.predict(x_test).argmax(1)))

model, sample = distiller, x_test[:4]
