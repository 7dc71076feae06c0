"""Decides the sparsity of each kernel, for optimizers that make dense kernels sparse."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rigl_tf import masks, structures
from rigl_tf.optimizers.training import SparseTraining
from rigl_tf.optimizers.wrapping import serialized

if TYPE_CHECKING:
    from typing_extensions import Self


class TargetSparsity(SparseTraining):
    """Base class of the optimizers that have a target sparsity.

    The sparsity of each kernel is decided when the optimizer is built. If the distribution depends
    on the paths of the kernels, the result is stored in the config by the positions and shapes of
    the kernels, because paths may change when a model is saved and loaded.

    A subclass has the attributes `distribution` and `_final_sparsity`, the sparsity over all
    kernels.

    Attributes:
        _keeps_zeros: Boolean, whether inactive connections stay inactive.
    """

    _keeps_zeros = False
    _allocation: Any = None

    def _allocate(self, kernels):
        shapes = [list(kernel.shape) for kernel in kernels]
        if self._remembers() and self._allocation.shapes == shapes:
            return self._allocation.shares
        shares, self._allocation = self._new_shares(kernels), None
        if self._shares_without_paths(kernels) != shares:
            self._allocation = _Allocation(self.distribution, self._final_sparsity, shapes, shares)
        return shares

    def _shares_without_paths(self, kernels):
        """The shares if paths are replaced by numbers, or `None` if that does not work."""
        numbered = {str(index): each.units for index, each in enumerate(kernels)}
        try:
            shares = structures.allocate(self.distribution, numbered, self._final_sparsity)
        except Exception:  # a user's function may fail in any way for unknown paths
            return None
        return list(shares.values())

    def _new_shares(self, kernels):
        """The sparsity of each kernel by the distribution; warns if the total is not the target."""
        units = {path: kernel.units for path, kernel in masks.by_path(kernels).items()}
        shares = structures.allocate(self.distribution, units, self._final_sparsity)
        zeros_now = None
        if self._keeps_zeros:
            numbers = [each.size - each.num_active for each in kernels]
            zeros_now = dict(zip(units, numbers, strict=True))
        structures.warn_if_missed(
            type(self).__name__,
            units,
            shares,
            self._final_sparsity,
            self.distribution,
            zeros_now,
        )
        return list(shares.values())

    def _remembers(self):
        """Whether the stored allocation was made for the current distribution and sparsity."""
        known, wanted = self._allocation, (self.distribution, self._final_sparsity)
        return known is not None and (known.distribution, known.sparsity) == wanted

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "sparsity": self.sparsity,
            "distribution": serialized("distribution", self.distribution),
        }
        if self._remembers():
            config["allocation"] = {
                "distribution": config["distribution"],
                "sparsity": self._final_sparsity,
                "shapes": self._allocation.shapes,
                "shares": self._allocation.shares,
            }
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> "Self":
        config = dict(config)
        known = config.pop("allocation", None)
        optimizer = super().from_config(config, custom_objects)
        if known is not None and known["distribution"] == config["distribution"]:
            optimizer._allocation = _Allocation(
                optimizer.distribution, known["sparsity"], known["shapes"], known["shares"]
            )
        return optimizer


@dataclasses.dataclass(eq=False)
class _Allocation:
    """The sparsity of each kernel, and the settings it was made for. (Keras does not track it.)"""

    distribution: object
    sparsity: float
    shapes: list
    shares: list
