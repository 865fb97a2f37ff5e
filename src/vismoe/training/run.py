"""The folder that one training leaves behind."""

import hashlib
import importlib.metadata
import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vismoe.data import Data, Unreadable, without
from vismoe.files import write_text
from vismoe.weights import load_network

from .recipe import Recipe
from .schedule import learning_rate

LOCK = ".lock"
ASKED, INITIAL, SPLIT = "finetune.json", "initial", "split.json"
"""Of a run of `finetune`: what was asked for, the network it began with, which files are in which part."""
FREE = ("name", "workers", "device", "checkpoint_every", "keep_checkpoints", "max_unreadable", "track")
"""What a resumed run may have otherwise: it decides nothing of the result (of one kind of device)."""
LENGTH = ("steps", "cooldown_steps")
"""What it may have otherwise as long as nothing of it shows in the steps done."""

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
"""Where a model folder is written before it gets its name."""


@dataclass(frozen=True)
class Run:
    """A run folder: `recipe.json`, `environment.json`, `data.json` (what the set was, and which files of it were left
    out), `metrics.jsonl`, `summary.json`, images, and `model/`. `writes`: of several processes one does."""

    path: Path
    writes: bool = True

    @staticmethod
    def refuse(path: Path) -> None:
        """Raises FileExistsError where something is there already, but for what a run that was killed while it began
        may have left."""
        begun = {ENVIRONMENT, DATA, LOCK, ASKED, INITIAL} | {f".{name}" for name in (ENVIRONMENT, DATA, RECIPE, ASKED)}
        names = {file.name for file in path.iterdir() if not ASIDE.fullmatch(file.name)} if path.is_dir() else set()
        if path.exists() and (not path.is_dir() or names - begun):
            go_on = "; it is a run: --resume auto goes on with it" if (path / RECIPE).is_file() else ""
            raise FileExistsError(f"{path} exists: choose another --out, or remove it{go_on}")

    @staticmethod
    def create(path: Path, recipe: Recipe, data: Data) -> "Run":
        """Begins a run folder.

        **Raises:** FileExistsError where something is there already.
        """
        Run.refuse(path)
        path.mkdir(parents=True, exist_ok=True)
        run = Run(path)
        run.write(ENVIRONMENT, environment())
        run.write(DATA, describe(data))
        run.write(RECIPE, recipe.to_json())  # the last: a folder with it is a run
        return run

    @staticmethod
    def reopen(path: Path, recipe: Recipe, data: Data, done: int = 0) -> "Run":
        """A run that was begun before, to be gone on with from the step `done`: for longer, or for less long, than it
        was to be, if all that was done is as it would have been.

        **Raises:** ValueError where its recipe is another in what decides its result, or its set is not as it was.
        """
        run = Run(path)
        ours, theirs = recipe.to_json(), run.recipe.to_json()
        other = [name for name in ours if ours[name] != theirs[name] and name not in FREE]
        if done and other and set(other) <= set(LENGTH):
            _check_length(path, run.recipe, recipe, done)
        elif other:
            told = ", ".join(f"{name}={theirs[name]} there, {ours[name]} here" for name in other)
            raise ValueError(
                f"{path} was begun with another recipe ({told}): resume it as it was, or choose another --out"
            )
        now, then = describe(without(data, run.left_out)), run.data
        if now["digest"] != then["digest"]:
            count = ("{training_images} training and {held_out_images} held-out images").format
            raise ValueError(
                f"{data.name} is not what {path} was begun with: {count(**then)} then, {count(**now)} now, or other "
                "names or labels of them; make it as it was, or choose another --out"
            )
        return run

    def follow(self, recipe: Recipe) -> None:
        """Writes down by which recipe it goes on, where that is of another length."""
        if self.writes:
            old, new = self.recipe.to_json(), recipe.to_json()
            if any(old[name] != new[name] for name in LENGTH):
                self.write(RECIPE, new)

    @property
    def left_out(self) -> list[Unreadable]:
        """Files of the set that the run does without."""
        return [Unreadable(**entry) for entry in self.data["unreadable"]]

    @property
    def moved(self) -> tuple[str, ...]:
        """Files of the set that changed sides when it was split, so that copies were on one side: `Data.moved`. None
        did in runs from before there was such a thing."""
        return tuple(self.data.get("moved", ()))

    @property
    def data(self) -> dict[str, Any]:
        """What the set was, as `describe` tells it.

        **Raises:** ValueError where it cannot be read.
        """
        try:
            found = self.read(DATA)
            if {"digest", "unreadable"} <= found.keys():
                return found
        except (OSError, ValueError, AttributeError):
            pass
        raise ValueError(f"{self.path / DATA} does not say what the set was: it is damaged")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process of this machine may write the run.

        **Raises:** FileExistsError where one does.
        """
        with (self.path / LOCK).open("a") as file:
            if self.writes and sys.platform != "win32":
                import fcntl

                try:
                    # Not flock, which data workers would inherit and hold a while after their parent was killed.
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

    def forget_after(self, step: int) -> None:
        """Takes from the metrics what came after a step, and a line that was cut off."""
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

    @staticmethod
    def of(path: str | Path) -> "Run | None":
        """The run that a path is the folder of, or whose `model/` it is; None where there is none."""
        for folder in (Path(path), Path(path).parent):
            if (folder / RECIPE).is_file():
                return Run(folder)
        return None

    @property
    def recipe(self) -> Recipe:
        try:
            return Recipe.from_json(json.loads((self.path / RECIPE).read_text()))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{self.path / RECIPE} is not a readable recipe: {error}") from error

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / METRICS).read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return self.read(SUMMARY)

    @property
    def test_files(self) -> list[str] | None:
        """Files of its set that it was tested on and that nothing was chosen by, where it has written them down."""
        return list(self.read(SPLIT)["test"]) if (self.path / SPLIT).is_file() else None

    @property
    def has_model(self) -> bool:
        """Whether its network is there, which is written at the end."""
        return (self.path / MODEL).exists()

    def load_model(self) -> nn.Module:
        """The trained network, at evaluation."""
        return load_network(self.path)

    def read(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        return values

    def write(self, name: str, values: dict[str, Any]) -> None:
        text = json.dumps(without_nan(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # A file's name need not be text: what is none becomes an escape, which JSON reads back as it was.
        write_text(self.path / name, text, errors="backslashreplace", aside=self.path / f".{name}")

    def log(self, values: dict[str, Any]) -> None:
        if self.writes:
            with (self.path / METRICS).open("a") as file:
                file.write(json.dumps(without_nan(values), allow_nan=False) + "\n")


def _check_length(path: Path, old: Recipe, new: Recipe, done: int) -> None:
    """Raises ValueError where a run that has done some steps cannot go on by a recipe of another length."""
    if new.steps < done:
        raise ValueError(f"{path} has done {done} steps already: steps={new.steps} is less; choose another --out")
    for step in range(done):
        if (then := learning_rate(old, step)) != (now := learning_rate(new, step)):
            raise ValueError(
                f"{path} cannot go on with steps={new.steps}, cooldown_steps={new.cooldown_steps}: of the {done} steps "
                f"that it has done, step {step + 1} had a rate of {then:.3g} and would have had {now:.3g}; constant "
                "and rsqrt go on for any length, before their cooldown"
            )


def without_nan(value: Any) -> Any:
    """The same with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(data: Data) -> dict[str, Any]:
    """A set in figures. `digest`: of its classes and of its files' names and labels, in order."""
    digest = hashlib.sha256(json.dumps(data.classes).encode())
    for part in data.parts:
        digest.update(json.dumps([part.labels.int().tolist(), list(part.files)]).encode())
    return {
        "name": data.name,
        "classes": data.classes,
        "multi_label": data.multi_label,
        "training_images": 0 if data.train is None else len(data.train),
        "held_out_images": len(data.val),
        "digest": digest.hexdigest(),
        "unreadable": [asdict(entry) for entry in data.left_out],
        "moved": list(data.moved or ()),
    }


def environment() -> dict[str, Any]:
    """Versions, machine and the state of the git checkout one stands in, if any."""
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
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def free_path(wanted: Path) -> Path:
    """`wanted`, or with -2, -3, … behind it the first that is not there yet."""
    path, number = wanted, 2
    while path.exists():
        path, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return path
