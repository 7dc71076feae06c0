"""Fixed masks, and fixed masks whose weakest weights restart."""

import keras
import numpy as np
import pytest
from helpers import (
    INNER,
    WORLDS,
    assert_equal,
    assert_same_model,
    ends_early,
    masks_of,
    mlp,
    numbers,
    strategy_of,
    values,
)

import rigl_tf
from rigl_tf import structures

pytestmark = ends_early
X, Y = numbers((12, 6)), numbers((12, 3), seed=1)


def compiled(world="graph", execution="masked", structure=None, **arguments):
    """A model that is updated at steps 2, 4, ..."""
    keras.utils.set_random_seed(0)
    with strategy_of(world).scope():
        model = rigl_tf.sparsify(mlp(6, 8, 3), 0.5, structure=structure)
        rigl_tf.with_execution(model, execution)
        optimizer = rigl_tf.StaticReinit(INNER["momentum"](), 9, 0, 2, 0.5, **arguments)
        model.compile(optimizer, "mse", **WORLDS[world])
    return model


def fit(model, steps):
    model.fit(X[: 4 * steps], Y[: 4 * steps], batch_size=4, shuffle=False, verbose=0)


@pytest.mark.parametrize("world", WORLDS)
def test_the_weakest_restart_and_nothing_else_changes(world):
    model = compiled(world)
    fit(model, 2)
    masks = masks_of(model)
    weights, inner = model.trainable_weights, model.optimizer.inner_optimizer.variables
    before = values(weights), values(inner)
    fit(model, 1)  # the update
    assert_equal(masks_of(model), masks)
    share = model.optimizer.drop_fraction_at(2)
    restarted = {}
    for kernel, mask in zip((before[0][0], before[0][2]), masks, strict=True):
        num = int(mask.sum() * share)
        weakest = np.argsort(np.where(mask, np.abs(kernel), np.inf), axis=None)[:num]
        restarted[kernel.shape] = np.isin(np.arange(kernel.size), weakest).reshape(kernel.shape)
        assert num > 1
    for variables, old in zip((weights, inner), before, strict=True):
        for variable, value in zip(variables, old, strict=True):
            want = np.where(restarted.get(value.shape, False), 0, value)
            np.testing.assert_array_equal(variable, want, variable.path)
    fit(model, 1)  # They are trained again; in the first kernel, where the unit has an output.
    np.testing.assert_array_equal(_kernels(model)[1] != 0, masks[1])


def _kernels(model):
    return [kernel.numpy() for kernel in rigl_tf.masks.kernels_of(model).values()]


@pytest.mark.parametrize("grow_init", ["zeros", "random_normal", "gradient"])
def test_csr_kernels_restart_as_masked_ones(grow_init):
    masked, csr = (
        compiled("eager", execution, grow_init=grow_init, grow_scale=0.5)
        for execution in ("masked", "csr")
    )
    for model in (masked, csr):
        fit(model, 3)
        fit(model, 3)
    assert_same_model(csr, masked)
    (masked_slots, csr_slots) = (
        [np.sort(slot[slot != 0]) for slot in values(model.optimizer.inner_optimizer.variables)]
        for model in (masked, csr)
    )
    for one, other in zip(csr_slots, masked_slots, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("structure", [structures.Block((2, 1)), structures.NM(1, 2)])
def test_structures_stay(structure):
    model = compiled("eager", structure=structure)
    masks = masks_of(model)
    fit(model, 3)
    assert_equal(masks_of(model), masks)
    fit(model, 2)
    assert rigl_tf.sparsity_summary(model).sparsity == pytest.approx(0.5)


def test_scores_of_ones_own_choose_what_restarts():
    class Strongest(rigl_tf.StaticReinit):
        def drop_scores(self, kernel, mask, gradient):
            return -abs(kernel)

    for execution in ("masked", "csr"):
        keras.utils.set_random_seed(0)
        model = rigl_tf.sparsify(mlp(6, 8, 3), 0.5)
        rigl_tf.with_execution(model, execution)
        model.compile(Strongest("sgd", 9, update_frequency=2, drop_fraction=0.4), "mse")
        fit(model, 2)
        before = _kernels(model)
        fit(model, 1)
        for kernel, old in zip(_kernels(model), before, strict=True):
            restarted = (kernel == 0) & (old != 0)
            assert abs(old[restarted]).min() > abs(old[kernel != 0]).max()


def test_its_cost_is_that_of_fixed_masks():
    costs = [
        rigl_tf.flops.training_flops(dense=1000, sparse=100, method=method, update_frequency=9)
        for method in ("static", "static_reinit")
    ]
    assert costs[0] == costs[1]
