"""Token choice by sigmoids: every expert is judged by itself (Liu et al. 2024, *DeepSeek-V3 Technical Report*)."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from .base import Routing
from .top_k import TopKRouter


class SigmoidRouter(TopKRouter):
    """`vismoe.TopKRouter` whose gates are sigmoids of the logits in place of their softmax: an expert's gate does not
    shrink because another's grows, which many experts and a large k profit from.

    The report's own settings are combine="renormalized", for k ≥ 2, and balance="bias". Options and errors are those of
    `vismoe.TopKRouter`.
    """

    def compute_gates(self, logits_GSE: Float[Tensor, "G S E"]) -> Float[Tensor, "G S E"]:
        """Each between 0 and 1, whatever the others are."""
        return logits_GSE.sigmoid()

    def losses(self, routing: Routing) -> dict[str, Float[Tensor, "G ..."]]:
        """As `vismoe.TopKRouter`'s; gshard of each token's gates divided by their sum (the report's equation 18)."""
        gates = routing.gates
        return super().losses(replace(routing, gates=gates / gates.sum(-1, keepdim=True).clamp_min(1e-20)))
