"""The `vismoe` command. It prints usage and version without importing torch, which takes seconds."""

import os
import sys
from importlib.metadata import version

COMMANDS = {
    "training": {
        "demo": "train a small sparse network and its dense twin on handwritten digits (minutes)",
        "finetune": "train a classifier on your own folder of images, from a trained network or from scratch",
        "train": "train a network by a recipe",
    },
    "inference": {
        "predict": "classify images, or find the objects in them",
        "serve": "answer over HTTP, with a web page",
        "eval": "evaluate a model on a data set",
        "embed": "write the features of images to a file",
        "explain": "show what the experts do with images, or with a data set, as an HTML report",
        "fewshot": "evaluate a model's features with a few labelled images per class",
    },
    "models": {
        "models": "list presets with their parameters and MACs",
        "bench": "compare networks: latency, images per second, memory",
        "estimate": "estimate memory and traffic of training a network on many devices",
        "upcycle": "turn a trained dense model into a sparse one",
        "densify": "turn a sparse model into a dense one, or into one with fewer experts",
        "export": "write a model to an ONNX file",
        "convert": "convert checkpoints of google-research/vmoe, and Google's ViT files, to a model folder",
        "push": "upload a model to the Hugging Face Hub",
    },
}
"""Each command by its folder in `vismoe.cli`."""
TITLES = {"training": "Train", "inference": "Use", "models": "Models"}


def usage() -> str:
    """What `vismoe --help` prints."""
    lines = [
        "usage: vismoe COMMAND [options]",
        "",
        "Train, fine-tune, inspect and deploy sparse vision models.",
        "",
    ]
    for folder, commands in COMMANDS.items():
        lines += [f"{TITLES[folder]}:", *(f"  {name:10}{text}" for name, text in commands.items()), ""]
    return "\n".join(
        [*lines, "vismoe COMMAND --help shows the options and an example; vismoe --version prints the version."]
    )


def answer(arguments: list[str]) -> str | None:
    """The text for arguments that ask for usage or version; None for all other arguments."""
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        return usage()
    return f"vismoe {version('vismoe')}" if first == "--version" else None


def main() -> int:
    """Runs the command line. Returns its exit code, see `vismoe.cli.main`."""
    text = answer(sys.argv[1:])
    if text is None:
        from vismoe.cli import main as run

        return run()
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
