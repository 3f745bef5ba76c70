"""Every recipe builds, is valid, and the published ones state the published numbers."""

import json

import jax
import pytest
from helpers.recipes import RECIPES, load

from input_pipeline.io.errors import ConfigError
from unimed_jax import config as config_lib
from unimed_jax.models import dual_encoder, presets


def test_a_run_older_than_optional_sources_resumes():
    config = load("unimed", "vit_b16")
    old = json.loads(config_lib.to_json(config))
    del old["data"]["optional"]
    assert config_lib.differences(config_lib.from_json(json.dumps(old)), config) == []


@pytest.mark.parametrize(("name", "variant"), RECIPES)
def test_a_recipe_is_valid_and_survives_its_json(name, variant):
    config = load(name, variant)
    config_lib.validate(config, num_devices=1)
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.differences(config, again) == []
    config_lib.validate(again, num_devices=1)


def test_a_run_older_than_a_key_resumes_with_its_default():
    config = load("quickstart", "")
    old = json.loads(config_lib.to_json(config))
    del old["optimizer"]["name"], old["data"]["raw"]
    old = config_lib.from_json(json.dumps(old))
    assert config_lib.differences(old, config) == []
    config.optimizer.name = "sgd"
    assert config_lib.differences(old, config) == ["optimizer.name: 'adamw' -> 'sgd'"]
    with config_lib.edit(config):
        config.data.sources.more = config_lib.source("more")
    assert "data.sources.more.path: 'absent' -> 'more'" in config_lib.differences(old, config)


def test_a_recipe_is_found_by_name_and_its_errors_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not a checkout
    assert config_lib.load("quickstart:smoke").num_train_steps == 20
    assert config_lib.load("lg_sdg/phantoms").task == "text_guided_segmentation"
    (tmp_path / "configs").mkdir()
    text = "from unimed_jax.config import base_config\n\ndef get_config():\n"
    (tmp_path / "configs" / "mine.py").write_text(text + "    return base_config()\n")
    assert config_lib.load("mine").task == "contrastive"
    (tmp_path / "bad.py").write_text(text + "    config = base_config()\n    config.sed = 1\n")
    for recipe, message in (
        ("quickstar", r"no recipe 'quickstar': did you mean quickstart\? .* one of mine, "),
        ("configs/none.py", r"no recipe 'configs/none.py': give FILE.py, or one of"),
        ("quickstart:none", r"quickstart:none: this recipe has no variant 'none'; valid: 'smoke'"),
        ("bad.py", r'bad.py, line 5: AttributeError: Key "sed" does not exist'),
    ):
        with pytest.raises(ConfigError, match=f"^{message}") as error:
            config_lib.load(recipe)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted({name for name, _ in RECIPES}))
def test_an_unknown_key_or_variant_is_refused(name):
    config = load(name)
    with pytest.raises((AttributeError, KeyError), match="learnin_rate"):
        config.optimizer.learnin_rate = 1.0
    with pytest.raises(TypeError):
        config.batch_size = "many"
    with pytest.raises(ConfigError, match=r"no (variant|argument) 'nonsense'"):
        load(name, "nonsense")


@pytest.mark.parametrize(
    ("variant", "num_params", "learning_rate"),
    [
        ("vit_b16", 195_903_489, 5e-4),
        ("vit_l14", 414_365_185, 4e-4),
        ("vit_l14_large_text", 639_991_809, 4e-4),
    ],
)
def test_the_published_recipes_state_the_published_numbers(variant, num_params, learning_rate):
    config = load("unimed", variant)
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


def test_an_unknown_key_is_refused_even_if_added_in_an_edit_block():
    for place, key in (("optimizer", "learnin_rate"), ("", "bach_size"), ("data.sources", "")):
        config = load("quickstart")
        with config_lib.edit(config):
            if key:
                config_lib.find(config, place)[key] = 1.0
            else:
                config.data.sources.phantoms.wieght, key = 1.0, "phantoms.wieght"
        name = f"{place}.{key}".strip(".")
        with pytest.raises(ConfigError, match=rf"unknown key config\.{name}; the keys beside it"):
            config_lib.validate(config, num_devices=1)


def test_variants_of_several_arguments():
    choices = {"data": ("drive", "chase"), "smoke": ("off", "on")}
    assert config_lib.parse_variant("", **choices) == {"data": "drive", "smoke": "off"}
    assert config_lib.parse_variant("smoke,data=chase", **choices) == {
        "data": "chase",
        "smoke": "on",
    }
    with pytest.raises(ConfigError, match="no argument 'dat'; valid: data, smoke"):
        config_lib.parse_variant("dat=chase", **choices)
    with pytest.raises(ConfigError, match="no data=stare; valid: drive, chase"):
        config_lib.parse_variant("data=stare", **choices)


def test_presets_refuse_an_unknown_tower():
    assert presets.visual("vit_l14", image_size=336) == {
        "width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096, "patch_size": 14,
        "image_size": 336,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="text tower 'bert_tiny'; valid: minilm_l6, bert_base"):
        presets.text("bert_tiny")
