"""Files in and out. Importing it registers presets and upcycled networks with timm and transformers."""

from .convert import convert
from .download import download
from .folder import MULTI_LABEL, load, load_network
from .published import PUBLISHED, Published
from .push import push_to_hub
from .read_reference import read_reference
from .reference import from_reference, to_reference
from .registry import create_model, list_models
from .saving import save
from .take_over import take_over
from .transformers_folder import register_upcycled
from .transformers_network import TransformersNetwork, as_network

register_upcycled()

__all__ = [
    "MULTI_LABEL",
    "PUBLISHED",
    "Published",
    "TransformersNetwork",
    "as_network",
    "convert",
    "create_model",
    "download",
    "from_reference",
    "list_models",
    "load",
    "load_network",
    "push_to_hub",
    "read_reference",
    "save",
    "take_over",
    "to_reference",
]
