"""The sparse layer itself. Imports torch and nothing of ours.

Dimension letters: B images, G groups, S tokens of a group, N = G·S tokens, E experts, C capacity, k experts per token,
R rows = (token, expert) pairs, d width, h hidden width.
"""

from .balancing import BalancedRouter
from .capacity import compute_capacity
from .condition import condition
from .dispatch import combine, dispatch
from .execute import Backend, execute, grouped, loop, mixed, padded
from .expert_choice import ExpertChoiceRouter
from .experts import Experts, MLPExperts, StackedLinear, StackedNorm, stacked_parts
from .fixed import HashRouter, RandomRouter
from .image import ImageRouter
from .layer import MoE
from .low_rank import LowRankExperts
from .member_choice import MemberMoE, MemberRouter
from .mlp import MLP, kind_of
from .plan import Plan, SoftPlan, SparsePlan
from .record import LayerRecord, Recording, record
from .router import Router, Routing
from .sigmoid import SigmoidRouter
from .soft import SoftRouter
from .structures import MLPStructure, read_mlp, register_mlp, structure_of, write_mlp
from .top_k import TopKRouter

ROUTERS = {
    "top-k": TopKRouter,
    "sigmoid": SigmoidRouter,
    "image": ImageRouter,
    "expert-choice": ExpertChoiceRouter,
    "soft": SoftRouter,
    "hash": HashRouter,
    "random": RandomRouter,
}
"""By the name that configurations give them."""

__all__ = [
    "MLP",
    "ROUTERS",
    "Backend",
    "BalancedRouter",
    "ExpertChoiceRouter",
    "Experts",
    "HashRouter",
    "ImageRouter",
    "LayerRecord",
    "LowRankExperts",
    "MLPExperts",
    "MLPStructure",
    "MemberMoE",
    "MemberRouter",
    "MoE",
    "Plan",
    "RandomRouter",
    "Recording",
    "Router",
    "Routing",
    "SigmoidRouter",
    "SoftPlan",
    "SoftRouter",
    "SparsePlan",
    "StackedLinear",
    "StackedNorm",
    "TopKRouter",
    "combine",
    "compute_capacity",
    "condition",
    "dispatch",
    "execute",
    "grouped",
    "kind_of",
    "loop",
    "mixed",
    "padded",
    "read_mlp",
    "record",
    "register_mlp",
    "stacked_parts",
    "structure_of",
    "write_mlp",
]
