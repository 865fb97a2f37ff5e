"""Files in and out. Importing it registers presets and upcycled networks with timm and transformers."""

from .download import download
from .folder import MULTI_LABEL, load, load_network
from .push import push_to_hub
from .reference import from_reference, to_reference
from .registry import create_model, list_models
from .saving import save
from .take_over import take_over
from .transformers_folder import register_upcycled
from .transformers_network import TransformersNetwork, as_network

register_upcycled()

__all__ = [
    "MULTI_LABEL",
    "TransformersNetwork",
    "as_network",
    "create_model",
    "download",
    "from_reference",
    "list_models",
    "load",
    "load_network",
    "push_to_hub",
    "save",
    "take_over",
    "to_reference",
]
