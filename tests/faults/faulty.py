"""`vismoe train` as a worker of torchrun, in which something goes wrong: `faulty.py FAULT OPTION…`.

A fault happens once: in the process with rank 1, before torchrun has restarted anything.
"""

import os
import signal
import sys
from typing import Any

import torch

from vismoe.cli import main
from vismoe.training import step


def is_at_fault() -> bool:
    return os.environ["RANK"] == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"


def at_step(number: int, act: Any) -> None:
    """Calls `act` before the forward pass of a step, in the process at fault."""
    train = step.Trainer.step

    def faulty(self: Any, batch: Any, log_now: bool) -> Any:
        if self.state.step == number and is_at_fault():
            act(self)
        return train(self, batch, log_now)

    step.Trainer.step = faulty  # type: ignore[method-assign]


def kill(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def while_writing() -> None:
    """The process dies when it has written half of its file of the second checkpoint."""
    from vismoe.parallel import shards

    write, calls = shards.write_shards, []

    def faulty(folder: Any, *others: Any) -> Any:
        calls.append(folder)
        if len(calls) == 2 and is_at_fault():
            (folder / "shard-00002-model-00001-of-00001.safetensors").write_bytes(b"half")
            kill()
        return write(folder, *others)

    shards.write_shards = faulty


def not_a_number(trainer: Any) -> None:
    """The gradient of this process's part of one parameter is NaN."""
    parameter = next(trainer.state.model.parameters())
    handle = parameter.register_post_accumulate_grad_hook(
        lambda updated: (updated.grad.to_local().fill_(torch.nan), handle.remove())
    )


if __name__ == "__main__":
    fault, *arguments = sys.argv[1:]
    if fault == "kill":
        at_step(5, kill)
    elif fault == "kill-writing":
        while_writing()
    elif fault == "hang":
        at_step(5, lambda _: os.kill(os.getpid(), signal.SIGSTOP))
    elif fault == "nan":
        at_step(3, not_a_number)
    elif fault == "recipe" and is_at_fault():
        arguments += ["--seed", "1"]
    sys.exit(main(arguments))
