"""`python -c CODE …` and `python -m vismoe …` without the seconds that imports take: a process that has imported all of
vismoe forks a child for each, with the caller's files, folder, environment and exit code.

The fixture `forked` (conftest.py) is its command; what tests importing itself, or signals to a group of processes,
starts a real Python.
"""

import atexit
import contextlib
import functools
import json
import os
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import traceback
import warnings
from importlib import import_module
from pathlib import Path

PRELOADED = (
    "vismoe.cli.shared.values",
    "vismoe.adapt",
    "vismoe.explain.routing_figure",
    "vismoe.recipes",
    "torch.onnx",
    "torchmetrics",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "onnxscript",
)
"""What starts no thread: a child has none of its parent's, and would wait for them (onnxruntime starts one)."""

# Started without site-packages, in some 20 ms. What asks it to stop asks the child; what ends that ends this too.
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    said = server.makefile()
    child = int(said.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    code = int(said.readline())
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


VARIABLE = "VISMOE_TESTS_FORKED"
"""Names the command, where the process that started this one has made it."""


@functools.cache
def command() -> Path:
    """The path of a command that is used as Python's would be; bin/vismoe beside it is `-m vismoe`. It is there until
    this process ends, or the one that told of it."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    folder = Path(tempfile.mkdtemp())  # a socket's address must be short
    address, command, vismoe = str(folder / "socket"), folder / "python", folder / "bin" / "vismoe"
    vismoe.parent.mkdir()
    command.write_text(CLIENT.format(python=sys.executable, address=address))
    vismoe.write_text(f'#!/bin/sh\nexec "{command}" -m vismoe "$@"\n')
    for script in (command, vismoe):
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with socket.socket(socket.AF_UNIX) as listener:  # callers wait here until the server has imported all it needs
        listener.bind(address)
        listener.listen()
        start, environment = [sys.executable, __file__, str(listener.fileno())], os.environ | {"OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(start, env=environment, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()])
    atexit.register(_end, server, folder)
    return command


def _end(server: subprocess.Popen[bytes], folder: Path) -> None:
    server.kill()
    server.wait()
    shutil.rmtree(folder)


def requests(listener: int) -> list[str]:
    """Serves at a socket that listens, as long as the process that started this one is there; comes back in each
    child, with its arguments."""
    with socket.socket(fileno=listener) as server:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
        tasks = Path("/proc/self/task")  # threads of libraries too, which Python does not know
        assert not tasks.exists() or len(list(tasks.iterdir())) == 1
        server.settimeout(5)
        parent = os.getppid()
        while True:
            try:
                caller, _ = server.accept()
            except TimeoutError:
                if os.getppid() != parent:  # it was killed
                    shutil.rmtree(Path(server.getsockname()).parent)
                    os._exit(0)
                continue
            if not os.fork():
                break
            caller.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, *_ = socket.recv_fds(caller, 8, 3)
    with caller.makefile("rb") as said:
        arguments, folder, environment = json.loads(said.read(int.from_bytes(head, "big")))
    if child := os.fork():
        for file in files:  # so that a reader of the child's sees its end
            os.close(file)
        with contextlib.suppress(BrokenPipeError):  # a caller that was killed
            caller.sendall(f"{child}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            caller.sendall(f"{code}\n".encode())
        os._exit(0)
    caller.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def ended_by(kind: str, what: str, arguments: list[str]) -> int:
    """The exit code of a module or of code, which is left as Python leaves it but for the seconds in which it takes
    all modules apart."""
    sys.path[0], sys.argv = "", [kind, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            assert kind == "-c", kind
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return 120
    return code


if __name__ == "__main__":
    import sketches

    for module in PRELOADED:
        import_module(module)
    arguments = [argument for argument in requests(int(sys.argv[1])) if argument != "-u"]  # torchrun says that
    if arguments[:2] == ["-W", "error"]:
        warnings.simplefilter("error")
        del arguments[:2]
    if sketches.VARIABLE in os.environ:
        sketches.sketch()
    kind, what, *rest = arguments
    os._exit(ended_by(kind, what, rest))
