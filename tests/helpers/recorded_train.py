"""unimed_jax.train, which also writes down what it reads: ``runs.recorded(RECORD)``."""

import os
from pathlib import Path

from absl import flags
from runs import recording

from unimed_jax import train
from unimed_jax.distributed import process
from unimed_jax.training.data_loader import Batches

Batches.read = recording(Batches.read, Path(os.environ["RECORD"]))
flags.mark_flags_as_required(["config", "workdir"])
process.run(train.main)
