"""Nearest-neighbour classification."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1024


def nearest_neighbours(
    train_x: Float[Tensor, "N d"],
    train_y: Int[Tensor, " N"],
    x: Float[Tensor, "M d"],
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[Tensor, "M K"]:
    """Classifies by the k nearest neighbours: the k images with the largest cosine similarity s vote for their class
    with weight exp(s / temperature) (Wu et al. 2018, section 3.4; k and temperature as in DINO, Caron et al. 2021).

    **Arguments:**

    - `train_x`: features of the N training images, which vote.
    - `train_y`: their classes, 0 to K − 1.
    - `x`: features of the M images to classify.
    - `num_classes`: number of classes K.
    - `k`: number of neighbours, at most N; default 20.
    - `temperature`: above 0; with `math.inf` all votes weigh the same; default 0.07.

    **Returns:** (M, K), each class's fraction of the votes.

    **Raises:** ValueError if k or the temperature is not above 0.
    """
    if k < 1:
        raise ValueError(f"k={k}: it must be at least 1")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: it must be above 0")
    train_unit = F.normalize(train_x.float())
    votes = F.one_hot(train_y, num_classes).float()
    shares = []
    for part in F.normalize(x.float()).split(CHUNK):
        similarity, nearest = (part @ train_unit.T).topk(min(k, len(train_unit)))
        weight = (similarity / temperature).softmax(1)
        shares.append((weight[..., None] * votes[nearest]).sum(1))
    return torch.cat(shares)
