"""pytest tests/test_data_parallel.py: anybody's loop under plain DistributedDataParallel, in two processes."""

import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import vismoe  # noqa: F401  registers the presets with timm

from .ranks import in_two_processes

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)
STEPS, SIZE = 40, 32


def batches(rank: int, ranks: int):
    """This process's half of batches that both draw alike."""
    loaded = load_digits()
    images, labels = torch.tensor(loaded.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(loaded.target)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = torch.randint(len(labels), (SIZE,), generator=generator)[rank::ranks]
        yield images[batch], labels[batch]


def train(rank: int, ranks: int, summed: bool) -> torch.nn.Module:
    """A loop that knows nothing of experts."""
    torch.manual_seed(rank)  # the processes begin apart: DistributedDataParallel makes them alike
    model = timm.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=10, in_chans=1, embed_dim=32)
    if summed:
        for block in model.blocks[1::2]:
            block.mlp.router.balance_group = dist.group.WORLD
    network = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for images, labels in batches(rank, ranks):
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for summed in (False, True):
        torch.save(train(rank, 2, summed).state_dict(), f"{folder}/{rank}-{summed}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_weights_and_biases_stay_equal(tmp_path: Path):
    """After forty steps both processes have the same bits, biases that moved among them: with plain buffers, which
    follow the first process's counts, and with counts summed over both, which give what one process gives on the whole
    batches."""
    in_two_processes(work, str(tmp_path))
    found = {}
    for summed in (False, True):
        first, second = (torch.load(tmp_path / f"{rank}-{summed}.pt") for rank in (0, 1))
        biases = [name for name in first if name.endswith("balance_bias")]
        assert len(biases) == 2
        assert all(first[name].abs().max() > 0.05 for name in biases)
        for name in first:
            if summed or not name.endswith("balance_count"):  # counts not yet used are each process's own
                assert torch.equal(first[name], second[name]), name
        found[summed] = {name: first[name] for name in biases}
    alone = train(0, 1, summed=False).state_dict()
    for name, bias in found[True].items():
        torch.testing.assert_close(bias, alone[name], rtol=0.05, atol=0.05)
        assert not torch.equal(bias, found[False][name])
