"""Registers upcycled networks with transformers, once that is imported."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .folder import UPCYCLED


def register_upcycled() -> None:
    """transformers' Auto classes open upcycled networks, whenever they are imported."""

    def configuration() -> None:
        from transformers import AutoConfig

        from .upcycled_config import UpcycledConfig

        AutoConfig.register(UPCYCLED, UpcycledConfig, exist_ok=True)

    def models() -> None:
        from .upcycled import register

        register()

    when_imported("transformers.models.auto.configuration_auto", configuration)
    when_imported("transformers.models.auto.modeling_auto", models)


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Calls `action` now where the module `name` is imported already, else right after its import."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Finder(name, action))


class _Finder(MetaPathFinder):
    def __init__(self, name: str, action: Callable[[], None]):
        self.name, self.action = name, action

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.action()

        # This loader serves this one import only: nothing else sees the change.
        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
