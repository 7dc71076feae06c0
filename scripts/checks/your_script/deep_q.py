"""Deep Q-learning: a network that is trained, and a target network that copies its weights.

- return keras.Model(inputs, action)
+ return rigl_tf.sparsify(keras.Model(inputs, action), 0.8)
- optimizer = keras.optimizers.Adam(learning_rate=0.002, clipnorm=1.0)
+ optimizer = rigl_tf.RigL(keras.optimizers.Adam(0.002, clipnorm=1.0), 45, update_frequency=5)
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

gamma = 0.9
epsilon = 1.0
epsilon_min = 0.1
batch_size = 32
update_after_actions = 4
update_target_network = 40
num_actions = 2
size = 9

keras.utils.set_random_seed(45)
rng = np.random.default_rng(45)


class Corridor:
    """Steps to the left and to the right; the reward is at the right end."""

    def reset(self):
        self.position, self.time = size // 2, 0
        return self.state()

    def state(self):
        return np.eye(size, dtype="float32")[self.position]

    def step(self, action):
        self.position = int(np.clip(self.position + (1 if action else -1), 0, size - 1))
        self.time += 1
        at_goal = self.position == size - 1
        return self.state(), float(at_goal), at_goal or self.time == 12


def create_q_model():
    inputs = keras.Input((size,))
    x = layers.Dense(32, activation="relu")(inputs)
    x = layers.Dense(32, activation="relu")(x)
    action = layers.Dense(num_actions, activation="linear")(x)
    return keras.Model(inputs, action)


model = create_q_model()
model_target = create_q_model()
model_target.set_weights(model.get_weights())
optimizer = keras.optimizers.Adam(learning_rate=0.002, clipnorm=1.0)
loss_function = keras.losses.Huber()
history, frame_count = [], 0

for _ in range(25):
    env = Corridor()
    state, done = env.reset(), False
    while not done:
        frame_count += 1
        if epsilon > rng.random():
            action = int(rng.integers(num_actions))
        else:
            action_probs = model(ops.expand_dims(state, 0), training=False)
            action = int(ops.argmax(action_probs[0]))
        epsilon = max(epsilon - 0.005, epsilon_min)
        state_next, reward, done = env.step(action)
        history.append((state, action, reward, state_next, done))
        state = state_next

        if frame_count % update_after_actions == 0 and len(history) > batch_size:
            chosen = [history[i] for i in rng.choice(len(history), batch_size)]
            states, actions, rewards, nexts, dones = map(np.array, zip(*chosen, strict=True))
            future_rewards = model_target(nexts.astype("float32")).numpy().max(axis=1)
            updated_q_values = rewards + gamma * future_rewards * (1 - dones)
            masks = ops.one_hot(actions, num_actions)
            with tf.GradientTape() as tape:
                q_action = ops.sum(ops.multiply(model(states), masks), axis=1)
                loss = loss_function(updated_q_values, q_action)
            grads = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))

        if frame_count % update_target_network == 0:
            model_target.set_weights(model.get_weights())
            states = np.eye(size, dtype="float32")
            np.testing.assert_array_equal(model(states), model_target(states))

print(frame_count, "frames; q values:", model(np.eye(size, dtype="float32")).numpy().max(axis=1))
sample = np.eye(size, dtype="float32")
