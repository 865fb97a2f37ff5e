"""Token choice with sigmoid gates, which do not depend on each other (Liu et al. 2024, *DeepSeek-V3 Technical
Report*)."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from .base import Routing
from .top_k import TopKRouter


class SigmoidRouter(TopKRouter):
    """`vismoe.TopKRouter` with sigmoids of the logits instead of their softmax: an expert's gate does not become
    smaller when another's becomes larger, which helps with many experts and a large k.

    Arguments and errors are those of `vismoe.TopKRouter`. The report uses combine="renormalized", for k ≥ 2, and
    balance="bias".
    """

    def compute_gates(self, logits_GSE: Float[Tensor, "G S E"]) -> Float[Tensor, "G S E"]:
        """The gates, each between 0 and 1."""
        return logits_GSE.sigmoid()

    def losses(self, routing: Routing) -> dict[str, Float[Tensor, "G ..."]]:
        """Those of `vismoe.TopKRouter`; for "gshard" each token's gates are divided by their sum (the report's equation
        18)."""
        gates = routing.gates
        return super().losses(replace(routing, gates=gates / gates.sum(-1, keepdim=True).clamp_min(1e-20)))
