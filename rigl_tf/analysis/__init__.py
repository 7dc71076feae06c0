"""Functions to analyse trained sparse networks: solutions, gradients, Hessian, similarity."""

from rigl_tf.analysis.connectivity import bezier, error_barrier, interpolate
from rigl_tf.analysis.curves import train_bezier
from rigl_tf.analysis.gradient_flow import GradientFlow, GradientNorms, gradient_norms
from rigl_tf.analysis.hessian import (
    SpectralDensity,
    hessian,
    hessian_density,
    hessian_eigenvalues,
)
from rigl_tf.analysis.instability import Instability, estimate_statistics, instability
from rigl_tf.analysis.predictions import (
    SolutionDistance,
    disagreement,
    ensemble_accuracy,
    repel,
    solution_distance,
)
from rigl_tf.analysis.similarity import WeightCorrelation, get_kernels, weight_correlation

__all__ = [
    "GradientFlow",
    "GradientNorms",
    "Instability",
    "SolutionDistance",
    "SpectralDensity",
    "WeightCorrelation",
    "bezier",
    "disagreement",
    "ensemble_accuracy",
    "error_barrier",
    "estimate_statistics",
    "get_kernels",
    "gradient_norms",
    "hessian",
    "hessian_density",
    "hessian_eigenvalues",
    "instability",
    "interpolate",
    "repel",
    "solution_distance",
    "train_bezier",
    "weight_correlation",
]
