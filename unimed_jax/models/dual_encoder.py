"""The dual encoder as pure functions of a nested dict of arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.models import registry
from unimed_jax.models.config import ModelConfig
from unimed_jax.models.functional import Functional, Params, axes_under


class DualEncoder:
    """An image tower and a text tower with a joint embedding space.

    The model holds no parameters: ``init`` returns them and the other methods take them. They are
    {"visual": ..., "text": ..., "logit_scale": (), ["logit_bias": ()]}.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        visual = registry.lookup(
            registry.IMAGE_TOWERS, config.visual.architecture, "model.visual.architecture"
        )
        text = registry.lookup(
            registry.TEXT_TOWERS, config.text.architecture, "model.text.architecture"
        )
        self._visual = Functional(lambda rngs: visual(config, rngs))
        self._text = Functional(lambda rngs: text(config, rngs))
        for name, tower in (("visual", self._visual), ("text", self._text)):
            assert not tower.has_statistics, f"the {name} tower holds state besides parameters"
        self.parameter_axes: ParameterAxes = (
            *axes_under("visual", visual.parameter_axes),
            *axes_under("text", text.parameter_axes),
            (r"^logit_(scale|bias)$", ()),
        )

    def init(self, key: jax.Array) -> Params:
        """Random parameters of dtype ``param_dtype`` (the logit scalars: float32).

        A pure function of ``key``, like ``Functional.init``.
        """
        visual_key, text_key = jax.random.split(key)
        params: Params = {
            "visual": self._visual.init(visual_key),
            "text": self._text.init(text_key),
            "logit_scale": jnp.float32(self.config.logit_scale_init),
        }
        if self.config.logit_bias_init is not None:
            params["logit_bias"] = jnp.float32(self.config.logit_bias_init)
        return params

    def encode_image(
        self, params: Params, images: jax.Array, *, dropout_rng: jax.Array | None = None
    ) -> jax.Array:
        """RGB images, uint8 (B, S, S, 3) -> float32 (B, E), not normalized.

        Pixels are scaled to (x/255 - mean)/std in float32 on the device.

        Args:
          params: parameters, at least of the image tower.
          images: the images.
          dropout_rng: key of this step for ``visual.patch_dropout``; None keeps all patches.
        """
        tower = self._visual.bind(params["visual"])
        return tower(images) if dropout_rng is None else tower(images, dropout_rng)

    def encode_text(
        self, params: Params, ids: jax.Array, *, dropout_rng: jax.Array | None = None
    ) -> jax.Array:
        """int32 (B, T) -> float32 (B, E), not normalized.

        Args:
          params: parameters, at least of the text tower.
          ids: token ids, [CLS] first, padded with ``pad_id``; T is at most ``max_positions``.
          dropout_rng: dropout key of this step; None disables dropout.
        """
        return self._text.bind(params["text"])(ids, dropout_rng)


def build(model_config: Mapping[str, Any] | ModelConfig) -> DualEncoder:
    """Builds the model of a ``model`` section. Raises ConfigError naming the offending key."""
    if not isinstance(model_config, ModelConfig):
        model_config = ModelConfig.from_mapping(model_config)
    return DualEncoder(model_config)
