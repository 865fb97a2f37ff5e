"""Which parameters get no weight decay; timm's feature extractor, which says it of the network in it."""

from timm.models._features import FeatureGetterNet  # under no public name
from torch import nn

from vismoe.moe import MoE


def stacked_vectors(model: nn.Module) -> set[str]:
    """Names of the experts' biases and norms. They are stacked vectors (E, h), which timm would take for matrices."""
    return {
        name
        for path, layer in model.named_modules()
        if isinstance(layer, MoE)
        for name, parameter in layer.experts.named_parameters(prefix=f"{path}.experts" if path else "experts")
        if parameter.ndim <= 2
    }


def without_weight_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that should get no weight decay, besides vectors: those that the `no_weight_decay` of the
    network names, or of networks inside it if it has no such method (in a wrapper, a detector, …), and the experts'
    biases and norms.

    **Arguments:**

    - `model`: any network.
    """
    return stacked_vectors(model) | _named(model, "")


def _named(module: nn.Module, prefix: str) -> set[str]:
    # The class's method: a compiled module passes attributes on, with names that are not its parameters'.
    if hasattr(type(module), "no_weight_decay"):
        named: set[str] = module.no_weight_decay()  # type: ignore[operator]
        return {prefix + name for name in named}
    return {name for path, child in module.named_children() for name in _named(child, f"{prefix}{path}.")}


class FeatureTrunk(FeatureGetterNet):
    """timm's feature extractor (`features_only=True`) with the `no_weight_decay` of the network in it, which timm's
    optimisers ask for."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that get no weight decay."""
        return {f"model.{name}" for name in without_weight_decay(self.model)}
