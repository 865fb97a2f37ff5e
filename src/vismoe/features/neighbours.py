"""Classification by the most similar images."""

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
    """Each class's share of the votes: the k images with the largest cosine similarity s vote for their class with
    weight exp(s / temperature) (Wu et al. 2018, section 3.4; k and temperature as DINO's, Caron et al. 2021).

    **Arguments:**

    - `train_x`, `train_y`: features and classes of N images that vote.
    - `x`: features of M images.
    - `num_classes`: K.
    - `k`: images that vote, all where there are fewer; default 20.
    - `temperature`: above 0; `math.inf`: all votes weigh the same; default 0.07.

    **Raises:** ValueError where k or the temperature is not above 0.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k={k}, temperature={temperature}: both must be above 0")
    train_unit = F.normalize(train_x.float())
    votes = F.one_hot(train_y, num_classes).float()
    shares = []
    for part in F.normalize(x.float()).split(CHUNK):
        similarity, nearest = (part @ train_unit.T).topk(min(k, len(train_unit)))
        weight = (similarity / temperature).softmax(1)
        shares.append((weight[..., None] * votes[nearest]).sum(1))
    return torch.cat(shares)
