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
    """Upload a model, with its card, to the Hugging Face hub; `hf auth login` says there who you are.

    Example: vismoe push runs/finetune somebody/flowers --private

    Args:
        model: A run folder or a model folder.
        repository: Made if it is not there.
        private: A repository that is made is seen by its owner alone.
    """
    print(f"uploaded: {push_to_hub(model, repository, private)}")


def main(arguments: list[str]) -> None:
    tyro.cli(push, args=arguments, prog="vismoe push")
