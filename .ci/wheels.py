"""Builds both wheels, installs each in an environment of its own without a compiler, and checks what is in use there.

    python .ci/wheels.py             # or: make wheels; dependencies of the Python that runs it: about two minutes
    python .ci/wheels.py --fresh     # dependencies installed anew: gigabytes, minutes

Writes dist/vismoe-VERSION-cp311-abi3-PLATFORM.whl (with compiled kernels; needs a C++ compiler here) and
dist/vismoe-VERSION-py3-none-any.whl (pure). Exit status: 0; 1 with the reason if something is not as it should be.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECK = """
import sys, sysconfig, torch, vismoe
from importlib.metadata import version
from vismoe.moe import loop
assert vismoe.__file__.startswith(sysconfig.get_path("purelib")), vismoe.__file__
torch.manual_seed(0)
layer = vismoe.MoE(vismoe.TopKRouter(32, 8, 2), vismoe.MLPExperts(32, 64, 8)).eval()
x = torch.randn(2, 50, 32)
with torch.inference_mode():
    y = layer(x)
    layer.product = loop
    assert torch.allclose(y, layer(x), atol=1e-5)
print(version("vismoe"), vismoe.kernels_in_use(), sep="\\t")
"""


def run(*command: str | Path, **variables: str) -> str:
    """Runs a command; returns what it printed.

    **Raises:** SystemExit with its output if it fails.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT if "build" in command else tempfile.gettempdir(),
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def build(dist: Path, kernels: bool) -> Path:
    """Builds a wheel, and checks its name and whether it has a compiled module."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, VISMOE_BUILD_KERNELS=str(int(kernels)))
        (made,) = Path(folder).glob("*.whl")
        dist.mkdir(exist_ok=True)
        wheel = dist / made.name
        wheel.write_bytes(made.read_bytes())
    modules = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".so", ".pyd", ".dylib"))]
    if len(modules) != int(kernels):
        why = "was it compiled? it needs GCC 11 or Clang 14" if kernels else "it should be pure"
        raise SystemExit(f"{wheel.name} has the compiled modules {modules}: {why}")
    if ("-cp311-abi3-" in wheel.name) != kernels or wheel.name.endswith("-py3-none-any.whl") == kernels:
        raise SystemExit(f"{wheel.name}: expected the tags {'cp311-abi3-PLATFORM' if kernels else 'py3-none-any'}")
    return wheel


def environment(folder: Path, packages: str | None) -> Path:
    """A new environment, which sees the packages of a folder; returns its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    if packages is not None:
        own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        (Path(own) / "dependencies.pth").write_text(packages + "\n")
    return python


def pip_for(python: Path) -> tuple[str | Path, ...]:
    """This Python's pip, for another one's environment."""
    return sys.executable, "-m", "pip", "--python", python


def dependencies(folder: Path) -> str:
    """Installs what the core needs into a new environment; returns the folder of its packages."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    python = environment(folder, None)
    run(*pip_for(python), "install", "-q", "-c", ROOT / "constraints.txt", *wanted)
    return run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="install the dependencies anew")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder of the wheels")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.fresh:
            packages = dependencies(Path(folder) / "dependencies")
        else:
            packages = run(sys.executable, "-c", "import torch; print(torch.__path__[0].rpartition('/')[0])").strip()
        for kernels in (True, False):
            wheel = build(arguments.dist, kernels)
            python = environment(Path(folder) / wheel.stem, packages)
            nothing = {"PATH": str(python.parent), "CC": "false", "CXX": "false"}
            options = ("-q", "--no-index", "--no-deps", "--ignore-installed")
            run(*pip_for(python), "install", *options, wheel, **nothing)
            if arguments.fresh:  # nothing that the wheel needs is missing
                run(*pip_for(python), "check", **nothing)
            version, _, used = run(python, "-c", CHECK, **nothing).strip().partition("\t")
            if used.startswith("none") == kernels:
                raise SystemExit(f"{wheel.name}: kernels in use: {used}")
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, vismoe {version}, kernels in use: {used}")


if __name__ == "__main__":
    main()
