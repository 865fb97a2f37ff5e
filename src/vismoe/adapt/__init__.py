"""A classifier of a person's own images: splits, rules, fine-tuning, its report."""

from .finetune import Finetuned, finetune
from .freezing import freeze
from .options import Options
from .run_splits import run_splits, split_of_files
from .start import open_trained

__all__ = ["Finetuned", "Options", "finetune", "freeze", "open_trained", "run_splits", "split_of_files"]
