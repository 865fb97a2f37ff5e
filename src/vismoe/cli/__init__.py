"""The `vismoe` command: one small file a verb, no logic of its own."""

import os
import sys
from importlib import import_module
from typing import Any, cast

from vismoe import __version__

VERBS = {
    "demo": "train a small V-MoE and its dense twin on real digits, show the result (minutes)",
    "models": "list presets with their parameters and multiplications",
    "train": "train by a recipe",
    "eval": "evaluate a model on a set",
    "predict": "say what is on images",
    "finetune": "make a classifier of your own images",
    "upcycle": "make a sparse model of a trained dense one",
    "densify": "make a dense model, or one with fewer experts, of a sparse one",
    "fewshot": "say how much a few images of each class teach, given a model's features",
    "embed": "write the features of images",
    "convert": "make a model folder of google-research/vmoe's or Google's ViT files",
    "push": "upload a model to the Hugging Face hub",
    "export": "write a model as a file for other programs (ONNX)",
}

ROOMS = (
    dict.fromkeys(("demo", "train", "finetune"), "training")
    | dict.fromkeys(("models", "upcycle", "densify", "convert", "push", "export"), "models")
    | dict.fromkeys(("eval", "predict", "fewshot", "embed"), "inference")
)
"""The folder of each verb's file."""

USAGE = "\n".join(
    ["usage: vismoe VERB [options]      (vismoe VERB --help tells more, with an example)", ""]
    + [f"  {verb:10}{text}" for verb, text in VERBS.items()]
    + ["", "  --version show the version", ""]
)

BAD_INPUT, DIVERGED, INTERRUPTED = 2, 3, 130
INTERRUPTED_VERBS = {
    "train": "the last checkpoint is kept; the same command with its --out and --resume auto goes on, or begins",
    "finetune": "what was finished is kept; the same command goes on, or begins",
}
"""What is left where a verb is interrupted before it could write a checkpoint, and how to go on."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb.

    Exit codes: 0; 2 for bad input, with one line on stderr; 3 where a training diverged; 130 after Ctrl-C and 143 after
    SIGTERM, a checkpoint written.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print(USAGE)
        return 0
    if verb == "--version":
        print(f"vismoe {__version__}")
        return 0
    try:
        if verb not in VERBS:
            raise ValueError(f"unknown verb {verb!r}; there are {', '.join(VERBS)}")
        with import_module(".shared.values", __name__).REGISTRY:
            import_module(f".{ROOMS[verb]}.{verb}", __name__).main(rest)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has enough, as `head` has: the rest of the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        return _fail(f"this needs {error.name}: pip install 'vismoe[all]'", BAD_INPUT)
    except (ValueError, OSError) as error:
        return _fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return _fail(f"interrupted: {INTERRUPTED_VERBS.get(verb, 'no file is left half-written')}", INTERRUPTED, "")
    except RuntimeError as error:
        # By name: importing the class needs the optional dependencies of training.
        if type(error).__name__ == "TrainingStoppedError":
            return _fail(str(error), 128 + cast(Any, error).signal, "")
        if type(error).__name__ != "TrainingDivergedError":
            raise
        return _fail(str(error), DIVERGED)
    return 0


def _fail(message: str, code: int, kind: str = "error: ") -> int:
    """Prints one line on stderr and returns the exit code. `kind`: what the line begins with; what a person asked for,
    as by Ctrl-C, is no error."""
    message = " ".join(
        message.rpartition("\nValueError: ")[2].split()
    )  # an error of a data worker without its traceback
    if os.environ.get("RANK", "0") == "0":  # one of several processes prints
        # Text from a foreign file may hold control codes of a terminal.
        shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in message)
        print(f"vismoe: {kind}{shown}", file=sys.stderr)
    return code
