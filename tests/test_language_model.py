import functools

import keras
import numpy as np
import pytest

import models
import rigl_tf

# Every kernel alike: the first one comes after an embedding, and is no input layer.
UNIFORM = functools.partial(rigl_tf.distributions.uniform, dense_first=False)
SMALL = {"vocabulary_size": 20, "width": 0.05}


@pytest.fixture
def model():
    return models.gru_language_model(**SMALL)


def tokens(length=7):
    return np.random.default_rng(0).integers(0, 20, (3, length)).astype("int32")


def test_parameters():
    # Embedding, which is the output layer too: 256*128. GRU: three gates, each 128*512 from the
    # input, 512*512 from the state, two biases of 512. Readout: 512*256 + 256, 256*128 + 128.
    gru = 3 * (128 * 512 + 512 * 512 + 2 * 512)
    want = 256 * 128 + gru + 512 * 256 + 256 + 256 * 128 + 128
    assert want == 32_768 + 986_112 + 131_328 + 32_896 == 1_183_104
    assert models.gru_language_model().count_params() == want


def test_width_multiplies_every_layer():
    # Twice: embedding 256, state 1,024, readout 512 and 256.
    gru = 3 * (256 * 1024 + 1024 * 1024 + 2 * 1024)
    want = 256 * 256 + gru + 1024 * 512 + 512 + 512 * 256 + 256
    assert models.gru_language_model(width=2).count_params() == want


def test_logits_are_products_with_the_embeddings(model):
    logits = model(tokens()).numpy()
    assert logits.shape == (3, 7, 20)
    read_out = keras.Model(model.input, model.get_layer("readout_2").output)(tokens()).numpy()
    embeddings = model.get_layer("embedding").embeddings.numpy()
    np.testing.assert_allclose(logits, read_out @ embeddings.T, rtol=1e-4, atol=1e-6)


def test_no_step_sees_the_future(model):
    first = tokens()
    second = first.copy()
    second[:, 4:] = (second[:, 4:] + 1) % 20
    before, after = model(first).numpy(), model(second).numpy()
    np.testing.assert_allclose(before[:, :4], after[:, :4], rtol=1e-5, atol=1e-7)
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-5


def test_l2_is_that_of_the_kernels():
    model = models.gru_language_model(l2=0.5, **SMALL)
    kernels = [weight for weight in model.weights if weight.path.endswith("kernel")]
    assert [kernel.path for kernel in kernels] == [
        "gru/gru_cell/kernel",
        "gru/gru_cell/recurrent_kernel",
        "readout_1/kernel",
        "readout_2/kernel",
    ]
    want = 0.5 * sum(float((kernel.numpy() ** 2).sum()) for kernel in kernels)
    np.testing.assert_allclose(sum(model.losses), want, rtol=1e-5)


def test_logits_are_float32_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    assert models.gru_language_model(**SMALL)(tokens()).dtype == "float32"


def test_every_kernel_is_sparse_and_the_embedding_dense(model):
    sparse = rigl_tf.sparsify(model, 0.75, UNIFORM)
    # 6-wide embedding, 26 units, readouts 13 and 6: floor(0.75 * size) zeros.
    shares = {path: (mask.size, mask.sum()) for path, mask in rigl_tf.get_masks(sparse).items()}
    assert shares == {
        "gru/gru_cell/kernel": (6 * 78, 6 * 78 - 351),
        "gru/gru_cell/recurrent_kernel": (26 * 78, 26 * 78 - 1521),
        "readout_1/kernel": (26 * 13, 26 * 13 - 253),
        "readout_2/kernel": (13 * 6, 13 * 6 - 58),
    }
    sparse.compile(
        rigl_tf.RigL(keras.optimizers.Adam(0.01), end_step=8, update_frequency=2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    text = np.arange(9 * 32).reshape(32, 9) % 5
    losses = sparse.fit(text[:, :-1], text[:, 1:], batch_size=8, epochs=3, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0]
    for path, mask in rigl_tf.get_masks(sparse).items():
        assert (mask.size, mask.sum()) == shares[path]


def test_what_an_output_costs():
    sparse = rigl_tf.sparsify(models.gru_language_model(), 0.75, UNIFORM)
    cost = rigl_tf.flops.count(sparse, np.zeros((1, 10), "int32"))
    products = 128 * 1536 + 512 * 1536 + 512 * 256 + 256 * 128
    logits = 128 * 256
    assert cost.dense_flops == 10 * 2 * (products + logits)
    assert cost.flops == 10 * 2 * (products // 4 + logits)
