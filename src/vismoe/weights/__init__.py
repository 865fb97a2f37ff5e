"""Files in and out. Importing it registers presets and upcycled networks with timm and transformers."""

from .folders.load import MULTI_LABEL, load, load_network
from .folders.push import push_to_hub
from .folders.save import save
from .huggingface.folder import register_upcycled
from .huggingface.network import TransformersNetwork, as_network
from .preprocessing import data_config
from .published import PUBLISHED, Published
from .reference.checkpoint import read_reference
from .reference.convert import convert
from .reference.tree import from_reference, to_reference
from .registry import create_model, list_models
from .take_over import take_over

register_upcycled()

__all__ = [
    "MULTI_LABEL",
    "PUBLISHED",
    "Published",
    "TransformersNetwork",
    "as_network",
    "convert",
    "create_model",
    "data_config",
    "from_reference",
    "list_models",
    "load",
    "load_network",
    "push_to_hub",
    "read_reference",
    "register_upcycled",
    "save",
    "take_over",
    "to_reference",
]
