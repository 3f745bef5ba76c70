"""Evaluates a model: on a converted corpus, or on a benchmark suite.

    unimed-jax evaluate --checkpoint=runs/quickstart --out=eval/quickstart
    unimed-jax evaluate --checkpoint=PATH_OR_HUB_ID --data=CORPUS --prompts=FILE.json \\
        --evals=zero_shot,linear_probe,few_shot,retrieval --out=DIR

--checkpoint is a work directory (its newest checkpoint), one folder below its checkpoints/, or any
weights that can be imported (docs/guides/weights.md). Without --evals, the evaluators of the run's
config are applied to its corpus; a config without evaluators gets the default one of its task.
--set=KEY=VALUE sets any key of the config, such as --set=evals.linear_probe.draws=10. Writes
results.json and report.html to --out.

    unimed-jax evaluate --suite=unimed21 --where --data=SETS
    unimed-jax evaluate --suite=unimed21 --list --data=SETS
    unimed-jax evaluate --checkpoint=PATH_OR_HUB_ID --suite=unimed21 --data=SETS --out=DIR

With --suite, --data is the folder of the test sets; writes results.csv as well. More:
docs/guides/suites.md.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import app, flags
from jax.experimental import multihost_utils

from input_pipeline.conversion import exclude
from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, is_local, to_path
from unimed_jax import config as config_lib
from unimed_jax import tasks
from unimed_jax.distributed import process, sharding
from unimed_jax.evals import prompt_sets, registry
from unimed_jax.evals.benchmark import images, report, results, run, set_prompts
from unimed_jax.evals.benchmark import spec as suite_files
from unimed_jax.evals.benchmark.set_prompts import SetPrompts
from unimed_jax.evals.failures import Failures
from unimed_jax.evals.model_under_test import open_model
from unimed_jax.evals.results import evaluate, write_results
from unimed_jax.inference import dual_encoder
from unimed_jax.training import data_location
from unimed_jax.weights.checkpoint import WEIGHTS

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "work directory, checkpoint folder, weights")
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, WEIGHTS, "of a run with optimizer.ema_decay: the moving average (default), raw"
)
_OUT = flags.DEFINE_string("out", None, "directory for results.json and report.html")
_EVALS = flags.DEFINE_list(
    "evals",
    [],
    f"evaluators in place of the config's: for a dual encoder {', '.join(registry.DUAL_ENCODER)}; "
    f"for segmentation {', '.join((*registry.IMAGE_SEGMENTATION, *registry.VOLUME_SEGMENTATION))}",
)
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of the config; may be given again")
_DATA = flags.DEFINE_string(
    "data", "", "corpus root in place of the run's; folder of the test sets"
)
_PROMPTS = flags.DEFINE_string(
    "prompts",
    "",
    "prompt set (packaged name or JSON) for every evaluator; JSON for a suite; default: those of "
    "the config, or made from the labels of the corpus",
)
_SUITE = flags.DEFINE_enum("suite", None, suite_files.suite_names(), "benchmark suite")
_SETS = flags.DEFINE_list("suite.sets", [], "keys of the sets to evaluate; all")
_LIST = flags.DEFINE_bool("list", False, "print the sets of the suite, and which are there")
_WHERE = flags.DEFINE_bool("where", False, "print where to get each set, and how to lay it out")
_PROTOCOL = flags.DEFINE_enum("protocol", "ours", list(run.PROTOCOLS), "of the suite")
_EXCLUDE = flags.DEFINE_string("exclude", "", "JSON Lines of images that were trained on")
_ON_BAD_IMAGE = flags.DEFINE_enum(
    "on_bad_image", None, suite_files.ON_BAD_IMAGE, "rule in place of the suite's"
)
_CACHE = flags.DEFINE_string("cache", "", "folder of embeddings; OUT/embeddings")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if _LIST.value or _WHERE.value:
        _describe_suite()
        return
    checkpoint = _CHECKPOINT.value
    if not checkpoint or not _OUT.value:
        raise UserError("give --checkpoint and --out")
    out = to_path(_OUT.value)
    process.initialize()
    with process.exclusive(out):
        if _SUITE.value:
            _refuse("has no use with --suite", _EVALS, _SET)
            _evaluate_suite(_SUITE.value, checkpoint, out)
        else:
            _refuse("needs --suite", _SETS, _EXCLUDE, _PROTOCOL, _ON_BAD_IMAGE)
            _evaluate_corpus(checkpoint, out)


def _describe_suite() -> None:
    if not _SUITE.value:
        raise UserError(f"--{'list' if _LIST.value else 'where'} needs --suite")
    chosen = suite_files.load_suite(_SUITE.value, _SETS.value)
    data = _sets_folder()
    missing = {spec.key: images.missing(spec, data) for spec in chosen.sets}
    if _LIST.value:
        print(report.listing(chosen, missing))
    else:
        print(report.sources(chosen, missing, _DATA.value.rstrip("/") or "SETS"))


def _refuse(why: str, *wrong: flags.FlagHolder) -> None:
    for flag in wrong:
        if flag.present:
            raise UserError(f"--{flag.name} {why}")


def _cache(out: AnyPath) -> AnyPath:
    return to_path(_CACHE.value) if _CACHE.value else out / "embeddings"


def _sets_folder() -> Path:
    data = to_path(_DATA.value)
    if not is_local(data):
        raise UserError(f"--data={data}: the sets of a suite are read from a local disk; copy them")
    return data


def _evaluate_suite(suite: str, checkpoint: str, out: AnyPath) -> None:
    chosen = suite_files.load_suite(suite, _SETS.value)
    if _ON_BAD_IMAGE.value:
        chosen = dataclasses.replace(chosen, on_bad_image=_ON_BAD_IMAGE.value)
    data = _sets_folder()
    if not data.is_dir() or not _DATA.value:
        raise UserError(f"--data={_DATA.value}: no such folder; give the folder of the test sets")
    prompts: Mapping[str, SetPrompts] = {}
    if _PROMPTS.value:
        prompt_set = prompt_sets.load_prompts(_PROMPTS.value)
        prompts = set_prompts.from_file(chosen, prompt_set, _PROMPTS.value)
        for key, given in prompts.items():
            if given.by_order:
                process.log(
                    f"{key}: {_PROMPTS.value} names classes otherwise ("
                    f"{', '.join(given.by_order)}); they were taken in our order: "
                    f"{', '.join(given.task.classes)}"
                )
    is_first = jax.process_index() == 0
    model = dual_encoder.load(checkpoint, weights=_WEIGHTS.value)
    name = results.ModelName(model.architecture, checkpoint)

    def write_set(result: run.SetResult) -> None:
        if is_first:
            results.write_set(out, result, name)

    result = run.evaluate_suite(
        model,
        chosen,
        data,
        _cache(out),
        protocol=_PROTOCOL.value,
        prompts=prompts,
        excluded=exclude.load(_EXCLUDE.value) if _EXCLUDE.value else None,
        when_done=write_set,
    )
    shown = (_CHECKPOINT, _WEIGHTS, _SUITE, _SETS, _DATA, _PROMPTS, _PROTOCOL, _EXCLUDE)
    if is_first:
        settings = {f.name: str(f.value) for f in (*shown, _ON_BAD_IMAGE)}
        report.write(out, result, name, settings)
    Failures(result.failed).raise_any(out / "results.json")


def _evaluate_corpus(checkpoint: str, out: AnyPath) -> None:
    changes = dict(map(config_lib.parse_assignment, _SET.value))
    model_changes = {
        k.removeprefix("model."): v for k, v in changes.items() if k.startswith("model.")
    }
    model = open_model(checkpoint, out, model_changes, _WEIGHTS.value)
    config = model.config
    if _DATA.value:
        config.data.root = _DATA.value
    valid = tasks.task_class(config.task).evaluator_classes
    registry.choose(config, valid, _EVALS.value, _PROMPTS.value)
    for key, value in changes.items():
        if not key.startswith("model."):
            config_lib.assign(config, key, value)
    if jax.process_index() == 0:
        data_location.prepare(config, model.workdir)
    multihost_utils.sync_global_devices("the corpus is ready")
    task = tasks.create(config, model.workdir)
    mesh = sharding.make_mesh({"data": jax.device_count(), "fsdp": 1, "tensor": 1})
    evaluators = task.evaluators(mesh, _cache(out))
    failures = Failures()
    evaluations = evaluate(evaluators, model.params(task, mesh), failures)
    process.log(model.title)
    if jax.process_index() == 0:
        write_results(out, model.title, config, evaluations, failures, facts={"model": model.title})
    failures.raise_any(out / "results.json")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits; ``argv``: the arguments, None for those of the process."""
    process.run(_main, argv)


if __name__ == "__main__":
    main()
