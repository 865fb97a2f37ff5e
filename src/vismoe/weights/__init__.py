"""Files in and out. Importing it registers the presets with timm."""

from .folder import MULTI_LABEL, load
from .reference import from_reference
from .registry import create_model, list_models
from .saving import save

__all__ = ["MULTI_LABEL", "create_model", "from_reference", "list_models", "load", "save"]
