"""Checkpoints: folders that are written atomically and read only if their checksums match.

RUN/checkpoints/step-000030/tensors.safetensors   every tensor of the state, by name
                            state.json            all other values of the state, by name
                            manifest.json         SHA-256 of both, and of itself

Of a distributed network, every process writes a file of its parts instead, shard-….safetensors.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vismoe.files.atomic import sync
from vismoe.files.checksums import sha256_of
from vismoe.parallel import Mesh

TENSORS, VALUES, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
SHARD = r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"
FORMAT_VERSION = 4
"""Format 4 is the current one. Format 3 has all tensors in one file. Formats 1 and 2 have numbers instead of names for
the parameters in the optimiser's state, and save only its tensors. Format 1 has best_top1 instead of best_score."""


Template = Callable[[str, torch.Size, torch.dtype], Tensor]


class DamagedCheckpointError(ValueError):
    """A checkpoint's file is damaged: its checksum does not match."""


class Checkpointer:
    """Writes and reads the checkpoints of one run.

    A state maps names to tensors and JSON values. All processes of a run call every method. The main process writes,
    and every process reads the whole state; tensors that are distributed are written and read by all, each its parts.

    As a context manager it waits at the end for what is being written.

    **Arguments:**

    - `folder`: path of RUN/checkpoints; created at the first `save`.
    - `keep`: number of recent checkpoints to keep; default 3.
    - `mesh`: the processes of the run; default: this process alone.
    - `warn`: called in the main process with a line of text for each damaged checkpoint that is skipped; default: no
      call.
    - `asynchronous`: whether `save` returns when it has copied the state to the CPU's memory, and a thread writes the
      copy; default False. An error in writing is then raised by the next `save`, `load` or `wait`.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 3,
        mesh: Mesh | None = None,
        warn: Callable[[str], None] | None = None,
        asynchronous: bool = False,
    ):
        self.folder, self.keep, self.warn = folder, keep, warn
        self.mesh = self._writers = Mesh() if mesh is None else mesh
        self._thread = ThreadPoolExecutor(1) if asynchronous else None
        self._written: Future[None] | None = None
        if asynchronous and self.mesh.size > 1:  # the training communicates meanwhile
            group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
            self._writers = replace(self.mesh, group=group)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except OSError as error:
            if kind is None:
                raise
            if self.warn is not None and self.mesh.is_main:
                self.warn(str(error))  # beside the error that ends the training

    def save(self, step: int, state: Mapping[str, Any], best_step: int | None = None) -> None:
        """Writes a checkpoint atomically, then removes old ones.

        Kept are the newest `keep` checkpoints up to this step, and that of `best_step`. Checkpoints of later steps,
        from before the run went back, are removed.

        **Arguments:**

        - `step`: number of the step.
        - `state`: tensors and JSON values by name.
        - `best_step`: step of the best evaluation; default None: there is none.

        **Raises:** OSError if the checkpoint cannot be written (disk full, …); ValueError, with its name, for a value
        that JSON cannot store. In both cases earlier checkpoints are unchanged.
        """
        self.wait()
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        values = {name: value for name, value in state.items() if name not in tensors}
        for name, value in values.items():
            _check_value(name, value)
        if not self.mesh.is_main and not _are_distributed(tensors):
            return
        if self._thread is None:
            self._write_all(step, tensors, values, best_step)
        else:
            self._written = self._thread.submit(self._write_all, step, _copied(tensors), values, best_step)

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is complete.

        **Raises:** OSError if it could not be written.
        """
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def newest(self, template: Template | None = None) -> dict[str, Any] | None:
        """The state of the newest undamaged checkpoint; None if there is none. `template`: as for `load`.

        **Raises:** ValueError for a checkpoint of a newer version of vismoe.
        """
        steps = self.steps()
        for number, step in reversed([*enumerate(steps)]):
            try:
                return self.load(step, template)
            except DamagedCheckpointError as error:
                if self.warn is not None and self.mesh.is_main:
                    then = "using the previous checkpoint" if number else "there is no earlier one: starting at step 0"
                    self.warn(f"{error}; {then}")
        return None

    def load(self, step: int, template: Template | None = None) -> dict[str, Any]:
        """The state in the checkpoint of a step, after its checksums are verified. In older formats, the optimiser
        state has `#NUMBER` in place of a parameter's name.

        **Arguments:**

        - `step`: number of the step.
        - `template`: (name, shape, type) -> the tensor, whole or distributed, into which the checkpoint's is read;
          default None: whole tensors.

        **Raises:** DamagedCheckpointError with the name of the damaged file; ValueError for a checkpoint of a newer
        version of vismoe, and with `template` for one of formats 1 and 2.
        """
        self.wait()
        path = self._path(step)
        version, sums = _read_manifest(path / MANIFEST)
        self._verify(path, sums)
        values: dict[str, Any] = json.loads((path / VALUES).read_text())
        if template is not None and version < 3:
            raise ValueError(
                f"{path} has format {version}, which a distributed network cannot resume from: resume in one process "
                "without expert_parallel, until the next checkpoint"
            )
        if template is None and TENSORS in sums:
            tensors = load_file(path / TENSORS)
        else:
            from vismoe.parallel.shards import read_shards  # it imports much of PyTorch

            tensors = read_shards(path, template or (lambda name, shape, dtype: torch.empty(shape, dtype=dtype)))
        return {_current_name(name, version): value for name, value in (tensors | values).items()}

    def _verify(self, path: Path, sums: Mapping[str, str]) -> None:
        """Raises DamagedCheckpointError if a file does not have its checksum. Each process reads its share of files."""
        names = sorted(sums)
        damaged = 0
        for number, name in enumerate(names):
            if number % self.mesh.size == self.mesh.rank and not _has_checksum(path / name, sums[name]):
                damaged = max(damaged, number + 1)
        if damaged := self.mesh.all_reduce_max(damaged):
            raise _damaged(path / names[damaged - 1])

    def steps(self) -> list[int]:
        """Steps with a checkpoint, damaged or not, in ascending order. Files with other names are ignored."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d{6,}", name))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _write_all(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any], best_step: int | None) -> None:
        """Writes a checkpoint, then removes old ones; called in the processes that have something to write."""
        if _are_distributed(tensors):
            self._write_shards(step, tensors, values)
        else:
            self._write(step, tensors, values)
        if self.mesh.is_main:
            self._remove_old(step, best_step)

    def _write(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Writes whole tensors; called in the main process."""
        path, aside = self._path(step), self._aside(step)
        try:
            self._begin(step)
            save_file(_storable(tensors), aside / TENSORS)
            sync(aside / TENSORS)
            self._finish(step, {TENSORS: sha256_of(aside / TENSORS)}, values)
        except SafetensorError as error:  # save_file raises it if the disk is full
            raise OSError(f"{path} could not be written: {error}") from error
        except OSError as error:
            raise OSError(error.errno, f"{path} could not be written: {error.strerror}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _write_shards(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Writes distributed tensors: all processes their parts, then the main process the rest. An error in one
        process is raised in all."""
        from vismoe.parallel.shards import write_shards  # it imports much of PyTorch

        try:
            aside = self._writers.run_on_main(lambda: self._begin(step))
            sums = write_shards(aside, tensors, self._writers)
            self._writers.run_on_main(lambda: self._finish(step, sums, values))
        except OSError as error:
            text = f"{self._path(step)} could not be written: {error.strerror or error}"
            raise (OSError(text) if error.errno is None else OSError(error.errno, text)) from error
        finally:
            if self.mesh.is_main:
                shutil.rmtree(self._aside(step), ignore_errors=True)

    def _aside(self, step: int) -> Path:
        return self.folder / f".step-{step:06d}.new"

    def _begin(self, step: int) -> Path:
        """Makes the folder that becomes the checkpoint of a step."""
        aside = self._aside(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        return aside

    def _finish(self, step: int, sums: dict[str, str], values: dict[str, Any]) -> None:
        """Writes the values and the manifest beside the tensors' files, which have these checksums, and makes the
        folder the checkpoint."""
        path, aside = self._path(step), self._aside(step)
        (aside / VALUES).write_text(json.dumps(values, indent=1))
        (aside / MANIFEST).write_bytes(_manifest(sums | {VALUES: sha256_of(aside / VALUES)}))
        for file in (aside / VALUES, aside / MANIFEST, aside):
            sync(file)
        _remove(path)
        aside.rename(path)
        sync(self.folder)

    def _remove_old(self, step: int, best_step: int | None) -> None:
        steps = self.steps()
        kept = {best_step, *[earlier for earlier in steps if earlier <= step][-self.keep :]}
        for candidate in steps:
            if candidate not in kept:
                _remove(self._path(candidate))


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors for a safetensors file: on the CPU, contiguous, each with its own storage. Tensors that share a storage
    are copied."""
    storable, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        storable[name] = tensor
    return storable


def _are_distributed(tensors: Mapping[str, Tensor]) -> bool:
    return any(hasattr(tensor, "device_mesh") for tensor in tensors.values())


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, whole or distributed ones, in the CPU's memory."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions  # it imports much of PyTorch

    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        return cast(dict[str, Tensor], stager.stage(tensors))
    finally:
        stager.close()


def _has_checksum(path: Path, expected: str) -> bool:
    try:
        return sha256_of(path) == expected
    except OSError:
        return False


def _check_value(name: str, value: Any) -> None:
    """Raises ValueError, with the value's name, for a value that JSON does not restore unchanged."""
    if isinstance(value, list):
        for number, element in enumerate(value):
            _check_value(f"{name}[{number}]", element)
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, element in value.items():
            _check_value(f"{name}[{key!r}]", element)
    elif not (value is None or isinstance(value, str | int | float)):
        kind = "dict whose keys are not all strings" if isinstance(value, dict) else type(value).__name__
        raise ValueError(
            f"{name} is a {kind}, which a checkpoint cannot hold: accepted are tensors (one name each), numbers, "
            "strings, True, False, None, lists and dictionaries of these; use another optimizer"
        )


def _current_name(name: str, version: int) -> str:
    """The current name of an entry in a checkpoint of an older format."""
    if version == 1 and name == "best_top1":
        return "best_score"
    return re.sub(r"^optimizer\.", "optimizer.#", name) if version < 3 else name


def _read_manifest(path: Path) -> tuple[int, dict[str, str]]:
    """The format and the checksums in a manifest.

    **Raises:** DamagedCheckpointError for a damaged manifest; ValueError for one of a newer version of vismoe.
    """
    try:
        text = path.read_bytes()
        content = json.loads(text)
        version, sums = content["format"], content["files"]
        if type(version) is not int or text != _manifest(sums, version) or not _are_files(sums):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path.parent} has format {version}: this version of vismoe reads formats 1 to {FORMAT_VERSION}; "
            "update vismoe"
        )
    return version, sums


def _are_files(names: Mapping[str, str]) -> bool:
    """Whether a manifest names the values, and files of tensors."""
    tensors = set(names) - {VALUES}
    shards = bool(tensors) and all(re.fullmatch(SHARD, name) for name in tensors)
    return VALUES in names and (shards or tensors == {TENSORS})


def _manifest(sums: dict[str, str], version: int = FORMAT_VERSION) -> bytes:
    """The text of the manifest with these checksums. A manifest with any other text is damaged."""
    covered = sums if version < 3 else {"files": sums, "format": version}
    checksum = hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()
    content = {"format": version, "files": sums, "sha256": checksum}
    return json.dumps(content, sort_keys=True, indent=1).encode()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _damaged(path: Path) -> DamagedCheckpointError:
    what = "damaged" if path.exists() else "missing"
    return DamagedCheckpointError(f"checkpoints/{path.parent.name}/{path.name} is {what}")
