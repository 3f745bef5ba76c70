"""The dual encoder as pure functions on a plain nested dict of arrays; NNX ends at this file."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.models.bert import Bert
from unimed_jax.models.config import ModelConfig
from unimed_jax.models.vit import VisionTransformer

Params = dict[str, Any]
"""A nested dict of arrays: {"visual": ..., "text": ..., "logit_scale": (), ["logit_bias": ()]}."""


class DualEncoder:
    """An image tower and a text tower with one embedding space.

    Nothing here holds parameters: `init` returns them and every other method takes them.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._visual = _graphdef(VisionTransformer, config)
        self._text = _graphdef(Bert, config)

    def init(self, key: jax.Array) -> Params:
        """Parameters of dtype `param_dtype` (the logit scalars float32), a function of `key` alone.

        Pure: `jax.eval_shape(model.init, key)` gives shapes without memory, and
        `jax.jit(model.init, out_shardings=...)` creates each array where it belongs.
        """
        visual_key, text_key = jax.random.split(key)
        params: Params = {
            "visual": _params(VisionTransformer(self.config, nnx.Rngs(visual_key))),
            "text": _params(Bert(self.config, nnx.Rngs(text_key))),
            "logit_scale": jnp.float32(self.config.logit_scale_init),
        }
        if self.config.logit_bias_init is not None:
            params["logit_bias"] = jnp.float32(self.config.logit_bias_init)
        return params

    def encode_image(self, params: Params, images: jax.Array) -> jax.Array:
        """uint8 RGB (B, S, S, 3) -> float32 (B, E), not normalised.

        Pixels are scaled to (x/255 - mean)/std in float32 here, on the device.
        """
        return nnx.merge(self._visual, params["visual"])(images)

    def encode_text(
        self, params: Params, ids: jax.Array, *, dropout_rng: jax.Array | None = None
    ) -> jax.Array:
        """int32 (B, T) -> float32 (B, E), not normalised.

        Args:
            ids: [CLS] first, padded with `pad_id`; T may be anything up to `max_positions`.
            dropout_rng: key of this step's dropout; None switches dropout off.
        """
        return nnx.merge(self._text, params["text"])(ids, dropout_rng)


def build(model_config: Mapping[str, Any] | ModelConfig) -> DualEncoder:
    """The model of a config's `model` section. Raises ConfigError naming the offending key."""
    if not isinstance(model_config, ModelConfig):
        model_config = ModelConfig.from_mapping(model_config)
    return DualEncoder(model_config)


def _graphdef(tower: type[nnx.Module], config: ModelConfig) -> nnx.GraphDef:
    abstract = nnx.eval_shape(lambda: tower(config, nnx.Rngs(0)))
    graphdef, _, rest = nnx.split(abstract, nnx.Param, ...)
    assert not jax.tree.leaves(rest), f"{tower.__name__} holds state besides parameters: {rest}"
    return graphdef


def _params(tower: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(tower, nnx.Param))
