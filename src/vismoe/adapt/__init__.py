"""A person's own images: what a frozen network makes of them, and what can be learned from that."""

from .finetune import Finetuned, finetune
from .freezing import freeze
from .options import Options

__all__ = ["Finetuned", "Options", "finetune", "freeze"]
