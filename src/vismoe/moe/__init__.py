"""The sparse layer itself. Imports torch and nothing of ours.

Dimension letters: B images, G groups, S tokens of a group, N = G·S tokens, E experts, C capacity, k experts per token,
R rows = (token, expert) pairs, d width, h hidden width.
"""

from .condition import condition
from .execution.exchange import Exchange, LocalExchange, Rows
from .execution.products import Product, grouped, loop, padded
from .experts.low_rank import LowRankExperts
from .experts.mlp import MLP, kind_of
from .experts.stacked import Layout, MLPExperts, StackedLinear, StackedNorm, stacked_parts
from .experts.structures import MLPStructure, read_mlp, register_mlp, structure_of, write_mlp
from .layer import MemberMoE, MoE
from .plan import Plan, SoftPlan, SparsePlan
from .rebalance import biased_routers, keeping_balance, rebalance
from .record import LayerRecord, Recording, record
from .routers.balancing import BalancedRouter
from .routers.base import Router, Routing
from .routers.capacity import compute_capacity
from .routers.expert_choice import ExpertChoiceRouter
from .routers.fixed import HashRouter, RandomRouter
from .routers.image import ImageRouter
from .routers.member_choice import MemberRouter
from .routers.sigmoid import SigmoidRouter
from .routers.soft import SoftRouter
from .routers.top_k import TopKRouter

ROUTERS = {
    "top-k": TopKRouter,
    "sigmoid": SigmoidRouter,
    "image": ImageRouter,
    "expert-choice": ExpertChoiceRouter,
    "soft": SoftRouter,
    "hash": HashRouter,
    "random": RandomRouter,
}
"""Router classes by their names in configurations."""

__all__ = [
    "MLP",
    "ROUTERS",
    "BalancedRouter",
    "Exchange",
    "ExpertChoiceRouter",
    "HashRouter",
    "ImageRouter",
    "LayerRecord",
    "Layout",
    "LocalExchange",
    "LowRankExperts",
    "MLPExperts",
    "MLPStructure",
    "MemberMoE",
    "MemberRouter",
    "MoE",
    "Plan",
    "Product",
    "RandomRouter",
    "Recording",
    "Router",
    "Routing",
    "Rows",
    "SigmoidRouter",
    "SoftPlan",
    "SoftRouter",
    "SparsePlan",
    "StackedLinear",
    "StackedNorm",
    "TopKRouter",
    "biased_routers",
    "compute_capacity",
    "condition",
    "grouped",
    "keeping_balance",
    "kind_of",
    "loop",
    "padded",
    "read_mlp",
    "rebalance",
    "record",
    "register_mlp",
    "stacked_parts",
    "structure_of",
    "write_mlp",
]
