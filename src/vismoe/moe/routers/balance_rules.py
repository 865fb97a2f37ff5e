"""How far a balancing bias moves for its expert's load."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

BalanceRule = Literal["log", "sign", "z-score"]
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log1p,
    "sign": lambda load_E: (load_E - 1).sign(),
    "z-score": lambda load_E: (load_E - 1) / load_E.std(correction=0).clamp_min(1e-6),
}
"""What a bias moves against, from load ÷ mean. "log" is quick where an expert has many times its share, gentle with one
that has none, and vanishes where loads are even; "sign" is the published rule (Wang et al. 2024, *Auxiliary-Loss-Free
Load Balancing*), on logits; "z-score" moves in proportion to the excess, measured in the loads' standard deviation."""
STEPS = {"log": 0.2, "sign": 0.03, "z-score": 0.03}
"""How far, in logits, for 1 of it. Chosen by `benchmarks/balance_rules.py`; `docs/balancing.md` compares."""


def move_bias(bias_E: Float[Tensor, " E"], count_E: Int[Tensor, " E"], rule: str = "log") -> Float[Tensor, " E"]:
    """The bias after a step whose choices were `count_E`: up where an expert got less than the mean, down where more.

    Moves are centred, which changes no choice and keeps biases from drifting off. No counts, no move.
    """
    excess_E = RULES[rule](count_E / count_E.float().mean().clamp_min(1e-6))
    return bias_E - STEPS[rule] * (excess_E - excess_E.mean())


def check_rule(rule: str) -> str:
    """Raises ValueError for a rule that is not known."""
    if rule not in RULES:
        raise ValueError(f"balance_rule={rule!r}: accepted are {', '.join(map(repr, get_args(BalanceRule)))}")
    return rule
