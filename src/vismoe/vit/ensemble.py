"""Efficient ensembles, E³ (Allingham et al. 2021, *Sparse MoEs meet Efficient Ensembles*). M members share the trunk up
to the first sparse layer. From there on each image is processed M times, each time by the experts of one member.

Logits have one row per member: [image 0 member 0, image 0 member 1, …, image 1 member 0, …], R = B·M rows of K classes.
`kind` is "softmax" if each image has one class, "sigmoid" if it may have several.
"""

import math
from functools import partial
from typing import Any, Literal

from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["softmax", "sigmoid"]


def repeat_before(block: nn.Module, members: int) -> None:
    """Repeats each image `members` times before `block`. It is a hook because the blocks are timm's: a hook has no
    parameters, and is copied, compiled and recomputed with its block."""
    block.register_forward_pre_hook(partial(_repeat, members))


def _repeat(members: int, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].repeat_interleave(members, 0), *inputs[1:])


def mean_logits(logits: Float[Tensor, "R K"], members: int, kind: Kind = "softmax") -> Float[Tensor, "B K"]:
    """Logits of the members' mean probabilities p: log p for "softmax", log p − log(1 − p) for "sigmoid".

    **Arguments:**

    - `logits`: (B·M, K), one row per member.
    - `members`: number of members M.
    - `kind`: "softmax" or "sigmoid"; default "softmax".

    **Returns:** (B, K).

    **Raises:** ValueError if the number of rows is not a multiple of `members`.
    """
    if kind == "softmax":
        return _log_mean(logits.log_softmax(-1), members)
    return _log_mean(F.logsigmoid(logits), members) - _log_mean(F.logsigmoid(-logits), members)


def mean_of_images(logits: Float[Tensor, "R K"], images: int, kind: Kind = "softmax") -> Float[Tensor, "B K"]:
    """Returns `mean_logits` if there are more rows than images, otherwise the logits unchanged.

    **Arguments:**

    - `logits`: (R, K).
    - `images`: number of images B.
    - `kind`: "softmax" or "sigmoid"; default "softmax".
    """
    return mean_logits(logits, len(logits) // images, kind) if len(logits) > images > 0 else logits


def member_loss(
    logits: Float[Tensor, "R K"], labels: Shaped[Tensor, "B *K"], members: int, kind: Kind = "softmax"
) -> Float[Tensor, " R"]:
    """The training loss of an ensemble: the cross-entropy of each member by itself; for "sigmoid" summed over classes.

    **Arguments:**

    - `logits`: (B·M, K), one row per member.
    - `labels`: classes (B,), or probabilities (B, K).
    - `members`: number of members M.
    - `kind`: "softmax" or "sigmoid"; default "softmax".

    **Returns:** (B·M,), one loss per row.
    """
    repeated = labels.repeat_interleave(members, 0)
    if kind == "softmax":
        return F.cross_entropy(logits, repeated, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, _class_probabilities(repeated, logits), reduction="none").sum(-1)


def ensemble_loss(
    logits: Float[Tensor, "R K"], labels: Shaped[Tensor, "B *K"], members: int, kind: Kind = "softmax"
) -> Float[Tensor, " B"]:
    """The evaluation loss of an ensemble: the cross-entropy of the members' mean probabilities. It is never larger than
    the mean of `member_loss`.

    **Arguments:** as for `member_loss`.

    **Returns:** (B,), one loss per image.
    """
    if kind == "softmax":
        return F.cross_entropy(mean_logits(logits, members), labels, reduction="none")
    targets = _class_probabilities(labels, logits)
    yes, no = (_log_mean(F.logsigmoid(sign * logits), members) for sign in (1, -1))
    return -(targets * yes + (1 - targets) * no).sum(-1)


def ensemble_metrics(
    logits: Float[Tensor, "R K"], labels: Shaped[Tensor, " B"], members: int
) -> dict[str, Float[Tensor, ""]]:
    """Metrics of an ensemble, and of how much its members differ.

    **Arguments:**

    - `logits`: (B·M, K), one row per member.
    - `labels`: classes (B,).
    - `members`: number of members M.

    **Returns:** a dictionary of scalars:

    - `loss`, `accuracy`: of the mean probabilities.
    - `member_loss`, `member_accuracy`: means over members.
    - `disagreement`: fraction of images with different answers, mean over pairs of members; 0 for one member.
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
    rows = log_p.shape[0]  # not len(), which would make a dynamic batch size of an export constant
    if members < 1 or rows % members:
        raise ValueError(f"{rows} rows of logits for members={members}: expected one row per image and member")
    grouped = log_p.unflatten(0, (-1, members))
    return grouped.logsumexp(1) - math.log(members)


def _class_probabilities(labels: Tensor, logits: Tensor) -> Tensor:
    return labels.to(logits.dtype) if labels.ndim == 2 else F.one_hot(labels, logits.shape[1]).to(logits.dtype)
