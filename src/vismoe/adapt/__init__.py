"""Fine-tuning on a user's own images: splits, rules, training, report."""

from .finetune import Finetuned, finetune
from .freezing import freeze
from .options import Options
from .run_splits import run_splits, split_of_files
from .unfinished import open_unfinished

__all__ = ["Finetuned", "Options", "finetune", "freeze", "open_unfinished", "run_splits", "split_of_files"]
