"""Which evaluators a task takes, what is said of their keys, and configs of older versions."""

import json

import pytest
from helpers.recipes import load

from input_pipeline.io.errors import ConfigError
from unimed_jax import config as config_lib
from unimed_jax import tasks
from unimed_jax.evals import registry

CASES = {
    "contrastive": ("quickstart", "zero_shot"),
    "text_guided_segmentation": ("lg_sdg/phantoms", "segmentation"),
    "volumetric_segmentation": ("lwi_vms/phantoms", "segmentation"),
}


@pytest.mark.parametrize(("task", "recipe"), [(t, r) for t, (r, _) in CASES.items()])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batchsize": 4}, r"unknown key config.evals.NAME.batchsize; the keys of .* batch_size"),
        ({"batch_size": "many"}, r"config.evals.NAME.batch_size='many'"),
        ({"kind": "zero"}, r"config.evals.NAME.kind='zero'; valid: "),
    ],
)
def test_a_wrong_key_of_any_evaluator_is_named_before_compilation(task, recipe, change, message):
    config = load(recipe)
    name = CASES[task][1]
    entry = {**config.evals[name].to_dict(), **change}
    with config_lib.edit(config):
        config.evals = {name: entry}
    with pytest.raises(ConfigError, match=message.replace("NAME", name)):
        config_lib.validate(config, 1)


def test_a_wrong_key_of_a_target_is_named():
    config = load("lg_sdg/phantoms")
    with config_lib.edit(config):
        config.evals.segmentation.targets.warm.split = "val"
    with pytest.raises(ConfigError, match=r"config.evals.segmentation.targets.warm.split; .*split"):
        config_lib.validate(config, 1)
    config = load("lg_sdg/phantoms")
    config.evals.segmentation.unit = "slice"
    with pytest.raises(ConfigError, match="unit='slice' is not possible; valid: 'image', 'volume'"):
        config_lib.validate(config, 1)


def test_every_task_has_its_default_evaluator_or_says_that_there_is_none():
    for task, kind in (
        ("contrastive", "zero_shot"),
        ("text_guided_segmentation", "segmentation"),
        ("volumetric_segmentation", "volumes"),
    ):
        evals = registry.default(task, tasks.task_class(task).evaluator_classes)
        assert [entry.kind for entry in evals.values()] == [kind]
    none = tasks.task_class("volumetric_init").evaluator_classes
    with pytest.raises(ConfigError, match="the task volumetric_init has no evaluators"):
        registry.default("volumetric_init", none)
    with pytest.raises(ConfigError, match="kind='volumes'; valid: none, this task has no"):
        registry.complete("volumes", {}, none)


def test_every_evaluator_completes_its_defaults():
    for kind, evaluator in registry.EVALUATORS.items():
        assert set(config_lib.evaluator(kind)) == {"kind", *evaluator.DEFAULTS}
        again = registry.complete(kind, json.loads(config_lib.evaluator(kind).to_json()))
        assert again.to_json() == config_lib.evaluator(kind).to_json()


def test_a_config_of_an_older_version_gets_the_new_names_and_defaults():
    config = load("lwi_vms/covid_ct", "smoke")
    old = json.loads(config_lib.to_json(config))
    data = old["data"]
    old["crop"], old["crops"] = data.pop("crop_size"), data.pop("crops_per_volume")
    old["foreground"], old["spacing"] = data.pop("foreground_probability"), data.pop("spacing")
    old["window"] = old.pop("inference")["intensity_window"]
    old["augmentation"]["turn"] = old["augmentation"].pop("rot90")
    stage = old["stages"]["init"]
    pretext = stage.pop("pretext")
    stage["sub_volumes"] = pretext["num_sub_volumes"]
    stage["mask"] = {"cube": pretext["mask_cube"], "ratio": pretext["mask_ratio"]}
    stage["weights"] = {"reconstruction": 1.0, "order": 1.0}
    old["optimizer"]["kind"] = old["optimizer"].pop("name")
    upgraded = config_lib.from_json(json.dumps(old))
    assert config_lib.to_json(upgraded) == config_lib.to_json(config)
    assert config_lib.differences(upgraded, config) == []
