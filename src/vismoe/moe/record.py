"""Records what routers did, without changing it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .routers.base import Router, Routing


class LayerRecord:
    """One call of one layer.

    - `plan`, `gates` (G, S, E), `load` (E,): see `vismoe.moe.Routing`. The load is counted before choices are dropped.
    - `dropped_share`: fraction of the choices that were dropped, 0 to 1.
    - `losses`: unweighted auxiliary losses by name, (G,) each; (G, M) for an ensemble.
    - `auxiliary_loss`: the weighted sum of `losses`; None if the router has none.
    - `metrics`: metrics of this kind of router, by name.

    Losses and metrics are computed on access. So a forward saves the same tensors whether it is recorded or not;
    activation recompute needs this.
    """

    def __init__(self, router: Router, routing: Routing):
        self.router, self.routing = router, routing
        self.plan, self.gates, self.load = routing.plan, routing.gates, routing.load

    @property
    def dropped_share(self) -> Float[Tensor, ""]:
        chosen = self.load.sum()
        return (chosen - self.plan.count.sum()) / chosen.clamp_min(1)

    @cached_property
    def losses(self) -> dict[str, Float[Tensor, "G ..."]]:
        return self.router.losses(self.routing)

    @cached_property
    def metrics(self) -> dict[str, Tensor]:
        return self.router.metrics(self.routing)

    @property
    def auxiliary_loss(self) -> Float[Tensor, "G ..."] | None:
        return self.router.auxiliary_loss(self.losses)


class _Entry:
    def __init__(self, record: LayerRecord, before: "_Entry | None", thread: int | None):
        self.record, self.before, self.thread = record, before, thread


_LOCK = threading.Lock()


class Tape:
    """A layer's recorded calls as a linked list, newest first: a Python list would be recompiled at each new length.

    Nothing is written while `open`, the number of open recordings, is 0. A copy of a layer has an empty tape.
    """

    def __init__(self) -> None:
        self.open = 0
        self.newest: _Entry | None = None

    def write(self, record: LayerRecord) -> None:
        if torch.compiler.is_compiling():
            self.newest = _Entry(record, self.newest, None)
        else:
            with _LOCK:
                self.newest = _Entry(record, self.newest, threading.get_ident())

    def since(self, mark: "_Entry | None", thread: int) -> list[LayerRecord]:
        entries, entry = [], self.newest
        while entry is not None and entry is not mark:
            if entry.thread in (None, thread):
                entries.append(entry.record)
            entry = entry.before
        return entries[::-1]

    def __reduce__(self) -> tuple[type["Tape"], tuple[()]]:
        return Tape, ()


class Recording:
    """The calls that `record` has recorded so far.

    - `layers`: for each layer's name, one `LayerRecord` per call, in order. The name of a bare `MoE` is "".
    - `auxiliary_loss`: the loss to add in training.
    """

    def __init__(self, tapes: dict[str, Tape], device: torch.device):
        self._tapes, self._device, self._thread = tapes, device, threading.get_ident()
        self._marks = {name: tape.newest for name, tape in tapes.items()}
        self._closed: dict[str, list[LayerRecord]] | None = None

    @property
    def layers(self) -> dict[str, list[LayerRecord]]:
        if self._closed is not None:
            return self._closed
        return {name: tape.since(self._marks[name], self._thread) for name, tape in self._tapes.items()}

    def _close(self) -> None:
        self._closed = self.layers
        self._tapes, self._marks = {}, {}

    @property
    def auxiliary_loss(self) -> Float[Tensor, ""]:
        """The loss to add to the training loss: weighted losses, mean over groups and over a layer's calls, summed over
        layers; 0 if no router has a loss."""
        total = torch.zeros((), device=self._device)
        for calls in self.layers.values():
            values = [call.auxiliary_loss.mean() for call in calls if call.auxiliary_loss is not None]
            if values:
                total = total + torch.stack(values).mean()
        return total


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Records the routing of every MoE layer of `model` inside a `with` block. It does not change outputs or training.

    Activation recomputes in backward are not recorded. Blocks may be nested, and may run in several threads: each
    records the calls of its own thread (for a compiled model, those of all threads).

    **Arguments:**

    - `model`: any network with `vismoe.MoE` layers.

    **Returns** (with `as`): a `Recording`.
    """
    tapes = {name: layer.tape for name, layer in layers_of(model).items()}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with _LOCK:
        for tape in tapes.values():
            tape.open += 1
    recording = Recording(tapes, device)
    try:
        yield recording
    finally:
        recording._close()
        with _LOCK:
            for tape in tapes.values():
                tape.open -= 1
                if not tape.open:
                    tape.newest = None


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside wrappers that compile or parallelise it."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(model, parallel) or hasattr(model, "_orig_mod"):
        inner = model.module if isinstance(model, parallel) else model._orig_mod
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def layers_of(model: nn.Module) -> dict[str, "Recordable"]:
    """Every MoE layer of `model` by name, without the prefixes of wrappers that compile or parallelise it."""
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, Recordable)}


class Recordable(nn.Module):
    """A layer whose routings can be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape()
