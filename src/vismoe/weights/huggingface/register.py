"""Registers upcycled networks with transformers when transformers is imported."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .folder import UPCYCLED


def register_upcycled() -> None:
    """Makes transformers' Auto classes open upcycled networks, now or as soon as they are imported."""

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
    """Calls `action` now if the module `name` is imported already, otherwise right after its import."""
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

        # The loader belongs to this import only, so the change has no other effect.
        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
