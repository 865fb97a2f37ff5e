"""What a network makes of pictures: what the linear map that gives its logits is handed."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vismoe.data import ImageSet, evaluation_batches, evaluation_transform
from vismoe.data.pipeline import leave_stopping
from vismoe.moe.record import unwrap
from vismoe.training import data_config

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda pixels: pixels,
    "mirrored": lambda pixels: pixels.flip(-1),
}
CLASSIFIERS = ("classifier", "heads", "head", "fc")
"""Where transformers and torchvision keep what gives the logits; timm's networks say it themselves."""


@torch.no_grad()
def features(
    model: nn.Module,
    images: ImageSet,
    batch_size: int = 64,
    workers: int = 0,
    views: Sequence[str] = ("plain",),
    preparation: Mapping[str, Any] | None = None,
) -> Float[Tensor, "N d"]:
    """The features of N pictures, in the set's order, float32, at evaluation. Leaves the network in the mode it was in.

    They are what the last linear map of the classifier is handed, for networks of timm, transformers and torchvision
    alike: `linear(features)` are the logits. Where there are two classifiers (distilled networks) it is the mean of
    what both are handed, as timm has it. A network without one (`num_classes=0`, transformers' bare models) gives its
    output: of transformers' the pooled one, else the class token, else the mean of the last hidden state.

    **Arguments:** `views`: of "plain" and "mirrored"; the features are the mean over these; `preparation`: what of
    `vismoe.training.data_config` (input_size, mean, std, interpolation, crop_pct) is to differ. transformers' networks
    know only their size and channels; mean and std, which belong to their processor, are ImageNet's unless given.

    **Raises:** ValueError for unknown views and networks that give no single vector a picture.
    """
    _check(views)
    model = unwrap(model)
    was_training, device = model.training, next(model.parameters()).device
    transform = evaluation_transform(_preparation(model, preparation))
    model.eval()
    try:
        found = [
            torch.stack([_embed(model, VIEWS[view](pixels.to(device))) for view in views]).mean(0).cpu()
            for pixels, _ in evaluation_batches(images, transform, batch_size, workers)
        ]
    finally:
        model.train(was_training)
    return torch.cat(found)


def cached_features(
    model: nn.Module,
    images: ImageSet,
    folder: str | Path,
    batch_size: int = 64,
    workers: int = 0,
    views: Sequence[str] = ("plain",),
    preparation: Mapping[str, Any] | None = None,
) -> Float[Tensor, "N d"]:
    """The same, kept in `folder/KEY.safetensors` and read from there the next time.

    KEY is a SHA-256 of the network (classes, settings and weights), the preparation, the views and every picture's
    pixels: a file that was changed has features of its own. So pictures are decoded each time, and only the network's
    work is saved.

    **Raises:** ValueError also for a kept file that is not what was written.
    """
    _check(views)
    model = unwrap(model)
    key = _key(model, images, _preparation(model, preparation), views, workers)
    path = Path(folder) / f"{key}.safetensors"
    if path.exists():
        return _read(path)
    found = features(model, images, batch_size, workers, views, preparation)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}.new")
    try:
        save_file({"features": found}, aside, metadata={"sha256": _sum_of(found)})
        aside.replace(path)
    except SafetensorError as error:  # which is how its writer reports a full disk
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return found


def classifiers(model: nn.Module) -> list[nn.Module]:
    """The linear maps that give a network's logits: one; of distilled networks two; without classes none."""
    model = getattr(model, "timm_model", model)  # transformers' wrapper
    if hasattr(model, "get_classifier"):
        found = cast(Any, model).get_classifier()
        tops = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
        return [linear for top in tops for linear in _last_linear(top)]
    tops = [top for name in CLASSIFIERS if isinstance(top := getattr(model, name, None), nn.Module)]
    return next((linear for top in tops if (linear := _last_linear(top))), [])


def _last_linear(top: nn.Module) -> list[nn.Module]:
    linear: list[nn.Module] = [module for module in top.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return linear[-1:]


def _embed(model: nn.Module, pixels: Tensor) -> Float[Tensor, "B d"]:
    heads, handed = classifiers(model), []
    hooks = [head.register_forward_pre_hook(lambda _, inputs: handed.append(inputs[0])) for head in heads]
    try:
        output = model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if len(handed) != len(heads):
        raise ValueError(f"the classifier of {type(model).__name__} was called {len(handed)} times, not {len(heads)}")
    found = (torch.stack(handed).mean(0) if handed else _pooled(model, output)).float()
    if found[0].numel() != found.shape[1]:
        raise ValueError(f"{type(model).__name__} gives features of shape {tuple(found.shape[1:])}, not one vector")
    return found.flatten(1)


def _pooled(model: nn.Module, output: Any) -> Tensor:
    """What a network without a classifier has to say of pictures."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "pooler_output", None) is not None:
        return cast(Tensor, output.pooler_output)
    if (hidden := getattr(output, "last_hidden_state", None)) is not None:
        if hidden.ndim == 4:
            return cast(Tensor, hidden.mean((2, 3)))
        of_class = any(name.endswith("cls_token") for name, _ in model.named_parameters())
        return cast(Tensor, hidden[:, 0] if of_class else hidden.mean(1))
    if getattr(model, "num_labels", None) == 0:
        return cast(Tensor, output.logits)
    raise ValueError(f"{type(model).__name__} has no classifier that is known: looked for {', '.join(CLASSIFIERS)}")


def _preparation(model: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    config = data_config(getattr(model, "timm_model", model))
    known: Any = getattr(model, "config", None)  # transformers'
    known = getattr(known, "vision_config", known)
    if (size := getattr(known, "image_size", None)) is not None:
        height, width = (size, size) if isinstance(size, int) else size
        channels = known.num_channels
        config |= {"input_size": (channels, height, width)}
        config |= {name: config[name][:channels] for name in ("mean", "std")}
    return config | dict(given or {})


def _check(views: Sequence[str]) -> None:
    if not views or set(views) - set(VIEWS):
        raise ValueError(f"views={tuple(views)}: accepted are some of {', '.join(VIEWS)}")


def _key(model: nn.Module, images: ImageSet, preparation: Mapping[str, Any], views: Sequence[str], workers: int) -> str:
    device = next(model.parameters()).device.type
    autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
    digest = hashlib.sha256(json.dumps([sorted(preparation.items()), sorted(views), device, autocast]).encode())
    for name, module in model.named_modules():
        digest.update(json.dumps([name, type(module).__qualname__, _settings(module)]).encode())
    for name, tensor in model.state_dict().items():
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes_of(tensor))
    pictures = DataLoader(_Sums(images), 64, num_workers=workers, collate_fn=list, worker_init_fn=leave_stopping)
    for batch in pictures:
        digest.update("".join(batch).encode())
    return digest.hexdigest()


def _settings(module: nn.Module) -> dict[str, Any]:
    """A module's own plain values, which decide what it computes as its weights do."""
    plain = bool | int | float | str
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if name != "training"
        and (isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(each, plain) for each in value)))
    }


class _Sums(Dataset[str]):
    """The SHA-256 of each picture's pixels."""

    def __init__(self, images: ImageSet):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        picture = self.images.picture(index)
        digest = hashlib.sha256(json.dumps([picture.mode, picture.size, picture.getpalette()]).encode())
        digest.update(picture.tobytes())
        return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _sum_of(tensor: Tensor) -> str:
    shape = json.dumps(list(tensor.shape)).encode()
    return hashlib.sha256(shape + _bytes_of(tensor)).hexdigest()


def _read(path: Path) -> Tensor:
    try:
        with safe_open(path, "pt") as file:
            found, expected = file.get_tensor("features"), (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and it is made anew") from error
    if expected != _sum_of(found):
        raise ValueError(f"{path} is damaged: remove it, and it is made anew")
    return cast(Tensor, found)
