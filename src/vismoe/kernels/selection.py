"""Which compiled kernels serve: those for the best instruction set that the processor has, or none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

VARIABLE = "VISMOE_KERNELS"
"""Environment variable: 0 turns the kernels off; baseline, AVX2, AVX-512, AVX512-BF16, AMX or NEON selects an
instruction set."""


def _load() -> tuple[Any, str]:
    """The extension module, or None, and what serves, in words.

    **Raises:** ValueError where the environment asks for an instruction set that the processor does not have.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "0":
        return None, f"none ({VARIABLE}=0)"
    try:
        module = import_module("vismoe.kernels._native")
    except ImportError as error:
        if wanted:
            raise ValueError(f"{VARIABLE}={wanted}: vismoe was installed without compiled kernels ({error})") from error
        return None, "none (vismoe was installed without compiled kernels)"
    name = module.select(wanted)
    if name is None:
        accepted = ", ".join(["0", *module.names()])
        raise ValueError(f"{VARIABLE}={wanted}: accepted on this processor are {accepted}")
    return module, name if module.pool() else f"{name}, one thread (PyTorch's OpenMP threads were not found)"


_MODULE, _NAME = _load()
_IN_USE = _MODULE


def native() -> Any:
    """The extension module, or None while no kernels are in use."""
    return _IN_USE


def kernels_in_use() -> str:
    """The compiled kernels in use, by instruction set ("AMX", "AVX512-BF16", "AVX-512", "AVX2", "baseline", "NEON"), or
    "none" and why."""
    return _NAME


@contextmanager
def using_kernels(name: str | None) -> Iterator[None]:
    """Inside the block the whole process uses other kernels. What `vismoe.optimize` packed does not fit
    others.

    **Arguments:** `name`: an instruction set; None: no kernels.

    **Raises:** ValueError for an instruction set that is not there.
    """
    global _IN_USE, _NAME
    before = _IN_USE, _NAME
    if name is not None and (_MODULE is None or _MODULE.select(name) is None):
        accepted = ", ".join(_MODULE.names()) if _MODULE is not None else "none: vismoe was installed without kernels"
        raise ValueError(f"kernels {name!r}: accepted are {accepted}")
    _IN_USE, _NAME = (None, "none (inside using_kernels)") if name is None else (_MODULE, name)
    try:
        yield
    finally:
        _IN_USE, _NAME = before
        if _MODULE is not None and _IN_USE is not None:
            _MODULE.select(_NAME.partition(",")[0])
