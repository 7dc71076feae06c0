"""The sparsity of each kernel, for optimizers that make kernels sparse."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rigl_tf import masks, structures
from rigl_tf.optimizers.training import SparseTraining
from rigl_tf.optimizers.wrapping import serialized

if TYPE_CHECKING:
    from typing_extensions import Self

_TOLERANCE = 0.005  # as much is lost by the dense first layer of a large model


class TargetSparsity(SparseTraining):
    """Base class of the optimizers that make the kernels as sparse as they are told.

    What each kernel gets is decided when the optimizer is built. If the distribution goes by paths,
    it is remembered in the config, by the kernels' positions and shapes: paths may change when a
    model is saved and loaded.

    A subclass has the attribute `distribution`, and `_final_sparsity`, that of all kernels.

    Attributes:
        _keeps_zeros: Boolean, whether connections that are inactive stay so.
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
        """What the distribution makes of numbers for paths; `None` if it needs to know them."""
        numbered = {str(index): each.units for index, each in enumerate(kernels)}
        try:
            shares = structures.allocate(self.distribution, numbered, self._final_sparsity)
        except Exception:  # whatever a user's function does with paths that it does not know
            return None
        return list(shares.values())

    def _new_shares(self, kernels):
        """The sparsity of each kernel by the distribution; warns if it is not that of all."""
        units = {path: kernel.units for path, kernel in masks.by_path(kernels).items()}
        shares = structures.allocate(self.distribution, units, self._final_sparsity)
        zeros = {
            path: each.size - int(each.count(shares[path])) * each.unit_size
            for path, each in units.items()
        }
        if self._keeps_zeros:
            now = (kernel.size - kernel.num_active for kernel in kernels)
            zeros = {path: max(num, next(now)) for path, num in zeros.items()}
        size = sum(each.size for each in units.values())
        reached = sum(zeros.values()) / size
        # Each kernel may miss a whole weight, or a whole unit.
        step = sum(each.step for each in units.values())
        if abs(reached - self._final_sparsity) > _TOLERANCE + step / size:
            dense = [path for path, num in zeros.items() if not num]
            warnings.warn(
                f"{type(self).__name__} makes a sparsity of {reached:.3f} instead of "
                f"{self._final_sparsity}, by its distribution, which leaves {dense} dense"
                f"{' and the connections that are inactive already' * self._keeps_zeros}; "
                '`distribution="erk"` holds the number for a dense model. '
                f"Received: distribution={self.distribution!r}",
                stacklevel=2,
            )
        return list(shares.values())

    def _remembers(self):
        """Whether an allocation is known, and made for what is asked for now."""
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
    """The sparsity of each kernel (kept out of Keras's attribute tracking), and what it is for."""

    distribution: object
    sparsity: float
    shapes: list
    shares: list
