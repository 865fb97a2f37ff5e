"""The configuration of upcycled networks of transformers'. Imported only after transformers: see
`register_upcycled`."""

from typing import Any

from transformers import PreTrainedConfig

from .folder import LABELS, UPCYCLED


class UpcycledConfig(PreTrainedConfig):
    """`dense`: the configuration of the dense network, with its class as `architectures`; `vismoe_moe`: fields of
    `vismoe.vit.MoEConfig`. Labels are this configuration's own."""

    model_type = UPCYCLED

    def __init__(
        self, dense: dict[str, Any] | None = None, vismoe_moe: dict[str, Any] | None = None, **entries: Any
    ) -> None:
        super().__init__(**entries)
        self.dense, self.vismoe_moe = dense or {}, vismoe_moe or {}

    def dense_config(self) -> Any:
        """The dense network's configuration, of transformers' class, with the labels of this one."""
        from transformers import CONFIG_MAPPING

        entries = {name: value for name, value in self.dense.items() if name != "model_type"}
        config = CONFIG_MAPPING[self.dense["model_type"]].from_dict(entries)
        for name in LABELS:
            setattr(config, name, getattr(self, name))
        return config
