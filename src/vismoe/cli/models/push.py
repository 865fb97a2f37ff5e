"""vismoe push"""

from pathlib import Path
from typing import Annotated

import tyro

from vismoe.weights import push_to_hub


def push(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ORG/NAME")],
    /,
    private: bool = False,
) -> None:
    """Upload a model, with its model card, to the Hugging Face Hub. Log in first with `hf auth login`.

    Example: vismoe push runs/finetune somebody/flowers --private

    Args:
        model: A run folder or a model folder.
        repository: Repository on the Hub; created if it does not exist.
        private: Make a new repository private; the visibility of an existing one does not change.
    """
    print(f"uploaded: {push_to_hub(model, repository, private)}")


def main(arguments: list[str]) -> None:
    tyro.cli(push, args=arguments, prog="vismoe push")
