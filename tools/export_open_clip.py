"""Writes a checkpoint for PyTorch; the same command as `python -m unimed_jax.export`.

python tools/export_open_clip.py --checkpoint=runs/quickstart --out=exports/quickstart
"""

from absl import flags

from unimed_jax import export
from unimed_jax.distributed import process

if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "out"])
    process.run(export.main)
