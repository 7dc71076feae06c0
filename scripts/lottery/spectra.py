"""Spectra of Hessians as the text of a column: both ends, and the share in each bin."""

from typing import NamedTuple

import keras
import numpy as np

from rigl_tf import analysis

_POSITIVE_EDGES = np.logspace(-4, 3, 29)
# The bin in the middle has the eigenvalues about zero, up to `ABOUT_ZERO` on either side.
EDGES = np.concatenate([-_POSITIVE_EDGES[::-1], _POSITIVE_EDGES])
ABOUT_ZERO = _POSITIVE_EDGES[0]

_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def measure(model, examples, lanczos_steps=None):
    """The spectrum of the Hessian of the mean loss over some examples, as text.

    The moving statistics of normalisations are replaced by those of the examples.

    Args:
        model: A classifier whose outputs are logits.
        examples: Pair of arrays, inputs and labels.
        lanczos_steps: Integer, or `None` for the exact spectrum.
    """
    # Before the first step they are not the statistics of any data.
    analysis.estimate_statistics(model, [examples])
    if lanczos_steps is None:
        values, shares = analysis.hessian_eigenvalues(model, examples, _LOSS), None
    else:
        values, shares = analysis.hessian_density(model, examples, _LOSS, lanczos_steps)
    counts, _ = np.histogram(np.clip(values, EDGES[0], EDGES[-1]), EDGES, weights=shares)
    numbers = [values[0], values[-1], *(counts / counts.sum())]
    return " ".join(f"{number:.3g}" for number in numbers)


class Spectrum(NamedTuple):
    """The smallest and largest eigenvalue, and the share of eigenvalues in each bin of `EDGES`."""

    smallest: float
    largest: float
    shares: list

    @property
    def negative_share(self):
        """The share of eigenvalues that are clearly below zero."""
        return sum(self.shares[: len(self.shares) // 2])


def from_text(text):
    """The `Spectrum` in a text that `measure` returned."""
    smallest, largest, *shares = map(float, text.split())
    return Spectrum(smallest, largest, shares)
