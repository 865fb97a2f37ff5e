"""The run folder of one training."""

import hashlib
import importlib.metadata
import json
import math
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vismoe.data import Data, Unreadable, without_files
from vismoe.files import readable, write_text
from vismoe.files.renamed import renamed_method
from vismoe.weights import load_network

from .recipe import Recipe
from .schedule import learning_rate

LOCK = ".lock"
OPTIONS, INITIAL, SPLIT = "finetune.json", "initial", "split.json"
"""Additional files of a `finetune` run: its options, its initial network, and the split of each image file."""
MAY_DIFFER = (
    "name",
    "workers",
    "device",
    "expert_parallel",
    "hang_timeout",
    "checkpoint_every",
    "keep_checkpoints",
    "async_checkpoints",
    "max_unreadable",
    "track",
)
"""Recipe fields that may change when a run is resumed: they do not change its result, except for rounding (device,
expert_parallel)."""
LENGTH = ("steps", "cooldown_steps")
"""Recipe fields that may change if the steps already done would have been the same."""

RECIPE, ENVIRONMENT, DATA, METRICS, SUMMARY, MODEL, CHECKPOINTS = (
    "recipe.json",
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "summary.json",
    "model",
    "checkpoints",
)
ASIDE = re.compile(rf"\.({INITIAL}|{MODEL})\.[0-9a-f]{{32}}\.(new|old)")
"""Temporary names of a model folder while it is written."""


@dataclass(frozen=True)
class Run:
    """A run folder.

    Its files are `recipe.json`, `environment.json`, `data.json` (the data set and the files left out), `metrics.jsonl`,
    `summary.json`, plots, and `model/`.

    - `path`: the folder.
    - `writes`: whether this process writes to the folder; with several processes only one does. Default True.
    """

    path: Path
    writes: bool = True

    @staticmethod
    def check_free(path: Path) -> None:
        """Raises FileExistsError if the path exists. Accepted are an empty folder, and a folder that has only files of
        a run that was killed at its start."""
        hidden = {f".{name}" for name in (ENVIRONMENT, DATA, RECIPE, OPTIONS)}
        leftovers = {ENVIRONMENT, DATA, LOCK, OPTIONS, INITIAL} | hidden
        names = {file.name for file in path.iterdir() if not ASIDE.fullmatch(file.name)} if path.is_dir() else set()
        if path.exists() and (not path.is_dir() or names - leftovers):
            hint = "; it is a run: --resume auto continues it" if (path / RECIPE).is_file() else ""
            raise FileExistsError(f"{path} exists: choose another --out, or remove it{hint}")

    @staticmethod
    def create(path: Path, recipe: Recipe, data: Data) -> "Run":
        """Creates a run folder.

        **Raises:** FileExistsError as `check_free`.
        """
        Run.check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        run = Run(path)
        run.write(ENVIRONMENT, environment())
        run.write(DATA, describe(data) | {"sizes": digest_of_sizes(data)})
        run.write(RECIPE, recipe.to_json())  # written last: a folder that has it is a run
        return run

    @staticmethod
    def reopen(path: Path, recipe: Recipe, data: Data, done: int = 0) -> "Run":
        """Opens a run to resume it.

        **Arguments:**

        - `path`: the run folder.
        - `recipe`: the recipe. Its `steps` and `cooldown_steps` may have changed if the steps already done would have
          been the same.
        - `data`: the data set.
        - `done`: number of steps already done; default 0.

        **Raises:** ValueError if a recipe field that changes the result is different, or the data set has changed.
        """
        run = Run(path)
        new, old = recipe.to_json(), run.recipe.to_json()
        changed = [name for name in new if new[name] != old[name] and name not in MAY_DIFFER]
        if done and changed and set(changed) <= set(LENGTH):
            _check_length(path, run.recipe, recipe, done)
        elif changed:
            differences = ", ".join(f"{name}={old[name]} before, {new[name]} now" for name in changed)
            raise ValueError(
                f"{path} was started with another recipe ({differences}): resume it with that recipe, or choose "
                "another --out"
            )
        data = without_files(data, run.left_out)
        current, recorded = describe(data), run.data
        if current["digest"] != recorded["digest"]:
            count = ("{training_images} training and {held_out_images} validation images").format
            raise ValueError(
                f"{data.name} has changed since {path} was started: {count(**recorded)} then, {count(**current)} now; "
                "file names, labels, or the split, which depends on the images' contents, are others; restore it, or "
                "choose another --out"
            )
        if recorded.get("sizes") not in (None, digest_of_sizes(data)):  # None: earlier versions did not record it
            raise ValueError(
                f"images of {data.name} have changed since {path} was started: their files have other sizes in bytes; "
                "restore them, or choose another --out"
            )
        return run

    def update_length(self, recipe: Recipe) -> None:
        """Writes the recipe if the length of the run has changed. The summary of the shorter run is removed, as the run
        is not finished any more; its model stays until the end."""
        if self.writes:
            old, new = self.recipe.to_json(), recipe.to_json()
            if any(old[name] != new[name] for name in LENGTH):
                (self.path / SUMMARY).unlink(missing_ok=True)
                self.write(RECIPE, new)

    @property
    def left_out(self) -> list[Unreadable]:
        """Files of the data set that are left out of the run."""
        return [Unreadable(readable(entry["file"]), entry["reason"]) for entry in self.data["unreadable"]]

    @property
    def moved(self) -> tuple[str, ...]:
        """Files that were moved between the splits to keep copies in one split (see `Data.moved`). Empty in runs of
        versions that did not search for copies."""
        return tuple(map(readable, self.data.get("moved", ())))

    @property
    def data(self) -> dict[str, Any]:
        """The data set, as `describe` returns it.

        **Raises:** ValueError if `data.json` is damaged.
        """
        try:
            description = self.read(DATA)
            if {"digest", "unreadable"} <= description.keys():
                return description
        except (OSError, ValueError, AttributeError):
            pass
        raise ValueError(f"{self.path / DATA} is damaged: it does not describe the data set; start a new run")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Context manager: in the block no other process on this machine can write to the run folder.

        **Raises:** FileExistsError if another process is writing to it.
        """
        with (self.path / LOCK).open("a") as file:
            if self.writes and sys.platform != "win32":
                import fcntl

                try:
                    # Not flock: data workers would inherit that lock, and keep it for a while after their parent is
                    # killed.
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError) as error:
                    raise FileExistsError(
                        f"{self.path} is being written by another process: wait, or end it"
                    ) from error
            try:
                yield
            finally:
                if self.writes:
                    (self.path / LOCK).unlink(missing_ok=True)

    def truncate_metrics(self, step: int) -> None:
        """Removes the lines after a step from the metrics, and an incomplete line."""
        path = self.path / METRICS
        if self.writes and path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] > step:
                        break
                except ValueError:
                    break
                kept.append(line + "\n")
            path.write_text("".join(kept))

    alone = renamed_method("alone", "lock")
    follow = renamed_method("follow", "update_length")
    forget_after = renamed_method("forget_after", "truncate_metrics")

    @staticmethod
    def refuse(path: Path) -> None:
        """The old name of `check_free`."""
        warnings.warn("Run.refuse is called check_free now", DeprecationWarning, stacklevel=2)
        Run.check_free(path)

    @staticmethod
    def of(path: str | Path) -> "Run | None":
        """The run of a run folder or of its `model/`; None for other paths."""
        for folder in (Path(path), Path(path).parent):
            if (folder / RECIPE).is_file():
                return Run(folder)
        return None

    @property
    def recipe(self) -> Recipe:
        """The recipe.

        **Raises:** ValueError if `recipe.json` is damaged.
        """
        try:
            return Recipe.from_json(json.loads((self.path / RECIPE).read_text()))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{self.path / RECIPE} is not a readable recipe: {error}") from error

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged metrics, a dictionary for each line of `metrics.jsonl`."""
        return [json.loads(line) for line in (self.path / METRICS).read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of a finished run: metrics on the validation split, and "test" if there is a test split."""
        return self.read(SUMMARY)

    @property
    def test_files(self) -> list[str] | None:
        """Files of the test split, which is never used for selection; None if there is no `split.json`."""
        return list(self.read(SPLIT)["test"]) if (self.path / SPLIT).is_file() else None

    @property
    def has_model(self) -> bool:
        """Whether the trained network exists; it is written at the end of the run."""
        return (self.path / MODEL).exists()

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended. Only a run of `finetune` has a model before: the one at the step where it was
        stopped."""
        return (self.path / SUMMARY).is_file() and not (self.path / INITIAL).exists()

    def load_model(self) -> nn.Module:
        """The trained network, in evaluation mode."""
        return load_network(self.path)

    def read(self, name: str) -> dict[str, Any]:
        """Reads a JSON file of the run folder."""
        values: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        return values

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Writes a JSON file of the run folder, atomically. Numbers that are not finite become null."""
        text = json.dumps(without_nan(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # A path may contain bytes that are not valid text. They become escapes, which JSON restores unchanged. (Earlier
        # versions wrote file names of data sets in this way too.)
        write_text(self.path / name, text, errors="backslashreplace", aside=self.path / f".{name}")

    def log(self, values: dict[str, Any]) -> None:
        """Appends a line to `metrics.jsonl`."""
        if self.writes:
            with (self.path / METRICS).open("a") as file:
                file.write(json.dumps(without_nan(values), allow_nan=False) + "\n")


def _check_length(path: Path, old: Recipe, new: Recipe, done: int) -> None:
    """Raises ValueError if the steps already done would have been different in a run of the new length."""
    if new.steps < done:
        raise ValueError(
            f"{path} has already done {done} steps, more than steps={new.steps}: use {done} or more, or another --out"
        )
    for step in range(done):
        if (old_rate := learning_rate(old, step)) != (new_rate := learning_rate(new, step)):
            raise ValueError(
                f"{path} cannot resume with steps={new.steps}, cooldown_steps={new.cooldown_steps}: of the {done} "
                f"steps done, step {step + 1} had learning rate {old_rate:.3g} and would have had {new_rate:.3g}; keep "
                "the length (it may change with the schedules constant and rsqrt, before their cooldown), or choose "
                "another --out"
            )


def without_nan(value: Any) -> Any:
    """A copy of a JSON value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(data: Data) -> dict[str, Any]:
    """Describes a data set as a dictionary for JSON: name, classes, numbers of images, files left out, and "digest",
    the SHA-256 of the classes, file names, labels and boxes, in order. "held_out_images" is the number of images in
    `val`."""
    digest = hashlib.sha256(json.dumps(data.classes).encode())
    for split in data.train_and_val:
        digest.update(json.dumps([split.labels.int().tolist(), list(split.files)]).encode())
        if data.has_boxes:
            named = [split.further[name] for name in ("boxes", "classes", "ignored")]
            digest.update(json.dumps([[of(i).tolist() for of in named] for i in range(len(split))]).encode())
    return {
        "name": data.name,
        "classes": data.classes,
        "multi_label": data.multi_label,
        "training_images": 0 if data.train is None else len(data.train),
        "held_out_images": len(data.val),
        "digest": digest.hexdigest(),
        "unreadable": [asdict(entry) for entry in data.left_out],
        "moved": list(data.moved or ()),
        "group_column": data.group_column,
    }


def digest_of_sizes(data: Data) -> str | None:
    """The SHA-256 of the sizes in bytes of the image files, in order, or of the zip; None for a set without files."""
    path = Path(data.name)
    splits = [*data.train_and_val, *([] if data.test is None else [data.test])]
    files = [path / file for split in splits for file in split.files] if path.is_dir() else [path]
    if not path.exists():
        return None
    sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Versions of packages, the machine, and the commit of the git checkout in the current folder, if there is one."""
    packages = ("vismoe", "torch", "torchvision", "timm", "safetensors", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
    }


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def free_path(wanted: Path) -> Path:
    """The first of `wanted`, `wanted`-2, `wanted`-3, … that does not exist."""
    path, number = wanted, 2
    while path.exists():
        path, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return path
