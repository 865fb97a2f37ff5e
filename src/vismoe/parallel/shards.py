"""Tensors of distributed networks in files: every process writes and reads its own parts, by PyTorch's distributed
checkpoints in safetensors files. Any number of processes reads what any other number wrote."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from vismoe.files.atomic import sync
from vismoe.files.checksums import sha256_of

from .mesh import Mesh

Template = Callable[[str, torch.Size, torch.dtype], Tensor]
"""(name, shape, type) -> the tensor into which the one with this name is read: a whole or a distributed one."""


def write_shards(folder: Path, tensors: Mapping[str, Tensor], mesh: Mesh) -> dict[str, str]:
    """Writes tensors by name. All processes call it, with their parts.

    **Arguments:**

    - `folder`: an empty folder, which all processes see.
    - `tensors`: distributed tensors, and whole ones, which are the same in all processes.
    - `mesh`: the processes.

    **Returns:** in all processes, the SHA-256 of each file by its name.

    **Raises:** OSError, in all processes, if one of them cannot write.
    """
    try:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(dict(tensors), storage_writer=writer, process_group=mesh.group)
    except CheckpointException as error:  # not an Exception
        raise OSError(_text(error)) from error
    own: dict[str, str] = {}
    failed: OSError | None = None
    try:
        for file in folder.glob(f"shard-{mesh.rank + 1:05d}-*.safetensors"):
            sync(file)
            own[file.name] = sha256_of(file)
    except OSError as error:
        failed = error
    found: list[Any] = mesh.gather(failed or own)
    for failure in found:
        if isinstance(failure, OSError):
            raise failure
    return {name: checksum for sums in found for name, checksum in sums.items()}


def read_shards(folder: Path, template: Template) -> dict[str, Tensor]:
    """Reads the tensors of a folder of safetensors files, by `write_shards` or others, into the tensors of a template.
    All processes call it; each reads only what its parts need.

    **Raises:** OSError if a file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # in a single process
            reader = HuggingFaceStorageReader(str(folder))
            entries = reader.read_metadata().state_dict_metadata.items()
            tensors = {
                name: template(name, entry.size, entry.properties.dtype)
                for name, entry in entries
                if isinstance(entry, TensorStorageMetadata)
            }
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        raise OSError(_text(error)) from error
    return tensors


def _text(error: CheckpointException) -> str:
    """The first failure of a process, in one line."""
    rank, (failure, _) = next(iter(error.failures.items()))
    return f"process {rank}: {str(failure).splitlines()[0] if str(failure) else type(failure).__name__}"
