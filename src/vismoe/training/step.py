"""One optimiser step."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vismoe.data import mix, mix_seeds
from vismoe.moe import MoE, record
from vismoe.parallel import Mesh

from .recipe import Recipe
from .schedule import learning_rate
from .state import State


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that was no finite number."""


@dataclass(frozen=True)
class Outcome:
    """What a step was like, over all processes: mean loss, share of right answers, and, where it was looked at, how
    many choices each expert of a layer got."""

    loss: Tensor
    accuracy: Tensor
    load: dict[str, Tensor] | None


class Trainer:
    """Takes the steps of a run. Nothing that is not finite reaches the weights: such a step is skipped, counted, and
    told to `log`."""

    def __init__(
        self,
        recipe: Recipe,
        state: State,
        mesh: Mesh,
        log: Callable[[dict[str, Any]], None],
        class_weights: Tensor | None = None,
    ):
        self.recipe, self.state, self.mesh, self.log = recipe, state, mesh, log
        device = next(state.model.parameters()).device
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.network = mesh.replicate(state.model).train()
        norms = [module for module in state.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self.by_losses = any(isinstance(m, MoE) and m.router.balance == "loss" for m in state.model.modules())

    def step(self, images: Tensor, labels: Tensor, look: bool) -> Outcome:
        """The step whose number the state has: forward, backward, update."""
        recipe, state = self.recipe, self.state
        model, seed = state.model, mix_seeds(recipe.seed, state.step)
        # On a CPU this is all that torch.manual_seed does, in a hundredth of its time.
        generators: Any = torch.default_generator if images.device.type == "cpu" else torch
        generators.manual_seed(seed + self.mesh.rank)
        rate = learning_rate(recipe, state.step - 1)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        multi_label, statistics = labels.ndim == 2, [buffer.clone() for buffer in self.statistics]
        classes = cast(int, model.num_classes)
        mixed, targets = mix(images, labels, classes, recipe.mixup, recipe.cutmix, seed)
        parts = [whole.chunk(recipe.accumulate) for whole in (mixed, targets, labels)]
        losses, hits, seen, last = [], [], None, len(parts[0]) - 1
        for number, (part, target, label) in enumerate(zip(*parts, strict=True)):
            with nullcontext() if number == last else self.mesh.no_sync(self.network):
                with record(model) if self.by_losses or look else nullcontext() as seen:
                    loss, logits = self._loss(part, target, multi_label)
                share = len(part) / len(mixed)
                ((loss + seen.auxiliary_loss if self.by_losses and seen is not None else loss) * share).backward()
            losses.append(loss.detach() * share)
            answers = logits > 0 if multi_label else logits.argmax(1)
            hits.append((answers == _by_row(label, logits)).float().mean() * share)
        loss, accuracy = self.mesh.mean(torch.stack([torch.stack(losses).sum(), torch.stack(hits).sum()]))
        self._update(loss, statistics)
        load = None
        if look and seen is not None:
            load = {name: self.mesh.sum(calls[-1].load) for name, calls in seen.layers.items()}
        return Outcome(loss, accuracy, load)

    def _loss(self, images: Tensor, targets: Tensor, multi_label: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
            logits = self.network(images).float()
        targets = _by_row(targets, logits)
        smoothing, summed = self.recipe.label_smoothing, self.recipe.loss == "sigmoid"
        if multi_label or summed:
            classes = logits.shape[1]
            shown = targets if targets.ndim == 2 else F.one_hot(targets, classes)
            smooth = shown * (1 - smoothing) + smoothing / classes
            loss = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=self.class_weights)
            return loss * classes if summed else loss, logits
        return F.cross_entropy(logits, targets, weight=self.class_weights, label_smoothing=smoothing), logits

    def _update(self, loss: Tensor, statistics: list[Tensor]) -> None:
        state, recipe = self.state, self.recipe
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_norm or math.inf)
        if math.isfinite(loss) and math.isfinite(norm):
            state.in_a_row = 0
            state.optimizer.step()
            if state.average is not None:
                state.average.update(state.model, state.step if recipe.average_warmup else None)
        else:
            for buffer, before in zip(self.statistics, statistics, strict=True):
                buffer.copy_(before)  # a batch norm has taken the step's statistics already
            state.skipped, state.in_a_row = state.skipped + 1, state.in_a_row + 1
            what = f"the loss is {loss:g}" if not math.isfinite(loss) else f"the gradient's norm is {norm:g}"
            self.log({"step": state.step, "skipped": what})
            if state.in_a_row >= recipe.max_skipped:
                raise TrainingDivergedError(
                    f"{what} at step {state.step}, {state.in_a_row} steps in a row were skipped: "
                    "try a smaller learning rate"
                )
        state.optimizer.zero_grad()


def _by_row(labels: Tensor, logits: Tensor) -> Tensor:
    """Each image's labels as often as it has rows of logits: once for each member of an ensemble."""
    return labels if len(labels) == len(logits) else labels.repeat_interleave(len(logits) // len(labels), 0)
