"""A network's weights taken over by another one of other classes and other image sizes."""

from typing import Any, cast

import torch
from torch import nn

from vismoe.vit.positions import zoom


@torch.no_grad()
def take_over(model: nn.Module, trained: nn.Module, source: str) -> None:
    """Fills `model` with the weights of `trained`, as the reference begins a fine-tuning: all but the classifier, which
    stays as it is, position embeddings resized to the new grid, a representation layer only where both have one.

    **Arguments:** `source`: what `trained` is called in errors.

    **Raises:** ValueError where the networks differ in anything else.
    """
    state, own = dict(trained.state_dict()), model.state_dict()
    classifier: str | tuple[str, ...] = cast(Any, model).pretrained_cfg["classifier"]
    fresh = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    if not any(name.startswith("representation.") for name in own):
        fresh += ("representation.",)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(fresh)}
    wanted = {name for name in own if not name.startswith(fresh)}
    if "pos_embed" in state and "pos_embed" in own and state["pos_embed"].shape != own["pos_embed"].shape:
        grids = [cast(Any, network).patch_embed.grid_size for network in (trained, model)]
        state["pos_embed"] = zoom(state["pos_embed"], *grids)
    other = sorted(set(state) ^ wanted)
    other += [name for name in wanted & set(state) if state[name].shape != own[name].shape]
    if other:
        raise ValueError(f"{source} is of another network than the recipe's: they differ in {', '.join(other[:3])}")
    model.load_state_dict(state, strict=False)
