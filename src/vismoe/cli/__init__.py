"""The `vismoe` command: one small file per command, without logic of its own."""

import os
import sys
from importlib import import_module
from typing import Any, cast

from vismoe_command import COMMANDS, answer

FOLDERS = {name: folder for folder, commands in COMMANDS.items() for name in commands}
"""The folder of each command's file."""

BAD_INPUT, DIVERGED, HUNG, INTERRUPTED = 2, 3, 4, 130
FAILURES = {"TrainingDivergedError": DIVERGED, "ProcessHungError": HUNG}
"""Exit codes of errors, by the name of the class, because importing it needs the optional dependencies of training."""
AFTER_INTERRUPTION = {
    "train": "the last checkpoint is kept; the same command with the same --out and --resume auto continues, or starts",
    "finetune": "finished work is kept; the same command continues, or starts",
}
"""What is left if a command is interrupted before it can write a checkpoint, and how to continue."""

REASONS: dict[type[OSError], str] = {
    NotADirectoryError: "a part of this path is a file, not a folder: give another path",
    FileExistsError: "a file is in the way: give another path, or remove it",
    FileNotFoundError: "no such file or folder",
    IsADirectoryError: "a folder, where a file is expected",
    PermissionError: "no permission: give another path, or change its permissions",
}
"""What is wrong with a path, by the operating system's error."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    **Arguments:**

    - `arguments`: the command and its arguments; default None: those of the process.

    **Returns:** the exit code: 0; 2 for bad input, with one line on stderr; 3 if a training diverged; 4 if one of
    several processes did not answer; 130 after Ctrl-C and 143 after SIGTERM, once a training has written a checkpoint.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if (text := answer(arguments)) is not None:
        print(text)
        return 0
    command, *rest = arguments
    try:
        if command not in FOLDERS:
            raise ValueError(f"unknown command {command!r}; accepted are {', '.join(FOLDERS)}")
        with import_module(".shared.values", __name__).REGISTRY:
            import_module(f".{FOLDERS[command]}.{command}", __name__).main(rest)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does. The rest of the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        return _fail(f"this needs {error.name}: pip install 'vismoe[all]'", BAD_INPUT)
    except OSError as error:
        return _fail(_in_words(error), BAD_INPUT)
    except ValueError as error:
        return _fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return _fail(f"interrupted: {AFTER_INTERRUPTION.get(command, 'no file is left half-written')}", INTERRUPTED, "")
    except RuntimeError as error:
        if type(error).__name__ == "TrainingStoppedError":
            return _fail(str(error), 128 + cast(Any, error).signal, "")
        if type(error).__name__ not in FAILURES:
            raise
        return _fail(str(error), FAILURES[type(error).__name__])
    return 0


def _in_words(error: OSError) -> str:
    """The message of an error; one of the operating system as the path, and what is wrong with it."""
    if error.errno is None or error.filename is None:
        return str(error)
    return f"{error.filename}: {REASONS.get(type(error), error.strerror)}"


def _fail(message: str, code: int, kind: str = "error: ") -> int:
    """Prints one line on stderr and returns the exit code. `kind`: the beginning of the line; "" if the user stopped
    the command, which is not an error."""
    message = " ".join(
        message.rpartition("\nValueError: ")[2].split()
    )  # an error of a data worker without its traceback
    if os.environ.get("RANK", "0") == "0" or code == HUNG:  # only one of several processes prints, if it can
        # Text from a file may contain control codes of a terminal.
        shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in message)
        print(f"vismoe: {kind}{shown}", file=sys.stderr)
    return code
