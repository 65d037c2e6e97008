"""An update of few directions, as two factors."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """ΔW = left @ right.T."""

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "d_in rank"]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The update as a matrix."""
        return self.left @ self.right.T
