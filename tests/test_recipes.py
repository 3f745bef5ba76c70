"""Every recipe builds, is valid, and the published ones state the published numbers."""

import json

import jax
import pytest
from helpers.recipes import CONFIGS, load

from input_pipeline.io.errors import ConfigError
from unimed_jax import config as config_lib
from unimed_jax.models import dual_encoder

RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py"))


def test_the_recipes_are_there():
    assert {"quickstart", "minimed", "unimed_vit_b16", "unimed_vit_l14_336_base_text",
            "unimed_vit_l14_336_large_text"} <= set(RECIPES)  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_survives_its_json(name):
    config = load(name)
    config_lib.validate(config, num_devices=1)
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.differences(config, again) == []
    config_lib.validate(again, num_devices=1)


def test_a_run_from_before_a_key_goes_on_with_the_default_of_it():
    config = load("quickstart", "")
    old = json.loads(config_lib.to_json(config))
    del old["optimizer"]["kind"], old["data"]["raw"]
    old = config_lib.from_json(json.dumps(old))
    assert config_lib.differences(old, config) == []
    config.optimizer.kind = "sgd"
    assert config_lib.differences(old, config) == ["optimizer.kind: 'adamw' -> 'sgd'"]
    with config_lib.edit(config):
        config.data.sources.more = config_lib.source("more")
    assert "data.sources.more.path: 'absent' -> 'more'" in config_lib.differences(old, config)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_key_or_variant_is_refused(name):
    config = load(name)
    with pytest.raises((AttributeError, KeyError), match="learnin_rate"):
        config.optimizer.learnin_rate = 1.0
    with pytest.raises(TypeError):
        config.batch_size = "many"
    with pytest.raises(ConfigError, match="no variant 'nonsense'"):
        load(name, "nonsense")


@pytest.mark.parametrize(
    ("name", "num_params", "learning_rate"),
    [
        ("unimed_vit_b16", 195_903_489, 5e-4),
        ("unimed_vit_l14_336_base_text", 414_365_185, 4e-4),
        ("unimed_vit_l14_336_large_text", 639_991_809, 4e-4),
    ],
)
def test_the_published_recipes_are_the_published_ones(name, num_params, learning_rate):
    config = load(name)
    model = dual_encoder.build(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == num_params
    assert config.batch_size == 2048
    assert config.num_epochs == 10
    assert len(config.data.sources) == 13
    optimizer = config.optimizer
    assert optimizer.learning_rate == learning_rate
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.98, 1e-6)
    assert (optimizer.weight_decay, optimizer.warmup_steps) == (0.2, 2000)
    assert (optimizer.schedule, optimizer.clip_norm) == ("cosine", 0.0)
    assert config.model.text.context_length == 256
    assert config.augmentation.min_area == 0.9
