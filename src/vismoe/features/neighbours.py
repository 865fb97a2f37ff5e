"""The classes of the most similar images."""

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
    """What share of the votes each class has: the k images of the largest cosine similarity s vote for theirs with
    weight exp(s / temperature) (Wu et al. 2018, section 3.4; k and temperature as DINO's, Caron et al. 2021). Of fewer
    than k images all vote. `temperature=math.inf`: all alike.

    **Raises:** ValueError where k or the temperature is not above 0.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k={k}, temperature={temperature}: both must be above 0")
    known = F.normalize(train_x.float())
    votes = F.one_hot(train_y, num_classes).float()
    found = []
    for part in F.normalize(x.float()).split(CHUNK):
        similarity, nearest = (part @ known.T).topk(min(k, len(known)))
        weight = (similarity / temperature).softmax(1)
        found.append((weight[..., None] * votes[nearest]).sum(1))
    return torch.cat(found)
