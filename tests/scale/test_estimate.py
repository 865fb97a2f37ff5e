"""pytest tests/scale/test_estimate.py: what an estimate adds up, beside closed forms, tensors on a real device and
PyTorch's own sharding."""

import json
import math
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import vismoe
from vismoe.cli import main
from vismoe.files.amounts import as_text, parse_bytes
from vismoe.moe.execution.products import loop
from vismoe.scale import estimate
from vismoe.scale.profile import _FusedAttention, profile
from vismoe.scale.shards import groups, placements
from vismoe.vit import using_backend

from .counted import POLICY

PICO = "vmoe_pico_patch2_8_every2_e8"
TRILLION = {"embed_dim": 8192, "depth": 64, "num_experts": 64}
"""Width, depth and number of experts of GLaM (Du et al. 2022)."""


def on_meta(**overrides) -> nn.Module:
    with torch.device("meta"):
        return vismoe.create_model(PICO, **overrides)


@pytest.fixture
def sixty_four() -> Iterator[None]:
    """This process believes to be one of 64; nobody answers."""
    dist.init_process_group("cpu:fake", store=dist.HashStore(), rank=0, world_size=64)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("overrides", "mixed"), [({}, False), ({"num_experts": 6, "num_classes": 10, "moe_layers": "1,2,3"}, True)]
)
def test_shards_are_those_of_parallelize(sixty_four, overrides, mixed):
    """The formulas of the sharding plan give what `vismoe.parallelize` leaves to a process of 64: bytes with padding,
    for every number of processes that share experts, and for several copies; in as many groups as FSDP2 has."""
    policy = POLICY if mixed else None
    for replicate in (1, 16):
        for placement in placements(on_meta(**overrides), 64, replicate):
            expected = groups(on_meta(**overrides), placement, policy)
            model = on_meta(**overrides)
            vismoe.parallelize(model, placement.ep, replicate, mixed_precision=policy)
            stored = sum(parameter.to_local().untyped_storage().nbytes() for parameter in model.parameters())
            assert sum(group.stored for group in expected) == stored, placement
            states = [
                module._get_fsdp_state() for module in model.modules() if isinstance(module, dist.fsdp.FSDPModule)
            ]
            made = sum(len(state._fsdp_param_groups) for state in states)
            assert len([group for group in expected if group.shards]) == made, placement


def test_a_distributed_network_is_refused(sixty_four):
    """Its parameters are parts already."""
    with pytest.raises(ValueError, match="distributed already"):
        estimate(vismoe.parallelize(on_meta(), 2), 64)


def test_a_large_network_is_divided_evenly():
    """Of the 14.7 B preset each of 64 devices has a 64th, within 1 %, whatever the layout."""
    with torch.device("meta"):
        model = vismoe.create_model("vmoe_15b_every2_e32")
    share = sum(parameter.nbytes for parameter in model.parameters()) / 64
    for placement in placements(model, 64):
        assert sum(group.stored for group in groups(model, placement, None)) == pytest.approx(share, rel=0.01)
    assert [placement.ep for placement in placements(model, 64)] == [1, 2, 4, 8, 16, 32]


def test_activations_of_an_mlp():
    """By hand: each linear layer keeps its input, GELU its own."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 5))
    assert profile(model, 7, (3, 2, 2), False, None).saved == 4 * 7 * (12 + 40 + 40)
    assert profile(model, 7, (3, 2, 2), False, torch.bfloat16).saved == 2 * 7 * (12 + 40 + 40)
    assert all(parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("options", [{}, {"experts_per_token": 2, "shared": True}, {"router": "soft"}])
def test_activations_are_those_of_a_real_device(options):
    """What autograd keeps on the meta device is what it keeps on a CPU, where attention is fused too."""
    model = vismoe.create_model(PICO, **options)
    model.eval()
    modes = [module.training for module in model.modules()]
    counted = profile(model, 16, (3, 8, 8), False, None)
    assert [module.training for module in model.modules()] == modes
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), using_backend(model, loop):
        model(torch.randn(16, 3, 8, 8))
    real = sum(storage.nbytes() for number, storage in kept.items() if number not in weights)
    assert counted.saved == pytest.approx(real, rel=0.02)
    assert counted.recomputed < counted.saved / 2


def test_fused_attention_keeps_no_matrix():
    """The operator that stands for an accelerator's kernel: queries, keys, values, answers, one number per query."""
    shapes = []
    tensors = [torch.empty(2, 3, 50, 8, device="meta", requires_grad=True) for _ in range(3)]
    with (
        _FusedAttention(),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: shapes.append(tensor.shape), lambda tensor: tensor),
    ):
        F.scaled_dot_product_attention(*tensors, dropout_p=0.1)
    assert sorted(map(tuple, shapes)) == [(2, 3, 50)] + 4 * [(2, 3, 50, 8)]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 16 * 17),
        ({"experts_per_token": 2}, 2 * 16 * 17),
        ({"capacity_factor": 0.5}, 8 * 20),
        ({"router": "soft", "slots_per_expert": 3}, 16 * 8 * 3),
        ({"router": "expert-choice", "capacity_factor": 1.0}, 16 * 8 * 4),
        ({"router": "image"}, 16 * 17),
        ({"ensemble_size": 2}, 2 * 16 * 17),
    ],
)
def test_rows_by_hand(options, rows):
    """The rows that 16 images of 17 tokens give to 8 experts, for kinds of routers; and what is sent of them: 7/8, to
    an expert and back, forward and backward, of 64 numbers each."""
    found = estimate(PICO, 8, 16, **options)
    counts = 7 / 8 * 8 * 8
    for sent in found.layouts[-1].traffic.exchange.values():
        assert sent == 7 / 8 * 4 * rows * 64 * 4 + counts
    if not options:
        static = estimate(PICO, 8, 16, static=True).layouts[-1].traffic.exchange.values()
        assert set(static) == {7 / 8 * 4 * 8 * rows * 64 * 4}  # without a capacity, space for all tokens


def test_what_stops_a_layout():
    """Those that do not fit are stopped by memory; of the others, the one that sends least is the best."""
    layouts = estimate(PICO, 16).layouts
    assert [(layout.dp, layout.ep) for layout in layouts] == [(16, 1), (8, 2), (4, 4), (2, 8)]
    needed = sorted(layout.memory.total for layout in layouts)
    found = estimate(PICO, 16, memory=needed[1])
    assert sorted(layout.memory.total for layout in found.layouts if layout.stopped_by != "memory") == needed[:2]
    assert found.best is not None
    for layout in found.layouts:
        if layout.stopped_by == "traffic":
            assert layout.traffic.total > found.best.traffic.total
    assert estimate(PICO, 16, memory=needed[0] - 1).best is None
    alone = estimate(PICO, 1).layouts
    assert [layout.traffic.total for layout in alone] == [0]


def test_the_largest_batch_fits():
    """As many images as an estimate says fill a device, within the rounding of capacities."""
    largest = estimate(PICO, 4, memory="8MiB", capacity_factor=1.5).layouts[-1].largest_batch
    assert estimate(PICO, 4, largest, capacity_factor=1.5).layouts[-1].memory.total == pytest.approx(2**23, rel=0.05)
    assert largest > 8


def test_states_and_recompute():
    """An optimiser without states needs none; recompute sends rows once more, and keeps less."""
    plain = estimate(PICO, 2).layouts[-1]
    other = estimate(PICO, 2, recompute=True, optimizer_states=0).layouts[-1]
    assert (plain.memory.optimizer, other.memory.optimizer) == (2 * plain.memory.gradients, 0)
    assert other.memory.activations < plain.memory.activations / 2
    assert sum(other.traffic.exchange.values()) == 1.5 * sum(plain.traffic.exchange.values()) + 2 * 0.5 * 8 * 8 * 0.5
    assert other.traffic.parameters == plain.traffic.parameters


def test_amounts():
    """As text and back."""
    assert parse_bytes("80GiB", "memory") == 80 * 2**30
    assert parse_bytes("1.5 GB", "memory") == 1.5e9
    assert [as_text(amount) for amount in (12, 2**20, 1.5 * 2**40)] == ["12 B", "1.00 MiB", "1.50 TiB"]


def test_command(capsys):
    """Tables and JSON have the same figures, of one layout per number of devices that share experts."""
    options = ["estimate", PICO, "--devices", "4", "--batch", "2", "--dtype", "bfloat16", "--static"]
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["dp"], row["ep"]) for row in found["layouts"]] == [(4, 1), (2, 2), (1, 4)]
    assert main(options) == 0
    text = capsys.readouterr().out
    best = found["layouts"][found["best"]]
    assert f"Best: dp {best['dp']}, ep {best['ep']}: {as_text(best['memory']['total'])} of 80.00 GiB" in text
    for row in found["layouts"]:
        assert as_text(row["memory"]["activations"]) in text
        assert as_text(row["traffic"]["total"]) in text
    assert main([*options, "--memory", "100KB"]) == 0
    assert "No layout fits into 97.66 KiB: the smallest takes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--devices", "0"], "devices=0: accepted are whole numbers from 1 to 16,777,216"),
        (["--devices", "4", "--batch", "99999999999999999999"], "accepted are whole numbers from 1 to 16,777,216"),
        (["--devices", "4", "--width", "0"], "width=0"),
        (["--devices", "4", "--width", "65"], f"{PICO} cannot be built with embed_dim=65: "),
        (["--devices", "4", "--depth", "-1"], "depth=-1"),
        (["--devices", "4", "--batch", "0"], "batch=0"),
        (["--devices", "4", "--memory", "much"], "memory='much': accepted are a number of bytes"),
        (["--devices", "4", "--replicate", "3"], "replicate=3: 3 must divide the number of processes, which is 4"),
        (["--devices", "4", "--optimizer-states", "-1"], "optimizer_states=-1"),
        (["--devices", "4", "--experts", "0"], "num_experts"),
    ],
)
def test_bad_input(options, says, capsys):
    """One line that says what is accepted, and exit code 2."""
    assert main(["estimate", PICO, *options]) == 2
    assert says in capsys.readouterr().err


def test_overrides_of_a_network():
    """A network has been built already."""
    with pytest.raises(ValueError, match="depth: accepted only with the name of a preset"):
        estimate(on_meta(), 4, depth=2)
    network = on_meta()
    network.scale = nn.Parameter(torch.ones((), device="meta"))
    with pytest.raises(ValueError, match=r"scale: parameters of shape \(\) cannot be sharded"):
        estimate(network, 4)


@pytest.mark.slow
def test_large_networks_in_a_minute():
    """In a minute each: the 14.7 B preset on 64 devices; and one of a trillion parameters, which fits 1,024, not 64."""
    start = time.process_time()
    found = estimate("vmoe_15b_every2_e32", 64, 4, mixed_precision=POLICY)
    assert time.process_time() - start < 60
    assert found.best is not None
    assert math.isclose(found.parameters, 14.7e9, rel_tol=0.01)
    start = time.process_time()
    small = estimate("vmoe_h14_every2_e32", 64, 4, mixed_precision=POLICY, recompute=True, **TRILLION)
    assert time.process_time() - start < 60
    assert small.best is None
    assert small.parameters > 1e12
    assert estimate("vmoe_h14_every2_e32", 1024, 4, mixed_precision=POLICY, recompute=True, **TRILLION).best is not None
