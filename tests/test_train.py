"""What stops a run: losses that are not finite, impossible configs, foreign directories."""

import json
import os
import re
import shutil

import pytest
from helpers.runs import losses_of, start, write_recipe

from input_pipeline.io import locks
from input_pipeline.io.errors import ConfigError, UserError
from unimed_jax import train
from unimed_jax.weights.checkpoint import CheckpointReader


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_samples(tiny_config, tmp_path):
    config = tiny_config(
        num_train_steps=20,
        evals={},
        checkpoint__every_steps=2,
        optimizer__learning_rate=1e20,
        optimizer__warmup_steps=0,
    )
    with pytest.raises(
        UserError, match=r"step \d+: loss .*last good checkpoint.*phantom-"
    ) as error:
        train.train(config, tmp_path)
    step = int(re.search(r"step (\d+)", str(error.value))[1])
    assert all(s < step for s in losses_of(tmp_path))
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert all(s < step for s in saved)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "batch_size=12.*multiple of .* 8"),
        ({"mesh__data": 3}, "mesh.*8 devices.*product is 8"),
        ({"num_epochs": 1.0}, "num_train_steps.*exactly one"),
        (
            {"optimizer__schedule": "linear"},
            "optimizer.schedule='linear'.*'cosine', 'polynomial', 'constant'",
        ),
        ({"loss__name": "hinge"}, "loss.name='hinge'.*'softmax', 'sigmoid'"),
        ({"loss__name": "sigmoid"}, "model.logit_bias_init"),
        ({"model__visual__patch_size": 7}, "image_size 32 .*patch_size 7"),
        ({"model__text__vocab_size": 100}, "vocab_size=100 contradicts .* 296"),
        ({"data__block_size": 0}, "block_size=0.*at least 1"),
        ({"data__root": "/nonexistent/corpus"}, "/nonexistent/corpus"),
        ({"data__root": ""}, "data.root is empty"),
        ({"data__sources__phantoms__caption_rule": "random"}, "caption rule 'random'"),
        ({"data__sources__phantoms__split": "training"}, "training.*train"),
        ({"loss__same_label": "soft"}, "loss.same_label='soft'.*'positive', 'overlap'"),
        ({"captions__label_share": 1.5}, "captions.label_share=1.5.*between 0 and 1"),
        ({"loss__max_labels": 0}, "loss.max_labels=0.*at least 1"),
        ({"tokenizer": "/nonexistent/vocab"}, "/nonexistent/vocab"),
        ({"evals__zero_shot__prompts": "phantom"}, "phantom.*phantoms"),
        ({"evals__zero_shot__kind": "linear"}, "zero_shot.kind='linear'"),
    ],
)
def test_an_impossible_config_is_named_before_anything_is_compiled(
    tiny_config, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        train.train(tiny_config(**changes), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_workdir_of_another_config_is_refused(tiny_config, tmp_path):
    train.claim_workdir(tiny_config(batch_size=8), tmp_path)
    train.claim_workdir(tiny_config(), tmp_path)  # nothing was trained yet
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    train.claim_workdir(tiny_config(mesh__data=4, log_every_steps=7), tmp_path)  # no matter
    with pytest.raises(UserError, match=r"batch_size: 16 -> 32.*another --workdir"):
        train.claim_workdir(tiny_config(batch_size=32), tmp_path)


@pytest.mark.parametrize("run", [train.train, train.train_stages])
def test_a_workdir_in_use_is_refused_before_anything_is_written(tiny_config, tmp_path, run):
    with locks.exclusive(tmp_path):
        message = f"{tmp_path} is in use by process {os.getpid()} on host"
        with pytest.raises(UserError, match=message):
            run(tiny_config(), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [locks.FILE]


def test_an_unwritable_workdir_is_named(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        train.claim_workdir(tiny_config(), tmp_path / "file" / "run")


@pytest.mark.slow
def test_another_corpus_under_a_resumed_run_is_refused(tiny_config, tmp_path):
    from input_pipeline.conversion.phantom_corpus import write_phantoms

    shared = {"evals": {}, "num_train_steps": 2, "checkpoint__every_steps": 1}
    train.train(tiny_config(**shared), tmp_path / "run")
    write_phantoms(
        tmp_path / "other", num_train_per_class=6, num_val_per_class=2, image_size=40, seed=1
    )
    moved = tiny_config(**shared, data__root=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"fingerprint.*accept_new_order"):
        train.train(moved, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.optimizer.learnin_rate=1",
            "error: unknown key config.optimizer.learnin_rate; the",
        ),
        ("--config.batch_size=many", "error: flag --config.batch_size=many"),
        ("--config.batch_size=0", "error: config.batch_size=0 is not possible"),
    ],
)
def test_a_wrong_command_line_ends_with_one_line(phantom_corpus, tmp_path, argument, message):
    recipe = write_recipe(tmp_path / "recipe.py", phantom_corpus)
    process = start(recipe, tmp_path / "run", argument)
    output = process.communicate(timeout=120)[0]
    assert process.returncode not in (0, None)
    assert message in output
    assert "Traceback" not in output


def test_find_names_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        CheckpointReader(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint"):
        CheckpointReader(tmp_path)


def test_a_checkpoint_of_the_old_order_is_refused_until_it_is_accepted(tiny_config, tmp_path):
    changes = {"num_train_steps": 2, "checkpoint__every_steps": 1, "evals": {}}
    train.train(tiny_config(**changes), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    # what version 0.1 wrote: config.json and the position with its keys
    config = json.loads((tmp_path / "config.json").read_text())
    del config["data"]["block_size"]
    config["data"] |= {"num_streams": 4, "shuffle_block": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (path,) = (tmp_path / "checkpoints" / "1").glob("data/metadata")
    position = json.loads(path.read_text())
    del position["order"]
    path.write_text(json.dumps(position | {"num_streams": 4, "block_size": 8}))
    refused = r"step 1 was trained in an order .*--config.data.accept_new_order=True"
    with pytest.raises(ConfigError, match=refused):
        train.train(tiny_config(**changes), tmp_path)
    assert train.train(tiny_config(**changes, data__accept_new_order=True), tmp_path)
    assert [*losses_of(tmp_path)] == [1, 2]
