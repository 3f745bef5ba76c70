"""Evaluates a checkpoint: with the evaluators of its config, or on a benchmark suite.

    python -m unimed_jax.evaluate --checkpoint=runs/quickstart --out=eval/quickstart
    python -m unimed_jax.evaluate --checkpoint=runs/minimed/checkpoints/800 --data=DIR --out=DIR2

--checkpoint is a work directory (its newest checkpoint), or one folder below its checkpoints/.
--data replaces data.root of the run, --prompts its prompt set. Writes results.json and report.html
to --out.

    python -m unimed_jax.evaluate --suite=unimed21 --list --data=SETS
    python -m unimed_jax.evaluate --checkpoint=PATH_OR_HUB_ID --suite=unimed21 --data=SETS --out=DIR

With --suite, --checkpoint is anything that unimed_jax.load reads, and --data the folder of the test
sets (docs/evaluation.md). Writes results.csv as well.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import ConfigDict

from input_pipeline import exclude
from input_pipeline.errors import UserError
from unimed_jax import checkpoint, corpus, inference, runtime, sharding, tasks
from unimed_jax import config as config_lib
from unimed_jax.evals import (
    prompt_sets,
    set_files,
    suite,
    suite_files,
    suite_report,
    suite_results,
)
from unimed_jax.results import evaluate, write_results

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "work directory, checkpoint folder, weights")
_OUT = flags.DEFINE_string("out", None, "directory for results.json and report.html")
_DATA = flags.DEFINE_string(
    "data", "", "corpus root in place of the run's; folder of the test sets"
)
_PROMPTS = flags.DEFINE_string(
    "prompts", "", "prompt set (packaged name or JSON) for every evaluator; JSON for a suite"
)
_SUITE = flags.DEFINE_enum("suite", None, suite_files.suite_names(), "benchmark suite")
_SETS = flags.DEFINE_list("suite.sets", [], "keys of the sets to evaluate; all")
_LIST = flags.DEFINE_bool("list", False, "print the sets of the suite, and which are there")
_PROTOCOL = flags.DEFINE_enum("protocol", "ours", list(suite.PROTOCOLS), "of the suite")
_EXCLUDE = flags.DEFINE_string("exclude", "", "JSON Lines of images that were trained on")
_ON_BAD_IMAGE = flags.DEFINE_enum(
    "on_bad_image", None, suite_files.ON_BAD_IMAGE, "in place of the suite's own rule"
)
_CACHE = flags.DEFINE_string("cache", "", "folder of image embeddings; OUT/embeddings")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if _LIST.value:
        _list_suite()
        return
    if not _CHECKPOINT.value or not _OUT.value:
        raise UserError("give --checkpoint and --out")
    runtime.initialize()
    if _SUITE.value:
        _evaluate_suite()
    else:
        _refuse_suite_flags()
        _evaluate_run()


def _list_suite() -> None:
    if not _SUITE.value:
        raise UserError("--list needs --suite")
    chosen = suite_files.load_suite(_SUITE.value, _SETS.value)
    missing = {spec.key: set_files.missing(spec, Path(_DATA.value)) for spec in chosen.sets}
    print(suite_report.listing(chosen, missing))


def _refuse_suite_flags() -> None:
    given = [f.name for f in (_SETS, _EXCLUDE, _CACHE, _PROTOCOL, _ON_BAD_IMAGE) if f.present]
    if given:
        raise UserError(f"--{given[0]} needs --suite")


def _evaluate_suite() -> None:
    chosen = suite_files.load_suite(_SUITE.value, _SETS.value)
    if _ON_BAD_IMAGE.value:
        chosen = dataclasses.replace(chosen, on_bad_image=_ON_BAD_IMAGE.value)
    if not Path(_DATA.value).is_dir() or not _DATA.value:
        raise UserError(f"--data={_DATA.value}: no such folder; give the folder of the test sets")
    tasks_by_key: Mapping[str, prompt_sets.PromptTask] = {}
    sha256 = ""
    if _PROMPTS.value:
        own = prompt_sets.load_prompts(_PROMPTS.value)
        tasks_by_key = suite_files.replace_prompts(chosen, own, _PROMPTS.value)
        sha256 = own.sha256
    out, is_first = Path(_OUT.value), jax.process_index() == 0
    model = inference.load(_CHECKPOINT.value)
    name = suite_results.ModelName(model.architecture, _CHECKPOINT.value)

    def write_set(result: suite.SetResult) -> None:
        if is_first:
            suite_results.write_set(out, result, name)

    found = suite.evaluate_suite(
        model,
        chosen,
        Path(_DATA.value),
        Path(_CACHE.value) if _CACHE.value else out / "embeddings",
        protocol=_PROTOCOL.value,
        prompts=tasks_by_key,
        prompts_sha256=sha256,
        excluded=exclude.load(_EXCLUDE.value) if _EXCLUDE.value else None,
        when_done=write_set,
    )
    shown = (_CHECKPOINT, _SUITE, _SETS, _DATA, _PROMPTS, _PROTOCOL, _EXCLUDE, _ON_BAD_IMAGE)
    if is_first:
        suite_report.write(out, found, name, {f.name: str(f.value) for f in shown})


def _evaluate_run() -> None:
    workdir, step = checkpoint.find(_CHECKPOINT.value)
    config = checkpoint.load_config(workdir, step)
    if _DATA.value:
        config.data.root = _DATA.value
    if _PROMPTS.value:
        if not config.evals:  # as of weights that were imported
            with config_lib.edit(config):
                config.evals.zero_shot = ConfigDict(
                    {"kind": "zero_shot", "path": ".", "split": "val", "batch_size": 64}
                )
        with config_lib.edit(config):
            for settings in config.evals.values():
                settings.prompts = _PROMPTS.value
    if not config.evals:
        raise UserError(f"{workdir} names no evaluators: give --prompts, and --data")
    corpus.prepare(config, str(workdir))
    task = tasks.create(config, str(workdir))
    mesh = sharding.make_mesh({"data": jax.device_count(), "fsdp": 1, "tensor": 1})
    abstract = {"params": jax.eval_shape(task.init, jax.random.key(0))}
    shardings = sharding.state_shardings(abstract, task.parameter_axes, mesh)
    params = checkpoint.load_params(workdir, step, abstract["params"], shardings["params"])
    evaluations = evaluate(task.evaluators(mesh), params)
    runtime.say(f"{workdir}, step {step}")
    if jax.process_index() == 0:
        write_results(Path(_OUT.value), f"{workdir.name}, step {step}", config, evaluations)


if __name__ == "__main__":
    runtime.run(main)
