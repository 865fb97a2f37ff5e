"""Old names of functions, methods and arguments. They work for one version, with a DeprecationWarning."""

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed_functions(module: str, new_names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that finds functions by their old names.

    **Arguments:**

    - `module`: full name of the module.
    - `new_names`: the new name of each old name.

    **Returns:** a function to assign to `__getattr__` in the module.
    """

    def find(name: str) -> Any:
        if name not in new_names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", new_names[name])
        return getattr(sys.modules[module], new_names[name])

    return find


def renamed_method(old: str, new: str) -> Any:
    """A method with an old name that calls the method with the new name.

    **Arguments:**

    - `old`: the old name, the one that this method is assigned to.
    - `new`: the new name.
    """

    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        _warn(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)(*arguments, **options)

    return method


def renamed_property(old: str, new: str) -> Any:
    """A property with an old name that returns the property with the new name; arguments as `renamed_method`."""

    def value(self: Any) -> Any:
        _warn(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)

    return property(value)


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of a function that also accepts a keyword argument by its old name.

    **Arguments:**

    - `old`: the old name.
    - `new`: the new name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def renaming(*arguments: P.args, **options: P.kwargs) -> R:
            if old in options:
                if new in options:
                    raise TypeError(f"{old} is the old name of {new}: give {new} alone")
                _warn(f"{function.__qualname__.removesuffix('.__init__')}({old}=…)", new)
                options[new] = options.pop(old)
            return function(*arguments, **options)

        return renaming

    return decorate


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=3)
