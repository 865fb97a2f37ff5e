"""Wraps an image network of transformers' so that it has the interface of timm's networks."""

import copy
import inspect
import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.data.config import resolve_data_config
from timm.data.model_config import resolve_input_data_config
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from vismoe.vit import make_sparse
from vismoe.vit.conversion.places import find_blocks, remember

from .folder import INSIDE, is_transformers
from .processor import pair, processor_of

CLASSIFIERS = ("classifier", "heads", "head", "fc")
"""Names of the layers that compute logits, in transformers and torchvision."""
OF_TWO_TOWERS = "get_image_features"
"""The method with which networks for images and text process only images."""


def as_network(model: nn.Module) -> nn.Module:
    """Returns a network with timm's interface, which maps pixels to logits and has a preprocessing configuration: for
    an image network of transformers' a `TransformersNetwork` around the unchanged model; any other network as it is."""
    if not is_transformers(model):
        return model
    model = getattr(model, INSIDE[:-1], model)
    if isinstance(inner := getattr(model, "timm_model", None), nn.Module):
        return inner
    takes_images = getattr(model, "main_input_name", "") == "pixel_values" or hasattr(model, OF_TWO_TOWERS)
    return TransformersNetwork(model) if takes_images else model


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data configuration of a network: input_size, mean and std (one value per channel), interpolation,
    crop_pct; and max_level, the white level of 16-bit images, if it is not 65,535."""
    network: Any = as_network(model)
    config: dict[str, Any] = resolve_input_data_config(network)
    max_level = getattr(network, "pretrained_cfg", {}).get("max_level")
    return config if max_level is None else config | {"max_level": max_level}


@dataclass(frozen=True)
class Patches:
    """The patches of an image.

    - `patch_size`: height and width of a patch, in pixels.
    - `grid_size`: height and width of an image, in patches.
    """

    patch_size: tuple[int, int]
    grid_size: tuple[int, int]

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]


class TransformersNetwork(nn.Module):
    """An image network of transformers' with the interface of timm's networks.

    It maps pixels to logits. Without a classifier it returns one vector per image: the pooled output, else the class
    token, else the mean of the last hidden state. `pretrained_cfg` has the preprocessing and the classes. The
    preprocessing is that of the folder from which the model was loaded, otherwise the default of its class. Classifier
    and image size can be changed.

    **Arguments:**

    - `model`: the network; it is not copied.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model
        vision, config = self._vision, cast(Any, model).config
        size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
        preparation: dict[str, Any] = getattr(model, "preprocessing", None) or processor_of(config.model_type)
        height, width = preparation.get("size") or pair(size or 224)
        data_config = resolve_data_config({}, pretrained_cfg={"input_size": (channels, height, width)})
        data_config |= {"crop_pct": 1.0} | {name: value for name, value in preparation.items() if name != "size"}
        data_config |= {name: data_config[name][:channels] for name in ("mean", "std")}
        names = config.id2label or {}
        labels = [names[number] for number in range(len(names))] if self.num_classes else []
        are_default = labels == [f"LABEL_{number}" for number in range(len(labels))]  # transformers' default
        self.pretrained_cfg: dict[str, Any] = data_config | {
            "architecture": type(model).__name__,
            "label_names": None if are_default else labels,
            "problem_type": config.problem_type,
        }
        self._resizable: bool | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        image_size = getattr(self._vision, "image_size", None)
        is_other_size = image_size is not None and tuple(pixels.shape[-2:]) != pair(image_size)
        interpolate = {"interpolate_pos_encoding": True} if is_other_size and self._interpolates else {}
        output = self._call(pixel_values=pixels, **interpolate)
        if isinstance(output, Tensor):
            return output
        if (logits := getattr(output, "logits", None)) is not None:
            return cast(Tensor, logits)
        if getattr(output, "pooler_output", None) is not None:
            return cast(Tensor, output.pooler_output)
        if (hidden := getattr(output, "last_hidden_state", None)) is None:
            raise ValueError(f"{type(self.model).__name__} returns neither logits nor features of an image")
        if hidden.ndim == 4:
            return cast(Tensor, hidden.mean((2, 3)))
        has_class_token = any(name.endswith("cls_token") for name, _ in self.model.named_parameters())
        return cast(Tensor, hidden[:, 0] if has_class_token else hidden.mean(1))

    @property
    def _vision(self) -> Any:
        """The configuration of the image encoder, also in networks for images and text."""
        return getattr(self.model.config, "vision_config", self.model.config)

    @property
    def _call(self) -> Any:
        return getattr(self.model, OF_TWO_TOWERS, self.model)

    @property
    def _interpolates(self) -> bool:
        call = self.model.forward if self._call is self.model else self._call
        return "interpolate_pos_encoding" in inspect.signature(call).parameters

    @property
    def num_classes(self) -> int:
        return cast(int, self.model.config.num_labels) if self._head else 0

    @property
    def moe(self) -> Any:
        return getattr(self.model, "moe", None)

    @moe.setter
    def moe(self, config: Any) -> None:
        remember(self.model, config)

    @property
    def embed_dim(self) -> int:
        return int(getattr(self._vision, "hidden_size", 384))

    @property
    def blocks(self) -> list[nn.Module]:
        path = find_blocks(self)
        return [] if path is None else list(self.get_submodule(path).children())

    @property
    def patch_embed(self) -> Patches:
        patch = pair(getattr(self._vision, "patch_size", 16))
        height, width = self.pretrained_cfg["input_size"][1:]
        return Patches(patch, (height // patch[0], width // patch[1]))

    @property
    def _head(self) -> str | None:
        """The path of the linear layer that computes the logits; None: there is none."""
        for top in CLASSIFIERS:
            if isinstance(module := getattr(self.model, top, None), nn.Module):
                linear = [path for path, part in module.named_modules(prefix=top) if isinstance(part, nn.Linear)]
                if linear:
                    return linear[-1]
        return None

    def get_classifier(self) -> nn.Module:
        return nn.Identity() if self._head is None else cast(nn.Module, self.model.get_submodule(self._head))

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier. A network without one becomes transformers' class for image classification of the
        same model type.

        **Raises:** ValueError if there is no such class.
        """
        if self._head is None:
            self.model = self._for_classification(num_classes)
        else:
            old = cast(nn.Linear, self.model.get_submodule(self._head))
            new = nn.Linear(old.in_features, num_classes, old.bias is not None)
            self.model.set_submodule(self._head, new.to(old.weight))
        self.model.config.num_labels = self.model.num_labels = num_classes
        self.model.config.problem_type = None
        architecture = type(self.model).__name__
        self.pretrained_cfg |= {"architecture": architecture, "label_names": None, "problem_type": None}

    def _for_classification(self, num_classes: int) -> Any:
        from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

        config = copy.deepcopy(self.model.config)
        classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)
        cls = classes[0] if isinstance(classes, tuple) else classes
        name = type(self.model).__name__
        if cls is None:
            raise ValueError(
                f"{name} has no classifier, and transformers has no class for image classification of its type "
                f"({config.model_type}): accepted are networks for image classification, and trunks that "
                "AutoModelForImageClassification knows (ViT, DeiT, BEiT, DINOv2, SigLIP, CLIP, Swin, ConvNeXt, …)"
            )
        config.num_labels = num_classes
        trunk, new = self.model.base_model, self._built(cls, config)
        missing, _ = new.base_model.load_state_dict(trunk.state_dict(), strict=False)
        if without_weights := [parameter for parameter in missing if not parameter.startswith(CLASSIFIERS)]:
            raise ValueError(f"{name} lacks weights of {cls.__name__}: {', '.join(without_weights[:5])}")
        return new.to(self.model.device, self.model.dtype)

    def _built(self, cls: Any, config: Any) -> Any:
        """A network with random weights, sparse like this one."""
        with torch.random.fork_rng(devices=[]):
            model = cls(config)
            if self.moe is not None:
                make_sparse(model, self.moe)
        return model.train(self.training)

    @property
    def resizable(self) -> bool:
        """Whether `set_input_size` can be called: not for tables of relative positions, which fit only one size."""
        if self._resizable is None:
            size = 2 * pair(getattr(self._vision, "image_size", None) or 224)[0]
            try:
                with torch.device("meta"):
                    resized_state = self._built_for(size).state_dict()
                self._resizable = all(
                    resized_state[name].shape == tensor.shape or _of_positions(name, tensor)
                    for name, tensor in self.model.state_dict().items()
                )
            except (TypeError, ValueError):
                self._resizable = False
        return self._resizable

    def set_input_size(self, img_size: int) -> None:
        """Changes the image size. Position embeddings are interpolated as the network itself does.

        **Raises:** ValueError if the network accepts only one size, or the size is not a multiple of the patch size.
        """
        old, patch = getattr(self._vision, "image_size", None), self.patch_embed.patch_size[0]
        if old is not None and pair(old) == (img_size, img_size):
            return
        if not self.resizable:
            raise ValueError(f"{type(self.model).__name__} accepts only images of {old} pixels, not of {img_size}")
        if img_size % patch:
            raise ValueError(f"{img_size} pixels are not a multiple of the patch size, {patch}")
        grids = pair(old or img_size)[0] // patch, img_size // patch
        new, state = self._built_for(img_size), self.model.state_dict()
        for name, tensor in new.state_dict().items():
            if tensor.shape != state[name].shape:
                state[name] = _resampled(state[name], *grids)
        new.load_state_dict(state)
        new = new.to(self.model.device, self.model.dtype)
        trains = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        for name, parameter in new.named_parameters():
            parameter.requires_grad_(trains[name])
        self.model = new

    def _built_for(self, size: int) -> Any:
        config = copy.deepcopy(self.model.config)
        vision = getattr(config, "vision_config", config)
        if hasattr(vision, "image_size"):
            vision.image_size = size if isinstance(vision.image_size, int) else [size, size]
        return self._built(type(self.model), config)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters by depth, for timm's layer-wise learning rate decay: those before the blocks, those of
        each block, and the rest."""
        path, before = find_blocks(self), []
        for name, _ in self.named_parameters():
            if path is not None and name.startswith(f"{path}."):
                break
            before.append(re.escape(name))
        if path is None:
            return {}
        return {"stem": rf"^(?:{'|'.join(before)})$", "blocks": rf"^{re.escape(path)}\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        blocks = find_blocks(self)
        outside = (name for name, _ in self.named_parameters() if blocks is None or not name.startswith(f"{blocks}."))
        return {name for name in outside if re.search(r"token|position_embedding", name)}


def _of_positions(name: str, tensor: Tensor) -> bool:
    return "position_embedding" in name and tensor.ndim in (2, 3)


def _resampled(table: Tensor, old: int, new: int) -> Tensor:
    """Resizes position embeddings (1, N, d) or (N, d) of a square of patches, after which other tokens' rows may come
    first: these are kept."""
    tokens = table if table.ndim == 3 else table[None]
    prefix = tokens.shape[1] - old * old
    resampled = resample_abs_pos_embed(tokens, [new, new], [old, old], prefix, antialias=False)
    return resampled.reshape(*table.shape[:-2], -1, table.shape[-1])
