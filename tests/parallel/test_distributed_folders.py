"""pytest tests/parallel/test_distributed_folders.py: model folders of distributed networks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

import vismoe
from vismoe.parallel.gathering import gather_to_main
from vismoe.parallel.sharding import parallelize
from vismoe.weights.folders.tensors import Place, TensorFile

from ..ranks import in_processes
from .equality import batch, pico, processes
from .test_equality import detector, upcycled

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "sparse": pico,
    "soft": partial(pico, router="soft"),
    "low-rank": partial(upcycled, experts="low-rank", rank=2),
    "detector": detector,
}


@contextmanager
def counting(reads: list[int]) -> Iterator[None]:
    """Appends to `reads` the number of bytes of each read of tensors."""
    plain = TensorFile.read_into

    def counted(self: TensorFile, place: Place, memory: memoryview) -> None:
        reads.append(place.nbytes)
        plain(self, place, memory)

    TensorFile.read_into = counted
    try:
        yield
    finally:
        TensorFile.read_into = plain


def work(rank: int, folder: str, size: str, ep: str) -> None:
    with processes(rank, folder, int(size)):
        for name, make in NETWORKS.items():
            save_and_load(rank, int(ep), Path(folder) / name, make)
        scale_without_dimension(rank, Path(folder) / "soft" / "ours" / "model.safetensors")
        loaded = vismoe.load(Path(folder) / "soft" / "ours", ep=int(ep))
        assert loaded.get_parameter("blocks.1.mlp.router.scale").full_tensor().tolist() == [1.0]
        before = pico()
        parallelize(before, int(ep))
        with pytest.raises(ValueError, match="2 label_names for a network of 5 classes"):  # in every process
            vismoe.save(before, Path(folder) / "wrong", label_names=["a", "b"])
        with pytest.raises(ValueError, match="ep=3, replicate=1: 3 must divide the number of processes"):
            vismoe.load(Path(folder) / "sparse" / "ours", ep=3)


def scale_without_dimension(rank: int, file: Path) -> None:
    """Writes a file of soft routing as earlier versions did."""
    if rank == 0:
        state = load_file(file)
        stored = {name: value[0] if name.endswith("router.scale") else value for name, value in state.items()}
        save_file(stored, file, metadata={"format": "pt"})
    dist.barrier()


def save_and_load(rank: int, ep: int, folder: Path, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    alone = make().eval()
    for router in alone.modules():
        if getattr(router, "balance_bias", None) is not None:
            router.balance_bias.normal_()
    if rank == 0:
        vismoe.save(alone, folder / "alone")
    torch.manual_seed(rank)
    model = make()
    model.load_state_dict(alone.state_dict())
    parallelize(model, ep)
    x, _ = batch(2, alone)
    with torch.no_grad():
        expected = alone(x)
        check(model.eval()(x), expected)  # leaves whole parameters in memory
    vismoe.save(model, folder / "ours")
    for file in ("model.safetensors", "config.json"):
        if rank == 0:
            assert (folder / "ours" / file).read_bytes() == (folder / "alone" / file).read_bytes(), file
    with torch.no_grad():
        check(model(x), expected)  # saving has left it as it was

    reads: list[int] = []
    with counting(reads):
        loaded = vismoe.load(folder / "ours", ep=ep)
    whole = sum(tensor.nbytes for tensor in alone.state_dict().values())
    own = sum(parameter.to_local().nbytes for parameter in loaded.parameters())
    own += sum(buffer.nbytes for buffer in loaded.buffers())
    assert sum(reads) <= own, (sum(reads), own, whole)
    assert own <= 1.01 * whole / dist.get_world_size() + 1200  # bytes of buffers, and of parameters that do not divide
    assert not loaded.training
    assert list(loaded.pretrained_cfg["input_size"]) == list(alone.pretrained_cfg["input_size"])
    state = gather_to_main({name: parameter.detach() for name, parameter in loaded.named_parameters()})
    for name, tensor in (state | dict(loaded.named_buffers())).items():
        assert torch.equal(tensor, alone.state_dict(keep_vars=True).get(name, dict(alone.named_buffers()).get(name))), (
            name
        )
    with torch.no_grad():
        check(loaded(x), expected)


def check(found: Any, expected: Any) -> None:
    if isinstance(found, tuple):  # a detector's maps
        found, expected = found[:3], expected[:3]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow  # tests/training/test_processes.py loads the folder of a distributed run
def test_folders_are_those_of_one_process(tmp_path: Path):
    """A distributed network writes the folder of one process, bit for bit, which loads without processes; loaded with
    ep=, each process reads its own parts only, and has the same bits."""
    in_processes(2, work, str(tmp_path), "2", "2")
    for name in NETWORKS:
        loaded = vismoe.load(tmp_path / name / "ours")
        stored = load_file(tmp_path / name / "alone" / "model.safetensors")
        assert all(torch.equal(tensor, stored[key]) for key, tensor in loaded.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("ep", [1, 2, 4])
def test_folders_of_four_processes(ep, tmp_path: Path):
    """The same with experts over 1, 2 and 4 of four processes."""
    in_processes(4, work, str(tmp_path), "4", str(ep))


def test_replicate_without_ep():
    """Options of distribution without it are an error, not ignored."""
    with pytest.raises(ValueError, match="are for a distributed network: give ep= too"):
        vismoe.load("anywhere", static=True)
