"""Models with CSR kernels: what they hold, how they are converted, saved and trained."""

import gc
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    active,
    all_alike,
    assert_equal,
    assert_same_model,
    assert_same_state,
    differ,
    ends_early,
    executions_of,
    half,
    masks_of,
    mlp,
    numbers,
    rigl,
    sequential,
    state_of,
    values,
)

import rigl_tf
from rigl_tf import masks
from rigl_tf.execution import engine, stash, tiles

layers, optimizers = keras.layers, keras.optimizers
pytestmark = [
    ends_early,
    pytest.mark.optimized_graphs,
    # It is the same in a graph, and there are many small trainings here.
    pytest.mark.usefixtures("eagerly"),
    # Of TensorFlow, on this fixture.
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions"),
]
X, Y = numbers((12, 6)), numbers((12, 3), seed=1)
CSR = ["csr", "csr"]


def make(execution="csr", optimizer=rigl, model=mlp, seed=0):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    sparse = half(model(), execution=execution, seed=seed)
    sparse.compile(optimizer(), "mse")
    return sparse


def fit(model, epochs=1, **arguments):
    """Three steps an epoch: an update in the first one, and two in two."""
    arguments = {"batch_size": 4, "epochs": epochs, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(X, Y, **arguments).history["loss"]


# What is stored.


def test_only_active_values_are_there():
    model = half(mlp(), execution="csr")
    assert executions_of(model) == CSR
    assert [weight.shape for weight in model.trainable_weights] == [(24,), (8,), (12,), (3,)]
    assert model.count_params() < 6 * 8 + 8 * 3 + 11 + 6 * sum(active(model))
    kernel = model.layers[0].kernel
    mask = masks_of(model)[0]
    assert kernel.shape == (6, 8)
    np.testing.assert_array_equal(np.asarray(kernel) != 0, mask)
    np.testing.assert_array_equal(tf.convert_to_tensor(kernel), kernel.numpy())
    np.testing.assert_array_equal(kernel.values, kernel.numpy()[mask])
    kernel.assign(np.ones((6, 8)))
    np.testing.assert_array_equal(kernel, mask)


def tensors_of_shape(*shape):
    """The live variables and tensors of a shape, or of this shape made flat."""
    gc.collect()
    kinds = (keras.Variable, tf.Variable, tf.Tensor)
    live = [each for each in gc.get_objects() if isinstance(each, kinds)]
    return [each for each in live if each.shape in (shape, (math.prod(shape),))]


@pytest.mark.parametrize(
    "arguments",
    [
        {"sparsity": 0.9},
        {"sparsity": 0.9, "execution": "auto"},
        {"sparsity": {"wide": 0.9}},
        {"sparsity": 0.9, "initializer": rigl_tf.initializers.SparseVarianceScaling()},
        {"from_zeros": True},
    ],
    ids=["csr", "auto", "dictionary", "initializer", "from_zeros"],
)
def test_no_dense_copy_stays(arguments):
    model = sequential((503,), layers.Dense(499, name="wide"), layers.Dense(3, name="last"))
    model.layers[0].kernel.assign(np.eye(503, 499))
    sparse = rigl_tf.sparsify(model, **{"execution": "csr", **arguments})
    sparse.compile(rigl(), "mse")
    sparse.fit(numbers((12, 503)), Y, batch_size=4, verbose=0)
    del model
    assert executions_of(sparse)[0] == "csr"
    assert tensors_of_shape(503, 499) == []
    masked = rigl_tf.with_execution(sparse, "masked")
    assert tensors_of_shape(503, 499)
    again = rigl_tf.with_execution(masked, "csr")
    del masked, sparse
    assert executions_of(again)[0] == "csr"
    assert tensors_of_shape(503, 499) == []


def test_the_masks_and_weights_are_those_of_a_masked_model():
    models = [make(execution) for execution in ("masked", "csr")]
    assert_same_model(*models)
    assert [w.path for w in models[0].trainable_weights] == [
        w.path.removesuffix("/kernel_values") for w in models[1].trainable_weights
    ]


def test_initializer_and_from_zeros():
    he = rigl_tf.initializers.SparseVarianceScaling(2.0)
    models = []
    for execution in ("masked", "csr"):
        keras.utils.set_random_seed(0)
        models.append(half(mlp(), initializer=he, execution=execution))
    assert_same_model(*models)
    plain = mlp()
    kernel = plain.layers[0].kernel
    kernel.assign(np.where(numbers((6, 8)) > 1, kernel, 0))
    want, num = plain(X), np.count_nonzero(kernel)
    sparse = rigl_tf.sparsify(plain, from_zeros=True, execution="csr")
    assert executions_of(sparse) == ["csr", "masked"]
    assert rigl_tf.sparsity_summary(sparse).kernels[1].reason == "no zeros"
    assert active(sparse) == [num, 24]
    np.testing.assert_allclose(sparse(X), want, rtol=1e-5, atol=1e-6)


def auto():
    return rigl_tf.sparsify(mlp(256, 512, 3), 0.9, all_alike, execution="auto")


@pytest.mark.usefixtures("either")
def test_auto_takes_what_is_faster():
    model = auto()
    first, second = rigl_tf.sparsity_summary(model).kernels
    assert "too small" in second.reason
    if engine.is_native():
        assert executions_of(model) == ["csr", "masked"]
    else:
        assert executions_of(model) == ["masked", "masked"]
        assert "without the operations in C++" in first.reason


@pytest.mark.parametrize(
    ("layer", "shape", "sparsity", "execution"),
    [
        (layers.Dense(400), (400,), 0.8, "csr"),
        (layers.Dense(363), (362,), 0.8, "csr"),  # 26,283 of 131,406: ERK has rounded up
        (layers.Dense(400), (400,), 0.75, "masked"),
        (layers.Dense(360), (360,), 0.9, "masked"),
        (layers.Dense(64), (4096,), 0.9, "masked"),
        (layers.EinsumDense("abc,cde->abde", (None, 8, 50)), (3, 400), 0.9, "csr"),
        (layers.EinsumDense("abc,cde->abde", (None, 2, 30)), (3, 4000), 0.9, "masked"),
    ],
)
def test_auto_looks_at_inputs_and_outputs(native, layer, shape, sparsity, execution):
    model = rigl_tf.sparsify(sequential(shape, layer), sparsity, execution="auto")
    (kernel,) = rigl_tf.sparsity_summary(model).kernels
    assert kernel.execution == execution
    assert "to be faster as CSR" in kernel.reason or execution == "csr"


@pytest.mark.parametrize("there", ["1", "0"])
def test_a_file_keeps_what_auto_chose(native, there, monkeypatch, tmp_path):
    monkeypatch.setenv("RIGL_TF_NATIVE", there)
    model, x = auto(), numbers((4, 256))
    chosen = executions_of(model)
    # Elsewhere `"auto"` would choose otherwise.
    monkeypatch.setenv("RIGL_TF_NATIVE", "10"[int(there)])
    model.save(tmp_path / "model.keras")
    copies = keras.models.load_model(tmp_path / "model.keras"), keras.models.clone_model(model)
    for copy in (model, *copies):
        assert executions_of(copy) == chosen
    assert_same_model(model, copies[0])
    copies[1].set_weights(model.get_weights())
    assert_equal(copies[1](x), model(x))
    reason = rigl_tf.sparsity_summary(copies[0]).kernels[0].reason
    assert ("its file" in reason) == (there == "0")


def test_auto_chooses_anew_when_it_is_asked(native, monkeypatch, tmp_path):
    model, x = auto(), numbers((4, 256))
    y = model(x)
    monkeypatch.setenv("RIGL_TF_NATIVE", "0")
    assert executions_of(rigl_tf.with_execution(model, "auto")) == ["masked", "masked"]
    np.testing.assert_allclose(model(x), y, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    monkeypatch.setenv("RIGL_TF_NATIVE", "1")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert executions_of(loaded) == ["masked", "masked"]
    assert "file" in rigl_tf.sparsity_summary(loaded).kernels[0].reason
    assert executions_of(rigl_tf.with_execution(loaded, "auto")) == ["csr", "masked"]
    np.testing.assert_allclose(loaded(x), y, rtol=1e-5, atol=1e-6)


# From masked to CSR and back.


def test_there_and_back_is_the_same():
    model = half(mlp())
    before, names = model.get_weights(), [weight.path for weight in model.weights]
    assert rigl_tf.with_execution(model, "csr") is model
    assert executions_of(model) == CSR
    rigl_tf.with_execution(model, "masked")
    assert [weight.path for weight in model.weights] == names
    assert_equal(model.get_weights(), before)


TRAINED_BY = {
    "RigL": rigl,
    "Adam": lambda: optimizers.Adam(0.01),
    "averages": lambda: rigl_tf.StaticSparse(optimizers.Adam(0.01, use_ema=True)),
    "loss scale": lambda: optimizers.LossScaleOptimizer(rigl()),
}


@pytest.mark.parametrize("name", TRAINED_BY)
@pytest.mark.parametrize("first", ["masked", "csr"])
def test_converted_in_the_middle_of_training(name, first):
    """State and all: the weights are those of a training that was not interrupted."""
    whole, model = make(first, TRAINED_BY[name]), make(first, TRAINED_BY[name])
    fit(whole)
    fit(model)
    rigl_tf.with_execution(model, "csr" if first == "masked" else "masked")
    assert executions_of(model) != executions_of(whole)
    np.testing.assert_allclose(fit(model), fit(whole), rtol=1e-5)
    assert_same_model(whole, model)


@pytest.mark.parametrize(
    ("model", "execution", "message"),
    [
        (mlp, "csr", "needs a built sparse model: .* without sparse kernels"),
        (lambda: "a string", "csr", "needs a built sparse model"),
        (lambda: half(mlp()).layers[0], "csr", "needs a whole model. Received: model=<SparseWrapp"),
        (lambda: half(mlp()), "CSR", r"must be one of \['masked', 'csr', 'auto'\]"),
        (
            lambda: make("masked", lambda: rigl_tf.DNW("adam", 0.5)),
            "csr",
            r"DNW .* needs masked kernels: .*, 'sequential/dense_1/kernel'\]",
        ),
    ],
)
def test_with_execution_refuses(model, execution, message):
    with pytest.raises(ValueError, match=message):
        rigl_tf.with_execution(model(), execution)


REFUSED = {
    "SNFS": lambda: rigl_tf.SNFS("adam", 99, update_frequency=2),
    "DNW": lambda: rigl_tf.DNW("adam", 0.5),
    "GradualPruning": lambda: rigl_tf.GradualPruning("adam", 99, 0.9, update_frequency=2),
    "momentum": lambda: rigl(gradient_momentum=0.9),
    "Adafactor": lambda: rigl(optimizers.Adafactor(epsilon_1=1e-15)),
}
# In Keras 3.12, the last for Python 3.10, Muon fails with any model on TensorFlow.
if not keras.__version__.startswith("3.12."):
    REFUSED["Muon"] = lambda: rigl(optimizers.Muon(0.01))


@pytest.mark.parametrize("name", REFUSED)
def test_optimizers_that_need_masked_kernels(name):
    model = make("csr", REFUSED[name])
    before = values(model.weights)
    with pytest.raises(ValueError, match=r"use `rigl_tf.with_execution\(model, 'masked'\)`"):
        fit(model)
    assert_equal(values(model.weights), before)
    rigl_tf.with_execution(model, "masked")
    model.compile(REFUSED[name](), "mse")
    fit(model)


# Files.


@pytest.mark.built_in_fit
@pytest.mark.parametrize("name", ["RigL", "Adam", "loss scale"])
def test_save_load_continue_is_uninterrupted(name, tmp_path):
    whole, stopped = make("csr", TRAINED_BY[name]), make("csr", TRAINED_BY[name])
    fit(whole, 2)
    fit(stopped)
    stopped.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert executions_of(loaded) == CSR
    assert_same_state(state_of(loaded), state_of(stopped))
    fit(loaded)
    assert_same_state(state_of(loaded), state_of(whole))
    assert name == "Adam" or differ(masks_of(loaded), masks_of(stopped))


@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_weights_into_a_model_with_other_masks(kind, tmp_path):
    whole, stopped, other = make(), make(), make(seed=1)
    fit(whole, 2)
    fit(stopped)
    other.optimizer.build(other.trainable_variables)
    assert differ(masks_of(other), masks_of(stopped))
    if kind == "weights":
        stopped.save_weights(tmp_path / "it.weights.h5")
        other.load_weights(tmp_path / "it.weights.h5")
    else:
        path = tf.train.Checkpoint(model=stopped).write(str(tmp_path / "it"))
        tf.train.Checkpoint(model=other).read(path).assert_existing_objects_matched()
    assert_same_state(state_of(other), state_of(stopped))
    fit(other)
    assert_same_state(state_of(other), state_of(whole))


def test_dense_weights_into_a_csr_model(tmp_path):
    """They are taken where connections are active, as into a masked model."""
    dense, model = mlp(), make(seed=1)
    before = masks_of(model)
    dense.save_weights(tmp_path / "dense.weights.h5")
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        model.load_weights(tmp_path / "dense.weights.h5")
    assert_equal(masks_of(model), before)
    for layer, plain, mask in zip(model.layers, dense.layers, before, strict=True):
        np.testing.assert_array_equal(layer.kernel, np.where(mask, plain.kernel, 0))
        np.testing.assert_array_equal(layer.bias, plain.bias)
    fit(model)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (lambda: half(mlp()), lambda: half(mlp(), execution="csr"), "load it into a masked model"),
        (lambda: half(mlp(), execution="csr"), lambda: half(mlp()), "could not be loaded"),
        (lambda: half(mlp(), execution="csr"), mlp, "could not be loaded"),
        (
            lambda: half(sequential((6,), layers.Dense(3, use_bias=False)), execution="csr"),
            lambda: sequential((6,), layers.Dense(3, use_bias=False)),
            "could not be loaded",
        ),
        (
            lambda: rigl_tf.sparsify(mlp(), 0.9, all_alike, execution="csr"),
            lambda: half(mlp(), execution="csr"),
            "must contain 24 active values of .* an array of shape",
        ),
    ],
    ids=["masked to csr", "csr to masked", "csr to dense", "without bias", "other sparsity"],
)
def test_weights_that_do_not_fit_are_refused(source, target, message, tmp_path):
    source().save_weights(tmp_path / "it.weights.h5")
    with pytest.raises(ValueError, match=message):
        target().load_weights(tmp_path / "it.weights.h5")


def test_copies():
    model = make()
    fit(model)
    clone = keras.models.clone_model(model)
    assert executions_of(clone) == CSR
    assert active(clone) == active(model)
    clone.set_weights(model.get_weights())
    assert_same_model(clone, model)
    np.testing.assert_array_equal(clone(X), model(X))


# Masks by hand.


def test_masks_are_set_and_loaded(tmp_path):
    model, masked = make("csr"), make("masked")
    moved = {path: np.roll(mask, 3, 1) for path, mask in rigl_tf.get_masks(model).items()}
    rigl_tf.save_masks(model, tmp_path / "masks.npz")
    for each in (model, masked):
        rigl_tf.set_masks(each, moved)
    assert_equal(masks_of(model), moved.values())
    assert_same_model(model, masked)
    for each in (model, masked):
        fit(each)
        rigl_tf.load_masks(each, tmp_path / "masks.npz")
    assert_same_model(model, masked)


def test_masks_of_another_number_are_refused():
    model = half(mlp(), execution="csr")
    path = next(iter(rigl_tf.get_masks(model)))
    with pytest.raises(ValueError, match=r"cannot change: .* a mask with 48 for 'seq.* has 24"):
        rigl_tf.set_masks(model, {path: np.ones((6, 8), bool)})


# Other models of the same.


def test_strip_export_flops_and_compact(tmp_path):
    model, masked = make("csr"), make("masked")
    want = model(X)
    plain = rigl_tf.strip(model)
    assert not rigl_tf.get_masks(plain)
    np.testing.assert_allclose(plain(X), want, rtol=1e-5, atol=1e-6)
    assert [weight.shape for weight in plain.weights] == [(6, 8), (8,), (8, 3), (3,)]
    report = rigl_tf.export(model, tmp_path / "it.keras", "keras")
    assert report.max_difference < 1e-5
    np.testing.assert_allclose(keras.models.load_model(report.path)(X), want, atol=1e-5)
    one, two = (rigl_tf.flops.estimate(each) for each in (model, masked))
    assert (one.flops, one.num_active, one.num_bytes) == (two.flops, two.num_active, two.num_bytes)
    np.testing.assert_allclose(rigl_tf.compact(model)(X), want, rtol=1e-5, atol=1e-6)
    assert executions_of(model) == CSR
    fit(model)


# Training.


def test_keras_cannot_export_csr_kernels(tmp_path):
    model = rigl_tf.sparsify(
        keras.Sequential([keras.Input((6,)), layers.Dense(8)]), 0.5, execution="csr"
    )
    with pytest.raises(ValueError) as found:
        model.export(tmp_path / "saved", verbose=False)
    assert "rigl_tf.export(model, path)` writes one that" in str(found.value.__cause__)
    rigl_tf.strip(model).export(tmp_path / "stripped", verbose=False)


def test_frozen_layers():
    trained = []
    for execution in ("masked", "csr"):
        model = make(execution)
        model.layers[0].trainable = False
        model.compile(rigl(), "mse")
        before = masks_of(model)
        fit(model)
        assert_equal(masks_of(model)[:1], before[:1])
        assert differ(masks_of(model)[1:], before[1:])
        model.layers[0].trainable = True
        model.compile(rigl(), "mse")
        fit(model)
        trained.append(model)
    assert_same_model(*trained)


def test_nan_skips_the_update():
    model = make()
    x = X.copy()
    x[8:] = np.nan  # step 2
    before = masks_of(model)
    with pytest.warns(UserWarning, match="RigL skipped 1 mask updates"):
        model.fit(x, Y, batch_size=4, shuffle=False, verbose=0)
    assert_equal(masks_of(model), before)
    for kernel in masks.kernels_of(model).values():
        assert np.isfinite(kernel.numpy()).all()


class Tied(keras.Model):
    """Computes with a kernel itself, too."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = layers.Dense(8, "tanh"), layers.Dense(3)

    def call(self, inputs):
        code = self.encode(inputs)
        return self.decode(keras.ops.matmul(code, keras.ops.transpose(self.encode.kernel)))


def tied():
    model = Tied()
    model(X)
    return model


def test_a_kernel_that_other_code_computes_with():
    """Its dense gradient counts where connections grow."""
    models = [make(execution, model=tied) for execution in ("masked", "csr")]
    assert executions_of(models[1]) == CSR
    np.testing.assert_allclose(*map(fit, models), rtol=1e-5)
    assert_same_model(*models)


def regularized():
    hidden = layers.Dense(8, "tanh", kernel_regularizer=keras.regularizers.L1L2(0.1, 0.1))
    return sequential((6,), hidden, layers.Dense(3))


def by_gradients(inner="sgd"):
    return rigl(inner, grow_init="gradient", grow_scale=-0.1)


class OwnStep(keras.Model):
    """Looks for inputs that are hard, and scales the gradients, before they are applied."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_mean((self(x) - y) ** 2)
        x += 0.5 * tf.sign(tape.gradient(loss, x))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x) - y) ** 2)
        gradients = [0.1 * each for each in tape.gradient(loss, self.trainable_variables)]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def with_own_step():
    inputs = keras.Input((6,))
    return OwnStep(inputs, layers.Dense(3)(layers.Dense(8, "tanh")(inputs)))


@pytest.mark.parametrize(
    ("model", "policy"),
    [(regularized, "float32"), (with_own_step, "float32"), (mlp, "mixed_float16")],
    ids=["regularizers", "another backward pass, and scaling", "loss scale"],
)
def test_updates_see_the_gradient_that_is_applied(model, policy):
    """Not only that of what a layer got and gave in this step."""
    keras.config.set_dtype_policy(policy)
    models = [make(execution, by_gradients, model) for execution in ("masked", "csr")]
    np.testing.assert_allclose(*map(fit, models), rtol=1e-3)
    assert executions_of(models[1]) == CSR
    assert_same_model(*models, tolerance=1e-4 if policy == "float32" else 1e-2)


class Penalized(keras.Model):
    """Its loss has the gradients of its outputs, by the inputs, and the gradients of these."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            with tf.GradientTape() as second:
                second.watch(x)
                with tf.GradientTape() as first:
                    first.watch(x)
                    outputs = self(x)
                slope = first.gradient(outputs, x)
            curvature = second.gradient(slope, x)
            penalty = tf.reduce_mean((tf.norm(slope, axis=-1) - 1) ** 2)
            loss = tf.reduce_mean((outputs - y) ** 2) + penalty + tf.reduce_mean(curvature**2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def with_penalties():
    inputs = keras.Input((6,))
    x = layers.Dense(8, "tanh")(layers.Reshape((3, 2))(inputs))
    x = layers.Flatten()(layers.Conv1D(4, 2, activation="tanh")(x))
    return Penalized(inputs, layers.Dense(3)(x))


@pytest.mark.parametrize("in_graph", [False, True])
def test_updates_see_higher_derivatives(in_graph):
    """As those of a penalty on gradients, or of a differential equation."""
    tf.config.run_functions_eagerly(not in_graph)
    models = [make(execution, by_gradients, with_penalties) for execution in ("masked", "csr")]
    np.testing.assert_allclose(*map(fit, models), rtol=1e-4)
    assert executions_of(models[1]) == ["csr"] * 3
    assert_same_model(*models, tolerance=1e-4)


def test_an_update_of_rigl_visits_no_tile(monkeypatch):
    """One operation finds what to grow; to visit tiles would take several times as long."""
    model = make()
    before = masks_of(model)
    monkeypatch.setattr(tiles.Tiles, "tile", None)
    fit(model)
    assert differ(before, masks_of(model))


def test_updates_do_not_see_what_other_losses_give():
    """As that of a generator, which is trained through a discriminator."""
    models = []
    for execution in ("masked", "csr"):
        keras.utils.set_random_seed(0)
        generator, critic = mlp(4, 8, 6), half(mlp(6, 8, 1), execution=execution)
        optimizer = rigl("sgd")
        for _ in range(4):
            with tf.GradientTape(persistent=True) as tape:
                fake = critic(generator(X[:, :4]))
                loss = tf.reduce_mean(tf.nn.softplus(critic(X)) + tf.nn.softplus(-fake))
                other = tf.reduce_mean(fake**2)
            tape.gradient(other, generator.trainable_variables)
            gradients = tape.gradient(loss, critic.trainable_variables)
            optimizer.apply(gradients, critic.trainable_variables)
        models.append(critic)
    assert_same_model(*models)


def test_a_kernel_that_does_not_decay():
    models = []
    for execution in ("masked", "csr"):
        model = make(execution)
        inner = optimizers.AdamW(0.01, weight_decay=0.5)
        optimizer = rigl(inner)
        optimizer.exclude_from_weight_decay([model.layers[0].kernel])
        model.compile(optimizer, "mse")
        fit(model)
        models.append(model)
    assert_same_model(*models)


# Models that are not built.


def test_a_model_that_is_built_in_fit():
    model = make(model=lambda: keras.Sequential([layers.Dense(8, "tanh"), layers.Dense(3)]))
    fit(model)
    assert executions_of(model) == CSR


class Nested(keras.Model):
    """Makes its layers at once, and builds them in its first call."""

    def __init__(self):
        super().__init__()
        self.encode = keras.Sequential([layers.Dense(6, "tanh")])
        self.attend = layers.MultiHeadAttention(2, 3)
        self.decode = layers.Dense(3)

    def call(self, inputs):
        codes = self.encode(inputs)[:, None]
        return self.decode(self.attend(codes, codes)[:, 0])


@pytest.mark.parametrize("model", [Tied, Nested])
@pytest.mark.parametrize("optimizer", [rigl, lambda: optimizers.Adam(0.01)])
def test_a_subclassed_model_that_is_built_in_fit(model, optimizer, tmp_path):
    models, losses = [], []
    for execution in ("masked", "csr"):
        # A graph takes seconds to trace: the masked model, which is compared with, needs none.
        tf.config.run_functions_eagerly(execution == "masked")
        models.append(make(execution, optimizer, model))
        losses.append(fit(models[-1], epochs=3))
    assert set(executions_of(models[1])) == {"csr"}
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert_same_model(*models)
    models[1].save_weights(tmp_path / "model.weights.h5")
    loaded = make("csr", optimizer, model)
    loaded(X)
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(tmp_path / "model.weights.h5")
    assert_same_model(models[1], loaded, tolerance=0)


# Bad arguments.


@pytest.mark.parametrize("execution", ["CSR", None, 3])
def test_no_execution(execution):
    for make in (
        lambda: half(mlp(), execution=execution),
        lambda: rigl_tf.SparseWrapper(layers.Dense(3), 0.5, execution=execution),
    ):
        with pytest.raises(ValueError, match=r"`execution` must be one of \['masked', 'csr', 'au"):
            make()


def test_another_optimizer_collects_nothing():
    model = make()
    model.optimizer.build(model.trainable_variables)
    storage = model.layers[0].layer.kernel
    storage.collect.assign(True)  # as before an update that never comes
    model.compile(optimizers.SGD(0.01), "mse")
    for _ in range(3):
        fit(model)
    assert not storage.collect.numpy()
    assert len(storage.stash.read()[0]) <= 8


# What updates cannot know.


def clipped(models, *, by):
    """Trains a model with gradients that were clipped by hand."""
    optimizer = rigl("sgd")
    for _ in range(4):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((models(X) - Y) ** 2)
        gradients = tape.gradient(loss, models.trainable_variables)
        if by == "norm":
            gradients, _ = tf.clip_by_global_norm(gradients, 1e-3)
        else:
            gradients = [tf.clip_by_value(each, -1e-3, 1e-3) for each in gradients]
        optimizer.apply(gradients, models.trainable_variables)
    return models


@pytest.mark.parametrize(
    "norm", [tf.nn.l2_loss, lambda weight: tf.reduce_sum(tf.abs(weight)), keras.ops.logsumexp]
)
def test_a_norm_of_the_weights_written_by_hand(norm):
    def train(execution):
        model, optimizer = make(execution, model=lambda: mlp(6, 16, 8, 3)), rigl("sgd")
        for _ in range(7):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(X) - Y) ** 2)
                kernels = [each for each in model.trainable_weights if "kernel" in each.name]
                loss += (0.01 if is_known else 1.0) * sum(map(norm, kernels))
            weights = model.trainable_weights
            optimizer.apply(tape.gradient(loss, weights), weights)
        return model

    is_known = norm is not keras.ops.logsumexp
    if is_known:
        assert_same_model(train("masked"), train("csr"))
    else:
        with pytest.warns(UserWarning, match="the loss has another term of the weights"):
            train("csr")


def test_a_tape_needs_the_values():
    model = make()
    kernel = model.layers[0].kernel
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(model(X))
    assert tape.gradient(loss, kernel.values.value).shape == (24,)
    with pytest.raises(AttributeError, match=r"use `kernel.values`, or the `trainable_variables`"):
        tape.gradient(loss, [kernel])


def test_gradients_of_another_kind_are_told_of():
    models = [clipped(make(execution), by="norm") for execution in ("masked", "csr")]
    assert_same_model(*models)
    with pytest.warns(UserWarning, match="Perhaps it was clipped by element"):
        clipped(make(), by="element")


def test_layers_that_two_optimizers_train_are_told_of():
    model = make()
    heads = [keras.Model(model.inputs[0], model.outputs[0]) for _ in range(2)]
    for head, frequency in zip(heads, (2, 3), strict=True):
        head.compile(
            rigl_tf.RigL("sgd", end_step=100, begin_step=1, update_frequency=frequency), "mse"
        )

    def train_in_turn():
        for _ in range(6):
            for head in heads:
                head.train_on_batch(X, Y)

    with pytest.warns(UserWarning, match="another optimizer trains the same layers"):
        train_in_turn()


class Branches(keras.Model):
    """Two hidden layers, which a function of them and of the inputs combines."""

    def __init__(self, combine, regularizer=None):
        super().__init__()
        self.combine = combine
        self.a = layers.Dense(8)
        self.b = layers.Dense(8, kernel_regularizer=regularizer)
        self.out = layers.Dense(3)

    def call(self, x):
        return self.out(self.combine(self.a, self.b, x))


def trained_branches(execution, combine, regularizer=None):
    def model():
        built = Branches(combine, regularizer)
        built(X)
        return built

    model = make(execution, model=model)
    before = masks_of(model)
    fit(model, epochs=3)
    return model, [differ(*pair) for pair in zip(before, masks_of(model), strict=True)]


def without_b(a, b, x):
    b(x)
    return a(x)


@pytest.mark.parametrize("regularizer", [None, "l2"])
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
@pytest.mark.filterwarnings("ignore:A mask update left the connections of the CSR kernel 'bran")
def test_a_kernel_that_the_loss_does_not_reach_keeps_its_mask_alone(regularizer):
    """A regularizer gives it a gradient, but no product."""
    masked, csr = (
        trained_branches(execution, without_b, regularizer) for execution in ("masked", "csr")
    )
    assert_same_model(masked[0], csr[0])
    assert csr[1] == [True, False, True]
    assert int(csr[0].optimizer.num_skipped_updates) == 0


@pytest.mark.filterwarnings("ignore:Using a while_loop for converting")
# Of TensorFlow's `vectorized_map`, on Python 3.13.
@pytest.mark.filterwarnings("ignore:.* got an unexpected keyword argument '___pyct_anno'")
def test_products_that_are_not_stored_are_told_of():
    def mapped(a, b, x):
        return a(x) + keras.ops.vectorized_map(lambda row: b(row[tf.newaxis])[0], x)

    tf.config.run_functions_eagerly(False)
    with pytest.warns(UserWarning, match="inside of `tf.vectorized_map`"):
        model, moved = trained_branches("csr", mapped)
    assert moved == [True, False, True]
    assert int(model.optimizer.num_skipped_updates) == 0


def test_a_part_of_a_step_may_be_a_graph():
    tf.config.run_functions_eagerly(False)
    models = [make(execution, optimizer=rigl) for execution in ("masked", "csr")]
    for model in models:
        forward, optimizer = tf.function(model), model.optimizer
        for _ in range(5):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((forward(X) - Y) ** 2)
            optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
    assert_same_model(*models)


@pytest.mark.parametrize(
    "branch",
    [
        lambda a, b, x: tf.cond(tf.reduce_sum(x) > 0, lambda: a(x), lambda: b(x)),
        lambda a, b, x: tf.switch_case(
            tf.cast(tf.reduce_sum(x) > 0, tf.int32), [lambda: a(x), lambda: b(x)]
        ),
    ],
)
def test_branches_of_a_graph_cannot_be_trained(branch):
    tf.config.run_functions_eagerly(False)
    with pytest.raises(ValueError, match=r"inside a loop or a `tf.cond` of TensorFlow"):
        trained_branches("csr", branch)


def test_gradients_without_training_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(stash, "_MOST_BLOCKS", 3)
    model = make()
    kernel = next(iter(masks.kernels_of(model).values()))
    model.optimizer.build(model.trainable_variables)
    kernel.storage.collect.assign(True)
    for _ in range(5):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(X))
        tape.gradient(loss, model.trainable_variables)
    assert kernel.storage.stash.inputs.numpy().shape == (3 * len(X), 6)
    assert sorted(set(kernel.storage.stash.blocks.numpy())) == [2, 3, 4]
