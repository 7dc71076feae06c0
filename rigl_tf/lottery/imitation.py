"""The discrepancies of `select_units`: selected units imitate their layer, or the whole network.

The weights of the units are called shares here. Their sum is 1; in the given layer all are equal.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.objective import mean_loss, on_a_replica
from rigl_tf.transforms.rebuild import calls_of

# How many of the units that the first-order approximation ranks highest are evaluated exactly.
_NUM_EXACT = 5
# How many inputs of the next kernel are in memory at the same time.
_MAX_SIZE = 2**24


class LocalImitation:
    """The discrepancy `(a - u) @ G @ (a - u)`, where `u` is `1 / N` for each unit.

    `G[i, j]` is the mean over the examples of the product of the contributions of units i and j.
    """

    def __init__(self, model, link, inputs):
        new, calls = calls_of(model)
        before = next(call.args[0] for call in calls if call.layer is link.next_layer)
        features = keras.Model(new.input, before)
        places, units, _ = link.kernel.shape
        products, num_examples = 0, 0
        for batch in tf.data.Dataset.from_tensor_slices(inputs).batch(256):
            x = features(batch, training=False)
            step = max(1, _MAX_SIZE // (math.prod(x.shape[1:-1]) * places * units))
            for start in range(0, len(x), step):
                rows = link.rows(x[start : start + step])
                products += rows.T @ rows
            num_examples += len(x)
        kernel = link.kernel.reshape(places * units, -1)
        gram = (products * (kernel @ kernel.T)).reshape(places, units, places, units)
        self._gram = gram.sum(axis=(0, 2)) * units**2 / num_examples

    def best(self, shares, candidates, fixed_rate):
        """The best step of one of the candidates: the new shares, and their discrepancy."""
        shared = self._gram @ shares
        residual = shared - self._gram.mean(axis=1)
        # Along `unit - shares` the discrepancy changes by `2 * rate * slope + rate**2 * curvature`.
        slopes = residual - shares @ residual
        curvatures = self._gram.diagonal() - 2 * shared + shares @ shared
        if fixed_rate is None:
            is_curved = curvatures > 1e-12 * self._gram.diagonal().max()
            rates = np.where(is_curved, -slopes / np.where(is_curved, curvatures, 1), 0)
            rates = np.clip(rates, _lowest_rates(shares), 1)
        else:
            rates = np.full(len(shares), fixed_rate)
        changes = 2 * rates * slopes + rates**2 * curvatures
        unit = candidates[np.argmin(changes[candidates])]
        new_shares = _step(shares, unit, rates[unit])
        return new_shares, self._value(new_shares)

    def _value(self, shares):
        difference = shares - 1 / len(shares)
        return max(float(difference @ self._gram @ difference), 0.0)


class GlobalImitation:
    """The loss of a network whose next kernel is scaled by the shares."""

    def __init__(self, model, link, inputs, targets, loss, score):
        self._is_exact = score == "exact"
        variable = link.next_layer.kernel
        shape, dtype = variable.shape, variable.dtype
        scaled = tf.constant(link.kernel * link.num_units, dtype)
        inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)

        def outputs():
            return tf.cast(model(inputs, training=False), "float32")

        own = outputs()
        targets = own if targets is None else _checked_targets(targets, own, loss)

        loss = _squared_norm if loss is None else mean_loss(loss)
        _check_loss(loss, targets, own)

        def scale(shares):
            variable.assign(tf.reshape(scaled * shares[:, tf.newaxis], shape))

        def loss_now():
            return loss(targets, outputs())

        def kernel_gradient():
            with tf.GradientTape() as tape:
                tape.watch(variable.value)
                result = loss_now()
            return tape.gradient(result, variable.value)

        @tf.function
        def value(shares):
            scale(shares)
            return loss_now()

        @tf.function
        def gradient(shares):
            scale(shares)
            by_kernel = tf.reshape(on_a_replica(kernel_gradient), scaled.shape)
            return tf.reduce_sum(by_kernel * scaled, axis=(0, 2))

        self._value = lambda shares: float(value(tf.constant(shares, dtype)))
        self._gradient = lambda shares: gradient(tf.constant(shares, dtype)).numpy()

    def best(self, shares, candidates, fixed_rate):
        """The best step of one of the candidates: the new shares, and their loss."""
        if shares.any() and not self._is_exact:
            candidates = self._most_promising(shares, candidates, fixed_rate)
        steps = [
            _step(shares, unit, rate)
            for unit in candidates
            for rate in ([fixed_rate] if fixed_rate else _rates(shares, unit))
        ]
        values = [self._value(each) for each in steps]
        index = int(np.argmin(values))
        return steps[index], values[index]

    def _most_promising(self, shares, candidates, fixed_rate):
        gradient = self._gradient(shares)
        slopes = gradient - shares @ gradient
        rate = fixed_rate or _usual_rate(shares)
        changes = rate * slopes
        if fixed_rate is None:
            changes = np.minimum(changes, np.maximum(_lowest_rates(shares), -rate) * slopes)
        return candidates[np.argsort(changes[candidates], kind="stable")[:_NUM_EXACT]]


def _checked_targets(targets, outputs, loss):
    """Targets as a tensor, after checking their number, and their shape if no loss is given."""
    targets = np.asarray(targets)
    shape = tuple(outputs.shape)
    if loss is None and targets.shape != shape:
        raise ValueError(
            f"Without a `loss`, `targets` must have the shape of the outputs, {shape}. "
            f"Received: shape={targets.shape}"
        )
    if targets.shape[:1] != shape[:1]:
        raise ValueError(
            f"There must be one of the `targets` for each of the {shape[0]} inputs. "
            f"Received: shape={targets.shape}"
        )
    return tf.convert_to_tensor(targets.astype("float32") if loss is None else targets)


def _check_loss(loss, targets, outputs):
    try:
        loss(targets, outputs)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            "`loss` must take the targets, by default the outputs of the model. Received: targets "
            f"of shape {tuple(targets.shape)}, outputs of shape {tuple(outputs.shape)}: {error}"
        ) from error


def _step(shares, unit, rate):
    new_shares = (1 - rate) * shares
    new_shares[unit] += rate
    new_shares[new_shares < 1e-7] = 0  # a removed unit may keep a rounding error
    return new_shares / new_shares.sum()


def _lowest_rates(shares):
    """The rates that remove units; the only unit cannot be removed."""
    is_alone = shares >= 1
    return np.where(is_alone, 0, -shares / np.where(is_alone, 1, 1 - shares))


def _usual_rate(shares):
    return 1 / (np.count_nonzero(shares) + 1)


def _rates(shares, unit):
    """The rates to try: around the usual rate, up and down, and the rate that removes the unit.

    If only a few units are selected, their weights are large, so small rates change much, too. The
    smallest rate is below `1 / N`.
    """
    rates = [2, 1, 0.5, 0.25]
    while rates[-1] * _usual_rate(shares) > 1 / len(shares):
        rates.append(rates[-1] / 4)
    rates = _usual_rate(shares) * np.array(rates)
    lowest = _lowest_rates(shares)[unit]
    down = [rate for rate in (lowest, *-rates) if lowest <= rate < 0]
    return [*rates, *down]


def _squared_norm(targets, outputs):
    return tf.reduce_sum((targets - outputs) ** 2) / tf.cast(tf.shape(outputs)[0], "float32")
