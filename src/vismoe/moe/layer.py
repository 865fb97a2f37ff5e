"""The sparse layer: a router, experts and optionally a shared module."""

import math
import warnings
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.fx import Proxy

from .condition import Conditioned
from .execution.compiled import compiled_layer
from .execution.exchange import Exchange, LocalExchange
from .execution.products import Product, grouped
from .plan import Plan, SparsePlan
from .record import LayerRecord
from .routers.balancing import inside_backward
from .routers.base import Router, Routing
from .routers.member_choice import MemberRouter


class MoE(Conditioned):
    """A layer for any network: tokens in, tokens out, each through the experts that the router chose for it.

    **Arguments:**

    - `router`, `experts`: modules that agree on `dim` and `num_experts`.
    - `shared`: a module that is applied to every token and whose output is added; default: none.
    - `group_size`: tokens that are routed together, images in order, cutting across them as the reference does; default
      "none": all tokens of the call are one group, or all tokens of an image where the router asks for that. At
      evaluation each image is a group where the size does not divide the tokens, as in a last batch; where that can
      change an answer (a capacity, experts that choose, soft routing) a warning says so once.
    - `product`: how rows are multiplied by their experts' weights; default `vismoe.moe.grouped`.
    - `bfloat16_exchange`: whether what experts receive and answer is rounded to bfloat16, as the reference's
      dispatchers do; default False.
    - `backend`: another name of `product`.

    **Attributes:** the arguments, all of which may be set; `exchange`: where rows go, a `vismoe.moe.Exchange`, by
    default within this process; `origin`: whoever put the layer in another module's place may keep here what it needs
    to undo that.

    **Raises:** ValueError where router and experts differ, or `product` and `backend` are both given.
    """

    def __init__(
        self,
        router: Router,
        experts: nn.Module,
        shared: nn.Module | None = None,
        group_size: int | Literal["none"] = "none",
        product: Product | None = None,
        bfloat16_exchange: bool = False,
        backend: Product | None = None,
    ):
        super().__init__()
        for name in ("dim", "num_experts"):
            of_router, of_experts = getattr(router, name), getattr(experts, name)
            if of_router != of_experts:
                raise ValueError(
                    f"the router has {name}={of_router}, but the experts have {name}={of_experts}: they must agree"
                )
        if group_size != "none" and not (isinstance(group_size, int) and group_size >= 1):
            raise ValueError(f'group_size={group_size!r}: accepted are "none" and whole numbers ≥ 1')
        if product is not None and backend is not None:
            raise ValueError("product and backend are two names of one thing: give one of them")
        self.router, self.experts, self.shared = router, experts, shared
        self.group_size, self.product = group_size, product or backend or grouped
        self.exchange: Exchange = LocalExchange(bfloat16_exchange)
        self.origin: Any = None
        self._warned, self._warned_of_groups = False, False

    def forward(
        self, x: Float[Tensor, "*batch d"] | Proxy, mask: Bool[Tensor, "B S"] | Proxy | None = None
    ) -> Float[Tensor, "*batch d"] | Proxy:
        """Applies the layer. For torch.fx, which traces networks, it is one node.

        **Arguments:**

        - `x`: (B, …, d), image first, then its tokens in any shape; (N, d) is one image.
        - `mask`: (B, S), False where a token is padding: it is not routed, does not count as load, and its output is 0;
          default: no padding.

        **Raises:** ValueError for another width, a mask of another shape, or a group size that does not divide the
        tokens while training.
        """
        if isinstance(x, Proxy):
            tracer: Any = x.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x, mask), {})
        if x.ndim < 2 or x.shape[-1] != self.router.dim:
            raise ValueError(f"input of shape {tuple(x.shape)}: expected (B, …, {self.router.dim}), the router's dim")
        condition = self.conditions.current()
        mask = condition.mask if mask is None else mask
        if mask is None and (compiled := self._compiled(x)) is not None:
            return compiled
        tokens_BSd = x.flatten(1, -2) if x.ndim > 2 else x[None]
        if mask is not None:
            expected = tokens_BSd.shape[:2]
            if mask.shape != expected or mask.dtype != torch.bool:
                given = f"mask of shape {tuple(mask.shape)} and type {mask.dtype}"
                raise ValueError(f"{given}: expected {tuple(expected)}, images × tokens, torch.bool, False for padding")
            # Not even NaN in padding reaches the router's product, or its gradient.
            tokens_BSd = torch.where(mask[..., None], tokens_BSd, 0)
        tokens_GSd = self._group(tokens_BSd)
        mask_GS = None if mask is None else mask.reshape(tokens_GSd.shape[:2])
        context = {} if condition.context is None else {"context": condition.context}
        routing = self.router(tokens_GSd, mask_GS, **context)
        self._write_record(routing)
        if self.group_size != "none" and tokens_GSd.shape[1] != self.group_size:
            self._warn_of_groups(tokens_BSd, routing.plan)
        rows = self.exchange.dispatch(routing.plan, tokens_GSd.flatten(0, 1))
        answers = self.product(self.experts, rows)
        y = self.exchange.combine(routing.plan, rows, answers).view(tokens_BSd.shape)
        if self.shared is not None:
            y = y + self.shared(tokens_BSd)
        if mask is not None:
            y = torch.where(mask[..., None], y, 0)
        return y.view(x.shape)

    def _compiled(self, x: Tensor) -> Tensor | None:
        """The outcome by one call of the compiled kernels; None where routing is recorded, a part of the layer is not
        the usual one, or a gradient may be wanted."""
        usual = type(self.exchange) is LocalExchange and not self.exchange.bfloat16 and self.product is grouped
        if not usual or self.tape.open:
            return None
        y = compiled_layer(self.router, self.experts, x.reshape(-1, x.shape[-1]))
        if y is None:
            return None
        y = y.view(x.shape)
        return y if self.shared is None else y + self.shared(x.flatten(1, -2) if x.ndim > 2 else x[None]).view(x.shape)

    @property
    def backend(self) -> Product:
        """Another name of `product`. Set to None: the default product."""
        return self.product

    @backend.setter
    def backend(self, product: Product | None) -> None:
        self.product = product or grouped

    @property
    def bfloat16_exchange(self) -> bool:
        """Whether the exchange rounds to bfloat16."""
        return self.exchange.bfloat16

    @bfloat16_exchange.setter
    def bfloat16_exchange(self, rounds: bool) -> None:
        self.exchange = replace(self.exchange, bfloat16=rounds)

    def freeze_router(self) -> None:
        """Freezes a router without parameters where the experts do not train: the router cannot tell by itself that its
        layer is frozen, and would go on balancing."""
        parameters = [*self.experts.parameters()]
        if not [*self.router.parameters()] and not any(parameter.requires_grad for parameter in parameters):
            self.router.requires_grad_(False)

    def _group(self, tokens_BSd: Tensor) -> Tensor:
        size = self.group_size
        if isinstance(size, str):
            return tokens_BSd if self.router.groups_by_image else tokens_BSd.flatten(0, 1)[None]
        number = tokens_BSd.shape[0] * tokens_BSd.shape[1]
        if number % size == 0:
            return tokens_BSd.reshape(number // size, size, tokens_BSd.shape[2])
        if self.training:
            tokens = f"{number} tokens of this batch ({tokens_BSd.shape[0]} images × {tokens_BSd.shape[1]} tokens)"
            raise ValueError(f"group_size={size} does not divide the {tokens}")
        return tokens_BSd

    def _warn_of_groups(self, tokens_BSd: Tensor, plan: Plan) -> None:
        """Says once that images are groups in place of groups of `group_size`, unless no answer depends on groups."""
        independent = isinstance(plan, SparsePlan) and plan.capacity is None
        if torch.compiler.is_compiling() or independent or self._warned_of_groups:
            return
        self._warned_of_groups = True
        images, tokens, size = *tokens_BSd.shape[:2], int(self.group_size)
        full = size // math.gcd(size, tokens)
        warnings.warn(
            f"group_size={size} does not divide the {images * tokens} tokens of this batch ({images} images × {tokens} "
            "tokens): at evaluation each image is then a group by itself, and its answer may differ from the one in a "
            f"group of {size}; batches of {full} images, or a multiple, make groups of {size}",
            stacklevel=3,
        )

    def _write_record(self, routing: Routing) -> None:
        training = self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if inside_backward():
            return
        if self.tape.open:
            self.tape.write(LayerRecord(self.router, routing))
        elif self.router.balance == "loss" and training and not self._warned:
            self._warned = True
            warnings.warn(
                'this layer is balanced by losses (balance="loss"), but they are never added to the loss, so its '
                "experts stay unbalanced: add `routing.auxiliary_loss` from `with vismoe.record(model) as routing:` to "
                "the loss, "
                'or build the model with balance="bias"',
                stacklevel=3,
            )


class MemberMoE(MoE):
    """`vismoe.MoE` for the tokens of an ensemble, (B·M, …, d): image 0 member 0, image 0 member 1, … All members of an
    image are routed together: a group has equally many tokens of each member, and `group_size` counts the tokens of all
    members.

    **Raises:** ValueError for a group size that the number of members does not divide.
    """

    def __init__(
        self, router: MemberRouter, experts: nn.Module, group_size: int | Literal["none"] = "none", **options: Any
    ):
        super().__init__(router, experts, group_size=group_size, **options)
        self.members = router.members
        if group_size != "none" and group_size % self.members:
            ensemble = f"ensemble_size={self.members}"
            raise ValueError(
                f"group_size={group_size}, {ensemble}: a group has as many tokens of each, choose a multiple"
            )

    def forward(
        self, x: Float[Tensor, "*batch d"] | Proxy, mask: Bool[Tensor, "B S"] | Proxy | None = None
    ) -> Float[Tensor, "*batch d"] | Proxy:
        """Applies the layer. `mask` (B, S): for each image, False where a token is padding for all members."""
        if isinstance(x, Proxy):
            return super().forward(x, mask)
        if x.ndim < 3 or x.shape[0] % self.members:
            raise ValueError(f"input of shape {tuple(x.shape)}: expected (images × {self.members} members, …, dim)")
        mask = self.conditions.current().mask if mask is None else mask
        if mask is not None:
            mask = mask.repeat_interleave(self.members, 1)
        # (B·M, S, d) -> (B, S·M, d) and back: in a group, all of a token's members stand together.
        together = x.flatten(1, -2).unflatten(0, (-1, self.members)).transpose(1, 2).flatten(1, 2)
        y = super().forward(together, mask)
        return y.unflatten(1, (-1, self.members)).transpose(1, 2).reshape(x.shape)
