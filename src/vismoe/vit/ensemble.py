"""An efficient ensemble, E³ (Allingham et al. 2021, *Sparse MoEs meet Efficient Ensembles*): M members share a trunk up
to the first sparse layer. From there each image is computed M times, by the experts of one member each.

Logits have a row a member: [image 0 member 0, image 0 member 1, …, image 1 member 0, …], R = B·M rows of K classes.
`kind`: "softmax", each image shows one class; "sigmoid", it may show several.
"""

import math
from functools import partial
from typing import Any, Literal

from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["softmax", "sigmoid"]


def repeat_before(block: nn.Module, members: int) -> None:
    """From `block` on, each image is repeated `members` times. This is a hook, since blocks are timm's: it has no
    parameters and is copied, compiled and recomputed with its block."""
    block.register_forward_pre_hook(partial(_repeat, members))


def _repeat(members: int, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].repeat_interleave(members, 0), *inputs[1:])


def mean_logits(logits: Float[Tensor, "R K"], members: int, kind: Kind = "softmax") -> Float[Tensor, "B K"]:
    """Logits of the members' mean probabilities p: log p where an image shows one class; log p - log(1 - p) where it
    may show several.

    **Raises:** ValueError where `members` does not divide the rows.
    """
    if kind == "softmax":
        return _log_mean(logits.log_softmax(-1), members)
    return _log_mean(F.logsigmoid(logits), members) - _log_mean(F.logsigmoid(-logits), members)


def mean_of_images(logits: Float[Tensor, "R K"], images: int, kind: Kind = "softmax") -> Float[Tensor, "B K"]:
    """`mean_logits` where each of so many images has several rows, else the logits themselves."""
    return mean_logits(logits, len(logits) // images, kind) if len(logits) > images > 0 else logits


def member_loss(
    logits: Float[Tensor, "R K"], labels: Shaped[Tensor, "B *K"], members: int, kind: Kind = "softmax"
) -> Float[Tensor, " R"]:
    """The training loss of an ensemble: each member's cross-entropy (of sigmoids, summed over classes), as if it were
    alone. `labels`: classes (B,), or probabilities (B, K)."""
    repeated = labels.repeat_interleave(members, 0)
    if kind == "softmax":
        return F.cross_entropy(logits, repeated, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, _class_probabilities(repeated, logits), reduction="none").sum(-1)


def ensemble_loss(
    logits: Float[Tensor, "R K"], labels: Shaped[Tensor, "B *K"], members: int, kind: Kind = "softmax"
) -> Float[Tensor, " B"]:
    """The evaluation loss of an ensemble: the cross-entropy of the members' mean probabilities, never above the mean of
    `member_loss`. `labels`: as there."""
    if kind == "softmax":
        return F.cross_entropy(mean_logits(logits, members), labels, reduction="none")
    targets = _class_probabilities(labels, logits)
    yes, no = (_log_mean(F.logsigmoid(sign * logits), members) for sign in (1, -1))
    return -(targets * yes + (1 - targets) * no).sum(-1)


def ensemble_metrics(
    logits: Float[Tensor, "R K"], labels: Shaped[Tensor, " B"], members: int
) -> dict[str, Float[Tensor, ""]]:
    """How good an ensemble is, and how much its members differ.

    **Returns:**

    - `loss`, `accuracy`: of the mean probabilities.
    - `member_loss`, `member_accuracy`: means over members.
    - `disagreement`: share of images with different answers, mean over pairs of members; 0 for one member.
    - `divergence`: Kullback-Leibler divergence, mean over pairs of members; 0 for one member.
    """
    log_p = logits.log_softmax(-1).unflatten(0, (-1, members))
    answers = log_p.argmax(-1)
    pairs = max(members * (members - 1), 1)
    disagreement = (answers[:, :, None] != answers[:, None]).float().sum((1, 2)) / pairs
    divergence = (log_p.exp()[:, :, None] * (log_p[:, :, None] - log_p[:, None])).sum(-1).sum((1, 2)) / pairs
    return {
        "loss": ensemble_loss(logits, labels, members).mean(),
        "accuracy": (mean_logits(logits, members).argmax(-1) == labels).float().mean(),
        "member_loss": member_loss(logits, labels, members).mean(),
        "member_accuracy": (answers == labels[:, None]).float().mean(),
        "disagreement": disagreement.mean(),
        "divergence": divergence.mean(),
    }


def _log_mean(log_p: Float[Tensor, "R K"], members: int) -> Float[Tensor, "B K"]:
    rows = log_p.shape[0]  # not len(), which fixes the size of a batch that an export leaves open
    if members < 1 or rows % members:
        raise ValueError(f"{rows} rows of logits for members={members}: each image has one of each member")
    grouped = log_p.unflatten(0, (-1, members))
    return grouped.logsumexp(1) - math.log(members)


def _class_probabilities(labels: Tensor, logits: Tensor) -> Tensor:
    return labels.to(logits.dtype) if labels.ndim == 2 else F.one_hot(labels, logits.shape[1]).to(logits.dtype)
