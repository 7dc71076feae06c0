"""Recommendations by collaborative filtering: nothing but embeddings, which become sparse.

- model = RecommenderNet(num_users, num_movies, EMBEDDING_SIZE)
+ model = rigl_tf.sparsify(RecommenderNet(num_users, num_movies, 16), 0.5, sparse_layers=is_vector)
- optimizer=keras.optimizers.Adam(learning_rate=0.01),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adam(0.01), end_step=40, update_frequency=5),
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

EMBEDDING_SIZE = 16
num_users, num_movies = 60, 40

keras.utils.set_random_seed(23)
rng = np.random.default_rng(23)
pairs = rng.integers(0, [num_users, num_movies], size=(1600, 2))
tastes, kinds = rng.normal(size=(num_users, 3)), rng.normal(size=(num_movies, 3))
ratings = (tastes[pairs[:, 0]] * kinds[pairs[:, 1]]).sum(-1) > 0


class RecommenderNet(keras.Model):
    def __init__(self, num_users, num_movies, embedding_size, **kwargs):
        super().__init__(**kwargs)
        self.num_users = num_users
        self.num_movies = num_movies
        self.embedding_size = embedding_size
        self.user_embedding = layers.Embedding(
            num_users,
            embedding_size,
            embeddings_initializer="he_normal",
            embeddings_regularizer=keras.regularizers.l2(1e-6),
        )
        self.user_bias = layers.Embedding(num_users, 1)
        self.movie_embedding = layers.Embedding(
            num_movies,
            embedding_size,
            embeddings_initializer="he_normal",
            embeddings_regularizer=keras.regularizers.l2(1e-6),
        )
        self.movie_bias = layers.Embedding(num_movies, 1)

    def call(self, inputs):
        user_vector = self.user_embedding(inputs[:, 0])
        user_bias = self.user_bias(inputs[:, 0])
        movie_vector = self.movie_embedding(inputs[:, 1])
        movie_bias = self.movie_bias(inputs[:, 1])
        dot_user_movie = tf.reduce_sum(user_vector * movie_vector, axis=-1, keepdims=True)
        return tf.nn.sigmoid(dot_user_movie + user_bias + movie_bias)


def is_vector(layer):
    return isinstance(layer, layers.Embedding) and layer.output_dim > 1


model = RecommenderNet(num_users, num_movies, EMBEDDING_SIZE)
model.compile(
    loss=keras.losses.BinaryCrossentropy(),
    optimizer=keras.optimizers.Adam(learning_rate=0.01),
)
history = model.fit(
    x=pairs[:1440],
    y=ratings[:1440].astype("float32"),
    batch_size=64,
    epochs=2,
    validation_data=(pairs[1440:], ratings[1440:].astype("float32")),
)

user = 7
not_seen = np.setdiff1d(np.arange(num_movies), pairs[pairs[:, 0] == user, 1])
user_movie_array = np.hstack([np.full((len(not_seen), 1), user), not_seen[:, None]])
best = model.predict(user_movie_array).flatten().argsort()[-3:][::-1]
print("movies for user 7:", not_seen[best])

sample = user_movie_array[:4]
