"""Writes a checkpoint as a directory that stock open_clip loads offline.

    python -m unimed_jax.export --checkpoint=runs/quickstart --out=exports/quickstart

In PyTorch: open_clip.create_model_and_transforms("local-dir:/home/me/exports/quickstart").
"""

from pathlib import Path

import jax
from absl import app, flags

from input_pipeline.errors import UserError
from unimed_jax import checkpoint, runtime, sharding, tasks
from unimed_jax.porting.open_clip_directory import export_open_clip

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "work directory or checkpoint folder")
_OUT = flags.DEFINE_string("out", None, "directory to write; must not exist, or be empty")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    runtime.initialize()
    workdir, step = checkpoint.find(_CHECKPOINT.value)
    config = checkpoint.load_config(workdir, step)
    if config.task != "contrastive":
        raise UserError(f"{workdir} holds a {config.task!r} model, which open_clip does not know")
    task = tasks.create(config, str(workdir))
    mesh = sharding.make_mesh({"data": jax.device_count(), "fsdp": 1, "tensor": 1})
    params = jax.device_get(checkpoint.load_params(workdir, step, task, mesh))
    out = Path(_OUT.value).absolute()
    export_open_clip(params, task.model.config, workdir / "tokenizer", out)
    runtime.say(f"step {step} of {workdir} is in {out}; open_clip opens it as local-dir:{out}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "out"])
    runtime.run(main)
