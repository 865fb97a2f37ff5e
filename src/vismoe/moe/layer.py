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
from .execution.compiled import compiled_layer, compiled_sums
from .execution.exchange import Exchange, LocalExchange
from .execution.products import Product, grouped
from .plan import Plan, SparsePlan
from .record import LayerRecord
from .routers.balancing import inside_backward
from .routers.base import Router, Routing
from .routers.member_choice import MemberRouter


class MoE(Conditioned):
    """A sparse layer for any network: each token is processed by the experts that the router chooses for it.

    **Arguments:**

    - `router`: a `vismoe.moe.Router`, such as `vismoe.TopKRouter`.
    - `experts`: a module of experts, such as `vismoe.MLPExperts`, with the router's `dim` and `num_experts`.
    - `shared`: a module that is applied to every token; its output is added. Default None: none.
    - `group_size`: number of tokens that are routed together (a group may contain parts of images, as in the
      reference); default "none": all tokens of the call are one group, or those of each image if the router requires
      that. If the size does not divide the tokens of a batch, that is an error while training; at evaluation each image
      is then a group, with one warning if that can change outputs.
    - `product`: how rows are multiplied by their experts' weights; default None: `vismoe.moe.grouped`.
    - `bfloat16_exchange`: whether the experts' inputs and outputs are rounded to bfloat16, as by the reference's
      dispatchers; default False.
    - `backend`: another name of `product`.

    **Attributes:** the arguments, which can all be set, and

    - `exchange`: where rows go, a `vismoe.moe.Exchange`; by default within this process.
    - `origin`: what the layer replaced, for `vismoe.densify`; None if it replaced nothing.

    **Raises:** ValueError if router and experts have different sizes, or both `product` and `backend` are given.
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
            raise ValueError("product and backend are two names of one argument: give one of them")
        self.router, self.experts, self.shared = router, experts, shared
        self.group_size, self.product = group_size, product or backend or grouped
        self.exchange: Exchange = LocalExchange(bfloat16_exchange)
        self.origin: Any = None
        self._warned, self._warned_of_groups = False, False

    def forward(
        self, x: Float[Tensor, "*batch d"] | Proxy, mask: Bool[Tensor, "B S"] | Proxy | None = None
    ) -> Float[Tensor, "*batch d"] | Proxy:
        """Applies the layer. In a trace of torch.fx it is one node.

        **Arguments:**

        - `x`: (B, …, d): images, each with tokens in any shape; (N, d) is one image.
        - `mask`: (B, S) bool, False where a token is padding: it is not routed, does not count as load, and its output
          is 0; default None: no padding.

        **Returns:** a tensor with the shape of `x`.

        **Raises:** ValueError for another width or a mask of another shape, and while training for a group size that
        does not divide the tokens.
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
            # Otherwise NaN in padding would reach the router's product and its gradient.
            tokens_BSd = torch.where(mask[..., None], tokens_BSd, 0)
        tokens_GSd = self._group(tokens_BSd)
        mask_GS = None if mask is None else mask.reshape(tokens_GSd.shape[:2])
        context = {} if condition.context is None else {"context": condition.context}
        routing = self.router(tokens_GSd, mask_GS, **context)
        self._write_record(routing)
        if self.group_size != "none" and tokens_GSd.shape[1] != self.group_size:
            self._warn_of_groups(tokens_BSd, routing.plan)
        y = self._apply_experts(routing.plan, tokens_GSd.flatten(0, 1)).view(tokens_BSd.shape)
        if self.shared is not None:
            y = y + self.shared(tokens_BSd)
        if mask is not None:
            y = torch.where(mask[..., None], y, 0)
        return y.view(x.shape)

    def _is_usual(self) -> bool:
        """Whether the exchange and the product are those that compiled kernels may stand for."""
        return type(self.exchange) is LocalExchange and not self.exchange.bfloat16 and self.product is grouped

    def _apply_experts(self, plan: Plan, tokens_Nd: Tensor) -> Tensor:
        """The weighted sum of each token's experts' outputs."""

        def called(tokens_Nd: Tensor, weight_R: Tensor | None = None) -> Tensor:
            given = plan
            if weight_R is not None and isinstance(plan, SparsePlan):
                given = replace(plan, weight=weight_R)
            rows = self.exchange.dispatch(given, tokens_Nd)
            return self.exchange.combine(given, rows, self.product(self.experts, rows))

        y = compiled_sums(self.experts, plan, tokens_Nd, called) if self._is_usual() else None
        return called(tokens_Nd) if y is None else y

    def _compiled(self, x: Tensor) -> Tensor | None:
        """The outcome by one call of the compiled kernels; None where routing is recorded, a part of the layer is not
        the usual one, or a gradient may be wanted."""
        if not self._is_usual() or self.tape.open:
            return None
        y = compiled_layer(self.router, self.experts, x.reshape(-1, x.shape[-1]))
        if y is None:
            return None
        y = y.view(x.shape)
        return y if self.shared is None else y + self.shared(x.flatten(1, -2) if x.ndim > 2 else x[None]).view(x.shape)

    @property
    def backend(self) -> Product:
        """Another name of `product`. Setting it to None sets the default product."""
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
        """Freezes a router without parameters if the experts are frozen: such a router cannot see by itself that its
        layer is frozen, and would continue to balance."""
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
        """Warns once that each image is a group, because `group_size` does not fit; not if outputs do not depend on
        groups."""
        independent = isinstance(plan, SparsePlan) and plan.capacity is None
        if torch.compiler.is_compiling() or independent or self._warned_of_groups:
            return
        self._warned_of_groups = True
        images, tokens, size = *tokens_BSd.shape[:2], int(self.group_size)
        full = size // math.gcd(size, tokens)
        warnings.warn(
            f"group_size={size} does not divide the {images * tokens} tokens of this batch ({images} images × {tokens} "
            "tokens): at evaluation each image is then a group by itself, and its output may differ from that in a "
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
    """`vismoe.MoE` for the tokens of an ensemble, (B·M, …, d): image 0 member 0, image 0 member 1, …

    All members of an image are routed together: a group has equally many tokens of each member.

    **Arguments:**

    - `router`: a `MemberRouter`.
    - `experts`, `options`: as for `vismoe.MoE`.
    - `group_size`: number of tokens of all members that are routed together, a multiple of M; default "none".

    **Raises:** as `vismoe.MoE`; ValueError for a group size that is not a multiple of the number of members.
    """

    def __init__(
        self, router: MemberRouter, experts: nn.Module, group_size: int | Literal["none"] = "none", **options: Any
    ):
        super().__init__(router, experts, group_size=group_size, **options)
        self.members = router.members
        if group_size != "none" and group_size % self.members:
            ensemble = f"ensemble_size={self.members}"
            raise ValueError(
                f"group_size={group_size}, {ensemble}: the group size must be a multiple of the number of members"
            )

    def forward(
        self, x: Float[Tensor, "*batch d"] | Proxy, mask: Bool[Tensor, "B S"] | Proxy | None = None
    ) -> Float[Tensor, "*batch d"] | Proxy:
        """Applies the layer to `x` (B·M, …, d). `mask` (B, S): False where a token of an image is padding, for all
        members."""
        if isinstance(x, Proxy):
            return super().forward(x, mask)
        if x.ndim < 3 or x.shape[0] % self.members:
            raise ValueError(f"input of shape {tuple(x.shape)}: expected (images × {self.members} members, …, dim)")
        mask = self.conditions.current().mask if mask is None else mask
        if mask is not None:
            mask = mask.repeat_interleave(self.members, 1)
        # (B·M, S, d) -> (B, S·M, d) and back: within a group, the rows of one token's members are adjacent.
        together = x.flatten(1, -2).unflatten(0, (-1, self.members)).transpose(1, 2).flatten(1, 2)
        y = super().forward(together, mask)
        return y.unflatten(1, (-1, self.members)).transpose(1, 2).reshape(x.shape)
