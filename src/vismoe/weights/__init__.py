"""Loads, saves and converts models. The import registers presets and upcycled networks with timm and transformers."""

from .fitting import set_image_size, set_max_level, take_over
from .folders.format import MULTI_LABEL
from .folders.push import push_to_hub
from .folders.save import save
from .huggingface.network import TransformersNetwork, as_network, data_config
from .huggingface.register import register_upcycled
from .on_disk.load import experts_on_disk
from .on_disk.store import ExpertStore
from .opening import check_trained, load, load_network, open_source, open_trained
from .pretrained import pretrained_folder
from .published import PUBLISHED, Published
from .reference.checkpoint import read_reference
from .reference.convert import convert
from .reference.tree import from_reference, to_reference
from .registry import create_model, list_models
from .sources import Source, parse_source

register_upcycled()

__all__ = [
    "MULTI_LABEL",
    "PUBLISHED",
    "ExpertStore",
    "Published",
    "Source",
    "TransformersNetwork",
    "as_network",
    "check_trained",
    "convert",
    "create_model",
    "data_config",
    "experts_on_disk",
    "from_reference",
    "list_models",
    "load",
    "load_network",
    "open_source",
    "open_trained",
    "parse_source",
    "pretrained_folder",
    "push_to_hub",
    "read_reference",
    "register_upcycled",
    "save",
    "set_image_size",
    "set_max_level",
    "take_over",
    "to_reference",
]
