"""The backbones by name; to add one, write its class and add it here.

Image and text towers are built from (ModelConfig, Rngs), 2-D networks from (UNetConfig, Rngs), 3-D
networks from (their ``config_class``, crop size, input channels, output channels, Rngs). Every
class declares ``parameter_axes`` (``layers.TRANSFORMER_BLOCK_AXES``).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
from flax import nnx

from input_pipeline.io.errors import ConfigError
from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.models.bert import Bert
from unimed_jax.models.unet import EfficientUNet, ResNetUNet, UNet, ViTUNet
from unimed_jax.models.unetr import UNETR
from unimed_jax.models.unetr_pp import UNETRPP
from unimed_jax.models.vit import VisionTransformer


class VolumetricNetwork(Protocol):
    """A 3-D network as ``models.volumetric`` builds and calls it.

    Attributes:
      config_class: dataclass of the sizes of the network.
      parameter_axes: logical axes of the parameters and statistics, relative to the network.
    """

    config_class: ClassVar[type[Any]]
    parameter_axes: ClassVar[ParameterAxes]

    def __init__(
        self,
        config: Any,
        crop: tuple[int, int, int],
        in_channels: int,
        num_outputs: int,
        rngs: nnx.Rngs,
    ) -> None: ...

    def __call__(
        self, x: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Volumes (B, D, H, W, C) -> logits of every output, features of every stage."""


IMAGE_TOWERS: Mapping[str, type[nnx.Module]] = {"vit": VisionTransformer}
TEXT_TOWERS: Mapping[str, type[nnx.Module]] = {"bert": Bert}
NETWORKS_2D: Mapping[str, type[UNet]] = {
    "resnet34": ResNetUNet,
    "efficientnet_b2": EfficientUNet,
    "vit": ViTUNet,
}
NETWORKS_3D: Mapping[str, type[VolumetricNetwork]] = {"unetr": UNETR, "unetr_pp": UNETRPP}


def lookup(registry: Mapping[str, Any], name: str, key: str) -> Any:
    """Looks up a class by name.

    Args:
      registry: name -> class.
      name: name of the class.
      key: config key that holds the name, for the message.

    Raises:
      ConfigError: the name is unknown; the message lists the valid names.
    """
    if name not in registry:
        valid = ", ".join(map(repr, registry))
        raise ConfigError(f"config.{key}={name!r} is not possible; valid: {valid}")
    return registry[name]
