"""What test_compile.py checks, in a process of its own: `python tests/moe/compiled_checks.py NAME …` prints JSON, the
error of each check by name. Without the run-time type checks of conftest.py, which break `fullgraph=True`.
"""

import json
import shutil
import sys
import traceback
import warnings
from functools import partial

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import vismoe

DROPLESS = {"k": 2}
DROPPING = {"k": 2, "capacity_factor": 0.6, "capacity_multiple_of": 1}


def make(**options):
    torch.manual_seed(0)
    return vismoe.MoE(vismoe.TopKRouter(8, 4, **options), vismoe.MLPExperts(8, 12, 4))


def batches(number):
    return torch.randn(number, 2, 5, 8, generator=torch.Generator().manual_seed(1))


def step(run, layer, x):
    x = x.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    y = run(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


def same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def buffers(layer):
    return [buffer.clone() for buffer in layer.buffers()]


def full_graph(variants=(DROPPING | {"batch_priority": True},)):
    """One graph without a break, with or without a capacity; outputs, gradients and moved biases are eager's."""
    for options in variants:
        torch._dynamo.reset()
        eager, layer = make(**options), make(**options)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for x in batches(4):
            same(step(compiled, layer, x), step(eager, eager, x), rtol=1e-5, atol=1e-6)
            same(buffers(layer), buffers(eager), rtol=0, atol=1e-6)
        layer.eval(), eager.eval()
        x = batches(1)[0]
        with torch.no_grad():
            same([compiled(x)], [eager(x)], rtol=1e-5, atol=1e-6)


def full_graph_variants():
    """The same without a capacity, in the order of tokens, and without balancing."""
    full_graph((DROPLESS, DROPPING, {"k": 2, "balance": "none"}))


def recompute(variants=((DROPPING, True),)):
    """Checkpointing compiled in, or around a compiled layer: gradients and moved biases are those of eager code
    without recompute, so the recompute chose again what the forward chose and moved nothing."""
    for options, inside in variants:
        torch._dynamo.reset()
        eager, layer = make(**options), make(**options)
        compile = partial(torch.compile, fullgraph=True, backend="aot_eager")
        inner = layer if inside else compile(layer)

        def recomputed(x, inner=inner):
            return checkpoint(inner, x, use_reentrant=False)

        outer = compile(recomputed) if inside else recomputed
        for x in batches(4):
            same(step(outer, layer, x), step(eager, eager, x), rtol=1e-5, atol=1e-6)
            same(buffers(layer), buffers(eager), rtol=0, atol=1e-6)
        assert eager.router.balance_bias.abs().max() > 0.01


def recompute_variants():
    """The same without a capacity, and around a compiled layer."""
    recompute(((DROPPING, False), (DROPLESS, True), (DROPLESS, False)))


def recompute_optimised():
    """The same through the default backend, which decides for itself what backward recomputes."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return
    eager, layer = make(**DROPLESS), make(**DROPLESS)
    compiled = torch.compile(lambda x: x + checkpoint(layer, x, use_reentrant=False), fullgraph=True)
    for x in batches(4):
        same(step(compiled, layer, x), step(lambda x: x + eager(x), eager, x), rtol=1e-5, atol=1e-6)
        same(buffers(layer), buffers(eager), rtol=0, atol=1e-6)
    assert eager.router.balance_bias.abs().max() > 0.01


def recompute_recorded():
    """A record of recomputed, compiled code holds one entry a call, and its loss has eager's gradient."""
    options = {"k": 2, "balance": "loss", "loss_weights": {"importance": 0.1, "z": 0.1}}
    eager, layer = make(**options), make(**options)
    compiled = torch.compile(lambda x: checkpoint(layer, x, use_reentrant=False), backend="aot_eager")
    for x in batches(3):
        for run, model in ((compiled, layer), (eager, eager)):
            model.zero_grad()
            with vismoe.record(model) as routing:
                (run(x).square().sum() + routing.auxiliary_loss).backward()
            assert len(routing.layers[""]) == 1
        gradients = ([parameter.grad for parameter in model.parameters()] for model in (layer, eager))
        same(*gradients, rtol=1e-5, atol=1e-6)


def record():
    """Recording a compiled layer gives eager's values and gradients; no recorded step compiles anew; a compiled
    network's layers keep the names that they have in the network itself."""
    options = {"k": 2, "balance": "loss", "loss_weights": {"importance": 0.1, "z": 0.1}}
    eager, layer = make(**options), make(**options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)

    def recorded(model):
        def run(x):
            with vismoe.record(model) as routing:
                y = model(x)
            calls = routing.layers[""]
            assert len(calls) == 1, calls
            run.seen = [calls[0].load, calls[0].gates, calls[0].plan.count, routing.auxiliary_loss]
            return y + routing.auxiliary_loss

        return run

    ours, theirs = recorded(compiled), recorded(eager)
    for x in batches(12):
        same(step(ours, layer, x), step(theirs, eager, x), rtol=1e-5, atol=1e-6)
        same(ours.seen, theirs.seen, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1, counter.frame_count

    torch._dynamo.reset()
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), make(k=1))
    compiled = torch.compile(network, backend="aot_eager")
    with vismoe.record(compiled) as routing:
        for x in batches(2):
            compiled(x)
    assert {name: len(calls) for name, calls in routing.layers.items()} == {"1": 2}, routing.layers
    assert [call.load.sum().item() for call in routing.layers["1"]] == [10, 10]


def training_compiles_once():
    """Steps that move the bias do not compile anew, and recording now and then compiles once more, not each time."""
    layer = make(k=2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for x in batches(12):
        step(compiled, layer, x)
    assert counter.frame_count == 1, counter.frame_count
    for number, x in enumerate(batches(12)):
        if number % 3:
            step(compiled, layer, x)
        else:
            with vismoe.record(compiled) as routing:
                step(compiled, layer, x)
            assert routing.layers[""][0].load.sum() == 20
    assert counter.frame_count == 2, counter.frame_count


def export():
    """torch.export takes a layer at evaluation; the exported program gives its output for other tokens."""
    for options in (DROPLESS, DROPPING):
        layer = make(**options).eval()
        first, other = batches(2)
        program = torch.export.export(layer, (first,))
        same([program.module()(other)], [layer(other)], rtol=1e-5, atol=1e-6)


CHECKS = (full_graph, recompute, recompute_recorded, record, training_compiles_once, export)
VARIANTS = (full_graph_variants, recompute_variants, recompute_optimised)
"""In .ci/run."""

if __name__ == "__main__":
    warnings.simplefilter("error")
    # torch's own, when parts of its compiler are first imported
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    torch.set_num_threads(1)
    errors = {}
    for check in CHECKS + VARIANTS:
        if check.__name__ not in sys.argv[1:]:
            continue
        torch._dynamo.reset()
        try:
            check()
        except Exception:
            errors[check.__name__] = traceback.format_exc()
    print(json.dumps(errors))
