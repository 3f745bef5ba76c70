"""Optional sources without a corpus are left out by name, never silently, never for a typo."""

import json
import shutil

import jax
import pytest
from helpers.recipes import load

from input_pipeline.io.errors import ConfigError, CorpusError, UserError
from unimed_jax import config as config_lib
from unimed_jax import train
from unimed_jax.training import data_location

RUN = {"evals": {}, "num_train_steps": 2, "checkpoint__every_steps": 1}


@pytest.fixture
def config(tiny_config, phantom_corpus, tmp_path):
    """A config of the corpora `one` and `two`, which are there, and of `chexpert`, optional too."""

    def make(**changes):
        for name in ("one", "two"):
            if not (tmp_path / "corpora").joinpath(name).exists():
                shutil.copytree(phantom_corpus, tmp_path / "corpora" / name)
        found = tiny_config(
            **RUN, data__root=str(tmp_path / "corpora"), tokenizer="root:one/vocab.txt"
        )
        with config_lib.edit(found):
            del found.data.sources["phantoms"]
            for name in ("one", "two", "chexpert"):
                found.data.sources[name] = config_lib.source(name)
        found.data.optional = ("one", "two", "chexpert")
        found.update_from_flattened_dict(changes)
        return found

    return make


def test_a_missing_part_is_left_out_and_named(config, tmp_path):
    given = config()
    kept = data_location.without_missing(given, str(tmp_path / "run"))
    assert sorted(kept.data.sources) == ["one", "two"]
    assert (kept.data.optional, kept.data.left_out) == (("one", "two"), ("chexpert",))
    assert sorted(given.data.sources) == ["chexpert", "one", "two"]  # untouched
    again = data_location.without_missing(kept, str(tmp_path / "run"))
    assert config_lib.differences(kept, again) == []
    config_lib.validate(kept, num_devices=1)


def test_nothing_is_left_out_if_all_is_there_or_nothing_is_optional(config, tmp_path):
    config()
    shutil.copytree(tmp_path / "corpora" / "one", tmp_path / "corpora" / "chexpert")
    assert data_location.without_missing(found := config(), "run") is found
    shutil.rmtree(tmp_path / "corpora" / "chexpert")
    strict = config()
    strict.data.optional = ()
    assert data_location.without_missing(strict, "run") is strict
    with pytest.raises(CorpusError, match=r"corpora/chexpert does not exist"):
        train.train(strict, tmp_path / "run")


def test_a_misspelt_folder_is_not_a_missing_part(config, tmp_path):
    config()
    shutil.copytree(tmp_path / "corpora" / "one", tmp_path / "corpora" / "chexprt")
    with pytest.raises(ConfigError, match=r"chexprt is a corpus that .*/chexpert: rename"):
        data_location.without_missing(config(), "run")
    # a corpus of a quite different name is nobody's misspelling
    (tmp_path / "corpora" / "chexprt").rename(tmp_path / "corpora" / "own_hospital")
    assert data_location.without_missing(config(), "run").data.left_out == ("chexpert",)


def test_an_unfinished_conversion_is_not_a_missing_part(config, tmp_path):
    config()
    (tmp_path / "corpora" / "chexpert").mkdir()
    with pytest.raises(CorpusError, match=r"corpora/chexpert has no manifest.json"):
        train.train(config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.root", "corpra", r"data.root=corpra: there is none of chexpert, one, two"),
        ("data.optional", ("chexprt",), r"data.optional=\('chexprt',\).*chexpert"),
    ],
)
def test_a_misspelt_name_is_refused(config, tmp_path, key, value, message):
    wrong = config(**{key: value})
    with pytest.raises(ConfigError, match=message):
        train.train(wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_published_recipes_leave_out_any_part_and_no_other(tmp_path, phantom_corpus):
    found = load("unimed", "vit_b16")
    shutil.copytree(phantom_corpus, tmp_path / "pmc_oa")
    found.data.root = str(tmp_path)
    kept = data_location.without_missing(found, "run")
    assert list(kept.data.sources) == ["pmc_oa"] and len(kept.data.left_out) == 12


@pytest.mark.slow
def test_training_says_what_it_leaves_out_and_resumes_with_the_same_mixture(
    config, tmp_path, capsys
):
    run = tmp_path / "run"
    train.train(config(), run, jax.devices()[:1])
    said = "chexpert (no corpus in"
    output = capsys.readouterr()
    (line,) = (x for x in (output.out + output.err).splitlines() if "left out" in x)
    assert said in line and "2 of 3 sources are trained on" in line
    assert said in (run / "report.html").read_text()
    written = json.loads((run / "config.json").read_text())["data"]
    assert sorted(written["sources"]) == ["one", "two"] and written["left_out"] == ["chexpert"]
    # the part has come since: another mixture, which the run does not take up silently
    shutil.copytree(tmp_path / "corpora" / "one", tmp_path / "corpora" / "chexpert")
    with pytest.raises(UserError, match=r"another config.*data.left_out: \['chexpert'\] -> \[\]"):
        train.train(config(), run)
