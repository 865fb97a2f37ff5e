"""Classes of upcycled networks for transformers' Auto classes, after whose import this file is imported: see
`register_upcycled`."""

import inspect
from functools import cache
from typing import Any, cast

import transformers
from transformers import PreTrainedModel

from vismoe.vit import MoEConfig, make_sparse

from .upcycled_config import UpcycledConfig

AUTO_CLASSES = {
    "AutoModel": "UpcycledModel",
    "AutoModelForAudioClassification": "UpcycledForAudioClassification",
    "AutoModelForImageClassification": "UpcycledForImageClassification",
    "AutoModelForMaskedLM": "UpcycledForMaskedLM",
    "AutoModelForSequenceClassification": "UpcycledForSequenceClassification",
}
"""transformers' classes that open upcycled networks, and the name of the class that each returns."""
NO_SPLIT = "_no_split_modules"
"""transformers' attribute with the blocks that must not be split over devices."""


class Upcycled(PreTrainedModel):
    """A wrapper around an upcycled network of transformers', `upcycled`. It has the same inputs and outputs.

    Instances belong to a subclass that is made for the dense network's class. It has the same parameters of `forward`,
    from which transformers' Trainer reads the names of inputs and labels, and the same attributes for gradient
    checkpointing and devices. `auto` is the name of the Auto class that opens it.
    """

    config_class = UpcycledConfig
    base_model_prefix = "upcycled"
    auto = ""

    def __new__(cls, config: UpcycledConfig | None = None, *args: Any, **kwargs: Any) -> "Upcycled":
        # A copy is made without a configuration; its class is such a subclass already.
        general: Any = cls
        built = general if config is None else _derived(general, cls.dense_class(config))
        return cast(Upcycled, super().__new__(built))

    def __init__(self, config: UpcycledConfig):
        super().__init__(config)
        self.upcycled = self.dense_class(config)(config.dense_config())
        make_sparse(self.upcycled, MoEConfig(**config.vismoe_moe))
        self.post_init()

    @classmethod
    def dense_class(cls, config: UpcycledConfig) -> Any:
        """The class of the dense network.

        **Raises:** ValueError if another Auto class must be used.
        """
        (name,) = config.dense["architectures"]
        mapped = getattr(transformers, cls.auto)._model_mapping.get(type(config.dense_config()), ())
        classes = {dense.__name__: dense for dense in (mapped if isinstance(mapped, tuple) else (mapped,))}
        if name not in classes:
            raise ValueError(f"this is an upcycled {name}, which {cls.auto} cannot open: use vismoe.load")
        return classes[name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.upcycled(*args, **kwargs)


@cache
def _derived(cls: Any, dense: Any) -> Any:
    def forward(self: Upcycled, *args: Any, **kwargs: Any) -> Any:
        return self.upcycled(*args, **kwargs)

    forward.__signature__ = inspect.signature(dense.forward)  # type: ignore[attr-defined]
    of_dense = {name: getattr(dense, name) for name in ("main_input_name", "supports_gradient_checkpointing", NO_SPLIT)}
    return type(cls.__name__, (cls,), {"forward": forward, "__module__": __name__, "__doc__": cls.__doc__, **of_dense})


def register() -> None:
    for auto, name in AUTO_CLASSES.items():
        cls = type(name, (Upcycled,), {"auto": auto, "__doc__": Upcycled.__doc__, "__module__": __name__})
        getattr(transformers, auto).register(UpcycledConfig, cls, exist_ok=True)
