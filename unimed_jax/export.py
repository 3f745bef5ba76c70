"""Writes a checkpoint for PyTorch: a directory that stock open_clip opens, or a state dict.

    unimed-jax export --checkpoint=runs/quickstart --out=exports/quickstart
    unimed-jax export --checkpoint=runs/minimed --step=800 --out=DIR --format=unimed_pt

--checkpoint is a work directory, one of its checkpoints, or any weights that unimed_jax.load reads.
In PyTorch: open_clip.create_model_and_transforms("local-dir:/home/me/exports/quickstart").

The export is verified before it appears: open_clip opens it, and both frameworks embed the same
images and texts. Where torch and open_clip are not installed the directory is written unverified.
--push=ORG/NAME also sends it to the Hugging Face hub, where it opens as hf-hub:ORG/NAME.
"""

from collections.abc import Sequence

from absl import app, flags

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import is_local, to_path
from unimed_jax.distributed import process
from unimed_jax.exporting import hub
from unimed_jax.exporting.open_clip_export import FORMATS, export
from unimed_jax.weights.checkpoint import WEIGHTS

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "work directory, checkpoint, or weights")
_STEP = flags.DEFINE_integer("step", None, "step of a work directory (the newest)")
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, WEIGHTS, "of a run with optimizer.ema_decay: the moving average (default), raw"
)
_OUT = flags.DEFINE_string("out", None, "directory to write; must not exist, or be empty")
_FORMAT = flags.DEFINE_enum(
    "format", "open_clip", list(FORMATS),
    "open_clip: a directory that it opens by itself; open_clip_pt, unimed_pt: with a state dict as "
    "well, in open_clip's or UniMed-CLIP's names",
)  # fmt: skip
_PUSH = flags.DEFINE_string("push", "", "hub repository to send it to, ORG/NAME")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    out = to_path(process.required(_OUT)).absolute()
    if not is_local(out):
        raise UserError(f"--out={out}: open_clip opens a local directory; export there and copy it")
    checkpoint = process.required(_CHECKPOINT)
    summary = export(
        checkpoint, out, step=_STEP.value, weights=_WEIGHTS.value, format=_FORMAT.value
    )
    print(f"{summary}\nopen_clip opens it as local-dir:{out}; moved, as {out}/README.md says")
    if _PUSH.value:
        print(f"pushed: open_clip opens it as hf-hub:{hub.push(out, _PUSH.value)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits; ``argv``: the arguments, None for those of the process."""
    flags.mark_flags_as_required(["checkpoint", "out"])
    process.run(_main, argv)


if __name__ == "__main__":
    main()
