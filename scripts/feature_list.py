"""The training features of Keras that `scripts.keras_features` and its tests try, one by one."""

import dataclasses
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import rigl_tf

layers, optimizers, callbacks = keras.layers, keras.optimizers, keras.callbacks

BATCH = 8
STEPS_PER_EPOCH = 4
EPOCHS = 2
NUM = BATCH * STEPS_PER_EPOCH

IN_BRANCH = "Keras cannot use `{}` under MirroredStrategy"
PER_REPLICA = "Keras clips the gradient of each replica, not their sum"


def momentum():
    return optimizers.SGD(0.1, momentum=0.9)


def rigl(inner):
    """Updates at steps 3 and 6 of 8."""
    return rigl_tf.RigL(inner, end_step=100, update_frequency=3, drop_fraction=0.5)


def mlp(**kwargs):
    hidden = layers.Dense(8, activation="tanh", **kwargs)
    return keras.Sequential([keras.Input((6,)), hidden, layers.Dense(3)])


def data():
    """Each half of a batch, which is what a replica gets, has a distribution of its own."""
    rng = np.random.default_rng(0)
    shift = (np.arange(NUM) % BATCH < BATCH // 2)[:, np.newaxis]
    x, y = rng.normal(size=(NUM, 6)) + 2 * shift, rng.normal(size=(NUM, 3)) - 3 * shift
    return x.astype("float32"), y.astype("float32")


def fit(model, watch, directory, **kwargs):
    """`model.fit` on `data()`, watched after every step."""
    x, y = kwargs.pop("data", None) or data()
    kwargs = {"epochs": EPOCHS, "batch_size": BATCH, "shuffle": False, "verbose": 0, **kwargs}
    model.fit(x, y, callbacks=[*kwargs.pop("callbacks", []), watch], **kwargs)


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature of Keras.

    Args:
        name: String, its row in the table.
        optimizer: Makes the optimizer of Keras that trains the weights.
        wrap: Makes the optimizer of the sparse model from that one.
        model: Makes the dense model.
        prepare: Called with the sparse model before it is compiled.
        compile: Arguments of `compile`.
        fit: Makes the arguments of `fit` from a temporary directory.
        train: Trains the compiled model, given a `Watch` and a temporary directory.
        check: Asserts what else must hold, given the trained model and the `Watch`.
        policy: Name of the dtype policy.
        limit: Two replicas fail, with any model; part of the message.
        differs: Why two replicas train otherwise than one device, with any model.
        remark: Anything else that a user should know.
    """

    name: str
    optimizer: Callable = momentum
    wrap: Callable = rigl
    model: Callable = mlp
    prepare: Callable = lambda model: None
    compile: dict = dataclasses.field(default_factory=dict)
    fit: Callable = lambda directory: {}
    train: Callable = None
    check: Callable = lambda model, watch: None
    policy: str = "float32"
    limit: str = ""
    differs: str = ""
    remark: str = ""

    def run(self, model, watch, directory):
        """Trains a compiled model with this feature."""
        (self.train or fit)(model, watch, directory, **self.fit(directory))


# All optimizers that Keras exports.


def inner_optimizers():
    """`{name: function that makes it}` of the optimizers of Keras that train weights."""
    wrappers = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    names = [
        name
        for name, value in sorted(vars(optimizers).items())
        if isinstance(value, type)
        and issubclass(value, optimizers.Optimizer)
        and name not in wrappers
        # In Keras 3.12, the last for Python 3.10, Muon fails with any model on TensorFlow.
        and not (name == "Muon" and keras.__version__.startswith("3.12."))
    ]
    arguments = {"Adafactor": {"epsilon_1": 1e-15}}
    return {
        name: lambda name=name: getattr(optimizers, name)(0.02, **arguments.get(name, {}))
        for name in names
    }


_OPTIMIZER_REMARKS = {
    "Adafactor": "row and column means are no slots and are not reset; with Keras's own "
    "`epsilon_1` a kernel with an empty row and column becomes NaN: a warning says so",
    "Ftrl": "Keras computes the weights anew from its slots, whatever they were initialised to",
}
_OPTIMIZER_DIFFERENCES = {
    "ScheduleFreeAdamW": "in a graph Keras's own trains otherwise under MirroredStrategy: on one "
    "device it takes the new momentum for the old",
}
INNER = [
    Feature(
        f"`{name}`",
        make,
        remark=_OPTIMIZER_REMARKS.get(name, ""),
        differs=_OPTIMIZER_DIFFERENCES.get(name, ""),
    )
    for name, make in inner_optimizers().items()
]

# Arguments of an optimizer.


def no_decay_of_biases():
    optimizer = optimizers.AdamW(0.02, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def rigl_without_decay_of_biases(inner):
    optimizer = rigl(inner)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


ARGUMENTS = [
    Feature("`clipnorm`", lambda: optimizers.SGD(0.1, clipnorm=0.3), differs=PER_REPLICA),
    Feature(
        "`global_clipnorm`", lambda: optimizers.SGD(0.1, global_clipnorm=0.3), differs=PER_REPLICA
    ),
    Feature("`clipvalue`", lambda: optimizers.SGD(0.1, clipvalue=0.05), differs=PER_REPLICA),
    Feature("`weight_decay`", lambda: optimizers.Adam(0.02, weight_decay=0.5)),
    Feature("`exclude_from_weight_decay` of the inner optimizer", no_decay_of_biases),
    Feature(
        "`exclude_from_weight_decay` of the sparse optimizer",
        lambda: optimizers.AdamW(0.02, weight_decay=0.5),
        wrap=rigl_without_decay_of_biases,
        remark="passed on to the inner optimizer",
    ),
    Feature(
        "`use_ema=True`",
        lambda: optimizers.Adam(0.02, use_ema=True, ema_momentum=0.8),
        remark="averages are masked in every step; those of moved connections start at 0",
    ),
    Feature(
        "`use_ema=True`, `ema_overwrite_frequency=2`",
        lambda: optimizers.Adam(0.02, use_ema=True, ema_overwrite_frequency=2),
        limit=IN_BRANCH.format("ema_overwrite_frequency"),
    ),
    Feature(
        "`gradient_accumulation_steps=2`",
        lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
        limit=IN_BRANCH.format("gradient_accumulation_steps"),
        remark="`end_step`, `update_frequency` count calls of `apply`, that is, small batches; an "
        "update looks at the gradient of one of them",
    ),
    Feature(
        "`gradient_accumulation_steps=2`, `run_eagerly=True`",
        lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
        compile={"run_eagerly": True},
    ),
    Feature("`loss_scale_factor`", lambda: optimizers.SGD(0.1, loss_scale_factor=64.0)),
]

# Optimizers around an optimizer.


def multi_optimizer(kernels):
    others = {".*bias": optimizers.SGD(0.05)}
    return optimizers.MultiOptimizer(optimizers.OptimizerMap(kernels, others))


WRAPPERS = [
    Feature(
        "`LossScaleOptimizer` around, as `compile` does under `mixed_float16`",
        policy="mixed_float16",
    ),
    Feature(
        "`LossScaleOptimizer` inside, `auto_scale_loss=False`",
        lambda: optimizers.LossScaleOptimizer(momentum(), initial_scale=1024.0),
        compile={"auto_scale_loss": False},
        policy="mixed_float16",
        remark="one inside and one around is refused",
    ),
]
if hasattr(optimizers, "MultiOptimizer"):
    WRAPPERS += [
        Feature(
            "`MultiOptimizer` inside",
            lambda: multi_optimizer(optimizers.Adam(0.02)),
            remark="with an `OptimizerMap`; one with a function is refused",
        ),
        Feature("inside a `MultiOptimizer`", wrap=lambda inner: multi_optimizer(rigl(inner))),
    ]

# Learning rates.


def learning_rate_is(want):
    def check(model, watch):
        np.testing.assert_allclose(model.optimizer.inner_optimizer.learning_rate, want)

    return check


LEARNING_RATES = [
    Feature(
        "`LearningRateSchedule`",
        lambda: optimizers.SGD(
            optimizers.schedules.PiecewiseConstantDecay([2, 5], [0.1, 0.05, 0.2])
        ),
        check=learning_rate_is(0.2),
        remark="counts gradient steps: it stands still at an update",
    ),
    Feature(
        "`LearningRateScheduler`",
        fit=lambda directory: {
            "callbacks": [callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)]
        },
        check=learning_rate_is(0.025),
    ),
    Feature(
        "`ReduceLROnPlateau`",
        fit=lambda directory: {
            "callbacks": [
                callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, mode="max", min_lr=0)
            ]
        },
        check=learning_rate_is(0.05),
    ),
]

# How a model is compiled.

COMPILE = [
    Feature("`run_eagerly=True`", compile={"run_eagerly": True}),
    Feature("`jit_compile=True`", compile={"jit_compile": True}, limit="InvalidArgumentError"),
    Feature(
        "`steps_per_execution=2`", compile={"steps_per_execution": 2}, limit="InvalidArgumentError"
    ),
    Feature("`mixed_bfloat16`", policy="mixed_bfloat16"),
]

# How a model is trained.


def on_batches(model, watch, directory):
    watch.set_model(model)
    watch.on_train_begin()
    x, y = data()
    for step in range(EPOCHS * STEPS_PER_EPOCH):
        batch = slice(step % STEPS_PER_EPOCH * BATCH, (step % STEPS_PER_EPOCH + 1) * BATCH)
        model.train_on_batch(x[batch], y[batch])
        watch.on_train_batch_end(step)


def in_a_loop(apply):
    """A loop of one's own, with `apply(optimizer, gradients, variables)`."""

    def train(model, watch, directory):
        strategy = tf.distribute.get_strategy()
        optimizer, variables = model.optimizer, model.trainable_variables
        optimizer.build(variables)

        def replica(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / (3 * BATCH)
            apply(optimizer, tape.gradient(loss, variables), variables)

        step = tf.function(lambda x, y: strategy.run(replica, args=(x, y)))
        dataset = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH).repeat(EPOCHS)
        watch.set_model(model)
        watch.on_train_begin()
        for number, batch in enumerate(strategy.experimental_distribute_dataset(dataset)):
            step(*batch)
            watch.on_train_batch_end(number)

    return train


def apply_pairs(optimizer, gradients, variables):
    optimizer.apply_gradients(zip(gradients, variables, strict=True))


def twice(model, watch, directory):
    for _ in range(2):
        fit(model, watch, directory, epochs=1)


def first_layer_frozen(model, watch, directory):
    """Trains, freezes the first layer, compiles anew and trains on."""
    fit(model, watch, directory, epochs=1)
    frozen = model.layers[0]
    before = [np.asarray(weight) for weight in frozen.weights]
    frozen.trainable = False
    model.compile(rigl(momentum()), "mse")
    fit(model, watch, directory)
    for weight, old in zip(frozen.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def class_weights(directory):
    x, y = data()
    return {"data": (x, y.argmax(axis=1)), "class_weight": {0: 1.0, 1: 5.0, 2: 0.1}}


TRAINING = [
    Feature("`train_on_batch`", train=on_batches),
    Feature(
        "`tf.GradientTape` and `optimizer.apply`",
        train=in_a_loop(lambda optimizer, *args: optimizer.apply(*args)),
    ),
    Feature("`tf.GradientTape` and `optimizer.apply_gradients`", train=in_a_loop(apply_pairs)),
    Feature("`fit` twice", train=twice),
    Feature("`layer.trainable = False`, compiled anew", train=first_layer_frozen),
    Feature(
        "`class_weight`",
        fit=class_weights,
        compile={"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
    ),
    Feature(
        "`sample_weight`",
        fit=lambda directory: {"sample_weight": np.linspace(0, 2, NUM).astype("float32")},
    ),
]

# Callbacks.


def averaging():
    return optimizers.Adam(0.02, use_ema=True, ema_momentum=0.8)


def swapping(**kwargs):
    def arguments(directory):
        return {"callbacks": [callbacks.SwapEMAWeights(**kwargs)], "validation_data": data()}

    return arguments


def best_masks_are_back(model, watch):
    """The first of three epochs counts as the best one, and the second as no better."""
    assert len(watch.history) == 2 * STEPS_PER_EPOCH + 1
    for mask, want in zip(watch.masks, watch.history[STEPS_PER_EPOCH], strict=True):
        np.testing.assert_array_equal(mask, want)


class PowerFailure(callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch == 1:
            raise KeyboardInterrupt


def cut_off(model, watch, directory):
    """`fit` is cut off in its second epoch, and restored."""
    path = pathlib.Path(directory) / "backup"
    try:
        fit(model, watch, directory, callbacks=[callbacks.BackupAndRestore(path), PowerFailure()])
    except KeyboardInterrupt:
        fit(model, watch, directory, callbacks=[callbacks.BackupAndRestore(path)])


def checkpointed(model, watch, directory):
    path = pathlib.Path(directory) / "best.keras"
    fit(model, watch, directory, callbacks=[callbacks.ModelCheckpoint(path)])
    loaded = keras.models.load_model(path)
    for weight, want in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(weight, want)


CALLBACKS = [
    Feature("`SwapEMAWeights()`, with validation", averaging, fit=swapping()),
    Feature("`SwapEMAWeights(swap_on_epoch=True)`", averaging, fit=swapping(swap_on_epoch=True)),
    Feature(
        "`EarlyStopping(restore_best_weights=True)`",
        fit=lambda directory: {
            "epochs": 3,
            "callbacks": [
                callbacks.EarlyStopping("loss", mode="max", restore_best_weights=True, patience=1)
            ],
        },
        check=best_masks_are_back,
        remark="masks are weights: those of the best epoch come back",
    ),
    Feature("`ModelCheckpoint`, loaded again", train=checkpointed),
    Feature("`BackupAndRestore`, after a cut", train=cut_off),
    Feature(
        "`TensorBoard(histogram_freq=1)`",
        fit=lambda directory: {"callbacks": [callbacks.TensorBoard(directory, histogram_freq=1)]},
    ),
    Feature("`TerminateOnNaN`", fit=lambda directory: {"callbacks": [callbacks.TerminateOnNaN()]}),
]
if hasattr(optimizers, "MultiOptimizer"):
    CALLBACKS.append(
        Feature(
            "`SwapEMAWeights()` under `mixed_float16`",
            averaging,
            fit=swapping(),
            policy="mixed_float16",
        )
    )
if "Muon" in inner_optimizers():
    CALLBACKS.append(
        Feature(
            "`SwapEMAWeights()`, averages of `Muon`",
            lambda: optimizers.Muon(0.02, use_ema=True, ema_momentum=0.8),
            fit=swapping(),
            remark="Muon itself moves inactive connections; they are masked after it",
        )
    )

# What a model holds.


@keras.saving.register_keras_serializable(package="rigl_tf_features")
class AddsLoss(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def with_add_loss():
    return keras.Sequential([keras.Input((6,)), layers.Dense(8), AddsLoss(), layers.Dense(3)])


def with_embedding():
    return keras.Sequential(
        [keras.Input((6,)), layers.Embedding(12, 4), layers.Flatten(), layers.Dense(3)]
    )


def make_embedding_sparse(model):
    """Half of the embedding's connections, chosen by hand."""
    (kernel,) = [weight for weight in model.weights if weight.name == "embeddings"]
    mask = keras.Variable(np.arange(48).reshape(12, 4) % 2 == 0, dtype="bool", trainable=False)
    rigl_tf.masks.link(kernel, mask)
    rigl_tf.masks.apply_mask(kernel)


def words(directory):
    x, y = data()
    return {"data": (np.abs(x * 5).astype("int32") % 12, y)}


def int8_keeps_zeros(model, watch):
    plain = rigl_tf.strip(model)
    plain.quantize("int8")
    for layer, mask in zip(plain.layers, watch.masks, strict=True):
        quantized = np.asarray(layer.kernel)
        assert quantized.dtype == np.int8
        assert quantized[mask].any()
        assert not quantized[~mask].any()


def norms_are_small(model, watch):
    norms = np.linalg.norm(np.asarray(model.layers[0].layer.kernel), axis=0)
    assert (norms < 0.5 + 1e-5).all()


MODELS = [
    Feature("`add_loss`", model=with_add_loss),
    Feature(
        "regularizers",
        model=lambda: mlp(
            kernel_regularizer=keras.regularizers.L1L2(0.01, 0.01),
            bias_regularizer="l2",
            activity_regularizer="l1",
        ),
    ),
    Feature(
        "kernel constraint `MaxNorm`",
        model=lambda: mlp(kernel_constraint=keras.constraints.MaxNorm(0.5)),
        check=norms_are_small,
        remark="applied before the mask",
    ),
    Feature("a dense `Embedding` (`tf.IndexedSlices`)", model=with_embedding, fit=words),
    Feature(
        "a sparse `Embedding` (`tf.IndexedSlices`)",
        model=with_embedding,
        prepare=make_embedding_sparse,
        fit=words,
        remark="its gradient becomes a tensor",
    ),
    Feature(
        "a sparse `Embedding`, `jit_compile=True`",
        model=with_embedding,
        prepare=make_embedding_sparse,
        fit=words,
        compile={"jit_compile": True},
        limit="InvalidArgumentError",
    ),
    Feature('`quantize("int8")` after `strip`', check=int8_keeps_zeros),
]

FEATURES = [
    *INNER,
    *ARGUMENTS,
    *WRAPPERS,
    *LEARNING_RATES,
    *COMPILE,
    *TRAINING,
    *CALLBACKS,
    *MODELS,
]

# Runs that must be equal when they are repeated.


def with_dropout():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8), layers.Dropout(0.5), layers.Dense(3)]
    )


SEEDED = [
    Feature("`set_random_seed`", wrap=rigl),
    Feature(
        "`set_random_seed`, dropout",
        wrap=lambda inner: rigl_tf.SET(inner, 100, update_frequency=3, drop_fraction=0.5),
        model=with_dropout,
    ),
]
