"""Runs the evaluators of a checkpoint's config on that checkpoint; no recipe is needed.

    python -m unimed_jax.evaluate --checkpoint=runs/quickstart --out=eval/quickstart
    python -m unimed_jax.evaluate --checkpoint=runs/minimed/checkpoints/800 --data=DIR --out=DIR2

--checkpoint is a work directory (its newest checkpoint), or one folder below its checkpoints/.
--data replaces data.root of the run, --prompts its prompt set. Writes results.json and report.html
to --out.
"""

from pathlib import Path

import jax
from absl import app, flags
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from unimed_jax import checkpoint, corpus, runtime, sharding, tasks
from unimed_jax import config as config_lib
from unimed_jax.results import evaluate, write_results

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "work directory or checkpoint folder")
_OUT = flags.DEFINE_string("out", None, "directory for results.json and report.html")
_DATA = flags.DEFINE_string("data", "", "corpus root in place of the run's data.root")
_PROMPTS = flags.DEFINE_string(
    "prompts", "", "prompt set (packaged name or JSON) for every evaluator"
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    runtime.initialize()
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
    flags.mark_flags_as_required(["checkpoint", "out"])
    runtime.run(main)
