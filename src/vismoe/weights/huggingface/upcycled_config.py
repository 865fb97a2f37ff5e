"""The configuration of upcycled networks of transformers'. Imported after transformers: see `register_upcycled`."""

from typing import Any

from transformers import PreTrainedConfig

from .folder import LABELS, UPCYCLED


class UpcycledConfig(PreTrainedConfig):
    """Configuration of an upcycled network. It has the labels.

    **Arguments:**

    - `dense`: configuration of the dense network, with the name of its class in `architectures`.
    - `vismoe_moe`: fields of `vismoe.vit.MoEConfig`.
    - `entries`: further entries, as for every configuration of transformers'.
    """

    model_type = UPCYCLED

    def __init__(
        self, dense: dict[str, Any] | None = None, vismoe_moe: dict[str, Any] | None = None, **entries: Any
    ) -> None:
        super().__init__(**entries)
        self.dense, self.vismoe_moe = dense or {}, vismoe_moe or {}

    def dense_config(self) -> Any:
        """The dense network's configuration, an instance of transformers' class, with the labels of this one."""
        from transformers import CONFIG_MAPPING

        entries = {name: value for name, value in self.dense.items() if name != "model_type"}
        config = CONFIG_MAPPING[self.dense["model_type"]].from_dict(entries)
        for name in LABELS:
            setattr(config, name, getattr(self, name))
        return config
