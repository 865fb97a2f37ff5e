"""Maps parameters of google-research/vmoe (JAX) to those of a model, for both directions of conversion."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from vismoe.moe import ExpertChoiceRouter, MemberRouter, MLPExperts, MoE, SoftRouter, TopKRouter
from vismoe.vit import SparseVisionTransformer

from .config import PATCHES, POSITIONS


class Place(NamedTuple):
    """`path`: name of a model's parameter; `view`: returns a view of it, or of a part, in the reference's layout."""

    path: str
    view: Callable[[Tensor], Tensor]


Places = Iterator[tuple[str, Place]]


def places(model: SparseVisionTransformer) -> dict[str, Place]:
    """The parameters of the reference for a model's architecture, by the reference's names."""
    return dict(_places(model))


def _unchanged(parameter: Tensor) -> Tensor:
    return parameter


def _transposed(parameter: Tensor) -> Tensor:
    return parameter.mT


def _linear(name: str, path: str) -> Places:
    yield f"{name}/kernel", Place(f"{path}.weight", _transposed)
    yield f"{name}/bias", Place(f"{path}.bias", _unchanged)


def _norm(name: str, path: str) -> Places:
    yield f"{name}/scale", Place(f"{path}.weight", _unchanged)
    yield f"{name}/bias", Place(f"{path}.bias", _unchanged)


def _projections(name: str, path: str, parts: Sequence[str], heads: tuple[int, int]) -> Places:
    """Linear layers from tokens to heads, (d, heads, head dim) each, which timm concatenates in order of `parts`."""

    def bias(number: int, parameter: Tensor) -> Tensor:
        return parameter.chunk(len(parts))[number].unflatten(0, heads)

    def kernel(number: int, parameter: Tensor) -> Tensor:
        return bias(number, parameter).permute(2, 0, 1)

    for number, part in enumerate(parts):
        yield f"{name}/{part}/kernel", Place(f"{path}.weight", partial(kernel, number))
        yield f"{name}/{part}/bias", Place(f"{path}.bias", partial(bias, number))


# The reference's linear layers that timm concatenates in each of its own.
SELF_ATTENTION = {"qkv": ("query", "key", "value")}
POOLING = {"q": ("query",), "kv": ("key", "value")}


def _attention(name: str, path: str, attention: Any, projections: Mapping[str, Sequence[str]]) -> Places:
    heads = (attention.num_heads, attention.head_dim)
    for layer, parts in projections.items():
        yield from _projections(name, f"{path}.{layer}", parts, heads)
    yield f"{name}/out/kernel", Place(f"{path}.proj.weight", lambda weight: weight.T.unflatten(0, heads))
    yield f"{name}/out/bias", Place(f"{path}.proj.bias", _unchanged)
    if not isinstance(attention.q_norm, nn.Identity):
        yield f"{name}/query_ln/scale", Place(f"{path}.q_norm.weight", _unchanged)
        yield f"{name}/key_ln/scale", Place(f"{path}.k_norm.weight", _unchanged)


def _mlp(name: str, path: str) -> Places:
    yield from _linear(f"{name}/Dense_0", f"{path}.fc1")
    yield from _linear(f"{name}/Dense_1", f"{path}.fc2")


def _dense_router(name: str, path: str, router: Any) -> Places:
    yield f"{name}/dense/kernel", Place(f"{path}.weight", _transposed)


def _member_router(name: str, path: str, router: MemberRouter) -> Places:
    def kernel(weight: Tensor) -> Tensor:
        return weight.T.unflatten(1, (router.members, -1))

    yield f"{name}/dense/kernel", Place(f"{path}.weight", kernel)


def _soft_router(name: str, path: str, router: SoftRouter) -> Places:
    slots = (router.num_experts, router.slots_per_expert)
    yield f"{name}/mu", Place(f"{path}.weight", lambda weight: weight.T.unflatten(1, slots))
    yield f"{name}/scale", Place(f"{path}.scale", lambda scale: scale[0])


ROUTERS: dict[type[nn.Module], Callable[[str, str, Any], Places]] = {
    TopKRouter: _dense_router,
    MemberRouter: _member_router,
    ExpertChoiceRouter: _dense_router,
    SoftRouter: _soft_router,
}
"""Functions by router class. Arguments: the router's name in the reference, its path in the model, and the router."""


def _moe(name: str, path: str, layer: MoE) -> Places:
    if type(layer.router) not in ROUTERS or not isinstance(layer.experts, MLPExperts):
        parts = f"a {type(layer.router).__name__} with {type(layer.experts).__name__}"
        raise ValueError(f"{path} is {parts}, which the reference does not have")
    yield from ROUTERS[type(layer.router)](f"{name}/Router", f"{path}.router", layer.router)
    yield from _linear(f"{name}/Mlp/Dense_0", f"{path}.experts.up")
    yield from _linear(f"{name}/Mlp/Dense_1", f"{path}.experts.down")


def _places(model: SparseVisionTransformer) -> Places:
    yield PATCHES, Place("patch_embed.proj.weight", lambda weight: weight.permute(2, 3, 1, 0))
    yield "embedding/bias", Place("patch_embed.proj.bias", _unchanged)
    if model.cls_token is not None:
        yield "cls", Place("cls_token", _unchanged)
    if model.pos_embed is not None:
        yield POSITIONS, Place("pos_embed", _unchanged)
    for number, block in enumerate(model.blocks):
        name, path = f"Encoder/encoderblock_{number}", f"blocks.{number}"
        yield from _norm(f"{name}/LayerNorm_0", f"{path}.norm1")
        yield from _norm(f"{name}/LayerNorm_1", f"{path}.norm2")
        yield from _attention(f"{name}/SelfAttention", f"{path}.attn", block.attn, SELF_ATTENTION)
        if isinstance(block.mlp, MoE):
            yield from _moe(f"{name}/Moe", f"{path}.mlp", block.mlp)
        else:
            yield from _mlp(f"{name}/Mlp", f"{path}.mlp")
    yield from _norm("Encoder/encoder_norm", "norm")
    if model.attn_pool is not None:
        yield "MapHead/probe", Place("attn_pool.latent", _unchanged)
        yield from _attention("MapHead/MultiHeadDotProductAttention", "attn_pool", model.attn_pool, POOLING)
        yield from _norm("MapHead/LayerNorm", "attn_pool.norm")
        yield from _mlp("MapHead/Mlp", "attn_pool.mlp")
    if not isinstance(model.representation, nn.Identity):
        yield from _linear("pre_logits", "representation.0")
    if model.num_classes:
        yield from _linear("head", "head")
