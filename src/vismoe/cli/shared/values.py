"""Optional values in help texts: `X | None` is shown as X; and checks of values."""

from dataclasses import replace
from types import NoneType
from typing import get_args

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

UNSET = "unset"
REGISTRY = ConstructorRegistry()


def check_at_least(smallest: int, **options: int) -> None:
    """Raises ValueError for an option that is less than `smallest`. The message names only this option."""
    for name, value in options.items():
        if value < smallest:
            raise ValueError(f"{name}={value}: accepted are at least {smallest}")


@REGISTRY.primitive_rule
def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """tyro's rule for X, but None is accepted as the default."""
    kinds = get_args(info.type)
    if len(kinds) != 2 or NoneType not in kinds:
        return None
    inner = ConstructorRegistry.get_primitive_spec(
        PrimitiveTypeInfo.make(next(kind for kind in kinds if kind is not NoneType), info.markers)
    )
    if not isinstance(inner, PrimitiveConstructorSpec):
        return None
    return replace(
        inner,
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: [UNSET] if value is None else inner.str_from_instance(value),
    )
