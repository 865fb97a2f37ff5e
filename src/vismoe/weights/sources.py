"""Parses strings that name a model. `opening.py` opens them."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import timm

from vismoe.vit import PRESETS

from .published import published_by, tagged

Kind = Literal["preset", "published", "timm", "hub", "run", "folder", "file", "exported"]
TIMM, HUB, LOCAL = "timm:", "hf:", "local-dir:"
RECIPE, OPTIONS, MODEL = "recipe.json", "finetune.json", "model"
"""The file that marks a run folder, the file that marks a run of finetune, and the folder of its trained network."""
SAFETENSORS, ONNX = ".safetensors", ".onnx"
ANSWERS_ONLY = "an ONNX file can only predict (vismoe predict, eval): use the model folder that it was exported from"


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    - `kind`: "preset": one of vismoe's architectures, with random weights; "published": PRESET.TAG, a preset with
      published weights of the reference; "timm": timm:NAME, a timm model with its pretrained weights; "hub":
      hf:ORG/NAME, a repository on the Hugging Face Hub; "run": a run folder; "folder": a model folder; "file": a
      .safetensors file; "exported": an .onnx file.
    - `name`: the name without its prefix; for a local source its path.
    - `text`: the string as given.
    """

    kind: Kind
    name: str
    text: str

    @property
    def is_trained(self) -> bool:
        """Whether the weights are trained, as for all kinds but presets."""
        return self.kind != "preset"

    @property
    def is_local(self) -> bool:
        """Whether the source is a file or folder on this machine."""
        return self.kind in ("run", "folder", "file", "exported")

    def __str__(self) -> str:
        return self.text


def parse_source(text: str) -> Source:
    """Parses a string that names a model: a preset, PRESET.TAG, timm:NAME, hf:ORG/NAME, or the path of a run folder, a
    model folder, a .safetensors or an .onnx file. A path may have the prefix `local-dir:`. An existing path takes
    precedence over a preset of the same name.

    **Raises:** FileNotFoundError for a path that does not exist, and for an unfinished run; ValueError for an unknown
    preset, tag or timm model: near matches are listed.
    """
    if text.startswith(HUB):
        return Source("hub", text.removeprefix(HUB), text)
    if text.startswith(LOCAL):
        return _parse_path(text.removeprefix(LOCAL), text)
    if text.startswith(TIMM):
        return parse_architecture(text)
    is_path = Path(text).exists() or "/" in text or text.endswith((SAFETENSORS, ONNX)) or not text.startswith("vmoe")
    if is_path and published_by(text) is None:
        return _parse_path(text, text)
    return parse_architecture(text)


def short_source(text: str) -> str:
    """The name of a source without the folders that it lies in, for what others see."""
    path = Path(text.removeprefix(LOCAL))
    if not path.exists():
        return text
    path = path.resolve()
    is_in_run = path.name == MODEL and any((path.parent / marker).exists() for marker in (RECIPE, OPTIONS))
    return (path.parent if is_in_run else path).name


def parse_architecture(text: str) -> Source:
    """Parses the name of a network that `create_model` can build: a preset, PRESET.TAG or timm:NAME.

    **Raises:** ValueError for an unknown name or tag: near matches and what is accepted are listed.
    """
    if text.startswith(TIMM):
        name = text.removeprefix(TIMM)
        _check_timm(name)
        return Source("timm", name, text)
    preset, dot, tag = text.partition(".")
    if preset not in PRESETS:
        raise unknown_preset(preset)
    if dot:
        tagged(preset, tag)
    return Source("published" if dot else "preset", text, text)


def _check_timm(name: str) -> None:
    """Raises ValueError for a NAME or NAME.TAG that timm does not have."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(
            f"timm has no model {name!r}{_did_you_mean(near)}; accepted are timm:NAME and timm:NAME.TAG, a NAME of "
            "timm.list_models(), such as timm:vit_tiny_patch16_224"
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        accepted = f"accepted are {', '.join(tags)}, or no tag" if tags else "it has none"
        raise ValueError(f"timm has no weights {tag!r} of {architecture}: {accepted}") from error


def unknown_preset(name: str) -> ValueError:
    """The error for an unknown preset."""
    near = get_close_matches(name, PRESETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`vismoe models` lists them"
    return ValueError(f"unknown preset {name!r}; {hint}")


def _near_names(text: str) -> str:
    """Presets and timm models with a similar name, as the end of an error message; "" if there are none."""
    if timm.is_model(text):
        near = [f"{TIMM}{text}"]
    else:
        near = get_close_matches(text, PRESETS, n=2, cutoff=0.7)
        near += [f"{TIMM}{name}" for name in get_close_matches(text, timm.list_models(), n=3, cutoff=0.7)]
    return _did_you_mean(near)


def _did_you_mean(near: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _parse_path(name: str, text: str) -> Source:
    path = Path(name)
    if not path.exists():
        if path.suffix == ONNX:
            raise FileNotFoundError(f"{text}: no such file")
        raise FileNotFoundError(
            f"{text}: no such run or model folder, file or preset{_near_names(text)}; accepted are also timm:NAME (a "
            "timm model), hf:ORG/NAME (Hugging Face Hub) and PRESET.TAG (published weights; `vismoe models` lists them)"
        )
    if path.is_file():
        return Source("exported" if path.suffix == ONNX else "file", name, text)
    if not (path / RECIPE).is_file():
        return Source("folder", name, text)
    if not (path / MODEL).exists():
        is_finetune = (path / OPTIONS).is_file()
        remedy = (
            "give the same `vismoe finetune` command again" if is_finetune else "finish its training with --resume auto"
        )
        raise FileNotFoundError(
            f"{path} has no model yet: wait until its training ends, or, if it was interrupted, {remedy}; `vismoe "
            "serve` opens its newest checkpoint"
        )
    return Source("run", name, text)
