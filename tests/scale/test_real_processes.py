"""pytest tests/scale/test_real_processes.py: an estimate beside what real processes keep and send in a step."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from vismoe.scale import Layout, estimate

from ..ranks import in_processes
from .counted import POLICY, work

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)
PICO = "vmoe_pico_patch2_8_every2_e8"


def case(
    ep: int, batch: int = 8, replicate: int = 1, static: bool = False, mixed=False, recompute=False, **overrides
) -> dict[str, Any]:
    options = {"ep": ep, "replicate": replicate, "static": static}
    return {
        "preset": PICO,
        "batch": batch,
        "overrides": overrides,
        "options": options,
        "mixed": mixed,
        "recompute": recompute,
    }


def estimated(case: dict[str, Any], devices: int) -> Layout:
    options = dict(case["options"])
    ep = options.pop("ep")
    policy = POLICY if case["mixed"] else None
    found = estimate(
        case["preset"],
        devices,
        case["batch"],
        recompute=case["recompute"],
        mixed_precision=policy,
        **options,
        **case["overrides"],
    )
    (layout,) = [layout for layout in found.layouts if layout.ep == ep]
    assert layout.dp == devices // ep
    return layout


def check(folder: Path, devices: int, cases: list[dict[str, Any]]) -> None:
    """All that is exact is exact; the rows of the ragged exchange are, on the mean of all processes, within 1 %."""
    in_processes(devices, work, str(folder), str(devices), json.dumps(cases))
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(devices)]
    for number, one in enumerate(cases):
        layout, found = estimated(one, devices), [rank[number] for rank in ranks]
        model_buffers = layout.memory.parameters - found[0]["parameters"]
        assert 0 <= model_buffers <= 1024, one  # balancing biases and counts
        for name in ("gradients", "optimizer"):
            assert getattr(layout.memory, name) == found[0][name] == max(rank[name] for rank in found), (name, one)
        for rank in found:
            assert layout.traffic.parameters == rank["sent"]["parameters"], one
            assert layout.traffic.gradients == rank["sent"]["gradients"], one
            assert layout.traffic.balancing == rank["sent"]["balancing"], one
        sent = sum(rank["sent"]["exchange"] for rank in found) / devices
        exact = one["options"]["static"] or one["options"]["ep"] == 1
        assert sum(layout.traffic.exchange.values()) == pytest.approx(sent, rel=0 if exact else 0.01), one


def test_two_processes(tmp_path: Path):
    """Memory of parameters, gradients and AdamW, and all traffic of a step: FSDP2 alone; both exchanges, also with two
    experts a token, a capacity, bfloat16 and recompute."""
    check(
        tmp_path,
        2,
        [
            case(1),
            case(2, batch=256, experts_per_token=2),
            case(2, static=True, capacity_factor=1.5, recompute=True),
            case(2, batch=256, mixed=True, bfloat16_exchange=True),
        ],
    )


@pytest.mark.slow
def test_four_processes(tmp_path: Path):
    """The same where both axes are longer than one, with copies, and with fewer experts than processes."""
    cases = [case(ep, batch=256) for ep in (1, 2, 4)]
    cases += [case(2, replicate=2, static=True), case(1, replicate=4), case(2, static=True, num_experts=2)]
    cases += [case(2, static=True, mixed=True, recompute=True, shared=True, moe_layers="1,2,3")]
    check(tmp_path, 4, cases)
