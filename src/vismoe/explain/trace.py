"""One image through a network, with what each sparse layer did."""

import base64
import io
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from vismoe.data import Batch, Sample
from vismoe.inference import Predictor
from vismoe.inference.predictor import open_inputs
from vismoe.moe import record
from vismoe.tasks import Prediction

from .capacity import using_capacity
from .rollout import attention_rollout, has_rollout
from .tokens import LayerTokens, tokens_of


@dataclass(frozen=True)
class LayerTrace:
    """What one sparse layer did with the S tokens of an image.

    - `name`: name of the layer, such as "blocks.1".
    - `num_experts`: number of experts E.
    - `k`: number of entries of each token: experts per token (of an ensemble, of all members); E if experts choose
      tokens; 1 in soft routing, the expert with the largest weight.
    - `grid`: (rows, columns) of patches.
    - `prefix`: number of tokens before the patches (class token, registers).
    - `expert`: the experts of each token, best first; −1 for a dropped choice.
    - `weight`: the weights of their outputs; 0 for a dropped choice.
    - `kept`: whether at least one expert processes the token.
    - `priority`: the token's largest gate, by which Batch Priority Routing orders tokens.
    - `mask`: False where a token is padding, which is not routed.
    - `kept_share`: share of the choices that were kept, 0 to 1; if experts choose tokens, share of the tokens that at
      least one expert chose. Padding does not count.
    """

    name: str
    num_experts: int
    k: int
    grid: tuple[int, int]
    prefix: int
    expert: Int[Tensor, "S k"]
    weight: Float[Tensor, "S k"]
    kept: Bool[Tensor, " S"]
    priority: Float[Tensor, " S"]
    mask: Bool[Tensor, " S"]
    kept_share: float

    def to_json(self) -> dict[str, Any]:
        """The patches as nested lists, row by row; tokens before the patches are left out. `padding` is true where a
        patch is padding."""

        def on_grid(table: Tensor) -> Any:
            return table[self.prefix :].unflatten(0, self.grid).tolist()

        return {
            "name": self.name,
            "experts": self.num_experts,
            "k": self.k,
            "grid": list(self.grid),
            "expert": on_grid(self.expert),
            "weight": on_grid(self.weight),
            "kept": on_grid(self.kept),
            "padding": on_grid(~self.mask),
        }


@dataclass(frozen=True)
class ImageTrace:
    """One image through a network.

    - `prediction`: the answer.
    - `seconds`: time of the forward pass, with the recording of the routing.
    - `image`: the image as the network sees it: resized, cropped or with a margin.
    - `layers`: the sparse layers, in order; empty for a dense network.
    - `rollout`: (rows, columns), see `attention_rollout`; None if it was not asked for, or the network has none.
    - `sample`: the prepared image, as `Predictor.prepare` returns it.
    """

    prediction: Prediction
    seconds: float
    image: Image.Image
    layers: list[LayerTrace]
    rollout: Float[Tensor, "rows columns"] | None
    sample: Sample

    @property
    def kept(self) -> float:
        """Share of the choices that were kept, mean over layers, 0 to 1; 1 for a dense network."""
        shares = [layer.kept_share for layer in self.layers]
        return sum(shares) / len(shares) if shares else 1.0

    def to_json(self) -> dict[str, Any]:
        """What the layers did, for JSON: width and height of `image`, kept, layers and rollout (None without one)."""
        return {
            "width": self.image.width,
            "height": self.image.height,
            "kept": self.kept,
            "layers": [layer.to_json() for layer in self.layers],
            "rollout": None if self.rollout is None else self.rollout.tolist(),
        }


def trace_image(
    predictor: Predictor,
    image: Image.Image,
    capacity: float | int | None = None,
    priority: bool = True,
    topk: int = 5,
    rollout: bool = False,
) -> ImageTrace:
    """Runs a network on one image, and returns what each sparse layer did with its tokens. It is thread-safe: the
    capacity is set while no other thread runs the network through this predictor, and restored.

    **Arguments:**

    - `predictor`: the network.
    - `image`: the image.
    - `capacity`: capacity factor of every sparse layer for this call, see `using_capacity`; default None: each layer's
      own.
    - `priority`: with a capacity, whether tokens with larger gates claim it first (True, the default), or earlier
      tokens.
    - `topk`: number of classes in the prediction; default 5.
    - `rollout`: whether to compute attention rollout too, in a further pass; default False.

    **Raises:** ValueError for a capacity that is not a positive number, or of a network that has none; for `topk` less
    than 1; for tokens that are not a grid of patches.
    """
    if topk < 1:
        raise ValueError(f"topk={topk}: it must be at least 1")
    predictor.task.check_model(predictor.model)
    ((title, sample),) = open_inputs(image, predictor.task.read)
    prepared = predictor.prepare(sample)
    return trace_sample(predictor, prepared, title, capacity, priority, topk, rollout)


def trace_sample(
    predictor: Predictor,
    sample: Sample,
    title: str = "image",
    capacity: float | int | None = None,
    priority: bool = True,
    topk: int = 5,
    rollout: bool = False,
) -> ImageTrace:
    """`trace_image` for a sample that `Predictor.prepare` returned. `title`: the image in the prediction."""
    batch = predictor.collate([sample])
    layers: list[LayerTokens] = []
    shares: list[Tensor] = []
    seconds = 0.0

    def forward(model: nn.Module, batch: Batch) -> Any:
        # Inside the predictor's lock: no other thread of the predictor sees this capacity.
        nonlocal seconds
        with using_capacity(model, capacity, priority), record(model) as routing:
            _synchronize(predictor.device)
            started = time.perf_counter()
            outputs = predictor.task.forward(model, batch)
            _synchronize(predictor.device)
            seconds = time.perf_counter() - started
        layers.extend(tokens_of(model, routing, 1))
        if rollout and has_rollout(model):
            shares.append(attention_rollout(model, batch["image"], batch.get("mask")))
        return outputs

    outputs = predictor.run(batch, forward)
    (prediction,) = predictor.task.predictions(outputs, [title], topk)
    return ImageTrace(
        prediction=prediction,
        seconds=seconds,
        image=shown_image(predictor, sample["image"]),
        layers=[_layer(layer) for layer in layers],
        rollout=shares[0] if shares else None,
        sample=sample,
    )


def _layer(layer: LayerTokens) -> LayerTrace:
    expert, mask = layer.expert[0], layer.mask[0]
    live = expert >= 0
    shares = live[mask].float() if layer.fixed_k else live[mask].any(1).float()
    return LayerTrace(
        name=layer.name,
        num_experts=layer.num_experts,
        k=expert.shape[1],
        grid=layer.grid,
        prefix=layer.prefix,
        expert=expert,
        weight=layer.weight[0],
        kept=live.any(1),
        priority=layer.gates[0].amax(1),
        mask=mask,
        kept_share=float(shares.mean()) if shares.numel() else 1.0,
    )


def shown_image(predictor: Predictor, pixels: Float[Tensor, "C H W"]) -> Image.Image:
    """A prepared image as a PIL image, with the normalisation undone."""
    return Image.fromarray(shown_pixels(predictor, pixels).permute(1, 2, 0).numpy())


def shown_pixels(predictor: Predictor, pixels: Float[Tensor, "*B C H W"]) -> UInt8[Tensor, "*B 3 H W"]:
    """Prepared images as RGB in 0…255, uint8, with the normalisation undone."""
    mean, std = (torch.tensor(predictor.config[name])[:, None, None] for name in ("mean", "std"))
    levels = (pixels.cpu().float() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return levels.expand(*levels.shape[:-3], 3, *levels.shape[-2:])


def data_uri(image: Image.Image | np.ndarray) -> str:
    """An image as a data URI, encoded as PNG without metadata."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
