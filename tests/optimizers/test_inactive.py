"""What other code writes into inactive connections, and when an optimizer zeroes it.

An optimizer that trains each entry by itself keeps zeros where they are, so no time is spent on
them in most steps.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    INNER,
    ON_ONE_DEVICE,
    WORLDS,
    assert_equal,
    check_invariant,
    ends_early,
    half,
    mirrored,
    mlp,
    numbers,
    rigl,
    values,
)

import rigl_tf

pytestmark = ends_early
X, Y = numbers((8, 6)), numbers((8, 3), seed=1)
ALWAYS = ["ema", "ema_overwrite", *({"muon"} & set(INNER))]  # they mix entries, or keep averages


def trained(optimizer, **how):
    """A model after a first step, in which the optimizer looks at the kernels."""
    model = half(mlp(6, 8, 3))
    model.compile(optimizer, "mse", **how)
    model.train_on_batch(X, Y)
    return model


def write_everywhere(model):
    for kernel in rigl_tf.masks.kernels_of(model).values():
        kernel.variable.assign(kernel.variable + 1)


def num_outside(model):
    return sum(rigl_tf.sparsity_summary(model).outside.values())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("algorithm", [rigl_tf.StaticSparse, rigl])
def test_it_is_zeroed_in_the_first_step_of_fit_and_at_its_end(algorithm, world):
    strategy = mirrored() if world == "two replicas" else tf.distribute.get_strategy()
    with strategy.scope():
        model = trained(algorithm("sgd"), **WORLDS[world])
    model.fit(X, Y, verbose=0)
    write_everywhere(model)
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(num_outside(model))
    )
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=[look])
    assert seen == [0, 0]
    again = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: write_everywhere(model) if batch == 1 else None
    )
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=[again])
    check_invariant(model)


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
def test_it_is_zeroed_at_updates_and_every_hundred_steps(world):
    """With XLA in every step, which costs it nothing."""
    model = trained(rigl(end_step=1000, update_frequency=30), **WORLDS[world])
    optimizer = model.optimizer
    for step, zeroed in [(29, False), (30, True), (31, False), (99, False), (100, True)]:
        optimizer.step.assign(step)
        write_everywhere(model)
        model.train_on_batch(X, Y)
        assert (num_outside(model) == 0) == (zeroed or world == "XLA")
        rigl_tf.set_masks(model, rigl_tf.get_masks(model))
        model.train_on_batch(X, Y)  # the look that `set_masks` asks for


@pytest.mark.parametrize("name", ALWAYS)
def test_optimizers_that_mix_entries_zero_it_in_every_step(name):
    model = trained(rigl_tf.StaticSparse(INNER[name]()), jit_compile=False)
    for _ in range(2):
        write_everywhere(model)
        model.train_on_batch(X, Y)
        check_invariant(model)


@pytest.mark.parametrize("epsilon", [0.0, 1e-7])
def test_no_zero_becomes_nan(epsilon):
    model = trained(rigl_tf.StaticSparse(keras.optimizers.RMSprop(epsilon=epsilon)))
    for _ in range(2):
        model.train_on_batch(X, Y)
    check_invariant(model)


@pytest.mark.parametrize("name", sorted(set(INNER) - set(ALWAYS)))
def test_what_set_masks_takes_away_stays_away(name):
    """Whatever is left of its momentum, which counts again once it is given back."""
    model = trained(rigl_tf.StaticSparse(INNER[name]()), jit_compile=False)
    for _ in range(2):
        model.train_on_batch(X, Y)
    before = rigl_tf.get_masks(model)
    left = {
        path: mask & (np.cumsum(mask) % 2 == 0).reshape(mask.shape) for path, mask in before.items()
    }
    rigl_tf.set_masks(model, left)
    for _ in range(3):
        model.train_on_batch(X, Y)
        check_invariant(model)
    has_slots = any(state.slots for state in model.optimizer._plan.by_id.values())
    assert bool(np.asarray(model.optimizer._plan.moves_inactive)) == has_slots


def test_in_a_loop_of_ones_own_it_is_zeroed_in_every_step():
    model = half(mlp(6, 8, 3))
    optimizer = rigl("adam")
    optimizer.build(model.trainable_variables)
    for _ in range(2):
        write_everywhere(model)
        optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables])
        check_invariant(model)


def test_a_loaded_state_is_looked_at():
    one, other = (trained(rigl_tf.StaticSparse(INNER["momentum"]())) for _ in range(2))
    rigl_tf.set_masks(other, {path: ~mask for path, mask in rigl_tf.get_masks(one).items()})
    one.train_on_batch(X, Y)
    other.train_on_batch(X, Y)
    store = {}
    one.optimizer.save_own_variables(store)
    for variable, saved in zip(
        other.optimizer.inner_optimizer.variables,
        one.optimizer.inner_optimizer.variables,
        strict=True,
    ):
        variable.assign(saved)
    other.optimizer.load_own_variables(store)
    other.train_on_batch(X, Y)
    check_invariant(other)


def test_a_step_that_fails_leaves_the_constraints():
    model = half(mlp(6, 8, 3))
    optimizer = rigl_tf.StaticSparse("sgd")
    optimizer.build(model.trainable_variables)
    wrong = [tf.zeros((1, 1, 1))] * len(model.trainable_variables)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        optimizer.apply(wrong, model.trainable_variables)
    # An optimizer of Keras keeps the model sparse.
    model.compile("adam", "mse", run_eagerly=True)
    write_everywhere(model)
    model.train_on_batch(X, Y)
    check_invariant(model)


def test_weights_are_those_of_a_step_with_constraints():
    """To the last digit: what is left out would have changed nothing."""
    ones, others = (half(mlp(6, 8, 3)) for _ in range(2))
    others.set_weights(ones.get_weights())
    for model in (ones, others):
        model.compile(rigl("adam", end_step=9, update_frequency=3), "mse", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
    assert len(ones.optimizer._plan.keep_zeros) == 2
    others.optimizer._plan.keep_zeros = []
    for model in (ones, others):
        for _ in range(10):
            model.train_on_batch(X, Y)
    assert_equal(values(ones.weights), values(others.weights))
