"""A character-level LSTM encoder and decoder; the trained layers then make two inference models.

- model = keras.Model([encoder_inputs, decoder_inputs], decoder_outputs)
+ model = rigl_tf.sparsify(keras.Model([encoder_inputs, decoder_inputs], decoder_outputs), 0.8)
- model.compile(optimizer="rmsprop", loss="categorical_crossentropy")
+ model.compile(rigl_tf.RigL("rmsprop", 30, update_frequency=5), loss="categorical_crossentropy")
"""

import keras
import numpy as np

latent_dim = 24
num_tokens = 12  # ten digits, start, stop
start, stop = 10, 11
length = 5

keras.utils.set_random_seed(19)
rng = np.random.default_rng(19)
numbers = rng.integers(0, 10, size=(640, length))
backwards = numbers[:, ::-1]


def one_hot(rows):
    return np.eye(num_tokens, dtype="float32")[rows]


starts, stops = np.full((640, 1), start), np.full((640, 1), stop)
encoder_input_data = one_hot(numbers)
decoder_input_data = one_hot(np.hstack([starts, backwards]))
decoder_target_data = one_hot(np.hstack([backwards, stops]))

encoder_inputs = keras.Input(shape=(None, num_tokens))
encoder = keras.layers.LSTM(latent_dim, return_state=True)
encoder_outputs, state_h, state_c = encoder(encoder_inputs)
encoder_states = [state_h, state_c]

decoder_inputs = keras.Input(shape=(None, num_tokens))
decoder_lstm = keras.layers.LSTM(latent_dim, return_sequences=True, return_state=True)
decoder_outputs, _, _ = decoder_lstm(decoder_inputs, initial_state=encoder_states)
decoder_dense = keras.layers.Dense(num_tokens, activation="softmax")
decoder_outputs = decoder_dense(decoder_outputs)

model = keras.Model([encoder_inputs, decoder_inputs], decoder_outputs)
model.compile(optimizer="rmsprop", loss="categorical_crossentropy")
model.fit(
    [encoder_input_data, decoder_input_data],
    decoder_target_data,
    batch_size=32,
    epochs=2,
    validation_split=0.1,
)

# Inference: the same layers, one step at a time.
encoder_inputs = model.input[0]
encoder_outputs, state_h_enc, state_c_enc = model.layers[2].output
encoder_model = keras.Model(encoder_inputs, [state_h_enc, state_c_enc])

decoder_inputs = model.input[1]
decoder_states_inputs = [keras.Input(shape=(latent_dim,)), keras.Input(shape=(latent_dim,))]
decoder_lstm = model.layers[3]
decoder_outputs, state_h_dec, state_c_dec = decoder_lstm(
    decoder_inputs, initial_state=decoder_states_inputs
)
decoder_outputs = model.layers[4](decoder_outputs)
decoder_model = keras.Model(
    [decoder_inputs, *decoder_states_inputs], [decoder_outputs, state_h_dec, state_c_dec]
)


def decode_sequence(input_seq):
    states = encoder_model.predict(input_seq, verbose=0)
    token, decoded = start, []
    while token != stop and len(decoded) < length:
        output, *states = decoder_model.predict([one_hot([[token]]), *states], verbose=0)
        token = int(output[0, -1].argmax())
        decoded.append(token)
    return decoded


print(numbers[0], "->", decode_sequence(encoder_input_data[:1]))
states = encoder_model.predict(encoder_input_data[:4])
stepwise = decoder_model.predict([decoder_input_data[:4], *states])[0]
sample = [encoder_input_data[:4], decoder_input_data[:4]]
assert np.allclose(stepwise, model.predict(sample), atol=1e-5)
