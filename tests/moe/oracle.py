"""A slow, obvious account of the sparse layer in float64 NumPy and plain loops. Imports nothing of ours.

Written from the papers and the reference's description, not from the code it is compared with.
"""

import math

import numpy as np


def softmax(logits):
    powers = [math.exp(value - max(logits)) for value in logits]
    return np.array([power / sum(powers) for power in powers])


def best(scores, k):
    """Numbers of the k largest scores, larger first; of equal ones the first."""
    left, chosen = list(range(len(scores))), []
    for _ in range(k):
        winner = left[0]
        for number in left:
            if scores[number] > scores[winner]:
                winner = number
        chosen.append(winner)
        left.remove(winner)
    return chosen


def capacity_of(tokens, k, num_experts, factor, rounding="ceil", multiple_of=4):
    exact = tokens * k * factor / num_experts
    capacity = math.ceil(exact) if rounding == "ceil" else round(exact)
    while capacity % multiple_of:
        capacity += 1
    return capacity


class Routed:
    """What happened to one group: `load` (E,), and by token and expert `kept` (S, E) and `weight` (S, E), 0 where not
    kept; `gates` (S, E)."""

    def __init__(self, size, num_experts):
        self.gates = np.zeros((size, num_experts))
        self.weight = np.zeros((size, num_experts))
        self.kept = np.zeros((size, num_experts), bool)
        self.load = np.zeros(num_experts, int)


def route(logits, k, capacity=None, batch_priority=False, combine="gate", mask=None, bias=None):
    """Token choice in one group (S, E): all first choices claim before any second one; within a round the earlier
    token, or with `batch_priority` the token with the larger best gate. `bias` (E,) moves the choice only."""
    logits = np.asarray(logits, np.float64)
    size, num_experts = logits.shape
    routed = Routed(size, num_experts)
    chosen = []
    for token in range(size):
        routed.gates[token] = softmax(logits[token])
        chosen.append(best(routed.gates[token] if bias is None else logits[token] + bias, k))
    order = list(range(size))
    if batch_priority:
        order.sort(key=lambda token: -max(routed.gates[token]))  # sort is stable
    taken = [0] * num_experts
    for choice in range(k):
        for token in order:
            if mask is not None and not mask[token]:
                continue
            expert = chosen[token][choice]
            routed.load[expert] += 1
            if capacity is not None and taken[expert] >= capacity:
                continue
            taken[expert] += 1
            gate = routed.gates[token, expert]
            if combine == "renormalized":
                gate = gate / sum(routed.gates[token, other] for other in chosen[token])
            routed.kept[token, expert] = True
            routed.weight[token, expert] = 1.0 if combine == "unit" else gate
    return routed


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(x, parameters, expert, norm_eps=1e-6):
    """One token (d,) through one expert. `parameters`: the experts' state by name, as arrays."""

    def linear(name, value):
        value = parameters[f"{name}.weight"][expert] @ value
        return value + parameters[f"{name}.bias"][expert] if f"{name}.bias" in parameters else value

    hidden = linear("up", x)
    gated = "gate.weight" in parameters
    hidden = tanh_gelu(linear("gate", x)) * hidden if gated else tanh_gelu(hidden)
    if "norm.weight" in parameters:
        hidden = (hidden - hidden.mean()) / math.sqrt(((hidden - hidden.mean()) ** 2).mean() + norm_eps)
        hidden = hidden * parameters["norm.weight"][expert] + parameters["norm.bias"][expert]
    return linear("down", hidden)


def layer(x, routed, parameters):
    """One group's tokens (S, d) -> (S, d): the weighted sum over the experts that kept a token; 0 where none did."""
    y = np.zeros_like(x, np.float64)
    for token, expert in zip(*np.nonzero(routed.kept), strict=True):
        y[token] += routed.weight[token, expert] * mlp(x[token], parameters, expert)
    return y


def _live(mask, size):
    return [token for token in range(size) if mask is None or mask[token]]


def _squared_variation(totals):
    return float(np.var(totals) / np.mean(totals) ** 2)


def importance_loss(logits, mask=None):
    """Of the gates without noise, summed over one group's tokens."""
    totals = np.zeros(logits.shape[1])
    for token in _live(mask, len(logits)):
        totals += softmax(logits[token])
    return _squared_variation(totals)


def load_loss(logits, noisy_logits, k, noise_scale, mask=None):
    """Of the probability, were an expert's noise drawn afresh, to be at or above the k-th largest noisy logit."""
    totals = np.zeros(logits.shape[1])
    for token in _live(mask, len(logits)):
        threshold = sorted(noisy_logits[token], reverse=True)[k - 1]
        for expert, logit in enumerate(logits[token]):
            below = 0.5 * (1 + math.erf((threshold - logit) / noise_scale / math.sqrt(2)))
            totals[expert] += 1 - below
    return _squared_variation(totals)


def gshard_loss(noisy_logits, mask=None):
    """E² times the mean over experts of mean noisy gate × share of first choices."""
    num_experts = noisy_logits.shape[1]
    gate, share = np.zeros(num_experts), np.zeros(num_experts)
    live = _live(mask, len(noisy_logits))
    for token in live:
        gates = softmax(noisy_logits[token])
        gate += gates / len(live)
        share[best(gates, 1)[0]] += 1 / len(live)
    return num_experts**2 * float(np.mean(gate * share))


def z_loss(logits, mask=None):
    live = _live(mask, len(logits))
    return sum(math.log(sum(math.exp(value) for value in logits[token])) ** 2 for token in live) / len(live)


def plan_as_tables(plan, num_experts):
    """A plan's live rows as (kept (N, E), weight (N, E)); a row that says a pair twice is an error."""
    kept = np.zeros((plan.num_tokens, num_experts), bool)
    weight = np.zeros((plan.num_tokens, num_experts))
    row = 0
    for expert, count in enumerate(plan.count.tolist()):
        for _ in range(count):
            token = int(plan.token[row])
            assert not kept[token, expert], f"token {token} is twice with expert {expert}"
            kept[token, expert] = True
            weight[token, expert] = plan.weight[row].item()
            row += 1
    assert not plan.weight[row:].any(), "a dropped or masked row has weight"
    return kept, weight
