"""The backbones by name: to add one is to write its class and to add it here.

Image and text towers are built from (ModelConfig, Rngs), 2-D networks from (UNetConfig, Rngs), 3-D
networks from (their ``config_class``, crop size, input channels, output channels, Rngs). Every
class declares ``parameter_axes`` (`layers.TRANSFORMER_BLOCK_AXES`).
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from input_pipeline.io.errors import ConfigError
from unimed_jax.models.bert import Bert
from unimed_jax.models.unet import EfficientUNet, ResNetUNet, UNet, ViTUNet
from unimed_jax.models.unetr import UNETR
from unimed_jax.models.unetr_pp import UNETRPP
from unimed_jax.models.vit import VisionTransformer

IMAGE_TOWERS: Mapping[str, type[nnx.Module]] = {"vit": VisionTransformer}
TEXT_TOWERS: Mapping[str, type[nnx.Module]] = {"bert": Bert}
NETWORKS_2D: Mapping[str, type[UNet]] = {
    "resnet34": ResNetUNet,
    "efficientnet_b2": EfficientUNet,
    "vit": ViTUNet,
}
NETWORKS_3D: Mapping[str, type[nnx.Module]] = {"unetr": UNETR, "unetr_pp": UNETRPP}


def lookup(registry: Mapping[str, Any], name: str, key: str) -> Any:
    """The class of that name.

    Raises:
      ConfigError: there is none; names the config key and the valid names.
    """
    if name not in registry:
        valid = ", ".join(map(repr, registry))
        raise ConfigError(f"config.{key}={name!r} is not possible; valid: {valid}")
    return registry[name]
