"""Upcycled networks for transformers' Auto classes. Imported only after those: see `register_upcycled`."""

from typing import Any

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
"""transformers' classes that open upcycled networks, with the class that each returns."""


class Upcycled(PreTrainedModel):
    """A network of transformers', `upcycled`, with experts in place of some MLPs; it is called as that network is and
    returns the same. `auto`: the Auto class that opens it."""

    config_class = UpcycledConfig
    base_model_prefix = "upcycled"
    auto = ""

    def __init__(self, config: UpcycledConfig):
        super().__init__(config)
        dense, (name,) = config.dense_config(), config.dense["architectures"]
        dense_classes = getattr(transformers, self.auto)._model_mapping.get(type(dense), ())
        classes = {
            cls.__name__: cls for cls in (dense_classes if isinstance(dense_classes, tuple) else (dense_classes,))
        }
        if name not in classes:
            raise ValueError(f"this is an upcycled {name}, which {self.auto} does not open: vismoe.load does")
        self.upcycled = classes[name](dense)
        make_sparse(self.upcycled, MoEConfig(**config.vismoe_moe))
        self.main_input_name = self.upcycled.main_input_name
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.upcycled(*args, **kwargs)


def register() -> None:
    for auto, name in AUTO_CLASSES.items():
        cls = type(name, (Upcycled,), {"auto": auto, "__doc__": Upcycled.__doc__, "__module__": __name__})
        getattr(transformers, auto).register(UpcycledConfig, cls, exist_ok=True)
