"""The model section of a config is checked before anything is compiled."""

import re

import pytest
from helpers.small_model import small_config
from ml_collections import ConfigDict

from input_pipeline.io.errors import ConfigError
from unimed_jax.models.config import ModelConfig


def test_dict_and_config_dict_give_the_same() -> None:
    mapping = small_config(logit_bias_init=-10, image_mean=[0, 0.5, 1])
    config = ModelConfig.from_mapping(mapping)
    assert config == ModelConfig.from_mapping(ConfigDict(mapping))
    assert config.logit_bias_init == -10.0
    assert config.image_mean == (0.0, 0.5, 1.0)
    assert config.visual.num_tokens == 17


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"visual": {"widht": 3}},
            "unknown config key model.visual.widht; the keys of model.visual",
        ),
        ({"extra": 1}, "unknown config key model.extra"),
        ({"embed_dim": 1.5}, "model.embed_dim: expected int, got 1.5"),
        ({"embed_dim": True}, "model.embed_dim: expected int, got True"),
        ({"scan_layers": 1}, "model.scan_layers: expected bool, got 1"),
        ({"embed_dim": 0}, "model.embed_dim: expected a positive number, got 0"),
        ({"text": {"layers": -1}}, "model.text.layers: expected a positive number, got -1"),
        ({"remat": "some"}, "model.remat: 'some' is not one of 'none', 'full', 'dots'"),
        ({"visual": {"activation": "relu"}}, "model.visual.activation: 'relu' is not one of"),
        ({"image_std": (1.0, 1.0)}, "model.image_std: expected three numbers"),
        ({"image_std": (1.0, 0.0, 1.0)}, "model.image_std: expected a positive number"),
        ({"visual": {"patch_size": 7}}, "image_size 32 is not divisible by"),
        (
            {"visual": {"heads": 5}},
            "model.visual.width 32 is not divisible by model.visual.heads 5",
        ),
        ({"text": {"heads": 0}}, "model.text.heads 0"),
        ({"text": {"context_length": 41}}, "context_length 41 exceeds model.text.max_positions 40"),
        *(
            ({"text": {"buckets": buckets}}, f"model.text.buckets {buckets}: expected ascending")
            for buckets in ((8,), (8, 24), (8, 8, 16), (12, 8, 16), (0, 16))
        ),
        ({"text": {"buckets": 16}}, "model.text.buckets: expected a list of whole numbers, got 16"),
        ({"text": {"buckets": (8.0, 16)}}, "model.text.buckets: expected int, got 8.0"),
        ({"text": {"bucket_groups": 0}}, "model.text.bucket_groups: expected a positive number"),
        ({"text": {"pad_id": 99}}, "model.text.pad_id 99 is outside the vocabulary"),
        ({"text": {"dropout": 1.0}}, "model.text.dropout 1.0 is not in [0, 1)"),
        ({"text": {"projection": "none"}}, "needs model.text.width 48 equal to model.embed_dim 24"),
        ({"text": None}, "model.text: expected a mapping, got None"),
    ],
)
def test_error_names_the_key(changes: dict, message: str) -> None:
    mapping = small_config(**{k: v for k, v in changes.items() if v is not None})
    mapping.update({k: v for k, v in changes.items() if v is None})
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig.from_mapping(mapping)


def test_a_key_that_an_older_checkpoint_lacks_has_its_default() -> None:
    mapping = small_config()
    del mapping["text"]["pad_id"]
    assert ModelConfig.from_mapping(mapping) == ModelConfig.from_mapping(small_config())
