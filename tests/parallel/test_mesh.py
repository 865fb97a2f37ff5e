"""pytest tests/parallel/test_mesh.py: what processes tell each other, in two that really are some."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from vismoe import MLPExperts, MoE, TopKRouter
from vismoe.parallel import AXES, Axis, Mesh, join_mesh, resolve_device
from vismoe.parallel.mesh import backend_devices

from ..ranks import in_two_processes

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # The same processes along one axis, and along another one beside an axis of size one.
    two_axes = Mesh(init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "data")), dist.group.WORLD)
    with join_mesh() as mesh:
        results = [seen_by(each, rank) for each in (mesh, two_axes)]
        torch.save(results, f"{folder}/{rank}.pt")
    assert dist.is_initialized()  # a group that is somebody else's is left to them
    dist.destroy_process_group()


def seen_by(mesh: Mesh, rank: int) -> dict:
    """What one process of two gets from everything that a mesh can do."""
    tensors = [torch.full((2,), float(rank)), torch.tensor(rank)]
    mesh.broadcast(tensors)
    model = nn.Sequential(nn.Linear(4, 4), MoE(TopKRouter(4, 2), MLPExperts(4, 8, 2)))
    network = mesh.replicate(model)
    assert isinstance(network, DistributedDataParallel)
    axes = [mesh.axis(name) for name in AXES]
    with pytest.raises(ValueError, match="made by 0"):
        mesh.run_on_main(lambda: (_ for _ in ()).throw(ValueError(f"made by {rank}")))
    return {
        "place": (mesh.rank, mesh.size, mesh.is_main),
        "axes": {axis.name: (axis.rank, axis.size, axis.group is None) for axis in axes},
        "sum": mesh.sum(torch.tensor([1.0, rank])).tolist(),
        "mean": mesh.mean(torch.tensor([1.0, rank])).tolist(),
        "all_reduce_max": mesh.all_reduce_max(15 * rank),
        "broadcast": [tensor.tolist() for tensor in tensors],
        "run_on_main": mesh.run_on_main(lambda: f"made by {rank}"),
        "balanced over": dist.get_process_group_ranks(model[1].router.balance_group),
    }


def test_two_processes(tmp_path: Path):
    """Sums, means, maxima, what the main one has and makes, or fails at; gradients and balancing over both. The same
    whichever named axis the processes lie along; other axes are of size one and have no group."""
    in_two_processes(work, str(tmp_path))
    for rank in (0, 1):
        in_one_axis, in_two_axes = torch.load(tmp_path / f"{rank}.pt")
        alone, both = (0, 1, True), (rank, 2, False)
        assert in_one_axis.pop("axes") == {"replicate": alone, "data": both, "expert": alone}
        assert in_two_axes.pop("axes") == {"replicate": both, "data": alone, "expert": alone}
        for results in (in_one_axis, in_two_axes):
            assert results == {
                "place": (rank, 2, rank == 0),
                "sum": [2.0, 1.0],
                "mean": [1.0, 0.5],
                "all_reduce_max": 15,
                "broadcast": [[0.0, 0.0], 0],
                "run_on_main": "made by 0",
                "balanced over": [0, 1],
            }


def test_one_process_communicates_nothing(monkeypatch):
    """Alone there is no process group, every axis is of size one, and everything is its own argument."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with join_mesh() as mesh:
        assert not dist.is_initialized()
        tensor, model = torch.ones(2), nn.Linear(2, 2)
        assert (mesh.rank, mesh.size, mesh.is_main) == (0, 1, True)
        assert [mesh.axis(name) for name in AXES] == [Axis(name, size=1, rank=0, group=None) for name in AXES]
        assert mesh.sum(tensor) is tensor
        assert mesh.all_reduce_max(3) == 3
        assert mesh.run_on_main(lambda: "mine") == "mine"
        assert mesh.replicate(model) is model
        mesh.broadcast([tensor])
    with pytest.raises(ValueError, match=r"no axis 'world': accepted are replicate, data, expert"):
        mesh.axis("world")


@pytest.fixture
def one_of_four(monkeypatch):
    """The mesh of process 3 of 4, the second on its machine, whose group can only reach CUDA devices, as one of NCCL
    alone; nobody answers."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    dist.init_process_group("cuda:fake", store=dist.HashStore(), rank=3, world_size=4)
    with join_mesh() as mesh:
        yield mesh
    dist.destroy_process_group()


@pytest.mark.parametrize(("name", "expected"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")])
def test_a_device_of_its_own(one_of_four, name, expected):
    """Of several devices of a machine each process takes its own, unless one was named."""
    assert one_of_four.device(torch.device(name)) == torch.device(expected)
    assert Mesh().device(torch.device(name)) == torch.device(name)


def test_a_group_that_reaches_no_cpu(one_of_four, monkeypatch):
    """A sum, a maximum and a broadcast of tensors on the CPU go by way of this process's own device where NCCL is the
    group's only backend, and come back to the CPU."""
    sent, plain = [], torch.Tensor.to

    def moved(tensor, where, copy=False):  # there is no such device here: what would be moved stays
        sent.append(str(where))
        return plain(tensor, "cpu", copy=copy)

    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *arguments, **options: sent.append("all_reduce"))
    monkeypatch.setattr(dist, "broadcast", lambda tensor, *arguments, **options: sent.append("broadcast"))
    one_of_four.sum(torch.ones(2))
    assert sent == ["cuda:1", "all_reduce", "cpu"]
    sent.clear()
    one_of_four.broadcast([torch.ones(2)])
    assert sent == ["cuda:1", "broadcast"]
    made = []
    monkeypatch.setattr(torch, "tensor", lambda number, device: made.append(str(device)) or torch.ones(()))
    one_of_four.all_reduce_max(1)
    assert made == ["cuda:1"]


@pytest.mark.parametrize(
    ("backend", "kinds"), [("gloo", ["cpu", "cuda"]), ("nccl", ["cuda"]), ("cpu:gloo,cuda:nccl", ["cpu", "cuda"])]
)
def test_devices_of_a_backend(backend, kinds):
    """What a group can send is what PyTorch's own table says of its backends."""
    from torch.distributed.distributed_c10d import BackendConfig

    assert backend_devices(str(BackendConfig(backend))) == kinds


def test_torchrun_s_variables_alone_start_a_group(monkeypatch):
    """A batch system that sets WORLD_SIZE=1, as for a single process, starts none."""
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "1")
    monkeypatch.setitem(os.environ, "RANK", "0")
    with join_mesh() as mesh:
        assert mesh.size == 1
        assert not dist.is_initialized()


def test_a_device_that_is_not_here():
    """The error names what was asked for and what there is."""
    with pytest.raises(ValueError, match=r"device 'tpu' is not available; accepted are auto, .*cpu"):
        resolve_device("tpu")
